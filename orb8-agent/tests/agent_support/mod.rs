//! An agent with a scripted kernel side, for the tests that run it in their own process.
#![allow(
    dead_code,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test file uses a part, and a test may panic"
)]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use orb8_agent::agent::{Agent, AgentError, Parts};
use orb8_agent::capture::View;
use orb8_agent::clock::Clock;
use orb8_agent::config::{self, Settings};
use orb8_agent::datapath::Start;
use orb8_agent::event::{Counters, DrainReport, Event};
use orb8_agent::k8s::identity::Knowledge;
use orb8_agent::testing::{ManualClock, Script, ScriptedDatapath};
use orb8_common::counter;
use orb8_proto::v1::orbit_agent_service_client::OrbitAgentServiceClient;
use orb8_proto::v1::{
    self, AgentStatus, GetStatusRequest, QueryFlowsRequest, QueryFlowsResponse, StreamEventsRequest,
};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

pub type Client = OrbitAgentServiceClient<Channel>;

/// How long a condition may take before a test fails.
pub const DEADLINE: Duration = Duration::from_secs(20);

#[must_use]
pub fn local() -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))
}

pub fn settings(flags: &[&str]) -> Settings {
    let fixed = ["orb8-agent", "--grpc-port", "0", "--node-name", "n1", "--cpu-budget", "100%"];
    config::parse(fixed.iter().chain(flags)).unwrap().settings
}

pub struct TestAgent {
    pub script: Script,
    pub datapath: Arc<ScriptedDatapath>,
    pub address: std::net::SocketAddr,
    stop: oneshot::Sender<()>,
    running: JoinHandle<Result<(), AgentError>>,
}

impl TestAgent {
    /// An agent whose clock stands at 1 ns after the boot and after 1970.
    pub async fn start() -> Self {
        Self::with(&[], ManualClock::at(1, 0)).await
    }

    pub async fn with(flags: &[&str], clock: Arc<dyn Clock>) -> Self {
        let (script, source) = Script::new("script");
        let datapath = ScriptedDatapath::attached("eth0", 2);
        let start = datapath.start(vec![Box::new(source)], local());
        Self::made_of(flags, clock, start, script, datapath).await
    }

    /// An agent whose kernel side is started by `start`.
    pub async fn made_of(
        flags: &[&str],
        clock: Arc<dyn Clock>,
        start: Start,
        script: Script,
        datapath: Arc<ScriptedDatapath>,
    ) -> Self {
        let parts = Parts { start, checks: Vec::new(), cgroups: View::none(), known: None, clock };
        Self::of_parts(flags, parts, script, datapath).await
    }

    /// An agent that knows this of the cluster.
    pub async fn knowing(known: Knowledge) -> Self {
        let (script, source) = Script::new("script");
        let datapath = ScriptedDatapath::attached("eth0", 2);
        let start = datapath.start(vec![Box::new(source)], local());
        let (cgroups, clock) = (View::none(), ManualClock::at(1, 0));
        let parts = Parts { start, checks: Vec::new(), cgroups, known: Some(known), clock };
        Self::of_parts(&[], parts, script, datapath).await
    }

    async fn of_parts(
        flags: &[&str],
        parts: Parts,
        script: Script,
        datapath: Arc<ScriptedDatapath>,
    ) -> Self {
        let agent = Agent::start(&settings(flags), parts).await.unwrap();
        let address = agent.address();
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(agent.run_until(async move {
            stopped.await.ok();
        }));
        Self { script, datapath, address, stop, running }
    }

    pub async fn client(&self) -> Client {
        connect(self.address).await
    }

    /// Waits until so many flows are held.
    pub async fn wait_for_flows(&self, flows: usize) -> QueryFlowsResponse {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let answer = query(self, QueryFlowsRequest::default()).await.unwrap();
            if answer.flows.len() == flows {
                return answer;
            }
            assert!(Instant::now() < deadline, "{} of {flows} flows", answer.flows.len());
            tokio::task::yield_now().await;
        }
    }

    /// Waits until the status fulfils a condition.
    pub async fn wait_for_status(
        &self,
        what: &str,
        condition: impl Fn(&AgentStatus) -> bool,
    ) -> AgentStatus {
        let mut client = self.client().await;
        let deadline = Instant::now() + DEADLINE;
        loop {
            let status = client.get_status(GetStatusRequest {}).await.unwrap().into_inner();
            if condition(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "waiting for {what}: {status:#?}");
            tokio::task::yield_now().await;
        }
    }

    /// Subscribes; returns once the agent knows it.
    pub async fn subscribe(&self, request: StreamEventsRequest) -> Streaming<v1::Event> {
        let before = self.wait_for_status("a status", |_| true).await.subscribers.len();
        let mut client = self.client().await;
        let stream = client.stream_events(request).await.unwrap().into_inner();
        self.wait_for_status("the subscriber", |status| status.subscribers.len() > before).await;
        stream
    }

    /// Stops the agent in order.
    pub async fn stop(self) {
        self.stop.send(()).unwrap();
        self.running.await.unwrap().unwrap();
    }

    /// Asks the agent to stop and gives what it ends with.
    pub fn ask_to_stop(self) -> JoinHandle<Result<(), AgentError>> {
        self.stop.send(()).unwrap();
        self.running
    }
}

pub async fn connect(address: std::net::SocketAddr) -> Client {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    OrbitAgentServiceClient::new(endpoint.connect().await.unwrap())
        .max_decoding_message_size(64 << 20)
}

pub async fn query(
    agent: &TestAgent,
    request: QueryFlowsRequest,
) -> Result<QueryFlowsResponse, Status> {
    let answer = agent.client().await.query_flows(request).await?;
    Ok(answer.into_inner())
}

/// The end of a drain at which so much had been seen, in a moment of silence.
#[must_use]
pub fn drained(time_ns: u64, packets: u64, bytes: u64) -> Event {
    let mut counters = Counters::default();
    counters.0[counter::SEEN_PACKETS] = packets;
    counters.0[counter::SEEN_BYTES] = bytes;
    drained_with(time_ns, counters)
}

/// The end of a drain with these counters.
#[must_use]
pub fn drained_with(time_ns: u64, counters: Counters) -> Event {
    Event::Drained(Box::new(DrainReport {
        time_ns,
        before: counters,
        after: counters,
        ..DrainReport::default()
    }))
}

/// The next message of a stream.
pub async fn next(stream: &mut Streaming<v1::Event>) -> v1::Event {
    let next = tokio::time::timeout(DEADLINE, stream.message()).await;
    next.expect("a message before the deadline").unwrap().expect("the stream goes on")
}

/// A message in a word or two: what a test compares.
pub fn word(event: &v1::Event) -> String {
    use v1::event::Payload;
    use v1::flow_event::Type;
    match event.payload.as_ref().unwrap() {
        Payload::Flow(event) => {
            let flow = event.flow.as_ref().unwrap();
            let kind = match event.r#type() {
                Type::Unspecified => "unspecified",
                Type::Start => "start",
                Type::Update => "update",
                Type::End => "end",
            };
            format!("{kind} {} {}p {}", flow.flow_id, flow.packets, flow.end_reason)
        }
        Payload::Loss(loss) => {
            format!("loss {} {} {}p {}e", loss.stage, loss.reason, loss.packets, loss.events)
        }
        Payload::Notice(notice) => format!("notice {}", notice.code),
        Payload::Packet(packet) => format!("packet {}", packet.dst_port),
    }
}
