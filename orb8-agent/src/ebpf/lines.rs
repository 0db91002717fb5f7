//! Reads the flow lines: differences of running totals, in batches, without a system call a flow;
//! and takes lines out of use, never under a running program.
//!
//! What a flow has is the sum of its line in the table and of what the CPUs' caches hold for it. A
//! drain reads the table first: counts only ever move from a cache to the table, so what moves
//! meanwhile is missed and found by the next drain, and is never found twice.
//!
//! A line is taken out of use in steps. Its cell of the index is emptied, so that no program finds
//! it any more. After a grace period, when no program can still hold it, what the caches hold for
//! it is added to it; programs look a line up in the index before they add to a cached line as
//! old as these. After another grace period, when whoever was just moving counts to it has ended,
//! the last difference is read, the line is zeroed and pushed to the free list.

mod leaving;
mod looks;
mod pace;
mod slots;

use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use orb8_common::cache::FRESH_TICKS;
use orb8_common::counter;
use orb8_common::index;
use orb8_common::network::{FlowKey, FlowLine, FlowMeta, tcp_seen};

use self::leaving::{Reaching, Waiting};
use self::looks::Looks;
use self::pace::Pace;
use self::slots::{Slot, State};
use super::clock::{Clock, Reference};
use super::cpus::Cached;
use super::grace::Grace;
use super::load::Table;
use super::side_channel::SideChannel;
use crate::event::{Counters, DrainReport, Event, FlowCount, FlowFacts, FlowId, Notice, Severity};
use crate::pipeline::source::{EventSource, SourceError, Wakeup};

/// The source that reads the flow lines, by its name.
pub const LINES: &str = "lines";
/// Lines looked at in one call, so that the ring is served in between.
const LINES_A_CALL: u32 = 2048;
/// Lines of the caches looked at in one call: most hold nothing or only add to a sum.
const CACHED_A_CALL: u32 = 16_384;
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

/// One pass over all lines that may be in use.
#[derive(Clone, Copy)]
struct Pass {
    step: Step,
    cursor: u32,
    end: u32,
    before: Counters,
    reference: Reference,
}

/// What a pass is at; each step goes over all lines before the next begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Reads the lines of the table.
    Table,
    /// Adds what the caches hold.
    Caches,
    /// Tells what is new, and finds out who is idle.
    Tell,
}

