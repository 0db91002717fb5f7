//! What passes chosen interfaces while our programs are not there: it is lost, and told so, from the
//! moment on at which the agent promises to see everything. What passed before that is before its
//! time.
//!
//! Reads devices' own counters, and attaches nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use super::Worker;
use crate::datapath::ChosenBy;
use crate::ebpf::netlink::{Carried, Device};
use crate::ebpf::socket_plane::SocketPlane;

/// The agent answers after this at the latest, however many interfaces are still to be attached.
const AT_MOST: Duration = Duration::from_secs(2);

/// What ends when the agent may promise to see everything.
#[derive(Debug)]
pub(in crate::ebpf) struct Beginning {
    by: Instant,
    /// Whoever waits at the other end is told by its drop.
    _waiting: SyncSender<()>,
    /// Nobody waits any more, and everything was promised.
    given_up: Arc<AtomicBool>,
}

impl Beginning {
    /// One that begins now; its end is told by `waiting`, which is dropped. Whoever does not wait so
    /// long says `given_up`.
    pub(in crate::ebpf) fn until(waiting: SyncSender<()>, given_up: Arc<AtomicBool>) -> Self {
        Self { by: Instant::now() + AT_MOST, _waiting: waiting, given_up }
    }

    fn is_promised(&self) -> bool {
        self.given_up.load(Ordering::Acquire)
    }
}

impl Worker {
    /// Ends the beginning, once all that totals come from has had its turn: from now on, what passes
    /// where no program is counts as lost.
    pub(super) fn begin_if_ready(&mut self) {
        let Some(beginning) = &self.beginning else { return };
        if beginning.is_promised() {
            self.beginning = None;
            return;
        }
        let is_listed = self.known.is_some();
        let is_waited_for = !is_listed || self.pending.iter().any(|one| self.has_totals(one.why));
        if is_waited_for && Instant::now() < beginning.by {
            return;
        }
        for pending in &mut self.pending {
            let now = self.netlink.carried(pending.device.ifindex);
            pending.before = now.unwrap_or(pending.before);
        }
        for failed in self.failed.values_mut() {
            let now = self.netlink.carried(failed.device.ifindex);
            failed.carried = now.unwrap_or(failed.carried);
        }
        self.publish();
        self.beginning = None;
    }

    /// What a device had carried when its loss began to count: when an attach first failed; for a
    /// device that was there before us or was no uplink until now, as of the listing that chose
    /// it; for one that came back, when it left; for a new one, nothing.
    pub(super) fn carried_before(&self, device: &Device) -> Carried {
        if let Some(failed) = self.failed.get(&device.ifindex) {
            return failed.carried;
        }
        let Some(known) = &self.known else { return device.carried };
        if known.contains_key(&device.ifindex) || device.hardware {
            return device.carried;
        }
        Carried::default()
    }

    /// Whether totals come from there: of pods they come from their sockets while these are watched.
    fn has_totals(&self, why: ChosenBy) -> bool {
        let sockets = self.socket.as_ref().is_some_and(SocketPlane::is_attached);
        why != ChosenBy::PodLink || !sockets
    }

    /// How long there is to wait at most, while somebody waits for the beginning.
    pub(super) fn until_begun(&self, wait: Duration) -> Duration {
        self.beginning.as_ref().map_or(wait, |beginning| {
            wait.min(beginning.by.saturating_duration_since(Instant::now()))
        })
    }

    /// Counts what passed between the last look and now, once that is promised. Packets in the
    /// moment between attaching and reading the device's counters are in both numbers, so this says
    /// at most how many.
    ///
    /// Nothing is lost where no totals come from.
    pub(super) fn count_unattached(
        &self,
        device: &Device,
        why: ChosenBy,
        before: Carried,
    ) -> Option<Carried> {
        let now = self.netlink.carried(device.ifindex)?;
        let is_promised = self.beginning.as_ref().is_none_or(Beginning::is_promised);
        if !is_promised || !self.has_totals(why) {
            return Some(now);
        }
        let packets = now.rx_packets.saturating_sub(before.rx_packets)
            + now.tx_packets.saturating_sub(before.tx_packets);
        let bytes = now.rx_bytes.saturating_sub(before.rx_bytes)
            + now.tx_bytes.saturating_sub(before.tx_bytes);
        self.shared.side.add_unattached(packets, bytes);
        Some(now)
    }
}
