//! The composition root: the one file that names every feature and connects the parts.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::capture::{self, Choice, NoSocketPlane, Planes, View};
use crate::cgroup::Memberships;
use crate::clock::{Clock, SystemClock};
use crate::config::Settings;
use crate::datapath::{Datapath, Start};
use crate::ebpf;
use crate::ebpf::clsact::{self, Removed};
use crate::ebpf::datapath::Decoders;
use crate::ebpf::lines::LINES;
use crate::ebpf::netlink::{Netlink, NetlinkError};
use crate::export::grpc::{self, ServeError, Service};
use crate::export::hub::Hub;
use crate::export::log::LogExporter;
use crate::governor;
use crate::host::HostFacts;
use crate::k8s::client::ConnectError;
use crate::k8s::identity::{Knowledge, OwnerEnricher, Resolver};
use crate::network::decode;
use crate::network::feed::NetworkFeed;
use crate::network::filter::{RootCgroup, SelfTraffic};
use crate::network::keys;
use crate::network::query::NetworkQueries;
use crate::network::table::{FlowProcessor, FlowTable, Limits, SharedTable, read};
use crate::network::totals::{CountTotals, Totals, TotalsExporter, TotalsOfHost};
use crate::network::wire as network_wire;
use crate::pipeline::filter::EventFilter;
use crate::pipeline::on_demand::{Drains, OnDemand};
use crate::pipeline::runner::{self, Handle, Mover, SharedLedger, Stages, StopError};
use crate::pipeline::source::EventSource;
use crate::preflight::{self, Check};
use crate::status::{Board, FlowCounts, Identity, Status, StatusExporter};

mod govern;
mod kernel;
mod known;
mod listen;
mod place;

use kernel::{Kernel, start_kernel};
use known::{Keepers, Running};
use listen::listen;

/// How often code is let go, so that only what is needed comes back.
const CODE_REST: Duration = Duration::from_secs(2);

/// The agent could not start, or did not end as it should.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The gRPC port is taken.
    #[error("port {port} at {ip} is taken{by}: stop what listens there, or choose another port with --grpc-port (ORB8_GRPC_PORT)", port = .address.port(), ip = .address.ip())]
    PortTaken {
        /// Where the agent should have listened.
        address: SocketAddr,
        /// Who listens there, if it says so.
        by: String,
    },
    /// The gRPC address is not usable.
    #[error(
        "cannot listen on {address}: {source}, choose another with --grpc-listen (ORB8_GRPC_LISTEN)"
    )]
    Listen {
        /// Where the agent should have listened.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// Something that is needed is missing, and `--strict` is set.
    #[error("{0}; without --strict the agent would stay up unready")]
    Need(String),
    /// Kubernetes is asked for, and there is no way to it.
    #[error("{0}, or set --kubernetes (ORB8_KUBERNETES) to auto or off")]
    Kubernetes(#[from] ConnectError),
    /// A thread could not be started.
    #[error("the {name} thread could not be started: {source}")]
    Thread {
        /// Its name.
        name: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The gRPC service failed.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The pipeline failed.
    #[error(transparent)]
    Pipeline(#[from] StopError),
}

impl AgentError {
    /// The process's exit code.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::PortTaken { .. } | Self::Listen { .. } | Self::Kubernetes(_) => 2,
            Self::Need(_) => 4,
            Self::Thread { .. } | Self::Serve(_) | Self::Pipeline(_) => 1,
        }
    }
}

/// What the agent is made of besides its settings.
pub struct Parts {
    /// Starts the kernel side.
    pub start: Start,
    /// What preflight found.
    pub checks: Vec<Check>,
    /// How cgroups are mounted, and what is in them.
    pub cgroups: View,
    /// What identities are made of; none: that of this host and of the Kubernetes API.
    pub known: Option<Knowledge>,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

impl Parts {
    /// The parts for this host.
    #[must_use]
    pub fn of_this_host(settings: &Settings) -> Self {
        let roots = preflight::Roots::new(&settings.proc_root, settings.cgroup_root.as_deref());
        let bpf = || ebpf::sys::create_array(None).map(drop).map_err(|error| error.to_string());
        let decoders = Decoders { flow: decode::flow_event, packet: decode::packet_event };
        let release = kernel_release();
        if preflight::charges_memlock(&release) {
            ebpf::memory::raise_memlock_limit();
        }
        Self {
            start: Box::new(move |settings, facts| {
                ebpf::datapath::start(settings, facts, decoders)
            }),
            checks: preflight::run(&roots, &release, bpf),
            cgroups: capture::look(&settings.proc_root, settings.cgroup_root.as_deref()),
            known: None,
            clock: SystemClock::shared(),
        }
    }
}

/// Removes the filters that killed agents left at clsact qdiscs.
///
/// # Errors
/// What the kernel says.
pub fn cleanup() -> Result<Removed, NetlinkError> {
    clsact::remove_dead(&Netlink::open()?)
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Parts").field("checks", &self.checks).finish_non_exhaustive()
    }
}

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    address: SocketAddr,
    /// Away once it was asked to end.
    pipeline: Option<Handle>,
    pipeline_ended: oneshot::Receiver<()>,
    datapath: Option<Arc<dyn Datapath>>,
    server: JoinHandle<Result<(), ServeError>>,
    stop_server: watch::Sender<bool>,
    shutdown_timeout: Duration,
    _keepers: Keepers,
}

