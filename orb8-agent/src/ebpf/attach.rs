//! Keeps the programs on the right interfaces, on a thread of its own: every attach waits for an
//! RCU grace period of the kernel. Here is what others see of it; `worker` does the work.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use globset::GlobSet;

use super::chain::ChainPolicy;
use super::clsact::Instance;
use super::load::{PodLinks, Programs, SocketSwitch, Tunnels};
use super::netlink::{self, Changed, Netlink};
use super::side_channel::SideChannel;
use super::worker::{Beginning, Worker};
use crate::capture::SocketRoot;
use crate::datapath::{self, AttachRoute, CountMode, InterfaceStatus, SocketPlaneStatus};
use crate::event::{Notice, Severity};
use crate::host::HostFacts;

/// The kernel may be slow to attach; nobody waits longer for it than this.
const BEGUN_WITHIN: Duration = Duration::from_secs(10);

/// What the attacher is told to do.
#[derive(Clone, Debug)]
pub struct AttachOptions {
    /// tcx or clsact.
    pub route: AttachRoute,
    /// The cgroup whose sockets are seen, if that plane is in use.
    pub socket_root: Option<SocketRoot>,
    /// Whether programs are attached to interfaces.
    pub interfaces: bool,
    /// What is counted at interfaces.
    pub mode: CountMode,
    /// Interfaces besides the uplinks.
    pub configured: GlobSet,
    /// When to look at our place in the chain, and how often to move.
    pub chain: ChainPolicy,
}

/// What the attacher shares with the rest of the agent.
#[derive(Debug, Default)]
pub struct AttachState {
    /// All chosen interfaces, in the order of their numbers.
    pub interfaces: Vec<InterfaceStatus>,
    /// The socket plane, if it is in use.
    pub socket_plane: Option<SocketPlaneStatus>,
}

/// What the thread is asked to do.
pub enum Request {
    /// Look whether interfaces, addresses or routes have changed.
    Wake,
    /// Attach or detach the packet view; answered when done if somebody waits.
    Packets(bool, Option<SyncSender<()>>),
}

/// Maps that tell the programs of links.
pub struct LinkMaps {
    /// The namespace behind each link to a pod.
    pub pod_links: PodLinks,
    /// The ports of tunnels.
    pub tunnels: Tunnels,
    /// Whether the socket plane runs.
    pub socket_switch: SocketSwitch,
}

/// What the thread shares with others.
pub(super) struct Shared {
    pub(super) side: Arc<SideChannel>,
    pub(super) changed: Arc<AtomicBool>,
    pub(super) neighbours: Arc<AtomicBool>,
    pub(super) stopping: Arc<AtomicBool>,
    pub(super) facts: Arc<HostFacts>,
    pub(super) state: Arc<Mutex<AttachState>>,
}

/// The running thread.
#[derive(Debug)]
pub struct Attacher {
    requests: SyncSender<Request>,
    thread: Option<JoinHandle<()>>,
    /// Ends with the thread.
    ended: Receiver<()>,
    stopping: Arc<AtomicBool>,
    state: Arc<Mutex<AttachState>>,
}

