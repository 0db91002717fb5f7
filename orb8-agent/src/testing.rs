//! Stand-ins for the kernel side and the clock, for tests and benches. No agent runs this.
#![allow(missing_docs, reason = "not part of the agent")]

mod drains;
mod world;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use orb8_common::network::{FlowKey, PacketFilter, flag};
use rustix::event::{EventfdFlags, eventfd};

use crate::clock::Clock;
use crate::datapath::{
    AttachRoute, AttachState, ChosenBy, CountMode, Datapath, InterfaceStatus, LinkKind,
    PacketWatch, Start, StartError, Started,
};
use crate::event::{Event, FlowCount, FlowFacts, FlowId, FlowSignal, SignalKind};
use crate::host::HostFacts;
use crate::k8s::identity::{Knowledge, Resolver};
use crate::network::keys;
use crate::pipeline::source::{EventSource, SourceError, Wakeup};

pub use drains::{Drainer, Drains};
pub use world::{World, cgroup_of, uid};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A clock that moves only when it is told to.
#[derive(Debug)]
pub struct ManualClock {
    base: Instant,
    monotonic_ns: AtomicU64,
    unix_offset_ns: AtomicI64,
}

impl ManualClock {
    #[must_use]
    pub fn at(monotonic_ns: u64, unix_offset_ns: i64) -> Arc<Self> {
        Arc::new(Self {
            base: Instant::now(),
            monotonic_ns: AtomicU64::new(monotonic_ns),
            unix_offset_ns: AtomicI64::new(unix_offset_ns),
        })
    }

    pub fn advance(&self, by: Duration) {
        self.monotonic_ns.fetch_add(crate::clock::nanos(by), Ordering::Relaxed);
    }

    pub fn step_wall(&self, by_ns: i64) {
        self.unix_offset_ns.fetch_add(by_ns, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn monotonic_ns(&self) -> u64 {
        self.monotonic_ns.load(Ordering::Relaxed)
    }

    fn unix_offset_ns(&self) -> i64 {
        self.unix_offset_ns.load(Ordering::Relaxed)
    }

    fn instant(&self) -> Instant {
        self.base + Duration::from_nanos(self.monotonic_ns())
    }
}

#[derive(Debug)]
enum Step {
    Tell(Vec<Event>),
    Fail(String),
}

/// The writing end of a [`ScriptedSource`].
#[derive(Clone, Debug)]
pub struct Script {
    steps: Arc<Mutex<VecDeque<Step>>>,
    last: Arc<Mutex<Vec<Event>>>,
    wake: Arc<OwnedFd>,
}

impl Script {
    /// A script and the source that follows it.
    ///
    /// # Panics
    /// No descriptor can be had.
    #[must_use]
    #[allow(clippy::expect_used, reason = "only tests run this")]
    pub fn new(name: &'static str) -> (Self, ScriptedSource) {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let script = Self {
            steps: Arc::default(),
            last: Arc::default(),
            wake: Arc::new(wake.expect("a descriptor")),
        };
        (script.clone(), ScriptedSource { name, script })
    }

    pub fn tell(&self, events: impl IntoIterator<Item = Event>) {
        lock(&self.steps).push_back(Step::Tell(events.into_iter().collect()));
        self.ring();
    }

    pub fn fail(&self, message: &str) {
        lock(&self.steps).push_back(Step::Fail(message.to_owned()));
        self.ring();
    }

    /// What the source tells at the end.
    pub fn tell_last(&self, events: impl IntoIterator<Item = Event>) {
        lock(&self.last).extend(events);
    }

    fn ring(&self) {
        rustix::io::write(&*self.wake, &1_u64.to_ne_bytes()).ok();
    }
}

#[derive(Debug)]
pub struct ScriptedSource {
    name: &'static str,
    script: Script,
}

impl EventSource for ScriptedSource {
    fn name(&self) -> &'static str {
        self.name
    }

    fn wakeup(&self) -> Wakeup<'_> {
        Wakeup { fd: Some(self.script.wake.as_fd()), due: None }
    }

    fn collect(&mut self, _now: Instant, out: &mut Vec<Event>) -> Result<(), SourceError> {
        let mut counter = [0; 8];
        rustix::io::read(&*self.script.wake, &mut counter).ok();
        let steps = std::mem::take(&mut *lock(&self.script.steps));
        for step in steps {
            match step {
                Step::Tell(events) => out.extend(events),
                Step::Fail(message) => {
                    return Err(SourceError { source_name: self.name, message });
                }
            }
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<Event>) -> Result<(), SourceError> {
        let result = self.collect(Instant::now(), out);
        out.append(&mut lock(&self.script.last));
        result
    }
}

/// A kernel side that runs nowhere.
#[derive(Debug, Default)]
pub struct ScriptedDatapath {
    pub interfaces: Mutex<Vec<InterfaceStatus>>,
    pub open_views: AtomicU64,
    pub skipped: Arc<AtomicU64>,
    pub sampled: AtomicU64,
    pub stopped: AtomicBool,
}

