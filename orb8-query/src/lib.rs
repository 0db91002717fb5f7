//! One client for one or many orb8 agents: asks them all, merges their answers in an order that
//! does not depend on who answered first, and says who did not answer and what was lost.
//!
//! Reads saved flows with the same filters. Knows no command line, no terminal and no exit code;
//! never retries or reconnects behind the caller's back.
#![forbid(unsafe_code)]

pub mod answer;
pub mod client;
pub mod error;
pub mod file;
pub mod network;
pub mod rows;
pub mod stream;

pub use answer::{FlowAnswer, StatusAnswer};
pub use client::Client;
pub use error::{AgentError, ErrorKind};
