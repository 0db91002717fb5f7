//! Programs of the benchmark, built into an object of their own that no agent loads.
#![no_std]
#![no_main]

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::macros::{cgroup_skb, classifier, map};
use aya_ebpf::maps::{Array, ProgramArray};
use aya_ebpf::programs::{SkBuffContext, TcContext};

/// The program behind the rotation: the probe or the empty one.
#[map]
static TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// `[counter, flows]`: the next flow, and how many there are.
#[map]
static ROTATION: Array<[u32; 2]> = Array::with_max_entries(1, 0);

/// What a program costs that does nothing.
#[classifier]
pub fn bench_empty(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// What a program at a socket costs that does nothing.
#[cgroup_skb(ingress)]
pub fn bench_empty_in(_ctx: SkBuffContext) -> i32 {
    1
}

/// The same where the socket sends.
#[cgroup_skb(egress)]
pub fn bench_empty_out(_ctx: SkBuffContext) -> i32 {
    1
}

/// Makes each run another flow of an IPv4 TCP or UDP packet.
#[classifier]
pub fn bench_rotate_v4(ctx: TcContext) -> i32 {
    rotate(&ctx, 14 + 12, 14 + 20)
}

/// Makes each run another flow of an IPv6 TCP or UDP packet.
#[classifier]
pub fn bench_rotate_v6(ctx: TcContext) -> i32 {
    rotate(&ctx, 14 + 8 + 12, 14 + 40)
}

/// Writes the flow's number into the low bits of the source address and into the source port.
#[inline(always)]
fn rotate(ctx: &TcContext, address: usize, port: usize) -> i32 {
    let Some(rotation) = ROTATION.get_ptr_mut(0) else { return TC_ACT_UNSPEC };
    let (data, end) = (ctx.data(), ctx.data_end());
    if data + port + 2 > end {
        return TC_ACT_UNSPEC;
    }
    // SAFETY: a value in the map, written by this CPU alone; the offsets are within the packet.
    unsafe {
        let n = (*rotation)[0];
        (*rotation)[0] = if n + 1 >= (*rotation)[1] { 0 } else { n + 1 };
        // Spread, so that neighbours in number are not neighbours in the table.
        *((data + address) as *mut u32) = n.wrapping_mul(0x9e37_79b1);
        *((data + port) as *mut u16) = n as u16;
        let _ = TARGET.tail_call(ctx, 0);
    }
    TC_ACT_UNSPEC
}

/// As in the probes.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: the verifier refuses any program that could reach this.
    unsafe { core::hint::unreachable_unchecked() }
}