/// The flow lines as a source of events.
pub struct LineSource {
    table: Table,
    clock: Clock,
    grace: Grace,
    times: LineTimes,
    pace: Pace,
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
    looks: Looks,
    pass: Option<Pass>,
    /// [`State::Unlisted`], not yet waiting.
    idle: Vec<u32>,
    /// Waited: to be [`State::Emptied`] now.
    emptying: Vec<u32>,
    /// [`State::Emptied`]: the caches are being gone through for them.
    taking: Vec<u32>,
    /// What found one of them on the index began before this tick, and has ended.
    taking_since: u32,
    /// [`State::Leaving`], not yet waiting.
    taken: Vec<u32>,
    waiting: Option<Waiting>,
    reaching: Reaching,
    /// To be given back now.
    releasing: Vec<u32>,
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
        let pace = Pace::new(times.drain_interval, table.lines.count());
        Self {
            table,
            clock,
            grace,
            times,
            pace,
            side,
            slots,
            high: 0,
            in_use: 0,
            last_seen_packets: 0,
            was_quiet: false,
            due: Instant::now() + pace.interval(),
            looks: Looks::after(Instant::now(), pace.until_look()),
            pass: None,
            idle: Vec::new(),
            emptying: Vec::new(),
            taking: Vec::new(),
            taking_since: 0,
            taken: Vec::new(),
            waiting: None,
            reaching: Reaching::default(),
            releasing: Vec::new(),
        }
    }

    fn begin(&mut self) -> Result<Pass, SourceError> {
        let reference = self.clock.now().map_err(|e| failed(&e))?;
        let before = self.table.cpus.counters();
        self.reaching.try_again();
        let ahead = self.high.saturating_add(LOOK_AHEAD).min(self.table.lines.count());
        self.reach(ahead)?;
        let quiet = before.0[counter::SEEN_PACKETS] == self.last_seen_packets;
        let end = if quiet && self.was_quiet && self.in_use == 0 { 0 } else { ahead };
        self.was_quiet = quiet;
        Ok(Pass { step: Step::Table, cursor: 0, end, before, reference })
    }

    fn reach(&mut self, lines: u32) -> Result<(), SourceError> {
        if self.slots.len() < lines as usize {
            self.slots.resize(lines as usize, Slot::default());
        }
        let Table { lines: all, meta, .. } = &mut self.table;
        all.reach(lines).and_then(|()| meta.reach(lines)).map_err(|e| failed(&e))
    }

    /// Does the next part of a pass; true when the pass is through.
    fn advance(&mut self, pass: &mut Pass, out: &mut Vec<Event>) -> Result<bool, SourceError> {
        let part = match pass.step {
            Step::Table | Step::Tell => LINES_A_CALL,
            Step::Caches => CACHED_A_CALL,
        };
        let stop = pass.cursor.saturating_add(part);
        while pass.cursor < stop.min(self.end_of(pass)) {
            match pass.step {
                Step::Table => self.read(pass)?,
                Step::Caches => {
                    if let Some(next) = self.table.cpus.after_unused(pass.cursor) {
                        pass.cursor = next;
                        continue;
                    }
                    self.read_cached(pass.cursor);
                }
                Step::Tell => self.tell(pass.cursor, &pass.reference, out),
            }
            pass.cursor += 1;
        }
        if pass.cursor < self.end_of(pass) {
            return Ok(false);
        }
        pass.cursor = 0;
        // What moves from a cache to the table meanwhile is seen in neither or in the table.
        fence(Ordering::Acquire);
        match pass.step {
            Step::Table => pass.step = Step::Caches,
            Step::Caches => {
                self.all_taken();
                pass.step = Step::Tell;
            }
            Step::Tell => return Ok(true),
        }
        Ok(false)
    }

    /// Lets caches grow with the flows, between two passes.
    fn provide_caches(&mut self) {
        if let Err(error) = self.table.cpus.provide(self.in_use) {
            self.side.notify(Notice {
                severity: Severity::Warning,
                code: "line_cache_stays",
                message: format!(
                    "the caches of flow lines cannot be made larger: {error}; more packets are \
                     counted in the table, which costs each some ten nanoseconds more"
                ),
            });
        }
    }

    /// Where the step ends; the end of the table's part moves with what is found.
    const fn end_of(&self, pass: &Pass) -> u32 {
        match pass.step {
            Step::Table | Step::Tell => pass.end,
            // Nothing is cached for lines that are not in use.
            Step::Caches if pass.end == 0 => 0,
            Step::Caches => self.table.cpus.count(),
        }
    }

    /// Reads a line of the table.
    fn read(&mut self, pass: &mut Pass) -> Result<(), SourceError> {
        let slot = pass.cursor;
        let lines = &self.table.lines;
        let packets = lines.word32(slot, offset_of!(FlowLine, packets)).load(Ordering::Acquire);
        if self.slots[slot as usize].state == State::Free {
            // In use now if its key is whole.
            if packets == 0 || self.identify(slot).is_none() {
                return Ok(());
            }
            self.slots[slot as usize] = Slot::default();
            self.slots[slot as usize].state = State::New;
            self.in_use += 1;
            if slot >= self.high {
                self.high = slot + 1;
                // There may be more behind it.
                let ahead = self.high.saturating_add(LOOK_AHEAD).min(self.table.lines.count());
                self.reach(ahead)?;
                pass.end = pass.end.max(ahead);
            }
        }
        let lines = &self.table.lines;
        let bytes = lines.word64(slot, offset_of!(FlowLine, bytes)).load(Ordering::Relaxed);
        let stamp = lines.word32(slot, offset_of!(FlowLine, last_seen)).load(Ordering::Relaxed);
        self.slots[slot as usize].found(packets, bytes, stamp);
        Ok(())
    }

    /// Adds what a line of a cache holds to what was found of its flow.
    fn read_cached(&mut self, number: u32) {
        let Some(held) = self.table.cpus.read(number) else { return };
        let Some(slot) = self.slots.get_mut(held.slot as usize) else { return };
        if slot.state == State::Free {
            // Of a flow that began after the table was read.
            return;
        }
        slot.add(held.packets(), held.bytes(), held.last_seen);
        if slot.state != State::Emptied {
            return;
        }
        let limit = self.taking_since.wrapping_sub(FRESH_TICKS);
        if held.last_seen.wrapping_sub(limit).cast_signed() > 0 {
            // Somebody had found the line just before it was taken off the index, and others may
            // have added to it without looking there.
            self.list_again(held.slot);
        } else if self.table.cpus.take(number, &held) {
            self.fold(&held);
        } else {
            self.list_again(held.slot);
        }
    }

    /// Adds what was taken out of a cache to its line in the table.
    fn fold(&self, held: &Cached) {
        let lines = &self.table.lines;
        let word32 = |offset| lines.word32(held.slot, offset);
        word32(offset_of!(FlowLine, packets)).fetch_add(held.packets(), Ordering::AcqRel);
        let bytes = lines.word64(held.slot, offset_of!(FlowLine, bytes));
        bytes.fetch_add(held.bytes(), Ordering::AcqRel);
        let stamp = word32(offset_of!(FlowLine, last_seen));
        if held.last_seen.wrapping_sub(stamp.load(Ordering::Relaxed)).cast_signed() > 0 {
            stamp.store(held.last_seen, Ordering::Relaxed);
        }
    }

    /// Tells what is new on a line since the last time, and takes the first step out of use with
    /// one that is idle.
    fn tell(&mut self, number: u32, now: &Reference, out: &mut Vec<Event>) {
        let Some(slot) = self.slots.get(number as usize) else { return };
        if slot.state == State::Free || self.count(number, now, out) {
            return;
        }
        let Slot { state, last_seen, .. } = self.slots[number as usize];
        let idle = now.ticks_since(last_seen);
        if state == State::Used && idle >= self.rest(now) && self.has_idled(number, idle, now) {
            self.unlist(number);
        }
    }

    /// Ticks without a packet before which no line goes out of use: twice as long as programs add
    /// to a cached line without looking it up.
    fn rest(&self, now: &Reference) -> u32 {
        now.ticks_in(self.times.linger).max(2 * FRESH_TICKS)
    }

    fn has_idled(&self, slot: u32, idle: u32, now: &Reference) -> bool {
        let seen = self.table.meta.copy(slot).seen;
        let closing = seen[tcp_seen::FIN] != 0 || seen[tcp_seen::RST] != 0;
        closing || idle >= now.ticks_in(self.times.idle_timeout)
    }

    /// The flow of a line, if the line is whole: its tag is a function of the rest, so a line
    /// that a CPU is still writing does not pass for another flow.
    fn identify(&self, slot: u32) -> Option<(FlowId, u64)> {
        let line = self.table.lines.copy(slot);
        let key = FlowKey { tag: 0, ..line.key };
        let hash = index::hash(&key, line.owner, &self.table.seed);
        (line.key.tag == index::tag(hash)).then_some((FlowId { key, owner: line.owner }, hash))
    }

    /// Tells what was found on a line beyond what was told; false if nothing was.
    fn count(&mut self, number: u32, now: &Reference, out: &mut Vec<Event>) -> bool {
        let slot = &mut self.slots[number as usize];
        let Some(more) = slot.tell() else { return false };
        let new_line = slot.state == State::New;
        if new_line {
            slot.state = State::Used;
        }
        let stamp = slot.last_seen;
        let line = self.table.lines.copy(number);
        let meta = self.table.meta.copy(number);
        out.push(Event::Count(FlowCount {
            id: FlowId { key: FlowKey { tag: 0, ..line.key }, owner: line.owner },
            line: number,
            new_line,
            packets: u64::from(more.packets),
            bytes: more.bytes,
            first_seen_ns: meta.first_seen_ns,
            last_seen_ns: now.time_of(stamp).max(meta.first_seen_ns),
            facts: facts(&meta),
        }));
        true
    }

    /// Changes the pace, also of the wait that goes on.
    fn change_pace(&mut self, change: impl FnOnce(&mut Pace)) {
        let before = self.pace.interval();
        change(&mut self.pace);
        if self.pass.is_none() {
            self.due = self.due + self.pace.interval() - before;
        }
    }

    fn end(&mut self, pass: &Pass, out: &mut Vec<Event>) {
        let after = self.table.cpus.counters();
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
    SourceError { source_name: LINES, message: error.to_string() }
}

