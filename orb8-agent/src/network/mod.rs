//! Network flows: what differs from other features. Knows nothing of other features.

pub mod decode;
pub mod feed;
pub mod filter;
pub mod keys;
pub mod nearest;
pub mod query;
pub mod table;
pub mod totals;
pub mod unmatched;
pub mod view;
pub mod wire;
