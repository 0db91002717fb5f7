//! Pure helpers that the agent, the query client and the command line share: how numbers, durations,
//! times, addresses, protocols and CPU times are written and read, and what samples say.
//!
//! Nothing here does input or output, asks the clock or the environment, or knows orb8's messages.
#![forbid(unsafe_code)]

pub mod cpu;
pub mod duration;
pub mod format;
pub mod icmp;
pub mod net;
pub mod protocol;
pub mod stats;
pub mod text;
pub mod time;
