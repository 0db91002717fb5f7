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

/// However often a step had to be taken again, no more calm than this is waited for before it is taken
/// back.
const MOST_CALM: Duration = Duration::from_secs(300);

/// Where somebody stands between giving up nothing and all that there is.
#[derive(Clone, Debug)]
pub(super) struct Ladder {
    step: usize,
    end: usize,
    calm_for: Duration,
    /// So long a calm is waited for now: some steps save nearly all of what costs, and then the calm
    /// says nothing of what comes when they are taken back.
    wait: Duration,
    calm: Duration,
    /// Since the last step back; none if one further was taken since.
    since_back: Option<Duration>,
}

impl Ladder {
    /// At the beginning; `end` steps can be taken, and one back after so long a calm.
    pub(super) const fn new(end: usize, calm_for: Duration) -> Self {
        let calm = Duration::ZERO;
        Self { step: 0, end, calm_for, wait: calm_for, calm, since_back: None }
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
        self.since_back = self.since_back.map(|since| since.saturating_add(interval));
        if load != Load::Calm {
            self.calm = Duration::ZERO;
        }
        match load {
            Load::Over if !self.is_at_end() => {
                self.step += 1;
                self.learn();
                Some(Step::Further)
            }
            Load::Calm if self.step > 0 => {
                self.calm = self.calm.saturating_add(interval);
                if self.calm < self.wait {
                    return None;
                }
                self.calm = Duration::ZERO;
                self.step -= 1;
                if self.since_back.replace(Duration::ZERO).is_some() {
                    // The one before it has held.
                    self.wait = self.calm_for;
                }
                Some(Step::Back)
            }
            Load::Over | Load::Within | Load::Calm => None,
        }
    }

    /// Takes all steps back at once, and forgets how often they were needed; none if none was taken.
    pub(super) const fn reset(&mut self) -> Option<Step> {
        let taken = self.step > 0;
        *self = Self::new(self.end, self.calm_for);
        if taken { Some(Step::Back) } else { None }
    }

    /// Notes how long the last step back has held, now that one further is taken.
    fn learn(&mut self) {
        if let Some(held) = self.since_back.take() {
            let too_soon = held <= self.wait;
            let longer = self.wait.saturating_mul(2).min(MOST_CALM).max(self.calm_for);
            self.wait = if too_soon { longer } else { self.calm_for };
        }
    }
}
