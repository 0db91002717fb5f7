//! Starts the kernel side as a whole: load, sources, attach; and stops it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use aya::maps::{Array, MapData, PerCpuArray};
use globset::GlobSet;
use orb8_common::network::{PacketFilter, RATE_WINDOW_SHIFT, packet_counter};

use super::attach::{AttachOptions, AttachState, Attacher, LinkMaps};
use super::chain::ChainPolicy;
use super::clock::{Clock, ClockError};
use super::grace::{Barrier, Grace};
use super::lines::{LineSource, LineTimes};
use super::load::{self, LoadError, LoadOptions, PodBytes, Table};
use super::memory;
use super::meter::Meter;
use super::netlink::NetlinkError;
use super::ring::{Decode, RingSource};
use super::side_channel::SideChannel;
use super::sys;
use crate::capture::Planes;
use crate::datapath::{AttachRoute, CountMode, PacketViewCounts, Ring, RingGauges};
use crate::event::{Notice, Severity};
use crate::host::HostFacts;
use crate::pipeline::source::EventSource;

/// Everything the kernel side is told.
#[derive(Clone, Debug)]
pub struct KernelOptions {
    /// Lines of the flow table.
    pub max_flows: u32,
    /// See [`LoadOptions::memory_budget`].
    pub memory_budget: u64,
    /// Bytes of the ring of lifecycle events.
    pub ring_bytes: u32,
    /// tcx or clsact; `None` takes tcx where the kernel has it.
    pub route: Option<AttachRoute>,
    /// Where packets are counted.
    pub planes: Planes,
    /// Interfaces besides the uplinks.
    pub interfaces: GlobSet,
    /// Between drains, until idle lines go.
    pub times: LineTimes,
    /// Our place in the chains.
    pub chain: ChainPolicy,
    /// See [`LoadOptions::fault_bytes`].
    pub fault_bytes: u32,
    /// Makes an event of a record of the lifecycle ring.
    pub decode_event: Decode,
    /// Makes an event of a record of the packet ring.
    pub decode_packet: Decode,
}

/// Bytes of the ring of the packet view.
const PACKET_RING_BYTES: u32 = 64 * 1024;

/// The kernel side could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The probes could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The clocks could not be read.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// Waiting for programs is not possible.
    #[error("prepare to wait for running programs: {0}")]
    Grace(std::io::Error),
    /// A ring cannot be looked at, or a program not be asked for its time.
    #[error("prepare to measure what the programs cost: {0}")]
    Meter(std::io::Error),
    /// Interfaces cannot be listed or watched.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// The running kernel side.
pub struct Kernel {
    attacher: Mutex<Attacher>,
    state: Arc<Mutex<AttachState>>,
    view: Mutex<PacketView>,
    meter: Meter,
    map_bytes: u64,
    tick_ns: u64,
    route: AttachRoute,
    barrier: Barrier,
    stopping: Arc<AtomicBool>,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").field("route", &self.route).finish_non_exhaustive()
    }
}

/// The maps of the packet view.
struct PacketView {
    filter: Array<MapData, PodBytes<{ size_of::<PacketFilter>() }>>,
    counters: PerCpuArray<MapData, [u64; 8]>,
}

/// The kernel side and its sources.
pub struct Started {
    /// To be given to the pipeline.
    pub sources: Vec<Box<dyn EventSource>>,
    /// To be asked and stopped.
    pub kernel: Kernel,
}

/// Loads the probes and attaches them. Returns within seconds: many interfaces may be left to be
/// attached.
///
/// # Errors
/// What is missing, in words.
pub fn start(options: &KernelOptions, facts: Arc<HostFacts>) -> Result<Started, StartError> {
    raise_descriptor_limit();
    let loaded = load::load(&LoadOptions {
        planes: options.planes.clone(),
        max_flows: options.max_flows,
        memory_budget: options.memory_budget,
        ring_bytes: options.ring_bytes,
        packet_ring_bytes: PACKET_RING_BYTES,
        fault_bytes: options.fault_bytes,
    })?;
    let mut programs = loaded.programs;
    let clock_program = programs.duplicate("orb8_clock")?;
    let clock = Clock::new(clock_program, loaded.clock)?;
    let tick_ns = clock.tick_ns();
    let grace = Grace::start().map_err(StartError::Grace)?;
    let barrier = Barrier::new().map_err(StartError::Grace)?;
    let side = Arc::new(SideChannel::default());
    tell_what_lacks(&loaded.table, loaded.reads_owner, &options.planes, &side);
    let route = options.route.unwrap_or_else(best_route);
    if route == AttachRoute::Tcx {
        programs.forget_object();
    }
    let rings = Arc::new(RingGauges::default());
    let sources: Vec<Box<dyn EventSource>> = vec![
        Box::new(
            RingSource::new("ring", loaded.events, options.decode_event, Arc::clone(&side))
                .gauged(Arc::clone(&rings), Ring::Events, options.ring_bytes)
                .map_err(StartError::Meter)?,
        ),
        Box::new(
            RingSource::new("packets", loaded.packets, options.decode_packet, Arc::clone(&side))
                .gauged(Arc::clone(&rings), Ring::Packets, PACKET_RING_BYTES)
                .map_err(StartError::Meter)?,
        ),
        Box::new(LineSource::new(loaded.table, clock, grace, options.times, Arc::clone(&side))),
    ];
    let attach = attach_options(options, route);
    // Others see it in the names of filters, so it tells nothing of the hash's seed.
    let number = load::secret()? >> 32;
    let maps = LinkMaps {
        pod_links: loaded.pod_links,
        tunnels: loaded.tunnels,
        socket_switch: loaded.socket_switch,
    };
    let meter = Meter::new(&programs, loaded.sparing, rings).map_err(StartError::Meter)?;
    memory::give_back();
    let attacher = Attacher::start(programs, maps, attach, number, side, facts)?;
    let kernel = Kernel {
        state: Arc::clone(attacher.state()),
        stopping: attacher.stopping(),
        attacher: Mutex::new(attacher),
        view: Mutex::new(PacketView {
            filter: loaded.packet_filter,
            counters: loaded.packet_counters,
        }),
        meter,
        map_bytes: loaded.map_bytes,
        tick_ns,
        route,
        barrier,
    };
    Ok(Started { sources, kernel })
}

