//! Network flows on the command line: the verbs `flows` and `trace network`.

pub mod args;
pub mod explain;
pub mod filter_args;
pub mod flows;
pub mod rows;
pub mod trace;
