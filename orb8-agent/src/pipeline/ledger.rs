//! The two ledgers: where every packet and every lifecycle event went.
//!
//! Packets: `seen = reported + filtered + rejected + lost`, with `seen` counted by the hooks
//! before anything else. Events: `produced = processed + rejected + lost`; what is deferred to a drain
//! is not produced. Nothing here is computed from what it is compared with.
//!
//! Counting goes on while the kernel's counters and lines are read, so a drain is bracketed: the
//! counters are read before (`before`) and after (`after`) the lines. A packet is counted as seen
//! first and where it went last, within one run of a program. Hence
//! - everything seen at the previous drain's `before` has been accounted for by this drain's end:
//!   less is a shortfall;
//! - everything accounted for before the lines were read was seen by `after`: more is an excess;
//! - if nothing was counted since the previous drain's `after`, both sides are equal.
//!
//! A shortfall or excess beside running traffic must persist over two drains, because packets and
//! bytes of a line are not read in one go; in silence the first one counts.

use std::collections::BTreeMap;

use orb8_common::counter::{
    COLD_PATH_PACKETS, EVENTS_DEFERRED, EVENTS_LOST, EVENTS_PRODUCED, FILTERED, Filtered,
    GSO_HEADER_BYTES, LOST, Lost, PADDING_BYTES, REJECTED, Reject, SEEN_BYTES, SEEN_PACKETS,
    SEGMENT_EXCESS,
};

use crate::event::{Counters, DrainReport, LossRecord, Volume};
use crate::pipeline::losses::{self, LossLog};

/// What one batch adds to the ledger.
#[derive(Debug, Default)]
pub struct Tally {
    /// Counted by lines and kept by the filters.
    pub counted: Volume,
    /// Dropped by filters, by reason.
    pub filtered: Vec<(&'static str, Volume)>,
    /// Of what was counted now or earlier: lost by a processor.
    pub lost: Vec<LossRecord>,
    /// Lifecycle events taken from the ring.
    pub events: u64,
}

impl Tally {
    /// Notes what a filter dropped.
    pub fn filter(&mut self, reason: &'static str, volume: Volume) {
        match self.filtered.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, sum)) => sum.add(volume),
            None => self.filtered.push((reason, volume)),
        }
    }

    /// Notes what a processor lost.
    pub fn lose(&mut self, loss: LossRecord) {
        losses::add(&mut self.lost, loss);
    }

    fn clear(&mut self) {
        self.counted = Volume::default();
        self.filtered.clear();
        self.lost.clear();
        self.events = 0;
    }
}

/// Whether both sides of a ledger agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Balance {
    /// They do, as far as running traffic allows to tell.
    #[default]
    Balanced,
    /// They do not.
    Unbalanced {
        /// Packets (or lifecycle events) missing, or too many if negative.
        count: i64,
        /// Bytes missing, or too many if negative.
        bytes: i64,
    },
}

