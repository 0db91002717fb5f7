//! What each CPU has for itself, as user space sees it: ledger counters, and the cache of lines in
//! front of the table.
//!
//! Programs write while we read. A line is read between two looks at its word: if both belong to
//! one life of the line, so does what was read between them. We take a line away only when no
//! program adds to it any more, and only if its word is still the one that was read.

use std::mem::offset_of;
use std::sync::atomic::{Ordering, fence};

use orb8_common::cache::{self, BUSY, CacheSet, CachedLine, CpuBlock, HEADER_BYTES, MIN_SETS};
use orb8_common::counter;

use super::mapping::Mapping;
use crate::event::Counters;

/// Sets that a CPU has at most, 2 MiB: older kernels take no value of an array that is longer than
/// 4 MiB, and this is the greatest power of two below it with the header before it.
const MAX_SETS: u32 = 8192;
/// The caches of all CPUs take at most this part of the memory budget.
pub const BUDGET_PART: u64 = 6;
/// The cache of one CPU takes at most this part of it: of the default 1 MiB, with lines for the
/// busiest 16 384 flows.
const BUDGET_PART_OF_CPU: u64 = 96;
/// Lines that the counters take the place of.
const HEADER_LINES: u32 = lines(HEADER_BYTES);
const LINE_BYTES: usize = size_of::<CachedLine>();
/// Lines of a set.
const WAYS: u32 = lines(size_of::<CacheSet>());
/// Caches have lines for so many flows from the start: 16 KiB a CPU.
const LEAST_FLOWS: u32 = 128;
/// Bytes mapped at once, as few as a cache has for a start.
const WINDOW_BYTES: usize = 16 << 10;
/// [`LINE_BYTES`] where lengths have 32 bits.
const LINE_LENGTH: u32 = 64;

#[allow(clippy::cast_possible_truncation, reason = "a few pages")]
const fn lines(bytes: usize) -> u32 {
    (bytes / LINE_BYTES) as u32
}

/// The line in which a byte of a block lies, and its offset there.
const fn place(byte: usize) -> (u32, usize) {
    (lines(byte), byte % LINE_BYTES)
}

/// Where the kernel tells which CPUs there can be, as ranges: `0-3` or `0-2,4`.
pub const POSSIBLE: &str = "/sys/devices/system/cpu/possible";

/// One more than the highest number that a CPU can have, from the text of [`POSSIBLE`]. Programs
/// find their block by the number, and numbers can have gaps.
#[must_use]
pub fn highest(possible: &str) -> Option<u32> {
    let last = possible.trim().rsplit([',', '-']).next()?;
    last.parse::<u32>().ok()?.checked_add(1)
}

/// How many sets each of so many CPUs has, that all of them together fit into their part of a
/// memory budget of so many bytes.
#[must_use]
pub fn sets(cpus: u32, budget: u64) -> u32 {
    let set = size_of::<CacheSet>() as u64;
    let shared = budget / BUDGET_PART / u64::from(cpus.max(1));
    let of_cpu = shared.min(budget / BUDGET_PART_OF_CPU);
    let fit = u32::try_from(of_cpu / set).unwrap_or(u32::MAX);
    let fit = fit.clamp(MIN_SETS, MAX_SETS);
    // The greatest power of two that is not greater.
    1 << fit.ilog2()
}

/// Bytes of the value that the map has for each CPU.
#[must_use]
pub const fn block_bytes(sets: u32) -> u32 {
    (HEADER_LINES + WAYS * sets) * LINE_LENGTH
}

/// The counts of a cached line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cached {
    /// The line in the table to which they belong.
    pub slot: u32,
    /// Low 32 bits of `jiffies64` at the last packet.
    pub last_seen: u32,
    word: u64,
}

impl Cached {
    /// Wire packets.
    #[must_use]
    pub fn packets(&self) -> u32 {
        cache::packets(self.word)
    }

    /// IP bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        cache::bytes(self.word)
    }
}

/// The blocks of all CPUs.
#[derive(Debug)]
pub struct Cpus {
    blocks: Mapping<CachedLine>,
    cpus: u32,
    /// Lines of a block, the place of the counters included.
    stride: u32,
    /// Sets that a cache may have; 0 where programs use none.
    sets: u32,
    /// Of these the first so many are in use and mapped, a power of two.
    used: u32,
    /// By CPU.
    seen: Vec<Seen>,
}

