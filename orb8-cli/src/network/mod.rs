//! Network flows on the command line: the verbs `flows` and `trace network`.

pub mod args;
pub mod columns;
pub mod conversations;
pub mod ends;
pub mod explain;
pub mod filter_args;
mod flags;
pub mod flows;
pub mod legend;
pub mod names;
pub mod rows;
pub mod trace;
