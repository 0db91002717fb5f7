//! A BPF array of the kernel, mapped into our memory: shared with running programs.
//!
//! Everything is read and written through atomics or volatile copies; no reference into the
//! mapping ever leaves this file.

use std::ffi::c_void;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use rustix::mm::{MapFlags, ProtFlags};

/// The kernel maps every page of an array at once, and each then counts as ours. So an array is
/// mapped in windows of this many bytes, when the first value of a window is needed: a table made
/// for many flows costs an idle agent next to nothing. A process may have 65 530 mappings, of
/// which the table of the most flows that can be set takes 7 000.
const WINDOW_BYTES: usize = 64 * 1024;

/// An array map of `T`, mapped where it is needed.
#[derive(Debug)]
pub struct Mapping<T> {
    map: OwnedFd,
    windows: Vec<Option<NonNull<c_void>>>,
    /// Bytes of each but the last, a power of two.
    window: usize,
    count: u32,
    _values: PhantomData<T>,
}

// SAFETY: the memory is the kernel's and lives as long as the mapping; access is by atomics and
// volatile copies of plain data.
unsafe impl<T: Send> Send for Mapping<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Mapping<T> {}

impl<T: Copy> Mapping<T> {
    /// Takes an array map of `count` values of `T` made with BPF_F_MMAPABLE.
    ///
    /// # Errors
    /// If no more descriptors can be had.
    pub fn new(map: impl AsFd, count: u32) -> io::Result<Self> {
        Self::in_windows_of(WINDOW_BYTES, map, count)
    }

    /// The same in windows of another length: a power of two, and whole pages.
    ///
    /// # Errors
    /// As of [`Self::new`].
    pub fn in_windows_of(window: usize, map: impl AsFd, count: u32) -> io::Result<Self> {
        // The kernel rounds array values up to 8 bytes.
        const { assert!(size_of::<T>().is_power_of_two() && size_of::<T>() >= 8) };
        let map = map.as_fd().try_clone_to_owned()?;
        let windows = Vec::new();
        // What is mapped begins at pages, which have 64 KiB on some arm64 kernels.
        let window = window.max(rustix::param::page_size());
        Ok(Self { map, windows, window, count, _values: PhantomData })
    }

    /// Maps what is needed to reach the first `count` values.
    ///
    /// # Errors
    /// What mmap says; EINVAL or EPERM if the map is another one.
    pub fn reach(&mut self, count: u32) -> io::Result<()> {
        self.reach_from(0, count)
    }

    /// Maps what is needed to reach `count` values, the first of which is `from`.
    ///
    /// # Errors
    /// As of [`Self::reach`].
    pub fn reach_from(&mut self, from: u32, count: u32) -> io::Result<()> {
        let end = from.saturating_add(count).min(self.count) as usize;
        let [first, end] = [from as usize / self.per_window(), end.div_ceil(self.per_window())];
        if self.windows.len() < end {
            self.windows.resize(end, None);
        }
        for number in first..end {
            if self.windows[number].is_none() {
                let offset = number * self.window;
                let window = Self::map_window(&self.map, offset, self.window_bytes(offset))?;
                self.windows[number] = Some(window);
            }
        }
        Ok(())
    }

    const fn per_window(&self) -> usize {
        self.window / size_of::<T>()
    }

    fn map_window(map: &OwnedFd, offset: usize, bytes: usize) -> io::Result<NonNull<c_void>> {
        // SAFETY: a new shared mapping at an address of the kernel's choice.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                map,
                offset as u64,
            )?
        };
        NonNull::new(base).ok_or_else(|| io::Error::other("mmap gave no address"))
    }

    /// Bytes of the window that begins at an offset: the last one is shorter.
    fn window_bytes(&self, offset: usize) -> usize {
        (self.count as usize * size_of::<T>() - offset).min(self.window)
    }

    /// Number of values of the map.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// # Panics
    /// If nobody has reached it.
    fn at(&self, index: u32) -> *mut T {
        let index = index as usize;
        assert!(index < self.count as usize, "value {index} of {}", self.count);
        // Whole windows are powers of two, so this is a shift and a mask.
        let (number, within) =
            (index >> self.per_window().ilog2(), index & (self.per_window() - 1));
        let window = self.windows[number].expect("what is read was reached before");
        // SAFETY: within the window, as every window but the last is full and the last ends at
        // `count`.
        unsafe { window.cast::<T>().as_ptr().add(within) }
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
        debug_assert!(
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
        for (number, window) in self.windows.iter().enumerate() {
            let Some(window) = window else { continue };
            let bytes = self.count as usize * size_of::<T>();
            let length = (bytes - number * self.window).min(self.window);
            // SAFETY: our own mapping, and nothing refers into it any more. A failure leaves it
            // mapped, which harms nothing.
            let _unmapped = unsafe { rustix::mm::munmap(window.as_ptr(), length) };
        }
    }
}
