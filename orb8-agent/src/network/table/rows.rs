//! The rows of the flow table and the orders in which they are linked.
//!
//! Knows nothing of what a row means; slots are checked by their users.

use super::shares;
use crate::event::{Attribution, Ends, FlowId, FlowRecord, FlowState, Scope, Volume, tcp_bit};

/// No row.
pub(super) const NONE: u32 = u32::MAX;

/// One flow. Its rates hold the sums of the drain before `changed_epoch` until the record leaves the
/// table; `flow_id` 0 marks a free row.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) flow: FlowRecord,
    /// What the drain `changed_epoch` brought, which may be in progress.
    pub(super) recent: Volume,
    /// The drain in progress when the flow was told.
    pub(super) start_epoch: u32,
    /// While active, the kernel lines that it holds; then the second (CLOCK_MONOTONIC) of its
    /// end, rounded up.
    pub(super) lines_or_end_s: u32,
    pub(super) previous: u32,
    pub(super) next: u32,
    /// The state of knowledge that its ends are from, 0 if an answer is awaited.
    pub(super) generation: u32,
    /// Where its volume stands in the shares.
    pub(super) share: u16,
    /// [`mark`] bits.
    pub(super) marks: u8,
}

/// Bits of [`Row::marks`].
pub(super) mod mark {
    /// Its start was not told yet.
    pub(in super::super) const HELD: u8 = 1;
    /// It goes on for a row that ended because an end changed: its line is older than itself.
    pub(in super::super) const CONTINUES: u8 = 2;
    /// Its ends hold for what comes too, while knowledge does not move.
    pub(in super::super) const LASTING: u8 = 4;
    /// Who an end is was learned when its own end had been told.
    pub(in super::super) const NAMED_LATE: u8 = 8;
    /// Its packets may be of several translated connections, which are forgotten before it is.
    pub(in super::super) const DOUBTFUL: u8 = 16;
}

const _: () = assert!(size_of::<Row>() <= 184, "with the indexes, a flow takes 204 bytes at most");

impl Row {
    /// A row that no flow has.
    pub(super) fn free() -> Self {
        Self {
            flow: blank(FlowId { key: orb8_common::network::FlowKey::EMPTY, owner: 0 }),
            recent: Volume::default(),
            start_epoch: 0,
            lines_or_end_s: 0,
            previous: NONE,
            next: NONE,
            generation: 0,
            share: 0,
            marks: 0,
        }
    }

    /// How many of its two ends are identified, the owner as it was when the row was named last.
    pub(super) fn identified(&self) -> u8 {
        let peer = self.flow.ends.peer.how().attribution != Attribution::None;
        u8::from(shares::is_identified(self.share)) + u8::from(peer)
    }

    /// Its first packet was at this time (CLOCK_MONOTONIC nanoseconds) at the latest, and opened its
    /// connection or did not.
    pub(super) const fn begin(&mut self, at_ns: u64, opens: bool) {
        if at_ns > self.flow.first_seen_ns {
            return;
        }
        self.flow.first_seen_ns = at_ns;
        self.flow.tcp_seen =
            self.flow.tcp_seen & !tcp_bit::OPENS | if opens { tcp_bit::OPENS } else { 0 };
        if opens && self.is(mark::DOUBTFUL) {
            // It was counted before its start was read: of the one before it is nothing here.
            self.set(mark::DOUBTFUL, false);
            self.generation = 0;
        }
    }

    /// Forgets the scope that a translation told which is not the flow's. The next count tells it
    /// anew; for a row that has ended none comes, and it counts as nobody's: whether a socket of this
    /// host had claimed it before is not kept.
    pub(super) fn take_scope_back(&mut self, is_told_anew: bool) {
        if self.flow.scope != Scope::Forwarded {
            return;
        }
        self.flow.scope = if is_told_anew { Scope::Unknown } else { Scope::Unclaimed };
        self.generation = 0;
    }

    /// Notes that the row changes in a drain.
    pub(super) fn change_in(&mut self, drain: u32) {
        let flow = &mut self.flow;
        if flow.changed_epoch == drain {
            return;
        }
        let is_next = flow.changed_epoch.wrapping_add(1) == drain;
        let before = if is_next { self.recent } else { Volume::default() };
        (flow.byte_rate, flow.packet_rate) = (before.bytes as f32, before.packets as f32);
        flow.changed_epoch = drain;
        self.recent = Volume::default();
    }

    /// Adds what a drain counted.
    pub(super) fn add(&mut self, drain: u32, volume: Volume) {
        self.change_in(drain);
        self.recent.add(volume);
        self.flow.packets += volume.packets;
        self.flow.bytes += volume.bytes;
    }

    pub(super) const fn is(&self, mark: u8) -> bool {
        self.marks & mark != 0
    }

    pub(super) const fn set(&mut self, mark: u8, on: bool) {
        self.marks = if on { self.marks | mark } else { self.marks & !mark };
    }
}

/// Rows in an order, linked through [`Row::previous`] and [`Row::next`].
#[derive(Debug)]
pub(super) struct List {
    pub(super) head: u32,
    pub(super) tail: u32,
    pub(super) length: u32,
}

impl List {
    pub(super) const EMPTY: Self = Self { head: NONE, tail: NONE, length: 0 };

    pub(super) fn push(&mut self, rows: &mut [Row], slot: u32) {
        let row = &mut rows[slot as usize];
        (row.previous, row.next) = (self.tail, NONE);
        match self.tail {
            NONE => self.head = slot,
            tail => rows[tail as usize].next = slot,
        }
        self.tail = slot;
        self.length += 1;
    }

    pub(super) fn remove(&mut self, rows: &mut [Row], slot: u32) {
        let (previous, next) = (rows[slot as usize].previous, rows[slot as usize].next);
        match previous {
            NONE => self.head = next,
            previous => rows[previous as usize].next = next,
        }
        match next {
            NONE => self.tail = previous,
            next => rows[next as usize].previous = previous,
        }
        self.length -= 1;
    }
}

/// A flow of which nothing is known yet.
#[must_use]
pub fn blank(id: FlowId) -> FlowRecord {
    FlowRecord {
        id,
        flow_id: 0,
        packets: 0,
        bytes: 0,
        first_seen_ns: 0,
        last_seen_ns: 0,
        cookie: 0,
        membership: None,
        interface: None,
        ends: Ends::nobody(),
        translation: None,
        byte_rate: 0.0,
        packet_rate: 0.0,
        changed_epoch: 0,
        tcp_seen: 0,
        established: false,
        scope: Scope::Unknown,
        state: FlowState::Active,
    }
}
