//! Answers requests for totals: waits for the drain and adds what this host knows of the places.

use std::fs;
use std::path::{Path, PathBuf};
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
    /// ORB8_PROC_ROOT.
    pub proc_root: PathBuf,
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
            boot_id: boot_id(&self.proc_root),
            network_namespace: network_namespace(&self.proc_root),
            interfaces: self.status.interfaces().iter().map(shared::interface).collect(),
            capture: self.capture.to_owned(),
            cgroup_mount: mount.map(|path| path.display().to_string()).unwrap_or_default(),
            health_message: self.status.health_message(),
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
            totals: snapshot.totals.iter().map(total).collect(),
            packet_ledger: Some(shared::packet_ledger(&snapshot.ledger)),
            unlisted: Some(shared::count(snapshot.unlisted)),
            ..whole
        }
    }
}

/// Empty if it cannot be read.
fn boot_id(proc_root: &Path) -> String {
    let text = fs::read_to_string(proc_root.join("sys/kernel/random/boot_id"));
    text.map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// The number in `net:[4026531840]`, of this thread as of all that the agent has; 0 if it cannot be
/// read.
fn network_namespace(proc_root: &Path) -> u64 {
    let link = fs::read_link(proc_root.join("thread-self/ns/net")).unwrap_or_default();
    let digits = link.to_str().and_then(|text| text.strip_prefix("net:[")?.strip_suffix(']'));
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}
