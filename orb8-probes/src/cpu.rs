//! What this CPU has for itself: one look-up for counters and cache.

use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;
use orb8_common::cache::{self, CachedLine, CpuBlock, HEADER_BYTES};

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
    pub fn set(self, hash: u64) -> Option<*mut CachedLine> {
        let mask = cache_mask();
        if mask == 0 {
            return None;
        }
        let offset = HEADER_BYTES + cache::set_offset(hash, mask) as usize;
        // SAFETY: within the block, which is as long as the mask says.
        Some(unsafe { self.0.cast::<u8>().add(offset) }.cast())
    }
}
