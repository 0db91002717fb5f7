//! The cgroup of a flow's sender as a record holds it, and the asking side of its lookup.
//!
//! Asking never waits. Answers arrive in records that already hold the question.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};

use super::index::{Cgroup, Cgroups};
use super::process::Process;
use crate::host::OwnHasher;

/// Questions that may wait; one that finds no room is asked again with the flow's next event.
pub(super) const QUEUE: usize = 256;
/// Answers that are remembered, one for each cgroup.
const MAX_REMEMBERED: usize = 16_384;
/// A process counts as a flow's only if it was looked up this soon after the flow's first packet.
const FRESH_NS: u64 = 1_000_000_000;

/// A cgroup as a flow's sender was in it; answered later, for all flows that hold it.
#[derive(Debug)]
pub struct Membership {
    /// cgroup2 id.
    pub id: u64,
    /// Known when the question was made.
    known: Option<Arc<Cgroup>>,
    answer: OnceLock<Answer>,
}

/// What was found for a cgroup id.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The cgroup, none if there is none of this id any more, or never was below our root.
    pub cgroup: Option<Arc<Cgroup>>,
    /// The process, if the cgroup held exactly one.
    pub process: Option<Process>,
    /// CLOCK_MONOTONIC nanoseconds of the look.
    pub checked_ns: u64,
}

impl Membership {
    /// A question without an answer yet.
    #[must_use]
    pub fn asked(id: u64) -> Self {
        Self { id, known: None, answer: OnceLock::new() }
    }

    /// A question that is answered already.
    #[must_use]
    pub fn answered(id: u64, answer: Answer) -> Self {
        Self { id, known: None, answer: OnceLock::from(answer) }
    }

    /// The cgroup, if it is known.
    #[must_use]
    pub fn cgroup(&self) -> Option<&Arc<Cgroup>> {
        self.known.as_ref().or_else(|| self.answer.get()?.cgroup.as_ref())
    }

    /// The path, if it is known.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        self.cgroup().map(|cgroup| &*cgroup.path)
    }

    /// Whether it was looked for and there is no such cgroup: nothing will be known of it.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.cgroup().is_none() && self.answer.get().is_some()
    }

    /// Whether asking again may still tell something of a flow which began then: what waits for an
    /// answer may have found no room in the queue.
    #[must_use]
    pub fn may_tell_more(&self, first_seen_ns: u64, now_ns: u64) -> bool {
        let is_fresh = now_ns.saturating_sub(first_seen_ns) <= FRESH_NS;
        self.answer.get().is_none() && (is_fresh || self.cgroup().is_none())
    }

    /// The process that sent a flow which began then.
    ///
    /// Only where it is certain: it was alone in the cgroup, was there before the flow, and the
    /// look came soon enough that a short-lived sibling would have been seen.
    #[must_use]
    pub fn process_at(&self, first_seen_ns: u64) -> Option<&Process> {
        let answer = self.answer.get()?;
        let age = answer.checked_ns.checked_sub(first_seen_ns)?;
        answer.process.as_ref().filter(|found| age <= FRESH_NS && found.started_ns <= first_seen_ns)
    }

    /// Answers the question; a second answer is ignored.
    pub(super) fn set(&self, answer: Answer) {
        self.answer.get_or_init(|| answer);
    }
}

/// The asking side; belongs to the pipeline thread.
#[derive(Debug)]
pub struct Memberships {
    cgroups: Cgroups,
    remembered: HashMap<u64, Remembered, OwnHasher>,
    line: Option<Line>,
}

#[derive(Debug)]
struct Remembered {
    latest: Arc<Membership>,
    sent: bool,
}

impl Memberships {
    /// One that asks nobody: it knows what the index knows, and no process.
    #[must_use]
    pub fn unanswered(cgroups: Cgroups) -> Self {
        Self { cgroups, remembered: HashMap::default(), line: None }
    }

    /// One whose questions go there.
    pub(super) fn asking(cgroups: Cgroups, line: Line) -> Self {
        Self { cgroups, remembered: HashMap::default(), line: Some(line) }
    }

    /// The index that the answers come from.
    #[must_use]
    pub const fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    /// The membership of a flow that began at `since_ns`, answered now or later.
    pub fn find(&mut self, id: u64, since_ns: u64) -> Option<Arc<Membership>> {
        if !self.remembered.contains_key(&id) && self.remembered.len() >= MAX_REMEMBERED {
            // Which one goes does not matter: whoever still needs it asks again.
            let victim = self.remembered.keys().next().copied();
            victim.and_then(|id| self.remembered.remove(&id));
        }
        let ask = || {
            let known = self.cgroups.find(id);
            let latest = Arc::new(Membership { id, known, answer: OnceLock::new() });
            Remembered { latest, sent: false }
        };
        let held = self.remembered.entry(id).or_insert_with(ask);
        let is_old = held.latest.answer.get().is_some_and(|answer| answer.checked_ns < since_ns);
        // The index may have learned of it since, long before the keeper comes to the question.
        if is_old || (held.latest.cgroup().is_none() && self.cgroups.find(id).is_some()) {
            *held = ask();
        }
        if !held.sent
            && let Some(line) = &self.line
        {
            held.sent = line.send(&held.latest);
        }
        Some(Arc::clone(&held.latest))
    }
}

/// The sending end of the questions' queue; dropping it ends the keeper.
#[derive(Debug)]
pub(super) struct Line {
    queue: Option<SyncSender<Arc<Membership>>>,
    bell: Arc<Bell>,
}

/// Wakes the keeper, by one system call for any number of questions that it has not taken yet.
#[derive(Debug)]
pub(super) struct Bell {
    rung: AtomicBool,
    /// An eventfd.
    pub(super) wake: OwnedFd,
}

impl Line {
    /// A line and its other end.
    pub(super) fn new(wake: OwnedFd) -> (Self, Receiver<Arc<Membership>>, Arc<Bell>) {
        let (sender, receiver) = sync_channel(QUEUE);
        let bell = Arc::new(Bell { rung: AtomicBool::new(false), wake });
        (Self { queue: Some(sender), bell: Arc::clone(&bell) }, receiver, bell)
    }

    fn send(&self, question: &Arc<Membership>) -> bool {
        let Some(queue) = &self.queue else { return false };
        let sent = queue.try_send(Arc::clone(question)).is_ok();
        self.bell.ring();
        sent
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // The queue first: whoever wakes has to find it closed.
        self.queue = None;
        self.bell.ring();
    }
}

impl Bell {
    fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            // The counter cannot overflow: it is written once for each time that it is read.
            rustix::io::write(&self.wake, &1_u64.to_ne_bytes()).ok();
        }
    }

    /// Makes the next ring wake again; questions sent before it are in the queue.
    pub(super) fn rearm(&self) {
        let mut counter = [0; 8];
        rustix::io::read(&self.wake, &mut counter).ok();
        // A swap, not a store: what was sent before the ring that it undoes is seen after it.
        self.rung.swap(false, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests;
