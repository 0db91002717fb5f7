//! The kernel side of the agent: load, attach, drain, ring. The only place with `unsafe` besides
//! `gpu/nvml`. A layer: it never imports a feature.
#![allow(missing_debug_implementations, reason = "aya's typed maps have none")]

pub mod load;
pub mod mapping;
pub mod memory;
pub mod object;
pub mod sys;
