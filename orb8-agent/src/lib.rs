//! The orb8 node agent as a library.

pub mod ebpf;
pub mod event;
pub mod pipeline;
