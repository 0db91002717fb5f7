//! Programs of the nesting test, built into an object of their own that no agent loads: the counting
//! code, run on top of itself by a timer at any instruction.
//!
//! What is to be counted is noted first by whoever counts it, each in a place of its own, so that
//! the notes themselves cannot lose anything.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![allow(internal_features, reason = "as in the probes")]
#![allow(dead_code, reason = "the modules are those of the probes, and used in part")]

mod atomic;
mod cache;
mod cpu;
mod hook;
mod ledger;
mod lifecycle;
mod maps;
mod network;
mod skb;
mod sockets;
mod supplement;
mod table;

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_ns, bpf_skb_cgroup_id};
use aya_ebpf::macros::{classifier, map, perf_event};
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::programs::{PerfEventContext, TcContext};
use core::arch::asm;
use orb8_common::index;
use orb8_common::network::{FlowKey, flag};
use orb8_common::parse::Parsed;

use crate::cpu::Cpu;
use crate::hook::{EGRESS, SOCKET, flags_of};
use crate::ledger::Counters;
use crate::network::{Packet, count_known, observe};

/// The plane of which a socket's egress is: it is interrupted by anything.
const NESTS: u32 = SOCKET | EGRESS;
/// A plane that stores without looking, because nobody interrupts it. Here somebody does: what is
/// then wrong shows that the test sees it.
const ALONE: u32 = EGRESS;
/// Flows, in groups of which one has packets at a time, so that flows pause for long enough to be
/// taken out of use, and begin again while they are.
const FLOWS: usize = GROUPS * GROUP;
const GROUPS: usize = 1 << GROUP_BITS;
const GROUP_BITS: u32 = 3;
/// Flows of a group: twice as many as there are lines in the smallest cache.
const GROUP: usize = 128;
/// How long a group has its turn: 16 ticks of the kernel.
const TURN_SHIFT: u32 = 4;
/// IP bytes of what the timer counts, which are none of the packets': 1000 and the flow's number.
const TIMER_BYTES: u64 = 1000;
/// Offset of the source port in an Ethernet frame with IPv4.
const SOURCE_PORT: usize = 14 + 20;

/// Packets and bytes of each flow that the packets' program has counted on this CPU.
#[map]
static OUTER: PerCpuArray<[[u64; 2]; FLOWS]> = PerCpuArray::with_max_entries(1, 0);
/// The same of the timer's.
#[map]
static TIMER: PerCpuArray<[[u64; 2]; FLOWS]> = PerCpuArray::with_max_entries(1, 0);
/// What happens on this CPU, see [`state`].
#[map]
static STATE: PerCpuArray<[u64; 8]> = PerCpuArray::with_max_entries(1, 0);

/// Indices of [`STATE`].
mod state {
    /// 1 while the packets' program counts.
    pub const INSIDE: usize = 0;
    /// Runs of the timer's program while the packets' program counted.
    pub const NESTED: usize = 1;
    /// Runs of the timer's program.
    pub const RUNS: usize = 2;
    /// Of these, for flows that had not begun, and so not counted.
    pub const UNKNOWN: usize = 3;
    /// Random numbers of the packets' program.
    pub const OUTER_RANDOM: usize = 4;
    /// Random numbers of the timer's.
    pub const TIMER_RANDOM: usize = 5;
    /// The owner of the packets.
    pub const OWNER: usize = 6;
}

/// A flow of the group whose turn it is, the same group on every CPU.
#[inline(always)]
fn any_flow(of: *mut u64) -> usize {
    // SAFETY: a helper that every program may call.
    let turn = unsafe { bpf_jiffies64() } >> TURN_SHIFT;
    let group = (turn.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - GROUP_BITS)) as usize;
    (group * GROUP + random(of) % GROUP) & (FLOWS - 1)
}

/// The next random number (Steele and Vigna, a linear congruential generator with a good
/// multiplier; the high bits count).
#[inline(always)]
fn random(of: *mut u64) -> usize {
    // SAFETY: a value in the map that one program alone writes on this CPU.
    unsafe {
        *of = (*of).wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(1);
        (*of >> 40) as usize
    }
}

/// What is noted of a flow. Its number is bounded by an instruction, right where it is needed: the
/// compiler leaves out bounds that it can prove, and kernels up to 6.1 cannot prove them.
#[inline(always)]
fn noted_of(noted: *mut u64, flow: usize) -> *mut u64 {
    let mut flow = flow as u64;
    // SAFETY: arithmetic; within the value after it.
    unsafe {
        asm!("{0} &= {1}", inout(reg) flow, const FLOWS - 1, options(nomem, nostack));
        noted.add(2 * flow as usize)
    }
}

/// Counts a UDP packet, each run another flow by its source port.
#[classifier]
pub fn nest_outer(ctx: TcContext) -> i32 {
    outer::<NESTS>(&ctx)
}

