//! What the threads of the kernel side tell the pipeline besides events: what passed interfaces
//! before they were attached, records that could not be decoded, notices. Taken at each drain.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::event::{Notice, Severity};

/// Notices beyond this many between two drains are counted, not kept.
const MAX_NOTICES: usize = 256;

/// Counters that only grow, and a bounded list of notices.
#[derive(Debug, Default)]
pub struct SideChannel {
    packets: AtomicU64,
    bytes: AtomicU64,
    undecodable: AtomicU64,
    notices: Mutex<Vec<Notice>>,
    notices_lost: AtomicU64,
}

impl SideChannel {
    /// Adds what an interface had carried when its programs were attached.
    pub fn add_unattached(&self, packets: u64, link_bytes: u64) {
        self.packets.fetch_add(packets, Ordering::Relaxed);
        self.bytes.fetch_add(link_bytes, Ordering::Relaxed);
    }

    /// Packets and link-layer bytes so far.
    #[must_use]
    pub fn unattached(&self) -> (u64, u64) {
        (self.packets.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    /// Counts a ring record that is not one of ours.
    pub fn count_undecodable(&self) {
        self.undecodable.fetch_add(1, Ordering::Relaxed);
    }

    /// Ring records that were not ours.
    #[must_use]
    pub fn undecodable(&self) -> u64 {
        self.undecodable.load(Ordering::Relaxed)
    }

    /// Leaves a notice for the next drain.
    pub fn notify(&self, notice: Notice) {
        let mut notices = self.notices.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if notices.len() < MAX_NOTICES {
            notices.push(notice);
        } else {
            self.notices_lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes the notices left since the last call; the last one says how many did not fit.
    pub fn take_notices(&self) -> Vec<Notice> {
        let mut notices = {
            let mut left = self.notices.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            std::mem::take(&mut *left)
        };
        let lost = self.notices_lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            notices.push(Notice {
                severity: Severity::Warning,
                code: "notices_lost",
                message: format!("{lost} notices did not fit between two drains"),
            });
        }
        notices
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_that_do_not_fit_are_told_as_a_number() {
        let side = SideChannel::default();
        for n in 0..MAX_NOTICES + 3 {
            let message = n.to_string();
            side.notify(Notice { severity: Severity::Info, code: "test", message });
        }
        let notices = side.take_notices();
        assert_eq!(notices.len(), MAX_NOTICES + 1);
        let last = notices.last().map(|n| n.message.as_str());
        assert_eq!(last, Some("3 notices did not fit between two drains"));
        assert_eq!(side.take_notices(), []);
    }
}