/// The packet ledger as of the last drain.
#[derive(Clone, Debug, Default)]
pub struct PacketSummary {
    /// Counted by the hooks first.
    pub seen: Volume,
    /// Reached the flow table and stayed.
    pub reported: Volume,
    /// Dropped by filters, by reason.
    pub filtered: Vec<(&'static str, Volume)>,
    /// Not parsed, by reason.
    pub rejected: Vec<(&'static str, Volume)>,
    /// Lost, by stage and reason; `unattached` lies outside `seen`.
    pub lost: Vec<LossRecord>,
    /// Seen and not yet drained.
    pub in_flight: Volume,
    /// Whether it adds up.
    pub balance: Balance,
    /// Packets whose headers took the slow path.
    pub cold_path_packets: u64,
}

/// The event ledger as of the last drain.
#[derive(Clone, Debug, Default)]
pub struct EventSummary {
    /// Told by the kernel programs.
    pub produced: u64,
    /// Taken from the ring.
    pub processed: u64,
    /// Taken from the ring and not decodable.
    pub rejected: u64,
    /// Did not fit into the ring.
    pub ring_lost: u64,
    /// Not produced, but left to the drain, which found their flows.
    pub deferred: u64,
    /// Whether it adds up.
    pub balance: Balance,
}

/// Failures of one source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceFailures {
    /// How often it failed.
    pub count: u64,
    /// The last failure, until it succeeds again.
    pub current: Option<String>,
}

/// Both ledgers.
#[derive(Debug, Default)]
pub struct Ledger {
    counted: Volume,
    filtered: BTreeMap<&'static str, Volume>,
    processor_lost: Vec<LossRecord>,
    events: u64,
    last: DrainReport,
    /// Losses by the kernel and before attaching that were told already.
    told: Vec<LossRecord>,
    /// What processors lost since the last drain.
    fresh: Vec<LossRecord>,
    packet_suspect: bool,
    event_suspect: bool,
    packets_balance: Balance,
    events_balance: Balance,
    log: LossLog,
    failures: BTreeMap<&'static str, SourceFailures>,
}

impl Ledger {
    /// Takes in what a batch counted and empties the tally.
    pub fn apply(&mut self, tally: &mut Tally) {
        self.counted.add(tally.counted);
        for (reason, volume) in &tally.filtered {
            self.filtered.entry(reason).or_default().add(*volume);
        }
        for loss in &tally.lost {
            losses::add(&mut self.processor_lost, *loss);
            losses::add(&mut self.fresh, *loss);
        }
        self.events = self.events.saturating_add(tally.events);
        tally.clear();
    }

    /// Closes a drain, whose counts must have been applied; gives what was lost since the last.
    pub fn close_drain(&mut self, report: &DrainReport) -> Vec<LossRecord> {
        self.check_packets(report);
        self.check_events(report);
        let mut fresh = std::mem::take(&mut self.fresh);
        for total in source_losses(report) {
            let told = self
                .told
                .iter()
                .find(|told| told.stage == total.stage && told.reason == total.reason);
            let volume = told.map_or(total.volume, |told| total.volume.beyond(told.volume));
            let events = total.events.saturating_sub(told.map_or(0, |told| told.events));
            losses::add(&mut fresh, LossRecord { volume, events, ..total });
        }
        self.told = source_losses(report);
        self.log.note(self.last.time_ns, report.time_ns, &fresh);
        self.last = report.clone();
        fresh
    }

    /// Notes that a source failed; true if it had not failed the last time.
    pub fn source_failed(&mut self, source: &'static str, message: String) -> bool {
        let failures = self.failures.entry(source).or_default();
        failures.count += 1;
        failures.current.replace(message).is_none()
    }

    /// Notes that a source succeeded; true if it had failed the last time.
    pub fn source_succeeded(&mut self, source: &'static str) -> bool {
        self.failures.get_mut(source).is_some_and(|failures| failures.current.take().is_some())
    }

    /// Sources that have failed, by name.
    pub fn failures(&self) -> impl Iterator<Item = (&'static str, &SourceFailures)> {
        self.failures.iter().map(|(name, failures)| (*name, failures))
    }

    /// What was lost between two times (CLOCK_MONOTONIC nanoseconds).
    #[must_use]
    pub fn lost_between(&self, from_ns: u64, to_ns: u64) -> Vec<LossRecord> {
        let mut sum = self.log.between(from_ns, to_ns);
        if to_ns >= self.last.time_ns {
            for loss in &self.fresh {
                losses::add(&mut sum, *loss);
            }
        }
        sum
    }

    /// Packets seen as of the last drain.
    #[must_use]
    pub fn seen(&self) -> Volume {
        seen(&self.last.after)
    }

    /// When the last drain began (CLOCK_MONOTONIC nanoseconds), and what was seen by then; 0 and nothing
    /// before the first.
    #[must_use]
    pub fn seen_before(&self) -> (u64, Volume) {
        (self.last.time_ns, seen(&self.last.before))
    }

