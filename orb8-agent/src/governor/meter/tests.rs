//! Tests of measuring: a kernel side whose programs take what the test says.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use orb8_common::counter::SEEN_PACKETS;

use super::*;
use crate::event::DrainReport;
use crate::governor::programs::Programs;
use crate::pipeline::on_demand::OnDemand;
use crate::pipeline::source::EventSource;
use crate::testing::{EmptyDrains, ManualClock};

/// A folder of the test's own, removed with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("orb8-meter-{}-{n}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

struct Bench {
    meter: Meter,
    programs: Arc<Programs>,
    ledger: SharedLedger,
    drain: OnDemand,
    clock: Arc<ManualClock>,
    now: Instant,
    packets: u64,
    proc_root: Folder,
}

fn bench(refuses: bool) -> Bench {
    let proc_root = Folder::new();
    let refuses = Mutex::new(refuses.then_some(libc::EPERM));
    let ran = Mutex::new(Some(Duration::ZERO));
    let programs = Arc::new(Programs { ran, refuses, ..Programs::default() });
    let (ledger, drains) = (SharedLedger::default(), Drains::shared().unwrap());
    let clock = ManualClock::at(1_000_000_000, 0);
    let now = clock.instant();
    let datapath: Arc<dyn Datapath> = Arc::clone(&programs) as _;
    let meter = Meter::new(
        proc_root.0.clone(),
        1,
        Some(datapath),
        Arc::clone(&ledger),
        Arc::clone(&drains),
        Arc::clone(&clock) as _,
    );
    let drain = OnDemand::new(Box::new(EmptyDrains), drains, Duration::from_secs(1));
    Bench { meter, programs, ledger, drain, clock, now, packets: 0, proc_root }
}

impl Bench {
    /// So many packets pass, each of which takes so many nanoseconds.
    fn run(&mut self, packets: u64, each_ns: u64) {
        self.packets += packets;
        let ran = Duration::from_nanos(packets * each_ns);
        *self.programs.ran.lock().unwrap().get_or_insert_default() += ran;
    }

    /// The same, and they are drained.
    fn pass(&mut self, packets: u64, each_ns: u64) {
        self.run(packets, each_ns);
        self.drain(0, 0);
    }

    /// A drain, and so many packets pass while it reads.
    fn drain(&mut self, packets: u64, each_ns: u64) {
        let time_ns = self.clock.monotonic_ns();
        let mut report = DrainReport { time_ns, ..DrainReport::default() };
        report.before.0[SEEN_PACKETS] = self.packets;
        self.run(packets, each_ns);
        report.after.0[SEEN_PACKETS] = self.packets;
        lock(&self.ledger).close_drain(&report);
        self.drain.collect(self.now, &mut Vec::new()).unwrap();
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.clock.advance(time);
    }

    fn after(&mut self, time: Duration) -> &mut Meter {
        self.wait(time);
        &mut self.meter
    }

    /// A packet a microsecond for so long.
    fn steady(&mut self, time: Duration, each_ns: u64) {
        self.wait(time);
        self.run(u64::try_from(time.as_micros()).unwrap(), each_ns);
    }

    fn advance(&mut self, time: Duration) {
        let now = self.now + time;
        self.after(time).advance(now);
    }

    fn measure(&mut self, time: Duration) -> Measured {
        let now = self.now + time;
        self.after(time).measure(now)
    }

