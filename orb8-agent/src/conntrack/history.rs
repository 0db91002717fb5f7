//! The writing side of the table: what begins, what ends, what has to go.
//!
//! The kernel holds no two connections of one zone that share a tuple. So whatever is told to
//! begin ends those that held its tuples before, also where their end was never told: of what was
//! there before anybody listened, the kernel tells no end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::message::Connection;
use super::table::Translations;
use super::{GOES_ON, Translation, Tuple};

/// An ended connection stays for this long: counts and events of its flows arrive late.
const KEPT_NS: u64 = 30_000_000_000;

/// Protocols whose tuples lack what tells two connections apart.
const ICMP: [u8; 2] = [1, 58];

/// Writes the table; there is one.
#[derive(Debug)]
pub(super) struct History {
    table: Translations,
    /// All that is in the table in the order it came, and some that have left it.
    order: VecDeque<Arc<Translation>>,
    /// What ended, in the order it did, and some that have left the table.
    ended: VecDeque<Arc<Translation>>,
    held: usize,
    dump: u64,
    /// When the last dump was begun: what it did not tell was not there.
    dumped_ns: u64,
    /// Until then everything was told.
    heard_ns: u64,
}

/// Until when one is certain that is over.
#[derive(Debug, Clone, Copy)]
enum Over {
    /// The kernel told of what took its place.
    Told(u64),
    /// A dump showed it, and when it happened was not told.
    Guessed(u64),
}

impl History {
    /// A history that begins now.
    pub(super) const fn new(table: Translations) -> Self {
        Self {
            table,
            order: VecDeque::new(),
            ended: VecDeque::new(),
            held: 0,
            dump: 0,
            dumped_ns: 0,
            heard_ns: 0,
        }
    }

    /// A connection began.
    pub(super) fn begin(&mut self, connection: &Connection, now_ns: u64) {
        self.take_in(connection, Over::Told(now_ns), |history| {
            let one = connection.translation(now_ns);
            one.earliest_ns.fetch_max(history.dumped_ns, Ordering::Relaxed);
            one
        });
    }

    /// A connection ended.
    pub(super) fn end(&mut self, connection: &Connection, now_ns: u64) {
        if !connection.is_translated() {
            return;
        }
        let one = match self.same(connection) {
            Some(one) => one,
            // Its beginning was not told; its last records may still come.
            None => self.put(self.untold(connection, now_ns)),
        };
        if one.guessed.swap(false, Ordering::AcqRel) {
            // It was there until then after all, which a dump did not see.
            one.until_ns.fetch_max(now_ns, Ordering::AcqRel);
            self.table.changed();
        }
        self.close(&one, now_ns);
    }

    /// The kernel's table is about to be told from its start.
    pub(super) const fn begin_dump(&mut self) {
        self.dump += 1;
    }

    /// A connection is in the kernel's table.
    pub(super) fn exists(&mut self, connection: &Connection, now_ns: u64) {
        let over = Over::Guessed(self.heard_ns);
        self.take_in(connection, over, |history| history.untold(connection, now_ns));
    }

    /// All of the kernel's table as of `start_ns` was told: what was not is over, nobody knows since
    /// when.
    pub(super) fn end_dump(&mut self, start_ns: u64) {
        self.settle(start_ns);
        self.heard_ns = start_ns;
        self.dumped_ns = start_ns;
    }

    /// The kernel tells nothing any more, and has not since `told_ns` at the latest: what is held is
    /// certain until then.
    pub(super) fn silenced(&mut self, told_ns: u64) {
        self.heard_ns = self.heard_ns.min(told_ns);
        // Counts as a dump also before the first one: what is found later may have begun since.
        self.begin_dump();
        self.settle(GOES_ON);
    }

    /// Takes back what is not certain of the time from when everything was told to `start_ns`: of
    /// what was read since, nobody knows what was lost beside it.
    fn settle(&mut self, start_ns: u64) {
        let (dump, heard_ns) = (self.dump, self.heard_ns);
        let doubtful = |ns: u64| ns > heard_ns && ns <= start_ns;
        for one in &self.order {
            if doubtful(one.from_ns) {
                one.earliest_ns.fetch_max(start_ns, Ordering::AcqRel);
            }
            if one.until_ns().is_some_and(doubtful) {
                one.until_ns.store(heard_ns, Ordering::Release);
            }
        }
        let over = |one: &&Arc<Translation>| {
            one.until_ns().is_none() && one.dump.load(Ordering::Relaxed) != dump
        };
        let over: Vec<_> = self.order.iter().filter(over).map(Arc::clone).collect();
        for one in over {
            self.close_as(&one, Over::Guessed(heard_ns));
        }
    }

    /// Everything that happened until now was told.
    pub(super) const fn heard(&mut self, now_ns: u64) {
        self.heard_ns = now_ns;
    }

