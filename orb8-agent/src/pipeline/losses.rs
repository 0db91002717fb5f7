//! What was lost, when: so that an answer for an interval names the loss of that interval.
//!
//! Bounded: when there are too many entries, the oldest two become one with a longer interval,
//! so an old interval may be charged with a neighbour's loss, but a loss is never forgotten.

use std::collections::VecDeque;

use crate::event::{LossRecord, Volume};

/// Entries kept.
const ENTRIES: usize = 256;

/// Losses by the interval in which they happened.
#[derive(Debug, Default)]
pub struct LossLog {
    entries: VecDeque<Entry>,
}

#[derive(Debug)]
struct Entry {
    from_ns: u64,
    to_ns: u64,
    losses: Vec<LossRecord>,
}

impl LossLog {
    /// Notes what was lost after `from_ns` and not after `to_ns` (CLOCK_MONOTONIC).
    pub fn note(&mut self, from_ns: u64, to_ns: u64, losses: &[LossRecord]) {
        if losses.is_empty() {
            return;
        }
        self.entries.push_back(Entry { from_ns, to_ns, losses: losses.to_vec() });
        if self.entries.len() > ENTRIES
            && let Some(oldest) = self.entries.pop_front()
            && let Some(next) = self.entries.front_mut()
        {
            next.from_ns = oldest.from_ns;
            for loss in oldest.losses {
                add(&mut next.losses, loss);
            }
        }
    }

    /// What was lost between the two times, both included, summed by stage and reason.
    #[must_use]
    pub fn between(&self, from_ns: u64, to_ns: u64) -> Vec<LossRecord> {
        let mut sum = Vec::new();
        for entry in &self.entries {
            if entry.to_ns >= from_ns && entry.from_ns <= to_ns {
                for loss in &entry.losses {
                    add(&mut sum, *loss);
                }
            }
        }
        sum.sort_by_key(|loss| (loss.stage, loss.reason));
        sum
    }
}

/// Adds a loss to a list that holds one entry a stage and reason.
pub fn add(sum: &mut Vec<LossRecord>, loss: LossRecord) {
    let known =
        sum.iter_mut().find(|other| other.stage == loss.stage && other.reason == loss.reason);
    match known {
        Some(known) => {
            known.volume.add(loss.volume);
            known.events = known.events.saturating_add(loss.events);
        }
        None if loss.volume.is_empty() && loss.events == 0 => {}
        None => sum.push(loss),
    }
}

/// A loss in words for a person: how much, where, why.
#[must_use]
pub fn describe(loss: &LossRecord) -> String {
    let LossRecord { stage, reason, volume, events } = loss;
    let mut lost = Vec::new();
    if !volume.is_empty() {
        lost.push(format!("{} packets ({} bytes)", volume.packets, volume.bytes));
    }
    if *events != 0 {
        lost.push(format!("{events} events"));
    }
    format!("{stage} lost {}: {reason}", lost.join(" and "))
}

/// A loss of packets.
#[must_use]
pub const fn of_packets(stage: &'static str, reason: &'static str, volume: Volume) -> LossRecord {
    LossRecord { stage, reason, volume, events: 0 }
}

/// A loss of lifecycle events.
#[must_use]
pub const fn of_events(stage: &'static str, reason: &'static str, events: u64) -> LossRecord {
    LossRecord { stage, reason, volume: Volume { packets: 0, bytes: 0 }, events }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(events: u64) -> LossRecord {
        of_events("ring", "ring_full", events)
    }

    #[test]
    fn an_interval_is_charged_with_what_overlaps_it() {
        let mut log = LossLog::default();
        log.note(0, 10, &[ring(1)]);
        log.note(
            10,
            20,
            &[ring(2), of_packets("hook", "index_full", Volume { packets: 3, bytes: 9 })],
        );
        log.note(30, 40, &[ring(4)]);
        let events = |from, to| log.between(from, to).iter().map(|loss| loss.events).sum::<u64>();
        assert_eq!(events(0, u64::MAX), 7);
        assert_eq!(events(0, 5), 1);
        assert_eq!(events(11, 29), 2);
        assert_eq!(events(21, 29), 0);
        assert_eq!(events(41, 50), 0);
        assert_eq!(log.between(15, 15).len(), 2);
    }

    #[test]
    fn a_loss_is_told_with_amount_place_and_reason() {
        let volume = Volume { packets: 3, bytes: 9 };
        let both = LossRecord { events: 2, ..of_packets("hook", "index_full", volume) };
        assert_eq!(describe(&both), "hook lost 3 packets (9 bytes) and 2 events: index_full");
        assert_eq!(describe(&ring(7)), "ring lost 7 events: ring_full");
    }

    #[test]
    fn a_full_log_forgets_no_loss() {
        let mut log = LossLog::default();
        for time in 0..2_000 {
            log.note(time, time + 1, &[ring(1)]);
        }
        assert_eq!(log.entries.len(), ENTRIES);
        assert_eq!(log.between(0, u64::MAX), [ring(2_000)]);
        assert_eq!(log.between(1_999, u64::MAX).len(), 1);
    }
}
