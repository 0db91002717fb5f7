//! Counts a packet on its flow's line, and tells what is rare: the first packet, TCP flags.
//!
//! Per packet: parse, one group of the index, one line, two atomic adds. Whatever costs a helper
//! call happens once a flow, or for packets of a rare form.

use aya_ebpf::helpers::generated::{
    bpf_get_socket_cookie, bpf_jiffies64, bpf_ktime_get_ns, bpf_skb_cgroup_id,
};
use aya_ebpf::programs::TcContext;
use orb8_common::counter::{self, Filtered, Lost, Reject};
use orb8_common::index::{self, EMPTY_CELL, GROUP_CELLS};
use orb8_common::network::{
    FlowEvent, FlowKey, FlowLine, FlowMeta, event_kind, flag, scope, tcp_seen,
};
use orb8_common::parse::{self, Frame, Parsed, tcp_flag};

use crate::atomic::{add32, add64};
use crate::hooks::{flags_of, hook};
use crate::maps::{COUNTERS, EVENTS, FREE, INDEX, LINES, META, fault_bytes, group_mask, seed};
use crate::skb::{Anywhere, Linear, frame, seen_bytes};
use crate::{sockets, supplement};

/// TCP flags that take the slow path.
pub const RARE_TCP_FLAGS: u8 = tcp_flag::FIN | tcp_flag::SYN | tcp_flag::RST;

/// This CPU's ledger counters.
///
/// A socket's egress runs in the sender's context and is interrupted by anything that counts too,
/// so its adds are single instructions. Classifiers run with bottom halves off, and what runs on
/// top of them in hard interrupts counts nothing: between their load and their store nobody else
/// writes on this CPU, and what they interrupt is before or behind its one instruction. So both
/// kinds of adds may go to one array. A socket's ingress has bottom halves off as well wherever
/// it was looked at; it does not rely on it.
#[derive(Clone, Copy)]
struct Counters<const HOOK: u32>(*mut u64);

impl<const HOOK: u32> Counters<HOOK> {
    #[inline(always)]
    fn of_this_cpu() -> Option<Self> {
        COUNTERS.get_ptr_mut(0).map(|p| Self(p.cast()))
    }