    /// Whether the packet ledger and the event ledger add up, as of the last drain.
    #[must_use]
    pub const fn balances(&self) -> (Balance, Balance) {
        (self.packets_balance, self.events_balance)
    }

    /// The packet ledger as of the last drain.
    #[must_use]
    pub fn packets(&self) -> PacketSummary {
        let mut lost: Vec<_> =
            source_losses(&self.last).into_iter().filter(|loss| loss.events == 0).collect();
        for loss in &self.processor_lost {
            losses::add(&mut lost, *loss);
        }
        lost.sort_by_key(|loss| (loss.stage, loss.reason));
        let rejected = Reject::ALL
            .map(|reason| (reason.name(), pair(&self.last.after, REJECTED + 2 * reason as usize)));
        PacketSummary {
            seen: self.seen(),
            reported: self.counted.beyond(total(&self.processor_lost)),
            filtered: self.all_filtered(),
            rejected: rejected.into_iter().filter(|(_, volume)| !volume.is_empty()).collect(),
            lost,
            in_flight: self.seen().beyond(self.accounted(&self.last.after)),
            balance: self.packets_balance,
            cold_path_packets: self.last.after.0[COLD_PATH_PACKETS],
        }
    }

    /// The event ledger; `processed` is of this moment, the rest of the last drain.
    #[must_use]
    pub fn events(&self) -> EventSummary {
        EventSummary {
            produced: self.last.after.0[EVENTS_PRODUCED],
            processed: self.events,
            rejected: self.last.undecodable,
            ring_lost: self.last.after.0[EVENTS_LOST],
            deferred: self.last.after.0[EVENTS_DEFERRED],
            balance: self.events_balance,
        }
    }

    /// Left out by the stages and in the kernel, by reason.
    fn all_filtered(&self) -> Vec<(&'static str, Volume)> {
        let kernel = Filtered::ALL
            .map(|reason| (reason.name(), pair(&self.last.after, FILTERED + 2 * reason as usize)));
        let kernel = kernel.into_iter().filter(|(_, volume)| !volume.is_empty());
        let stages = self.filtered.iter().map(|(reason, volume)| (*reason, *volume));
        let mut all: Vec<_> = stages.chain(kernel).collect();
        all.sort_by_key(|(reason, _)| *reason);
        all
    }

    /// Everything that is known to have gone somewhere, with the kernel's share as of `counters`.
    fn accounted(&self, counters: &Counters) -> Volume {
        let mut sum = self.counted;
        for volume in self.filtered.values() {
            sum.add(*volume);
        }
        for reason in Reject::ALL {
            sum.add(pair(counters, REJECTED + 2 * reason as usize));
        }
        for reason in Lost::ALL {
            sum.add(pair(counters, LOST + 2 * reason as usize));
        }
        for reason in Filtered::ALL {
            sum.add(pair(counters, FILTERED + 2 * reason as usize));
        }
        sum
    }

    fn check_packets(&mut self, report: &DrainReport) {
        let settled = self.accounted(&report.after);
        if is_quiet(&self.last, report) {
            self.packet_suspect = false;
            self.packets_balance = balance(gap(most_seen(&report.after, &report.after), settled));
            return;
        }
        let shortfall = gap(least_seen(&self.last.before, &report.after), settled);
        let excess = gap(most_seen(&report.after, &report.before), self.accounted(&report.before));
        let missing = (shortfall.0.max(0), shortfall.1.max(0));
        let surplus = (excess.0.min(0), excess.1.min(0));
        let found = if missing == (0, 0) { surplus } else { missing };
        let suspect = std::mem::replace(&mut self.packet_suspect, found != (0, 0));
        // What is out of balance stays so until silence proves otherwise: running traffic hides a
        // small difference, it does not mend it.
        if suspect && found != (0, 0) {
            self.packets_balance = balance(found);
        }
    }

