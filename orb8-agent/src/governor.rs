//! How the agent stays within its budgets: what it gives up, in which order, and when it takes it back.
//!
//! Pure: it is told what was measured over an interval and says which level holds from then on. It
//! never touches what flows count; what it gives up is time between drains and lifecycle events.

use std::time::Duration;

/// What the agent may use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budgets {
    /// Of all the node's CPUs together, 0 to 1 (ORB8_CPU_BUDGET).
    pub cpu: f64,
    /// Bytes, resident and maps (ORB8_MEMORY_BUDGET).
    pub memory_bytes: u64,
    /// Of a ring, 0 to 1 (ORB8_SAMPLING_THRESHOLD).
    pub ring: f64,
}

impl Default for Budgets {
    fn default() -> Self {
        Self { cpu: 0.01, memory_bytes: 96 << 20, ring: 0.8 }
    }
}

/// What was measured over an interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// How long it was.
    pub interval: Duration,
    /// The node's CPUs.
    pub cpus: u32,
    /// CPU time of the agent's threads.
    pub user: Duration,
    /// CPU time of the programs in the kernel.
    pub programs: Duration,
    /// Bytes, resident and maps, at its end.
    pub memory_bytes: u64,
    /// The fullest that a ring was, 0 to 1.
    pub ring: f64,
}

impl Measured {
    /// CPU time as a share of what the node's CPUs had; 0 for an interval of no length.
    #[must_use]
    pub fn cpu(&self) -> f64 {
        let had = self.interval.as_secs_f64() * f64::from(self.cpus.max(1));
        if had > 0.0 { (self.user + self.programs).as_secs_f64() / had } else { 0.0 }
    }
}

/// What is given up at a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// The drain interval is so many times the set one.
    pub drain_interval: u32,
    /// Changes of TCP state are not told; starts and ends are.
    pub fewer_events: bool,
    /// Of events that are not critical, one of so many is told.
    pub sampling: u32,
}

/// The levels, in the order in which they are taken. Each halves at most what costs most.
pub const LEVELS: [Level; 9] = [
    Level { drain_interval: 1, fewer_events: false, sampling: 1 },
    Level { drain_interval: 2, fewer_events: false, sampling: 1 },
    Level { drain_interval: 4, fewer_events: false, sampling: 1 },
    Level { drain_interval: 4, fewer_events: true, sampling: 1 },
    Level { drain_interval: 4, fewer_events: true, sampling: 2 },
    Level { drain_interval: 4, fewer_events: true, sampling: 4 },
    Level { drain_interval: 4, fewer_events: true, sampling: 8 },
    Level { drain_interval: 4, fewer_events: true, sampling: 16 },
    Level { drain_interval: 4, fewer_events: true, sampling: 32 },
];

/// Taking a step back may double the cost, so less than this part of a budget must be used before.
const CALM: f64 = 0.45;
/// How long it must have been calm.
const CALM_FOR: Duration = Duration::from_secs(10);

/// Which budget was exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// CPU time.
    Cpu,
    /// Memory.
    Memory,
    /// A ring was nearly full.
    Ring,
    /// None: it has been calm for a while.
    Calm,
}

/// The level has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The number of the level from now on, in [`LEVELS`].
    pub level: usize,
    /// Why.
    pub cause: Cause,
}

/// Holds the budgets.
#[derive(Clone, Debug)]
pub struct Governor {
    budgets: Budgets,
    level: usize,
    calm_for: Duration,
}

impl Governor {
    /// Nothing given up yet.
    #[must_use]
    pub const fn new(budgets: Budgets) -> Self {
        Self { budgets, level: 0, calm_for: Duration::ZERO }
    }

    /// What is given up now.
    #[must_use]
    pub const fn level(&self) -> Level {
        LEVELS[self.level]
    }

    /// Judges an interval: one step further at once if a budget was exceeded, one step back after a
    /// while of calm. None if all stays as it is.
    pub fn judge(&mut self, measured: &Measured) -> Option<Change> {
        if let Some(cause) = self.exceeded(measured) {
            self.calm_for = Duration::ZERO;
            if self.level + 1 == LEVELS.len() {
                return None;
            }
            self.level += 1;
            return Some(Change { level: self.level, cause });
        }
        if self.level == 0 || !self.is_calm(measured) {
            self.calm_for = Duration::ZERO;
            return None;
        }
        self.calm_for = self.calm_for.saturating_add(measured.interval);
        if self.calm_for < CALM_FOR {
            return None;
        }
        self.calm_for = Duration::ZERO;
        self.level -= 1;
        Some(Change { level: self.level, cause: Cause::Calm })
    }

    fn exceeded(&self, measured: &Measured) -> Option<Cause> {
        if measured.cpu() > self.budgets.cpu {
            Some(Cause::Cpu)
        } else if measured.memory_bytes > self.budgets.memory_bytes {
            Some(Cause::Memory)
        } else if measured.ring > self.budgets.ring {
            Some(Cause::Ring)
        } else {
            None
        }
    }

    /// Memory comes with traffic and not with levels: it need only be within its budget.
    fn is_calm(&self, measured: &Measured) -> bool {
        measured.cpu() < CALM * self.budgets.cpu && measured.ring < CALM * self.budgets.ring
    }
}

