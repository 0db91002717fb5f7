//! The orb8 node agent as a library, so that tests can run its parts in one process.
//!
//! `main.rs` reads settings and exits; `agent` puts the parts together; everything else is a part.

pub mod agent;
pub mod capture;
pub mod cgroup;
pub mod clock;
pub mod config;
pub mod conntrack;
pub mod datapath;
pub mod ebpf;
pub mod event;
pub mod export;
pub mod governor;
pub mod host;
pub mod k8s;
pub mod network;
pub mod pipeline;
pub mod preflight;
pub mod shutdown;
pub mod status;
pub mod telemetry;
#[doc(hidden)]
pub mod testing;
