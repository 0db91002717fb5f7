//! The governor at work, as a source of notices: measures now and then, judges, acts, and says so.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use orb8_common::network::Sparing;
use orb8_util::format;

use super::{Board, Cause, Change, Given, Governor, Meter};
use crate::clock::Clock;
use crate::datapath::{Datapath, RingFill, RingGauges};
use crate::event::{Event, Notice, Severity};
use crate::pipeline::on_demand::Drains;
use crate::pipeline::source::{EventSource, SourceError, Wakeup};

/// A ring over the threshold takes another step after so long: until then it cannot have shown what the
/// last one did.
const RING_PAUSE: Duration = Duration::from_millis(50);
/// A minute, in which so many notices of steps are told, and one of steps further for rings.
const MINUTE: Duration = Duration::from_secs(60);
const NOTICES: u32 = 30;

/// What the governor acts on.
pub struct Hands {
    /// How often the lines are read.
    pub drains: Arc<Drains>,
    /// What the programs tell.
    pub datapath: Option<Arc<dyn Datapath>>,
    /// Keeps ended flows for so long from now on; the next drain forgets those beyond.
    pub keep_history: Box<dyn Fn(Duration) + Send>,
    /// Gives free memory back to the kernel.
    pub give_back: Box<dyn Fn() + Send>,
    /// The set time between drains.
    pub drain_interval: Duration,
    /// How long ended flows are kept as set.
    pub history: Duration,
}

impl std::fmt::Debug for Hands {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Hands")
            .field("drain_interval", &self.drain_interval)
            .finish_non_exhaustive()
    }
}

impl Hands {
    /// Gives up what is to be given up; gives what holds then, and what the programs said if they
    /// refused their part of it.
    fn give(&self, before: Given, given: Given) -> (Given, io::Result<()>) {
        self.drains.stretch(given.intervals);
        if given.history_part != before.history_part {
            (self.keep_history)(given.history(self.history));
        }
        let (sampling, fewer_events) = (given.sampling, given.fewer_events);
        if let Some(datapath) = &self.datapath
            && (sampling, fewer_events) != (before.sampling, before.fewer_events)
        {
            let sparing = Sparing { sampling, fewer_events: u32::from(fewer_events) };
            if let Err(error) = datapath.spare(sparing) {
                let Given { sampling, fewer_events, .. } = before;
                return (Given { sampling, fewer_events, ..given }, Err(error));
            }
        }
        (given, Ok(()))
    }

    /// The time between drains as it is now.
    fn drain_interval_kept(&self) -> Duration {
        self.drains.kept(self.drain_interval)
    }

    /// What is given up, a sentence each.
    fn sentences(&self, given: Given) -> Vec<String> {
        let seconds = |time: Duration| time.as_secs_f64();
        let mut sentences = Vec::new();
        let (asked, kept) =
            (self.drains.stretched(self.drain_interval), self.drain_interval_kept());
        if kept != self.drain_interval {
            sentences.push(format!(
                "counters are read every {} s instead of every {} s",
                seconds(kept),
                seconds(self.drain_interval)
            ));
        } else if asked != kept {
            sentences.push(format!(
                "counters are read every {} s, not every {} s, while flow lines are scarce",
                seconds(kept),
                seconds(asked)
            ));
        }
        if given.fewer_events {
            sentences.push("starts of flows without a SYN are told by the next read".to_owned());
        }
        if given.sampling > 1 {
            sentences.push(format!(
                "one in {} packets of the packet view is told and stands for the others",
                given.sampling
            ));
        }
        let history = given.history(self.history);
        if history != self.history {
            sentences.push(format!(
                "ended flows are kept for {} s instead of {} s",
                seconds(history),
                seconds(self.history)
            ));
        }
        sentences
    }
}

/// Notices that may still be told within a minute.
#[derive(Debug)]
struct Allowance {
    of_a_minute: u32,
    since: Option<Instant>,
    left: u32,
}

