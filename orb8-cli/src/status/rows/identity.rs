//! The JSON form of what a status says of identity. Converts and nothing else.

use orb8_proto::v1::{
    AttributionShare, Cgroups, ConnectionTracking, Kubernetes, PodPlane, WatchedResource,
};
use serde::Serialize;

use super::{known as text, list};

/// `Kubernetes`.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are those of Kubernetes in orb8.v1")]
pub struct KubernetesRecord {
    pub state: String,
    pub reason: Option<String>,
    pub server: Option<String>,
    pub resources: Vec<ResourceRecord>,
    pub pods_local: u64,
    pub pods: u64,
    pub max_pods: u64,
    pub rejected: u64,
}

/// `WatchedResource`.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are those of WatchedResource in orb8.v1")]
pub struct ResourceRecord {
    pub name: String,
    pub state: String,
    pub reason: Option<String>,
    pub objects: u64,
    pub last_heard_ns: Option<i64>,
    pub lists: u64,
    pub watches: u64,
    pub errors: u64,
}

/// `AttributionShare`.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are those of AttributionShare in orb8.v1")]
pub struct ShareRecord {
    pub plane: String,
    pub attribution: String,
    pub reason: Option<String>,
    pub supplement: bool,
    pub scope: Option<String>,
    pub packets: u64,
    pub bytes: u64,
}

/// `Cgroups`.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are those of Cgroups in orb8.v1")]
pub struct CgroupsRecord {
    pub mode: String,
    pub mount: Option<String>,
    pub runtimes: Vec<String>,
    pub driver: Option<String>,
    pub known: u64,
    pub reason: Option<String>,
}

/// `PodPlane`.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are those of PodPlane in orb8.v1")]
pub struct PodPlaneRecord {
    pub namespace: String,
    pub pod: String,
    pub plane: String,
    pub reason: Option<String>,
}

/// `ConnectionTracking`.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are those of ConnectionTracking in orb8.v1")]
pub struct TrackingRecord {
    pub state: String,
    pub reason: Option<String>,
    pub entries: u64,
    pub max_entries: u64,
    pub evicted: u64,
    pub overruns: u64,
}

impl From<&Kubernetes> for KubernetesRecord {
    fn from(told: &Kubernetes) -> Self {
        Self {
            state: told.state.clone(),
            reason: text(&told.reason),
            server: text(&told.server),
            resources: list(&told.resources),
            pods_local: told.pods_local,
            pods: told.pods,
            max_pods: told.max_pods,
            rejected: told.rejected,
        }
    }
}

impl From<&WatchedResource> for ResourceRecord {
    fn from(told: &WatchedResource) -> Self {
        Self {
            name: told.name.clone(),
            state: told.state.clone(),
            reason: text(&told.reason),
            objects: told.objects,
            last_heard_ns: (told.last_heard_ns != 0).then_some(told.last_heard_ns),
            lists: told.lists,
            watches: told.watches,
            errors: told.errors,
        }
    }
}

impl From<&AttributionShare> for ShareRecord {
    fn from(told: &AttributionShare) -> Self {
        Self {
            plane: told.plane.clone(),
            attribution: told.attribution.clone(),
            reason: text(&told.reason),
            supplement: told.supplement,
            scope: text(&told.scope),
            packets: told.packets,
            bytes: told.bytes,
        }
    }
}

impl From<&Cgroups> for CgroupsRecord {
    fn from(told: &Cgroups) -> Self {
        Self {
            mode: told.mode.clone(),
            mount: text(&told.mount),
            runtimes: told.runtimes.clone(),
            driver: text(&told.driver),
            known: told.known,
            reason: text(&told.reason),
        }
    }
}

impl From<&PodPlane> for PodPlaneRecord {
    fn from(told: &PodPlane) -> Self {
        Self {
            namespace: told.namespace.clone(),
            pod: told.pod.clone(),
            plane: told.plane.clone(),
            reason: text(&told.reason),
        }
    }
}

impl From<&ConnectionTracking> for TrackingRecord {
    fn from(told: &ConnectionTracking) -> Self {
        Self {
            state: told.state.clone(),
            reason: text(&told.reason),
            entries: told.entries,
            max_entries: told.max_entries,
            evicted: told.evicted,
            overruns: told.overruns,
        }
    }
}
