//! What the agent's programs cost a packet under a load, by the kernel's own statistics of run time: net
//! of a program that only counts its runs, on a link beside the agent's in the same time.

use std::os::fd::OwnedFd;
use std::time::Instant;

use super::figures::Cost;
use crate::bpf::{self, Foreign, Hook, Place};
use crate::fdinfo::{self, Runs};
use crate::flood::{BATCH, Flood, Small};
use crate::link::{Veth, VethOptions};

/// Fewer runs between two looks say nothing; of a batch some may still be on their way.
const LEAST: u64 = BATCH as u64 / 4;

/// The program that the agent's are compared with, and what keeps it busy.
#[derive(Debug)]
pub(super) struct Beside {
    empty: Foreign,
    flood: Flood,
    _link: Veth,
    _statistics: OwnedFd,
}

/// All runs so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    at: Instant,
    agent: Runs,
    empty: Runs,
}

impl Beside {
    /// Makes the kernel keep statistics until this ends.
    pub(super) fn start() -> anyhow::Result<Self> {
        let link = Veth::quiet(VethOptions::default());
        let (near, far) = (&link.near, &link.far);
        let empty = Foreign::attach(&near.netns, &near.ifname, Hook::Ingress, Place::First, -1);
        let flood = Flood::open(far, near);
        Ok(Self { empty, flood, _link: link, _statistics: bpf::keep_statistics()? })
    }

    /// Reads the statistics of both, after as many packets for the one beside as make a figure.
    pub(super) fn look(&mut self, agent: u32) -> anyhow::Result<Look> {
        self.flood.send(std::iter::repeat_n(Small::unique(0), BATCH));
        let (agent, empty) = (fdinfo::runs_on_packets(agent)?, self.empty.run_time()?);
        Ok(Look { at: Instant::now(), agent, empty })
    }
}

/// What a run cost between two looks each, of those within some time.
pub(super) fn cost(looks: &[Look], from: Instant, to: Instant) -> Cost {
    let within: Vec<&Look> = looks.iter().filter(|look| (from..=to).contains(&look.at)).collect();
    let pairs = within.windows(2);
    let grown =
        pairs.map(|pair| (pair[1].agent.since(pair[0].agent), pair[1].empty.since(pair[0].empty)));
    let (agent, empty): (Vec<Runs>, Vec<Runs>) = grown.unzip();
    let each = |all: &[Runs]| -> Vec<f64> {
        let enough = all.iter().filter(|runs| runs.count >= LEAST);
        enough.filter_map(|runs| runs.each()).collect()
    };
    Cost::of(&each(&agent), &each(&empty))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn runs_count_between_looks_within_the_load_that_saw_enough_of_them() {
        let start = Instant::now();
        let at = |second: u64| start + Duration::from_secs(second);
        let look = |second, agent: (u64, u64), empty: u64| Look {
            at: at(second),
            agent: Runs { ns: agent.0, count: agent.1 },
            empty: Runs { ns: empty * 60, count: empty },
        };
        let looks = [
            look(0, (0, 0), 0),
            look(1, (9_000_000, 1_000), 256),
            look(2, (9_100_000, 2_000), 512),
            // Too few to say something.
            look(3, (9_900_000, 2_001), 768),
            look(4, (10_020_000, 3_001), 1_024),
            look(5, (99_000_000, 4_001), 1_280),
        ];
        let cost = cost(&looks, at(1), at(4));
        assert_eq!((cost.looks, cost.empty_ns, cost.surely_ns), (2, 60.0, 40.0));
        assert_eq!(cost.median_ns, 60.0);
        assert_eq!(super::cost(&looks, at(7), at(9)).looks, 0);
    }
}
