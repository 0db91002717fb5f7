//! Asks one or many agents at once, each within the same time limit.
//!
//! A node that does not answer never hides what the others said: it becomes an error beside the
//! answer. Nothing is retried.

use std::future::Future;
use std::time::Duration;

use futures_util::future::join_all;
use orb8_proto::v1::orbit_agent_service_client::OrbitAgentServiceClient;
use orb8_proto::v1::{
    GetStatusRequest, GetTotalsRequest, QueryFlowsRequest, StreamEventsRequest, Totals,
};
use orb8_util::net::HostPort;
use tonic::transport::{Channel, Endpoint};

use crate::answer::{FlowAnswer, StatusAnswer};
use crate::error::{AgentError, ErrorKind};
use crate::stream::EventStream;

/// 100 000 flows of some 300 bytes need about 30 MB; the default of 4 MB would refuse them.
const MAX_ANSWER_BYTES: usize = 512 << 20;

/// How long a silent connection may be silent before it is asked whether it still lives.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

type Stub = OrbitAgentServiceClient<Channel>;

/// A client for a fixed list of agents.
#[derive(Clone, Debug)]
pub struct Client {
    agents: Vec<HostPort>,
    timeout: Duration,
}

impl Client {
    /// A client that gives each agent at most `timeout` to be connected and to answer. An address
    /// that is listed twice is asked once.
    #[must_use]
    pub fn new(addresses: &[HostPort], timeout: Duration) -> Self {
        let mut agents: Vec<HostPort> = Vec::with_capacity(addresses.len());
        for address in addresses {
            if !agents.contains(address) {
                agents.push(address.clone());
            }
        }
        Self { agents, timeout }
    }

    /// The agents that are asked, in the order given.
    #[must_use]
    pub fn agents(&self) -> &[HostPort] {
        &self.agents
    }

    /// A client for those of its agents that are not among `gone`.
    #[must_use]
    pub fn without(&self, gone: &[AgentError]) -> Self {
        let is_gone = |address: &&HostPort| gone.iter().any(|error| error.address == **address);
        let agents = self.agents.iter().filter(|address| !is_gone(address)).cloned().collect();
        Self { agents, timeout: self.timeout }
    }

    /// Asks all agents for flows and merges what they say; sorts and limits the whole again.
    pub async fn query_flows(&self, request: &QueryFlowsRequest) -> FlowAnswer {
        let parts = join_all(self.agents.iter().map(|address| async move {
            let asked = self.call(address, |mut stub| {
                let request = request.clone();
                async move { stub.query_flows(request).await }
            });
            (address.clone(), asked.await)
        }))
        .await;
        FlowAnswer::merge(parts, request)
    }

    /// Asks all agents for their status.
    pub async fn status(&self) -> StatusAnswer {
        let parts =
            join_all(self.agents.iter().map(|address| async move {
                let asked = self.call(address, |mut stub| async move {
                    stub.get_status(GetStatusRequest {}).await
                });
                (address.clone(), asked.await)
            }))
            .await;
        StatusAnswer::merge(parts)
    }

    /// Asks one agent for its running totals, to be kept for as long as it takes to ask again.
    ///
    /// # Errors
    /// Why it did not answer.
    pub async fn totals(&self, agent: &HostPort, keep: Duration) -> Result<Totals, AgentError> {
        let keep_seconds = u32::try_from(keep.as_secs()).unwrap_or(u32::MAX);
        let request = GetTotalsRequest { keep_seconds };
        self.call(agent, |mut stub| async move { stub.get_totals(request).await }).await
    }

    /// Subscribes to events of all agents; returns what could be subscribed to and who could not
    /// be. The time limit holds for connecting, not for the stream.
    pub async fn stream(&self, request: &StreamEventsRequest) -> (EventStream, Vec<AgentError>) {
        let parts = join_all(self.agents.iter().map(|address| async move {
            let asked = self.call(address, |mut stub| {
                let request = request.clone();
                async move { stub.stream_events(request).await }
            });
            (address.clone(), asked.await)
        }))
        .await;
        let mut stream = EventStream::default();
        let mut errors = Vec::new();
        for (address, opened) in parts {
            match opened {
                Ok(events) => stream.push(address, self.timeout, events),
                Err(error) => errors.push(error),
            }
        }
        (stream, errors)
    }

    /// Connects and calls within the time limit.
    async fn call<T, F>(
        &self,
        address: &HostPort,
        request: impl FnOnce(Stub) -> F,
    ) -> Result<T, AgentError>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let work = async {
            let stub = self.connect(address).await?;
            request(stub)
                .await
                .map(tonic::Response::into_inner)
                .map_err(|status| AgentError::status(address, self.timeout, &status))
        };
        tokio::time::timeout(self.timeout, work)
            .await
            .unwrap_or_else(|_| Err(AgentError::timeout(address, self.timeout)))
    }

    async fn connect(&self, address: &HostPort) -> Result<Stub, AgentError> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| AgentError {
                address: address.clone(),
                kind: ErrorKind::Unreachable,
                cause: format!("the address is not usable: {error}"),
            })?
            .connect_timeout(self.timeout)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(self.timeout)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        let channel = endpoint
            .connect()
            .await
            .map_err(|error| AgentError::connect(address, self.timeout, &error))?;
        Ok(OrbitAgentServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES))
    }
}
