//! Counts a packet on its flow's line, and tells what is rare: the first packet, TCP flags.
//!
//! Per packet: parse, one group of the index, one line, two atomic adds. Whatever costs a helper
//! call happens once a flow, or for packets of a rare form.

use aya_ebpf::bindings::bpf_sock_tuple;
use aya_ebpf::helpers::generated::{
    bpf_get_socket_cookie, bpf_jiffies64, bpf_ktime_get_ns, bpf_sk_lookup_tcp, bpf_sk_lookup_udp,
    bpf_sk_release, bpf_skb_cgroup_id,
};
use aya_ebpf::programs::TcContext;
use orb8_common::counter::{self, Lost, Reject};
use orb8_common::index::{self, EMPTY_CELL, GROUP_CELLS};
use orb8_common::network::{
    FlowEvent, FlowKey, FlowLine, FlowMeta, event_kind, flag, scope, tcp_seen,
};
use orb8_common::parse::{self, Frame, Parsed, protocol, tcp_flag};

use crate::atomic::{add32, add64};
use crate::maps::{COUNTERS, EVENTS, FREE, INDEX, LINES, META, fault_bytes, group_mask, seed};
use crate::skb::{Anywhere, Linear, frame, seen_bytes};

/// TCP flags that take the slow path.
const RARE_TCP_FLAGS: u8 = tcp_flag::FIN | tcp_flag::SYN | tcp_flag::RST;

/// This CPU's ledger counters. Classifiers run with bottom halves off, so nothing on this CPU
/// writes in between.
#[derive(Clone, Copy)]
struct Counters(*mut u64);

impl Counters {
    #[inline(always)]
    fn of_this_cpu() -> Option<Self> {
        COUNTERS.get_ptr_mut(0).map(|p| Self(p.cast()))
    }

    #[inline(always)]
    fn add(self, at: usize, n: u64) {
        // SAFETY: every index is a constant below `counter::COUNT`.
        unsafe { *self.0.add(at) += n }
    }

    #[inline(always)]
    fn reject(self, why: Reject, packets: u64, bytes: u64) {
        let at = counter::REJECTED + 2 * why as usize;
        self.add(at & 63, packets);
        self.add((at + 1) & 63, bytes);
    }

    #[inline(always)]
    fn lose(self, why: Lost, packets: u64, bytes: u64) {
        let at = counter::LOST + 2 * why as usize;
        self.add(at, packets);
        self.add(at + 1, bytes);
    }
}

/// What the slow paths need to know of a packet; on the stack of the program.
struct Packet {
    key: FlowKey,
    owner: u64,
    hash: u64,
    packets: u32,
    bytes: u64,
    tcp_flags: u8,
}

/// Counts one packet. Never fails: what cannot be counted is counted as rejected or lost.
#[inline(always)]
pub fn observe<const LINK: u32, const EGRESS: bool>(ctx: &TcContext) {
    let Some(counters) = Counters::of_this_cpu() else { return };
    let frame = frame::<LINK>(ctx);
    let estimate = frame.packets_estimate();
    let seen = seen_bytes::<LINK>(&frame);
    counters.add(counter::SEEN_PACKETS, estimate as u64);
    counters.add(counter::SEEN_BYTES, seen);
    let parsed = match parse::common_form(&Linear::of(ctx), &frame) {
        Some(parsed) => parsed,
        None => {
            counters.add(counter::COLD_PATH_PACKETS, estimate as u64);
            let mut slow = Parsed::EMPTY;
            match parse_slowly::<LINK>(ctx, &mut slow) {
                0 => slow,
                why => return reject(counters, why, estimate as u64, seen),
            }
        }
    };
    let packets = parsed.packets(&frame);
    settle(counters, &frame, &parsed, packets, seen);
    // SAFETY: a context field that a classifier may read.
    let owner = unsafe { (*ctx.skb.skb).ifindex } as u64;
    count::<EGRESS>(ctx, counters, parsed, packets, owner);
}

/// Books the differences between what the skb weighs and what its datagrams weigh on the wire.
#[inline(always)]
fn settle(counters: Counters, frame: &Frame, parsed: &Parsed, packets: u32, seen: u64) {
    let padding = seen - parsed.datagram_bytes as u64;
    if padding != 0 {
        counters.add(counter::PADDING_BYTES, padding);
    }
    if frame.gso_size != 0 {
        counters.add(counter::GSO_HEADER_BYTES, parsed.gso_header_bytes(packets));
        let excess = (frame.packets_estimate() as u64).wrapping_sub(packets as u64);
        counters.add(counter::SEGMENT_EXCESS, excess);
    }
}

