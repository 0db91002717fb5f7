//! Reads a ring buffer when the kernel wakes us, and only then.
//!
//! Once woken: drain, wait at most 2 ms for more, drain again, until a drain finds nothing; then
//! sleep until the kernel wakes us again. An idle ring costs nothing.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};
use rustix::mm::{MapFlags, ProtFlags};

use super::side_channel::SideChannel;
use crate::datapath::{Ring, RingGauges};
use crate::event::Event;
use crate::pipeline::source::{EventSource, SourceError, Wakeup};

/// How long events may wait for company once the reader is awake.
const GATHER: Duration = Duration::from_millis(2);
/// Records taken in one call, so that other sources are served in between.
const RECORDS_A_CALL: usize = 4096;

/// Makes an event of a record, or `None` if the record is not one of ours.
pub type Decode = fn(&[u8]) -> Option<Event>;

/// A ring buffer as a source of events.
pub struct RingSource {
    name: &'static str,
    ring: RingBuf<MapData>,
    decode: Decode,
    side: Arc<SideChannel>,
    gauge: Option<Gauge>,
    /// Awake until a drain finds nothing; then asleep on the descriptor.
    awake_until: Option<Instant>,
}

impl RingSource {
    /// Makes a source of a ring.
    #[must_use]
    pub fn new(
        name: &'static str,
        ring: RingBuf<MapData>,
        decode: Decode,
        side: Arc<SideChannel>,
    ) -> Self {
        Self { name, ring, decode, side, gauge: None, awake_until: None }
    }

    /// Notes how full the ring of so many bytes is whenever it is read.
    ///
    /// # Errors
    /// What mmap says.
    pub fn gauged(mut self, gauges: Arc<RingGauges>, ring: Ring, bytes: u32) -> io::Result<Self> {
        let positions = Positions::of(&self.ring)?;
        self.gauge = Some(Gauge { positions, gauges, ring, bytes: bytes.into() });
        Ok(self)
    }

    /// Takes what is there; the number of records taken.
    fn drain(&mut self, limit: usize, out: &mut Vec<Event>) -> usize {
        let mut taken = 0;
        while taken < limit {
            let Some(record) = self.ring.next() else { break };
            taken += 1;
            match (self.decode)(&record) {
                Some(event) => out.push(event),
                None => self.side.count_undecodable(),
            }
        }
        taken
    }
}

/// How full a ring is.
struct Gauge {
    positions: Positions,
    gauges: Arc<RingGauges>,
    ring: Ring,
    bytes: u64,
}

impl Gauge {
    fn note(&self) {
        self.gauges.note(self.ring, self.positions.unread(), self.bytes);
    }
}

/// The first two pages of a ring: up to where it was read, and up to where it was written.
struct Positions {
    pages: NonNull<c_void>,
    page_bytes: usize,
}

// SAFETY: two pages of the kernel's that are only read.
unsafe impl Send for Positions {}

impl Positions {
    fn of(ring: &RingBuf<MapData>) -> io::Result<Self> {
        let page_bytes = rustix::param::page_size();
        // SAFETY: the descriptor is open for as long as the ring is.
        let fd = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) };
        // SAFETY: a new shared mapping at an address of the kernel's choice.
        let pages = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                2 * page_bytes,
                ProtFlags::READ,
                MapFlags::SHARED,
                fd,
                0,
            )?
        };
        let pages = NonNull::new(pages).ok_or_else(|| io::Error::other("mmap gave no address"))?;
        Ok(Self { pages, page_bytes })
    }

    /// Bytes written and not read yet.
    fn unread(&self) -> u64 {
        let at = |offset: usize| {
            // SAFETY: an aligned word within the mapping, which others write in one piece.
            unsafe { self.pages.as_ptr().byte_add(offset).cast::<u64>().read_volatile() }
        };
        let consumed = at(0);
        at(self.page_bytes).saturating_sub(consumed)
    }
}

impl Drop for Positions {
    fn drop(&mut self) {
        // SAFETY: our own mapping; nobody else knows its address. It fails for no mapping of ours.
        let _gone = unsafe { rustix::mm::munmap(self.pages.as_ptr(), 2 * self.page_bytes) };
    }
}

impl EventSource for RingSource {
    fn name(&self) -> &'static str {
        self.name
    }

    fn wakeup(&self) -> Wakeup<'_> {
        match self.awake_until {
            Some(due) => Wakeup { fd: None, due: Some(due) },
            None => {
                // SAFETY: the descriptor is open for as long as the ring is.
                let fd = unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) };
                Wakeup { fd: Some(fd), due: None }
            }
        }
    }

    fn collect(&mut self, now: Instant, out: &mut Vec<Event>) -> Result<(), SourceError> {
        if self.awake_until.is_some_and(|due| now < due) {
            return Ok(());
        }
        if let Some(gauge) = &self.gauge {
            gauge.note();
        }
        let taken = self.drain(RECORDS_A_CALL, out);
        self.awake_until = match taken {
            0 => None,
            RECORDS_A_CALL => Some(now),
            _ => Some(now + GATHER),
        };
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<Event>) -> Result<(), SourceError> {
        self.drain(usize::MAX, out);
        Ok(())
    }
}
