//! Where records go: streams, logs, later metrics.

use std::time::Instant;

use crate::event::Told;

/// Tells records to somebody.
///
/// An exporter never slows the pipeline: it queues, and what finds no room is its own loss, which
/// it counts and tells.
pub trait EventExporter: Send {
    /// Takes records in their order, without waiting.
    fn export(&mut self, told: &[Told]);

    /// Called once before the end: hands over what is queued, until the deadline at most.
    fn finish(&mut self, deadline: Instant);
}
