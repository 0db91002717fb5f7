//! Reads the flow lines: differences of running totals, in batches, without a system call a flow;
//! and takes lines out of use, never under a running program.
//!
//! A line is taken out of use in two steps. First its cell of the index is emptied, so that no
//! program finds it any more. After a grace period, when no program can still hold it, the last
//! difference is read, the line is zeroed and pushed to the free list.

use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use orb8_common::counter;
use orb8_common::index::{self, EMPTY_CELL, GROUP_CELLS};
use orb8_common::network::{FlowKey, FlowLine, FlowMeta, tcp_seen};

use super::clock::{Clock, Reference};
use super::grace::{Grace, Ticket};
use super::load::Table;
use super::side_channel::SideChannel;
use crate::event::{Counters, DrainReport, Event, FlowCount, FlowFacts, FlowId};
use crate::pipeline::source::{BATCH, EventSource, SourceError, Wakeup};

/// Lines looked at in one call, so that the ring is served in between.
const LINES_A_CALL: u32 = 2048;
/// Lines beyond the highest one used that are looked at for new ones: programs take numbers in
/// order, and a CPU may still be writing the line it took.
const LOOK_AHEAD: u32 = 512;

/// How long lines stay.
#[derive(Clone, Copy, Debug)]
pub struct LineTimes {
    /// Between two drains.
    pub drain_interval: Duration,
    /// Without a packet until a line is taken out of use.
    pub idle_timeout: Duration,
    /// Without a packet after FIN or RST until a line is taken out of use.
    pub linger: Duration,
}

/// What was read of a line at the last drain.
#[derive(Clone, Copy, Default)]
struct Slot {
    bytes: u64,
    packets: u32,
    state: SlotState,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(u32)]
enum SlotState {
    #[default]
    Free,
    Used,
    /// Its cell is empty; it waits for a grace period.
    Leaving,
}

/// One pass over all lines that may be in use.
#[derive(Clone, Copy)]
struct Pass {
    cursor: u32,
    end: u32,
    before: Counters,
    reference: Reference,
}

/// The flow lines as a source of events.
pub struct LineSource {
    table: Table,
    clock: Clock,
    grace: Grace,
    times: LineTimes,
    side: Arc<SideChannel>,
    slots: Vec<Slot>,
    /// One more than the highest line ever seen in use.
    high: u32,
    in_use: u32,
    last_seen_packets: u64,
    /// The last pass saw nothing new either. A program may stand between counting a packet as
    /// seen and counting it on its line, so one quiet pass proves nothing.
    was_quiet: bool,
    due: Instant,
    pass: Option<Pass>,
    /// Found idle in this pass, cells already empty.
    leaving: Vec<u32>,
    /// Waiting for a grace period.
    waiting: Vec<u32>,
    ticket: Option<Ticket>,
}

impl LineSource {
    /// Makes a source that drains for the first time after one interval.
    #[must_use]
    pub fn new(
        table: Table,
        clock: Clock,
        grace: Grace,
        times: LineTimes,
        side: Arc<SideChannel>,
    ) -> Self {
        // Reserved now, touched as lines come into use.
        let slots = Vec::with_capacity(table.lines.count() as usize);
        Self {
            table,
            clock,
            grace,
            times,
            side,
            slots,
            high: 0,
            in_use: 0,
            last_seen_packets: 0,
            was_quiet: false,
            due: Instant::now() + times.drain_interval,
            pass: None,
            leaving: Vec::new(),
            waiting: Vec::new(),
            ticket: None,
        }
    }

    fn begin(&mut self) -> Result<Pass, SourceError> {
        let reference = self.clock.now().map_err(|e| failed(&e))?;
        let before = self.counters()?;
        let ahead = self.high.saturating_add(LOOK_AHEAD).min(self.table.lines.count());
        self.reach(ahead)?;
        let quiet = before.0[counter::SEEN_PACKETS] == self.last_seen_packets;
        let end = if quiet && self.was_quiet && self.in_use == 0 { 0 } else { ahead };
        self.was_quiet = quiet;
        Ok(Pass { cursor: 0, end, before, reference })
    }

    fn reach(&mut self, lines: u32) -> Result<(), SourceError> {
        if self.slots.len() < lines as usize {
            self.slots.resize(lines as usize, Slot::default());
        }
        let Table { lines: all, meta, .. } = &mut self.table;
        all.reach(lines).and_then(|()| meta.reach(lines)).map_err(|e| failed(&e))
    }

    fn counters(&self) -> Result<Counters, SourceError> {
        let of_cpus = self.table.counters.get(&0, 0).map_err(|e| failed(&e))?;
        let mut sum = Counters::default();
        for of_cpu in of_cpus.iter() {
            for (total, n) in sum.0.iter_mut().zip(of_cpu) {
                *total = total.wrapping_add(*n);
            }
        }
        Ok(sum)
    }

