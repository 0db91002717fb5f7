//! Programs of the benchmark, built into an object of their own that no agent loads.
#![no_std]
#![no_main]

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::{cgroup_skb, classifier, map};
use aya_ebpf::maps::{Array, ProgramArray};
use aya_ebpf::programs::{SkBuffContext, TcContext};

/// The program behind the rotation: the probe or the empty one.
#[map]
static TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// `[state, flows, draw, bits]`: where the rotation stands, how many flows there are, how the next one
/// is drawn, and the binary logarithm of their number.
#[map]
static ROTATION: Array<[u32; 4]> = Array::with_max_entries(1, 0);

/// How the next flow is drawn: the packet stays as it is.
const SAME: u32 = 0;
/// One after the other.
const IN_TURN: u32 = 1;
/// Each as likely as any other.
const UNIFORM: u32 = 2;
// Else as often as one over its rank.

/// What a program costs that does nothing.
#[classifier]
pub fn bench_empty(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// What a program costs that reads the clock once: a cost that is known, to test the method with.
#[classifier]
pub fn bench_clock(_ctx: TcContext) -> i32 {
    // SAFETY: a helper that a classifier may call.
    let now = unsafe { bpf_ktime_get_ns() };
    // Never true, and the compiler does not know it.
    if now == 0 { 0 } else { TC_ACT_UNSPEC }
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
fn rotate(ctx: &TcContext, address: usize, ports: usize) -> i32 {
    /// Port 80 as it stands in a packet, behind the source port.
    const TO_PORT: u32 = u32::from_ne_bytes([0, 0, 0, 80]);
    let Some(rotation) = ROTATION.get_ptr_mut(0) else { return TC_ACT_UNSPEC };
    let (data, end) = (ctx.data(), ctx.data_end());
    if data + ports + 4 > end {
        return TC_ACT_UNSPEC;
    }
    // SAFETY: a value in the map, written by this CPU alone; the offsets are within the packet.
    unsafe {
        if (*rotation)[2] != SAME {
            let n = next(&mut *rotation);
            // Spread, so that neighbours in number are not neighbours in the table. Whole words: a
            // reader that finds half of one in the store buffer waits, which would be our cost.
            *((data + address) as *mut u32) = n.wrapping_mul(0x9e37_79b1);
            *((data + ports) as *mut u32) = (n & 0xffff) | TO_PORT;
        }
        let _ = TARGET.tail_call(ctx, 0);
    }
    TC_ACT_UNSPEC
}

/// The number of the next flow.
#[inline(always)]
fn next(rotation: &mut [u32; 4]) -> u32 {
    let [state, flows, draw, bits] = *rotation;
    if draw == IN_TURN {
        rotation[0] = if state + 1 >= flows { 0 } else { state + 1 };
        return state;
    }
    // xorshift32: the state is never 0.
    let mut x = state;
    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
    rotation[0] = x;
    if draw == UNIFORM { (x as u64 * flows as u64 >> 32) as u32 } else { one_over_rank(x, bits) }
}

/// A number below two to the `bits`, as often as one over its rank: two to the power of an even
/// share of `bits`, rounded down. A parabola stands for the power of the fraction, within 0.3 %.
#[inline(always)]
fn one_over_rank(draw: u32, bits: u32) -> u32 {
    let power = draw as u64 * bits as u64;
    let (whole, fraction) = (power >> 32, power & 0xffff_ffff);
    // 0.6562 and 0.3438 of 2^32, which add up to it.
    let mantissa =
        (1 << 32) + (fraction * (2_818_357_593 + (fraction * 1_476_609_703 >> 32)) >> 32);
    (mantissa >> (32 - (whole & 31))) as u32 - 1
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
