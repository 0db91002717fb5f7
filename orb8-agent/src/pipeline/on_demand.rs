//! Drains before their time, and less often: whoever needs the counts of now asks, and learns when they
//! are in; while the agent spares, more time passes between those that nobody asks for.
//!
//! A source that is read on a timer is wrapped; when it is read, and that its timer runs from then on, is
//! all that changes. Those who ask in quick succession share a drain: what drains tell is the
//! rates of whole intervals. Nothing here knows what is read.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use crate::event::Event;
use crate::pipeline::source::{EventSource, SourceError, Wakeup};

/// No drain is begun for those who ask sooner after the last one began: whoever judges by drains
/// would take a few milliseconds for an interval, and a loop of requests would leave the pipeline's
/// thread nothing else to do.
pub const SPACING: Duration = Duration::from_millis(200);

/// However much is spared, no more time passes between two drains unless it was set: the kernel's totals
/// wrap, and what is read must not have done so twice.
const MOST: Duration = Duration::from_secs(20);

/// Requests for a drain, by their number from 1, and how many intervals pass between drains.
#[derive(Debug)]
pub struct Drains {
    asked: AtomicU64,
    /// Requests up to this one were made before the last complete drain began.
    served: AtomicU64,
    /// Intervals that pass between drains that nobody asks for.
    intervals: AtomicU32,
    /// The source lets one pass all the same.
    keeps_set: AtomicBool,
    wake: OwnedFd,
}

impl Drains {
    /// Nothing asked for yet.
    ///
    /// # Errors
    /// The kernel has no descriptor left.
    pub fn shared() -> io::Result<Arc<Self>> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let [asked, served] = [0; 2].map(AtomicU64::new);
        let (intervals, keeps_set) = (AtomicU32::new(1), AtomicBool::new(false));
        Ok(Arc::new(Self { asked, served, intervals, keeps_set, wake }))
    }

    /// Lets so many intervals pass between drains that nobody asks for, from the next time on that the
    /// source is called.
    pub fn stretch(&self, intervals: u32) {
        self.intervals.store(intervals.max(1), Ordering::Relaxed);
    }

    /// The time between drains that nobody asks for, where this is the interval; [`Self::kept`] may be
    /// less.
    #[must_use]
    pub fn stretched(&self, interval: Duration) -> Duration {
        Self::stretched_by(interval, self.intervals.load(Ordering::Relaxed))
    }

    /// That time as the source keeps it, as far as it was called since.
    #[must_use]
    pub fn kept(&self, interval: Duration) -> Duration {
        if self.keeps_set.load(Ordering::Relaxed) { interval } else { self.stretched(interval) }
    }

    /// The time between drains that nobody asks for, if so many intervals pass.
    #[must_use]
    pub fn stretched_by(interval: Duration, intervals: u32) -> Duration {
        interval.saturating_mul(intervals).min(MOST).max(interval)
    }

    /// Asks for a drain that begins after this call, at most [`SPACING`] later than it could; gives
    /// the number of the request.
    pub fn ask(&self) -> u64 {
        let number = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        // Full means that it is readable already.
        rustix::io::write(&self.wake, &1_u64.to_ne_bytes()).ok();
        number
    }

    /// Requests up to this one are served, once the drain that was last told has gone through the
    /// pipeline.
    #[must_use]
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Acquire)
    }
}

/// A source with a timer and no descriptor of its own, which is also read when somebody asks.
///
/// A drain ends with [`Event::Drained`]; until then the source is due at once. It may also be due for
/// something else than a drain, which serves nobody.
pub struct OnDemand {
    inner: Box<dyn EventSource>,
    drains: Arc<Drains>,
    /// Between two drains, where nothing is spared.
    interval: Duration,
    /// When the last drain began.
    began: Option<Instant>,
    under_way: bool,
    /// Requests made before the last drain began.
    heard: u64,
}

impl std::fmt::Debug for OnDemand {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("OnDemand").field("inner", &self.inner.name()).finish_non_exhaustive()
    }
}

impl OnDemand {
    /// Lets others ask for drains of a source.
    #[must_use]
    pub fn new(inner: Box<dyn EventSource>, drains: Arc<Drains>, interval: Duration) -> Self {
        Self { inner, drains, interval, began: None, under_way: false, heard: 0 }
    }

    fn asked(&self) -> u64 {
        self.drains.asked.load(Ordering::Acquire)
    }

    /// When the next drain may begin for those who ask; none: at once.
    fn turn(&self) -> Option<Instant> {
        self.began.map(|began| began + SPACING)
    }

    /// Has the source begin a drain if somebody asked for one and it is their turn.
    fn hear(&mut self, asked: u64, now: Instant) -> bool {
        let serves =
            !self.under_way && asked != self.heard && self.turn().is_none_or(|turn| turn <= now);
        if serves {
            self.inner.hurry(now);
        }
        serves
    }

    fn note_pace(&self) {
        self.drains.keeps_set.store(self.inner.keeps_set_pace(), Ordering::Relaxed);
    }