impl EventSource for LineSource {
    fn name(&self) -> &'static str {
        LINES
    }

    fn wakeup(&self) -> Wakeup<'_> {
        Wakeup { fd: None, due: Some(self.due.min(self.looks.due())) }
    }

    fn hurry(&mut self, now: Instant) {
        self.due = self.due.min(now);
    }

    fn pace(&mut self, interval: Duration) {
        self.change_pace(|pace| pace.ask(interval));
    }

    fn keeps_set_pace(&self) -> bool {
        self.pace.is_scarce()
    }

    fn collect(&mut self, now: Instant, out: &mut Vec<Event>) -> Result<(), SourceError> {
        if let Some(late) = self.looks.look(now) {
            // Also to be read in time, see `counter::apart`.
            let counters = self.table.cpus.counters();
            self.change_pace(|pace| pace.look(&counters));
            self.looks.put_off(now + self.pace.until_look());
            looks::notice(late).into_iter().for_each(|notice| self.side.notify(notice));
        }
        if now < self.due {
            return Ok(());
        }
        let mut pass = match self.pass.take() {
            Some(pass) => pass,
            None => {
                // Also after an error: the next try is one interval away.
                self.due = now + self.pace.interval();
                let pass = self.begin()?;
                self.step_on();
                self.due = now;
                pass
            }
        };
        if !self.release(&pass.reference, out) || !self.empty() {
            self.pass = Some(pass);
            return Ok(());
        }
        if self.advance(&mut pass, out)? {
            self.pace.count(self.in_use, &pass.before);
            self.due = now + self.pace.interval();
            // A drain looks, too.
            self.looks.put_off(now + self.pace.until_look());
            self.ask_for_grace(&pass.reference);
            self.provide_caches();
            self.end(&pass, out);
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
        self.end(&pass, out);
        Ok(())
    }
}