/// What all parts share.
struct Shared {
    table: SharedTable,
    ledger: SharedLedger,
    hub: Arc<Hub>,
    status: Arc<Status>,
    totals: Arc<Totals>,
    governor: Arc<governor::Board>,
    known: Knowledge,
    clock: Arc<dyn Clock>,
}

impl Shared {
    fn new(settings: &Settings, known: Knowledge, clock: Arc<dyn Clock>) -> io::Result<Self> {
        let ledger = SharedLedger::default();
        let timeout = Duration::from_secs(settings.flow_timeout_secs.into());
        let limits = Limits {
            max_flows: settings.max_flows_held(),
            history: govern::history(settings),
            // The kernel side ends idle flows; this is for what it never knew or told.
            idle: Limits::idle(timeout, govern::most_between_drains(settings)),
            drain_interval: settings.drain_interval(),
        };
        Ok(Self {
            table: FlowTable::shared(limits, clock.monotonic_ns()),
            totals: Totals::shared(Drains::shared()?, Arc::clone(&ledger)),
            ledger,
            hub: Hub::shared(),
            status: Status::new(settings.node_name.as_str().into()),
            governor: govern::board(settings),
            known,
            clock,
        })
    }

    /// From now on everything is seen, or told as lost.
    fn begin(&self) {
        let now_ns = self.clock.monotonic_ns();
        self.table.write().begin(now_ns);
    }

    fn stages(&self, memberships: Memberships, planes: Option<&Planes>) -> Stages {
        let facts = || Arc::clone(&self.known.facts);
        let status =
            StatusExporter { status: Arc::clone(&self.status), ledger: Arc::clone(&self.ledger) };
        let resolver = Resolver::new(self.known.clone());
        let filters: Vec<Box<dyn EventFilter>> = vec![
            Box::new(SelfTraffic::new(facts(), self.known.cgroups.clone())),
            Box::new(RootCgroup::new(facts(), planes.and_then(Planes::socket_root))),
        ];
        Stages {
            filters: vec![Box::new(CountTotals::around(filters, Arc::clone(&self.totals)))],
            enrichers: vec![Box::new(OwnerEnricher::new(facts(), memberships, keys::of_event))],
            processors: vec![Box::new(FlowProcessor::new(Arc::clone(&self.table), resolver))],
            exporters: vec![
                Box::new(status),
                Box::new(self.hub.exporter()),
                Box::new(LogExporter::default()),
                Box::new(TotalsExporter(Arc::clone(&self.totals))),
            ],
        }
    }

    /// Lets the flow lines be read when somebody asks, not on their timer alone; and adds the governor.
    fn sources(
        &self,
        settings: &Settings,
        sources: Vec<Box<dyn EventSource>>,
        datapath: Option<Arc<dyn Datapath>>,
    ) -> Vec<Box<dyn EventSource>> {
        let wrap = |source: Box<dyn EventSource>| -> Box<dyn EventSource> {
            if source.name() != LINES {
                return source;
            }
            Box::new(OnDemand::new(source, self.totals.drains(), settings.drain_interval()))
        };
        let governor: Box<dyn EventSource> = Box::new(govern::source(settings, self, datapath));
        sources.into_iter().map(wrap).chain([governor]).collect()
    }

