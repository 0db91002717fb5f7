//! One agent on one end of a link, and what is asked of it: its ledgers at rest, and whether a flow
//! that begins now is counted whole.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use orb8_proto::v1::condition::{Field, Side};
use orb8_proto::v1::orbit_agent_service_client::OrbitAgentServiceClient;
use orb8_proto::v1::{
    AgentStatus, Condition, FlowFilter, GetStatusRequest, GetTotalsRequest, Loss, NetworkFlow,
    PacketLedger, QueryFlowsRequest, QueryFlowsResponse, Strings, Subscriber, Totals,
};
use tonic::transport::{Channel, Endpoint};

use super::figures::{Account, EventAccount, Lost, SubscriberAccount};
use super::sockets::Sockets;
use crate::agent::{AgentOptions, AgentProcess, LISTEN};
use crate::flood::{Flood, Small};
use crate::flow::Total;
use crate::link::Veth;
use crate::wait::wait;

pub(super) type Client = OrbitAgentServiceClient<Channel>;

/// How long anything may take that is waited for.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long a ledger at rest may take to have everything.
const SETTLED: Duration = Duration::from_secs(20);
/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(50);
const LINK_HEADER: u64 = 14;
/// Who sends what shows that an agent has recovered.
pub(super) const CANARY: std::net::Ipv4Addr = std::net::Ipv4Addr::new(192, 0, 2, 1);
/// Packets of each flow of the canary's.
const CANARY_PACKETS: u16 = 3;
/// Source port of the first.
pub(super) const CANARY_PORT: u16 = 10_000;
/// Time from one to the next.
pub(super) const NEXT_CANARY: Duration = Duration::from_millis(400);

/// An agent, and what it watches: a link at whose near end it is, or sockets elsewhere.
#[derive(Debug)]
pub(super) struct Bed {
    pub(super) link: Veth,
    agent: AgentProcess,
    sockets: Option<Sockets>,
    /// What had passed there before.
    before: Total,
}

/// An agent that counts at the near end of a link, with the defaults of all that is a budget.
pub(super) fn options(program: &Path, link: &Veth) -> AgentOptions {
    AgentOptions::of(program)
        .unset("ORB8_CPU_BUDGET")
        .env("ORB8_CAPTURE", "tc")
        .env("ORB8_INTERFACES", &link.near.ifname)
        .env("ORB8_KUBERNETES", "off")
        .env("NODE_NAME", "testbed")
        // Flows end soon after the load, so that there is a time of recovery to be seen.
        .env("ORB8_FLOW_TIMEOUT_SECS", 2)
        .env("RUST_LOG", "warn")
}

/// A way to the agent of the namespace that the calling thread is in.
pub(super) async fn connect() -> anyhow::Result<Client> {
    connect_by(Endpoint::from_shared(format!("http://{LISTEN}"))?).await
}

/// The same, with no more than HTTP/2's own 64 KiB on their way to somebody who does not read; the
/// client's default is 2 MiB.
pub(super) async fn connect_narrowly() -> anyhow::Result<Client> {
    let endpoint = Endpoint::from_shared(format!("http://{LISTEN}"))?;
    connect_by(endpoint.initial_stream_window_size(65_535)).await
}

async fn connect_by(endpoint: Endpoint) -> anyhow::Result<Client> {
    let channel = endpoint.connect().await?;
    Ok(OrbitAgentServiceClient::new(channel).max_decoding_message_size(usize::MAX))
}

/// A runtime for one thread.
pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")
}

impl Bed {
    /// Starts an agent on a link over which nothing passes; it is attached when this returns.
    pub(super) fn start(link: Veth, options: &AgentOptions) -> anyhow::Result<Self> {
        Self::at(link, None, options)
    }

    /// The same at sockets that send nothing yet; the agent is at the near end of a link all the same.
    pub(super) fn start_at_sockets(
        link: Veth,
        sockets: Sockets,
        options: &AgentOptions,
    ) -> anyhow::Result<Self> {
        Self::at(link, Some(sockets), options)
    }

