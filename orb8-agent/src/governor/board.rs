//! What the governor measured and gave up last, for whoever shows it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::{Basis, Budgets, Given, Measured};
use crate::datapath::RingFill;

/// What stands on the board.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// The budgets.
    pub budgets: Budgets,
    /// What was measured over the last interval; none before the first has passed.
    pub measured: Option<Measured>,
    /// Bytes, resident and maps, when it was looked last.
    pub memory_bytes: u64,
    /// How the programs' share of it is known.
    pub basis: Basis,
    /// Nanoseconds that a packet costs in the programs, as far as it is not measured.
    pub packet_ns: f64,
    /// The fullest that the rings were over the last interval, or since if one filled.
    pub rings: RingFill,
    /// What is given up.
    pub given: Given,
    /// How many steps are taken.
    pub level: usize,
    /// What is given up, a sentence each.
    pub sentences: Vec<String>,
    /// The budget for which the last step further was taken that was not taken back yet; `calm` if all
    /// were, empty if none was taken.
    pub cause: &'static str,
    /// CLOCK_MONOTONIC nanoseconds of that step, or of the last step back; 0 if none was taken.
    pub since_ns: u64,
    /// Steps so far, in both directions.
    pub steps: u64,
    /// The time between drains, as it was kept when it was looked last.
    pub drain_interval: Duration,
    /// How long ended flows are kept now.
    pub history: Duration,
}

impl State {
    /// Nothing measured and nothing given up.
    #[must_use]
    pub fn new(budgets: Budgets, drain_interval: Duration, history: Duration) -> Self {
        Self {
            budgets,
            measured: None,
            memory_bytes: 0,
            basis: Basis::Estimated,
            packet_ns: super::meter::PACKET_NS,
            rings: RingFill::default(),
            given: Given::NOTHING,
            level: 0,
            sentences: Vec::new(),
            cause: "",
            since_ns: 0,
            steps: 0,
            drain_interval,
            history,
        }
    }
}

/// Holds the state.
#[derive(Debug)]
pub struct Board(Mutex<State>);

impl Board {
    /// With this on it.
    #[must_use]
    pub const fn new(state: State) -> Self {
        Self(Mutex::new(state))
    }

    /// What stands on it now.
    #[must_use]
    pub fn state(&self) -> State {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes what stands on it.
    pub fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
