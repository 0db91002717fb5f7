//! Waits for running programs on a thread of its own, so that the pipeline never stands still.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

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
    passed: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
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
        // One request is under way at most.
        let (requests, asked) = sync_channel::<u64>(1);
        let passed = Arc::new(AtomicU64::new(0));
        let failed = Arc::new(AtomicU64::new(0));
        let (done, not_done) = (Arc::clone(&passed), Arc::clone(&failed));
        std::thread::Builder::new().name("grace".to_owned()).stack_size(64 * 1024).spawn(
            move || {
                for ticket in asked {
                    match barrier.wait() {
                        Ok(()) => done.store(ticket, Ordering::Release),
                        Err(error) => {
                            tracing::error!(%error, "waiting for programs failed");
                            not_done.store(ticket, Ordering::Release);
                        }
                    }
                }
            },
        )?;
        Ok(Self { requests, asked: 0, passed, failed })
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
        self.passed.load(Ordering::Acquire) >= ticket.0
    }

    /// Whether waiting failed: whoever asked asks again.
    #[must_use]
    pub fn failed(&self, ticket: Ticket) -> bool {
        self.failed.load(Ordering::Acquire) == ticket.0
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
