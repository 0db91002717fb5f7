//! Layouts that the kernel programs and the agent share, and the header parser that both run.
//!
//! | module | content | size |
//! |---|---|---|
//! | [`network`] | [`network::FlowKey`] | 40 bytes |
//! | | [`network::FlowLine`] | 64 bytes |
//! | | [`network::FlowMeta`] | 32 bytes |
//! | | [`network::FlowEvent`] | 88 bytes |
//! | [`cache`] | [`cache::CachedLine`] | 64 bytes |
//! | | [`cache::CpuBlock`] | 4096 bytes and the sets |
//! | [`index`] | [`index::Group`] | 64 bytes |
//! | [`counter`] | indices of the per-CPU counters | |
//! | [`parse`] | the header parser | |
//! | [`record`] | ring records read back | |
//! | [`sample`] | which packets are told while packets are sampled | |
//! | [`setting`] | constants that the loader fills in | |
//!
//! Rules: `no_std`, fixed-width fields, no `bool`, no hidden padding; sizes and offsets are
//! asserted beside each type. Numbers are in the CPU's byte order unless a field says otherwise.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod cache;
pub mod counter;
pub mod index;
pub mod network;
pub mod parse;
pub mod record;
pub mod sample;
pub mod setting;
