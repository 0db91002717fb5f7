//! Writes to the log what an operator wants there: notices, losses, and with `debug` flow ends
//! and drains. Rate-limited, because a log must not become the load.

use std::time::Instant;

use tracing::{Level, debug, enabled, error, info, warn};

use crate::event::{DrainMark, FlowRecord, LossRecord, Notice, Severity, Told, Volume};
use crate::pipeline::exporter::EventExporter;

/// Lines of one kind between two drains.
const LINES_PER_DRAIN: u32 = 100;

/// A loss that goes on is logged this often, summed.
const LOSS_EVERY_NS: u64 = 60_000_000_000;

/// The exporter that logs.
#[derive(Debug, Default)]
pub struct LogExporter {
    ends: Budget,
    notices: Budget,
    losses: Vec<OpenLoss>,
}

/// A loss of one stage and reason.
#[derive(Debug)]
struct OpenLoss {
    /// Not logged yet.
    sum: LossRecord,
    /// CLOCK_MONOTONIC nanoseconds before which it is not logged again.
    quiet_until_ns: u64,
}

/// Lines that may still be written before the next drain.
#[derive(Debug)]
struct Budget {
    left: u32,
    withheld: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { left: LINES_PER_DRAIN, withheld: 0 }
    }
}

impl Budget {
    fn spend(&mut self) -> bool {
        if self.left == 0 {
            self.withheld += 1;
            return false;
        }
        self.left -= 1;
        true
    }

    /// Starts anew and gives what was withheld.
    fn renew(&mut self) -> u64 {
        self.left = LINES_PER_DRAIN;
        std::mem::take(&mut self.withheld)
    }
}

impl EventExporter for LogExporter {
    fn export(&mut self, told: &[Told]) {
        for told in told {
            match told {
                Told::FlowEnd(flow) => self.flow_end(flow),
                Told::Notice(notice) => self.notice(notice),
                Told::Loss(loss) => self.lose(loss),
                Told::Drained(mark) => self.drained(mark),
                Told::FlowStart(_) | Told::Packet(_) => {}
            }
        }
    }

    fn finish(&mut self, _deadline: Instant) {}
}

impl LogExporter {
    fn flow_end(&mut self, flow: &FlowRecord) {
        if enabled!(Level::DEBUG) && self.ends.spend() {
            let FlowRecord { flow_id, packets, bytes, state, .. } = flow;
            debug!(flow_id, flow = %flow.id, packets, bytes, ?state, "A flow ended.");
        }
    }

    fn notice(&mut self, notice: &Notice) {
        if !self.notices.spend() {
            return;
        }
        let Notice { code, message, .. } = notice;
        match notice.severity {
            Severity::Info => info!(code, "{message}"),
            Severity::Warning => warn!(code, "{message}"),
            Severity::Error => error!(code, "{message}"),
        }
    }

    fn lose(&mut self, loss: &LossRecord) {
        let same =
            |open: &&mut OpenLoss| open.sum.stage == loss.stage && open.sum.reason == loss.reason;
        match self.losses.iter_mut().find(same) {
            Some(open) => {
                open.sum.volume.add(loss.volume);
                open.sum.events = open.sum.events.saturating_add(loss.events);
            }
            None => self.losses.push(OpenLoss { sum: *loss, quiet_until_ns: 0 }),
        }
    }

    /// The losses that are to be logged now.
    fn due_losses(&mut self, now_ns: u64) -> Vec<LossRecord> {
        let due = self.losses.iter_mut().filter(|open| {
            open.quiet_until_ns <= now_ns && (open.sum.events > 0 || !open.sum.volume.is_empty())
        });
        due.map(|open| {
            open.quiet_until_ns = now_ns.saturating_add(LOSS_EVERY_NS);
            let rest = LossRecord { volume: Volume::default(), events: 0, ..open.sum };
            std::mem::replace(&mut open.sum, rest)
        })
        .collect()
    }

    fn drained(&mut self, mark: &DrainMark) {
        self.due_losses(mark.time_ns).iter().for_each(log_loss);
        let withheld = self.notices.renew();
        if withheld > 0 {
            warn!(withheld, "More notices came than the log takes.");
        }
        let withheld_ends = self.ends.renew();
        let DrainMark { epoch, lines_in_use, .. } = mark;
        debug!(epoch, lines_in_use, withheld_ends, "A drain is complete.");
    }
}

fn log_loss(loss: &LossRecord) {
    let LossRecord { stage, reason, volume, events } = loss;
    warn!(
        stage,
        reason,
        packets = volume.packets,
        bytes = volume.bytes,
        events,
        "Something was lost; answers for this time say so."
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_logged_at_once_and_then_summed_once_a_minute() {
        let mut log = LogExporter::default();
        let loss = |events| crate::pipeline::losses::of_events("ring", "ring_full", events);
        log.lose(&loss(2));
        assert_eq!(log.due_losses(1), [loss(2)]);
        log.lose(&loss(3));
        log.lose(&loss(4));
        assert!(log.due_losses(LOSS_EVERY_NS).is_empty());
        assert_eq!(log.due_losses(LOSS_EVERY_NS + 1), [loss(7)]);
        assert!(log.due_losses(3 * LOSS_EVERY_NS).is_empty(), "nothing was lost since");
    }

    #[test]
    fn a_budget_withholds_what_is_over_and_says_how_much() {
        let mut budget = Budget::default();
        let written = (0..LINES_PER_DRAIN + 7).filter(|_| budget.spend()).count();
        assert_eq!(written, LINES_PER_DRAIN as usize);
        assert_eq!(budget.renew(), 7);
        assert!(budget.spend());
        assert_eq!(budget.renew(), 0);
    }
}
