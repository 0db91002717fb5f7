//! The cache of lines that each CPU has in front of the shared table. `orb8_common::cache` has the
//! layout of a line's word.
//!
//! A classifier runs with bottom halves off and is the only one that writes on its CPU between its
//! load and its store, so it stores. A socket's egress is interrupted by anything that counts, also
//! by itself, so it swaps only what it has seen; so does ingress, which some protocols (L2TP) filter
//! from a backlog, in the receiver's context. All go to the same lines: whoever runs on top of
//! somebody ends before that one goes on.

use orb8_common::cache::{self, CachedLine, FRESH_TICKS, NOT_ADDABLE, WAYS};
use orb8_common::counter;
use orb8_common::network::{FlowKey, flag};

use crate::atomic::{compare_exchange64, exchange64};
use crate::cpu::{Cpu, Set};
use crate::maps::is_interrupted;
use crate::network::{Packet, forget};
use crate::table;

/// Whether a line is of the flow. Volatile, so that nothing is read before the word that the caller
/// has read.
#[inline(always)]
fn is_of(line: *const CachedLine, key: &FlowKey, owner: u64) -> bool {
    let ours = key.words();
    // SAFETY: a line in the map.
    unsafe {
        let theirs = (&raw const (*line).key).cast::<u64>();
        // The word with ports and family first, which tells most flows apart.
        core::ptr::read_volatile(theirs.add(4)) == ours[4]
            && core::ptr::read_volatile(theirs.add(3)) == ours[3]
            && core::ptr::read_volatile(theirs.add(1)) == ours[1]
            && core::ptr::read_volatile(&raw const (*line).owner) == owner
            // Zero in every flow of IPv4.
            && (key.flags & flag::IPV6 == 0
                || core::ptr::read_volatile(theirs) == ours[0]
                    && core::ptr::read_volatile(theirs.add(2)) == ours[2])
    }
}

#[inline(always)]
fn word_of(line: *const CachedLine) -> u64 {
    // SAFETY: a line in the map.
    unsafe { core::ptr::read_volatile(&raw const (*line).word) }
}

/// Adds a packet to the flow's line; false if it has none here, or one that is not to be added to
/// without looking at the table.
#[inline(always)]
pub fn add<const HOOK: u32>(cpu: Cpu, packet: &Packet) -> bool {
    let Some(set) = cpu.set(packet.hash) else { return false };
    let counts = cache::counts(packet.packets, packet.bytes);
    for i in 0..WAYS {
        let line = set.line(i);
        let word = word_of(line);
        if is_of(line, packet.key(), packet.owner) {
            // SAFETY: a line in the map.
            let last = unsafe { core::ptr::read_volatile(&raw const (*line).last_seen) };
            if word & NOT_ADDABLE != 0 || packet.now.wrapping_sub(last) >= FRESH_TICKS {
                if cache::packets(word) == 0 {
                    // Left behind; the flow may have another.
                    continue;
                }
                return false;
            }
            if !store::<HOOK>(line, word, word + counts) {
                return false;
            }
            // SAFETY: as above.
            unsafe { core::ptr::write_volatile(&raw mut (*line).last_seen, packet.now) };
            return true;
        }
    }
    false
}

/// Writes a line's word if it is still the one that was read.
#[inline(always)]
fn store<const HOOK: u32>(line: *mut CachedLine, seen: u64, new: u64) -> bool {
    // SAFETY: a line in the map.
    unsafe {
        let word = &raw mut (*line).word;
        if is_interrupted::<HOOK>() {
            compare_exchange64(word, seen, new) == seen
        } else {
            core::ptr::write_volatile(word, new);
            true
        }
    }
}