/// 0, or one more than the number of the reason.
#[inline(never)]
pub fn parse_slowly<const LINK: u32>(ctx: &TcContext, out: &mut Parsed) -> u64 {
    match parse::any_form(&Anywhere::<LINK>(ctx), &frame::<LINK>(ctx), out) {
        Ok(()) => 0,
        Err(why) => 1 + why as u64,
    }
}

#[inline(always)]
fn reject(counters: Counters, why: u64, packets: u64, bytes: u64) {
    let why = match why {
        1 => Reject::NotIp,
        2 => Reject::Truncated,
        3 => Reject::BadHeader,
        _ => Reject::TooManyHeaders,
    };
    counters.reject(why, packets, bytes);
}

#[inline(always)]
fn count<const EGRESS: bool>(
    ctx: &TcContext,
    counters: Counters,
    parsed: Parsed,
    packets: u32,
    owner: u64,
) {
    let mut key = parsed.key;
    if EGRESS {
        key.flags |= flag::EGRESS;
    }
    let hash = index::hash(&key, owner, seed());
    key.tag = index::tag(hash);
    let bytes = parsed.datagram_bytes as u64 + parsed.gso_header_bytes(packets);
    if fault_bytes() != 0 && bytes == fault_bytes() as u64 {
        return;
    }
    let mask = group_mask();
    if let Some(slot) = find(&key, owner, hash, index::first_group(hash, mask)) {
        if add(slot, packets, bytes) && parsed.tcp_flags & RARE_TCP_FLAGS == 0 {
            return;
        }
        let packet = Packet { key, owner, hash, packets, bytes, tcp_flags: parsed.tcp_flags };
        tcp_flags_seen(&packet, slot);
        return;
    }
    let packet = Packet { key, owner, hash, packets, bytes, tcp_flags: parsed.tcp_flags };
    not_in_first_group(ctx, &packet);
    let _ = counters;
}

/// The number of the line that a group holds for the flow.
#[inline(always)]
fn find(key: &FlowKey, owner: u64, hash: u64, group: u32) -> Option<u32> {
    let cells = INDEX.get_ptr(group)?.cast::<u32>();
    let first = index::first_cell(hash);
    for i in 0..GROUP_CELLS as u32 {
        let at = (first + i) % GROUP_CELLS as u32;
        // SAFETY: `at` is below the number of cells.
        let cell = unsafe { core::ptr::read_volatile(cells.add(at as usize)) };
        if cell != EMPTY_CELL && is_line_of(cell - 1, key, owner) {
            return Some(cell - 1);
        }
    }
    None
}

#[inline(always)]
fn is_line_of(slot: u32, key: &FlowKey, owner: u64) -> bool {
    let Some(line) = LINES.get_ptr(slot) else { return false };
    let ours = key.words();
    // SAFETY: a line in the map.
    let theirs = unsafe { (*line).key.words() };
    theirs[0] == ours[0]
        && theirs[1] == ours[1]
        && theirs[2] == ours[2]
        && theirs[3] == ours[3]
        && theirs[4] == ours[4]
        // SAFETY: as above.
        && unsafe { (*line).owner } == owner
}

/// Adds a packet to a line; false never happens for a slot of the table.
#[inline(always)]
fn add(slot: u32, packets: u32, bytes: u64) -> bool {
    let Some(line) = LINES.get_ptr_mut(slot) else { return false };
    // SAFETY: a line in the map; other CPUs add to it too.
    unsafe {
        add32(&raw mut (*line).packets, packets);
        add64(&raw mut (*line).bytes, bytes);
        (*line).last_seen = bpf_jiffies64() as u32;
    }
    true
}

/// The second group, or a new line.
#[inline(never)]
fn not_in_first_group(ctx: &TcContext, packet: &Packet) -> u64 {
    let group = index::second_group(packet.hash, group_mask());
    if let Some(slot) = find(&packet.key, packet.owner, packet.hash, group) {
        add(slot, packet.packets, packet.bytes);
        if packet.tcp_flags & RARE_TCP_FLAGS != 0 {
            tcp_flags_seen(packet, slot);
        }
        return 0;
    }
    start(ctx, packet)
}