    fn keepers(&self) -> u32 {
        self.programs.keepers.load(Ordering::Relaxed)
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn where_the_kernel_may_not_be_asked_a_packet_costs_a_fixed_time() {
    let mut bench = bench(true);
    bench.pass(1_000_000, 10);
    let measured = bench.measure(SECOND);
    assert_eq!(measured.programs, Duration::from_millis(50));
    assert_eq!(measured.interval, SECOND);
    assert_eq!(measured.memory_bytes, 7 << 20, "no resident memory is told here");
    bench.advance(Duration::ZERO);
    assert_eq!((bench.meter.basis(), bench.meter.due()), ((Basis::Estimated, PACKET_NS), None));
}

/// Drains every four seconds, looked at every five: one or two of them fall into an interval.
#[test]
fn steady_traffic_costs_the_same_in_each_interval_however_many_drains_fall_into_it() {
    let mut bench = bench(true);
    let mut measured = Vec::new();
    for second in 1..=60 {
        bench.run(10_000, 10);
        bench.wait(SECOND);
        if second % 4 == 0 {
            bench.drain(0, 0);
        }
        if second % 5 == 0 {
            measured.push(bench.measure(Duration::ZERO).programs);
        }
    }
    let steady = Duration::from_micros(5 * 500);
    assert!(measured[1..].iter().all(|&took| took == steady), "{measured:?}");
}

#[test]
fn packets_of_the_first_drain_are_those_since_the_start() {
    let mut bench = bench(true);
    assert_eq!(bench.measure(5 * SECOND).programs, Duration::ZERO);
    bench.wait(55 * SECOND);
    bench.pass(60_000, 10);
    assert_eq!(bench.measure(Duration::ZERO).programs, Duration::from_micros(55 * 50));
}

/// A bench where the kernel is being asked, of a traffic that is steady.
fn asked(each_ns: u64) -> Bench {
    let mut bench = bench(false);
    bench.measure(Duration::ZERO);
    bench.steady(SECOND, each_ns);
    bench.drain(0, 0);
    bench.measure(Duration::ZERO);
    bench.advance(Duration::ZERO);
    assert_eq!(bench.keepers(), 1);
    bench
}

#[test]
fn a_packet_costs_what_the_kernel_told_in_a_moment_of_traffic_however_late_drains_are_through() {
    let mut bench = asked(20);
    let (slow, now) = (Duration::from_millis(90), |bench: &Bench| bench.now);
    bench.drain(0, 0);
    bench.steady(slow, 20);
    // Asked with the time of before the drain.
    let before = now(&bench) - slow;
    bench.meter.advance(before);
    bench.steady(WINDOW / 2, 20);
    bench.advance(Duration::ZERO);
    assert_eq!(bench.keepers(), 1, "the window is still open");
    bench.steady(WINDOW / 2, 20);
    bench.advance(Duration::ZERO);
    assert_eq!(bench.keepers(), 0, "the kernel keeps statistics no longer");
    bench.steady(slow, 20);
    bench.drain(700, 20);
    bench.advance(LOOK);
    let (basis, packet_ns) = bench.meter.basis();
    assert_eq!(basis, Basis::Calibrated);
    assert!((packet_ns - 20.0).abs() < 0.01, "{packet_ns} ns");
    bench.advance(AGAIN / 2);
    assert_eq!(bench.keepers(), 0, "not again before a minute has passed");
}

#[test]
fn a_calibration_that_fails_for_now_is_tried_again_and_one_that_is_refused_leaves_an_estimate() {
    let mut bench = asked(20);
    bench.drain(0, 0);
    bench.advance(LOOK);
    bench.steady(WINDOW, 20);
    bench.advance(Duration::ZERO);
    bench.drain(0, 0);
    bench.advance(LOOK);
    assert_eq!(bench.meter.basis().0, Basis::Calibrated);
    let refuse = |bench: &Bench, errno| *bench.programs.refuses.lock().unwrap() = errno;
    refuse(&bench, Some(libc::EMFILE));
    bench.advance(AGAIN);
    assert_eq!(bench.meter.basis().0, Basis::Calibrated, "what was known still is");
    refuse(&bench, None);
    bench.advance(AGAIN);
    assert_eq!(bench.keepers(), 1, "asked again");
    bench.advance(PATIENCE);
    refuse(&bench, Some(libc::EPERM));
    bench.advance(AGAIN);
    assert_eq!(bench.meter.basis(), (Basis::Estimated, PACKET_NS));
    refuse(&bench, None);
    bench.advance(AGAIN);
    assert_eq!(bench.keepers(), 0, "not again");
}

#[test]
fn nobody_asks_the_kernel_what_a_packet_costs_while_few_pass() {
    let mut bench = bench(false);
    bench.measure(Duration::ZERO);
    bench.pass(900, 10);
    bench.measure(SECOND);
    bench.advance(Duration::ZERO);
    assert_eq!((bench.keepers(), bench.meter.due()), (0, None));
}

#[test]
fn a_drain_that_does_not_come_ends_the_question() {
    let mut bench = bench(false);
    bench.measure(Duration::ZERO);
    bench.pass(5_000, 10);
    bench.measure(SECOND);
    bench.advance(Duration::ZERO);
    assert_eq!(bench.keepers(), 1);
    bench.advance(PATIENCE);
    assert_eq!((bench.keepers(), bench.meter.due()), (0, None));
}

#[test]
fn statistics_that_are_kept_all_the_time_are_taken_as_they_are() {
    let mut bench = bench(false);
    let folder = bench.proc_root.0.join("sys/kernel");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("bpf_stats_enabled"), "1\n").unwrap();
    bench.measure(Duration::ZERO);
    bench.pass(100_000, 7);
    assert_eq!(bench.measure(SECOND).programs, Duration::from_micros(700));
    assert_eq!(bench.meter.basis().0, Basis::Measured);
    std::fs::write(folder.join("bpf_stats_enabled"), "0\n").unwrap();
    bench.pass(1_000, 7);
    assert_eq!(bench.measure(SECOND).programs, Duration::from_micros(50));
    assert_eq!(bench.meter.basis().0, Basis::Estimated);
}
