//! What is told of a flow beside its counts, in the ring: its start, TCP flags seen for the first
//! time, its end.

use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_ktime_get_ns};
use aya_ebpf::programs::TcContext;
use core::ptr::{read_volatile, write_volatile};
use orb8_common::counter;
use orb8_common::index;
use orb8_common::network::{FlowEvent, FlowMeta, event_kind, scope, tcp_seen};
use orb8_common::parse::tcp_flag;

use crate::cpu::Cpu;
use crate::hook;
use crate::ledger::Counters;
use crate::maps::{EVENTS, META, SPARING};
use crate::network::Packet;
use crate::sockets;

/// TCP flags that take the slow path.
pub const RARE_TCP_FLAGS: u8 = tcp_flag::FIN | tcp_flag::SYN | tcp_flag::RST;

/// What is asked once a flow.
#[derive(Clone, Copy)]
pub struct Facts {
    /// CLOCK_MONOTONIC nanoseconds of the packet that is told.
    pub time_ns: u64,
    pub cgroup_id: u64,
    pub cookie: u64,
    pub scope: u8,
}

/// Asks for the facts of a flow that starts.
#[inline(always)]
pub fn first_facts<const HOOK: u32>(ctx: &TcContext, packet: &Packet) -> Facts {
    // SAFETY: a helper that a classifier may call.
    let time_ns = unsafe { bpf_ktime_get_ns() };
    let (cgroup_id, cookie, scope) = if HOOK & hook::SOCKET != 0 {
        // SAFETY: a helper that the program may call.
        let cookie = unsafe { bpf_get_socket_cookie(ctx.skb.skb.cast()) };
        (packet.owner, cookie, scope::SOCKET)
    } else {
        sockets::owner_facts::<HOOK>(ctx, packet.key())
    };
    Facts { time_ns, cgroup_id, cookie, scope }
}

/// A packet with SYN, FIN or RST on a known flow.
#[inline(never)]
pub fn tcp_flags_seen<const HOOK: u32>(packet: &Packet, slot: u32) -> u64 {
    let (Some(meta), Some(cpu)) = (META.get_ptr_mut(slot), Cpu::this()) else { return 1 };
    if !mark_tcp_flags(meta, packet.parsed.tcp_flags) {
        return 0;
    }
    let ends = packet.parsed.tcp_flags & (tcp_flag::FIN | tcp_flag::RST) != 0;
    // SAFETY: a meta in the map, and a helper that a classifier may call.
    let facts = unsafe {
        Facts {
            time_ns: bpf_ktime_get_ns(),
            cgroup_id: (*meta).cgroup_id,
            cookie: (*meta).cookie,
            scope: (*meta).seen[tcp_seen::SCOPE],
        }
    };
    let kind = if ends { event_kind::END } else { event_kind::TCP_STATE };
    tell(Counters::<HOOK>::of(cpu), packet, slot, kind, facts);
    0
}

/// Notes the flags of a packet; true if one of them is new.
#[inline(always)]
pub fn mark_tcp_flags(meta: *mut FlowMeta, flags: u8) -> bool {
    let mut new = false;
    if flags & tcp_flag::SYN != 0 {
        let at = if flags & tcp_flag::ACK != 0 { tcp_seen::SYN_ACK } else { tcp_seen::SYN };
        new |= mark(meta, at);
    }
    if flags & tcp_flag::FIN != 0 {
        new |= mark(meta, tcp_seen::FIN);
    }
    if flags & tcp_flag::RST != 0 {
        new |= mark(meta, tcp_seen::RST);
    }
    new
}

#[inline(always)]
fn mark(meta: *mut FlowMeta, at: usize) -> bool {
    // SAFETY: a meta in the map, and `at` one of the constants of `tcp_seen`.
    unsafe {
        let seen = (&raw mut (*meta).seen).cast::<u8>().add(at);
        if read_volatile(seen) != 0 {
            return false;
        }
        write_volatile(seen, 1);
    }
    true
}

/// Whether a packet's event is left to the next drain, which finds its flow and tells it once: the
/// start of a flow that no SYN opens, while the agent is over a budget.
#[inline(always)]
fn is_deferred(kind: u8, tcp_flags: u8) -> bool {
    kind == event_kind::START && tcp_flags & RARE_TCP_FLAGS == 0 && fewer_events() != 0
}

/// Apart, because the stack of those who tell has no room for the key.
#[inline(never)]
fn fewer_events() -> u64 {
    match SPARING.get(0) {
        Some(sparing) => sparing.fewer_events as u64,
        None => 0,
    }
}

/// Puts an event into the ring, field by field, because the stack has no room for a second one. The
/// kernel wakes the reader if it had caught up.
#[inline(always)]
pub fn tell<const HOOK: u32>(
    counters: Counters<HOOK>,
    packet: &Packet,
    slot: u32,
    kind: u8,
    facts: Facts,
) {
    if is_deferred(kind, packet.parsed.tcp_flags) {
        counters.add(counter::EVENTS_DEFERRED, 1);
        return;
    }
    counters.add(counter::EVENTS_PRODUCED, 1);
    let Some(mut place) = EVENTS.reserve::<FlowEvent>(0) else {
        counters.add(counter::EVENTS_LOST, 1);
        return;
    };
    let event = place.as_mut_ptr();
    // SAFETY: the reserved bytes, all of which are written: 88.
    unsafe {
        let key = (&raw mut (*event).key).cast::<u64>();
        let words = packet.key().words();
        write_volatile(key, words[0]);
        write_volatile(key.add(1), words[1]);
        write_volatile(key.add(2), words[2]);
        write_volatile(key.add(3), words[3]);
        write_volatile(key.add(4), words[4] | (index::tag(packet.hash) as u64) << 48);
        write_volatile(&raw mut (*event).owner, packet.owner);
        write_volatile(&raw mut (*event).time_ns, facts.time_ns);
        write_volatile(&raw mut (*event).cgroup_id, facts.cgroup_id);
        write_volatile(&raw mut (*event).cookie, facts.cookie);
        write_volatile(&raw mut (*event).slot, slot);
        write_volatile(&raw mut (*event).kind, kind);
        write_volatile(&raw mut (*event).tcp_flags, packet.parsed.tcp_flags);
        write_volatile(&raw mut (*event).scope, facts.scope);
        write_volatile(&raw mut (*event).reserved, 0);
        write_volatile(&raw mut (*event).bytes, packet.bytes);
    }
    place.submit(0);
}

const _: () = assert!(core::mem::size_of::<FlowEvent>() == 88);
