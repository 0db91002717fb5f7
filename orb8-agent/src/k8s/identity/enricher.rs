//! Adds to events what is known of their owner's place: interface, locality, cgroup.

use std::sync::Arc;

use crate::cgroup::Memberships;
use crate::event::Event;
use crate::host::{HostFacts, HostReader};
use crate::pipeline::enricher::{EnrichedEvent, EventEnricher, Keys};

/// Adds interface, locality and cgroup to events.
///
/// Which end of an event is the owner's is the feature's knowledge; it is passed in as `keys`.
#[derive(Debug)]
pub struct OwnerEnricher {
    facts: HostReader,
    memberships: Memberships,
    keys: fn(&Event) -> Option<Keys>,
}

impl OwnerEnricher {
    /// An enricher over these facts and cgroups.
    #[must_use]
    pub fn new(
        facts: Arc<HostFacts>,
        memberships: Memberships,
        keys: fn(&Event) -> Option<Keys>,
    ) -> Self {
        Self { facts: HostReader::new(facts), memberships, keys }
    }
}

impl EventEnricher for OwnerEnricher {
    fn enrich(&mut self, enriched: &mut EnrichedEvent) {
        let Some(keys) = (self.keys)(&enriched.event) else { return };
        let facts = self.facts.get();
        enriched.interface = keys.ifindex.and_then(|index| {
            let gone = || facts.pod_link(index)?.interface.as_ref();
            facts.interface(index).or_else(gone).cloned()
        });
        // Whatever passes a pod's link is that pod's, whichever address it bears.
        let at_pod = keys.ifindex.is_none_or(|index| facts.pod_link(index).is_some());
        enriched.local = if at_pod { Some(true) } else { facts.is_local(keys.local) };
        if keys.cgroup_id != 0 {
            enriched.membership = self.memberships.find(keys.cgroup_id, keys.since_ns);
        }
    }
}
