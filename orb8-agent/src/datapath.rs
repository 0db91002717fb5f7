//! What the rest of the agent needs from the kernel side, and what it gives to it.
//!
//! `ebpf` implements this; tests put a scripted one in its place. Nothing here touches the kernel.

use std::any::Any;
use std::fmt::Debug;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use orb8_common::network::{PacketFilter, Sparing};

use crate::capture::Planes;
use crate::host::HostFacts;
use crate::pipeline::source::EventSource;

/// What the kernel side is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatapathSettings {
    /// Where packets are counted.
    pub planes: Planes,
    /// Flow lines in the kernel.
    pub max_flows: u32,
    /// Bytes of the ring buffer: a power of two and a multiple of the page size.
    pub ring_buffer_bytes: u32,
    /// Bytes that the agent may take as a whole.
    pub memory_budget: u64,
    /// How programs are attached.
    pub attach: AttachMode,
    /// Globs of interfaces to attach to besides the uplinks; none: the uplinks alone.
    pub interfaces: Vec<String>,
    /// A line on which nothing was counted for this long is given back.
    pub flow_timeout: Duration,
    /// Time between drains.
    pub drain_interval: Duration,
}

/// Which attach route to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// tcx where the kernel has it (6.6), else clsact.
    Auto,
    /// tcx only.
    Tcx,
    /// clsact only.
    Clsact,
}

/// Starts the kernel side: loads, attaches, and gives its event sources.
pub type Start =
    Box<dyn FnOnce(&DatapathSettings, Arc<HostFacts>) -> Result<Started, StartError> + Send>;

/// A running kernel side.
pub struct Started {
    /// The ring first, so that what it tells is known when the lines are read.
    pub sources: Vec<Box<dyn EventSource>>,
    /// For status and packet views.
    pub handle: Arc<dyn Datapath>,
}

impl Debug for Started {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.sources.iter().map(|source| source.name()).collect();
        out.debug_struct("Started").field("sources", &names).field("handle", &self.handle).finish()
    }
}

/// The kernel side did not start.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct StartError {
    /// What failed, on what, and what to do next.
    pub message: String,
}

/// A running kernel side, as the rest of the agent sees it.
pub trait Datapath: Send + Sync + Debug {
    /// The interfaces that were chosen, in the order of their index.
    fn interfaces(&self) -> Vec<InterfaceStatus>;

    /// The socket plane's programs, none where it is not in use.
    fn socket_plane(&self) -> Option<SocketPlaneStatus> {
        None
    }

    /// Memory of all kernel maps in bytes (fdinfo `memlock`).
    fn map_bytes(&self) -> u64;

    /// Makes the kernel tell packets that match, until the guard is dropped.
    ///
    /// Several views may be open at once: the kernel then tells what any of them asks for, so each
    /// reader filters again.
    ///
    /// # Errors
    /// The packet programs could not be attached.
    fn watch_packets(
        &self,
        filter: &PacketFilter,
        rate: u32,
    ) -> Result<Box<dyn PacketWatch>, StartError>;

    /// Lets the programs tell less from now on, or more again.
    ///
    /// # Errors
    /// They could not be asked, and tell as much as before.
    fn spare(&self, _sparing: Sparing) -> io::Result<()> {
        Ok(())
    }

    /// How full the rings are; none where there are no rings.
    fn rings(&self) -> Option<Arc<RingGauges>> {
        None
    }

    /// What became of the packets of all packet views.
    fn packet_view(&self) -> PacketViewCounts {
        PacketViewCounts::default()
    }

    /// CPU time that our programs have taken while the kernel kept statistics; none if it cannot be
    /// read.
    fn program_time(&self) -> Option<Duration> {
        None
    }

    /// Makes the kernel keep statistics of all programs of the host until the guard is dropped, which
    /// costs each run of each of them.
    ///
    /// # Errors
    /// What the kernel says: EPERM without CAP_SYS_ADMIN, EINVAL before 5.8.
    fn keep_statistics(&self) -> io::Result<Box<dyn Any + Send>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Detaches everything and waits until no program runs any more, so that what the sources
    /// then read is final; false if that takes longer than until the deadline. Called once,
    /// before the pipeline reads its sources for the last time.
    fn stop(&self, deadline: Instant) -> bool;
}

/// Which ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// Of lifecycle events.
    Events,
    /// Of the packet view.
    Packets,
}

/// How full the rings were when they were read, at the most since somebody looked. Those who read
/// them note it.
#[derive(Debug, Default)]
pub struct RingGauges {
    /// Millionths, by ring.
    fill: [AtomicU32; 2],
    /// The last packet view was closed.
    closed: AtomicBool,
    /// And none was opened since: what is in its ring is of programs that are being taken off.
    without_view: AtomicBool,
}

/// How full the rings were, 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RingFill {
    /// The ring of lifecycle events.
    pub events: f64,
    /// The ring of the packet view.
    pub packets: f64,
}

