//! Waits for running programs on a thread of its own, so that the pipeline never stands still.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::sys;

/// Two maps whose exchange waits for every running program.
#[derive(Debug)]
pub struct Barrier {
    inner: OwnedFd,
    outer: OwnedFd,
}

impl Barrier {
    /// Creates the two maps.
    ///
    /// # Errors
    /// EPERM without CAP_BPF.
    pub fn new() -> io::Result<Self> {
        let inner = sys::create_array(None)?;
        let outer = sys::create_array(Some(inner.as_fd()))?;
        Ok(Self { inner, outer })
    }

    /// Returns when every program that now runs has ended; takes some ten milliseconds.
    ///
    /// # Errors
    /// What the kernel says; none is expected.
    pub fn wait(&self) -> io::Result<()> {
        sys::replace_inner_map(self.outer.as_fd(), self.inner.as_fd())
    }
}

/// A thread that waits when asked.
#[derive(Debug)]
pub struct Grace {
    requests: SyncSender<u64>,
    asked: u64,
    progress: Arc<Progress>,
    thread: JoinHandle<()>,
    /// That it does not wait was told.
    told: bool,
}

/// How far the thread has come, by tickets.
#[derive(Debug, Default)]
struct Progress {
    passed: AtomicU64,
    failed: AtomicU64,
    /// Why waiting failed last.
    why: Mutex<Option<io::Error>>,
}

impl Progress {
    fn note(&self, ticket: u64, result: io::Result<()>) {
        match result {
            Ok(()) => self.passed.store(ticket, Ordering::Release),
            Err(error) => {
                tracing::error!(%error, "waiting for programs failed");
                *self.why() = Some(error);
                self.failed.store(ticket, Ordering::Release);
            }
        }
    }

    fn why(&self) -> MutexGuard<'_, Option<io::Error>> {
        self.why.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A grace period that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u64);

impl Grace {
    /// Starts the thread.
    ///
    /// # Errors
    /// What creating the maps or the thread says.
    pub fn start() -> io::Result<Self> {
        let barrier = Barrier::new()?;
        Self::by(move || barrier.wait())
    }

    /// Starts a thread that waits by what is given.
    ///
    /// # Errors
    /// What creating the thread says.
    pub fn by(mut wait: impl FnMut() -> io::Result<()> + Send + 'static) -> io::Result<Self> {
        // One request is under way at most.
        let (requests, asked) = sync_channel::<u64>(1);
        let progress: Arc<Progress> = Arc::default();
        let notes = Arc::clone(&progress);
        let thread = std::thread::Builder::new()
            .name("grace".to_owned())
            .stack_size(64 * 1024)
            .spawn(move || asked.into_iter().for_each(|ticket| notes.note(ticket, wait())))?;
        Ok(Self { requests, asked: 0, progress, thread, told: false })
    }

    /// Why nobody waits, the first time that this is so: waiting failed, or the thread has ended, which
    /// it never does by itself.
    pub fn trouble(&mut self) -> Option<String> {
        let why = self.progress.why().take().map(|error| error.to_string());
        let ended = || self.thread.is_finished().then(|| "its thread has ended".to_owned());
        let why = why.or_else(ended).filter(|_| !self.told);
        self.told |= why.is_some();
        why
    }

    /// Asks for a grace period; `None` if the thread has not taken the last request yet.
    pub fn ask(&mut self) -> Option<Ticket> {
        let ticket = self.asked + 1;
        self.requests.try_send(ticket).ok()?;
        self.asked = ticket;
        Some(Ticket(ticket))
    }

    /// Whether every program that ran when the ticket was asked for has ended.
    #[must_use]
    pub fn passed(&self, ticket: Ticket) -> bool {
        self.progress.passed.load(Ordering::Acquire) >= ticket.0
    }

    /// Whether waiting failed: whoever asked asks again.
    #[must_use]
    pub fn failed(&self, ticket: Ticket) -> bool {
        self.progress.failed.load(Ordering::Acquire) == ticket.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orb8_testbed::need::{Need, met};

    #[test]
    fn a_grace_period_passes() {
        if !met("a_grace_period_passes", &[Need::Root, Need::Bpf]) {
            return;
        }
        let mut grace = Grace::start().expect("BPF can be used");
        let ticket = grace.ask().expect("nothing is under way");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !grace.passed(ticket) {
            assert!(std::time::Instant::now() < deadline, "no grace period within 10 s");
            std::thread::yield_now();
        }
    }
}
