//! What identities are made of, as messages of the status.

use orb8_proto::v1;

use crate::cgroup;
use crate::clock;
use crate::conntrack;
use crate::k8s::status::{Resource, ResourceStatus, Status};
use crate::status::Report;

/// The Kubernetes API.
pub(super) fn kubernetes(status: &Status, unix_offset_ns: i64) -> v1::Kubernetes {
    let resource = |(resource, told): (Resource, &ResourceStatus)| v1::WatchedResource {
        name: resource.name().to_owned(),
        state: told.state.word().to_owned(),
        reason: told.reason.clone(),
        objects: told.objects as u64,
        last_heard_ns: match told.last_heard_ns {
            0 => 0,
            heard_ns => clock::to_unix(heard_ns, unix_offset_ns),
        },
        lists: told.lists,
        watches: told.watches,
        errors: told.errors,
    };
    let is_asked = status.state != crate::k8s::status::State::Off;
    let watched = Resource::ALL.into_iter().zip(&status.resources).filter(|_| is_asked);
    v1::Kubernetes {
        state: status.state.word().to_owned(),
        reason: status.reason.clone(),
        server: status.server.clone(),
        resources: watched.map(resource).collect(),
        pods_local: status.pods_local as u64,
        pods: status.pods as u64,
        max_pods: status.max_pods as u64,
        rejected: status.rejected,
    }
}

/// cgroups, with the runtimes that only the API names.
pub(super) fn cgroups(status: &cgroup::Status, kubernetes: &Status) -> v1::Cgroups {
    let mount = status.mount.as_ref().map(|path| path.display().to_string());
    let found = |runtime: &cgroup::Runtime| {
        status.runtimes.contains(runtime) || kubernetes.runtimes.contains(runtime)
    };
    let runtimes = cgroup::Runtime::ALL.into_iter().filter(found);
    v1::Cgroups {
        mode: status.mode.as_str().to_owned(),
        mount: mount.unwrap_or_default(),
        runtimes: runtimes.map(|runtime| runtime.as_str().to_owned()).collect(),
        driver: status.driver.map_or("", |driver| driver.as_str()).to_owned(),
        known: status.known,
        reason: status.reason.clone(),
    }
}

/// The planes that the totals of this node's pods come from.
pub(super) fn pod_planes(report: &Report) -> Vec<v1::PodPlane> {
    let at_sockets = matches!(report.identity.capture, "socket" | "both");
    let plane = |host_network: bool| match (report.identity.capture, host_network) {
        (_, _) if at_sockets => ("socket", ""),
        ("", _) => ("none", "nothing is counted, see health_message"),
        (_, true) => ("tc", "it has the node's network: only what passes an uplink is counted"),
        (_, false) => ("tc", ""),
    };
    let pods = report.local_pods.iter().map(|pod| {
        let (plane, reason) = plane(pod.host_network);
        v1::PodPlane {
            namespace: pod.namespace.to_string(),
            pod: pod.name.to_string(),
            plane: plane.to_owned(),
            reason: reason.to_owned(),
        }
    });
    pods.collect()
}

/// Connection tracking.
pub(super) fn tracking(status: &conntrack::Status) -> v1::ConnectionTracking {
    v1::ConnectionTracking {
        state: status.state.as_str().to_owned(),
        reason: status.reason.clone(),
        entries: status.entries,
        max_entries: status.max_entries,
        evicted: status.evicted,
        overruns: status.overruns,
    }
}
