//! Atomic adds whose result nobody asks for: the only atomics of kernel 5.10.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

/// Adds to a word that other CPUs add to.
///
/// # Safety
/// `at` points into a map value.
#[inline(always)]
pub unsafe fn add32(at: *mut u32, n: u32) {
    // SAFETY: as the caller says.
    let _ = unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::Relaxed }>(at, n) };
}

/// Adds to a double word that other CPUs add to.
///
/// # Safety
/// `at` points into a map value.
#[inline(always)]
pub unsafe fn add64(at: *mut u64, n: u64) {
    // SAFETY: as the caller says.
    let _ = unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(at, n) };
}