impl Allowance {
    const fn new(of_a_minute: u32) -> Self {
        Self { of_a_minute, since: None, left: 0 }
    }

    /// Whether one more may be told.
    fn spend(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= MINUTE) {
            (self.since, self.left) = (Some(now), self.of_a_minute);
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}

/// When a step further was taken last for each cause (CLOCK_MONOTONIC nanoseconds), 0: never.
#[derive(Debug, Default)]
struct Forward([u64; Cause::ALL.len()]);

impl Forward {
    const fn note(&mut self, cause: Cause, now_ns: u64) {
        self.0[cause as usize] = now_ns;
    }

    /// The cause of what is given up, and since when; none if nothing is.
    fn holds(&self, governor: &Governor) -> Option<(&'static str, u64)> {
        let held = Cause::ALL.into_iter().filter(|cause| governor.steps_for(*cause) > 0);
        held.map(|cause| (cause.word(), self.0[cause as usize])).max_by_key(|(_, at_ns)| *at_ns)
    }
}

/// The governor as a source.
#[derive(Debug)]
pub struct GovernorSource {
    governor: Governor,
    meter: Meter,
    hands: Hands,
    board: Arc<Board>,
    clock: Arc<dyn Clock>,
    rings: Arc<RingGauges>,
    interval: Duration,
    /// What holds.
    given: Given,
    forward: Forward,
    /// The request for the drain that forgets flows for a step of memory; none: nothing was forgotten.
    forgets: Option<u64>,
    /// Whether an interval is over: what starting takes is shown, but nothing is given up for it.
    is_started: bool,
    /// When load and rings are judged next.
    due: Instant,
    /// When the rings were judged last.
    rings_judged: Instant,
    /// The fullest that they were since load was judged.
    fullest: RingFill,
    /// Before it no further step is taken for a ring.
    ring_pause: Instant,
    of_load: Allowance,
    /// Steps further for a ring.
    of_rings: Allowance,
    /// Steps that were not told.
    withheld: u64,
    /// To be told at the beginning.
    opening: Vec<Notice>,
}

impl GovernorSource {
    /// Judges once an interval, and at once when a ring fills; tells these notices first.
    #[must_use]
    pub fn new(
        governor: Governor,
        meter: Meter,
        hands: Hands,
        board: Arc<Board>,
        clock: Arc<dyn Clock>,
        interval: Duration,
        opening: Vec<Notice>,
    ) -> Self {
        let now = clock.instant();
        let rings = hands.datapath.as_ref().and_then(|datapath| datapath.rings());
        board.update(|state| state.memory_bytes = meter.memory_bytes());
        Self {
            governor,
            meter,
            hands,
            board,
            clock,
            rings: rings.unwrap_or_default(),
            interval,
            given: Given::NOTHING,
            forward: Forward::default(),
            forgets: None,
            is_started: false,
            due: now + interval,
            rings_judged: now,
            fullest: RingFill::default(),
            ring_pause: now,
            of_load: Allowance::new(NOTICES),
            of_rings: Allowance::new(1),
            withheld: 0,
            opening,
        }
    }

    /// Judges what was measured over the interval.
    fn judge(&mut self, now: Instant, out: &mut Vec<Event>) {
        self.give_back();
        // Whether the lines are read as often as set is not decided here.
        self.show();
        self.try_again(out);
        let measured = self.meter.measure(now);
        let (basis, packet_ns) = self.meter.basis();
        self.board.update(|state| {
            (state.measured, state.memory_bytes) = (Some(measured), measured.memory_bytes);
            (state.basis, state.packet_ns) = (basis, packet_ns);
        });
        if std::mem::replace(&mut self.is_started, true) {
            for change in self.governor.judge_load(&measured) {
                let why = match change.cause {
                    Cause::Cpu => self.why_cpu(self.governor.judged_cpu()),
                    _ => self.why_memory(measured.memory_bytes),
                };
                self.act(change, &why, now, out);
            }
        }
        self.judge_rings(now, out);
        self.fullest = RingFill::default();
    }