    fn at(link: Veth, sockets: Option<Sockets>, options: &AgentOptions) -> anyhow::Result<Self> {
        let agent = options.start(&link.near.netns);
        let bed = Self { link, agent, sockets, before: Total::default() };
        wait("the agent to be attached", || {
            let Totals { interfaces, socket_plane, .. } = bed.totals()?;
            Ok(match &bed.sockets {
                Some(_) => socket_plane.is_some_and(|plane| plane.state == "attached"),
                None => interfaces.len() == 1 && interfaces[0].state == "attached",
            })
        })?;
        // What passed until now was not seen.
        Ok(Self { before: bed.passed(), ..bed })
    }

    /// The sockets that it watches.
    pub(super) fn sockets(&self) -> anyhow::Result<&Sockets> {
        self.sockets.as_ref().context("an agent that watches sockets")
    }

    /// The agent's process.
    pub(super) fn pid(&self) -> u32 {
        self.agent.pid()
    }

    /// Calls the agent from inside its namespace.
    pub(super) fn ask<T: Send>(
        &self,
        call: impl AsyncFnOnce(Client) -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        self.link.near.netns.enter(|| {
            runtime()?.block_on(async {
                let asked = async { call(connect().await?).await };
                tokio::time::timeout(DEADLINE, asked).await.context("no answer")?
            })
        })
    }

    pub(super) fn status(&self) -> anyhow::Result<AgentStatus> {
        self.ask(async |mut client| Ok(client.get_status(GetStatusRequest {}).await?.into_inner()))
    }

    pub(super) fn query(&self, request: QueryFlowsRequest) -> anyhow::Result<QueryFlowsResponse> {
        self.ask(async |mut client| Ok(client.query_flows(request).await?.into_inner()))
    }

    /// What the interface has carried under the agent's eyes, or sockets have sent and been given, as IP
    /// packets and bytes.
    pub(super) fn carried(&self) -> Total {
        let Total { packets, bytes } = self.passed();
        Total { packets: packets - self.before.packets, bytes: bytes - self.before.bytes }
    }

    /// The same since there is something to be watched.
    fn passed(&self) -> Total {
        if let Some(sockets) = &self.sockets {
            return sockets.passed();
        }
        let all = self.link.near.counters();
        let packets = all.rx_packets + all.tx_packets;
        Total { packets, bytes: all.rx_bytes + all.tx_bytes - packets * LINK_HEADER }
    }