/// Counts a packet on a line of the cache that is or becomes its flow's; false if none can be had
/// now. A function of its own, so that what follows where none can be had has the stack to itself.
#[inline(never)]
pub fn place(cpu: Cpu, packet: &Packet, slot: u32) -> bool {
    if !cache::fits(packet.packets, packet.bytes) {
        return false;
    }
    let Some(set) = cpu.set(packet.hash) else { return false };
    let Choice { at, seen, own } = choose(cpu, set, packet);
    if seen & cache::BUSY != 0 {
        return false;
    }
    let line = set.any_line(at);
    // SAFETY: a line in the map.
    let leads_to = unsafe { core::ptr::read_volatile(&raw const (*line).slot) };
    if own && leads_to == slot && seen & NOT_ADDABLE == 0 {
        // Rested for longer than programs add without looking at the table.
        let new = seen + cache::counts(packet.packets, packet.bytes);
        // SAFETY: a line in the map.
        unsafe {
            if compare_exchange64(&raw mut (*line).word, seen, new) != seen {
                return false;
            }
            core::ptr::write_volatile(&raw mut (*line).last_seen, packet.now);
        }
        return true;
    }
    // SAFETY: a line in the map; who has put the busy word there is the only one to write it.
    unsafe {
        let word = &raw mut (*line).word;
        if compare_exchange64(word, seen, cache::claimed(seen)) != seen {
            return false;
        }
        if cache::packets(seen) != 0 {
            let last = core::ptr::read_volatile(&raw const (*line).last_seen);
            let slot = core::ptr::read_volatile(&raw const (*line).slot);
            table::add(slot, cache::packets(seen), cache::bytes(seen), last);
        }
        let key = (&raw mut (*line).key).cast::<u64>();
        let ours = packet.key().words();
        core::ptr::write_volatile(key, ours[0]);
        core::ptr::write_volatile(key.add(1), ours[1]);
        core::ptr::write_volatile(key.add(2), ours[2]);
        core::ptr::write_volatile(key.add(3), ours[3]);
        core::ptr::write_volatile(key.add(4), ours[4]);
        core::ptr::write_volatile(&raw mut (*line).owner, packet.owner);
        core::ptr::write_volatile(&raw mut (*line).last_seen, packet.now);
        core::ptr::write_volatile(&raw mut (*line).slot, slot);
        // Returns what was there, and so keeps the order of the stores on every CPU.
        exchange64(word, cache::next(seen, cache::counts(packet.packets, packet.bytes)));
    }
    true
}

/// One of so many packets of flows that have no line drives a line out that is still in use: of
/// more flows than there are lines those stay in the cache that have most packets, and the others
/// cost no more than their line in the table.
const ADMITTED: u64 = 8;

/// A line of a set.
struct Choice {
    at: usize,
    /// Its word; busy if there is no line to be had.
    seen: u64,
    /// It bears the flow.
    own: bool,
}

/// The flow's own line, an empty one, or the one that has been silent for longest.
#[inline(always)]
fn choose(cpu: Cpu, set: Set, packet: &Packet) -> Choice {
    /// Older than any line is.
    const EMPTY: u64 = 1 << 32;
    const OWN: u64 = 1 << 33;
    let (mut best, mut at, mut seen) = (0, 0u64, cache::BUSY);
    for i in 0..WAYS {
        let line = set.any_line(i);
        let word = word_of(line);
        if word & cache::BUSY != 0 {
            continue;
        }
        // SAFETY: a line in the map.
        let last = unsafe { core::ptr::read_volatile(&raw const (*line).last_seen) };
        let age = if cache::packets(word) == 0 {
            EMPTY
        } else if is_of(line, packet.key(), packet.owner) {
            OWN
        } else {
            // Who was interrupted may be told of later packets than its own.
            1 + (packet.now.wrapping_sub(last) as i32).max(0) as u64
        };
        if age > best {
            (best, at, seen) = (age, i as u64, word);
        }
        // Else the verifier goes through what comes after once for each line that it may be.
        best = forget(best, packet.hash);
        at = forget(at, packet.hash);
        seen = forget(seen, packet.hash);
    }
    if best <= FRESH_TICKS as u64 && !is_admitted(cpu) {
        seen = cache::BUSY;
    }
    Choice { at: at as usize, seen, own: best == OWN }
}

/// By the number of the packet, spread so that no rhythm of the traffic meets it.
#[inline(always)]
fn is_admitted(cpu: Cpu) -> bool {
    // SAFETY: counters in the map.
    let number = unsafe {
        let counters = cpu.counters();
        *counters.add(counter::SEEN_PACKETS) + *counters.add(counter::SEEN_TOGETHER)
    };
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) < u64::MAX / ADMITTED
}
