//! The bounded table of flows: active ones and, for a while, those that ended.
//!
//! `max_flows` bounds both together. Memory is reserved at start and touched only as flows come.
//! Packets and bytes are conserved: what was counted stands in a row, was told with a flow's end
//! and forgotten after its history, or is given to the ledger as lost. No I/O and no clock: times
//! are those of the events.

use std::collections::VecDeque;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::{Arc, RwLockReadGuard};
use std::time::Duration;

use hashbrown::HashTable;

use crate::clock;
use crate::event::{EndReason, FlowId, FlowRecord, FlowState, Told, Volume};
use crate::pipeline::losses;
use crate::pipeline::processor::Output;

mod count;
mod ends;
mod interned;
mod name;
mod processor;
mod rows;
mod shares;
mod snapshot;

use interned::Interned;
use name::Place;
pub use processor::FlowProcessor;
pub use rows::blank;
use rows::{List, NONE, Row, mark};
pub use shares::Share;
use shares::Shares;
pub use snapshot::{Snapshot, Turns};

const SECOND_NS: u64 = 1_000_000_000;

/// The table, shared between the pipeline, which writes, and queries.
pub type SharedTable = Arc<Turns>;

/// Takes the table for reading.
pub fn read(table: &SharedTable) -> RwLockReadGuard<'_, FlowTable> {
    table.read()
}

/// Bounds of the table.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Rows, active and ended together.
    pub max_flows: u32,
    /// How long ended flows are kept.
    pub history: Duration,
    /// An active flow on which nothing was counted for this long ended, even if the kernel's
    /// `Released` never came.
    pub idle: Duration,
    /// Time between drains, until two of them have shown it.
    pub drain_interval: Duration,
}

impl Limits {
    /// For lines that are idle after `timeout`, and drains that are so far apart at the most: the second
    /// and third after one has found a line idle take it out of use, and then it is released. Were its
    /// row ended before, what comes in between would have one of its own, and the line end that.
    #[must_use]
    pub const fn idle(timeout: Duration, most_between_drains: Duration) -> Duration {
        timeout.saturating_add(most_between_drains.saturating_mul(3))
    }
}

/// The table of flows.
#[derive(Debug)]
pub struct FlowTable {
    rows: Vec<Row>,
    /// Slots of active rows by flow.
    index: HashTable<u32>,
    hasher: RandomState,
    interned: Interned,
    /// The slot that each kernel line was counted on last: whoever goes through the lines in their
    /// order then goes through the rows in theirs, and hashes nothing.
    by_line: Vec<u32>,
    /// Active rows, least recently counted first.
    active: List,
    /// Ended rows, earliest end first.
    ended: List,
    /// Free rows, linked through [`Row::next`].
    free: u32,
    limits: Limits,
    /// Drains completed.
    epoch: u32,
    /// CLOCK_MONOTONIC of the last drain.
    drained_ns: u64,
    /// Duration of the last drain interval.
    interval_ns: u64,
    /// The latest time that any event told.
    now_ns: u64,
    last_flow_id: u64,
    /// Flows last seen at or before this time may have been forgotten.
    forgotten_ns: u64,
    /// What was counted, by how its owner was identified.
    shares: Shares,
    /// Rows that may be named in a moment.
    young: VecDeque<Place>,
    /// Rows whose start waits for a name.
    held: VecDeque<Place>,
    /// The last row that was looked at for a better name.
    swept: usize,
    /// The state of knowledge that was seen last.
    generation: u32,
    /// Drains that ended since it was seen, and a time at which it had moved for certain.
    drains_since: u32,
    moved_ns: u64,
    /// Counts of the drain in progress came; when it began; when the one before it began.
    drain_begun: bool,
    /// When the first drain ended. What was first seen before may have been on its way already.
    watched_ns: u64,
    begun_ns: u64,
    counted_after_ns: u64,
}

impl FlowTable {
    /// An empty table, its memory reserved. Flows seen before `start_ns` are not in it.
    #[must_use]
    pub fn new(limits: Limits, start_ns: u64) -> Self {
        let capacity = limits.max_flows as usize;
        Self {
            rows: Vec::with_capacity(capacity),
            // Twice the rows, so that it never has to grow for the tombstones of removed flows.
            index: HashTable::with_capacity(2 * capacity),
            hasher: RandomState::new(),
            interned: Interned::new(),
            by_line: Vec::with_capacity(capacity),
            active: List::EMPTY,
            ended: List::EMPTY,
            free: NONE,
            limits,
            epoch: 0,
            drained_ns: start_ns,
            interval_ns: clock::nanos(limits.drain_interval).max(1),
            now_ns: start_ns,
            last_flow_id: 0,
            forgotten_ns: start_ns,
            shares: Shares::new(),
            young: VecDeque::with_capacity(name::MAX_YOUNG),
            held: VecDeque::with_capacity(name::MAX_HELD),
            swept: 0,
            generation: 0,
            drains_since: 0,
            moved_ns: u64::MAX,
            drain_begun: false,
            watched_ns: u64::MAX,
            begun_ns: start_ns,
            counted_after_ns: start_ns,
        }
    }

