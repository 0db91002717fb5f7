//! The way of an event: source, filter, enricher, processor, exporter, and the runner that moves
//! it. Knows no feature; keeps the ledgers.

pub mod enricher;
pub mod exporter;
pub mod filter;
pub mod ledger;
pub mod losses;
pub mod on_demand;
pub mod processor;
pub mod runner;
pub mod source;
