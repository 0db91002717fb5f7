//! Reads a ring buffer when the kernel wakes us, and only then.
//!
//! Once woken: drain, wait at most 2 ms for more, drain again, until a drain finds nothing; then
//! sleep until the kernel wakes us again. An idle ring costs nothing.

use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};

use super::side_channel::SideChannel;
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
        Self { name, ring, decode, side, awake_until: None }
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
