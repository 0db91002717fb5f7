//! Translated connections, found by any form in which a hook may see their packets.
//!
//! One thread writes, any thread reads. A read allocates nothing, and waits at most for one entry
//! of one shard to be put in. Nothing here talks to the kernel.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use hashbrown::HashTable;

use super::{State, Status, Translation, Tuple};

/// Few entries for each lock, so that growing a shard's table takes microseconds.
const SHARDS: usize = 64;
/// Bytes of an address and a port.
const END: usize = 18;

/// Which connection packets belong to.
#[derive(Debug, Clone, Default)]
pub enum Match {
    /// None that is translated.
    #[default]
    None,
    /// This one, or one that is translated alike.
    One(Arc<Translation>),
    /// One of several that are not translated alike.
    Several,
}

impl Match {
    /// It, where it is known.
    #[must_use]
    pub fn into_one(self) -> Option<Arc<Translation>> {
        match self {
            Self::One(one) => Some(one),
            Self::None | Self::Several => None,
        }
    }

    /// One more that it may be; of those that are alike, the one that ends last.
    fn add(&mut self, one: &Arc<Translation>) {
        match self {
            Self::None => *self = Self::One(Arc::clone(one)),
            Self::One(held) if !held.is_like(one) => *self = Self::Several,
            Self::One(held) if end_of(held) < end_of(one) => *held = Arc::clone(one),
            Self::One(_) | Self::Several => {}
        }
    }

    /// This, given that some of the packets may be of those others.
    fn beside(self, others: &Self) -> Self {
        match (&self, others) {
            (Self::One(one), Self::One(other)) if !one.is_like(other) => Self::Several,
            (Self::One(_), Self::Several) => Self::Several,
            _ => self,
        }
    }
}

/// Connections that packets may be of.
#[derive(Default)]
struct Found {
    /// All of them.
    whole: Match,
    /// The last of them.
    last: Match,
    /// Earlier ones, but not the last.
    over: Match,
}

impl Found {
    fn add(&mut self, one: &Arc<Translation>, since_ns: u64, until_ns: u64) {
        if one.may_hold_at(until_ns) {
            self.last.add(one);
            if one.may_hold_at(since_ns) {
                self.whole.add(one);
            }
        } else if one.may_end_within(since_ns, until_ns) {
            self.over.add(one);
        }
    }

    fn into_match(self) -> Match {
        let found = if matches!(self.whole, Match::None) { self.last } else { self.whole };
        found.beside(&self.over)
    }
}

fn end_of(one: &Translation) -> u64 {
    one.until_ns.load(Ordering::Acquire)
}

type Shard = HashTable<(u64, Arc<Translation>)>;

/// The table; clones are the same one.
#[derive(Debug, Clone)]
pub struct Translations {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    hasher: RandomState,
    /// Each connection twice: under the tuple of either direction, whichever way round.
    shards: [RwLock<Shard>; SHARDS],
    max_entries: usize,
    generation: AtomicU64,
    entries: AtomicU64,
    evicted: AtomicU64,
    overruns: AtomicU64,
    rejected: AtomicU64,
    state: Mutex<(State, String)>,
}

impl Translations {
    /// An empty table for at most so many connections.
    #[must_use]
    pub fn empty(max_entries: usize) -> Self {
        let reason = "connection tracking is not read".to_owned();
        let shared = Shared {
            hasher: RandomState::new(),
            shards: std::array::from_fn(|_| RwLock::default()),
            max_entries,
            generation: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            overruns: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            state: Mutex::new((State::Unavailable, reason)),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The connection that packets of this form belong to now, or else that they belonged to last.
    ///
    /// Nothing if several could be meant, as with pings, whose identifiers are not kept.
    #[must_use]
    pub fn find(&self, tuple: &Tuple) -> Option<Arc<Translation>> {
        let (mut last, mut end) = (Match::None, 0);
        self.each(tuple, |one| match end_of(one).cmp(&end) {
            std::cmp::Ordering::Less => {}
            std::cmp::Ordering::Equal => last.add(one),
            std::cmp::Ordering::Greater => (last, end) = (Match::One(Arc::clone(one)), end_of(one)),
        });
        last.into_one()
    }

    /// The connection that a packet of this form belonged to then (CLOCK_MONOTONIC nanoseconds).
    ///
    /// Nothing if several could be meant.
    #[must_use]
    pub fn find_at(&self, tuple: &Tuple, at_ns: u64) -> Option<Arc<Translation>> {
        self.find_over(tuple, at_ns, at_ns, None).into_one()
    }

    /// The connection that packets of this form belonged to, the first at `since_ns`, the last at
    /// `until_ns` (CLOCK_MONOTONIC nanoseconds): one that both may belong to, else that of the last.
    /// Where another was over between them, some are its and some are not: several.
    ///
    /// Beginnings and ends are told late. Of two that follow closely upon each other nobody knows
    /// which one a packet between them was of: the kernel ends the first for the very packet that
    /// begins the second. Where the packets are those of a connection the first packet of which
    /// opened it at `opened_ns`, they are of none that was there before and over by then.
    #[must_use]
    pub fn find_over(
        &self,
        tuple: &Tuple,
        since_ns: u64,
        until_ns: u64,
        opened_ns: Option<u64>,
    ) -> Match {
        if self.is_empty() {
            return Match::None;
        }
        let [mut of_now, mut of_before] = [Found::default(), Found::default()];
        self.each(tuple, |one| {
            let before = opened_ns.is_some_and(|opened_ns| one.precedes(opened_ns));
            if before { &mut of_before } else { &mut of_now }.add(one, since_ns, until_ns);
        });
        match of_now.into_match() {
            // What follows was not told yet.
            Match::None => of_before.into_match(),
            found => found,
        }
    }

    /// Whether no connection is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shared.entries.load(Ordering::Acquire) == 0
    }

    /// A number that moves with every change of the table.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.shared.generation.load(Ordering::Acquire)
    }

