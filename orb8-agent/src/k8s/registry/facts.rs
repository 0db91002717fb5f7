//! What is read of a pod object; all else of it is dropped here.

use std::net::IpAddr;

use super::Seen;
use super::tables::SECOND_NS;
use crate::cgroup::Runtime;
use crate::clock::from_unix;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod as ApiPod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

/// Set by the kubelet on the object that mirrors a static pod, to the config hash that also names
/// the pod's cgroup. The API server asks for no more than that such an object is bound to a node, so
/// anybody who may create pods may write it: it never takes a name from a pod that has one.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Hexadecimal digits of a config hash. The API's own uids have dashes, so none is taken for one.
const HASH_DIGITS: usize = 32;

/// A pod object, with what is of use picked out.
#[derive(Debug)]
pub(super) struct PodFacts<'a> {
    pub(super) meta: &'a ObjectMeta,
    pub(super) uid: &'a str,
    /// The config hash of the static pod that it claims to mirror: its cgroup's uid on its node.
    pub(super) mirrored: Option<&'a str>,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    pub(super) node: Option<&'a str>,
    pub(super) host_network: bool,
    pub(super) addresses: Vec<IpAddr>,
    /// Succeeded or Failed: its addresses are free, whatever the object says.
    pub(super) finished: bool,
    /// Its deletion was asked for.
    pub(super) leaving: bool,
    /// A container of it runs.
    pub(super) runs: bool,
    /// No container of it runs, and none will again.
    pub(super) quiet: bool,
    pub(super) created_unix_ns: Option<i64>,
    status: Option<&'a PodStatus>,
}

impl<'a> PodFacts<'a> {
    /// None if the object lacks what every pod has.
    pub(super) fn read(pod: &'a ApiPod) -> Option<Self> {
        let (meta, spec, status) = (&pod.metadata, pod.spec.as_ref(), pod.status.as_ref());
        let uid = meta.uid.as_deref()?;
        let mirror = meta.annotations.as_ref().and_then(|annotations| annotations.get(MIRROR));
        let phase = status.and_then(|status| status.phase.as_deref());
        let leaving = meta.deletion_timestamp.is_some();
        let policy = spec.and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always");
        Some(Self {
            meta,
            uid,
            mirrored: mirror.map(String::as_str).filter(|hash| is_config_hash(hash)),
            namespace: meta.namespace.as_deref()?,
            name: meta.name.as_deref()?,
            node: spec.and_then(|spec| spec.node_name.as_deref()).filter(|node| !node.is_empty()),
            host_network: spec.and_then(|spec| spec.host_network).unwrap_or(false),
            addresses: status.map(addresses).unwrap_or_default(),
            finished: matches!(phase, Some("Succeeded" | "Failed")),
            leaving,
            runs: status.is_some_and(runs),
            quiet: status.is_some_and(|status| all_ended(status, policy, leaving)),
            created_unix_ns: meta.creation_timestamp.as_ref().and_then(unix_ns),
            status,
        })
    }

    /// Its deletion was asked for at this time at the earliest (monotonic): what is heard of it
    /// comes late, while the API's own time, in whole seconds, is early at most.
    pub(super) fn left(&self, seen: Seen) -> u64 {
        let by = self.meta.deletion_timestamp.as_ref().and_then(unix_ns);
        let grace_s = self.meta.deletion_grace_period_seconds.unwrap_or(0);
        let grace_ns = grace_s.saturating_mul(1_000_000_000);
        earlier(by.map(|by_ns| by_ns.saturating_sub(grace_ns)), seen)
    }

    /// Its last container ended at this time at the earliest (monotonic), if all have.
    pub(super) fn ended(&self, seen: Seen) -> u64 {
        let kinds = self.status.map(|of| [&of.container_statuses, &of.init_container_statuses]);
        let statuses = kinds.into_iter().flatten().flatten().flatten();
        let ends = statuses.filter_map(|status| {
            unix_ns(status.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?)
        });
        earlier(ends.max().filter(|_| !self.runs), seen)
    }

    /// Since when (monotonic) the pod surely has its address. None if no container was begun: a
    /// kubelet may then tell the address of an earlier sandbox.
    pub(super) fn sure_from(&self, seen: Seen) -> Option<u64> {
        let status = self.status?;
        let kinds = [&status.container_statuses, &status.init_container_statuses];
        let mut states = kinds.into_iter().flatten().flatten().filter_map(|of| of.state.as_ref());
        let begun = status.phase.as_deref() == Some("Running")
            || states.any(|state| state.running.is_some() || state.terminated.is_some());
        begun.then(|| self.started(seen).map_or(seen.at_ns, |from_ns| from_ns.min(seen.at_ns)))
    }

