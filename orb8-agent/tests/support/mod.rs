//! The whole agent in a namespace, asked over gRPC: what the kernel tests compare with what they
//! sent. Never reads the product's kernel maps; what counts is the answer.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses another part")]

pub mod cgroup;
pub mod direct;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use orb8_proto::v1::orbit_agent_service_client::OrbitAgentServiceClient;
use orb8_proto::v1::{
    AgentStatus, GetStatusRequest, GetTotalsRequest, NetworkFlow, QueryFlowsRequest,
    QueryFlowsResponse,
};
use orb8_testbed::agent::{AgentOptions, AgentProcess, LISTEN};
use orb8_testbed::flow::{self, Flow, L4, Total, Traffic};
use orb8_testbed::netns::Netns;
use orb8_testbed::wait::wait_for;
use tonic::transport::{Channel, Endpoint};

/// How long counts may take from the hook to the answer, with every core busy with other tests.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// The most that an agent answers, and more flows than any test makes.
const ALL: u32 = 100_000;

/// Which way, as the host of the interface sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    Ingress,
    Egress,
}
pub use Direction::{Egress, Ingress};

/// What an agent answered, arranged for comparison.
#[derive(Clone, Debug)]
pub struct Observed {
    pub status: AgentStatus,
    pub answer: QueryFlowsResponse,
}

/// An agent with short intervals in a namespace of its own.
pub struct Watch {
    agent: Option<AgentProcess>,
    netns: Netns,
}

/// An agent of this build that watches `interfaces` (globs, comma separated).
pub fn options(interfaces: &str) -> AgentOptions {
    AgentOptions::of(env!("CARGO_BIN_EXE_orb8-agent"))
        .env("ORB8_INTERFACES", interfaces)
        .env("ORB8_EXPIRATION_INTERVAL_SECS", 1)
        .env("ORB8_MAX_QUERY_LIMIT", ALL)
        // These tests count at interfaces; those of the socket plane say so.
        .env("ORB8_CAPTURE", "tc")
        .env("NODE_NAME", "testbed")
        .env("RUST_LOG", "info")
}

impl Watch {
    /// Watches `count` interfaces that match; they are attached when this returns.
    pub fn start(netns: &Netns, interfaces: &str, count: usize) -> Self {
        Self::with(&options(interfaces), netns, count)
    }

    /// An agent with other options; `count` interfaces are attached when this returns.
    pub fn with(options: &AgentOptions, netns: &Netns, count: usize) -> Self {
        let watch = Self { agent: Some(options.start(netns)), netns: netns.clone() };
        watch.wait_attached(count);
        watch
    }

    /// Watches with an agent that was started before, whatever became of it.
    pub fn of(agent: AgentProcess, netns: &Netns) -> Self {
        Self { agent: Some(agent), netns: netns.clone() }
    }

    /// Waits until exactly `count` interfaces are attached.
    #[track_caller]
    pub fn wait_attached(&self, count: usize) {
        self.wait_status(&format!("{count} attached interfaces"), |status| {
            status.interfaces.iter().filter(|interface| interface.state == "attached").count()
                == count
        });
    }

    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    pub fn agent(&mut self) -> &mut AgentProcess {
        self.agent.as_mut().expect("the agent runs until it is stopped")
    }

    /// Asks it to stop and returns its exit code and log.
    pub fn stop(mut self) -> (Option<i32>, String) {
        let (status, log) = self.agent.take().expect("stopped once").stop();
        (status.code(), log)
    }

    pub fn status(&self) -> AgentStatus {
        ask(&self.netns, async |mut client| {
            client.get_status(GetStatusRequest {}).await.expect("a status").into_inner()
        })
    }

    pub fn query(&self, request: &QueryFlowsRequest) -> QueryFlowsResponse {
        ask(&self.netns, async |mut client| {
            client.query_flows(request.clone()).await.expect("an answer").into_inner()
        })
    }

    /// Lets the agent read its counters now.
    pub fn drain(&self) {
        ask(&self.netns, async |mut client| {
            client.get_totals(GetTotalsRequest { keep_seconds: 1 }).await.expect("totals");
        });
    }

    /// Waits until the status says so.
    #[track_caller]
    pub fn wait_status(&self, what: &str, condition: impl Fn(&AgentStatus) -> bool) -> AgentStatus {
        wait_for(DEADLINE, what, || Some(self.status()).filter(|status| condition(status)))
    }

    /// Waits until at least `packets` were seen and all of them have reached the answer.
    #[track_caller]
    pub fn settled(&self, packets: u64) -> Observed {
        let what = format!("{packets} packets to be seen and drained");
        self.wait_status(&what, |status| seen(status).packets >= packets && in_flight(status) == 0);
        let answer = self.query(&QueryFlowsRequest { limit: ALL, ..Default::default() });
        Observed { status: self.status(), answer }
    }
}

/// Calls an agent from inside its namespace.
fn ask<T: Send>(
    netns: &Netns,
    call: impl AsyncFnOnce(OrbitAgentServiceClient<Channel>) -> T + Send,
) -> T {
    netns.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime of one thread");
        runtime.block_on(async {
            let endpoint = Endpoint::from_shared(format!("http://{LISTEN}")).expect("an address");
            let channel = endpoint.connect().await.expect("the agent listens");
            let client = OrbitAgentServiceClient::new(channel);
            call(client.max_decoding_message_size(usize::MAX)).await
        })
    })
}

