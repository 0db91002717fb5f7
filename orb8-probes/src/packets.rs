//! The packet view: tells single packets, attached only while somebody asks.

use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_ns};
use aya_ebpf::programs::TcContext;
use orb8_common::network::{
    FlowKey, PacketEvent, PacketFilter, RATE_WINDOW_SHIFT, flag, packet_counter,
};
use orb8_common::parse::Parsed;

use crate::hook;
use crate::maps::{PACKET_COUNTERS, PACKET_FILTER, PACKETS};
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
    if !matches(filter, &key) || !within_rate(filter, counters) {
        return;
    }
    let packets = parsed.packets(&frame::<LINK>(ctx));
    let (cgroup_id, _, scope) = owner_facts::<HOOK>(ctx, &key);
    let event = PacketEvent {
        key,
        // SAFETY: a context field that a classifier may read.
        owner: unsafe { (*ctx.skb.skb).ifindex } as u64,
        // SAFETY: a helper that a classifier may call.
        time_ns: unsafe { bpf_ktime_get_ns() },
        bytes: parsed.datagram_bytes as u64 + parsed.gso_header_bytes(packets),
        cgroup_id,
        packets,
        tcp_flags: parsed.tcp_flags,
        scope,
        reserved: [0; 2],
    };
    match PACKETS.reserve::<PacketEvent>(0) {
        Some(mut place) => {
            place.write(event);
            place.submit(0);
        }
        // SAFETY: this CPU's counters, bottom halves are off.
        None => unsafe { (*counters)[packet_counter::RING_FULL] += 1 },
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

#[inline(always)]
fn within_rate(filter: &PacketFilter, counters: *mut [u64; 8]) -> bool {
    // SAFETY: this CPU's counters, bottom halves are off; the helper may be called.
    unsafe {
        let now = bpf_jiffies64() >> RATE_WINDOW_SHIFT;
        (*counters)[packet_counter::MATCHED] += 1;
        if (*counters)[packet_counter::WINDOW] != now {
            (*counters)[packet_counter::WINDOW] = now;
            (*counters)[packet_counter::WINDOW_COUNT] = 0;
        }
        if (*counters)[packet_counter::WINDOW_COUNT] >= filter.per_window as u64 {
            (*counters)[packet_counter::RATE_LIMITED] += 1;
            return false;
        }
        (*counters)[packet_counter::WINDOW_COUNT] += 1;
    }
    true
}