/// What a CPU's [`counter::SEEN_TOGETHER`] has come to.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    word: u64,
    packets: u64,
    bytes: u64,
}

impl Seen {
    fn take(&mut self, word: u64) {
        let (packets, bytes) = counter::apart(word.wrapping_sub(self.word));
        self.packets += packets;
        self.bytes += bytes;
        self.word = word;
    }
}

impl Cpus {
    /// Maps the counters and a few sets of all blocks; [`Self::provide`] lets programs use more.
    ///
    /// # Errors
    /// What mmap says.
    pub fn new(
        map: impl std::os::fd::AsFd,
        cpus: u32,
        sets: u32,
        cached: bool,
    ) -> std::io::Result<Self> {
        let stride = block_bytes(sets) / LINE_LENGTH;
        let mut blocks = Mapping::in_windows_of(WINDOW_BYTES, map, cpus * stride)?;
        for cpu in 0..cpus {
            blocks.reach_from(cpu * stride, HEADER_LINES)?;
        }
        let mut all = Self {
            blocks,
            cpus,
            stride,
            sets: if cached { sets } else { 0 },
            used: 0,
            seen: vec![Seen::default(); cpus as usize],
        };
        all.provide(0)?;
        Ok(all)
    }

    /// Makes the caches large enough for so many flows, twice as many lines as these, as far as
    /// there is memory. They never become smaller. A flow whose set is another one after that
    /// gets another line; what the old one holds stays there and is read until it leaves.
    ///
    /// # Errors
    /// What mmap says; the caches then stay as they are from now on.
    pub fn provide(&mut self, flows: u32) -> std::io::Result<()> {
        let lines = flows.max(LEAST_FLOWS).saturating_mul(2);
        let wanted = (lines / WAYS).next_power_of_two().min(self.sets);
        if wanted <= self.used {
            return Ok(());
        }
        for cpu in 0..self.cpus {
            let length = HEADER_LINES + wanted * WAYS;
            if let Err(error) = self.blocks.reach_from(cpu * self.stride, length) {
                self.sets = self.used;
                return Err(error);
            }
        }
        for cpu in 0..self.cpus {
            let (line, offset) = place(offset_of!(CpuBlock, mask));
            let mask = self.blocks.word32(cpu * self.stride + line, offset);
            mask.store(cache::mask(wanted), Ordering::Release);
        }
        self.used = wanted;
        Ok(())
    }

    /// The ledger counters, summed over all CPUs. To be asked every few seconds at least, see
    /// [`counter::apart`].
    #[must_use]
    pub fn counters(&mut self) -> Counters {
        let mut sum = Counters::default();
        for cpu in 0..self.cpus {
            for (at, total) in sum.0.iter_mut().enumerate() {
                *total = total.wrapping_add(self.counter(cpu, at));
            }
            let together = self.counter(cpu, counter::SEEN_TOGETHER);
            self.seen[cpu as usize].take(together);
        }
        sum.0[counter::SEEN_TOGETHER] = 0;
        for seen in &self.seen {
            sum.0[counter::SEEN_PACKETS] += seen.packets;
            sum.0[counter::SEEN_BYTES] += seen.bytes;
        }
        sum
    }

    fn counter(&self, cpu: u32, at: usize) -> u64 {
        let (line, offset) = place(at * 8);
        self.blocks.word64(cpu * self.stride + line, offset).load(Ordering::Relaxed)
    }

    /// Whether programs use caches here.
    #[must_use]
    pub const fn has_caches(&self) -> bool {
        self.sets != 0
    }

