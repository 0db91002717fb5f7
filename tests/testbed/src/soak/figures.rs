//! What a scenario is judged by: figures and the limits that they are held to. Nothing here measures.

use crate::flow::Total;

/// Bytes in a mebibyte.
pub const MIB: u64 = 1 << 20;

/// Everything that one scenario found.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Its name, as in `--only`.
    pub name: String,
    /// How long the load went on.
    pub seconds: f64,
    /// What was sent.
    pub offered: Offered,
    /// Where the agent says that it went.
    pub account: Account,
    /// Where the kernel's events went.
    pub events: EventAccount,
    /// Those who watched live.
    pub subscribers: Vec<SubscriberAccount>,
    /// Memory of the agent and its maps.
    pub memory: Memory,
    /// How the agent answered meanwhile.
    pub answers: Answers,
    /// How it came to rest afterwards.
    pub recovery: Recovery,
    /// What the programs cost a packet.
    pub cost: Cost,
    /// What the traffic paid, where it is a rate.
    pub pace: Option<Pace>,
    /// What was wrong by the scenario's own measure.
    pub faults: Vec<String>,
}

/// What was sent.
#[derive(Clone, Debug, Default)]
pub struct Offered {
    /// What the interface that the agent watches carried, or the sockets sent and were given, by the kernel's
    /// own counters.
    pub total: Total,
    /// Flows that were begun, if that is counted.
    pub flows: Option<u64>,
    /// Connections that were opened, if there were any.
    pub connections: Option<u64>,
}

/// The packet ledger of an agent at rest.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// Counted by the programs first.
    pub seen: Total,
    /// In the flow table.
    pub reported: Total,
    /// Left out on purpose.
    pub filtered: Total,
    /// Not to be parsed.
    pub rejected: Total,
    /// Lost, by place; `unattached` lies outside `seen`.
    pub lost: Vec<Lost>,
    /// Seen and not drained.
    pub in_flight: Total,
    /// What the agent itself says of it.
    pub state: String,
    /// The same once more, a drain later; `None` if it was the same.
    pub moved: Option<String>,
}

/// A loss.
#[derive(Clone, Debug, Default)]
pub struct Lost {
    /// Where.
    pub stage: String,
    /// Why.
    pub reason: String,
    /// How much.
    pub total: Total,
}

impl Account {
    /// All that was lost of what was seen.
    #[must_use]
    pub fn lost(&self) -> Total {
        let mut sum = Total::default();
        for lost in self.lost.iter().filter(|lost| lost.stage != "unattached") {
            sum.add(lost.total.packets, lost.total.bytes);
        }
        sum
    }

    /// All that it accounts for.
    #[must_use]
    pub fn accounted(&self) -> Total {
        let mut sum = self.lost();
        for part in [self.reported, self.filtered, self.rejected] {
            sum.add(part.packets, part.bytes);
        }
        sum
    }
}

/// The event ledger of an agent at rest.
#[derive(Clone, Debug, Default)]
pub struct EventAccount {
    /// Told by the programs.
    pub produced: u64,
    /// Taken from the ring.
    pub processed: u64,
    /// Taken and not understood.
    pub rejected: u64,
    /// Did not fit.
    pub lost: u64,
    /// What the agent itself says of it.
    pub state: String,
}

/// One subscriber.
#[derive(Clone, Debug, Default)]
pub struct SubscriberAccount {
    /// Events that happened meanwhile.
    pub offered: u64,
    /// Handed over.
    pub delivered: u64,
    /// Not asked for.
    pub filtered: u64,
    /// Did not fit into its queue.
    pub lost: u64,
    /// Still in its queue.
    pub queued: u64,
}

/// Resident memory and kernel maps, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// The most that there was.
    pub max: u64,
    /// The most that there may be.
    pub limit: u64,
    /// The median of the second quarter of the load.
    pub early: u64,
    /// The median of its last quarter.
    pub late: u64,
    /// How much the late one may be above the early one; `None`: not held to that.
    pub growth_limit: Option<u64>,
}

impl Memory {
    /// How much it grew.
    #[must_use]
    pub fn growth(&self) -> i64 {
        self.late.cast_signed() - self.early.cast_signed()
    }
}

