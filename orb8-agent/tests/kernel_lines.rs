//! Caches that grow, counters that wrap, and lines on their way out of use that somebody still leads to, or that come
//! back: what programs do between two steps is done by hand here, in their maps.

mod support;

use std::mem::offset_of;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd as _;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use aya::maps::MapInfo;
use aya::programs::loaded_programs;
use orb8_agent::ebpf::kernel::KernelOptions;
use orb8_agent::ebpf::lines::LineTimes;
use orb8_agent::ebpf::mapping::Mapping;
use orb8_agent::event::Event;
use orb8_common::cache::{self, CachedLine, CpuBlock};
use orb8_common::counter;
use orb8_common::index::{self, GROUP_CELLS, Group};
use orb8_common::network::FlowLine;
use orb8_testbed::bpf;
use orb8_testbed::link::{Veth, VethOptions};
use orb8_testbed::need;
use orb8_testbed::need::Need;
use orb8_testbed::netns::Netns;
use orb8_testbed::packet;
use orb8_testbed::raw::RawSocket;
use orb8_testbed::wait::wait_until;
use support::DEADLINE;
use support::direct::{Direct, DirectObserved, options};

/// Lines of the table, by which the maps are told from those of other tests.
const LINES: u32 = 4242;

/// The maps of the programs under test.
struct Maps {
    index: Mapping<Group>,
    lines: Mapping<FlowLine>,
    caches: Mapping<CachedLine>,
    cpus: u32,
}

/// The maps of the programs under test, as far as anything is known of them.
struct Infos(Vec<MapInfo>);

impl Infos {
    fn find() -> Self {
        let maps = loaded_programs()
            .filter_map(Result::ok)
            .filter(|program| program.name_as_str() == Some("orb8_out_eth"))
            .filter_map(|program| program.map_ids().ok().flatten())
            .map(|ids| {
                ids.into_iter().filter_map(|id| MapInfo::from_id(id).ok()).collect::<Vec<_>>()
            })
            .find(|maps| maps.iter().any(|map| map.max_entries() == LINES))
            .expect("the programs of this test");
        Self(maps)
    }

    fn get(&self, name: &str) -> &MapInfo {
        let info = self.0.iter().find(|map| map.name_as_str() == Some(name));
        info.unwrap_or_else(|| panic!("the programs use {name}"))
    }
}

impl Maps {
    fn open() -> Self {
        let infos = Infos::find();
        let caches = infos.get("CPUS");
        let in_caches = caches.max_entries() * caches.value_size() / 64;
        Self {
            index: whole(infos.get("INDEX"), index::groups(LINES)),
            lines: whole(infos.get("LINES"), LINES),
            caches: whole(caches, in_caches),
            cpus: caches.max_entries(),
        }
    }

    /// Cells that lead to a line.
    fn cells(&self, slot: u32) -> Vec<(u32, usize)> {
        let all = (0..self.index.count())
            .flat_map(|group| (0..GROUP_CELLS).map(move |cell| (group, cell * 4)));
        all.filter(|&(group, at)| self.index.word32(group, at).load(Ordering::Acquire) == slot + 1)
            .collect()
    }

    /// The lines of caches that hold something for a line of the table.
    fn cached(&self, slot: u32) -> Vec<u32> {
        let holds = |number: &u32| {
            let line = self.caches.copy(*number);
            line.slot == slot && cache::packets(line.word) > 0 && line.key != Default::default()
        };
        (0..self.caches.count()).filter(holds).collect()
    }

    /// What the caches' masks say, each of them once.
    fn masks(&self) -> Vec<u32> {
        let stride = self.caches.count() / self.cpus;
        let byte = offset_of!(CpuBlock, mask);
        let at = |cpu| (cpu * stride + u32::try_from(byte / 64).expect("small"), byte % 64);
        let mask = |cpu| {
            let (line, offset) = at(cpu);
            self.caches.word32(line, offset).load(Ordering::Acquire)
        };
        let mut masks: Vec<u32> = (0..self.cpus).map(mask).collect();
        masks.dedup();
        masks
    }

    /// Counts packets without bytes as sockets do, on the first CPU.
    fn see(&self, packets: u64) {
        let byte = counter::SEEN_TOGETHER * 8;
        let line = u32::try_from(byte / 64).expect("small");
        let word = self.caches.word64(line, byte % 64);
        word.fetch_add(counter::together(packets, 0), Ordering::Relaxed);
    }

