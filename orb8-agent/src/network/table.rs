//! The bounded table of flows: active ones and, for a while, those that ended.
//!
//! `max_flows` bounds both together. Memory is reserved at start and touched only as flows come.
//! Packets and bytes are conserved: what was counted stands in a row, was told with a flow's end
//! and forgotten after its history, or is given to the ledger as lost. No I/O and no clock: times
//! are those of the events.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use hashbrown::HashTable;

use crate::clock;
use crate::event::{
    EndReason, Event, FlowCount, FlowFacts, FlowId, FlowRecord, FlowSignal, FlowState,
    PacketRecord, SignalKind, Told, Volume, tcp_bit,
};
use crate::network::keys;
use crate::pipeline::enricher::EnrichedEvent;
use crate::pipeline::losses;
use crate::pipeline::processor::{EventProcessor, Output};

mod rows;

pub use rows::blank;
use rows::{List, NONE, Row};

const SECOND_NS: u64 = 1_000_000_000;

/// The table, shared between the pipeline, which writes, and queries.
pub type SharedTable = Arc<RwLock<FlowTable>>;

/// Takes the lock for reading; a panic elsewhere does not make the flows unreadable.
pub fn read(table: &SharedTable) -> RwLockReadGuard<'_, FlowTable> {
    table.read().unwrap_or_else(PoisonError::into_inner)
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