    /// Promises all flows that are last seen from now on.
    pub fn begin(&mut self, now_ns: u64) {
        self.forgotten_ns = self.forgotten_ns.max(now_ns);
    }

    /// The same, shared.
    #[must_use]
    pub fn shared(limits: Limits, start_ns: u64) -> SharedTable {
        Arc::new(Turns::new(Self::new(limits, start_ns)))
    }

    /// Keeps ended flows for so long from now on.
    pub const fn keep_for(&mut self, history: Duration) {
        self.limits.history = history;
    }

    /// Flows that may still be counted on.
    #[must_use]
    pub const fn active_flows(&self) -> u32 {
        self.active.length
    }

    /// Flows kept after their end.
    #[must_use]
    pub const fn ended_flows(&self) -> u32 {
        self.ended.length
    }

    /// Drains completed.
    #[must_use]
    pub const fn epoch(&self) -> u32 {
        self.epoch
    }

    /// All flows last seen after this time (CLOCK_MONOTONIC nanoseconds) are held.
    #[must_use]
    pub const fn held_since_ns(&self) -> u64 {
        self.forgotten_ns
    }

    /// Bytes of memory that rows and indexes may take when the table is full.
    #[must_use]
    pub fn reserved_bytes(&self) -> usize {
        self.rows.capacity() * size_of::<Row>()
            + self.by_line.capacity() * size_of::<u32>()
            + self.index.allocation_size()
    }

    /// What was counted since the start, by how its owner was identified.
    pub fn shares(&self) -> impl Iterator<Item = Share> {
        self.shares.iter()
    }

    /// Number of rows that were ever used; [`Self::row`] answers for each below it.
    #[must_use]
    pub const fn used_rows(&self) -> usize {
        self.rows.len()
    }

    /// The flow in a row as it is stored, with what the drain in progress has counted so far; its
    /// rates are not rates yet, see [`Snapshot::record`].
    #[must_use]
    pub fn row(&self, slot: usize) -> Option<&FlowRecord> {
        self.rows.get(slot).map(|row| &row.flow).filter(|flow| flow.flow_id != 0)
    }

    /// The flow in a row with all that is counted so far, as it is told.
    fn record(&self, slot: u32) -> FlowRecord {
        let slot = slot as usize;
        let (byte_rate, packet_rate) = self.snapshot().rates(self, slot);
        FlowRecord { byte_rate, packet_rate, ..self.rows[slot].flow.clone() }
    }

    /// A flow that changed after drain `since` and was told not after drain `until`: an active one,
    /// or one that has ended since and of which only now is known whose it was.
    #[must_use]
    pub fn changed(&self, slot: usize, since: u32, until: u32) -> Option<&FlowRecord> {
        let row = self.rows.get(slot)?;
        let fresh = row.flow.changed_epoch > since && row.start_epoch <= until;
        let active = row.flow.state == FlowState::Active && !row.is(mark::HELD);
        let told = active || row.is(mark::NAMED_LATE);
        (fresh && told && row.flow.flow_id != 0).then_some(&row.flow)
    }

    fn find(&self, id: &FlowId) -> Option<u32> {
        let same = |slot: &u32| self.rows[*slot as usize].flow.id == *id;
        self.index.find(hash(&self.hasher, id), same).copied()
    }

    /// The row of a flow, which is most often the one that this line was counted on last.
    fn find_at_line(&self, line: u32, id: &FlowId) -> Option<u32> {
        self.slot_of_line(line, id).or_else(|| self.find(id))
    }

    /// The row that a line was counted on last, if it is this flow's still.
    fn slot_of_line(&self, line: u32, id: &FlowId) -> Option<u32> {
        let is_its = |slot: &u32| {
            let row = self.rows.get(*slot as usize);
            row.is_some_and(|row| {
                row.flow.flow_id != 0 && row.flow.state == FlowState::Active && row.flow.id == *id
            })
        };
        self.by_line.get(line as usize).copied().filter(is_its)
    }

