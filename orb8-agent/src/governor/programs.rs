//! A kernel side for the governor's tests: programs that take what the test says, and do what they
//! are asked unless the test says otherwise.

use std::any::Any;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use orb8_common::network::{PacketFilter, Sparing};

use crate::datapath::{Datapath, InterfaceStatus, PacketWatch, StartError};

#[derive(Debug, Default)]
pub(super) struct Programs {
    /// They have run for so long; none: nobody knows.
    pub(super) ran: Mutex<Option<Duration>>,
    /// Why statistics are not kept; none: they are.
    pub(super) refuses: Mutex<Option<i32>>,
    /// Statistics are kept for so many.
    pub(super) keepers: Arc<AtomicU32>,
    /// They cannot be asked for anything.
    pub(super) deaf: AtomicBool,
    /// What they were asked for last.
    pub(super) asked: Mutex<Option<Sparing>>,
}

struct Keeper(Arc<AtomicU32>);

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Datapath for Programs {
    fn interfaces(&self) -> Vec<InterfaceStatus> {
        Vec::new()
    }

    fn map_bytes(&self) -> u64 {
        7 << 20
    }

    fn watch_packets(
        &self,
        _filter: &PacketFilter,
        _rate: u32,
    ) -> Result<Box<dyn PacketWatch>, StartError> {
        Err(StartError { message: "no packets here".to_owned() })
    }

    fn spare(&self, sparing: Sparing) -> io::Result<()> {
        if self.deaf.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        *self.asked.lock().unwrap() = Some(sparing);
        Ok(())
    }

    fn program_time(&self) -> Option<Duration> {
        *self.ran.lock().unwrap()
    }

    fn keep_statistics(&self) -> io::Result<Box<dyn Any + Send>> {
        if let Some(errno) = *self.refuses.lock().unwrap() {
            return Err(io::Error::from_raw_os_error(errno));
        }
        self.keepers.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Keeper(Arc::clone(&self.keepers))))
    }

    fn stop(&self, _deadline: Instant) -> bool {
        true
    }
}