impl Observed {
    /// Flows of one interface and direction.
    pub fn traffic(&self, ifname: &str, direction: Direction) -> Traffic {
        let word = match direction {
            Ingress => "ingress",
            Egress => "egress",
        };
        self.answer
            .flows
            .iter()
            .filter(|flow| flow.interface == ifname && flow.direction == word)
            .map(|flow| (key(flow), Total { packets: flow.packets, bytes: flow.bytes }))
            .collect()
    }

    /// Everything in the answer.
    pub fn total(&self) -> Total {
        let mut total = Total::default();
        for flow in &self.answer.flows {
            total.add(flow.packets, flow.bytes);
        }
        total
    }

    /// Rejected packets by reason.
    pub fn rejected(&self) -> BTreeMap<String, u64> {
        let ledger = self.status.packet_ledger.as_ref().expect("a ledger");
        ledger
            .rejected
            .iter()
            .filter(|r| r.packets > 0)
            .map(|r| (r.reason.clone(), r.packets))
            .collect()
    }

    /// The ledger adds up and nothing was lost behind the hook.
    #[track_caller]
    pub fn assert_complete(&self) {
        let ledger = self.status.packet_ledger.as_ref().expect("a ledger");
        assert_eq!(ledger.state, "balanced", "{ledger:#?}");
        let lost: Vec<_> = ledger
            .lost
            .iter()
            .filter(|loss| loss.stage != "unattached" && loss.packets > 0)
            .collect();
        assert!(lost.is_empty(), "{lost:#?}");
        let node = self.answer.nodes.first().expect("the node that answered");
        assert!(node.complete, "{node:?} {:?}", self.answer.loss);
        assert_ledger_sums(&self.status);
    }
}

/// seen = reported + filtered + rejected + lost, in packets and in bytes.
#[track_caller]
pub fn assert_ledger_sums(status: &AgentStatus) {
    let ledger = status.packet_ledger.as_ref().expect("a ledger");
    let mut sum = Total::default();
    let reported = ledger.reported.unwrap_or_default();
    sum.add(reported.packets, reported.bytes);
    for reason in ledger.filtered.iter().chain(&ledger.rejected) {
        sum.add(reason.packets, reason.bytes);
    }
    // What passed before an interface was attached was never seen.
    for loss in ledger.lost.iter().filter(|loss| loss.stage != "unattached") {
        sum.add(loss.packets, loss.bytes);
    }
    let seen = ledger.seen.unwrap_or_default();
    assert_eq!(ledger.in_flight.unwrap_or_default().packets, 0, "asked when traffic has paused");
    let seen = Total { packets: seen.packets, bytes: seen.bytes };
    assert_eq!(sum, seen, "reported + filtered + rejected + lost against seen: {ledger:#?}");
}

pub fn seen(status: &AgentStatus) -> Total {
    let seen = status.packet_ledger.as_ref().and_then(|ledger| ledger.seen).unwrap_or_default();
    Total { packets: seen.packets, bytes: seen.bytes }
}

pub fn in_flight(status: &AgentStatus) -> u64 {
    let ledger = status.packet_ledger.as_ref();
    ledger.and_then(|ledger| ledger.in_flight).unwrap_or_default().packets
}

/// Packets lost at a stage for a reason; an empty reason stands for all.
pub fn lost(status: &AgentStatus, stage: &str, reason: &str) -> u64 {
    let ledger = status.packet_ledger.as_ref().expect("a ledger");
    let fits = |loss: &&orb8_proto::v1::Loss| {
        loss.stage == stage && (reason.is_empty() || loss.reason == reason)
    };
    ledger.lost.iter().filter(fits).map(|loss| loss.packets).sum()
}

/// The flow of a row, in the testbed's own words.
pub fn key(row: &NetworkFlow) -> Flow {
    let address = |text: &str| -> IpAddr { text.parse().expect("an address") };
    let protocol = match row.protocol.as_str() {
        "tcp" => flow::TCP,
        "udp" => flow::UDP,
        "icmp" => flow::ICMP,
        "icmpv6" => flow::ICMPV6,
        "sctp" => flow::SCTP,
        number => number.parse().expect("a protocol number"),
    };
    let port = |port: u32| u16::try_from(port).expect("a port");
    let byte = |byte: u32| u8::try_from(byte).expect("a byte");
    let l4 = if row.fragment {
        L4::Fragment
    } else if let Some(icmp) = &row.icmp {
        L4::Icmp { kind: byte(icmp.r#type), code: byte(icmp.code) }
    } else if matches!(protocol, flow::TCP | flow::UDP | flow::SCTP | 136) {
        L4::Ports { src: port(row.src_port), dst: port(row.dst_port) }
    } else {
        assert_eq!((row.src_port, row.dst_port), (0, 0), "a protocol without ports: {row:?}");
        L4::Plain
    };
    Flow { src: address(&row.src_ip), dst: address(&row.dst_ip), protocol, l4 }
}