    /// Judges how full the rings were since they were judged last.
    fn judge_rings(&mut self, now: Instant, out: &mut Vec<Event>) {
        let interval = now.saturating_duration_since(self.rings_judged);
        self.rings_judged = now;
        let fill = self.rings.take();
        self.fullest = self.fullest.or_fuller(fill);
        let fullest = self.fullest;
        self.board.update(|state| state.rings = fullest);
        for change in self.governor.judge_rings(fill, interval) {
            self.ring_pause = now + RING_PAUSE;
            let (name, fill) = match change.cause {
                Cause::EventRing => ("events", fill.events),
                _ => ("packets", fill.packets),
            };
            let why = format!(
                "the ring of {name} was {:.0} % full, the threshold is {} % (ORB8_SAMPLING_THRESHOLD)",
                100.0 * fill,
                percent(self.board.state().budgets.ring),
            );
            self.act(change, &why, now, out);
        }
    }

    /// What filled the ring of packets is gone, and the next view begins anew.
    fn close_packets(&mut self, now: Instant, out: &mut Vec<Event>) {
        if let Some(change) = self.governor.close_packets() {
            self.fullest.packets = 0.0;
            self.act(change, "the last packet view was closed", now, out);
        }
    }

    fn why_cpu(&self, used: f64) -> String {
        format!(
            "the agent and its programs took {:.2} % of the node's CPU time, the budget is {} % (ORB8_CPU_BUDGET)",
            100.0 * used,
            percent(self.board.state().budgets.cpu),
        )
    }

    fn why_memory(&self, used: u64) -> String {
        format!(
            "the agent and its maps take {}, the budget is {} (ORB8_MEMORY_BUDGET)",
            format::bytes(used),
            format::bytes(self.board.state().budgets.memory_bytes),
        )
    }

    /// Does what the judge says, and tells it.
    fn act(&mut self, change: Change, why: &str, now: Instant, out: &mut Vec<Event>) {
        let now_ns = self.clock.monotonic_ns();
        if !change.back {
            self.forward.note(change.cause, now_ns);
        }
        let before = self.board.state().sentences;
        let held = self.hold();
        if change.cause == Cause::Memory && !change.back {
            self.forgets = Some(self.hands.drains.ask());
        }
        let level = self.governor.level();
        let (cause, since_ns) = self.forward.holds(&self.governor).unwrap_or(("calm", now_ns));
        self.board.update(|state| {
            (state.level, state.cause, state.since_ns) = (level, cause, since_ns);
            state.steps += 1;
        });
        if !change.felt && level > 0 && matches!(held, Held::AsBefore) {
            return;
        }
        let sentences = self.board.state().sentences;
        let now_so = match held {
            Held::Refused(error) => refused(&error, &before, &sentences, change.back),
            Held::AsBefore | Held::Changed => what_holds(&sentences, change.back),
        };
        if self.may_tell(change, now) {
            let withheld = std::mem::take(&mut self.withheld);
            out.push(Event::Notice(notice(change.back, why, &now_so, withheld)));
        } else {
            self.withheld += 1;
        }
    }

    /// Asks the programs again for what they refused, and tells when they do it.
    fn try_again(&mut self, out: &mut Vec<Event>) {
        if matches!(self.hold(), Held::Changed) {
            let sentences = self.board.state().sentences;
            let now_so = what_holds(&sentences, false);
            let why = "the programs do what they refused";
            out.push(Event::Notice(notice(sentences.is_empty(), why, &now_so, 0)));
        }
    }

    /// Sees to it that what the judge says is given up is, and shows what holds.
    fn hold(&mut self) -> Held {
        let wanted = self.governor.given();
        if wanted == self.given {
            return Held::AsBefore;
        }
        let (given, result) = self.hands.give(self.given, wanted);
        self.given = given;
        self.show();
        result.map_or_else(Held::Refused, |()| Held::Changed)
    }