    #[inline(always)]
    fn add(self, at: usize, n: u64) {
        // SAFETY: every index is a constant below `counter::COUNT`.
        unsafe {
            let counter = self.0.add(at);
            if HOOK & hook::SOCKET != 0 {
                add64(counter, n);
            } else {
                *counter += n;
            }
        }
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

    #[inline(always)]
    fn filter(self, why: Filtered, packets: u64, bytes: u64) {
        let at = counter::FILTERED + 2 * why as usize;
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
pub fn observe<const LINK: u32, const HOOK: u32>(ctx: &TcContext) {
    let Some(counters) = Counters::<HOOK>::of_this_cpu() else { return };
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
    count(ctx, counters, parsed, packets);
}

/// The cgroup of the socket, or the interface.
#[inline(always)]
fn owner<const HOOK: u32>(ctx: &TcContext) -> u64 {
    // SAFETY: a helper and a context field that the program may use.
    unsafe {
        if HOOK & hook::SOCKET != 0 {
            bpf_skb_cgroup_id(ctx.skb.skb)
        } else {
            (*ctx.skb.skb).ifindex as u64
        }
    }
}

/// Books the differences between what the skb weighs and what its datagrams weigh on the wire.
#[inline(always)]
fn settle<const HOOK: u32>(
    counters: Counters<HOOK>,
    frame: &Frame,
    parsed: &Parsed,
    packets: u32,
    seen: u64,
) {
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
fn reject<const HOOK: u32>(counters: Counters<HOOK>, why: u64, packets: u64, bytes: u64) {
    let why = match why {
        1 => Reject::NotIp,
        2 => Reject::Truncated,
        3 => Reject::BadHeader,
        _ => Reject::TooManyHeaders,
    };
    counters.reject(why, packets, bytes);
}

#[inline(always)]
fn count<const HOOK: u32>(ctx: &TcContext, counters: Counters<HOOK>, parsed: Parsed, packets: u32) {
    let owner = owner::<HOOK>(ctx);
    let mut key = parsed.key;
    key.flags |= flags_of(HOOK);
    if HOOK & hook::SUPPLEMENT != 0 && !supplement::is_told_at_sockets() {
        // Nobody else counts: these are the totals, as of a node with this plane alone.
        key.flags &= !flag::SUPPLEMENT;
    }
    let bytes = parsed.datagram_bytes as u64 + parsed.gso_header_bytes(packets);
    if sockets::is_supplement::<HOOK>(&key)
        && let Some(why) = supplement::left_out::<HOOK>(ctx, &key, parsed.tcp_flags, owner)
    {
        // Apart, so that the places are constants.
        match why {
            Filtered::CountedAtSocket => {
                counters.filter(Filtered::CountedAtSocket, packets as u64, bytes);
            }
            Filtered::LaterFragment => {
                counters.filter(Filtered::LaterFragment, packets as u64, bytes);
            }
        }
        return;
    }
    let hash = index::hash(&key, owner, seed());
    key.tag = index::tag(hash);
    if fault_bytes() != 0 && bytes == fault_bytes() as u64 {
        return;
    }
    let mask = group_mask();
    if let Some(slot) = find(&key, owner, hash, index::first_group(hash, mask)) {
        if add(slot, packets, bytes) && parsed.tcp_flags & RARE_TCP_FLAGS == 0 {
            return;
        }
        let packet = Packet { key, owner, hash, packets, bytes, tcp_flags: parsed.tcp_flags };
        tcp_flags_seen::<HOOK>(&packet, slot);
        return;
    }
    let packet = Packet { key, owner, hash, packets, bytes, tcp_flags: parsed.tcp_flags };
    not_in_first_group::<HOOK>(ctx, &packet);
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
fn not_in_first_group<const HOOK: u32>(ctx: &TcContext, packet: &Packet) -> u64 {
    let group = index::second_group(packet.hash, group_mask());
    if let Some(slot) = find(&packet.key, packet.owner, packet.hash, group) {
        add(slot, packet.packets, packet.bytes);
        if packet.tcp_flags & RARE_TCP_FLAGS != 0 {
            tcp_flags_seen::<HOOK>(packet, slot);
        }
        return 0;
    }
    start::<HOOK>(ctx, packet)
}

/// Takes a line for a flow, publishes it and tells the start.
#[inline(always)]
fn start<const HOOK: u32>(ctx: &TcContext, packet: &Packet) -> u64 {
    let Some(counters) = Counters::<HOOK>::of_this_cpu() else { return 1 };
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
    let event = first_facts::<HOOK>(ctx, packet, slot);
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
fn first_facts<const HOOK: u32>(ctx: &TcContext, packet: &Packet, slot: u32) -> FlowEvent {
    // SAFETY: a helper that a classifier may call.
    let time_ns = unsafe { bpf_ktime_get_ns() };
    let (cgroup_id, cookie, scope) = if HOOK & hook::SOCKET != 0 {
        // SAFETY: a helper that the program may call.
        let cookie = unsafe { bpf_get_socket_cookie(ctx.skb.skb.cast()) };
        (packet.owner, cookie, scope::SOCKET)
    } else {
        sockets::owner_facts::<HOOK>(ctx, &packet.key)
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

/// A packet with SYN, FIN or RST on a known flow.
#[inline(never)]
fn tcp_flags_seen<const HOOK: u32>(packet: &Packet, slot: u32) -> u64 {
    let (Some(meta), Some(counters)) = (META.get_ptr_mut(slot), Counters::<HOOK>::of_this_cpu())
    else {
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
fn tell<const HOOK: u32>(counters: Counters<HOOK>, event: &FlowEvent) {
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