    /// What there is to tell.
    #[must_use]
    pub fn status(&self) -> Status {
        let shared = &*self.shared;
        let (state, reason) = shared.state.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Status {
            state,
            reason,
            entries: shared.entries.load(Ordering::Relaxed),
            max_entries: shared.max_entries as u64,
            evicted: shared.evicted.load(Ordering::Relaxed),
            overruns: shared.overruns.load(Ordering::Relaxed),
            rejected: shared.rejected.load(Ordering::Relaxed),
        }
    }

    /// Puts a connection in, as if the kernel had told of it; for tests of those who look up.
    pub fn insert(&self, translation: Translation) -> Arc<Translation> {
        let translation = Arc::new(translation);
        self.put(&translation);
        translation
    }

    /// All of this tuple, in either direction.
    pub(super) fn each(&self, tuple: &Tuple, mut visit: impl FnMut(&Arc<Translation>)) {
        let hash = self.hash(tuple);
        let shard = self.shard(hash).read().unwrap_or_else(PoisonError::into_inner);
        for (_, one) in shard.iter_hash(hash).filter(|(of, one)| *of == hash && one.covers(tuple)) {
            visit(one);
        }
    }

    pub(super) fn put(&self, one: &Arc<Translation>) {
        // Before it can be found, so that nobody takes a table that holds something for empty.
        self.shared.entries.fetch_add(1, Ordering::AcqRel);
        for hash in self.hashes(one) {
            let mut shard = self.shard(hash).write().unwrap_or_else(PoisonError::into_inner);
            shard.insert_unique(hash, (hash, Arc::clone(one)), |(hash, _)| *hash);
        }
        self.changed();
    }

    pub(crate) fn take(&self, one: &Arc<Translation>) {
        for hash in self.hashes(one) {
            let mut shard = self.shard(hash).write().unwrap_or_else(PoisonError::into_inner);
            if let Ok(entry) = shard.find_entry(hash, |(_, held)| Arc::ptr_eq(held, one)) {
                entry.remove();
            }
            if shard.is_empty() {
                // What a burst needed is given back.
                shard.shrink_to_fit(|(hash, _)| *hash);
            }
        }
        self.shared.entries.fetch_sub(1, Ordering::Relaxed);
        self.changed();
    }

    pub(super) fn changed(&self) {
        self.shared.generation.fetch_add(1, Ordering::Release);
    }

    pub(super) fn max_entries(&self) -> usize {
        self.shared.max_entries
    }

    pub(super) fn count_evicted(&self) {
        self.shared.evicted.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_overrun(&self) {
        self.shared.overruns.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_rejected(&self) {
        self.shared.rejected.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn set_state(&self, state: State, reason: &str) {
        let mut held = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        if held.0 != state || held.1 != reason {
            *held = (state, reason.to_owned());
        }
    }

    /// Where it is found: under the tuple of either direction.
    fn hashes(&self, one: &Translation) -> impl Iterator<Item = u64> {
        let (first, second) = (self.hash(&one.original), self.hash(&one.reply));
        std::iter::once(first).chain((first != second).then_some(second))
    }

    /// The same for both ways round. In one piece: the hasher is several times slower with a field
    /// at a time.
    fn hash(&self, tuple: &Tuple) -> u64 {
        let mut bytes = [0; 1 + 2 * END];
        bytes[0] = tuple.protocol;
        for (part, end) in bytes[1..]
            .chunks_exact_mut(END)
            .zip([tuple.src.min(tuple.dst), tuple.src.max(tuple.dst)])
        {
            let (address, port) = part.split_at_mut(END - 2);
            match end.ip() {
                IpAddr::V4(ip) => address[..4].copy_from_slice(&ip.octets()),
                IpAddr::V6(ip) => address.copy_from_slice(&ip.octets()),
            }
            port.copy_from_slice(&end.port().to_ne_bytes());
        }
        let mut state = self.shared.hasher.build_hasher();
        state.write(&bytes);
        state.finish()
    }

    fn shard(&self, hash: u64) -> &RwLock<Shard> {
        // The table uses the lowest and the highest bits itself.
        let at = usize::try_from((hash >> 32) % SHARDS as u64).unwrap_or(0);
        &self.shared.shards[at]
    }
}

#[cfg(test)]
mod tests;
