//! What is particular to network flows: which of them a filter means, their order, and the
//! conversations that they are parts of.

mod canonical;
pub mod conversations;
pub mod filter;
pub mod sort;
