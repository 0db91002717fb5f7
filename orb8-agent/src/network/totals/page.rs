//! Answers requests for totals: waits for the drain and adds what this host knows of the places.

use std::sync::Arc;

use orb8_proto::v1;

use super::{Late, Place, Snapshot, Totals, wire};
use crate::clock::Clock;
use crate::event::Volume;
use crate::export::feed::{TotalsLate, TotalsPage};
use crate::export::wire as shared;
use crate::k8s::identity::Knowledge;
use crate::status::Status;

const DEFAULT_KEEP_S: u32 = 60;
const MAX_KEEP_S: u32 = 24 * 60 * 60;

/// The totals of this host.
#[derive(Debug)]
pub struct TotalsOfHost {
    /// What the pipeline adds to; none if nothing is counted.
    pub totals: Option<Arc<Totals>>,
    /// Interfaces and health.
    pub status: Arc<Status>,
    /// Names of places.
    pub known: Knowledge,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The capture plane in use.
    pub capture: &'static str,
    /// Of this machine since it was started; empty if not known.
    pub boot_id: String,
    /// The agent's network namespace by its inode number; 0 if not known.
    pub network_namespace: u64,
}

impl TotalsPage for TotalsOfHost {
    fn totals(&self, request: &v1::GetTotalsRequest) -> Result<v1::Totals, TotalsLate> {
        let keep_s = match request.keep_seconds {
            0 => DEFAULT_KEEP_S,
            seconds => seconds.min(MAX_KEEP_S),
        };
        let until_ns = self.clock.monotonic_ns() + u64::from(keep_s) * 1_000_000_000;
        let snapshot = self.totals.as_ref().map(|totals| totals.ask(until_ns)).transpose();
        let snapshot = snapshot.map_err(|late: Late| TotalsLate(late.to_string()))?;
        let mount = self.known.cgroups.status().mount;
        let whole = v1::Totals {
            node_name: self.status.node_name().to_string(),
            boot_id: self.boot_id.clone(),
            network_namespace: self.network_namespace,
            interfaces: self.status.interfaces().iter().map(shared::interface).collect(),
            capture: self.capture.to_owned(),
            cgroup_mount: mount.map(|path| path.display().to_string()).unwrap_or_default(),
            health_message: self.status.health_message(),
            socket_plane: self.status.socket_plane().as_ref().map(shared::socket_plane),
            ..v1::Totals::default()
        };
        Ok(match snapshot {
            Some(snapshot) => self.fill(whole, &snapshot),
            None => whole,
        })
    }
}

impl TotalsOfHost {
    fn fill(&self, whole: v1::Totals, snapshot: &Snapshot) -> v1::Totals {
        let facts = self.known.facts.snapshot();
        let total = |(place, volume): &(Place, Volume)| {
            wire::total(place, volume, &facts, &self.known.cgroups)
        };
        v1::Totals {
            session: snapshot.session,
            time_ns: crate::clock::to_unix(snapshot.time_ns, self.clock.unix_offset_ns()),
            monotonic_ns: snapshot.time_ns,
            totals: snapshot.totals.iter().map(total).collect(),
            packet_ledger: Some(shared::packet_ledger(&snapshot.ledger)),
            unlisted: Some(shared::count(snapshot.unlisted)),
            ..whole
        }
    }
}
