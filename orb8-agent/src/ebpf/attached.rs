//! What the attach thread holds of each chosen interface, and how status shows it.

use super::attach::AttachOptions;
use super::chain::Chain;
use super::hook::{Hook, Shape};
use super::netlink::{Carried, Device};
use super::worker;
use crate::datapath::{AttachState, ChosenBy, InterfaceStatus};

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

/// One chosen interface that waits to be attached.
pub(super) struct Pending {
    pub(super) device: Device,
    pub(super) why: ChosenBy,
    /// What it had carried when its loss began to count.
    pub(super) before: Carried,
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
    /// What it looks like to the programs.
    pub(super) fn shape(&self) -> Shape {
        worker::shape(&self.device, self.why)
    }

    /// As status shows it.
    pub(super) fn status(&self, options: &AttachOptions) -> InterfaceStatus {
        InterfaceStatus {
            reason: self.chain.reason(&options.chain),
            before: self.chain.neighbours().before.clone(),
            after: self.chain.neighbours().after.clone(),
            ..status(&self.device, self.why, AttachState::Attached, options)
        }
    }
}

impl Failed {
    /// As status shows it.
    pub(super) fn status(&self, options: &AttachOptions) -> InterfaceStatus {
        InterfaceStatus {
            reason: self.reason.clone(),
            ..status(&self.device, self.why, AttachState::Failed, options)
        }
    }
}

impl Pending {
    /// As status shows it.
    pub(super) fn status(&self, options: &AttachOptions) -> InterfaceStatus {
        status(&self.device, self.why, AttachState::Attaching, options)
    }
}

fn status(
    device: &Device,
    why: ChosenBy,
    state: AttachState,
    options: &AttachOptions,
) -> InterfaceStatus {
    InterfaceStatus {
        name: device.name.clone(),
        ifindex: device.ifindex,
        state,
        route: Some(options.route),
        reason: String::new(),
        before: Vec::new(),
        after: Vec::new(),
        link: device.link,
        chosen_by: why,
        mode: options.mode,
    }
}