/// Tells what the kernel lacks that makes packets dearer.
fn tell_what_lacks(table: &Table, reads_owner: bool, planes: &Planes, side: &SideChannel) {
    let tell = |code, message: &str| {
        side.notify(Notice { severity: Severity::Info, code, message: message.to_owned() });
    };
    if !table.cpus.has_caches() {
        tell(
            "no_line_cache",
            "programs cannot compare and exchange here, which kernels from 5.12 on let them, on \
             arm64 from 5.18: all CPUs count in one table, which costs each packet some ten \
             nanoseconds more",
        );
    }
    if planes.socket_root().is_some() && !reads_owner {
        tell(
            "owner_by_call",
            "programs cannot read the owner of a socket here, which kernels from 6.2 on with BTF \
             let them: they call for it, which costs each packet some ten nanoseconds more",
        );
    }
}

/// What the attacher is told.
fn attach_options(options: &KernelOptions, route: AttachRoute) -> AttachOptions {
    AttachOptions {
        route,
        socket_root: options.planes.socket_root().cloned(),
        interfaces: options.planes.has_interfaces(),
        mode: match options.planes {
            Planes::Both(_) => CountMode::Supplement,
            Planes::Tc | Planes::Socket(_) => CountMode::Full,
        },
        configured: options.interfaces.clone(),
        chain: options.chain,
    }
}

/// Two descriptors an interface, four with the packet view: more than the usual soft limit allows
/// on a node with many pods.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
}

/// tcx where the kernel has it.
fn best_route() -> AttachRoute {
    /// Loopback has this number in every network namespace.
    const LOOPBACK: u32 = 1;
    match sys::tcx_chain(LOOPBACK, sys::BPF_TCX_INGRESS) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => AttachRoute::Clsact,
        _ => AttachRoute::Tcx,
    }
}

impl Kernel {
    /// Interfaces, addresses and names as of now.
    pub fn state(&self) -> MutexGuard<'_, AttachState> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// tcx or clsact.
    #[must_use]
    pub const fn route(&self) -> AttachRoute {
        self.route
    }

    /// Kernel memory of all maps in bytes.
    #[must_use]
    pub const fn map_bytes(&self) -> u64 {
        self.map_bytes
    }

    /// Opens the packet view for packets that pass a filter, at most `rate` a second on each CPU;
    /// returns when the programs are attached. `per_window` of the filter is set here.
    ///
    /// # Errors
    /// What writing the filter says.
    pub fn open_packet_view(
        &self,
        mut filter: PacketFilter,
        rate: u32,
    ) -> Result<(), aya::maps::MapError> {
        let window_ns = self.tick_ns << RATE_WINDOW_SHIFT;
        let per_window = (u64::from(rate) * window_ns).div_ceil(1_000_000_000);
        filter.per_window = u32::try_from(per_window).unwrap_or(u32::MAX);
        lock(&self.view).filter.set(0, PodBytes(bytes_of(filter)), 0)?;
        lock(&self.attacher).open_packets();
        Ok(())
    }

    /// Closes the packet view; its programs are detached soon after.
    pub fn close_packet_view(&self) {
        lock(&self.attacher).close_packets();
    }

    /// What the programs cost and tell less of.
    #[must_use]
    pub const fn meter(&self) -> &Meter {
        &self.meter
    }

    /// What the packet view has done since the agent started.
    #[must_use]
    pub fn packet_view_counts(&self) -> PacketViewCounts {
        let mut sum = PacketViewCounts::default();
        if let Ok(of_cpus) = lock(&self.view).counters.get(&0, 0) {
            for of_cpu in of_cpus.iter() {
                sum.matched += of_cpu[packet_counter::MATCHED];
                sum.told += of_cpu[packet_counter::TOLD];
                sum.untold += of_cpu[packet_counter::UNTOLD];
                sum.rate_limited += of_cpu[packet_counter::RATE_LIMITED];
                sum.ring_full += of_cpu[packet_counter::RING_FULL];
            }
        }
        sum
    }

    /// Detaches everything and waits until no program of ours runs any more, so that what the
    /// sources then read is final; false if that takes longer than until the deadline.
    pub fn stop(&self, deadline: Instant) -> bool {
        // Before the lock, which somebody may hold who waits for the thread.
        self.stopping.store(true, Ordering::Release);
        if !lock(&self.attacher).stop(deadline) {
            return false;
        }
        if let Err(error) = self.barrier.wait() {
            tracing::error!(%error, "waiting for the programs to end failed");
            return false;
        }
        true
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A filter as the map holds it.
fn bytes_of(filter: PacketFilter) -> [u8; size_of::<PacketFilter>()] {
    // SAFETY: `repr(C)` without padding: 16 + 16 + 2 + 1 + 1 + 4 + 4 bytes.
    unsafe { std::mem::transmute(filter) }
}

/// Lines stay for so long after FIN or RST, for what is still under way.
pub const LINGER: Duration = Duration::from_secs(2);