/// Lets one of so many events through, each with the number of events that it stands for: the sum of
/// these and what is still to be told for is exactly what was offered.
#[derive(Clone, Debug, Default)]
pub struct Sampler {
    untold: u64,
}

impl Sampler {
    /// Offers an event; gives what it stands for if it is to be told. Critical ones (SYN, FIN, RST,
    /// first packets) always are, and stand for themselves alone.
    pub fn offer(&mut self, critical: bool, sampling: u32) -> Option<u64> {
        if critical {
            return Some(1);
        }
        self.untold += 1;
        (self.untold >= u64::from(sampling.max(1))).then(|| std::mem::take(&mut self.untold))
    }

    /// Events that no event stands for yet.
    #[must_use]
    pub const fn untold(&self) -> u64 {
        self.untold
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A second on one CPU, with so much of it used.
    fn second(cpu: f64) -> Measured {
        Measured {
            interval: Duration::from_secs(1),
            cpus: 1,
            user: Duration::from_secs_f64(cpu / 2.0),
            programs: Duration::from_secs_f64(cpu / 2.0),
            memory_bytes: 0,
            ring: 0.0,
        }
    }

    fn governor() -> Governor {
        Governor::new(Budgets::default())
    }

    #[test]
    fn each_budget_that_is_exceeded_takes_one_step_and_is_named() {
        for (measured, cause) in [
            (second(0.02), Cause::Cpu),
            (Measured { memory_bytes: 97 << 20, ..second(0.0) }, Cause::Memory),
            (Measured { ring: 0.9, ..second(0.0) }, Cause::Ring),
        ] {
            assert_eq!(governor().judge(&measured), Some(Change { level: 1, cause }));
        }
        let of_two_cpus = Measured { cpus: 2, ..second(0.015) };
        assert_eq!(governor().judge(&of_two_cpus), None, "the budget is the node's");
    }

    #[test]
    fn what_was_given_up_comes_back_after_calm_and_not_after_a_lull() {
        let mut governor = governor();
        governor.judge(&second(0.02));
        for _ in 0..9 {
            assert_eq!(governor.judge(&second(0.001)), None);
        }
        assert_eq!(governor.judge(&second(0.008)), None, "within the budget and not calm");
        for _ in 0..9 {
            assert_eq!(governor.judge(&second(0.001)), None);
        }
        let back = Some(Change { level: 0, cause: Cause::Calm });
        assert_eq!(governor.judge(&second(0.001)), back);
        assert_eq!(governor.level(), LEVELS[0]);
    }

    #[test]
    fn levels_only_ever_give_up_more() {
        for pair in LEVELS.windows(2) {
            let [a, b] = [pair[0], pair[1]];
            assert!(
                b.drain_interval >= a.drain_interval && b.drain_interval <= 2 * a.drain_interval
            );
            assert!(b.fewer_events || !a.fewer_events);
            assert!(b.sampling >= a.sampling && b.sampling <= 2 * a.sampling);
        }
    }

    proptest! {
        /// A load that stays as it is: whatever part of the cost, up to half, a step saves, the level
        /// is found and then kept.
        #[test]
        fn a_steady_load_finds_its_level_and_stays(
            cost in 0.0_f64..0.1,
            saved in prop::array::uniform8(0.0_f64..=0.5),
        ) {
            let mut governor = governor();
            let cost_at = |level: usize| saved[..level].iter().fold(cost, |cost, part| cost * (1.0 - part));
            for _ in 0..LEVELS.len() {
                governor.judge(&second(cost_at(governor.level)));
            }
            let found = governor.level;
            for _ in 0..100 {
                prop_assert_eq!(governor.judge(&second(cost_at(governor.level))), None);
            }
            prop_assert!(cost_at(found) <= 0.01 || found + 1 == LEVELS.len());
        }

        /// Whatever is measured, a level is one of the list, and changes are of one step.
        #[test]
        fn steps_are_single(
            measured in prop::collection::vec((0.0_f64..0.03, 0_u64..128, 0.0_f64..=1.0, 0_u64..20), 0..200),
        ) {
            let mut governor = governor();
            for (cpu, mib, ring, seconds) in measured {
                let before = governor.level;
                let interval = Duration::from_secs(seconds);
                let change = governor.judge(&Measured {
                    interval,
                    memory_bytes: mib << 20,
                    ring,
                    ..second(cpu * seconds as f64)
                });
                prop_assert!(governor.level < LEVELS.len());
                prop_assert_eq!(change.map_or(before, |change| change.level), governor.level);
                prop_assert!(before.abs_diff(governor.level) <= 1);
            }
        }

        /// However the sampling changes meanwhile, nothing is counted twice or forgotten.
        #[test]
        fn what_samples_stand_for_adds_up(
            offered in prop::collection::vec((any::<bool>(), 0_u32..40), 0..500),
        ) {
            let mut sampler = Sampler::default();
            let mut told = 0;
            for (critical, sampling) in &offered {
                let stands_for = sampler.offer(*critical, *sampling);
                prop_assert!(!critical || stands_for == Some(1));
                told += stands_for.unwrap_or(0);
            }
            prop_assert_eq!(told + sampler.untold(), offered.len() as u64);
        }
    }
}
