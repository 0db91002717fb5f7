//! What this CPU has for itself: one look-up for counters and cache.

use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;
use orb8_common::cache::{self, CachedLine, CpuBlock, HEADER_BYTES, WAYS};

use crate::maps::{CPUS, cache_mask};

/// The block of this CPU. A program stays on its CPU from its begin to its end.
#[derive(Clone, Copy)]
pub struct Cpu(*mut CpuBlock);

impl Cpu {
    /// `None` never happens: there is a block for every CPU that can be.
    #[inline(always)]
    pub fn this() -> Option<Self> {
        // SAFETY: a helper that every program may call.
        CPUS.get_ptr_mut(unsafe { bpf_get_smp_processor_id() } as u32).map(Self)
    }

    /// The ledger counters.
    #[inline(always)]
    pub fn counters(self) -> *mut u64 {
        self.0.cast()
    }

    /// The set in which a flow may be, or `None` where the kernel allows no cache.
    #[inline(always)]
    pub fn set(self, hash: u64) -> Option<Set> {
        let all = cache_mask() as u32;
        if all == 0 {
            return None;
        }
        // SAFETY: a word of the block, which user space writes.
        let used = unsafe { core::ptr::read_volatile(&raw const (*self.0).mask) };
        // SAFETY: within the block.
        let lines = unsafe { self.0.cast::<u8>().add(HEADER_BYTES) };
        Some(Set { lines, first: cache::first_line(hash, used & all) })
    }
}

/// A set, as a flow goes through it.
#[derive(Clone, Copy)]
pub struct Set {
    /// The first of the block.
    lines: *mut u8,
    /// Offset of the one to try first.
    first: u32,
}

impl Set {
    /// The line to try as number `way`.
    #[inline(always)]
    pub fn line(self, way: usize) -> *mut CachedLine {
        let offset = cache::line_of_way(self.first, (way % WAYS) as u32);
        // SAFETY: within the block, which is as long as the mask of all lines says.
        unsafe { self.lines.add(offset as usize) }.cast()
    }

    /// The same, where it is not known until the program runs which number that is. Linux 6.1 then
    /// knows nothing of the result of `^`, but all of what `&` with a constant leaves.
    #[inline(always)]
    pub fn any_line(self, way: usize) -> *mut CachedLine {
        let offset = cache::line_of_way(self.first, (way % WAYS) as u32) & cache_mask() as u32;
        // SAFETY: as above; the mask is that of all lines.
        unsafe { self.lines.add(offset as usize) }.cast()
    }
}
