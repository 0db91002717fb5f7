//! A BPF array of the kernel, mapped into our memory: shared with running programs.
//!
//! Everything is read and written through atomics or volatile copies; no reference into the
//! mapping ever leaves this file.

use std::ffi::c_void;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use rustix::mm::{MapFlags, ProtFlags};

/// An array map of `T`, mapped.
#[derive(Debug)]
pub struct Mapping<T> {
    base: NonNull<c_void>,
    len: u32,
    _values: PhantomData<T>,
}

// SAFETY: the memory is the kernel's and lives as long as the mapping; access is by atomics and
// volatile copies of plain data.
unsafe impl<T: Send> Send for Mapping<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Mapping<T> {}

impl<T: Copy> Mapping<T> {
    /// Maps an array map of `len` values of `T` made with BPF_F_MMAPABLE.
    ///
    /// # Errors
    /// What mmap says; EINVAL or EPERM if the map is another one.
    pub fn new(map: impl AsFd, len: u32) -> io::Result<Self> {
        // The kernel rounds array values up to 8 bytes.
        assert!(
            size_of::<T>().is_multiple_of(8) && size_of::<T>() > 0,
            "array values are multiples of 8"
        );
        // SAFETY: a new shared mapping at an address of the kernel's choice.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                Self::bytes(len),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                map,
                0,
            )?
        };
        let base = NonNull::new(base).ok_or_else(|| io::Error::other("mmap gave no address"))?;
        Ok(Self { base, len, _values: PhantomData })
    }

    fn bytes(len: u32) -> usize {
        len as usize * size_of::<T>()
    }

    /// Number of values.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.len
    }

    fn at(&self, index: u32) -> *mut T {
        assert!(index < self.len, "index {index} is not below {}", self.len);
        // SAFETY: within the mapping.
        unsafe { self.base.cast::<T>().as_ptr().add(index as usize) }
    }

    /// A copy of a value, word by word; programs may write meanwhile.
    #[must_use]
    pub fn copy(&self, index: u32) -> T {
        // SAFETY: within the mapping, and any bytes are a valid `T` for the plain types used here.
        unsafe { self.at(index).read_volatile() }
    }

    /// Zeroes a value that no program can hold any more.
    pub fn zero(&self, index: u32) {
        let words = self.at(index).cast::<u64>();
        for word in 0..size_of::<T>() / 8 {
            // SAFETY: within the value, which is a multiple of 8 bytes.
            unsafe { words.add(word).write_volatile(0) };
        }
        fence(Ordering::SeqCst);
    }

    /// A 32-bit word of a value, at a byte offset.
    pub fn word32(&self, index: u32, offset: usize) -> &AtomicU32 {
        assert!(
            offset.is_multiple_of(4) && offset + 4 <= size_of::<T>(),
            "offset {offset} is in the value"
        );
        // SAFETY: within the value, aligned, and only ever accessed atomically on this side.
        unsafe { AtomicU32::from_ptr(self.at(index).cast::<u8>().add(offset).cast()) }
    }

    /// A 64-bit word of a value, at a byte offset.
    pub fn word64(&self, index: u32, offset: usize) -> &AtomicU64 {
        assert!(
            offset.is_multiple_of(8) && offset + 8 <= size_of::<T>(),
            "offset {offset} is in the value"
        );
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(self.at(index).cast::<u8>().add(offset).cast()) }
    }
}

impl<T> Drop for Mapping<T> {
    fn drop(&mut self) {
        let bytes = self.len as usize * size_of::<T>();
        // SAFETY: our own mapping, and nothing refers into it any more. A failure leaves it
        // mapped, which harms nothing.
        let _unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr(), bytes) };
    }
}
