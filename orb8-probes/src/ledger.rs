//! The ledger counters of each CPU.

use orb8_common::counter::{self, Filtered, Lost, Reject};

use crate::atomic::add64;
use crate::cpu::Cpu;
use crate::maps::is_interrupted;

/// This CPU's ledger counters.
///
/// A socket's egress runs in the sender's context and is interrupted by anything that counts too,
/// so its adds are single instructions. Classifiers run with bottom halves off, and what runs on
/// top of them in hard interrupts counts nothing: between their load and their store nobody else
/// writes on this CPU, and what they interrupt is before or behind its one instruction. So both
/// kinds of adds may go to one array. Where bottom halves are preempted, all are single
/// instructions.
#[derive(Clone, Copy)]
pub struct Counters<const HOOK: u32>(*mut u64);

impl<const HOOK: u32> Counters<HOOK> {
    #[inline(always)]
    pub fn of(cpu: Cpu) -> Self {
        Self(cpu.counters())
    }

    #[inline(always)]
    pub fn add(self, at: usize, n: u64) {
        // SAFETY: every index is a constant below `counter::COUNT`.
        unsafe {
            let counter = self.0.add(at);
            if is_interrupted::<HOOK>() {
                add64(counter, n);
            } else {
                *counter += n;
            }
        }
    }

    /// Counts a packet as seen. The segments of a super-packet may be too many for one word.
    #[inline(always)]
    pub fn see(self, packets: u64, bytes: u64, is_super: bool) {
        if is_interrupted::<HOOK>() && !is_super {
            self.add(counter::SEEN_TOGETHER, counter::together(packets, bytes));
        } else {
            self.add(counter::SEEN_PACKETS, packets);
            self.add(counter::SEEN_BYTES, bytes);
        }
    }

    #[inline(always)]
    pub fn reject(self, why: Reject, packets: u64, bytes: u64) {
        let at = counter::REJECTED + 2 * why as usize;
        self.add(at & 63, packets);
        self.add((at + 1) & 63, bytes);
    }

    #[inline(always)]
    pub fn lose(self, why: Lost, packets: u64, bytes: u64) {
        let at = counter::LOST + 2 * why as usize;
        self.add(at, packets);
        self.add(at + 1, bytes);
    }

    #[inline(always)]
    pub fn filter(self, why: Filtered, packets: u64, bytes: u64) {
        let at = counter::FILTERED + 2 * why as usize;
        self.add(at, packets);
        self.add(at + 1, bytes);
    }
}