/// The same in a way in which interrupts may not count.
#[classifier]
pub fn nest_outer_plain(ctx: TcContext) -> i32 {
    outer::<ALONE>(&ctx)
}

#[inline(always)]
fn outer<const HOOK: u32>(ctx: &TcContext) -> i32 {
    let (Some(state), Some(noted)) = (STATE.get_ptr_mut(0), OUTER.get_ptr_mut(0)) else {
        return TC_ACT_UNSPEC;
    };
    let state = state.cast::<u64>();
    let (data, end) = (ctx.data(), ctx.data_end());
    if data + SOURCE_PORT + 2 > end {
        return TC_ACT_UNSPEC;
    }
    // SAFETY: values in the maps; the offset is within the packet.
    unsafe {
        let flow = any_flow(state.add(state::OUTER_RANDOM));
        *((data + SOURCE_PORT) as *mut u16) = (flow as u16).to_be();
        *state.add(state::OWNER) = if HOOK & SOCKET != 0 {
            bpf_skb_cgroup_id(ctx.skb.skb)
        } else {
            (*ctx.skb.skb).ifindex as u64
        };
        let noted = noted_of(noted.cast(), flow);
        *noted += 1;
        *noted.add(1) += (ctx.len() - 14) as u64;
        core::ptr::write_volatile(state.add(state::INSIDE), 1);
        observe::<{ skb::ETHERNET }, HOOK>(ctx);
        core::ptr::write_volatile(state.add(state::INSIDE), 0);
    }
    TC_ACT_UNSPEC
}

/// Counts a packet of one of the same flows, on top of whatever runs.
#[perf_event]
pub fn nest_timer(_ctx: PerfEventContext) -> u32 {
    timer::<NESTS>()
}

/// The same on top of [`nest_outer_plain`].
#[perf_event]
pub fn nest_timer_plain(_ctx: PerfEventContext) -> u32 {
    timer::<ALONE>()
}

#[inline(always)]
fn timer<const HOOK: u32>() -> u32 {
    let (Some(state), Some(noted), Some(cpu)) =
        (STATE.get_ptr_mut(0), TIMER.get_ptr_mut(0), Cpu::this())
    else {
        return 0;
    };
    let state = state.cast::<u64>();
    // SAFETY: values in the maps, which no other program writes on this CPU, and helpers.
    unsafe {
        *state.add(state::RUNS) += 1;
        *state.add(state::NESTED) += core::ptr::read_volatile(state.add(state::INSIDE));
        let flow = any_flow(state.add(state::TIMER_RANDOM));
        let owner = core::ptr::read_volatile(state.add(state::OWNER));
        let bytes = TIMER_BYTES + flow as u64;
        let key = key_of::<HOOK>(flow as u16);
        let packet = Packet {
            hash: index::hash(&key, owner, &maps::seed()),
            parsed: Parsed { key, ..Parsed::EMPTY },
            owner,
            packets: 1,
            bytes,
            now: bpf_jiffies64() as u32,
        };
        let noted = noted_of(noted.cast(), flow);
        // Before it is counted, so that whoever reads counts and then notes finds no less here.
        core::ptr::write_volatile(noted, core::ptr::read_volatile(noted) + 1);
        core::ptr::write_volatile(noted.add(1), core::ptr::read_volatile(noted.add(1)) + bytes);
        if !cache::add::<HOOK>(cpu, &packet) && !count_known::<HOOK>(cpu, &packet) {
            *state.add(state::UNKNOWN) += 1;
            *noted -= 1;
            *noted.add(1) -= bytes;
            return 0;
        }
        Counters::<HOOK>::of(cpu).see(1, bytes, false);
    }
    0
}

/// The flow of a packet of the test: 10.0.0.1 to 10.0.0.2, port 53.
#[inline(always)]
fn key_of<const HOOK: u32>(port: u16) -> FlowKey {
    let mut key = FlowKey::EMPTY;
    key.src[3] = u32::from_ne_bytes([10, 0, 0, 1]);
    key.dst[3] = u32::from_ne_bytes([10, 0, 0, 2]);
    key.src_port = port.to_be_bytes();
    key.dst_port = [0, 53];
    key.protocol = 17;
    key.flags = flags_of(HOOK) & !flag::SUPPLEMENT;
    key
}

/// Both clocks, as in the probes.
#[classifier]
pub fn orb8_clock(_ctx: TcContext) -> i32 {
    if let Some(pair) = maps::CLOCK.get_ptr_mut(0) {
        // SAFETY: a value in the map, and helpers that a classifier may call.
        unsafe {
            (*pair).jiffies = bpf_jiffies64();
            (*pair).monotonic_ns = bpf_ktime_get_ns();
        }
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