    fn service(
        &self,
        settings: &Settings,
        board: Board,
        datapath: Option<Arc<dyn Datapath>>,
    ) -> Service {
        Service {
            queries: Arc::new(NetworkQueries {
                table: Arc::clone(&self.table),
                ledger: Arc::clone(&self.ledger),
                status: Arc::clone(&self.status),
                known: self.known.clone(),
                clock: Arc::clone(&self.clock),
                max_limit: settings.max_query_limit,
            }),
            feed: Arc::new(NetworkFeed {
                table: Arc::clone(&self.table),
                clock: Arc::clone(&self.clock),
                known: self.known.clone(),
            }),
            totals: Arc::new(TotalsOfHost {
                totals: datapath.is_some().then(|| Arc::clone(&self.totals)),
                status: Arc::clone(&self.status),
                known: self.known.clone(),
                clock: Arc::clone(&self.clock),
                capture: board.identity.capture,
                boot_id: place::boot_id(&settings.proc_root),
                network_namespace: place::network_namespace(&settings.proc_root),
            }),
            places_for_totals: grpc::places_for_totals(),
            page: Arc::new(board),
            hub: Arc::clone(&self.hub),
            datapath,
            queue: settings.broadcast_channel_size as usize,
        }
    }

    fn board(
        &self,
        settings: &Settings,
        checks: Vec<Check>,
        choice: Result<Choice, NoSocketPlane>,
    ) -> Board {
        let (table, shares) = (Arc::clone(&self.table), Arc::clone(&self.table));
        let (capture, capture_reason) = match choice {
            Ok(choice) => (choice.planes.name(), choice.reason),
            Err(error) => ("", error.to_string()),
        };
        Board {
            identity: Identity {
                node_name: self.status.node_name(),
                kernel_release: kernel_release(),
                max_flows_set: settings.max_flows,
                max_flows: settings.max_flows_held(),
                capture,
                capture_reason,
                started_ns: self.clock.monotonic_ns(),
                proc_root: settings.proc_root.clone(),
            },
            checks,
            status: Arc::clone(&self.status),
            ledger: Arc::clone(&self.ledger),
            hub: Arc::clone(&self.hub),
            flows: Box::new(move || {
                let table = read(&table);
                FlowCounts { active: table.active_flows(), ended: table.ended_flows() }
            }),
            shares: Box::new(move || read(&shares).shares().map(network_wire::share).collect()),
            known: self.known.clone(),
            governor: Arc::clone(&self.governor),
            clock: Arc::clone(&self.clock),
        }
    }
}