    /// Notes which row a line was counted on.
    fn note_line(&mut self, line: u32, slot: u32) {
        let line = line as usize;
        if line >= self.by_line.len() {
            if line >= self.limits.max_flows as usize {
                return;
            }
            self.by_line.resize(line + 1, NONE);
        }
        self.by_line[line] = slot;
    }

    fn touch(&mut self, slot: u32) {
        if self.active.tail != slot {
            self.active.remove(&mut self.rows, slot);
            self.active.push(&mut self.rows, slot);
        }
    }

    fn insert(&mut self, id: FlowId, first_seen_ns: u64, output: &mut Output) -> Option<u32> {
        let slot = self.room(output)?;
        self.last_flow_id += 1;
        let row = &mut self.rows[slot as usize];
        row.flow = FlowRecord { flow_id: self.last_flow_id, first_seen_ns, ..blank(id) };
        row.start_epoch = self.epoch.wrapping_add(1);
        row.recent = Volume::default();
        row.lines_or_end_s = 0;
        row.generation = 0;
        row.share = shares::share_of(&row.flow);
        row.marks = 0;
        let (rows, hasher) = (&self.rows, &self.hasher);
        self.index.insert_unique(hash(hasher, &id), slot, |slot| {
            hash(hasher, &rows[*slot as usize].flow.id)
        });
        self.active.push(&mut self.rows, slot);
        Some(slot)
    }

    /// A free row; if there is none, that of the earliest ended flow, else that of an active one
    /// that was silent for a whole drain. A flow that is being counted never makes room.
    fn room(&mut self, output: &mut Output) -> Option<u32> {
        if self.free == NONE && self.rows.len() < self.limits.max_flows as usize {
            let slot = u32::try_from(self.rows.len()).ok()?;
            self.rows.push(Row::free());
            return Some(slot);
        }
        if self.free == NONE && self.ended.head != NONE {
            self.forget(self.ended.head);
        }
        if self.free == NONE {
            let row = self.rows.get(self.active.head as usize)?;
            let touched = row.flow.changed_epoch.max(row.start_epoch);
            if touched >= self.epoch {
                return None;
            }
            self.evict(self.active.head, output);
        }
        let slot = self.free;
        self.free = self.rows.get(slot as usize)?.next;
        Some(slot)
    }

    fn evict(&mut self, slot: u32, output: &mut Output) {
        self.end(slot, EndReason::Evicted, output);
        let flow = &self.rows[slot as usize].flow;
        let volume = Volume { packets: flow.packets, bytes: flow.bytes };
        self.forget(slot);
        output.tally.lose(losses::of_packets("flow_table", "evicted", volume));
    }

    fn end(&mut self, slot: u32, reason: EndReason, output: &mut Output) {
        if self.rows[slot as usize].is(mark::HELD) {
            self.tell_now(slot, output);
        }
        let hash = hash(&self.hasher, &self.rows[slot as usize].flow.id);
        if let Ok(entry) = self.index.find_entry(hash, |other| *other == slot) {
            entry.remove();
        }
        self.active.remove(&mut self.rows, slot);
        let ended_s = u32::try_from(self.now_ns.div_ceil(SECOND_NS)).unwrap_or(u32::MAX);
        let row = &mut self.rows[slot as usize];
        row.flow.state = FlowState::Ended(reason);
        row.lines_or_end_s = ended_s;
        output.told.push(Told::FlowEnd(self.record(slot)));
        self.ended.push(&mut self.rows, slot);
    }

    /// Frees the row of an ended flow.
    fn forget(&mut self, slot: u32) {
        self.ended.remove(&mut self.rows, slot);
        let row = &mut self.rows[slot as usize];
        self.forgotten_ns = self.forgotten_ns.max(row.flow.last_seen_ns);
        row.flow.flow_id = 0;
        row.flow.membership = None;
        row.flow.interface = None;
        row.flow.translation = None;
        self.interned.clear(&mut row.flow.ends);
        row.next = self.free;
        self.free = slot;
    }
}

/// In one piece: the hasher is several times slower with a field at a time.
fn hash(hasher: &RandomState, id: &FlowId) -> u64 {
    let mut bytes = [0; 48];
    let words = id.key.words().iter().chain([&id.owner]);
    for (part, word) in bytes.chunks_exact_mut(8).zip(words) {
        part.copy_from_slice(&word.to_ne_bytes());
    }
    let mut state = hasher.build_hasher();
    state.write(&bytes);
    state.finish()
}

#[allow(clippy::cast_possible_truncation, reason = "a rate needs no more than 24 bits")]
fn narrow(rate: f64) -> f32 {
    rate as f32
}

#[cfg(test)]
mod tests;