    /// Shows what holds.
    fn show(&self) {
        let (given, sentences) = (self.given, self.hands.sentences(self.given));
        let drain_interval = self.hands.drain_interval_kept();
        let history = given.history(self.hands.history);
        self.board.update(|state| {
            (state.given, state.sentences) = (given, sentences);
            (state.drain_interval, state.history) = (drain_interval, history);
        });
    }

    /// Gives back what the flows took that were forgotten for a step of memory, once they are.
    fn give_back(&mut self) {
        if self.forgets.is_some_and(|request| self.hands.drains.served() >= request) {
            self.forgets = None;
            (self.hands.give_back)();
        }
    }

    /// That nothing is given up any more is always told.
    fn may_tell(&mut self, change: Change, now: Instant) -> bool {
        let is_of_ring = matches!(change.cause, Cause::EventRing | Cause::PacketRing);
        let is_all_clear = change.back && self.governor.level() == 0;
        let allowance =
            if is_of_ring && !change.back { &mut self.of_rings } else { &mut self.of_load };
        is_all_clear || allowance.spend(now)
    }
}

/// A share of a whole as the settings write it, without what binary fractions leave.
fn percent(part: f64) -> f64 {
    (1e6 * part).round() / 1e4
}

/// What came of a step.
enum Held {
    /// What was given up before still is, and nothing else.
    AsBefore,
    /// Something else is given up now.
    Changed,
    /// The programs do not do their part.
    Refused(io::Error),
}

/// What is given up from now on.
fn what_holds(sentences: &[String], back: bool) -> String {
    match (sentences.is_empty(), back) {
        (true, _) => "nothing is given up any more".to_owned(),
        (false, false) => format!("from now on {}", sentences.join("; ")),
        (false, true) => format!("something is taken back, and still {}", sentences.join("; ")),
    }
}

/// That the programs refused their part, and what is given up all the same.
fn refused(error: &io::Error, before: &[String], sentences: &[String], back: bool) -> String {
    let refused =
        format!("the programs cannot be asked to tell less or more, which is tried again: {error}");
    match sentences {
        [] => refused,
        _ if sentences == before => format!("{refused}; still {}", sentences.join("; ")),
        _ => format!("{refused}; {}", what_holds(sentences, back)),
    }
}

fn notice(back: bool, why: &str, now_so: &str, withheld: u64) -> Notice {
    let more = match withheld {
        0 => String::new(),
        1 => " (1 step before was not told)".to_owned(),
        steps => format!(" ({steps} steps before were not told)"),
    };
    let message = format!("{why}: {now_so}{more}");
    if back {
        Notice { severity: Severity::Info, code: "governor_back", message }
    } else {
        Notice { severity: Severity::Warning, code: "governor_step", message }
    }
}

impl EventSource for GovernorSource {
    fn name(&self) -> &'static str {
        "governor"
    }

    fn wakeup(&self) -> Wakeup<'_> {
        let pressed = self.governor.is_pressed(self.rings.fullest());
        let rings = pressed.then_some(self.ring_pause);
        let opening = (!self.opening.is_empty()).then_some(self.rings_judged);
        let closed = self.rings.has_closed().then_some(self.rings_judged);
        let due = [Some(self.due), opening, rings, closed, self.meter.due()];
        Wakeup { fd: None, due: due.into_iter().flatten().min() }
    }

    fn collect(&mut self, now: Instant, out: &mut Vec<Event>) -> Result<(), SourceError> {
        out.extend(self.opening.drain(..).map(Event::Notice));
        if self.rings.take_closed() {
            self.close_packets(now, out);
        }
        if now >= self.due {
            self.due = now + self.interval;
            self.judge(now, out);
        } else if now >= self.ring_pause && self.governor.is_pressed(self.rings.fullest()) {
            self.judge_rings(now, out);
        }
        self.meter.advance(now);
        Ok(())
    }

    fn finish(&mut self, _out: &mut Vec<Event>) -> Result<(), SourceError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
