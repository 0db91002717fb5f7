//! The gRPC service: queries, streams, status, with reflection and the standard health service.
//!
//! Talks HTTP/2 and nothing else: what is answered comes from features as trait objects.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{Stream, StreamExt, unfold};
use orb8_proto::v1::orbit_agent_service_server::{OrbitAgentService, OrbitAgentServiceServer};
use orb8_proto::v1::{
    AgentStatus, Event, GetStatusRequest, GetTotalsRequest, QueryFlowsRequest, QueryFlowsResponse,
    StreamEventsRequest, Totals,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tonic_health::ServingStatus;

use crate::datapath::{Datapath, PacketWatch};
use crate::export::feed::{Feed, PacketAsk, Queries, StatusPage, TotalsPage};
use crate::export::hub::{Hub, SubscribeError, Terms};
use crate::host::HostFacts;

/// Time between updates of a flow if the request does not say.
const DEFAULT_UPDATE_INTERVAL_MS: u32 = 1000;
/// A connection whose peer does not answer is closed: its streams would hold their places.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Streams and calls of one connection at a time.
const STREAMS_PER_CONNECTION: u32 = 128;

/// Requests for totals that are served at a time, the others wait. Each waits for the kernel side to be read, and has a thread that
/// queries and status need too.
const TOTALS_AT_ONCE: usize = 2;

/// What the service is made of.
#[derive(Clone)]
pub struct Service {
    /// Answers queries.
    pub queries: Arc<dyn Queries>,
    /// Prepares subscriptions.
    pub feed: Arc<dyn Feed>,
    /// Describes the agent.
    pub page: Arc<dyn StatusPage>,
    /// Tells totals.
    pub totals: Arc<dyn TotalsPage>,
    /// See [`places_for_totals`].
    pub places_for_totals: Arc<Semaphore>,
    /// Feeds the subscriptions.
    pub hub: Arc<Hub>,
    /// Opens packet views; none while the kernel side does not run.
    pub datapath: Option<Arc<dyn Datapath>>,
    /// Events that a subscriber's queue holds.
    pub queue: usize,
}

/// Places for those who ask for totals at the same time, all taken by nobody.
#[must_use]
pub fn places_for_totals() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(TOTALS_AT_ONCE))
}

impl std::fmt::Debug for Service {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Service").field("hub", &self.hub).finish_non_exhaustive()
    }
}

type EventStream = Pin<Box<dyn Stream<Item = Result<Event, Status>> + Send>>;

#[tonic::async_trait]
impl OrbitAgentService for Service {
    async fn query_flows(
        &self,
        request: Request<QueryFlowsRequest>,
    ) -> Result<Response<QueryFlowsResponse>, Status> {
        let queries = Arc::clone(&self.queries);
        let request = request.into_inner();
        let answer = blocking(move || queries.query(&request)).await?;
        answer.map(Response::new).map_err(|error| Status::invalid_argument(error.to_string()))
    }

    type StreamEventsStream = EventStream;

    async fn stream_events(
        &self,
        request: Request<StreamEventsRequest>,
    ) -> Result<Response<EventStream>, Status> {
        let peer = request.remote_addr();
        let request = request.into_inner();
        let selected = self
            .feed
            .select(&request)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let packets = selected.packets;
        let interval_ms = match request.update_interval_ms {
            0 => DEFAULT_UPDATE_INTERVAL_MS,
            interval_ms => interval_ms,
        };
        let terms = Terms {
            peer: peer.map_or_else(|| "unknown".to_owned(), |peer| peer.to_string()),
            queue: self.queue,
            interval_ns: u64::from(interval_ms) * 1_000_000,
        };
        let mut subscription =
            self.hub.subscribe(selected, terms, None).map_err(|error| match error {
                SubscribeError::Full => Status::resource_exhausted(error.to_string()),
                SubscribeError::Closed => Status::unavailable(error.to_string()),
            })?;
        // Second, so that every packet that the kernel tells has somebody to be told to.
        if let Some(ask) = packets {
            subscription.attend(self.watch_packets(ask).await?);
        }
        let events = unfold(subscription, |mut subscription| async move {
            subscription.next().await.map(|event| (Ok(event), subscription))
        });
        Ok(Response::new(Box::pin(events)))
    }

