//! Steps up at once, and down after calm. Pure.

use std::time::Duration;

/// How much of a budget is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    /// More than all of it.
    Over,
    /// Too much to take a step back.
    Within,
    /// Little enough.
    Calm,
}

impl Load {
    /// Of what is used, the budget, and the part of it below which it is calm.
    pub(super) fn of(used: f64, budget: f64, calm: f64) -> Self {
        if used > budget {
            Self::Over
        } else if used < calm * budget {
            Self::Calm
        } else {
            Self::Within
        }
    }
}

/// Which way a step went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// More is given up.
    Further,
    /// Something is taken back.
    Back,
}

/// Where somebody stands between giving up nothing and all that there is.
#[derive(Clone, Debug)]
pub(super) struct Ladder {
    step: usize,
    end: usize,
    calm_for: Duration,
    calm: Duration,
}

impl Ladder {
    /// At the beginning; `end` steps can be taken, and one back after so long a calm.
    pub(super) const fn new(end: usize, calm_for: Duration) -> Self {
        Self { step: 0, end, calm_for, calm: Duration::ZERO }
    }

    /// How many steps are taken.
    pub(super) const fn step(&self) -> usize {
        self.step
    }

    /// Nothing more can be given up.
    pub(super) const fn is_at_end(&self) -> bool {
        self.step == self.end
    }

    /// Judges an interval.
    pub(super) fn judge(&mut self, load: Load, interval: Duration) -> Option<Step> {
        if load != Load::Calm {
            self.calm = Duration::ZERO;
        }
        match load {
            Load::Over if !self.is_at_end() => {
                self.step += 1;
                Some(Step::Further)
            }
            Load::Calm if self.step > 0 => {
                self.calm = self.calm.saturating_add(interval);
                if self.calm < self.calm_for {
                    return None;
                }
                self.calm = Duration::ZERO;
                self.step -= 1;
                Some(Step::Back)
            }
            Load::Over | Load::Within | Load::Calm => None,
        }
    }
}