/// Takes a line for a flow, publishes it and tells the start.
#[inline(always)]
fn start(ctx: &TcContext, packet: &Packet) -> u64 {
    let Some(counters) = Counters::of_this_cpu() else { return 1 };
    let (packets, bytes) = (packet.packets as u64, packet.bytes);
    // First, because a flow without a cell would take a line with every packet.
    let cell = free_cell(packet.hash);
    if cell == NO_CELL {
        counters.lose(Lost::IndexFull, packets, bytes);
        return 1;
    }
    let slot = match FREE.pop() {
        Ok(Some(slot)) => slot,
        Ok(None) => {
            counters.lose(Lost::FlowTableFull, packets, bytes);
            return 1;
        }
        Err(_) => {
            counters.lose(Lost::FreeListBusy, packets, bytes);
            return 1;
        }
    };
    let (Some(line), Some(meta)) = (LINES.get_ptr_mut(slot), META.get_ptr_mut(slot)) else {
        counters.lose(Lost::FlowTableFull, packets, bytes);
        return 1;
    };
    let event = first_facts(ctx, packet, slot);
    // User space has zeroed line and meta. Counters are only ever added to, so that it does not
    // matter in which order another CPU sees these stores.
    // SAFETY: a line and a meta in the maps.
    unsafe {
        (*line).key = packet.key;
        (*line).owner = packet.owner;
        (*meta).first_seen_ns = event.time_ns;
        (*meta).cgroup_id = event.cgroup_id;
        (*meta).cookie = event.cookie;
        (*meta).seen[tcp_seen::SCOPE] = event.scope;
    }
    mark_tcp_flags(meta, packet.tcp_flags);
    add(slot, packet.packets, packet.bytes);
    publish(cell, slot);
    tell(counters, &event);
    0
}

/// A free cell of either group: the group in the high bits, the cell in the low ones; or
/// [`NO_CELL`].
#[inline(always)]
fn free_cell(hash: u64) -> u32 {
    let mask = group_mask();
    match free_cell_in(index::first_group(hash, mask), hash) {
        NO_CELL => free_cell_in(index::second_group(hash, mask), hash),
        cell => cell,
    }
}

/// No group has a number as high as this one would need.
const NO_CELL: u32 = u32::MAX;

#[inline(always)]
fn free_cell_in(group: u32, hash: u64) -> u32 {
    let Some(cells) = INDEX.get_ptr(group) else { return NO_CELL };
    let cells = cells.cast::<u32>();
    let first = index::first_cell(hash);
    for i in 0..GROUP_CELLS as u32 {
        let at = (first + i) % GROUP_CELLS as u32;
        // SAFETY: `at` is below the number of cells.
        if unsafe { core::ptr::read_volatile(cells.add(at as usize)) } == EMPTY_CELL {
            return group * GROUP_CELLS as u32 + at;
        }
    }
    NO_CELL
}

/// Puts a line's number into a cell that was free. Two CPUs may fill one cell at once: the later
/// store wins, the other line counts all the same, found by user space alone, and its flow's next
/// packet takes another line.
#[inline(always)]
fn publish(cell: u32, slot: u32) {
    let Some(cells) = INDEX.get_ptr_mut(cell / GROUP_CELLS as u32) else { return };
    let at = (cell % GROUP_CELLS as u32) as usize;
    // SAFETY: `at` is below the number of cells.
    unsafe { core::ptr::write_volatile(cells.cast::<u32>().add(at), slot + 1) };
}

/// What is asked once a flow, and the event that tells it.
#[inline(always)]
fn first_facts(ctx: &TcContext, packet: &Packet, slot: u32) -> FlowEvent {
    // SAFETY: a helper that a classifier may call.
    let time_ns = unsafe { bpf_ktime_get_ns() };
    // A packet that comes over a veth still carries the sender's socket, which says nothing of
    // who receives it.
    let (cgroup_id, cookie, scope) = if packet.key.flags & flag::EGRESS != 0 {
        sender_facts(ctx)
    } else {
        (0, 0, receiver_scope(ctx, &packet.key))
    };
    FlowEvent {
        key: packet.key,
        owner: packet.owner,
        time_ns,
        cgroup_id,
        cookie,
        slot,
        kind: event_kind::START,
        tcp_flags: packet.tcp_flags,
        scope,
        reserved: 0,
        bytes: packet.bytes,
    }
}

