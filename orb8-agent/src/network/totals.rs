//! Running totals by place, direction and protocol, for those who compare them with what the kernel
//! itself counts.
//!
//! Kept only while somebody asks for them: otherwise an event costs one load. The pipeline's thread
//! adds and takes the snapshots; a request waits for a drain that begins after it and gets what there
//! was when that drain had gone through. What is left out of the flows is in the totals too, with the
//! reason.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use orb8_common::network::flag;

use crate::event::{Event, FlowCount, Told, Volume};
use crate::host::OwnHasher;
use crate::pipeline::exporter::EventExporter;
use crate::pipeline::filter::{EventFilter, Verdict};
use crate::pipeline::ledger::PacketSummary;
use crate::pipeline::on_demand::Drains;
use crate::pipeline::runner::{SharedLedger, lock};

mod page;
mod wire;

pub use page::TotalsOfHost;

/// Places that are told apart in one session; what is counted elsewhere is told as one sum.
const PLACES: usize = 32_768;
/// How long a request waits for its drain.
const PATIENCE: Duration = Duration::from_secs(10);
/// The bits of a key's flags that tell places apart.
const FLAGS: u8 = flag::EGRESS | flag::IPV6 | flag::SOCKET_PLANE | flag::SUPPLEMENT;

/// Where something was counted, what it was, and why flows do not have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// ifindex, or in the socket plane the cgroup id.
    pub owner: u64,
    /// [`flag`]s: direction, family, plane, supplement.
    pub flags: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// The reason of the filter that left it out; empty if flows have it.
    pub left_out: &'static str,
}

impl Place {
    fn of(count: &FlowCount, left_out: &'static str) -> Self {
        let (key, owner) = (&count.id.key, count.id.owner);
        Self { owner, flags: key.flags & FLAGS, protocol: key.protocol, left_out }
    }
}

/// Running totals, in the order in which their places were first seen.
#[derive(Debug, Default)]
struct Sums {
    listed: Vec<(Place, Volume)>,
    /// Where a place is in the list.
    index: HashMap<Place, usize, OwnHasher>,
    /// What was counted at places for which there was no room.
    unlisted: Volume,
    /// Where the last count was added: lines of one owner often follow each other.
    last: usize,
}

impl Sums {
    fn add(&mut self, place: Place, volume: Volume) {
        if self.listed.get(self.last).is_none_or(|(last, _)| *last != place) {
            let Some(at) = self.find(place) else {
                self.unlisted.add(volume);
                return;
            };
            self.last = at;
        }
        self.listed[self.last].1.add(volume);
    }

    /// Where a place is in the list, which it joins if there is room.
    fn find(&mut self, place: Place) -> Option<usize> {
        if let Some(at) = self.index.get(&place) {
            return Some(*at);
        }
        let at = self.listed.len();
        (at < PLACES).then(|| {
            self.listed.push((place, Volume::default()));
            self.index.insert(place, at);
            at
        })
    }
}

/// What there was when a drain had gone through the pipeline.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Of one session, totals only grow. No other session has its number, not even another process's.
    pub session: u64,
    /// CLOCK_MONOTONIC nanoseconds of the drain.
    pub time_ns: u64,
    /// In the order in which they were first seen.
    pub totals: Vec<(Place, Volume)>,
    /// What was counted at places for which there was no room.
    pub unlisted: Volume,
    /// The ledger of the same moment.
    pub ledger: PacketSummary,
}

/// The drain that was asked for did not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the kernel side was not read within {} s, see the agent's log", PATIENCE.as_secs())]
pub struct Late;

/// The totals, shared by the pipeline and those who ask.
#[derive(Debug)]
pub struct Totals {
    drains: Arc<Drains>,
    ledger: SharedLedger,
    /// 0 while nobody asks.
    session: AtomicU64,
    /// Waited for by nobody but those who begin a session.
    sums: Mutex<Sums>,
    state: Mutex<State>,
    /// Told with every snapshot.
    taken: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The session ends when nothing is asked after this time, CLOCK_MONOTONIC nanoseconds.
    until_ns: u64,
    /// Requests up to this one have their snapshot.
    served: u64,
    latest: u64,
    snapshot: Option<Arc<Snapshot>>,
}

