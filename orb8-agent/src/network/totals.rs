//! Running totals by place, direction and protocol, for those who compare them with what the kernel
//! itself counts.
//!
//! Kept only while somebody asks for them: otherwise an event costs one load. The pipeline's thread
//! adds; a request waits for a drain that begins after it and takes what there is when that drain has
//! gone through. What is left out of the flows is in the totals too, with the reason.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use orb8_common::network::flag;

use crate::event::{Event, FlowCount, Told, Volume};
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

/// A running total; the pipeline's thread alone writes.
#[derive(Debug, Default)]
struct Sum {
    packets: AtomicU64,
    bytes: AtomicU64,
}

impl Sum {
    fn add(&self, volume: Volume) {
        let add = |to: &AtomicU64, n: u64| {
            to.store(to.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
        };
        add(&self.packets, volume.packets);
        add(&self.bytes, volume.bytes);
    }

    fn volume(&self) -> Volume {
        let of = |from: &AtomicU64| from.load(Ordering::Relaxed);
        Volume { packets: of(&self.packets), bytes: of(&self.bytes) }
    }
}

/// What there was when a drain had gone through the pipeline.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Of one session, totals only grow.
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
    state: Mutex<State>,
    /// Told with every snapshot.
    taken: Condvar,
}

#[derive(Debug, Default)]
struct State {
    sessions: u64,
    /// The session ends when nothing is asked after this time, CLOCK_MONOTONIC nanoseconds.
    until_ns: u64,
    listed: Vec<(Place, Arc<Sum>)>,
    unlisted: Arc<Sum>,
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

    /// What was counted up to now; begins a session if there is none, and keeps it until `until_ns`
    /// (CLOCK_MONOTONIC nanoseconds) at least. Waits for the kernel side to be read.
    ///
    /// # Errors
    /// See [`Late`].
    pub fn ask(&self, until_ns: u64) -> Result<Arc<Snapshot>, Late> {
        let mut state = self.state();
        state.until_ns = state.until_ns.max(until_ns);
        if self.session.load(Ordering::Relaxed) == 0 {
            state.sessions += 1;
            state.listed.clear();
            state.unlisted = Arc::default();
            self.session.store(state.sessions, Ordering::Release);
        }
        // After the session began, so that its first snapshot is of a drain that it counted whole.
        let number = self.drains.ask();
        state.latest = state.latest.max(number);
        let waits = |state: &mut State| state.served < number;
        let waited = self.taken.wait_timeout_while(state, PATIENCE, waits);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.snapshot.clone().filter(|_| state.served >= number).ok_or(Late)
    }

    /// A place's sum, listed if there is room; none if the session is another by now.
    fn list(&self, session: u64, place: Place) -> Option<Arc<Sum>> {
        let mut state = self.state();
        if self.session.load(Ordering::Relaxed) != session {
            return None;
        }
        if state.listed.len() >= PLACES {
            return Some(Arc::clone(&state.unlisted));
        }
        let sum = Arc::<Sum>::default();
        state.listed.push((place, Arc::clone(&sum)));
        Some(sum)
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
            state.snapshot = Some(Arc::new(Snapshot {
                session,
                time_ns,
                totals: state.listed.iter().map(|(at, sum)| (*at, sum.volume())).collect(),
                unlisted: state.unlisted.volume(),
                ledger: lock(&self.ledger).packets(),
            }));
            state.served = served;
            self.taken.notify_all();
        } else if state.latest <= state.served && state.until_ns < time_ns {
            self.session.store(0, Ordering::Release);
            (state.listed, state.snapshot) = (Vec::new(), None);
        }
    }
}

/// Adds what passes to the totals, with the verdict of the filters that it holds.
pub struct CountTotals {
    filters: Vec<Box<dyn EventFilter>>,
    totals: Arc<Totals>,
    session: u64,
    known: HashMap<Place, Arc<Sum>>,
    /// The place of the last count: lines of one owner often follow each other.
    last: Option<(Place, Arc<Sum>)>,
}

impl std::fmt::Debug for CountTotals {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("CountTotals").field("totals", &self.totals).finish_non_exhaustive()
    }
}

impl CountTotals {
    /// Decides as all of these do.
    #[must_use]
    pub fn around(filters: Vec<Box<dyn EventFilter>>, totals: Arc<Totals>) -> Self {
        Self { filters, totals, session: 0, known: HashMap::new(), last: None }
    }

    fn judge(&mut self, event: &Event) -> Verdict {
        let verdicts = self.filters.iter_mut().map(|filter| filter.filter(event));
        let mut dropped = verdicts.filter(|verdict| *verdict != Verdict::Keep);
        dropped.next().unwrap_or(Verdict::Keep)
    }

    fn add(&mut self, count: &FlowCount, left_out: &'static str) {
        let key = &count.id.key;
        let (owner, flags) = (count.id.owner, key.flags & FLAGS);
        let place = Place { owner, flags, protocol: key.protocol, left_out };
        let volume = Volume { packets: count.packets, bytes: count.bytes };
        if let Some((last, sum)) = &self.last
            && *last == place
        {
            sum.add(volume);
            return;
        }
        let sum = match self.known.get(&place) {
            Some(sum) => Arc::clone(sum),
            None => {
                let Some(sum) = self.totals.list(self.session, place) else { return };
                if self.known.len() < PLACES {
                    self.known.insert(place, Arc::clone(&sum));
                }
                sum
            }
        };
        sum.add(volume);
        self.last = Some((place, sum));
    }
}

impl EventFilter for CountTotals {
    fn filter(&mut self, event: &Event) -> Verdict {
        let verdict = self.judge(event);
        let session = self.totals.session.load(Ordering::Acquire);
        if session != self.session {
            self.session = session;
            self.known = HashMap::new();
            self.last = None;
        }
        if let (Event::Count(count), true) = (event, session != 0) {
            let left_out = match verdict {
                Verdict::Keep => "",
                Verdict::Drop(reason) => reason,
            };
            self.add(count, left_out);
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
