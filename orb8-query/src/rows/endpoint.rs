//! The JSON form of who is at the ends of a flow, and of the Service that was asked for. Converts and
//! nothing else.

use std::collections::BTreeMap;

use orb8_proto::v1::{Endpoint, Process, ServiceUse};
use serde::{Deserialize, Serialize};

use super::{known, nonzero};

/// `Endpoint`. Labels are null where the message carries none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are those of Endpoint in orb8.v1")]
pub struct EndpointRecord {
    pub kind: Option<String>,
    pub namespace: Option<String>,
    pub pod: Option<String>,
    pub service: Option<String>,
    pub container: Option<String>,
    pub workload: Option<String>,
    pub workload_kind: Option<String>,
    pub node: Option<String>,
    pub zone: Option<String>,
    pub attribution: Option<String>,
    pub reason: Option<String>,
    pub process: Option<ProcessRecord>,
    pub unit: Option<String>,
    pub cgroup_id: Option<u64>,
    pub cgroup: Option<String>,
    pub container_id: Option<String>,
    pub runtime: Option<String>,
    pub pod_uid: Option<String>,
    pub labels: Option<BTreeMap<String, String>>,
}

/// `Process`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are those of Process in orb8.v1")]
pub struct ProcessRecord {
    pub pid: u32,
    pub comm: Option<String>,
}

/// `ServiceUse`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are those of ServiceUse in orb8.v1")]
pub struct ServiceRecord {
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub ip: Option<String>,
    pub port: u32,
    pub port_name: Option<String>,
    pub kind: Option<String>,
    pub verdict: Option<String>,
    pub backend_ip: Option<String>,
    pub backend_port: Option<u32>,
    pub backend: Option<EndpointRecord>,
}

impl From<&Endpoint> for EndpointRecord {
    fn from(end: &Endpoint) -> Self {
        let labels = end.labels.iter().map(|(key, value)| (key.clone(), value.clone()));
        Self {
            kind: known(&end.kind),
            namespace: known(&end.namespace),
            pod: known(&end.pod),
            service: known(&end.service),
            container: known(&end.container),
            workload: known(&end.workload),
            workload_kind: known(&end.workload_kind),
            node: known(&end.node),
            zone: known(&end.zone),
            attribution: known(&end.attribution),
            reason: known(&end.reason),
            process: end
                .process
                .as_ref()
                .map(|process| ProcessRecord { pid: process.pid, comm: known(&process.comm) }),
            unit: known(&end.unit),
            cgroup_id: nonzero(end.cgroup_id),
            cgroup: known(&end.cgroup),
            container_id: known(&end.container_id),
            runtime: known(&end.runtime),
            pod_uid: known(&end.pod_uid),
            labels: (!end.labels.is_empty()).then(|| labels.collect()),
        }
    }
}

impl From<EndpointRecord> for Endpoint {
    fn from(record: EndpointRecord) -> Self {
        Self {
            kind: record.kind.unwrap_or_default(),
            namespace: record.namespace.unwrap_or_default(),
            pod: record.pod.unwrap_or_default(),
            container: record.container.unwrap_or_default(),
            workload: record.workload.unwrap_or_default(),
            node: record.node.unwrap_or_default(),
            zone: record.zone.unwrap_or_default(),
            process: record.process.map(|process| Process {
                pid: process.pid,
                comm: process.comm.unwrap_or_default(),
            }),
            cgroup_id: record.cgroup_id.unwrap_or_default(),
            cgroup: record.cgroup.unwrap_or_default(),
            attribution: record.attribution.unwrap_or_default(),
            service: record.service.unwrap_or_default(),
            container_id: record.container_id.unwrap_or_default(),
            runtime: record.runtime.unwrap_or_default(),
            unit: record.unit.unwrap_or_default(),
            pod_uid: record.pod_uid.unwrap_or_default(),
            workload_kind: record.workload_kind.unwrap_or_default(),
            labels: record.labels.unwrap_or_default().into_iter().collect(),
            reason: record.reason.unwrap_or_default(),
        }
    }
}

impl From<&ServiceUse> for ServiceRecord {
    fn from(service: &ServiceUse) -> Self {
        Self {
            namespace: known(&service.namespace),
            name: known(&service.name),
            ip: known(&service.ip),
            port: service.port,
            port_name: known(&service.port_name),
            kind: known(&service.kind),
            verdict: known(&service.verdict),
            backend_ip: known(&service.backend_ip),
            backend_port: nonzero(service.backend_port),
            backend: service.backend.as_ref().map(EndpointRecord::from),
        }
    }
}

impl From<ServiceRecord> for ServiceUse {
    fn from(record: ServiceRecord) -> Self {
        Self {
            namespace: record.namespace.unwrap_or_default(),
            name: record.name.unwrap_or_default(),
            ip: record.ip.unwrap_or_default(),
            port: record.port,
            port_name: record.port_name.unwrap_or_default(),
            kind: record.kind.unwrap_or_default(),
            verdict: record.verdict.unwrap_or_default(),
            backend_ip: record.backend_ip.unwrap_or_default(),
            backend_port: record.backend_port.unwrap_or_default(),
            backend: record.backend.map(Endpoint::from),
        }
    }
}
