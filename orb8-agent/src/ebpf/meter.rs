//! What the programs cost and what they are asked to tell less of. Holds descriptors of all programs.

use std::any::Any;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aya::maps::{Array, MapData};
use aya::sys::{Stats, enable_stats};
use orb8_common::network::Sparing;

use super::load::Programs;
use super::sys;
use crate::datapath::RingGauges;

/// One value: the two words of [`Sparing`].
pub type SparingMap = Array<MapData, [u32; 2]>;

/// How many CPUs the node has that can run something.
///
/// # Errors
/// The kernel does not tell.
pub fn online_cpus() -> io::Result<u32> {
    let cpus = aya::util::online_cpus()
        .map_err(|(file, error)| io::Error::new(error.kind(), format!("{file}: {error}")))?;
    u32::try_from(cpus.len()).map_err(io::Error::other)
}

/// The running programs, as the governor sees them.
pub struct Meter {
    programs: Vec<OwnedFd>,
    sparing: Mutex<SparingMap>,
    rings: Arc<RingGauges>,
}

impl Meter {
    /// Of loaded programs.
    ///
    /// # Errors
    /// If no more descriptors can be had.
    pub fn new(
        programs: &Programs,
        sparing: SparingMap,
        rings: Arc<RingGauges>,
    ) -> io::Result<Self> {
        Ok(Self { programs: programs.duplicates()?, sparing: Mutex::new(sparing), rings })
    }

    /// How full the rings are.
    #[must_use]
    pub fn rings(&self) -> Arc<RingGauges> {
        Arc::clone(&self.rings)
    }

    /// Lets the programs tell less from now on, or more again.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn spare(&self, sparing: Sparing) -> io::Result<()> {
        let mut map = self.sparing.lock().unwrap_or_else(PoisonError::into_inner);
        map.set(0, [sparing.sampling, sparing.fewer_events], 0).map_err(io::Error::other)
    }

    /// CPU time of all programs while the kernel kept statistics.
    #[must_use]
    pub fn program_time(&self) -> Option<Duration> {
        let mut sum = 0_u64;
        for program in &self.programs {
            sum = sum.saturating_add(sys::program_run_ns(program.as_fd()).ok()?);
        }
        Some(Duration::from_nanos(sum))
    }

    /// See [`crate::datapath::Datapath::keep_statistics`].
    ///
    /// # Errors
    /// What the kernel says.
    pub fn keep_statistics() -> io::Result<Box<dyn Any + Send>> {
        let guard = enable_stats(Stats::RunTime).map_err(|error| error.io_error)?;
        Ok(Box::new(guard))
    }
}
