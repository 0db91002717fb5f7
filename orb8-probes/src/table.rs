//! The table of flow lines that all CPUs share: found through the index, added to with atomic adds
//! whose result nobody needs.

use aya_ebpf::programs::TcContext;
use orb8_common::counter::Lost;
use orb8_common::index::{self, EMPTY_CELL, GROUP_CELLS};
use orb8_common::network::{FlowKey, FlowLine, event_kind, tcp_seen};

use crate::atomic::{add32, add64};
use crate::cpu::Cpu;
use crate::ledger::Counters;
use crate::lifecycle::{first_facts, mark_tcp_flags, tell};
use crate::maps::{FREE, INDEX, LINES, META, group_mask};
use crate::network::Packet;

/// The number of the line that the table has for a flow.
#[inline(always)]
pub fn find(key: &FlowKey, owner: u64, hash: u64) -> Option<u32> {
    let mask = group_mask() as u32;
    match find_in(key, owner, hash, index::first_group(hash, mask)) {
        None => find_in(key, owner, hash, index::second_group(hash, mask)),
        found => found,
    }
}

/// The number of the line that a group holds for the flow.
#[inline(always)]
fn find_in(key: &FlowKey, owner: u64, hash: u64, group: u32) -> Option<u32> {
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

/// The tag is the last half word of a key.
const WITHOUT_TAG: u64 = u64::MAX >> 16;

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
        && theirs[4] & WITHOUT_TAG == ours[4]
        // SAFETY: as above.
        && unsafe { (*line).owner } == owner
}

/// Adds counts to a line, `now` being the tick of the last packet in them.
#[inline(always)]
pub fn add(slot: u32, packets: u32, bytes: u64, now: u32) {
    let Some(line) = LINES.get_ptr_mut(slot) else { return };
    // SAFETY: a line in the map; other CPUs add to it too.
    unsafe {
        add32(&raw mut (*line).packets, packets);
        add64(&raw mut (*line).bytes, bytes);
        let last = &raw mut (*line).last_seen;
        if (now.wrapping_sub(core::ptr::read_volatile(last)) as i32) > 0 {
            core::ptr::write_volatile(last, now);
        }
    }
}

/// Takes a line for a flow, publishes it and tells the start.
#[inline(always)]
pub fn start<const HOOK: u32>(ctx: &TcContext, cpu: Cpu, packet: &Packet) -> u64 {
    let counters = Counters::<HOOK>::of(cpu);
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
    let facts = first_facts::<HOOK>(ctx, packet);
    // User space has zeroed line and meta. Counters are only ever added to, so that it does not
    // matter in which order another CPU sees these stores.
    // SAFETY: a line and a meta in the maps.
    unsafe {
        (*line).key = *packet.key();
        (*line).key.tag = index::tag(packet.hash);
        (*line).owner = packet.owner;
        (*line).last_seen = packet.now;
        (*meta).first_seen_ns = facts.time_ns;
        (*meta).cgroup_id = facts.cgroup_id;
        (*meta).cookie = facts.cookie;
        (*meta).seen[tcp_seen::SCOPE] = facts.scope;
    }
    mark_tcp_flags(meta, packet.parsed.tcp_flags);
    add(slot, packet.packets, packet.bytes, packet.now);
    publish(cell, slot);
    tell(counters, packet, slot, event_kind::START, facts);
    0
}

/// A free cell of either group: the group in the high bits, the cell in the low ones; or
/// [`NO_CELL`].
#[inline(always)]
fn free_cell(hash: u64) -> u32 {
    let mask = group_mask() as u32;
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

const _: () = assert!(core::mem::size_of::<FlowLine>() == 64);
