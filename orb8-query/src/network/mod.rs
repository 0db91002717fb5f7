//! What is particular to network flows: which of them a filter means, and their order.

pub mod filter;
pub mod sort;