impl Attacher {
    /// Lists interfaces, attaches to the chosen ones and keeps them attached.
    ///
    /// Returns when those that totals come from are attached, as far as that takes seconds at most;
    /// [`Self::state`] tells which they are.
    ///
    /// # Errors
    /// If netlink cannot be opened or the thread not started.
    pub fn start(
        programs: Programs,
        maps: LinkMaps,
        options: AttachOptions,
        seed: u64,
        side: Arc<SideChannel>,
        facts: Arc<HostFacts>,
    ) -> Result<Self, netlink::NetlinkError> {
        let (requests, queue) = sync_channel(16);
        let changed = Arc::new(AtomicBool::new(true));
        let neighbours = Arc::new(AtomicBool::new(false));
        let stopping = Arc::new(AtomicBool::new(false));
        let state = Arc::new(Mutex::new(AttachState::default()));
        let end = End { side: Arc::clone(&side), state: Arc::clone(&state) };
        let (alive, ended) = sync_channel(0);
        let netlink = Netlink::open()?;
        // Before the first listing, so that no change in between is missed.
        let (links, behind, wake) =
            (Arc::clone(&changed), Arc::clone(&neighbours), requests.clone());
        netlink::watch(move |what| {
            let mark = match what {
                Changed::Links => &links,
                Changed::Neighbours => &behind,
            };
            let told = mark.swap(true, Ordering::AcqRel);
            // Neighbours change all the time; the thread comes to them when it has rested.
            if told && what == Changed::Neighbours {
                return true;
            }
            // A full queue is awake anyway, and looks at the mark.
            !matches!(wake.try_send(Request::Wake), Err(TrySendError::Disconnected(_)))
        })?;
        let (begin, begun) = sync_channel(0);
        let given_up = Arc::new(AtomicBool::new(false));
        let worker = Worker::new(
            netlink,
            programs,
            maps,
            options,
            Instance::take(seed)?,
            Shared {
                side,
                changed,
                neighbours,
                facts,
                stopping: Arc::clone(&stopping),
                state: Arc::clone(&state),
            },
            Beginning::until(begin, Arc::clone(&given_up)),
        );
        let thread = std::thread::Builder::new()
            .name("attach".to_owned())
            .stack_size(512 * 1024)
            .spawn(move || {
            // Dropped from the last to the first, also by a panic: hooks, word of it, sign of
            // life.
            let _alive: SyncSender<()> = alive;
            let _end = end;
            let mut worker = worker;
            worker.run(&queue);
        })?;
        // The end of the other side is what is waited for, and comes with a panic too.
        if begun.recv_timeout(BEGUN_WITHIN) == Err(RecvTimeoutError::Timeout) {
            given_up.store(true, Ordering::Release);
            tracing::warn!("attaching takes long; the agent answers meanwhile");
        }
        Ok(Self { requests, thread: Some(thread), ended, stopping, state })
    }

    /// What is attached, and what the thread has to say.
    #[must_use]
    pub fn state(&self) -> &Arc<Mutex<AttachState>> {
        &self.state
    }

    /// Attaches the packet view; returns when it is done.
    pub fn open_packets(&self) {
        let (done, wait) = sync_channel(1);
        if self.requests.send(Request::Packets(true, Some(done))).is_ok() {
            // An error means that the thread has ended: nothing is attached then.
            let _ended = wait.recv();
        }
    }

    /// Detaches the packet view; does not wait for it.
    pub fn close_packets(&self) {
        if self.requests.send(Request::Packets(false, None)).is_err() {
            tracing::debug!("the attach thread has ended, and the packet view with it");
        }
    }

    /// Asks the thread to stop as soon as it can; does not wait.
    #[must_use]
    pub fn stopping(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stopping)
    }

    /// Detaches everything. True if that is done before the deadline: no program then runs any
    /// more. Otherwise the thread goes on, and the kernel detaches tcx links when we exit.
    pub fn stop(&mut self, deadline: Instant) -> bool {
        let Some(thread) = self.thread.take() else { return true };
        self.stopping.store(true, Ordering::Release);
        // A full queue is awake anyway, and looks at the flag.
        let _awake = self.requests.try_send(Request::Wake);
        let left = deadline.saturating_duration_since(Instant::now());
        if self.ended.recv_timeout(left) == Err(RecvTimeoutError::Timeout) {
            return false;
        }
        if thread.join().is_err() {
            tracing::error!("the attach thread panicked; the kernel detaches tcx links at exit");
            return false;
        }
        true
    }
}

/// Says that the attach thread ended by a panic: its hooks are closed, and nobody looks after the
/// interfaces any more.
struct End {
    side: Arc<SideChannel>,
    state: Arc<Mutex<AttachState>>,
}

impl Drop for End {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let message = "the thread that attaches programs has ended: restart the agent";
        self.side.notify(Notice {
            severity: Severity::Error,
            code: "attach_thread_ended",
            message: message.to_owned(),
        });
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for interface in &mut state.interfaces {
            interface.state = datapath::AttachState::Failed;
            message.clone_into(&mut interface.reason);
        }
        if let Some(socket_plane) = &mut state.socket_plane {
            socket_plane.state = datapath::AttachState::Failed;
            message.clone_into(&mut socket_plane.reason);
        }
    }
}

/// Also after a panic elsewhere, nothing of ours stays on a hook.
const STOP_AT_DROP: Duration = Duration::from_secs(10);

impl Drop for Attacher {
    fn drop(&mut self) {
        self.stop(Instant::now() + STOP_AT_DROP);
    }
}
