//! Keeps our place in the chains: looks who else is on the hooks, attaches again what was taken
//! off, moves back to the front where the policy allows it.

use std::collections::HashMap;
use std::io;
use std::time::Instant;

use super::super::attached::{Attached, Failed, Pending};
use super::super::chain::{self, Entry};
use super::super::hook::{self, Hook, Purpose, Side};
use super::super::netlink::Carried;
use super::Worker;
use crate::datapath::AttachRoute;
use crate::event::{Notice, Severity};

impl Worker {
    /// Looks whether we are still on the hooks and whether somebody has been put ahead of us;
    /// attaches again, or moves back to the front where the policy allows it.
    pub(super) fn look_at_chains(&mut self) {
        let now = Instant::now();
        // One listing for all, before the chains: a later one would hide what was missed.
        let devices = self.netlink.devices().unwrap_or_default();
        let carried: HashMap<u32, Carried> =
            devices.into_iter().map(|device| (device.ifindex, device.carried)).collect();
        let mut removed = Vec::new();
        let mut all = std::mem::take(&mut self.attached);
        for attached in all.values_mut() {
            if let Some(notice) = self.look(attached) {
                self.shared.side.notify(notice);
            }
            if attached.chain.is_absent() {
                removed.push(attached.device.ifindex);
                continue;
            }
            if attached.chain.should_move(now, &self.options.chain) {
                self.move_to_front(attached, now);
            }
            // What cannot be read now keeps its last value.
            if let Some(now) = carried.get(&attached.device.ifindex) {
                attached.carried = *now;
            }
        }
        self.attached = all;
        for ifindex in removed {
            self.attach_again(ifindex);
        }
        self.publish();
    }

    /// Somebody has taken our programs off an interface.
    fn attach_again(&mut self, ifindex: u32) {
        let Some(attached) = self.attached.remove(&ifindex) else { return };
        let (device, why, carried) = (attached.device.clone(), attached.why, attached.carried);
        let message = format!("our programs were taken off {}", device.name);
        self.notice(Severity::Warning, "programs_removed", message);
        self.detach(attached, true);
        // What has passed since the last look may have been missed: at most so much is lost.
        let reason = "our programs were taken off".to_owned();
        self.failed.insert(ifindex, Failed { device: device.clone(), why, reason, carried });
        self.attach(Pending { device, why, before: carried });
    }

    fn move_to_front(&mut self, attached: &mut Attached, now: Instant) {
        let before = self.netlink.carried(attached.device.ifindex);
        let mut moved = true;
        for (at, side) in Side::BOTH.into_iter().enumerate() {
            if !attached.chain.is_behind(side) {
                continue;
            }
            // The kernel holds a program once a chain, so there is a gap, counted as unattached.
            if let Err(error) = self.again(attached, at, side) {
                // The next look finds it absent and attaches anew.
                moved = false;
                let message = format!("move to the front of {}: {error}", attached.device.name);
                self.notice(Severity::Error, "move_failed", message);
            }
        }
        if let Some(before) = before {
            self.count_unattached(&attached.device, attached.why, before);
        }
        attached.chain.moved(now);
        if moved {
            let message = format!("moved back to the front on {}", attached.device.name);
            self.notice(Severity::Info, "moved_to_front", message);
        }
        self.look(attached);
    }

    fn again(&mut self, attached: &mut Attached, at: usize, side: Side) -> io::Result<()> {
        // Closing a descriptor detaches; the slot must hold something meanwhile.
        let nothing = Hook::Tcx(std::fs::File::open("/dev/null")?.into());
        hook::detach(&mut self.programs, std::mem::replace(&mut attached.hooks[at], nothing));
        let (shape, made_qdisc) = (attached.shape(), attached.made_qdisc);
        let flows = Purpose::Flows(self.options.mode);
        attached.hooks[at] = self.hook(&attached.device, shape, side, flows, made_qdisc)?;
        Ok(())
    }

    /// Reads who is on the hooks of an interface; an interface that cannot be read is forgotten
    /// elsewhere.
    pub(super) fn look(&self, attached: &mut Attached) -> Option<Notice> {
        let hooks = match self.entries(attached) {
            Ok(hooks) => hooks,
            Err(error) => {
                tracing::debug!(%error, name = attached.device.name, "a chain cannot be read");
                return None;
            }
        };
        attached.chain.look(&attached.device.name, hooks)
    }

    fn entries(&self, attached: &Attached) -> io::Result<[Vec<Entry>; 2]> {
        let ifindex = attached.device.ifindex;
        let tcx = |side| chain::tcx_entries(ifindex, side, &self.programs);
        if self.options.route == AttachRoute::Tcx {
            return Ok([tcx(Side::Ingress)?, tcx(Side::Egress)?]);
        }
        let filters = self.netlink.filters(ifindex).map_err(io::Error::other)?;
        let ours = self.instance.handle(attached.made_qdisc);
        Ok(Side::BOTH.map(|side| {
            // Where the kernel has tcx, its programs run before all filters.
            let mut entries = tcx(side).unwrap_or_default();
            entries.extend(chain::clsact_entries(&filters, side, ours));
            entries
        }))
    }
}
