//! How lines leave: off the index, out of the caches, back to the list of free lines, each step
//! when no running program can still be at the one before.

use std::io;
use std::sync::atomic::Ordering;

use orb8_common::index::{self, EMPTY_CELL, GROUP_CELLS};
use orb8_common::network::FlowKey;

use super::LineSource;
use super::slots::{Slot, State};
use crate::ebpf::clock::Reference;
use crate::ebpf::grace::Ticket;
use crate::ebpf::side_channel::SideChannel;
use crate::event::{Event, FlowId, Notice, Severity};
use crate::pipeline::source::BATCH;

/// Lines that take their next step out of use when a grace period has passed.
pub(super) struct Waiting {
    ticket: Ticket,
    /// Tick of the pass that asked: what began before has ended when the period has passed.
    since: u32,
    /// To be [`State::Emptied`].
    idle: Vec<u32>,
    /// To be free.
    taken: Vec<u32>,
}

/// Where the index cannot be mapped, that is tried once a pass, whatever number of lines would
/// leave, and told once.
#[derive(Default)]
pub(super) struct Reaching {
    /// In this pass.
    failed: bool,
    told: bool,
}

impl Reaching {
    /// Another pass begins.
    pub(super) const fn try_again(&mut self) {
        self.failed = false;
    }

    /// Whether the index is mapped, by what is given if that has not failed in this pass.
    fn is_mapped(&mut self, map: impl FnOnce() -> io::Result<()>, side: &SideChannel) -> bool {
        if self.failed {
            return false;
        }
        let Err(error) = map() else { return true };
        self.failed = true;
        if !std::mem::replace(&mut self.told, true) {
            side.notify(lines_stay(&format!("the index of flow lines cannot be mapped: {error}")));
        }
        false
    }
}

/// That no line goes out of use, and why.
fn lines_stay(why: &str) -> Notice {
    Notice {
        severity: Severity::Warning,
        code: "idle_lines_stay",
        message: format!(
            "{why}; lines of idle flows stay in use, and when all are, packets of new flows are not \
             counted on a flow"
        ),
    }
}

impl LineSource {
    /// First step out of use: no program finds the line any more.
    pub(super) fn unlist(&mut self, slot: u32) {
        if !self.reach_index() {
            return;
        }
        self.clear_cells(slot);
        self.slots[slot as usize].state = State::Unlisted;
        self.idle.push(slot);
    }

    /// Empties the cells that lead to a line; returns how many there were.
    fn clear_cells(&self, slot: u32) -> usize {
        let Some((_, hash)) = self.identify(slot) else { return 0 };
        let groups = self.groups(hash).into_iter();
        groups.map(|group| self.replace_cells(group, slot + 1, EMPTY_CELL, GROUP_CELLS)).sum()
    }

    /// Takes the first step back. Where no cell is free, the flow takes another line with its next
    /// look-up, and this one goes when it is idle.
    pub(super) fn list_again(&mut self, slot: u32) {
        self.slots[slot as usize].state = State::Used;
        if let Some((_, hash)) = self.identify(slot) {
            for group in self.groups(hash) {
                if self.replace_cells(group, EMPTY_CELL, slot + 1, 1) > 0 {
                    return;
                }
            }
        }
    }

    fn groups(&self, hash: u64) -> [u32; 2] {
        let mask = self.table.index.count() - 1;
        [index::first_group(hash, mask), index::second_group(hash, mask)]
    }

    /// The index is needed from the first line that leaves; any group may then be asked for.
    fn reach_index(&mut self) -> bool {
        let index = &mut self.table.index;
        self.reaching.is_mapped(|| index.reach(index.count()), &self.side)
    }

    /// Puts `new` into at most so many cells of a group that hold `old`; returns how many they were.
    /// Another line that a program puts there meanwhile stays.
    fn replace_cells(&self, group: u32, old: u32, new: u32, at_most: usize) -> usize {
        let cells = (0..GROUP_CELLS).map(|cell| self.table.index.word32(group, cell * 4));
        cells
            .filter(|cell| {
                // Most cells are others', and an exchange that fails takes the cache line away too.
                cell.load(Ordering::Relaxed) == old
                    && cell.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            })
            .take(at_most)
            .count()
    }

    /// All caches were gone through: what they held for lines off the index is in the table.
    pub(super) fn all_taken(&mut self) {
        for slot in self.taking.drain(..) {
            let Slot { state, .. } = &mut self.slots[slot as usize];
            // Or it is in use again.
            if *state == State::Emptied {
                *state = State::Leaving;
                self.taken.push(slot);
            }
        }
    }

    /// Lets lines take their next step if a grace period has passed since the last one.
    pub(super) fn step_on(&mut self) {
        if let Some(why) = self.grace.trouble() {
            let why = format!("running programs cannot be waited for: {why}");
            self.side.notify(lines_stay(&why));
        }
        let Some(mut waiting) = self.waiting.take() else { return };
        if self.grace.failed(waiting.ticket) {
            // Asked for again at the end of the pass.
            self.idle.append(&mut waiting.idle);
            self.taken.append(&mut waiting.taken);
        } else if self.grace.passed(waiting.ticket) {
            self.taking_since = waiting.since;
            self.emptying.append(&mut waiting.idle);
            self.releasing.append(&mut waiting.taken);
            self.releasing.sort_unstable();
        } else {
            self.waiting = Some(waiting);
        }
    }