    fn check_events(&mut self, report: &DrainReport) {
        let at = |counters: &Counters, index: usize| counters.0[index];
        let settled = |lost: u64| i128::from(self.events + report.undecodable) + i128::from(lost);
        let produced = i128::from(at(&report.after, EVENTS_PRODUCED));
        let quiet = [&self.last.after, &report.before]
            .iter()
            .all(|counters| at(counters, EVENTS_PRODUCED) == at(&report.after, EVENTS_PRODUCED));
        let missing = produced - settled(at(&report.after, EVENTS_LOST));
        let surplus = produced - settled(at(&report.before, EVENTS_LOST));
        // The ring is read apart from the lines: what was produced in the last interval may still
        // be on its way, so only silence over a whole interval proves that something is missing.
        let found = if quiet { missing } else { surplus.min(0) };
        let suspect = std::mem::replace(&mut self.event_suspect, found != 0);
        if found == 0 {
            if quiet {
                self.events_balance = Balance::Balanced;
            }
        } else if suspect {
            self.events_balance = Balance::Unbalanced { count: clamp(found), bytes: 0 };
        }
    }
}

fn is_quiet(last: &DrainReport, report: &DrainReport) -> bool {
    last.after == report.before && report.before == report.after
}

fn seen(counters: &Counters) -> Volume {
    let (packets, bytes) = most_seen(counters, counters);
    let whole = |value: i128| u64::try_from(value.max(0)).unwrap_or(u64::MAX);
    Volume { packets: whole(packets), bytes: whole(bytes) }
}

/// The most packets and bytes that can have been seen when `late` was read, `early` before it.
fn most_seen(late: &Counters, early: &Counters) -> (i128, i128) {
    (i128::from(late.0[SEEN_PACKETS]) - excess(late).min(excess(early)), bytes(late, early))
}

/// The least packets and bytes that were seen when `early` was read, `late` after it.
fn least_seen(early: &Counters, late: &Counters) -> (i128, i128) {
    (i128::from(early.0[SEEN_PACKETS]) - excess(late).max(excess(early)), bytes(early, late))
}

/// Bytes seen, what adds taken from one reading and what subtracts from another.
fn bytes(adding: &Counters, subtracting: &Counters) -> i128 {
    i128::from(adding.0[SEEN_BYTES]) + i128::from(adding.0[GSO_HEADER_BYTES])
        - i128::from(subtracting.0[PADDING_BYTES])
}

/// The correction of the number of segments, which goes in both directions.
fn excess(counters: &Counters) -> i128 {
    counters.0[SEGMENT_EXCESS].cast_signed().into()
}

fn pair(counters: &Counters, index: usize) -> Volume {
    Volume { packets: counters.0[index], bytes: counters.0[index + 1] }
}

fn total(losses: &[LossRecord]) -> Volume {
    let mut sum = Volume::default();
    for loss in losses {
        sum.add(loss.volume);
    }
    sum
}

/// What sources lost in total, by stage and reason.
fn source_losses(report: &DrainReport) -> Vec<LossRecord> {
    let mut found = Vec::new();
    for reason in Lost::ALL {
        let volume = pair(&report.after, LOST + 2 * reason as usize);
        losses::add(&mut found, losses::of_packets("hook", reason.name(), volume));
    }
    let unattached = Volume { packets: report.unattached_packets, bytes: report.unattached_bytes };
    losses::add(&mut found, losses::of_packets("unattached", "not_attached", unattached));
    let ring = report.after.0[EVENTS_LOST];
    losses::add(&mut found, losses::of_events("ring", "ring_full", ring));
    losses::add(&mut found, losses::of_events("ring", "undecodable", report.undecodable));
    found
}

fn gap((packets, bytes): (i128, i128), found: Volume) -> (i128, i128) {
    (packets - i128::from(found.packets), bytes - i128::from(found.bytes))
}

fn balance((packets, bytes): (i128, i128)) -> Balance {
    if (packets, bytes) == (0, 0) {
        return Balance::Balanced;
    }
    Balance::Unbalanced { count: clamp(packets), bytes: clamp(bytes) }
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

#[cfg(test)]
mod tests;
