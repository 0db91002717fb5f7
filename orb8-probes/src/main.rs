//! The eBPF programs of orb8: a list of modules, the licence and the panic handler.
//!
//! Programs only observe. Each is a thin shell over a function of a feature; parsing lives in
//! `orb8-common`, so that the host tests what the kernel runs.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![allow(
    internal_features,
    reason = "the target claims no compare-and-swap, which core's own atomics ask for"
)]

mod atomic;
mod cache;
mod cpu;
mod hook;
mod hooks;
mod ledger;
mod lifecycle;
mod maps;
mod network;
mod packets;
mod skb;
mod sockets;
mod supplement;
mod table;

/// The kernel allows GPL-only helpers to programs that say so.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: the verifier refuses any program that could reach this.
    unsafe { core::hint::unreachable_unchecked() }
}