/// The table of flows.
#[derive(Debug)]
pub struct FlowTable {
    rows: Vec<Row>,
    /// Slots of active rows by flow.
    index: HashTable<u32>,
    hasher: RandomState,
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
        }
    }

    /// The same, shared.
    #[must_use]
    pub fn shared(limits: Limits, start_ns: u64) -> SharedTable {
        Arc::new(RwLock::new(Self::new(limits, start_ns)))
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

    /// Bytes of memory that rows and index may take when the table is full.
    #[must_use]
    pub fn reserved_bytes(&self) -> usize {
        self.rows.capacity() * size_of::<Row>() + self.index.allocation_size()
    }

    /// Number of rows that were ever used; [`Self::row`] answers for each below it.
    #[must_use]
    pub const fn used_rows(&self) -> usize {
        self.rows.len()
    }

    /// The flow in a row as it is stored; its rates are not rates yet, see [`Self::record`].
    #[must_use]
    pub fn row(&self, slot: usize) -> Option<&FlowRecord> {
        self.rows.get(slot).map(|row| &row.flow).filter(|flow| flow.flow_id != 0)
    }

    /// Bytes and packets a second of a flow of this table.
    #[must_use]
    pub fn rates(&self, flow: &FlowRecord) -> (f32, f32) {
        if flow.changed_epoch == 0 || flow.changed_epoch < self.epoch {
            return (0.0, 0.0);
        }
        let per_second = SECOND_NS as f64 / self.interval_ns as f64;
        let rate = |sum: f32| narrow(f64::from(sum) * per_second);
        (rate(flow.byte_rate), rate(flow.packet_rate))
    }

    /// A flow of this table as it may leave it.
    #[must_use]
    pub fn record(&self, flow: &FlowRecord) -> FlowRecord {
        let (byte_rate, packet_rate) = self.rates(flow);
        FlowRecord { byte_rate, packet_rate, ..flow.clone() }
    }

    /// An active flow that changed after drain `since` and was told not after drain `until`.
    #[must_use]
    pub fn changed(&self, slot: usize, since: u32, until: u32) -> Option<&FlowRecord> {
        let row = self.rows.get(slot)?;
        let fresh = row.flow.changed_epoch > since && row.start_epoch <= until;
        let active = row.flow.state == FlowState::Active && row.flow.flow_id != 0;
        (fresh && active).then_some(&row.flow)
    }

    fn find(&self, id: &FlowId) -> Option<u32> {
        let same = |slot: &u32| self.rows[*slot as usize].flow.id == *id;
        self.index.find(self.hasher.hash_one(id), same).copied()
    }

    fn signal(&mut self, signal: &FlowSignal, added: &EnrichedEvent, output: &mut Output) {
        self.now_ns = self.now_ns.max(signal.time_ns);
        let found = self.find(&signal.id);
        let Some(slot) = found.or_else(|| self.insert(signal.id, signal.time_ns, output)) else {
            // The flow's counts will be counted as lost; there is nothing else to lose.
            return;
        };
        let tcp = if signal.id.key.protocol == keys::TCP { tcp_bits(signal.tcp_flags) } else { 0 };
        self.merge(slot, &signal.facts, added);
        let flow = &mut self.rows[slot as usize].flow;
        flow.tcp_seen |= tcp;
        match signal.kind {
            SignalKind::Start => flow.first_seen_ns = flow.first_seen_ns.min(signal.time_ns),
            SignalKind::TcpState | SignalKind::End => {}
        }
        flow.last_seen_ns = flow.last_seen_ns.max(signal.time_ns);
        self.touch(slot);
        if found.is_none() {
            self.tell_start(slot, output);
        }
    }

    fn count(&mut self, count: &FlowCount, added: &EnrichedEvent, output: &mut Output) {
        self.now_ns = self.now_ns.max(count.last_seen_ns);
        let found = self.find(&count.id);
        let Some(slot) = found.or_else(|| self.insert(count.id, count.first_seen_ns, output))
        else {
            let volume = Volume { packets: count.packets, bytes: count.bytes };
            output.tally.lose(losses::of_packets("flow_table", "no_room", volume));
            return;
        };
        self.merge(slot, &count.facts, added);
        if count.new_line {
            self.rows[slot as usize].lines_or_end_s += 1;
        }
        let current = self.epoch.wrapping_add(1);
        let flow = &mut self.rows[slot as usize].flow;
        if flow.changed_epoch != current {
            flow.changed_epoch = current;
            (flow.byte_rate, flow.packet_rate) = (0.0, 0.0);
        }
        flow.byte_rate += count.bytes as f32;
        flow.packet_rate += count.packets as f32;
        flow.packets += count.packets;
        flow.bytes += count.bytes;
        flow.first_seen_ns = flow.first_seen_ns.min(count.first_seen_ns);
        flow.last_seen_ns = flow.last_seen_ns.max(count.last_seen_ns);
        self.note_answer(slot);
        self.touch(slot);
        if found.is_none() {
            self.tell_start(slot, output);
        }
    }

    fn released(&mut self, id: &FlowId, output: &mut Output) {
        let Some(slot) = self.find(id) else { return };
        let row = &mut self.rows[slot as usize];
        // Another CPU, or a packet after the release began, may have opened a second line.
        row.lines_or_end_s = row.lines_or_end_s.saturating_sub(1);
        if row.lines_or_end_s > 0 {
            return;
        }
        let reason = if row.flow.tcp_seen & tcp_bit::RST != 0 {
            EndReason::Rst
        } else if row.flow.tcp_seen & tcp_bit::FIN != 0 {
            EndReason::Fin
        } else {
            EndReason::Idle
        };
        self.end(slot, reason, output);
    }

    fn close_drain(&mut self, time_ns: u64, output: &mut Output) {
        self.epoch = self.epoch.wrapping_add(1);
        self.interval_ns = time_ns.saturating_sub(self.drained_ns).max(1);
        self.drained_ns = time_ns;
        self.now_ns = self.now_ns.max(time_ns);
        let idle_since = self.now_ns.saturating_sub(clock::nanos(self.limits.idle));
        while let Some(row) = self.rows.get(self.active.head as usize)
            && row.flow.last_seen_ns < idle_since
        {
            self.end(self.active.head, EndReason::Idle, output);
        }
        let kept_s = (self.now_ns / SECOND_NS).saturating_sub(self.limits.history.as_secs());
        while let Some(row) = self.rows.get(self.ended.head as usize)
            && u64::from(row.lines_or_end_s) < kept_s
        {
            self.forget(self.ended.head);
        }
    }

    /// Ends all active flows because the agent stops.
    fn end_all(&mut self, time_ns: u64, output: &mut Output) {
        self.now_ns = self.now_ns.max(time_ns);
        while self.active.head != NONE {
            self.end(self.active.head, EndReason::Shutdown, output);
        }
    }

    fn merge(&mut self, slot: u32, facts: &FlowFacts, added: &EnrichedEvent) {
        let flow = &mut self.rows[slot as usize].flow;
        if flow.cookie == 0 {
            flow.cookie = facts.cookie;
        }
        if flow.membership.is_none() {
            flow.membership.clone_from(&added.membership);
        }
        if flow.interface.is_none() {
            flow.interface.clone_from(&added.interface);
        }
        if flow.scope == crate::event::Scope::Unknown {
            flow.scope = keys::scope_of(&flow.id.key, facts.scope, added.local);
        }
        flow.tcp_seen |= facts.tcp_seen;
    }

    /// Notes that a TCP connection was answered: SYN and SYN+ACK were seen in the two directions,
    /// and the one that began has gone on.
    fn note_answer(&mut self, slot: u32) {
        let flow = &self.rows[slot as usize].flow;
        let opened = flow.tcp_seen & (tcp_bit::SYN | tcp_bit::SYN_ACK);
        if flow.established || opened == 0 || flow.id.key.protocol != keys::TCP {
            return;
        }
        let Some(other) = self.find(&keys::reverse(&flow.id)) else { return };
        let answer = &self.rows[other as usize].flow;
        let (opener, answerer) =
            if opened & tcp_bit::SYN_ACK == 0 { (flow, answer) } else { (answer, flow) };
        if answerer.tcp_seen & tcp_bit::SYN_ACK != 0 && opener.packets > 1 {
            self.rows[slot as usize].flow.established = true;
            self.rows[other as usize].flow.established = true;
        }
    }

    fn touch(&mut self, slot: u32) {
        if self.active.tail != slot {
            self.active.remove(&mut self.rows, slot);
            self.active.push(&mut self.rows, slot);
        }
    }

    fn tell_start(&self, slot: u32, output: &mut Output) {
        let record = self.record(&self.rows[slot as usize].flow);
        output.told.push(Told::FlowStart(record));
    }

    fn insert(&mut self, id: FlowId, first_seen_ns: u64, output: &mut Output) -> Option<u32> {
        let slot = self.room(output)?;
        self.last_flow_id += 1;
        let row = &mut self.rows[slot as usize];
        row.flow = FlowRecord { flow_id: self.last_flow_id, first_seen_ns, ..blank(id) };
        row.start_epoch = self.epoch.wrapping_add(1);
        row.lines_or_end_s = 0;
        let (rows, hasher) = (&self.rows, &self.hasher);
        self.index.insert_unique(hasher.hash_one(id), slot, |slot| {
            hasher.hash_one(rows[*slot as usize].flow.id)
        });
        self.active.push(&mut self.rows, slot);
        Some(slot)
    }

    /// A free row; if there is none, that of the earliest ended flow, else that of an active one
    /// that was silent for a whole drain. A flow that is being counted never makes room.
    fn room(&mut self, output: &mut Output) -> Option<u32> {
        if self.free == NONE && self.rows.len() < self.limits.max_flows as usize {
            let slot = u32::try_from(self.rows.len()).ok()?;
            self.rows.push(Row {
                flow: blank(FlowId { key: orb8_common::network::FlowKey::EMPTY, owner: 0 }),
                start_epoch: 0,
                lines_or_end_s: 0,
                previous: NONE,
                next: NONE,
            });
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
        let hash = self.hasher.hash_one(self.rows[slot as usize].flow.id);
        if let Ok(entry) = self.index.find_entry(hash, |other| *other == slot) {
            entry.remove();
        }
        self.active.remove(&mut self.rows, slot);
        let ended_s = u32::try_from(self.now_ns.div_ceil(SECOND_NS)).unwrap_or(u32::MAX);
        let row = &mut self.rows[slot as usize];
        row.flow.state = FlowState::Ended(reason);
        row.lines_or_end_s = ended_s;
        output.told.push(Told::FlowEnd(self.record(&self.rows[slot as usize].flow)));
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
        row.next = self.free;
        self.free = slot;
    }
}

/// [`tcp_bit`]s of the TCP flags byte of one packet (RFC 9293, section 3.1).
fn tcp_bits(flags: u8) -> u8 {
    const FIN: u8 = 1;
    const SYN: u8 = 2;
    const RST: u8 = 4;
    const ACK: u8 = 16;
    let opening = match (flags & SYN != 0, flags & ACK != 0) {
        (true, true) => tcp_bit::SYN_ACK,
        (true, false) => tcp_bit::SYN,
        (false, _) => 0,
    };
    let fin = if flags & FIN == 0 { 0 } else { tcp_bit::FIN };
    let rst = if flags & RST == 0 { 0 } else { tcp_bit::RST };
    opening | fin | rst
}

#[allow(clippy::cast_possible_truncation, reason = "a rate needs no more than 24 bits")]
fn narrow(rate: f64) -> f32 {
    rate as f32
}

/// The stage that keeps the table.
#[derive(Debug)]
pub struct FlowProcessor {
    table: SharedTable,
}

impl FlowProcessor {
    /// A processor that keeps this table.
    #[must_use]
    pub const fn new(table: SharedTable) -> Self {
        Self { table }
    }
}

impl EventProcessor for FlowProcessor {
    fn process(&mut self, events: &[EnrichedEvent], output: &mut Output) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        for enriched in events {
            match &enriched.event {
                Event::Flow(signal) => table.signal(signal, enriched, output),
                Event::Count(count) => table.count(count, enriched, output),
                Event::Released(id) => table.released(id, output),
                Event::Drained(report) => table.close_drain(report.time_ns, output),
                Event::Packet(packet) => {
                    let id = keys::packet_id(packet);
                    let known = table.find(&id).map(|slot| &table.rows[slot as usize].flow);
                    let flow = known.map_or_else(
                        || FlowRecord {
                            interface: enriched.interface.clone(),
                            scope: keys::scope_of(&id.key, 0, enriched.local),
                            first_seen_ns: packet.time_ns,
                            last_seen_ns: packet.time_ns,
                            ..blank(id)
                        },
                        |flow| table.record(flow),
                    );
                    let record = PacketRecord { packet: *packet, flow };
                    output.told.push(Told::Packet(Box::new(record)));
                }
                Event::Notice(_) => {}
            }
        }
    }

    fn finish(&mut self, time_ns: u64, output: &mut Output) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.end_all(time_ns, output);
    }
}

#[cfg(test)]
mod tests;