impl RingFill {
    /// Of each ring the fuller of two.
    #[must_use]
    pub const fn or_fuller(self, other: Self) -> Self {
        Self { events: self.events.max(other.events), packets: self.packets.max(other.packets) }
    }
}

impl RingGauges {
    /// Of a full ring.
    const FULL: f64 = 1e6;

    /// Notes that so many of a ring's bytes were to be read.
    pub fn note(&self, ring: Ring, bytes: u64, of: u64) {
        if ring == Ring::Packets && self.without_view.load(Ordering::Relaxed) {
            return;
        }
        let millionths = bytes.min(of).saturating_mul(1_000_000) / of.max(1);
        let millionths = u32::try_from(millionths).unwrap_or(u32::MAX);
        self.fill[ring as usize].fetch_max(millionths, Ordering::Relaxed);
    }

    /// Notes that a packet view is open.
    pub fn open_packets(&self) {
        self.without_view.store(false, Ordering::Relaxed);
    }

    /// Notes that the last packet view is closed: how full its ring was says nothing of the next one's.
    pub fn close_packets(&self) {
        self.without_view.store(true, Ordering::Relaxed);
        self.fill[Ring::Packets as usize].store(0, Ordering::Relaxed);
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Whether the last packet view was closed since that was taken.
    #[must_use]
    pub fn has_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// The same, and begins anew.
    pub fn take_closed(&self) -> bool {
        self.closed.swap(false, Ordering::Relaxed)
    }

    /// The fullest that they were since they were taken last.
    #[must_use]
    pub fn fullest(&self) -> RingFill {
        let share = |ring: Ring| f64::from(self.fill[ring as usize].load(Ordering::Relaxed));
        RingFill {
            events: share(Ring::Events) / Self::FULL,
            packets: share(Ring::Packets) / Self::FULL,
        }
    }

    /// The same, and begins anew.
    pub fn take(&self) -> RingFill {
        let share = |ring: Ring| f64::from(self.fill[ring as usize].swap(0, Ordering::Relaxed));
        RingFill {
            events: share(Ring::Events) / Self::FULL,
            packets: share(Ring::Packets) / Self::FULL,
        }
    }
}

/// What became of the packets (skbs) of the packet view: matched = told + untold + rate_limited +
/// ring_full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketViewCounts {
    /// The kernel's filter let them through.
    pub matched: u64,
    /// What the packets stand for that were told.
    pub told: u64,
    /// Sampled away, and no packet that was told stands for them yet.
    pub untold: u64,
    /// Not told because of the rate.
    pub rate_limited: u64,
    /// Not told because the ring was full.
    pub ring_full: u64,
}

/// An open packet view.
pub trait PacketWatch: Send {
    /// Packets since it was opened that matched and were not told: over the rate, or ring full.
    fn skipped(&self) -> u64;

    /// Packets since it was opened that were sampled away and for which no packet stands that was told.
    /// The next one that is told may.
    fn sampled(&self) -> u64;
}

/// An interface and how we are attached to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// ifindex.
    pub ifindex: u32,
    /// Whether our programs run there.
    pub state: AttachState,
    /// How they are attached, once they are.
    pub route: Option<AttachRoute>,
    /// Why not attached, or what stands in the way; empty if all is well.
    pub reason: String,
    /// Programs before ours, per direction, such as `ingress: cil_from_netdev`.
    pub before: Vec<String>,
    /// Programs after ours.
    pub after: Vec<String>,
    /// How the link header is stripped.
    pub link: LinkKind,
    /// Why it was chosen.
    pub chosen_by: ChosenBy,
    /// What is counted there.
    pub mode: CountMode,
}

/// Where the socket plane's programs are, and whether they run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketPlaneStatus {
    /// The directory of the cgroup whose sockets are seen, with all below it.
    pub root: PathBuf,
    /// Whether our programs run there.
    pub state: AttachState,
    /// Why not attached; empty if all is well.
    pub reason: String,
}

/// What programs at an interface count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountMode {
    /// Every packet.
    Full,
    /// Only packets that the socket plane cannot see.
    Supplement,
}

/// Whether programs run at an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachState {
    /// In both directions.
    Attached,
    /// Soon.
    Attaching,
    /// No, and the reason says why.
    Failed,
}

/// How programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachRoute {
    /// By a link of the tcx chain.
    Tcx,
    /// By filters at a clsact qdisc.
    Clsact,
}

/// How the link header of an interface looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// Ethernet.
    Ethernet,
    /// None: packets begin with the IP header.
    Raw,
    /// Another, of a length that the kernel tells per packet.
    Other,
}

/// Why an interface was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChosenBy {
    /// It has a default route.
    DefaultRoute,
    /// It has a global address.
    GlobalAddress,
    /// A glob of the settings names it.
    Configured,
    /// It leads into another network namespace: a pod's.
    PodLink,
}