/// cgroup, cookie and scope of the socket that a packet comes from.
#[inline(always)]
fn sender_facts(ctx: &TcContext) -> (u64, u64, u8) {
    let skb = ctx.skb.skb;
    // SAFETY: helpers that a classifier may call.
    let (cgroup_id, cookie) =
        unsafe { (bpf_skb_cgroup_id(skb), bpf_get_socket_cookie(skb.cast())) };
    (cgroup_id, cookie, if cookie != 0 { scope::SOCKET } else { scope::NO_SOCKET })
}

/// Whether a local socket would receive the packet.
#[inline(always)]
fn receiver_scope(ctx: &TcContext, key: &FlowKey) -> u8 {
    let tcp = key.protocol == protocol::TCP;
    if (!tcp && key.protocol != protocol::UDP) || key.flags & flag::FRAGMENT != 0 {
        return scope::UNKNOWN;
    }
    let mut tuple = [0u32; 9];
    let size = if key.flags & flag::IPV6 != 0 {
        tuple = [
            key.src[0],
            key.src[1],
            key.src[2],
            key.src[3],
            key.dst[0],
            key.dst[1],
            key.dst[2],
            key.dst[3],
            ports(key),
        ];
        36
    } else {
        tuple[0] = key.src[3];
        tuple[1] = key.dst[3];
        tuple[2] = ports(key);
        12
    };
    let skb = ctx.skb.skb.cast();
    let tuple = (&raw mut tuple).cast::<bpf_sock_tuple>();
    // The namespace of the device (BPF_F_CURRENT_NETNS).
    let netns = -1i64 as u64;
    // SAFETY: the tuple has `size` bytes; the reference is given back.
    unsafe {
        let sk = if tcp {
            bpf_sk_lookup_tcp(skb, tuple, size, netns, 0)
        } else {
            bpf_sk_lookup_udp(skb, tuple, size, netns, 0)
        };
        if sk.is_null() {
            return scope::NO_SOCKET;
        }
        bpf_sk_release(sk.cast());
    }
    scope::SOCKET
}

/// Both ports as they stand in the packet.
#[inline(always)]
fn ports(key: &FlowKey) -> u32 {
    let (s, d) = (key.src_port, key.dst_port);
    u32::from_ne_bytes([s[0], s[1], d[0], d[1]])
}

/// A packet with SYN, FIN or RST on a known flow.
#[inline(never)]
fn tcp_flags_seen(packet: &Packet, slot: u32) -> u64 {
    let (Some(meta), Some(counters)) = (META.get_ptr_mut(slot), Counters::of_this_cpu()) else {
        return 1;
    };
    if !mark_tcp_flags(meta, packet.tcp_flags) {
        return 0;
    }
    let ends = packet.tcp_flags & (tcp_flag::FIN | tcp_flag::RST) != 0;
    // SAFETY: a meta in the map, and a helper that a classifier may call.
    let (cgroup_id, cookie, scope, time_ns) = unsafe {
        ((*meta).cgroup_id, (*meta).cookie, (*meta).seen[tcp_seen::SCOPE], bpf_ktime_get_ns())
    };
    let event = FlowEvent {
        key: packet.key,
        owner: packet.owner,
        time_ns,
        cgroup_id,
        cookie,
        slot,
        kind: if ends { event_kind::END } else { event_kind::TCP_STATE },
        tcp_flags: packet.tcp_flags,
        scope,
        reserved: 0,
        bytes: packet.bytes,
    };
    tell(counters, &event);
    0
}

/// Notes the flags of a packet; true if one of them is new.
#[inline(always)]
fn mark_tcp_flags(meta: *mut FlowMeta, flags: u8) -> bool {
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
        if core::ptr::read_volatile(seen) != 0 {
            return false;
        }
        core::ptr::write_volatile(seen, 1);
    }
    true
}

/// Puts an event into the ring. The kernel wakes the reader if it had caught up.
#[inline(always)]
fn tell(counters: Counters, event: &FlowEvent) {
    counters.add(counter::EVENTS_PRODUCED, 1);
    match EVENTS.reserve::<FlowEvent>(0) {
        Some(mut place) => {
            place.write(*event);
            place.submit(0);
        }
        None => counters.add(counter::EVENTS_LOST, 1),
    }
}

const _: () = assert!(core::mem::size_of::<FlowLine>() == 64);