impl ScriptedDatapath {
    #[must_use]
    pub fn attached(name: &str, ifindex: u32) -> Arc<Self> {
        let interface = InterfaceStatus {
            name: name.to_owned(),
            ifindex,
            state: AttachState::Attached,
            route: Some(AttachRoute::Tcx),
            reason: String::new(),
            before: Vec::new(),
            after: Vec::new(),
            link: LinkKind::Ethernet,
            chosen_by: ChosenBy::DefaultRoute,
            mode: CountMode::Full,
        };
        let datapath = Self::default();
        lock(&datapath.interfaces).push(interface);
        Arc::new(datapath)
    }

    /// A start that gives these sources and names this interface and address as the host's.
    #[must_use]
    pub fn start(self: &Arc<Self>, sources: Vec<Box<dyn EventSource>>, local: IpAddr) -> Start {
        let handle = Arc::clone(self);
        Box::new(move |_settings, facts| {
            facts.update(|facts| {
                for interface in &*lock(&handle.interfaces) {
                    facts.set_interface(interface.ifindex, &interface.name);
                }
                facts.set_addresses([local]);
            });
            let views = Views(handle);
            Ok(Started { sources, handle: Arc::new(views) })
        })
    }
}

#[derive(Debug)]
struct Views(Arc<ScriptedDatapath>);

impl Datapath for Views {
    fn interfaces(&self) -> Vec<InterfaceStatus> {
        lock(&self.0.interfaces).clone()
    }

    fn map_bytes(&self) -> u64 {
        4096
    }

    fn watch_packets(
        &self,
        _filter: &PacketFilter,
        _rate: u32,
    ) -> Result<Box<dyn PacketWatch>, StartError> {
        self.0.open_views.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(ScriptedWatch(Arc::clone(&self.0))))
    }

    fn stop(&self, _deadline: Instant) -> bool {
        self.0.stopped.store(true, Ordering::Relaxed);
        true
    }
}

struct ScriptedWatch(Arc<ScriptedDatapath>);

impl PacketWatch for ScriptedWatch {
    fn skipped(&self) -> u64 {
        self.0.skipped.load(Ordering::Relaxed)
    }

    fn sampled(&self) -> u64 {
        self.0.sampled.load(Ordering::Relaxed)
    }
}

impl Drop for ScriptedWatch {
    fn drop(&mut self) {
        self.0.open_views.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A resolver for a host of which nothing is known.
#[must_use]
pub fn resolver() -> Resolver {
    Resolver::new(Knowledge::of_host(HostFacts::shared()))
}

/// The flow `src:port > dst:port` of the interface 2.
#[must_use]
pub fn flow(protocol: u8, src: (IpAddr, u16), dst: (IpAddr, u16), egress: bool) -> FlowId {
    let direction = if egress { flag::EGRESS } else { 0 };
    let family = if src.0.is_ipv6() { flag::IPV6 } else { 0 };
    let key = FlowKey {
        src: keys::words(src.0),
        dst: keys::words(dst.0),
        src_port: src.1.to_be_bytes(),
        dst_port: dst.1.to_be_bytes(),
        protocol,
        flags: direction | family,
        tag: 0,
    };
    FlowId { key, owner: 2 }
}

/// A UDP flow out of 10.0.0.1, one of 65536 * 65536.
#[must_use]
pub fn udp(number: u32) -> FlowId {
    let [a, b, c, d] = number.to_be_bytes();
    let local = (IpAddr::from([10, 0, 0, 1]), u16::from_be_bytes([a, b]));
    let remote = (IpAddr::from([10, 1, c, d]), 53);
    flow(17, local, remote, true)
}

#[must_use]
pub const fn signal(id: FlowId, kind: SignalKind, time_ns: u64, tcp_flags: u8) -> Event {
    let facts = FlowFacts { cgroup_id: 0, cookie: 0, scope: 0, tcp_seen: 0 };
    Event::Flow(FlowSignal { id, kind, time_ns, tcp_flags, facts })
}

#[must_use]
pub const fn start(id: FlowId, time_ns: u64) -> Event {
    signal(id, SignalKind::Start, time_ns, 0)
}

#[must_use]
pub const fn count(id: FlowId, packets: u64, bytes: u64, time_ns: u64) -> Event {
    let facts = FlowFacts { cgroup_id: 0, cookie: 0, scope: 0, tcp_seen: 0 };
    Event::Count(FlowCount {
        id,
        line: 0,
        new_line: false,
        packets,
        bytes,
        first_seen_ns: time_ns,
        last_seen_ns: time_ns,
        facts,
    })
}

/// A source that ends a drain whenever it is called, with nothing in it.
#[derive(Debug)]
pub struct EmptyDrains;

impl EventSource for EmptyDrains {
    fn name(&self) -> &'static str {
        "empty"
    }

    fn wakeup(&self) -> Wakeup<'_> {
        Wakeup::default()
    }

    fn collect(&mut self, _now: Instant, out: &mut Vec<Event>) -> Result<(), SourceError> {
        out.push(Event::Drained(Box::default()));
        Ok(())
    }

    fn finish(&mut self, _out: &mut Vec<Event>) -> Result<(), SourceError> {
        Ok(())
    }
}