    /// Forgets ended connections whose time is over.
    pub(super) fn forget(&mut self, now_ns: u64) {
        while let Some(one) = self.ended.front()
            && one.until_ns().is_none_or(|until_ns| now_ns.saturating_sub(until_ns) >= KEPT_NS)
        {
            let one = Arc::clone(one);
            self.ended.pop_front();
            self.drop_one(&one);
        }
        while self.order.front().is_some_and(|one| one.dropped.load(Ordering::Relaxed)) {
            self.order.pop_front();
        }
        if self.order.len() > 2 * self.held + 1024 {
            self.order.retain(|one| !one.dropped.load(Ordering::Relaxed));
            self.order.shrink_to_fit();
            self.ended.shrink_to_fit();
        }
    }

    /// When the next ended connection is to be forgotten, in the same clock.
    pub(super) fn forget_at(&self) -> Option<u64> {
        Some(self.ended.front()?.until_ns()?.saturating_add(KEPT_NS))
    }

    /// A connection whose beginning was not told. In the first dump, if the kernel was not silent
    /// before it, it can only have been there; later, others may have been until now.
    const fn untold(&self, connection: &Connection, now_ns: u64) -> Translation {
        let from_ns = if self.dump <= 1 { 0 } else { now_ns };
        let mut one = connection.translation(from_ns);
        one.earliest_ns = AtomicU64::new(from_ns);
        one
    }

    /// Puts it in if it is not there, where it ends others.
    fn take_in(
        &mut self,
        connection: &Connection,
        over: Over,
        make: impl FnOnce(&Self) -> Translation,
    ) {
        let known = self.same(connection).filter(|one| one.until_ns().is_none());
        let one = match known {
            Some(one) => one,
            None => {
                let mut one = make(self);
                let follows = self.displace(connection, over, *one.earliest_ns.get_mut());
                if !connection.is_translated() && !follows {
                    return;
                }
                self.put(one)
            }
        };
        if !connection.is_translated() {
            // Held for as long as its first packets may be taken for those of the one before.
            self.close(&one, one.from_ns);
        }
        one.dump.store(self.dump, Ordering::Relaxed);
    }

    /// The latest with these tuples and this id.
    fn same(&self, connection: &Connection) -> Option<Arc<Translation>> {
        let mut found: Option<Arc<Translation>> = None;
        self.table.each(&connection.original, |one| {
            let same = one.id == connection.id
                && one.zone == connection.zone
                && one.original == connection.original
                && one.reply == connection.reply;
            let later = found.as_ref().is_none_or(|held| end_of(held) <= end_of(one));
            if same && later {
                found = Some(Arc::clone(one));
            }
        });
        found
    }

    /// Ends those that hold a tuple of this connection; true if there are some that packets since
    /// `earliest_ns` may be of.
    fn displace(&mut self, connection: &Connection, over: Over, earliest_ns: u64) -> bool {
        if ICMP.contains(&connection.original.protocol) {
            return false;
        }
        let own = [connection.original, connection.reply];
        let mut others: Vec<Arc<Translation>> = Vec::new();
        for tuple in own {
            self.table.each(&tuple, |one| {
                let theirs: [Tuple; 2] = [one.original, one.reply];
                let shared = theirs.iter().any(|tuple| own.contains(tuple));
                if shared && one.zone == connection.zone && end_of(one) >= earliest_ns {
                    others.push(Arc::clone(one));
                }
            });
        }
        others.iter().for_each(|one| self.close_as(one, over));
        others.iter().any(|one| end_of(one) >= earliest_ns)
    }

    fn put(&mut self, one: Translation) -> Arc<Translation> {
        while self.held >= self.table.max_entries() {
            self.evict();
        }
        let one = Arc::new(one);
        self.table.put(&one);
        self.order.push_back(Arc::clone(&one));
        self.held += 1;
        one
    }

    fn close_as(&mut self, one: &Arc<Translation>, over: Over) {
        let (Over::Told(until_ns) | Over::Guessed(until_ns)) = over;
        if one.until_ns().is_none() {
            one.guessed.store(matches!(over, Over::Guessed(_)), Ordering::Relaxed);
            self.close(one, until_ns);
        }
    }

    fn close(&mut self, one: &Arc<Translation>, until_ns: u64) {
        if one.end(until_ns) {
            self.ended.push_back(Arc::clone(one));
            self.table.changed();
        }
    }

    /// Makes room: what ended first goes first, then what came first.
    fn evict(&mut self) {
        let held = self.held;
        while self.held == held {
            let Some(one) = self.ended.pop_front().or_else(|| self.order.pop_front()) else {
                self.held = 0;
                return;
            };
            self.drop_one(&one);
        }
        self.table.count_evicted();
    }

    fn drop_one(&mut self, one: &Arc<Translation>) {
        if !one.dropped.swap(true, Ordering::Relaxed) {
            self.table.take(one);
            self.held -= 1;
        }
    }
}

fn end_of(one: &Translation) -> u64 {
    one.until_ns.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests;
