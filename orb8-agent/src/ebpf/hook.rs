//! One program on one hook of one interface, by tcx or clsact.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use aya::programs::TcAttachType;
use aya::programs::tc::{self, NlOptions, SchedClassifierLinkId, TcAttachOptions, TcHandle};

use super::load::Programs;
use super::netlink::Netlink;
use super::sys;
use crate::datapath::{CountMode, LinkKind};

/// The two hooks of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Packets that the interface receives.
    Ingress,
    /// Packets that it sends.
    Egress,
}

impl Side {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    /// The word that status uses.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// The tcx attach type.
    #[must_use]
    pub const fn tcx(self) -> u32 {
        match self {
            Self::Ingress => sys::BPF_TCX_INGRESS,
            Self::Egress => sys::BPF_TCX_EGRESS,
        }
    }

    const fn clsact(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }
}

/// What a program is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Counts flows.
    Flows(CountMode),
    /// Tells packets.
    Packets,
}

/// What an interface looks like to a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The host's own, with this link header.
    Own(LinkKind),
    /// The node's end of a link to a pod.
    PodLink,
}

/// Names by purpose, side and shape.
const NAMES: [[[&str; 4]; 2]; 3] = [
    [
        ["orb8_in_eth", "orb8_in_raw", "orb8_in_any", "orb8_in_pod"],
        ["orb8_out_eth", "orb8_out_raw", "orb8_out_any", "orb8_out_pod"],
    ],
    [
        ["orb8_sup_in_eth", "orb8_sup_in_raw", "orb8_sup_in_any", "orb8_sup_in_pod"],
        ["orb8_sup_out_eth", "orb8_sup_out_raw", "orb8_sup_out_any", "orb8_sup_out_pod"],
    ],
    [
        ["orb8_pkt_in_eth", "orb8_pkt_in_raw", "orb8_pkt_in_any", "orb8_pkt_in_pod"],
        ["orb8_pkt_out_eth", "orb8_pkt_out_raw", "orb8_pkt_out_any", "orb8_pkt_out_pod"],
    ],
];

/// The name of the program for a purpose, a side and a shape.
#[must_use]
pub const fn program(purpose: Purpose, side: Side, shape: Shape) -> &'static str {
    let purpose = match purpose {
        Purpose::Flows(CountMode::Full) => 0,
        Purpose::Flows(CountMode::Supplement) => 1,
        Purpose::Packets => 2,
    };
    let side = match side {
        Side::Ingress => 0,
        Side::Egress => 1,
    };
    let shape = match shape {
        Shape::Own(LinkKind::Ethernet) => 0,
        Shape::Own(LinkKind::Raw) => 1,
        Shape::Own(LinkKind::Other) => 2,
        Shape::PodLink => 3,
    };
    NAMES[purpose][side][shape]
}

/// Priorities of clsact that are tried: the lowest runs first, and one that another kind of filter
/// has cannot be shared.
const PRIORITIES: std::ops::RangeInclusive<u16> = 1..=16;

/// An attached program.
pub enum Hook {
    /// Goes when the descriptor is closed, also by a kill.
    Tcx(OwnedFd),
    /// Goes when it is detached.
    Clsact {
        /// The program.
        program: &'static str,
        /// aya's number of the attachment.
        link: SchedClassifierLinkId,
    },
}

/// Where to attach.
#[derive(Clone, Debug)]
pub struct Place<'a> {
    /// The interface's number.
    pub ifindex: u32,
    /// Its name, for clsact.
    pub name: &'a str,
    /// What it looks like.
    pub shape: Shape,
    /// Its side.
    pub side: Side,
    /// What for.
    pub purpose: Purpose,
    /// What flows are counted there.
    pub mode: CountMode,
}

/// Attaches by tcx: first in the chain; the packet view right behind our own counting.
///
/// # Errors
/// What the kernel says; ENODEV if the interface has gone.
pub fn attach_tcx(programs: &mut Programs, place: &Place<'_>) -> io::Result<Hook> {
    let name = program(place.purpose, place.side, place.shape);
    let after = match place.purpose {
        Purpose::Flows(_) => None,
        Purpose::Packets => Some(program(Purpose::Flows(place.mode), place.side, place.shape)),
    };
    let after = after.and_then(|name| programs.id(name));
    let link = sys::tcx_attach(programs.fd(name), place.ifindex, place.side.tcx(), after)?;
    Ok(Hook::Tcx(link))
}

/// Adds clsact if the interface has none; true if it had none.
///
/// # Errors
/// What the kernel says; also if the interface has the older `ingress` qdisc in its place, which
/// has no egress hook and would take filters for egress as ingress ones.
pub fn ensure_clsact(netlink: &Netlink, ifindex: u32, name: &str) -> io::Result<bool> {
    match tc::qdisc_add_clsact(name) {
        Ok(()) => return Ok(true),
        Err(tc::TcError::NetlinkError(e)) if e.raw_os_error() == Some(libc::EEXIST) => {}
        Err(error) => return Err(io::Error::other(chain(&error))),
    }
    let kind = netlink.ingress_qdisc(ifindex).map_err(io::Error::other)?;
    match kind.as_deref() {
        Some("clsact") => Ok(false),
        other => Err(io::Error::other(format!(
            "the qdisc `{}` stands where clsact would, and has no egress hook: replace it by clsact",
            other.unwrap_or("unknown")
        ))),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

/// Attaches by clsact at the lowest priority that can be had, with the agent's handle.
///
/// # Errors
/// What the kernel says.
pub fn attach_clsact(programs: &mut Programs, place: &Place<'_>, handle: u32) -> io::Result<Hook> {
    let name = program(place.purpose, place.side, place.shape);
    // Two filters of one agent may share a priority, but not a handle.
    let first = match place.purpose {
        Purpose::Flows(_) => *PRIORITIES.start(),
        Purpose::Packets => PRIORITIES.start() + 1,
    };
    let mut last = None;
    for priority in first..=*PRIORITIES.end() {
        let options = TcAttachOptions::Netlink(NlOptions {
            priority,
            handle: TcHandle::from(handle),
            classid: None,
        });
        let program = programs.classifier(name).ok_or_else(forgotten)?;
        match program.attach_with_options(place.name, place.side.clsact(), options) {
            Ok(link) => return Ok(Hook::Clsact { program: name, link }),
            Err(error) => last = Some(io::Error::other(chain(&error))),
        }
    }
    Err(last.unwrap_or_else(|| io::Error::other("no priority left")))
}

fn forgotten() -> io::Error {
    io::Error::other("the object was let go of, which only happens where clsact is not used")
}

/// Detaches. An interface that has gone has taken its programs with it.
pub fn detach(programs: &mut Programs, hook: Hook) {
    match hook {
        Hook::Tcx(link) => {
            if let Err(error) = sys::link_detach(link.as_fd()) {
                tracing::debug!(%error, "a link was already gone");
            }
        }
        Hook::Clsact { program, link } => {
            let detached = programs.classifier(program).map(|classifier| classifier.detach(link));
            if let Some(Err(error)) = detached {
                tracing::debug!(%error, program, "a filter was already gone");
            }
        }
    }
}