    /// Since when a container runs: addresses are given before the first one starts. None if none
    /// runs or the clocks do not agree.
    fn started(&self, seen: Seen) -> Option<u64> {
        let running = |status: &ContainerStatus| {
            status.state.as_ref()?.running.as_ref()?.started_at.as_ref().and_then(unix_ns)
        };
        let statuses = self.status?.container_statuses.iter().flatten();
        let first = statuses.filter_map(running).min()?;
        // Whole seconds, of a clock of another node. Before the first list, where no cut can have
        // hidden an earlier holder that was known, the second itself is taken.
        let margin_ns = if seen.since_ns == 0 { 0 } else { 2 * SECOND_NS };
        let started = from_unix(first, seen.unix_offset_ns).saturating_add(margin_ns);
        (first >= self.created_unix_ns?).then_some(started)
    }

    /// Containers of all kinds: id without the runtime's scheme, name, and runtime by that scheme. Of
    /// one that is between two lives the id of the last one too.
    pub(super) fn containers(&self) -> impl Iterator<Item = (&'a str, &'a str, Option<Runtime>)> {
        let statuses = self.status.into_iter().flat_map(|status| {
            let kinds = [
                &status.container_statuses,
                &status.init_container_statuses,
                &status.ephemeral_container_statuses,
            ];
            kinds.into_iter().flatten().flatten()
        });
        statuses.flat_map(|status| {
            let last = status.last_state.as_ref().and_then(ended_id);
            let ids = [status.container_id.as_deref(), last.filter(|id| status.is_new(id))];
            ids.into_iter()
                .flatten()
                .map(split_id)
                .filter(|(id, _)| !id.is_empty())
                .map(|(id, runtime)| (id, status.name.as_str(), runtime))
        })
    }
}

/// The earlier one of a time that the API wrote and the time from which on it may have been told.
fn earlier(written_unix_ns: Option<i64>, seen: Seen) -> u64 {
    let written = written_unix_ns.map(|unix_ns| from_unix(unix_ns, seen.unix_offset_ns));
    written.map_or(seen.since_ns, |written_ns| written_ns.min(seen.since_ns))
}

trait Ids {
    fn is_new(&self, id: &str) -> bool;
}

impl Ids for ContainerStatus {
    fn is_new(&self, id: &str) -> bool {
        self.container_id.as_deref() != Some(id)
    }
}

fn ended_id(state: &ContainerState) -> Option<&str> {
    state.terminated.as_ref()?.container_id.as_deref()
}

/// `containerd://<id>` to `<id>` and the runtime.
fn split_id(id: &str) -> (&str, Option<Runtime>) {
    id.split_once("://").map_or((id, None), |(scheme, id)| (id, Runtime::of_scheme(scheme)))
}

fn is_config_hash(text: &str) -> bool {
    text.len() == HASH_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn addresses(status: &PodStatus) -> Vec<IpAddr> {
    let all = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let mut parsed: Vec<IpAddr> =
        all.chain(status.pod_ip.as_deref()).filter_map(|ip| ip.parse().ok()).collect();
    parsed.sort_unstable();
    parsed.dedup();
    parsed
}

fn runs(status: &PodStatus) -> bool {
    let kinds = [&status.container_statuses, &status.init_container_statuses];
    let mut all = kinds.into_iter().flatten().flatten();
    all.any(|status| status.state.as_ref().is_some_and(|state| state.running.is_some()))
}

/// Whether no container runs and the kubelet will start none again.
fn all_ended(status: &PodStatus, policy: &str, leaving: bool) -> bool {
    let mut kinds = [&status.container_statuses, &status.init_container_statuses].into_iter();
    let ended = |status: &ContainerStatus| {
        let ended = status.state.as_ref().and_then(|state| state.terminated.as_ref());
        ended.is_some_and(|ended| match policy {
            "Never" => true,
            "OnFailure" => leaving || ended.exit_code == 0,
            _always => leaving,
        })
    };
    status.container_statuses.as_ref().is_some_and(|statuses| !statuses.is_empty())
        && kinds.all(|kind| kind.iter().flatten().all(ended))
}

/// Nanoseconds since 1970 of a time as the API writes it, which is in whole seconds.
pub(super) fn unix_ns(time: &Time) -> Option<i64> {
    i64::try_from(time.0.as_nanosecond()).ok()
}