    /// The number of the line that has the latest packet, and its tick.
    fn latest(&self) -> (u32, u32) {
        let used = (0..LINES).filter(|&slot| self.lines.copy(slot).packets > 0);
        let slot = used.max_by_key(|&slot| self.lines.copy(slot).last_seen).expect("a line");
        (slot, self.lines.copy(slot).last_seen)
    }
}

fn whole<T: Copy>(info: &MapInfo, count: u32) -> Mapping<T> {
    let fd = info.fd().expect("root may");
    let mut mapping = Mapping::new(fd.as_fd(), count).expect("a descriptor");
    mapping.reach(count).expect("an array that can be mapped");
    mapping
}

struct Scene {
    watch: Direct,
    socket: RawSocket,
}

impl Scene {
    fn start(name: &str, idle_timeout: Duration) -> Self {
        let now = Duration::ZERO;
        Self::with(name, LineTimes { drain_interval: now, idle_timeout, linger: idle_timeout })
    }

    fn with(name: &str, times: LineTimes) -> Self {
        let netns = Netns::new(name);
        let cable = Veth::cable(&netns, VethOptions::default());
        let mut options = options("eth0");
        options.max_flows = LINES;
        // Caches of 1024 sets fit in with up to 682 CPUs.
        options.memory_budget = 1 << 30;
        options.times = times;
        let watch = Direct::with(&options, &netns, 1);
        let socket = RawSocket::open(&cable.near, cable.far.mac);
        Self { watch, socket }
    }

    fn send(&self, port: u16, packets: usize) {
        let [a, b]: [IpAddr; 2] = [1, 2].map(|last| Ipv4Addr::new(192, 0, 2, last).into());
        let packet = packet::ip(a, b, &packet::udp(port, 53, 100));
        self.socket.send(&vec![packet; packets]);
    }

    /// Drains until something is so.
    fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        wait_until(DEADLINE, what, || {
            self.watch.drain();
            is_so(self)
        });
    }
}

/// The tests share the number by which they find their maps.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

#[test]
fn caches_grow_with_the_flows_and_nothing_is_lost_or_counted_twice() {
    need!(Need::Root, Need::Bpf, Need::Tool("ip"), Need::CompareExchange);
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut scene = Scene::start("grow", Duration::from_secs(60));
    let maps = Maps::open();
    assert_eq!(maps.masks(), [cache::mask(64)], "16 KiB for a start");
    const FLOWS: u16 = 2000;
    let mut sent = 0;
    for round in 1..=3 {
        for port in 1000..1000 + FLOWS {
            scene.send(port, 3);
        }
        sent += 3 * u64::from(FLOWS);
        scene.until("all packets", |scene| scene.watch.observed().total().packets == sent);
        let sets = if maps.masks() == [cache::mask(64)] { 64 } else { 1024 };
        assert_eq!(maps.masks(), [cache::mask(sets)], "round {round}");
    }
    assert_eq!(maps.masks(), [cache::mask(1024)], "two lines a flow, four in a set");
    let observed = scene.watch.observed();
    assert_eq!(observed.seen(), observed.total());
    observed.assert_complete();
}

#[test]
fn what_sockets_saw_is_read_between_drains_before_it_wraps() {
    need!();
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let hour = Duration::from_secs(3600);
    let times = LineTimes { drain_interval: hour, idle_timeout: hour, linger: hour };
    let mut scene = Scene::with("looks", times);
    let maps = Maps::open();
    const SECOND: Duration = Duration::from_secs(1);
    // Two of these are more than the word holds.
    const MANY: u64 = 40_000_000;
    for late in [Duration::ZERO, 10 * SECOND, 11 * SECOND] {
        maps.see(MANY);
        let after = scene.watch.wake_lines(late);
        assert!(after <= 4 * SECOND + late, "they ask to be woken only after {after:?}");
    }
    assert_eq!(scene.watch.observed().report.time_ns, 0, "no drain has ended");
    maps.see(MANY);
    let observed = scene.watch.stop();
    assert_eq!(observed.seen().packets, 4 * MANY);
    let late = observed.notices.iter().filter(|notice| notice.code == "counters_read_late");
    assert_eq!(late.count(), 1, "{:?}", observed.notices);
}