    fn is_due(&self, now: Instant) -> bool {
        self.inner.wakeup().due.is_some_and(|due| due <= now)
    }
}

impl EventSource for OnDemand {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn wakeup(&self) -> Wakeup<'_> {
        // The descriptor told of a request that waits for its turn, and tells nothing more.
        let waits = !self.under_way && self.asked() != self.heard;
        let turn = self.turn().filter(|_| waits);
        let due = self.inner.wakeup().due.into_iter().chain(turn).min();
        Wakeup { fd: Some(self.drains.wake.as_fd()), due }
    }

    fn collect(&mut self, now: Instant, out: &mut Vec<Event>) -> Result<(), SourceError> {
        // Empty is an error of its own, and no request is lost: the number is what counts.
        rustix::io::read(&self.drains.wake, &mut [0; 8]).ok();
        self.inner.pace(self.drains.stretched(self.interval));
        self.note_pace();
        // Before the source is called: later ones may have come when it had begun.
        let asked = self.asked();
        if !self.hear(asked, now) && !self.is_due(now) {
            return Ok(());
        }
        let before = out.len();
        let result = self.inner.collect(now, out);
        self.note_pace();
        let done = out[before..].iter().any(|event| matches!(event, Event::Drained(_)));
        let goes_on = result.is_ok() && !done && self.is_due(now);
        let drains = done || goes_on || result.is_err();
        if drains && !self.under_way {
            (self.began, self.heard) = (Some(now), asked);
        }
        self.under_way = goes_on;
        if done {
            self.drains.served.store(self.heard, Ordering::Release);
        }
        if result.is_err() {
            // Asked again, the source begins anew, and so do those who wait.
            self.heard = self.drains.served();
        }
        result
    }

    fn finish(&mut self, out: &mut Vec<Event>) -> Result<(), SourceError> {
        self.heard = self.asked();
        let result = self.inner.finish(out);
        if result.is_ok() {
            self.drains.served.store(self.heard, Ordering::Release);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs three calls for a drain, as lines in parts do.
    struct Slow {
        due: Instant,
        interval: Duration,
        part: u32,
        fails: bool,
        /// When something else is due.
        looks: Option<Instant>,
        /// In the next drain it finds that it has to keep its set time.
        scarce: bool,
        keeps_set: bool,
    }

    impl EventSource for Slow {
        fn name(&self) -> &'static str {
            "slow"
        }

        fn wakeup(&self) -> Wakeup<'_> {
            Wakeup { fd: None, due: self.looks.into_iter().chain([self.due]).min() }
        }

        fn hurry(&mut self, now: Instant) {
            self.due = self.due.min(now);
        }

        fn pace(&mut self, interval: Duration) {
            if self.part == 0 {
                self.due = self.due + interval - self.interval;
            }
            self.interval = interval;
        }

        fn keeps_set_pace(&self) -> bool {
            self.keeps_set
        }

        fn collect(&mut self, now: Instant, out: &mut Vec<Event>) -> Result<(), SourceError> {
            self.looks = self.looks.filter(|looks| *looks > now);
            if now < self.due {
                return Ok(());
            }
            if std::mem::take(&mut self.fails) {
                self.part = 0;
                self.due = now + self.interval;
                let message = "it is a test".to_owned();
                return Err(SourceError { source_name: "slow", message });
            }
            self.part += 1;
            self.due = now;
            if self.part == 3 {
                self.part = 0;
                self.due = now + self.interval;
                self.keeps_set = self.scarce;
                out.push(Event::Drained(Box::default()));
            }
            Ok(())
        }

        fn finish(&mut self, _out: &mut Vec<Event>) -> Result<(), SourceError> {
            Ok(())
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    /// One that is due after its interval.
    fn slow(now: Instant, interval: Duration) -> Slow {
        let (due, looks) = (now + interval, None);
        Slow { due, interval, part: 0, fails: false, looks, scarce: false, keeps_set: false }
    }

    fn source(now: Instant) -> (OnDemand, Arc<Drains>) {
        let (drains, interval) = (Drains::shared().unwrap(), SECOND);
        let slow = slow(now, interval);
        (OnDemand::new(Box::new(slow), Arc::clone(&drains), interval), drains)
    }

    /// Calls as the runner does until nothing is due; how many drains ended.
    fn run(source: &mut OnDemand, now: Instant) -> usize {
        let mut out = Vec::new();
        loop {
            source.collect(now, &mut out).unwrap();
            if source.wakeup().due.is_none_or(|due| due > now) {
                return out.len();
            }
        }
    }

    #[test]
    fn nothing_is_drained_before_its_time_unless_somebody_asks() {
        let now = Instant::now();
        let (mut source, drains) = source(now);
        assert_eq!(run(&mut source, now), 0);
        let number = drains.ask();
        assert!(drains.served() < number);
        assert_eq!(run(&mut source, now), 1);
        assert_eq!(drains.served(), number);
        assert_eq!(run(&mut source, now), 0);
    }

    #[test]
    fn a_request_in_the_middle_of_a_drain_is_served_by_the_next() {
        let now = Instant::now();
        let (mut source, drains) = source(now);
        let first = drains.ask();
        let mut out = Vec::new();
        source.collect(now, &mut out).unwrap();
        let second = drains.ask();
        while out.is_empty() {
            source.collect(now, &mut out).unwrap();
        }
        assert_eq!(drains.served(), first, "it began before the second request");
        assert_eq!(run(&mut source, now + SPACING), 1);
        assert_eq!(drains.served(), second);
    }

    #[test]
    fn what_is_due_is_drained_without_being_asked_for() {
        let now = Instant::now();
        let (mut source, _drains) = source(now);
        assert_eq!(run(&mut source, now + Duration::from_secs(1)), 1);
    }

    #[test]
    fn while_the_agent_spares_only_what_is_asked_for_is_drained_at_the_old_times() {
        let begin = Instant::now();
        let (mut source, drains) = source(begin);
        let after = |seconds| begin + Duration::from_secs(seconds);
        drains.stretch(4);
        assert_eq!(run(&mut source, after(3)), 0);
        let number = drains.ask();
        assert_eq!(run(&mut source, after(3)), 1);
        assert_eq!(drains.served(), number);
        assert_eq!(run(&mut source, after(6)), 0);
        assert_eq!(run(&mut source, after(7)), 1);
        drains.stretch(1);
        assert_eq!(run(&mut source, after(8)), 1, "the wait that goes on is cut");
    }

    #[test]
    fn nothing_stretches_an_interval_beyond_twenty_seconds() {
        let drains = Drains::shared().unwrap();
        drains.stretch(4);
        let stretched = |seconds| drains.stretched(Duration::from_secs(seconds)).as_secs();
        assert_eq!([1, 10, 20, 60].map(stretched), [4, 20, 20, 60]);
    }

    #[test]
    fn the_time_that_a_source_keeps_is_known_after_each_drain() {
        let begin = Instant::now();
        let drains = Drains::shared().unwrap();
        let slow = Slow { scarce: true, ..slow(begin, SECOND) };
        let mut source = OnDemand::new(Box::new(slow), Arc::clone(&drains), SECOND);
        drains.stretch(4);
        assert_eq!(run(&mut source, begin + SECOND), 0);
        assert_eq!(drains.kept(SECOND), 4 * SECOND);
        assert_eq!(run(&mut source, begin + 4 * SECOND), 1);
        assert_eq!((drains.kept(SECOND), drains.stretched(SECOND)), (SECOND, 4 * SECOND));
    }

    #[test]
    fn a_drain_that_failed_serves_nobody_and_is_begun_again() {
        let now = Instant::now();
        let drains = Drains::shared().unwrap();
        let slow = Slow { fails: true, ..slow(now, SECOND) };
        let mut source = OnDemand::new(Box::new(slow), Arc::clone(&drains), SECOND);
        let number = drains.ask();
        assert!(source.collect(now, &mut Vec::new()).is_err());
        assert!(drains.served() < number);
        assert_eq!(run(&mut source, now + SPACING), 1);
        assert_eq!(drains.served(), number);
    }

    #[test]
    fn the_timer_runs_from_the_last_drain_whoever_asked_for_it() {
        let begin = Instant::now();
        let (mut source, drains) = source(begin);
        for round in 0..5 {
            let now = begin + round * SPACING;
            drains.ask();
            assert_eq!(run(&mut source, now), 1);
            assert_eq!(source.wakeup().due, Some(now + Duration::from_secs(1)), "{round}");
        }
    }

    #[test]
    fn those_who_ask_in_quick_succession_share_a_drain_and_a_loop_of_them_leaves_a_pause() {
        let now = Instant::now();
        let (mut source, drains) = source(now);
        drains.ask();
        assert_eq!(run(&mut source, now), 1);
        let numbers = [(); 5].map(|()| {
            let number = drains.ask();
            assert_eq!(run(&mut source, now + SPACING / 2), 0);
            number
        });
        assert!(drains.served() < numbers[0]);
        assert_eq!(source.wakeup().due, Some(now + SPACING), "nobody has to ask again");
        assert_eq!(run(&mut source, now + SPACING), 1);
        assert_eq!(drains.served(), numbers[4]);
    }

    #[test]
    fn what_the_source_does_besides_draining_serves_nobody_and_keeps_nobody_waiting() {
        let begin = Instant::now();
        let drains = Drains::shared().unwrap();
        let slow = Slow { looks: Some(begin + SPACING / 4), ..slow(begin, SECOND) };
        let mut source = OnDemand::new(Box::new(slow), Arc::clone(&drains), SECOND);
        let now = begin + SPACING / 2;
        assert_eq!(run(&mut source, now), 0);
        let number = drains.ask();
        assert_eq!(run(&mut source, now), 1);
        assert_eq!(drains.served(), number);
    }
}