    /// Numbers of lines of all caches: from 0 to this.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.cpus * self.used * WAYS
    }

    /// The first line of the next CPU, if this one is the first of a CPU that has seen nothing yet:
    /// it holds nothing.
    #[must_use]
    pub fn after_unused(&self, number: u32) -> Option<u32> {
        let (cpu, line) = self.split(number);
        let unseen = |at| self.counter(cpu, at) == 0;
        let unused = line == 0 && unseen(counter::SEEN_PACKETS) && unseen(counter::SEEN_TOGETHER);
        unused.then(|| number + self.used * WAYS)
    }

    /// The CPU of a line, and its number there. Sets are a power of two.
    const fn split(&self, number: u32) -> (u32, u32) {
        let lines = self.used * WAYS;
        (number >> lines.ilog2(), number & (lines - 1))
    }

    fn index(&self, number: u32) -> u32 {
        let (cpu, line) = self.split(number);
        cpu * self.stride + HEADER_LINES + line
    }

    /// What a line holds; `None` if it holds nothing, or if a program is just writing it, which
    /// then adds what it held to the table.
    #[must_use]
    pub fn read(&self, number: u32) -> Option<Cached> {
        let index = self.index(number);
        let word = self.blocks.word64(index, offset_of!(CachedLine, word));
        let before = word.load(Ordering::Acquire);
        if cache::packets(before) == 0 || before & BUSY != 0 {
            return None;
        }
        let load = |offset| self.blocks.word32(index, offset).load(Ordering::Relaxed);
        let (slot, last_seen) =
            (load(offset_of!(CachedLine, slot)), load(offset_of!(CachedLine, last_seen)));
        fence(Ordering::Acquire);
        let after = word.load(Ordering::Relaxed);
        cache::is_same_life(before, after).then_some(Cached { slot, last_seen, word: after })
    }

    /// Empties a line that holds what was read of it. Whoever calls adds its counts to the table.
    #[must_use]
    pub fn take(&self, number: u32, held: &Cached) -> bool {
        let word = self.blocks.word64(self.index(number), offset_of!(CachedLine, word));
        let empty = cache::emptied(held.word);
        word.compare_exchange(held.word, empty, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

const _: () = assert!(counter::COUNT * 8 <= HEADER_BYTES && LINE_LENGTH as usize == LINE_BYTES);

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn caches_of_any_number_of_cpus_fit_into_their_part_of_the_budget() {
        for budget in [16 * MIB, 96 * MIB, 1024 * MIB] {
            for cpus in [1, 2, 3, 64, 128, 256] {
                let sets = sets(cpus, budget);
                let all = u64::from(cpus) * u64::from(sets) * 256;
                assert!(sets.is_power_of_two(), "{sets} sets");
                assert!(
                    all <= budget / BUDGET_PART || sets == MIN_SETS,
                    "{cpus} CPUs take {all} of {budget} bytes"
                );
            }
        }
    }

    #[test]
    fn the_default_budget_gives_few_cpus_a_mebibyte_and_many_their_share() {
        let of = |cpus| sets(cpus, 96 * MIB) * 256;
        assert_eq!(of(1), 1 << 20);
        assert_eq!(of(2), 1 << 20);
        assert_eq!(of(128), 128 << 10);
        assert_eq!(of(256), 64 << 10);
    }

    #[test]
    fn a_larger_budget_gives_a_cpu_two_mebibytes_at_most() {
        let of = |budget| sets(2, budget) * 256;
        assert_eq!(of(192 * MIB), 2 << 20);
        assert_eq!(of(4096 * MIB), 2 << 20);
        assert!(block_bytes(MAX_SETS) < 4 << 20);
    }

    #[test]
    fn there_is_a_block_for_the_highest_number_also_where_numbers_have_gaps() {
        for (possible, blocks) in [("0\n", 1), ("0-1", 2), ("0-2,4", 5), ("0,2-3,8-255\n", 256)] {
            assert_eq!(highest(possible), Some(blocks), "{possible}");
        }
        for no_number in ["", "\n", "0-", "all", "4294967295"] {
            assert_eq!(highest(no_number), None, "{no_number}");
        }
    }

    #[test]
    fn a_block_is_whole_pages() {
        for sets in [MIN_SETS, 1024, MAX_SETS] {
            assert_eq!(block_bytes(sets) as usize % 4096, 0);
        }
        assert_eq!(block_bytes(MIN_SETS) as usize, size_of::<cache::CpuBlock>());
    }

    /// Blocks in memory that no program shares.
    fn blocks(cpus: u32, sets: u32, cached: bool) -> (OwnedFd, Cpus) {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memory = memfd_create("blocks", flags).expect("a descriptor");
        ftruncate(&memory, u64::from(cpus * block_bytes(sets))).expect("there is room");
        let cpus = Cpus::new(&memory, cpus, sets, cached).expect("it can be mapped");
        (memory, cpus)
    }

    impl Cpus {
        fn add(&self, cpu: u32, at: usize, more: u64) {
            let (line, offset) = place(at * 8);
            let word = self.blocks.word64(cpu * self.stride + line, offset);
            word.fetch_add(more, Ordering::Relaxed);
        }

        fn masks(&self) -> Vec<u32> {
            let (line, offset) = place(offset_of!(CpuBlock, mask));
            let mask = |cpu| self.blocks.word32(cpu * self.stride + line, offset);
            (0..self.cpus).map(|cpu| mask(cpu).load(Ordering::Relaxed)).collect()
        }

        /// Leaves a packet of a line of the table in a line of a cache.
        fn fill(&self, number: u32, slot: u32) {
            let index = self.index(number);
            let word = self.blocks.word64(index, offset_of!(CachedLine, word));
            self.blocks.word32(index, offset_of!(CachedLine, slot)).store(slot, Ordering::Relaxed);
            word.store(cache::counts(1, 60), Ordering::Relaxed);
        }

        /// The lines of the table for which the caches hold something.
        fn held(&self) -> Vec<u32> {
            (0..self.count()).filter_map(|number| self.read(number)).map(|held| held.slot).collect()
        }
    }

    #[test]
    fn what_was_seen_in_one_word_is_seen_also_where_the_word_has_wrapped() {
        let (_memory, mut cpus) = blocks(2, MIN_SETS, true);
        cpus.add(0, counter::SEEN_PACKETS, 5);
        cpus.add(0, counter::SEEN_BYTES, 500);
        let (mut packets, mut bytes) = (5, 500);
        // Two of them are more than the word holds.
        for each in [40_000_000, 50_000_000, 60_000_000] {
            for cpu in 0..2 {
                cpus.add(cpu, counter::SEEN_TOGETHER, counter::together(each, 60 * each));
                (packets, bytes) = (packets + each, bytes + 60 * each);
            }
            let Counters(sum) = cpus.counters();
            assert_eq!(sum[counter::SEEN_PACKETS], packets);
            assert_eq!(sum[counter::SEEN_BYTES], bytes);
            assert_eq!(sum[counter::SEEN_TOGETHER], 0, "told as seen");
        }
        assert_eq!(cpus.counters(), cpus.counters(), "nothing is added twice");
    }

    #[test]
    fn other_counters_are_summed_over_all_cpus_and_wrap() {
        let (_memory, mut cpus) = blocks(3, MIN_SETS, true);
        cpus.add(0, counter::SEGMENT_EXCESS, 3_u64.wrapping_neg());
        cpus.add(2, counter::SEGMENT_EXCESS, 10);
        cpus.add(2, counter::COUNT - 1, 4);
        let Counters(sum) = cpus.counters();
        assert_eq!((sum[counter::SEGMENT_EXCESS], sum[counter::COUNT - 1]), (7, 4));
        assert_eq!(sum.iter().filter(|&&sum| sum != 0).count(), 2, "{sum:?}");
    }

    #[test]
    fn caches_of_all_cpus_grow_with_the_flows_and_keep_what_they_hold() {
        let (_memory, mut cpus) = blocks(2, 1024, true);
        assert_eq!(cpus.masks(), [cache::mask(64); 2], "for a start");
        cpus.fill(3, 30);
        cpus.fill(64 * WAYS + 5, 50);
        // Flows, and sets after that.
        for (flows, sets) in [(128, 64), (130, 128), (1000, 512), (10, 512), (u32::MAX, 1024)] {
            cpus.provide(flows).expect("it can be mapped");
            assert_eq!(cpus.masks(), [cache::mask(sets); 2], "{flows} flows");
            assert_eq!(cpus.count(), 2 * sets * WAYS, "{flows} flows");
            assert_eq!(cpus.held(), [30, 50], "{flows} flows");
        }
    }

    #[test]
    fn caches_stay_as_they_are_where_no_more_can_be_mapped() {
        let (memory, mut cpus) = blocks(2, 1024, true);
        cpus.fill(64 * WAYS + 5, 50);
        fcntl_add_seals(&memory, SealFlags::FUTURE_WRITE).expect("nobody has sealed it");
        assert!(cpus.provide(1000).is_err());
        assert_eq!(cpus.masks(), [cache::mask(64); 2], "no program uses what we cannot read");
        assert_eq!((cpus.count(), cpus.held()), (2 * 64 * WAYS, vec![50]));
        cpus.provide(1000).expect("nobody tries again");
        assert_eq!(cpus.masks(), [cache::mask(64); 2]);
    }

    #[test]
    fn programs_that_use_no_caches_get_none() {
        let (_memory, mut cpus) = blocks(2, MIN_SETS, false);
        cpus.provide(1000).expect("there is nothing to do");
        assert_eq!((cpus.masks(), cpus.count()), (vec![0, 0], 0));
    }
}