#[test]
fn a_line_to_which_somebody_led_late_is_led_to_by_nobody_when_it_is_free() {
    need!();
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut scene = Scene::start("late", Duration::ZERO);
    let maps = Maps::open();
    scene.send(1000, 1);
    scene.until("the flow", |scene| scene.watch.observed().new_lines == 1);
    let (slot, _) = maps.latest();
    let cells = maps.cells(slot);
    assert_eq!(cells.len(), 1, "one cell leads to the line");
    scene.until("the line to go off the index", |_| maps.cells(slot).is_empty());
    let (group, at) = cells[0];
    // A program that was stopped between counting and leading others to the line goes on.
    maps.index.word32(group, at).store(slot + 1, Ordering::Release);
    scene.until("the line to be free", |scene| scene.watch.observed().released == 1);
    assert_eq!(maps.cells(slot), [], "cells that lead to a free line");
    scene.watch.observed().assert_complete();
}

#[test]
fn idle_lines_stay_and_that_is_told_once_where_the_index_cannot_be_mapped() {
    need!();
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut scene = Scene::start("stay", Duration::ZERO);
    bpf::freeze(Infos::find().get("INDEX").fd().expect("root may"));
    const FLOWS: u16 = 5;
    for port in 1000..1000 + FLOWS {
        scene.send(port, 2);
    }
    let told = |observed: &DirectObserved| {
        observed.notices.iter().filter(|notice| notice.code == "idle_lines_stay").count()
    };
    scene.until("the notice", |scene| told(scene.watch.observed()) > 0);
    for _ in 0..10 {
        scene.watch.drain();
    }
    let observed = scene.watch.observed();
    assert_eq!((told(observed), observed.released), (1, 0), "{:?}", observed.notices);
    assert_eq!(observed.report.lines_in_use, u64::from(FLOWS), "each stays in use");
    observed.assert_complete();
}

#[test]
fn a_line_that_is_counted_on_while_it_leaves_stays_in_use_and_loses_nothing() {
    need!(Need::Root, Need::Bpf, Need::Tool("ip"), Need::CompareExchange);
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut scene = Scene::start("back", Duration::ZERO);
    let maps = Maps::open();
    scene.send(1000, 5);
    scene.until("the flow", |scene| scene.watch.observed().seen().packets == 5);
    let (slot, _) = maps.latest();
    let cached = maps.cached(slot);
    assert_eq!(cached.len(), 1, "one cached line: {cached:?}");
    scene.until("the line to go off the index", |_| maps.cells(slot).is_empty());
    // Another flow tells the time.
    scene.send(2000, 1);
    let (other, now) = maps.latest();
    assert_ne!(other, slot);
    // A program that had found the line before adds to it, and others after it.
    maps.caches.word32(cached[0], offset_of!(CachedLine, last_seen)).store(now, Ordering::Release);
    scene.until("the line to be on the index again", |_| maps.cells(slot).len() == 1);
    scene.until("both lines to be free", |scene| scene.watch.observed().released == 2);
    assert_eq!((maps.cells(slot), maps.cached(slot)), (vec![], vec![]), "nothing is left of it");
    let observed = scene.watch.observed();
    assert_eq!(observed.seen().packets, 6);
    observed.assert_complete();
}

#[test]
fn lines_that_get_scarce_are_read_at_the_set_interval_however_much_is_spared() {
    need!(Need::Root, Need::Bpf, Need::Tool("ip"));
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let netns = Netns::new("scarce");
    let cable = Veth::cable(&netns, VethOptions::default());
    let options = KernelOptions { max_flows: LINES, ..options("eth0") };
    let mut watch = Direct::with(&options, &netns, 1);
    let socket = RawSocket::open(&cable.near, cable.far.mac);
    let (start, seconds) = (Instant::now() + Duration::from_secs(1), Duration::from_secs);
    let drains = |watch: &mut Direct, now: Instant| {
        let (lines, mut events) = (watch.lines(), Vec::new());
        while lines.wakeup().due.is_some_and(|due| due <= now) {
            lines.collect(now, &mut events).expect("lines that can be read");
        }
        events.iter().filter(|event| matches!(event, Event::Drained(_))).count()
    };
    watch.lines().pace(seconds(60));
    assert_eq!(drains(&mut watch, start + seconds(30)), 0, "sixty seconds were asked for");
    assert!(!watch.lines().keeps_set_pace());
    let [a, b]: [IpAddr; 2] = [1, 2].map(|last| Ipv4Addr::new(192, 0, 2, last).into());
    let ports = 1000..=1000 + u16::try_from(LINES / 2).expect("few");
    let flows: Vec<_> = ports.map(|port| packet::ip(a, b, &packet::udp(port, 53, 100))).collect();
    socket.send(&flows);
    assert_eq!(drains(&mut watch, start + seconds(31)), 1, "more than half of the lines are taken");
    assert!(watch.lines().keeps_set_pace());
    assert_eq!(drains(&mut watch, start + seconds(32)), 1, "one second is set");
}