    /// What sends the packets of a canary, which its number among all says.
    fn canary(&self) -> Box<dyn FnMut(u16) -> anyhow::Result<()> + '_> {
        if let Some(sockets) = &self.sockets {
            return Box::new(|number| {
                (0..CANARY_PACKETS).try_for_each(|_| sockets.canary(number.into()))
            });
        }
        let mut flood = Flood::open(&self.link.far, &self.link.near);
        Box::new(move |number| {
            let sport = CANARY_PORT + number;
            let packet = Small { src: CANARY, sport, dport: 7, syn: false };
            flood.send(std::iter::repeat_n(packet, CANARY_PACKETS.into()));
            Ok(())
        })
    }

    /// How long it takes since a load ended until a flow that begins is counted to the packet, and an
    /// answer over the time since then is complete; `None` if that does not come within some time.
    pub(super) fn recovery(
        &self,
        since: Instant,
        patience: Duration,
    ) -> anyhow::Result<Option<Duration>> {
        let mut canary = self.canary();
        let end = Instant::now() + patience;
        let mut begun = Vec::new();
        while Instant::now() < end {
            let number = u16::try_from(begun.len())?;
            let now = i64::try_from(jiff::Timestamp::now().as_nanosecond())?;
            begun.push((u32::from(CANARY_PORT + number), now));
            canary(number)?;
            let next = Instant::now() + NEXT_CANARY;
            while Instant::now() < next {
                if self.has_canary(&begun)? {
                    return Ok(Some(since.elapsed()));
                }
                std::thread::sleep(PAUSE);
            }
        }
        Ok(None)
    }

    /// Whether one of these flows, by port and time of its beginning, is in an answer, whole, and nothing
    /// was lost since it began.
    fn has_canary(&self, begun: &[(u32, i64)]) -> anyhow::Result<bool> {
        let condition = Condition {
            side: Side::Source.into(),
            negate: false,
            field: Some(Field::Ip(Strings { values: vec![CANARY.to_string()] })),
        };
        let request = |start_time_ns| QueryFlowsRequest {
            limit: 1_000,
            start_time_ns,
            filter: Some(FlowFilter { all: vec![condition.clone()] }),
            ..Default::default()
        };
        let whole = |flow: &&NetworkFlow| flow.packets == u64::from(CANARY_PACKETS);
        let flows = self.query(request(0))?.flows;
        let Some(last) = flows.iter().filter(whole).map(|flow| flow.src_port).max() else {
            return Ok(false);
        };
        let since = begun.iter().find(|(port, _)| *port == last).context("a canary of ours")?.1;
        Ok(self.query(request(since))?.nodes.iter().all(|node| node.complete))
    }

    /// Both ledgers once all that was carried has arrived in them, or will not; every line is read
    /// anew for it.
    pub(super) fn rest(&self) -> anyhow::Result<(Account, EventAccount, Vec<SubscriberAccount>)> {
        let end = Instant::now() + SETTLED;
        let (account, status) = loop {
            let (account, status) = (self.account()?, self.status()?);
            let whole = account.seen == self.carried() && account.accounted() == account.seen;
            let events = events(&status);
            let told = events.produced == events.processed + events.rejected + events.lost;
            if (whole && told) || Instant::now() > end {
                break (account, status);
            }
            std::thread::sleep(PAUSE);
        };
        let again = self.account()?;
        let same = again.seen == account.seen && again.accounted() == account.accounted();
        let moved = (!same).then(|| {
            let (was, is) = (account.accounted(), again.accounted());
            format!("{} seen, {was} accounted for; then {} and {is}", account.seen, again.seen)
        });
        Ok((Account { moved, ..account }, events(&status), subscribers(&status)))
    }

    fn account(&self) -> anyhow::Result<Account> {
        Ok(account(&self.totals()?.packet_ledger.context("a packet ledger")?))
    }

    fn totals(&self) -> anyhow::Result<Totals> {
        self.ask(async |mut client| {
            Ok(client.get_totals(GetTotalsRequest { keep_seconds: 1 }).await?.into_inner())
        })
    }

    /// Stops the agent; what its end says against it.
    pub(super) fn stop(self) -> Option<String> {
        let (status, log) = self.agent.stop();
        (!status.success()).then(|| format!("the agent ended with {status}: {}", log.trim()))
    }
}

/// A packet ledger as figures.
fn account(ledger: &PacketLedger) -> Account {
    let total = |count: Option<orb8_proto::v1::Count>| {
        let count = count.unwrap_or_default();
        Total { packets: count.packets, bytes: count.bytes }
    };
    let sum = |parts: &[orb8_proto::v1::ReasonCount]| {
        let mut sum = Total::default();
        parts.iter().for_each(|part| sum.add(part.packets, part.bytes));
        sum
    };
    let lost = ledger.lost.iter().filter(|loss| loss.packets > 0).map(|loss| Lost {
        stage: loss.stage.clone(),
        reason: loss.reason.clone(),
        total: Total { packets: loss.packets, bytes: loss.bytes },
    });
    Account {
        seen: total(ledger.seen),
        reported: total(ledger.reported),
        filtered: sum(&ledger.filtered),
        rejected: sum(&ledger.rejected),
        lost: lost.collect(),
        in_flight: total(ledger.in_flight),
        state: ledger.state.clone(),
        moved: None,
    }
}

/// Events for which the kernel's ring had no room.
pub(super) fn of_ring(lost: &[Loss]) -> u64 {
    lost.iter().filter(|loss| loss.stage == "ring").map(|loss| loss.events).sum()
}

fn events(status: &AgentStatus) -> EventAccount {
    let ledger = status.event_ledger.clone().unwrap_or_default();
    EventAccount {
        produced: ledger.produced,
        processed: ledger.processed,
        rejected: ledger.rejected,
        // What a subscriber lost is in its own account.
        lost: of_ring(&ledger.lost),
        state: ledger.state,
    }
}

/// Those who watch live, as the agent accounts for them.
fn subscribers(status: &AgentStatus) -> Vec<SubscriberAccount> {
    status.subscribers.iter().map(account_of).collect()
}

/// What the agent says of one of them, as figures.
pub(super) fn account_of(one: &Subscriber) -> SubscriberAccount {
    SubscriberAccount {
        offered: one.offered,
        delivered: one.delivered,
        filtered: one.filtered,
        lost: one.lost,
        queued: one.queued,
    }
}
