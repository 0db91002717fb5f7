//! The governor at work, as a source of notices: measures now and then, judges, acts, and says so.

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
/// A minute, in which so many notices of steps are told, and one of those for rings.
const MINUTE: Duration = Duration::from_secs(60);
const NOTICES: u32 = 30;

/// What the governor acts on.
pub struct Hands {
    /// How often the lines are read.
    pub drains: Arc<Drains>,
    /// What the programs tell.
    pub datapath: Option<Arc<dyn Datapath>>,
    /// Keeps ended flows for so long from now on, and gives memory back.
    pub keep_history: Box<dyn Fn(Duration) + Send>,
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
    fn give(&self, before: Given, given: Given) {
        self.drains.stretch(given.intervals);
        if let Some(datapath) = &self.datapath {
            let fewer_events = u32::from(given.fewer_events);
            datapath.spare(Sparing { sampling: given.sampling, fewer_events });
        }
        if given.history_part != before.history_part {
            (self.keep_history)(given.history(self.history));
        }
    }

    /// What is given up, a sentence each.
    fn sentences(&self, given: Given) -> Vec<String> {
        let seconds = |time: Duration| time.as_secs_f64();
        let mut sentences = Vec::new();
        if given.intervals > 1 {
            sentences.push(format!(
                "counters are read every {} s instead of every {} s",
                seconds(self.drains.stretched(self.drain_interval)),
                seconds(self.drain_interval)
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
        if given.history_part != 1 {
            sentences.push(format!(
                "ended flows are kept for {} s instead of {} s",
                seconds(given.history(self.history)),
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
    withheld: u64,
}

impl Allowance {
    const fn new(of_a_minute: u32) -> Self {
        Self { of_a_minute, since: None, left: 0, withheld: 0 }
    }

    /// How many were withheld before this one; none if this one is too.
    fn spend(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= MINUTE) {
            (self.since, self.left) = (Some(now), self.of_a_minute);
        }
        if self.left == 0 {
            self.withheld += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.withheld))
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
    /// When load and rings are judged next.
    due: Instant,
    /// When they were judged last.
    judged: Instant,
    /// Before it no further step is taken for a ring.
    ring_pause: Instant,
    of_load: Allowance,
    of_rings: Allowance,
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
        Self {
            governor,
            meter,
            hands,
            board,
            clock,
            rings: rings.unwrap_or_default(),
            interval,
            due: if opening.is_empty() { now + interval } else { now },
            judged: now,
            ring_pause: now,
            of_load: Allowance::new(NOTICES),
            of_rings: Allowance::new(1),
            opening,
        }
    }

    /// Judges what was measured over the interval.
    fn judge(&mut self, now: Instant, out: &mut Vec<Event>) {
        let since = now.saturating_duration_since(self.judged);
        self.judged = now;
        let before = self.governor.given();
        let measured = self.meter.measure(now);
        let fill = self.rings.take();
        let (basis, packet_ns) = self.meter.basis();
        self.board.update(|state| {
            (state.measured, state.rings) = (measured.or(state.measured), fill);
            (state.basis, state.packet_ns) = (basis, packet_ns);
        });
        if let Some(measured) = measured {
            for change in self.governor.judge_load(&measured) {
                let why = match change.cause {
                    Cause::Cpu => self.why_cpu(measured.cpu()),
                    _ => self.why_memory(measured.memory_bytes),
                };
                self.act(before, change, &why, now, out);
            }
        }
        self.judge_rings(fill, since, now, out);
    }

    fn judge_rings(
        &mut self,
        fill: RingFill,
        interval: Duration,
        now: Instant,
        out: &mut Vec<Event>,
    ) {
        let before = self.governor.given();
        for change in self.governor.judge_rings(fill, interval) {
            self.ring_pause = now + RING_PAUSE;
            let (name, fill) = match change.cause {
                Cause::EventRing => ("events", fill.events),
                _ => ("packets", fill.packets),
            };
            let why = format!(
                "the ring of {name} was {:.0} % full, the threshold is {} % (ORB8_SAMPLING_THRESHOLD)",
                100.0 * fill,
                100.0 * self.board.state().budgets.ring,
            );
            self.act(before, change, &why, now, out);
        }
    }

    fn why_cpu(&self, used: f64) -> String {
        format!(
            "the agent and its programs took {:.2} % of the node's CPU time, the budget is {} % (ORB8_CPU_BUDGET)",
            100.0 * used,
            100.0 * self.board.state().budgets.cpu,
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
    fn act(
        &mut self,
        before: Given,
        change: Change,
        why: &str,
        now: Instant,
        out: &mut Vec<Event>,
    ) {
        let given = self.governor.given();
        self.hands.give(before, given);
        let sentences = self.hands.sentences(given);
        let level = self.governor.level();
        let since_ns = self.clock.monotonic_ns();
        let drain_interval = self.hands.drains.stretched(self.hands.drain_interval);
        let history = given.history(self.hands.history);
        self.board.update(|state| {
            (state.given, state.level, state.since_ns) = (given, level, since_ns);
            (state.drain_interval, state.history) = (drain_interval, history);
            state.sentences.clone_from(&sentences);
            state.cause = if change.back { "calm" } else { change.cause.word() };
            state.steps += 1;
        });
        let is_of_ring = matches!(change.cause, Cause::EventRing | Cause::PacketRing);
        let allowance = if is_of_ring { &mut self.of_rings } else { &mut self.of_load };
        if let Some(withheld) = allowance.spend(now) {
            out.push(Event::Notice(notice(change, why, &sentences, withheld)));
        }
    }
}

fn notice(change: Change, why: &str, sentences: &[String], withheld: u64) -> Notice {
    let now = match (sentences.is_empty(), change.back) {
        (true, _) => "nothing is given up any more".to_owned(),
        (false, false) => format!("from now on {}", sentences.join("; ")),
        (false, true) => format!("something is taken back, and still {}", sentences.join("; ")),
    };
    let more = match withheld {
        0 => String::new(),
        1 => " (1 step before was not told)".to_owned(),
        steps => format!(" ({steps} steps before were not told)"),
    };
    let message = format!("{why}: {now}{more}");
    if change.back {
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
        let due = [Some(self.due), rings, self.meter.due()];
        Wakeup { fd: None, due: due.into_iter().flatten().min() }
    }

    fn collect(&mut self, now: Instant, out: &mut Vec<Event>) -> Result<(), SourceError> {
        out.extend(self.opening.drain(..).map(Event::Notice));
        if now >= self.due {
            self.due = now + self.interval;
            self.judge(now, out);
        } else if now >= self.ring_pause && self.governor.is_pressed(self.rings.fullest()) {
            // It is no time of calm for anybody.
            let fill = self.rings.take();
            self.judge_rings(fill, Duration::ZERO, now, out);
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
