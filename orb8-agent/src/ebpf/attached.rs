//! What the attach thread holds of each chosen interface, and how status shows it.

use super::chain::{Chain, ChainPolicy};
use super::hook::Hook;
use super::netlink::{Carried, Device};
use crate::datapath::{AttachRoute, AttachState, ChosenBy, CountMode, InterfaceStatus};

/// One attached interface.
pub(super) struct Attached {
    pub(super) device: Device,
    pub(super) why: ChosenBy,
    pub(super) hooks: [Hook; 2],
    pub(super) packets: Vec<Hook>,
    pub(super) made_qdisc: bool,
    pub(super) chain: Chain,
    /// What it had carried at the last look.
    pub(super) carried: Carried,
}

/// One chosen interface that could not be attached.
pub(super) struct Failed {
    pub(super) device: Device,
    pub(super) why: ChosenBy,
    pub(super) reason: String,
    /// What it had carried when that was last told as lost.
    pub(super) carried: Carried,
}

impl Attached {
    /// As status shows it.
    pub(super) fn status(&self, route: AttachRoute, policy: &ChainPolicy) -> InterfaceStatus {
        InterfaceStatus {
            reason: self.chain.reason(policy),
            before: self.chain.neighbours().before.clone(),
            after: self.chain.neighbours().after.clone(),
            ..status(&self.device, self.why, AttachState::Attached, route)
        }
    }
}

impl Failed {
    /// As status shows it.
    pub(super) fn status(&self, route: AttachRoute) -> InterfaceStatus {
        InterfaceStatus {
            reason: self.reason.clone(),
            ..status(&self.device, self.why, AttachState::Failed, route)
        }
    }
}

fn status(
    device: &Device,
    why: ChosenBy,
    state: AttachState,
    route: AttachRoute,
) -> InterfaceStatus {
    InterfaceStatus {
        name: device.name.clone(),
        ifindex: device.ifindex,
        state,
        route: Some(route),
        reason: String::new(),
        before: Vec::new(),
        after: Vec::new(),
        link: device.link,
        chosen_by: why,
        mode: CountMode::Full,
    }
}