    /// Reads the next lines of a pass; true when the pass is through.
    fn advance(&mut self, pass: &mut Pass, out: &mut Vec<Event>) -> Result<bool, SourceError> {
        let stop = pass.end.min(pass.cursor.saturating_add(LINES_A_CALL));
        while pass.cursor < stop {
            let used = self.read(pass.cursor, &pass.reference, out);
            if used && pass.cursor >= self.high {
                self.high = pass.cursor + 1;
                // There may be more behind it.
                let ahead = self.high.saturating_add(LOOK_AHEAD).min(self.table.lines.count());
                self.reach(ahead)?;
                pass.end = pass.end.max(ahead);
            }
            pass.cursor += 1;
        }
        Ok(pass.cursor >= pass.end)
    }

    /// Reads one line; false if it is free.
    fn read(&mut self, slot: u32, now: &Reference, out: &mut Vec<Event>) -> bool {
        let seen = self.slots[slot as usize];
        if seen.state == SlotState::Free {
            return self.read_new(slot, now, out);
        }
        if self.count(slot, false, now, out) || seen.state == SlotState::Leaving {
            return true;
        }
        let stamp = self.table.lines.word32(slot, offset_of!(FlowLine, last_seen));
        let idle = now.ticks_since(stamp.load(Ordering::Relaxed));
        if idle >= now.ticks_in(self.times.linger) && self.has_idled(slot, idle, now) {
            self.leave(slot);
        }
        true
    }

    fn has_idled(&self, slot: u32, idle: u32, now: &Reference) -> bool {
        let seen = self.table.meta.copy(slot).seen;
        let closing = seen[tcp_seen::FIN] != 0 || seen[tcp_seen::RST] != 0;
        closing || idle >= now.ticks_in(self.times.idle_timeout)
    }

    /// A line that was free: in use now if its key is whole.
    fn read_new(&mut self, slot: u32, now: &Reference, out: &mut Vec<Event>) -> bool {
        let packets = self.table.lines.word32(slot, offset_of!(FlowLine, packets));
        if packets.load(Ordering::Acquire) == 0 || self.identify(slot).is_none() {
            return false;
        }
        self.slots[slot as usize] = Slot { state: SlotState::Used, ..Slot::default() };
        self.in_use += 1;
        self.count(slot, true, now, out);
        true
    }

    /// The flow of a line, if the line is whole: its tag is a function of the rest, so a line
    /// that a CPU is still writing does not pass for another flow.
    fn identify(&self, slot: u32) -> Option<(FlowId, u64)> {
        let line = self.table.lines.copy(slot);
        let key = FlowKey { tag: 0, ..line.key };
        let hash = index::hash(&key, line.owner, self.table.seed);
        (line.key.tag == index::tag(hash)).then_some((FlowId { key, owner: line.owner }, hash))
    }

    /// Tells what was counted on a line since the last time; false if nothing was.
    fn count(&mut self, slot: u32, new_line: bool, now: &Reference, out: &mut Vec<Event>) -> bool {
        let lines = &self.table.lines;
        let packets = lines.word32(slot, offset_of!(FlowLine, packets)).load(Ordering::Relaxed);
        let bytes = lines.word64(slot, offset_of!(FlowLine, bytes)).load(Ordering::Relaxed);
        let stamp = lines.word32(slot, offset_of!(FlowLine, last_seen)).load(Ordering::Relaxed);
        let seen = &mut self.slots[slot as usize];
        let more_packets = packets.wrapping_sub(seen.packets);
        let more_bytes = bytes.wrapping_sub(seen.bytes);
        if more_packets == 0 && more_bytes == 0 {
            return false;
        }
        seen.packets = packets;
        seen.bytes = bytes;
        let line = lines.copy(slot);
        let meta = self.table.meta.copy(slot);
        out.push(Event::Count(FlowCount {
            id: FlowId { key: FlowKey { tag: 0, ..line.key }, owner: line.owner },
            line: slot,
            new_line,
            packets: u64::from(more_packets),
            bytes: more_bytes,
            first_seen_ns: meta.first_seen_ns,
            last_seen_ns: now.time_of(stamp).max(meta.first_seen_ns),
            facts: facts(&meta),
        }));
        true
    }

    /// First step out of use: no program finds the line any more.
    fn leave(&mut self, slot: u32) {
        if !self.reach_index() {
            return;
        }
        if let Some((_, hash)) = self.identify(slot) {
            let mask = self.table.index.count() - 1;
            for group in [index::first_group(hash, mask), index::second_group(hash, mask)] {
                self.empty_cells(group, slot);
            }
        }
        self.slots[slot as usize].state = SlotState::Leaving;
        self.leaving.push(slot);
    }

