//! What is made of events: tables, totals, and the records that exporters tell.
//!
//! A processor is pure: no I/O, no clock, no error. What it cannot keep it counts as lost.

use crate::event::Told;
use crate::pipeline::enricher::EnrichedEvent;
use crate::pipeline::ledger::Tally;

/// Makes records of events.
pub trait EventProcessor: Send {
    /// Takes back that those events are wanted of which it has kept all that enrichers could add.
    /// Asked before they are enriched, if no other processor may want it.
    fn spare(&self, _events: &mut [EnrichedEvent]) {}

    /// Takes events in their order; what is to be told and counted goes to `output`.
    fn process(&mut self, events: &[EnrichedEvent], output: &mut Output);

    /// Called once before the end: nothing more will be processed.
    fn finish(&mut self, time_ns: u64, output: &mut Output);
}

/// What processors give to the runner.
#[derive(Debug, Default)]
pub struct Output {
    /// For the exporters, in order.
    pub told: Vec<Told>,
    /// For the ledger.
    pub tally: Tally,
}
