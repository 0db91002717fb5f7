//! An agent with a scripted kernel side, for the tests that run it in their own process.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test file uses a part")]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use orb8_agent::agent::{Agent, AgentError, Parts};
use orb8_agent::clock::{Clock, SystemClock};
use orb8_agent::config::{self, Settings};
use orb8_agent::event::{Counters, DrainReport, Event};
use orb8_agent::testing::{Script, ScriptedDatapath};
use orb8_common::counter;
use orb8_proto::v1::orbit_agent_service_client::OrbitAgentServiceClient;
use orb8_proto::v1::{AgentStatus, GetStatusRequest, QueryFlowsRequest, QueryFlowsResponse};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::transport::Channel;

pub type Client = OrbitAgentServiceClient<Channel>;

/// How long a condition may take before a test fails.
pub const DEADLINE: Duration = Duration::from_secs(20);

#[must_use]
pub fn local() -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))
}

pub fn settings(flags: &[&str]) -> Settings {
    let fixed = ["orb8-agent", "--grpc-port", "0", "--node-name", "n1"];
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
    pub async fn start() -> Self {
        Self::with(&[], SystemClock::shared()).await
    }

    pub async fn with(flags: &[&str], clock: Arc<dyn Clock>) -> Self {
        let (script, source) = Script::new("script");
        let datapath = ScriptedDatapath::attached("eth0", 2);
        let start = datapath.start(vec![Box::new(source)], local());
        let parts = Parts { start, checks: Vec::new(), clock };
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

    /// Stops the agent in order.
    pub async fn stop(self) {
        self.stop.send(()).unwrap();
        self.running.await.unwrap().unwrap();
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