impl Totals {
    /// Nothing counted, nobody asking.
    #[must_use]
    pub fn shared(drains: Arc<Drains>, ledger: SharedLedger) -> Arc<Self> {
        Arc::new(Self {
            drains,
            ledger,
            session: AtomicU64::new(0),
            sums: Mutex::default(),
            state: Mutex::default(),
            taken: Condvar::new(),
        })
    }

    /// Whoever reads the kernel side is asked for drains here.
    #[must_use]
    pub fn drains(&self) -> Arc<Drains> {
        Arc::clone(&self.drains)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sums(&self) -> MutexGuard<'_, Sums> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was counted up to now; begins a session if there is none, and keeps it until `until_ns`
    /// (CLOCK_MONOTONIC nanoseconds) at least. Waits for the kernel side to be read.
    ///
    /// # Errors
    /// See [`Late`].
    pub fn ask(&self, until_ns: u64) -> Result<Arc<Snapshot>, Late> {
        let mut state = self.state();
        state.until_ns = state.until_ns.max(until_ns);
        if self.session.load(Ordering::Relaxed) == 0 {
            *self.sums() = Sums::default();
            self.session.store(number_of_session(), Ordering::Release);
        }
        // After the session began, so that its first snapshot is of a drain that it counted whole.
        let number = self.drains.ask();
        state.latest = state.latest.max(number);
        let waits = |state: &mut State| state.served < number;
        let waited = self.taken.wait_timeout_while(state, PATIENCE, waits);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.snapshot.clone().filter(|_| state.served >= number).ok_or(Late)
    }

    /// A drain has gone through the pipeline.
    fn drained(&self, time_ns: u64) {
        let session = self.session.load(Ordering::Acquire);
        if session == 0 {
            return;
        }
        let served = self.drains.served();
        let mut state = self.state();
        if served > state.served {
            let (totals, unlisted) = {
                let sums = self.sums();
                (sums.listed.clone(), sums.unlisted)
            };
            let ledger = lock(&self.ledger).packets();
            state.snapshot =
                Some(Arc::new(Snapshot { session, time_ns, totals, unlisted, ledger }));
            state.served = served;
            self.taken.notify_all();
        } else if state.latest <= state.served && state.until_ns < time_ns {
            self.session.store(0, Ordering::Release);
            state.snapshot = None;
            *self.sums() = Sums::default();
        }
    }
}

/// Random, since who compares two answers must not take another process's for this one's.
fn number_of_session() -> u64 {
    RandomState::new().hash_one(0).max(1)
}

/// Adds what passes to the totals, with the verdict of the filters that it holds.
pub struct CountTotals {
    filters: Vec<Box<dyn EventFilter>>,
    totals: Arc<Totals>,
}

impl std::fmt::Debug for CountTotals {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("CountTotals").field("totals", &self.totals).finish_non_exhaustive()
    }
}

impl CountTotals {
    /// Decides as all of these do.
    #[must_use]
    pub const fn around(filters: Vec<Box<dyn EventFilter>>, totals: Arc<Totals>) -> Self {
        Self { filters, totals }
    }

    fn judge(&mut self, event: &Event) -> Verdict {
        let verdicts = self.filters.iter_mut().map(|filter| filter.filter(event));
        let mut dropped = verdicts.filter(|verdict| *verdict != Verdict::Keep);
        dropped.next().unwrap_or(Verdict::Keep)
    }
}

impl EventFilter for CountTotals {
    fn filter(&mut self, event: &Event) -> Verdict {
        let verdict = self.judge(event);
        if self.totals.session.load(Ordering::Acquire) != 0
            && let Event::Count(count) = event
        {
            let left_out = match verdict {
                Verdict::Keep => "",
                Verdict::Drop(reason) => reason,
            };
            let volume = Volume { packets: count.packets, bytes: count.bytes };
            self.totals.sums().add(Place::of(count, left_out), volume);
        }
        verdict
    }
}

/// Takes the snapshots.
#[derive(Debug)]
pub struct TotalsExporter(pub Arc<Totals>);

impl EventExporter for TotalsExporter {
    fn export(&mut self, told: &[Told]) {
        for told in told {
            if let Told::Drained(mark) = told {
                self.0.drained(mark.time_ns);
            }
        }
    }

    fn finish(&mut self, _deadline: Instant) {}
}

#[cfg(test)]
mod tests;
