//! Atomic adds whose result nobody asks for: the only atomics of kernel 5.10. And what newer kernels
//! have, which the loader takes out of the object for older ones.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd, atomic_xchg};

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

/// Puts `new` there if `old` is there; returns what was there. Kernel 5.12.
///
/// # Safety
/// `at` points into a map value.
#[inline(always)]
pub unsafe fn compare_exchange64(at: *mut u64, old: u64, new: u64) -> u64 {
    // SAFETY: as the caller says.
    unsafe {
        atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(at, old, new).0
    }
}

/// Puts a double word there and keeps every store before it before it. Kernel 5.12.
///
/// # Safety
/// `at` points into a map value.
#[inline(always)]
pub unsafe fn exchange64(at: *mut u64, new: u64) {
    // SAFETY: as the caller says.
    let _ = unsafe { atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(at, new) };
}