    /// The index is needed from the first line that leaves; any group may then be asked for.
    fn reach_index(&mut self) -> bool {
        let groups = self.table.index.count();
        match self.table.index.reach(groups) {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%error, "idle flow lines stay: the index cannot be mapped");
                false
            }
        }
    }

    fn empty_cells(&self, group: u32, slot: u32) {
        for cell in 0..GROUP_CELLS {
            // A program may have put another line there meanwhile, which stays.
            let _other = self.table.index.word32(group, cell * 4).compare_exchange(
                slot + 1,
                EMPTY_CELL,
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
        }
    }

    /// Second step: after the grace period nothing is added any more. Gives back some lines; true
    /// when none is left that could be given back now.
    fn release(&mut self, now: &Reference, out: &mut Vec<Event>) -> bool {
        if let Some(ticket) = self.ticket {
            if self.grace.failed(ticket) {
                // Asked for again at the end of the pass.
                self.leaving.append(&mut self.waiting);
                self.ticket = None;
                return true;
            }
            if !self.grace.passed(ticket) {
                return true;
            }
            self.ticket = None;
            self.waiting.sort_unstable();
        }
        // From the highest number, so that the lowest ends on top of the list.
        let keep = self.waiting.len().saturating_sub(BATCH);
        for slot in self.waiting.split_off(keep).into_iter().rev() {
            self.give_back(slot, now, out);
        }
        self.waiting.is_empty()
    }

    fn give_back(&mut self, slot: u32, now: &Reference, out: &mut Vec<Event>) {
        self.count(slot, false, now, out);
        let line = self.table.lines.copy(slot);
        let id = FlowId { key: FlowKey { tag: 0, ..line.key }, owner: line.owner };
        self.table.lines.zero(slot);
        self.table.meta.zero(slot);
        self.slots[slot as usize] = Slot::default();
        self.in_use -= 1;
        out.push(Event::Released(id));
        if let Err(error) = self.table.free.push(slot, 0) {
            // Cannot happen: the list has a place for every line.
            tracing::error!(%error, slot, "a free flow line could not be given back");
        }
    }

    /// Lets the lines found idle wait for a grace period, if none is under way.
    fn ask_for_grace(&mut self) {
        if self.ticket.is_none() && self.waiting.is_empty() && !self.leaving.is_empty() {
            self.ticket = self.grace.ask();
            if self.ticket.is_some() {
                std::mem::swap(&mut self.leaving, &mut self.waiting);
            }
        }
    }

    fn end(&mut self, pass: &Pass, out: &mut Vec<Event>) -> Result<(), SourceError> {
        let after = self.counters()?;
        self.last_seen_packets = pass.before.0[counter::SEEN_PACKETS];
        out.extend(self.side.take_notices().into_iter().map(Event::Notice));
        let (unattached_packets, unattached_bytes) = self.side.unattached();
        out.push(Event::Drained(Box::new(DrainReport {
            time_ns: pass.reference.pair.monotonic_ns,
            before: pass.before,
            after,
            unattached_packets,
            unattached_bytes,
            undecodable: self.side.undecodable(),
            lines_in_use: u64::from(self.in_use),
        })));
        Ok(())
    }
}

fn facts(meta: &FlowMeta) -> FlowFacts {
    let bit = |at: usize, value: u8| if meta.seen[at] != 0 { value } else { 0 };
    FlowFacts {
        cgroup_id: meta.cgroup_id,
        cookie: meta.cookie,
        scope: meta.seen[tcp_seen::SCOPE],
        tcp_seen: bit(tcp_seen::FIN, 1)
            | bit(tcp_seen::SYN, 2)
            | bit(tcp_seen::RST, 4)
            | bit(tcp_seen::SYN_ACK, 8),
    }
}

fn failed(error: &dyn std::fmt::Display) -> SourceError {
    SourceError { source_name: "lines", message: error.to_string() }
}

impl EventSource for LineSource {
    fn name(&self) -> &'static str {
        "lines"
    }

    fn wakeup(&self) -> Wakeup<'_> {
        Wakeup { fd: None, due: Some(self.due) }
    }

    fn collect(&mut self, now: Instant, out: &mut Vec<Event>) -> Result<(), SourceError> {
        if now < self.due {
            return Ok(());
        }
        let mut pass = match self.pass.take() {
            Some(pass) => pass,
            None => {
                // Also after an error: the next try is one interval away.
                self.due = now + self.times.drain_interval;
                let pass = self.begin()?;
                self.due = now;
                pass
            }
        };
        if !self.release(&pass.reference, out) {
            self.pass = Some(pass);
            return Ok(());
        }
        if self.advance(&mut pass, out)? {
            self.due = now + self.times.drain_interval;
            self.ask_for_grace();
            self.end(&pass, out)?;
        } else {
            self.pass = Some(pass);
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<Event>) -> Result<(), SourceError> {
        let mut pass = self.begin()?;
        pass.end = self.high.saturating_add(LOOK_AHEAD).min(self.table.lines.count());
        self.reach(pass.end)?;
        while !self.advance(&mut pass, out)? {}
        self.end(&pass, out)
    }
}