/// Questions to the agent from the first packet to the end of the recovery.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// Asked in all.
    pub asked: u64,
    /// The slowest answer.
    pub max_ms: f64,
    /// 99 of 100 were no slower.
    pub p99_ms: f64,
    /// The slowest that an answer may be.
    pub limit_ms: f64,
    /// Why there was no answer, each time.
    pub failed: Vec<String>,
}

/// From the end of the load until a new flow is counted whole, and answers are complete.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recovery {
    /// `None`: it did not.
    pub seconds: Option<f64>,
    /// The longest that it may be.
    pub limit: f64,
}

/// Time for a packet where the agent watches, against a link beside it at which a program only counts its
/// runs. Both are sent to in turns.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// Turns.
    pub pairs: usize,
    /// Median nanoseconds for a packet on the link that is watched.
    pub watched_ns: f64,
    /// The same on the other link.
    pub alone_ns: f64,
    /// Three quarters of the turns cost at least so much more, in nanoseconds for a packet.
    pub surely_more_ns: f64,
    /// The most that this may be; `None`: not held to that.
    pub limit_ns: Option<f64>,
}

impl Pace {
    /// Throughput with an agent, as a share of that without.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        if self.watched_ns > 0.0 { self.alone_ns / self.watched_ns } else { 0.0 }
    }
}

/// Run time of the agent's programs for a packet, by the kernel's statistics, net of a program that only
/// counts its runs. In nanoseconds, from one look to the next.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Times between two looks that had enough packets.
    pub looks: usize,
    /// The median.
    pub median_ns: f64,
    /// Three quarters of them cost at least so much.
    pub surely_ns: f64,
    /// The median of the program that only counts, with what the statistics themselves take.
    pub empty_ns: f64,
    /// How often as much as the program that only counts three quarters of them may cost at least: both
    /// suffer alike from what else the machine does. `None`: not held to that.
    pub limit: Option<f64>,
}

impl Cost {
    /// The most that three quarters of them may cost at least, here and now.
    #[must_use]
    pub fn limit_ns(&self) -> Option<f64> {
        self.limit.map(|times| times * self.empty_ns)
    }

    /// From what runs of both kinds took.
    #[must_use]
    pub fn of(agent: &[f64], empty: &[f64]) -> Self {
        let at = |part: usize, figures: &[f64]| {
            let mut all = figures.to_vec();
            all.sort_by(f64::total_cmp);
            all.get(all.len() * part / 4).copied().unwrap_or(0.0)
        };
        let empty_ns = at(2, empty);
        Self {
            looks: if empty.is_empty() { 0 } else { agent.len() },
            median_ns: at(2, agent) - empty_ns,
            surely_ns: at(1, agent) - empty_ns,
            empty_ns,
            limit: None,
        }
    }
}

impl Pace {
    /// What turns on both links say: nanoseconds for a packet, watched and not.
    #[must_use]
    pub fn of(turns: &[(f64, f64)], limit_ns: Option<f64>) -> Self {
        let at = |part: usize, figure: fn(&(f64, f64)) -> f64| {
            let mut all: Vec<f64> = turns.iter().map(figure).collect();
            all.sort_by(f64::total_cmp);
            all.get(all.len() * part / 4).copied().unwrap_or(0.0)
        };
        Self {
            pairs: turns.len(),
            watched_ns: at(2, |turn| turn.0),
            alone_ns: at(2, |turn| turn.1),
            surely_more_ns: at(1, |turn| turn.0 - turn.1),
            limit_ns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_packet_costs_is_what_three_quarters_of_the_turns_show() {
        // One turn in four says nothing: somebody else had the core.
        let turns = [(1_100.0, 1_000.0), (1_050.0, 900.0), (1_200.0, 1_080.0), (900.0, 2_000.0)];
        let pace = Pace::of(&turns, None);
        assert_eq!((pace.pairs, pace.surely_more_ns), (4, 100.0));
        assert_eq!((pace.watched_ns, pace.alone_ns), (1_100.0, 1_080.0));
        assert_eq!(pace.ratio(), 1_080.0 / 1_100.0);
    }

    #[test]
    fn turns_that_were_never_taken_say_nothing() {
        assert_eq!(Pace::of(&[], Some(1.0)).pairs, 0);
        assert_eq!(Pace::default().ratio(), 0.0);
    }
}
