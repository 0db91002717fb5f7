//! The kernel side of the agent: load, attach, drain, ring. The only place with `unsafe` besides
//! `gpu/nvml`. A layer: it never imports a feature.
#![allow(missing_debug_implementations, reason = "aya's typed maps have none")]

pub mod attach;
mod attached;
mod btf;
pub mod chain;
pub mod clock;
pub mod clsact;
pub mod cpus;
pub mod datapath;
pub mod exchange;
pub mod grace;
pub mod hook;
pub mod kernel;
pub mod lines;
pub mod load;
pub mod mapping;
pub mod memory;
pub mod meter;
pub mod netlink;
pub mod object;
mod owner_walk;
mod patch;
pub mod pod_links;
pub mod ring;
pub mod select;
pub mod side_channel;
mod socket_plane;
pub mod sys;
mod worker;
