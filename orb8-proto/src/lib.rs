//! The outer contract of orb8: the gRPC API `orb8.v1` and its Rust types.
//!
//! `src/generated` is written by `cargo xtask gen-proto` and checked in, so that nobody who builds
//! orb8 needs protoc. Nothing here depends on kernel layouts; `wire.rs` and `rows.rs` convert.
#![forbid(unsafe_code)]

/// Types and services of the package `orb8.v1`.
#[allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    clippy::all,
    clippy::clone_on_ref_ptr,
    clippy::allow_attributes_without_reason,
    clippy::cast_possible_truncation,
    clippy::clone_on_ref_ptr,
    clippy::too_many_lines,
    reason = "generated"
)]
pub mod v1 {
    include!("generated/orb8.v1.rs");
}

/// The encoded `FileDescriptorSet` of `orb8.v1`, for the reflection service.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("generated/orb8.v1.bin");
