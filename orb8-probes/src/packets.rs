//! The packet view: tells single packets, attached only while somebody asks.

use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_ns};
use aya_ebpf::programs::TcContext;
use orb8_common::network::{
    FlowKey, PacketEvent, PacketFilter, RATE_WINDOW_SHIFT, flag, packet_counter,
};
use orb8_common::parse::Parsed;
use orb8_common::sample;

use crate::hook;
use crate::lifecycle::RARE_TCP_FLAGS;
use crate::maps::{PACKET_COUNTERS, PACKET_FILTER, PACKET_FLOWS, PACKETS, SPARING, seed};
use crate::network::parse_slowly;
use crate::skb::frame;
use crate::sockets::owner_facts;

/// Tells a packet if it passes the filter and the rate.
#[inline(always)]
pub fn watch<const LINK: u32, const HOOK: u32>(ctx: &TcContext) {
    let mut parsed = Parsed::EMPTY;
    if parse_slowly::<LINK>(ctx, &mut parsed) != 0 {
        return;
    }
    let mut key = parsed.key;
    if HOOK & hook::EGRESS != 0 {
        key.flags |= flag::EGRESS;
    }
    let (Some(filter), Some(counters)) = (PACKET_FILTER.get(0), PACKET_COUNTERS.get_ptr_mut(0))
    else {
        return;
    };
    if !matches(filter, &key) {
        return;
    }
    // SAFETY: a context field that a classifier may read.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    let one_in = SPARING.get(0).map_or(1, |sparing| sparing.sampling);
    let rare = parsed.tcp_flags & RARE_TCP_FLAGS != 0;
    // Asked for a SYN, too, so that what comes after it is not taken for the first.
    let first = one_in > 1 && is_first(&key, ifindex, filter.view) != 0;
    let critical = rare || first;
    let weight = weigh(filter, counters, critical, one_in);
    if weight == 0 || !within_rate(filter, counters, weight) {
        return;
    }
    let packets = parsed.packets(&frame::<LINK>(ctx));
    let (cgroup_id, _, scope) = owner_facts::<HOOK>(ctx, &key);
    let event = PacketEvent {
        key,
        owner: ifindex as u64,
        // SAFETY: a helper that a classifier may call.
        time_ns: unsafe { bpf_ktime_get_ns() },
        bytes: parsed.datagram_bytes as u64 + parsed.gso_header_bytes(packets),
        cgroup_id,
        packets,
        tcp_flags: parsed.tcp_flags,
        scope,
        weight,
    };
    match PACKETS.reserve::<PacketEvent>(0) {
        Some(mut place) => {
            place.write(event);
            place.submit(0);
            // SAFETY: this CPU's counters, bottom halves are off.
            unsafe { (*counters)[packet_counter::TOLD] += weight as u64 };
        }
        // SAFETY: as above.
        None => unsafe { (*counters)[packet_counter::RING_FULL] += weight as u64 },
    }
}

#[inline(always)]
fn matches(filter: &PacketFilter, key: &FlowKey) -> bool {
    if filter.protocol != 0 && filter.protocol != key.protocol {
        return false;
    }
    let port = filter.port;
    if port != [0; 2] && port != key.src_port && port != key.dst_port {
        return false;
    }
    let any_address = filter.mask[0] | filter.mask[1] | filter.mask[2] | filter.mask[3] == 0;
    any_address
        || (filter.flags ^ key.flags) & flag::IPV6 == 0
            && (within(filter, &key.src) || within(filter, &key.dst))
}

#[inline(always)]
fn within(filter: &PacketFilter, address: &[u32; 4]) -> bool {
    let (a, m) = (&filter.address, &filter.mask);
    (address[0] ^ a[0]) & m[0]
        | (address[1] ^ a[1]) & m[1]
        | (address[2] ^ a[2]) & m[2]
        | (address[3] ^ a[3]) & m[3]
        == 0
}

/// Whether a packet is its flow's first that the view meets on this CPU while packets are sampled, as
/// far as is remembered. Apart, because the stack of who tells has no room for more.
#[inline(never)]
fn is_first(key: &FlowKey, ifindex: u32, view: u32) -> u64 {
    let Some(told) = PACKET_FLOWS.get_ptr_mut(0) else { return 1 };
    let mark = sample::mark(key, ifindex, view, &seed());
    // SAFETY: this CPU's memory, bottom halves are off.
    u64::from(unsafe { sample::meet(&mut *told, mark) })
}

/// How many packets this one stands for; 0: it is not told.
#[inline(always)]
fn weigh(filter: &PacketFilter, counters: *mut [u64; 8], critical: bool, one_in: u32) -> u16 {
    // SAFETY: this CPU's counters, bottom halves are off.
    unsafe {
        let memory = (*counters)[packet_counter::SAMPLE];
        let sample::Verdict { weight, memory } =
            sample::sample(memory, filter.view, critical, one_in);
        (*counters)[packet_counter::SAMPLE] = memory;
        (*counters)[packet_counter::MATCHED] += 1;
        let untold = (*counters)[packet_counter::UNTOLD];
        (*counters)[packet_counter::UNTOLD] = untold.wrapping_add(1).wrapping_sub(weight as u64);
        weight
    }
}

#[inline(always)]
fn within_rate(filter: &PacketFilter, counters: *mut [u64; 8], weight: u16) -> bool {
    // SAFETY: this CPU's counters, bottom halves are off; the helper may be called.
    unsafe {
        let now = bpf_jiffies64() >> RATE_WINDOW_SHIFT;
        if (*counters)[packet_counter::WINDOW] != now {
            (*counters)[packet_counter::WINDOW] = now;
            (*counters)[packet_counter::WINDOW_COUNT] = 0;
        }
        if (*counters)[packet_counter::WINDOW_COUNT] >= filter.per_window as u64 {
            (*counters)[packet_counter::RATE_LIMITED] += weight as u64;
            return false;
        }
        (*counters)[packet_counter::WINDOW_COUNT] += 1;
    }
    true
}