impl Agent {
    /// Starts everything: listens first, so that a second agent never loads a program.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn start(settings: &Settings, parts: Parts) -> Result<Self, AgentError> {
        let listener = listen(settings.grpc_address()).await?;
        let address = listener
            .local_addr()
            .map_err(|source| AgentError::Listen { address: settings.grpc_address(), source })?;
        let Running { watchers, known, memberships, mut keepers } = match parts.known {
            Some(known) => known::given(known),
            None => known::start(settings, &parts.clock, &HostFacts::shared()).await?,
        };
        let shared = Shared::new(settings, known, parts.clock)
            .map_err(|source| AgentError::Thread { name: "pipeline", source })?;
        let facts = Arc::clone(&shared.known.facts);
        // Before the first event, so that none of our own is taken for traffic.
        let cookie = rustix::net::sockopt::socket_cookie(&listener).unwrap_or(0);
        facts.update(|facts| {
            facts.add_listening(address);
            // It is the listener that takes a connection's first packet.
            facts.add_own_cookie(cookie);
        });
        let choice = capture::choose(settings.capture, &parts.cgroups);
        let Kernel { sources, datapath } =
            start_kernel(settings, parts.start, &parts.checks, &choice, &shared).await?;
        shared.begin();
        keepers.watchers =
            watchers.and_then(|watchers| watchers.start(&shared.known.registry, &shared.clock));
        let (ended, pipeline_ended) = oneshot::channel();
        let planes = choice.as_ref().ok().map(|choice| &choice.planes);
        let mover = Mover::new(shared.stages(memberships, planes), Arc::clone(&shared.ledger));
        let sources = shared.sources(settings, sources, datapath.clone());
        let pipeline = runner::spawn(sources, mover, Arc::clone(&shared.clock), move || {
            // Nobody waits for it any more if the agent is ending by itself.
            ended.send(()).ok();
        })
        .map_err(|source| AgentError::Thread { name: "pipeline", source })?;
        let board = shared.board(settings, parts.checks, choice);
        let service = shared.service(settings, board, datapath.clone());
        let (stop_server, mut stopped) = watch::channel(false);
        let stop = async move {
            // An error means that the agent is gone, which is a reason to stop too.
            stopped.wait_for(|stop| *stop).await.ok();
        };
        let health = shared.status.follow_health();
        let server = grpc::serve(listener, service, health, facts, stop);
        let server = tokio::spawn(server);
        tokio::spawn(leave_code(stop_server.subscribe()));
        info!(%address, node = %shared.status.node_name(), "The agent answers.");
        Ok(Self {
            address,
            pipeline: Some(pipeline),
            pipeline_ended,
            datapath,
            server,
            stop_server,
            shutdown_timeout: Duration::from_secs(settings.shutdown_timeout_secs.into()),
            _keepers: keepers,
        })
    }

    /// Where the gRPC service listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Runs until `stop` resolves or a part fails, then ends in order, within the shutdown timeout.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn run_until(mut self, stop: impl Future<Output = ()>) -> Result<(), AgentError> {
        tokio::select! {
            () = stop => {}
            _ = &mut self.pipeline_ended => error!("The pipeline ended by itself."),
            ended = &mut self.server => {
                self.end_pipeline().await?;
                return finished(ended);
            }
        }
        let deadline = tokio::time::Instant::now() + self.shutdown_timeout;
        let pipeline = self.end_pipeline().await;
        self.stop_server.send_replace(true);
        match tokio::time::timeout_at(deadline, &mut self.server).await {
            Ok(ended) => finished(ended)?,
            Err(_elapsed) => {
                warn!("Some streams had not ended at the shutdown deadline; they are cut.");
                self.server.abort();
            }
        }
        pipeline?;
        info!("The agent stopped.");
        Ok(())
    }

    /// Ends pipeline and kernel side off the executor, because both may wait.
    async fn end_pipeline(&mut self) -> Result<(), AgentError> {
        let deadline = Instant::now() + self.shutdown_timeout;
        // Detaching may take all the time it gets; the last counts need some too.
        let detach_by = Instant::now() + self.shutdown_timeout.mul_f32(0.75);
        let Some(pipeline) = self.pipeline.take() else { return Ok(()) };
        let datapath = self.datapath.take();
        let ended = tokio::task::spawn_blocking(move || {
            // First, so that what the pipeline reads last is final.
            if datapath.is_some_and(|datapath| !datapath.stop(detach_by)) {
                warn!(
                    "The programs were not detached by the shutdown deadline; the kernel detaches tcx programs with the process."
                );
            }
            pipeline.stop(deadline)
        });
        match ended.await {
            Ok(result) => Ok(result?),
            Err(_panic) => Err(StopError::Panicked.into()),
        }
    }
}

/// Lets code go until the agent stops: what only starting needed, or a question once, stays away.
async fn leave_code(mut stopped: watch::Receiver<bool>) {
    let code = ebpf::memory::Code::find();
    loop {
        code.leave();
        // An error means that the agent is gone.
        if tokio::time::timeout(CODE_REST, stopped.wait_for(|stop| *stop)).await.is_ok() {
            return;
        }
    }
}

fn finished(
    ended: Result<Result<(), ServeError>, tokio::task::JoinError>,
) -> Result<(), AgentError> {
    match ended {
        Ok(result) => Ok(result?),
        Err(error) => Err(ServeError::Listener(io::Error::other(error)).into()),
    }
}

fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}
