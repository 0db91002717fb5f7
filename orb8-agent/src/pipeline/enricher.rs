//! What is added to an event before it is processed.
//!
//! An enricher is pure: it reads what is known in memory, asks for the rest without waiting, and
//! never fails. What is not known stays empty.

use std::net::IpAddr;
use std::sync::Arc;

use crate::cgroup::Membership;
use crate::event::Event;
use crate::host::InterfaceName;

/// Adds to events.
pub trait EventEnricher: Send {
    /// Fills in what is known.
    fn enrich(&mut self, event: &mut EnrichedEvent);
}

/// An event with what was added to it.
#[derive(Debug)]
pub struct EnrichedEvent {
    /// The event.
    pub event: Event,
    /// The cgroup of the local sender.
    pub membership: Option<Arc<Membership>>,
    /// The interface of the owner.
    pub interface: Option<Arc<InterfaceName>>,
    /// Whether the owner's address is one of this host's; none: not known.
    pub local: Option<bool>,
    /// Whether a processor has use for what enrichers add; they are not asked else.
    pub wanted: bool,
}

impl EnrichedEvent {
    /// An event to which nothing is added.
    #[must_use]
    pub const fn plain(event: Event) -> Self {
        Self { event, membership: None, interface: None, local: None, wanted: true }
    }
}

/// By what an event's owner is looked up; the feature knows which end that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keys {
    /// The interface it was seen at.
    pub ifindex: Option<u32>,
    /// cgroup2 id of the local sender, 0 if not known.
    pub cgroup_id: u64,
    /// CLOCK_MONOTONIC nanoseconds since when the owner has been what it is.
    pub since_ns: u64,
    /// The owner's address.
    pub local: IpAddr,
}
