//! An agent that says what a test tells it to: a real gRPC server on a port that the kernel chose,
//! on a thread of its own, so that async tests, plain tests and other processes can ask it.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use orb8_proto::v1::orbit_agent_service_server::{OrbitAgentService, OrbitAgentServiceServer};
use orb8_proto::v1::{
    AgentStatus, Event, GetStatusRequest, GetTotalsRequest, QueryFlowsRequest, QueryFlowsResponse,
    StreamEventsRequest, Totals,
};
use tokio::sync::oneshot;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

/// What the agent answers.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    /// To QueryFlows.
    pub(crate) flows: Result<QueryFlowsResponse, Status>,
    /// To GetStatus.
    pub(crate) status: Result<AgentStatus, Status>,
    /// To GetTotals.
    pub(crate) totals: Result<Totals, Status>,
    /// To the first calls of GetTotals, in this order.
    pub(crate) first_totals: Vec<Totals>,
    /// To StreamEvents, in this order.
    pub(crate) events: Vec<Event>,
    /// After the events.
    pub(crate) end: End,
    /// Never answers anything.
    pub(crate) silent: bool,
}

/// How a stream ends.
#[derive(Clone, Debug)]
pub(crate) enum End {
    /// It stays open until the agent is dropped.
    Open,
    /// The agent closes it.
    Close,
    /// The agent fails.
    Fail(Status),
}

impl Default for Script {
    fn default() -> Self {
        Self {
            flows: Ok(QueryFlowsResponse::default()),
            status: Ok(AgentStatus::default()),
            totals: Ok(Totals::default()),
            first_totals: Vec::new(),
            events: Vec::new(),
            end: End::Open,
            silent: false,
        }
    }
}

/// What the agent was asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    /// By QueryFlows.
    pub(crate) flows: Vec<QueryFlowsRequest>,
    /// By StreamEvents.
    pub(crate) streams: Vec<StreamEventsRequest>,
    /// By GetTotals.
    pub(crate) totals: Vec<GetTotalsRequest>,
}

/// A running agent. Stops when dropped.
#[derive(Debug)]
pub(crate) struct FakeAgent {
    address: SocketAddr,
    asked: Arc<Mutex<Asked>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl FakeAgent {
    /// Starts it; it accepts connections when this returns.
    pub(crate) fn start(script: Script) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a non-blocking listener");
        let address = listener.local_addr().expect("a bound listener");
        let asked = Arc::new(Mutex::new(Asked::default()));
        let (stop, stopped) = oneshot::channel();
        let service = Service { script, asked: Arc::clone(&asked) };
        let thread = std::thread::spawn(move || serve(listener, service, stopped));
        Self { address, asked, stop: Some(stop), thread: Some(thread) }
    }

    /// Where it listens, as HOST:PORT.
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// What it was asked so far.
    pub(crate) fn asked(&self) -> Asked {
        locked(&self.asked).clone()
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the server has already been printed, and the test fails on its own.
            drop(thread.join());
        }
    }
}

fn serve(listener: std::net::TcpListener, service: Service, stopped: oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime for the fake agent");
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        let server = tonic::transport::Server::builder()
            .add_service(OrbitAgentServiceServer::new(service))
            .serve_with_incoming(TcpListenerStream::new(listener));
        // No graceful end: an open stream would never let it finish.
        tokio::select! {
            served = server => served.expect("the fake agent serves"),
            _ = stopped => {}
        }
    });
}

fn locked(asked: &Mutex<Asked>) -> MutexGuard<'_, Asked> {
    asked.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

struct Service {
    script: Script,
    asked: Arc<Mutex<Asked>>,
}

impl Service {
    async fn may_be_silent(&self) {
        if self.script.silent {
            std::future::pending::<()>().await;
        }
    }
}

#[tonic::async_trait]
impl OrbitAgentService for Service {
    async fn query_flows(
        &self,
        request: Request<QueryFlowsRequest>,
    ) -> Result<Response<QueryFlowsResponse>, Status> {
        locked(&self.asked).flows.push(request.into_inner());
        self.may_be_silent().await;
        self.script.flows.clone().map(Response::new)
    }

    type StreamEventsStream = Pin<Box<dyn Stream<Item = Result<Event, Status>> + Send>>;

    async fn stream_events(
        &self,
        request: Request<StreamEventsRequest>,
    ) -> Result<Response<Self::StreamEventsStream>, Status> {
        locked(&self.asked).streams.push(request.into_inner());
        self.may_be_silent().await;
        let events = tokio_stream::iter(self.script.events.clone().into_iter().map(Ok));
        Ok(Response::new(match &self.script.end {
            End::Open => Box::pin(events.chain(tokio_stream::pending())),
            End::Close => Box::pin(events),
            End::Fail(status) => Box::pin(events.chain(tokio_stream::once(Err(status.clone())))),
        }))
    }

    async fn get_status(
        &self,
        _: Request<GetStatusRequest>,
    ) -> Result<Response<AgentStatus>, Status> {
        self.may_be_silent().await;
        self.script.status.clone().map(Response::new)
    }

    async fn get_totals(
        &self,
        request: Request<GetTotalsRequest>,
    ) -> Result<Response<Totals>, Status> {
        let number = {
            let mut asked = locked(&self.asked);
            asked.totals.push(request.into_inner());
            asked.totals.len() - 1
        };
        self.may_be_silent().await;
        let first = self.script.first_totals.get(number).cloned();
        first.map_or_else(|| self.script.totals.clone(), Ok).map(Response::new)
    }
}