    async fn get_status(
        &self,
        _request: Request<GetStatusRequest>,
    ) -> Result<Response<AgentStatus>, Status> {
        let page = Arc::clone(&self.page);
        blocking(move || page.status()).await.map(Response::new)
    }

    async fn get_totals(
        &self,
        request: Request<GetTotalsRequest>,
    ) -> Result<Response<Totals>, Status> {
        let page = Arc::clone(&self.totals);
        let request = request.into_inner();
        // Who waits has no thread, and who leaves waits no more.
        let place = Arc::clone(&self.places_for_totals).acquire_owned().await;
        let place = place.map_err(|closed| Status::unavailable(closed.to_string()))?;
        let work = move || {
            // As long as the thread is taken, whether anybody still waits for the answer or not.
            let _place = place;
            page.totals(&request)
        };
        let totals = blocking(work).await?;
        totals.map(Response::new).map_err(|late| Status::deadline_exceeded(late.to_string()))
    }
}

impl Service {
    async fn watch_packets(&self, ask: PacketAsk) -> Result<Box<dyn PacketWatch>, Status> {
        let Some(datapath) = self.datapath.clone() else {
            return Err(Status::failed_precondition(
                "packets cannot be watched while nothing is attached, see GetStatus for the reason",
            ));
        };
        blocking(move || datapath.watch_packets(&ask.filter, ask.rate))
            .await?
            .map_err(|error| Status::failed_precondition(error.to_string()))
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Status::internal(format!("the answer could not be made: {error}")))
}

/// Serves until `stop` resolves and all streams have ended.
///
/// # Errors
/// The server could not be set up or failed.
pub async fn serve(
    listener: TcpListener,
    service: Service,
    healthy: watch::Receiver<bool>,
    facts: Arc<HostFacts>,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let local = listener.local_addr()?;
    let (reporter, health) = tonic_health::server::health_reporter();
    let reporting = tokio::spawn(report_health(reporter, healthy));
    let incoming = TcpListenerStream::new(listener)
        .map(move |accepted| accepted.inspect(|stream| note_socket(stream, local, &facts)));
    let result = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .add_service(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .add_service(OrbitAgentServiceServer::new(service))
        .serve_with_incoming_shutdown(incoming, stop)
        .await;
    reporting.abort();
    Ok(result?)
}

/// The gRPC server failed.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The listener has no address.
    #[error("the gRPC listener is not usable: {0}")]
    Listener(#[from] io::Error),
    /// The descriptors could not be read.
    #[error("the reflection service could not be built: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The transport failed.
    #[error("the gRPC server failed: {0}")]
    Transport(#[from] tonic::transport::Error),
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(orb8_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

async fn report_health(
    reporter: tonic_health::server::HealthReporter,
    mut healthy: watch::Receiver<bool>,
) {
    loop {
        let serving = match *healthy.borrow_and_update() {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        };
        for name in ["", "orb8.v1.OrbitAgentService"] {
            reporter.set_service_status(name, serving).await;
        }
        if healthy.changed().await.is_err() {
            return;
        }
    }
}

/// Notes an accepted connection as our own, so that it is not reported as traffic.
fn note_socket(stream: &TcpStream, local: SocketAddr, facts: &HostFacts) {
    // Latency matters more than a few small segments: a stream's events are small and rare.
    stream.set_nodelay(true).ok();
    let cookie = rustix::net::sockopt::socket_cookie(stream).ok();
    let address = stream.local_addr().ok().map(|address| address.ip());
    facts.update_sockets(|facts| {
        if let Some(cookie) = cookie {
            facts.add_own_cookie(cookie);
        }
        // Who listens everywhere learns here which addresses that means.
        if let (true, Some(address)) = (local.ip().is_unspecified(), address) {
            facts.add_own_address(address);
        }
    });
}