    /// Lets the caches be emptied for some of the lines that no program finds any more; true when
    /// none is left. A program that was stopped between counting a line's first packet and leading
    /// others to it has done so meanwhile, and the line waits once more.
    pub(super) fn empty(&mut self) -> bool {
        let keep = self.emptying.len().saturating_sub(BATCH);
        for slot in self.emptying.split_off(keep) {
            if self.clear_cells(slot) == 0 {
                self.slots[slot as usize].state = State::Emptied;
                self.taking.push(slot);
            } else {
                self.idle.push(slot);
            }
        }
        self.emptying.is_empty()
    }

    /// Gives back some of the lines that nobody can hold any more; true when none is left.
    pub(super) fn release(&mut self, now: &Reference, out: &mut Vec<Event>) -> bool {
        // From the highest number, so that the lowest ends on top of the list.
        let keep = self.releasing.len().saturating_sub(BATCH);
        for slot in self.releasing.split_off(keep).into_iter().rev() {
            self.give_back(slot, now, out);
        }
        self.releasing.is_empty()
    }

    fn give_back(&mut self, slot: u32, now: &Reference, out: &mut Vec<Event>) {
        let line = self.table.lines.copy(slot);
        self.slots[slot as usize].found(line.packets, line.bytes, line.last_seen);
        self.count(slot, now, out);
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

    /// Lets lines wait for a grace period, if none is under way.
    pub(super) fn ask_for_grace(&mut self, now: &Reference) {
        if self.waiting.is_some() || self.idle.is_empty() && self.taken.is_empty() {
            return;
        }
        if let Some(ticket) = self.grace.ask() {
            let (idle, taken) = (std::mem::take(&mut self.idle), std::mem::take(&mut self.taken));
            self.waiting = Some(Waiting { ticket, since: now.stamp(), idle, taken });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use orb8_testbed::need::{Need, met};
    use orb8_testbed::wait::wait_until;

    use super::*;
    use crate::capture::Planes;
    use crate::ebpf::clock::Clock;
    use crate::ebpf::grace::Grace;
    use crate::ebpf::lines::LineTimes;
    use crate::ebpf::load::{LoadOptions, load_object};
    use crate::ebpf::mapping::Mapping;
    use crate::ebpf::object;

    /// The lines of programs of which only the clock is loaded.
    fn lines(grace: Grace) -> LineSource {
        let options = LoadOptions {
            planes: Planes::Tc,
            max_flows: 64,
            memory_budget: 32 << 20,
            ring_bytes: 64 << 10,
            packet_ring_bytes: 64 << 10,
            fault_bytes: 0,
        };
        let loaded = load_object(object::bytes(), &options, |name| name == "orb8_clock").unwrap();
        let clock = loaded.programs.duplicate("orb8_clock").unwrap();
        let clock = Clock::new(clock, loaded.clock).unwrap();
        let [drain_interval, idle_timeout, linger] = [1, 30, 2].map(Duration::from_secs);
        let times = LineTimes { drain_interval, idle_timeout, linger };
        LineSource::new(loaded.table, clock, grace, times, Arc::default())
    }

    #[test]
    fn each_pass_tries_again_to_map_the_index() {
        if !met("each_pass_tries_again_to_map_the_index", &[Need::Root, Need::Bpf]) {
            return;
        }
        let mut lines = lines(Grace::by(|| Ok(())).unwrap());
        let file = std::fs::File::open("/dev/null").unwrap();
        let none = Mapping::new(file, lines.table.index.count()).unwrap();
        let index = std::mem::replace(&mut lines.table.index, none);
        assert!(!lines.reach_index(), "no array");
        lines.table.index = index;
        assert!(!lines.reach_index(), "not before the next pass");
        lines.begin().unwrap();
        assert!(lines.reach_index());
    }

    #[test]
    fn that_nobody_waits_for_programs_is_told_once() {
        if !met("that_nobody_waits_for_programs_is_told_once", &[Need::Root, Need::Bpf]) {
            return;
        }
        let refuses = || Err(io::Error::from_raw_os_error(libc::EPERM));
        let dies: fn() -> io::Result<()> = || panic!("as the test wants it");
        for (grace, why) in
            [(Grace::by(refuses), "Operation not permitted"), (Grace::by(dies), "has ended")]
        {
            let mut lines = lines(grace.unwrap());
            lines.step_on();
            assert_eq!(lines.side.take_notices(), [], "nothing was asked for");
            assert!(lines.grace.ask().is_some());
            let mut told = Vec::new();
            wait_until(Duration::from_secs(60), "a notice", || {
                lines.step_on();
                told = lines.side.take_notices();
                !told.is_empty()
            });
            let [Notice { code: "idle_lines_stay", message, .. }] = &told[..] else {
                panic!("{told:?}")
            };
            assert!(message.contains("cannot be waited for") && message.contains(why), "{message}");
            lines.grace.ask();
            lines.step_on();
            assert_eq!(lines.side.take_notices(), [], "once");
        }
    }

    #[test]
    fn what_cannot_be_mapped_is_tried_once_a_pass_and_told_once() {
        let side = SideChannel::default();
        let mut reaching = Reaching::default();
        let mut tries = 0;
        for pass in 1..=3 {
            reaching.try_again();
            for _line in 0..100 {
                let map = || {
                    tries += 1;
                    Err(io::Error::from_raw_os_error(libc::ENOMEM))
                };
                assert!(!reaching.is_mapped(map, &side));
            }
            assert_eq!(tries, pass);
        }
        let told = side.take_notices();
        assert_eq!(told.iter().map(|notice| notice.code).collect::<Vec<_>>(), ["idle_lines_stay"]);
        assert!(told[0].message.contains("Cannot allocate memory"), "{}", told[0].message);
        assert!(!reaching.is_mapped(|| Ok(()), &side), "not before the next pass");
        reaching.try_again();
        assert!(reaching.is_mapped(|| Ok(()), &side));
    }
}
