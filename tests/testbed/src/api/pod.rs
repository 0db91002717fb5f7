//! A pod's object at each stage of its life, in the order and with the fields that a real kubelet
//! and scheduler write them.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::object::{Owner, after, container_id, now, uid};

/// Time that a pod has to end by itself.
const GRACE_SECONDS: i64 = 30;

/// Quality of service, which is part of the cgroup's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    /// Requests equal limits.
    Guaranteed,
    /// Some requests.
    Burstable,
    /// None.
    BestEffort,
}

/// What a container is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs as long as the pod.
    Main,
    /// Runs to its end before the others.
    Init,
    /// An init container that goes on running.
    Sidecar,
    /// Added to a running pod to look into it.
    Ephemeral,
}

/// A container of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its name in the pod.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// 64 hex digits.
    pub id: String,
}

impl Container {
    /// A container that runs as long as its pod.
    #[must_use]
    pub fn new(name: &str, role: Role) -> Self {
        Self { name: name.to_owned(), role, id: container_id() }
    }
}

/// Where a pod is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Created; no node yet.
    Created,
    /// Bound to its node.
    Bound,
    /// The kubelet has it; containers are being made, there is no address yet.
    Starting,
    /// It runs, with address and container ids.
    Running,
    /// It is to end within its grace period.
    Terminating,
    /// It was to end, and its containers have; the kubelet is about to let go of it.
    Ended,
    /// All its containers ended well; the address stays in the object.
    Succeeded,
    /// A container failed for good; the address stays in the object.
    Failed,
}

/// What is known of a pod before it is written as an object.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid in the API.
    pub uid: String,
    /// The name of its node.
    pub node: String,
    /// Its node's addresses.
    pub host_ips: Vec<IpAddr>,
    /// Its addresses; of a hostNetwork pod its node's.
    pub ips: Vec<IpAddr>,
    /// It is in its node's network namespace.
    pub host_network: bool,
    /// Its labels.
    pub labels: Vec<(String, String)>,
    /// Its owner.
    pub owner: Option<Owner>,
    /// Its class.
    pub qos: Qos,
    /// All containers.
    pub containers: Vec<Container>,
    /// The scheme of container ids: `containerd`, `cri-o` or `docker`.
    pub runtime: &'static str,
    /// The config hash, if it is the mirror of a static pod.
    pub config_hash: Option<String>,
    /// When it was created, as the API writes it.
    pub created: String,
}

impl Pod {
    /// A pod with one container, `app`, and nothing special.
    #[must_use]
    pub fn new(namespace: &str, name: &str, node: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid(),
            node: node.to_owned(),
            host_ips: Vec::new(),
            ips: Vec::new(),
            host_network: false,
            labels: vec![("app".to_owned(), name.to_owned())],
            owner: None,
            qos: Qos::Burstable,
            containers: vec![Container::new("app", Role::Main)],
            runtime: "containerd",
            config_hash: None,
            created: now(),
        }
    }

    /// Its object at a stage.
    #[must_use]
    pub fn object(&self, stage: Stage) -> Value {
        json!({
            "kind": "Pod", "apiVersion": "v1",
            "metadata": self.metadata(stage),
            "spec": self.spec(stage),
            "status": self.status(stage),
        })
    }

    fn metadata(&self, stage: Stage) -> Value {
        let labels: Map<String, Value> =
            self.labels.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        let mut metadata = json!({
            "name": self.name, "namespace": self.namespace, "uid": self.uid, "generation": 1,
            "creationTimestamp": self.created, "labels": labels,
            "managedFields": self.managed_fields(stage),
        });
        if let Some(owner) = &self.owner {
            metadata["ownerReferences"] = json!([owner.reference()]);
        }
        if let Some(hash) = &self.config_hash {
            metadata["annotations"] = json!({
                "kubernetes.io/config.hash": hash, "kubernetes.io/config.mirror": hash,
                "kubernetes.io/config.seen": now(), "kubernetes.io/config.source": "file",
            });
        }
        if matches!(stage, Stage::Terminating | Stage::Ended) {
            // The time at which it is to be gone, not that at which this was asked for.
            metadata["deletionTimestamp"] = json!(after(GRACE_SECONDS));
            metadata["deletionGracePeriodSeconds"] = json!(GRACE_SECONDS);
        }
        metadata
    }

    fn spec(&self, stage: Stage) -> Value {
        let of = |wanted: &[Role]| -> Vec<Value> {
            let chosen = self.containers.iter().filter(|one| wanted.contains(&one.role));
            chosen.map(|one| self.container_spec(one)).collect()
        };
        let mut spec = json!({
            "containers": of(&[Role::Main]),
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30,
            "dnsPolicy": "ClusterFirst", "serviceAccountName": "default",
            "schedulerName": "default-scheduler", "securityContext": {},
            "priority": 0, "enableServiceLinks": true,
            "preemptionPolicy": "PreemptLowerPriority",
            "tolerations": [
                { "key": "node.kubernetes.io/not-ready", "operator": "Exists",
                  "effect": "NoExecute", "tolerationSeconds": 300 },
                { "key": "node.kubernetes.io/unreachable", "operator": "Exists",
                  "effect": "NoExecute", "tolerationSeconds": 300 },
            ],
            "volumes": [{ "name": "kube-api-access-x", "projected": { "defaultMode": 420,
                "sources": [
                    { "serviceAccountToken": { "expirationSeconds": 3607, "path": "token" } },
                    { "configMap": { "name": "kube-root-ca.crt",
                        "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
                ] } }],
        });
        for (key, roles) in [
            ("initContainers", &[Role::Init, Role::Sidecar][..]),
            ("ephemeralContainers", &[Role::Ephemeral][..]),
        ] {
            let containers = of(roles);
            if !containers.is_empty() {
                spec[key] = json!(containers);
            }
        }
        // The API server refuses the mirror of a static pod that is bound to no node.
        if stage != Stage::Created || self.config_hash.is_some() {
            spec["nodeName"] = json!(self.node);
        }
        if self.host_network {
            spec["hostNetwork"] = json!(true);
        }
        spec
    }

    fn container_spec(&self, container: &Container) -> Value {
        let amounts = json!({ "cpu": "10m", "memory": "16Mi" });
        let resources = match self.qos {
            Qos::Guaranteed => json!({ "requests": amounts, "limits": amounts }),
            Qos::Burstable => json!({ "requests": amounts }),
            Qos::BestEffort => json!({}),
        };
        let mut spec = json!({
            "name": container.name, "image": "orb8.test/box:1", "resources": resources,
            "terminationMessagePath": "/dev/termination-log",
            "terminationMessagePolicy": "File", "imagePullPolicy": "IfNotPresent",
            "volumeMounts": [{ "name": "kube-api-access-x", "readOnly": true,
                "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount" }],
        });
        if container.role == Role::Sidecar {
            spec["restartPolicy"] = json!("Always");
        }
        spec
    }

    fn status(&self, stage: Stage) -> Value {
        let phase = match stage {
            Stage::Created | Stage::Bound | Stage::Starting => "Pending",
            Stage::Running | Stage::Terminating => "Running",
            Stage::Succeeded | Stage::Ended => "Succeeded",
            Stage::Failed => "Failed",
        };
        let qos = match self.qos {
            Qos::Guaranteed => "Guaranteed",
            Qos::Burstable => "Burstable",
            Qos::BestEffort => "BestEffort",
        };
        let mut status = json!({ "phase": phase, "qosClass": qos });
        if matches!(stage, Stage::Created | Stage::Bound) {
            return status;
        }
        let addresses = |ips: &[IpAddr]| -> Vec<Value> {
            ips.iter().map(|ip| json!({ "ip": ip.to_string() })).collect()
        };
        if let Some(first) = self.host_ips.first() {
            status["hostIP"] = json!(first.to_string());
            status["hostIPs"] = json!(addresses(&self.host_ips));
        }
        status["startTime"] = json!(self.created);
        if let Some(first) = self.ips.first()
            && stage != Stage::Starting
        {
            status["podIP"] = json!(first.to_string());
            status["podIPs"] = json!(addresses(&self.ips));
        }
        for (key, roles) in [
            ("containerStatuses", &[Role::Main][..]),
            ("initContainerStatuses", &[Role::Init, Role::Sidecar][..]),
            ("ephemeralContainerStatuses", &[Role::Ephemeral][..]),
        ] {
            let chosen = self.containers.iter().filter(|one| roles.contains(&one.role));
            let told: Vec<Value> = chosen.map(|one| self.container_status(one, stage)).collect();
            if !told.is_empty() {
                status[key] = json!(told);
            }
        }
        status
    }

    fn container_status(&self, container: &Container, stage: Stage) -> Value {
        let mut status = json!({
            "name": container.name, "image": "orb8.test/box:1", "imageID": "sha256:0",
            "restartCount": 0, "ready": stage == Stage::Running, "started": stage == Stage::Running,
            "lastState": {},
        });
        let id = format!("{}://{}", self.runtime, container.id);
        let ended = |code: i32| {
            json!({ "terminated": { "exitCode": code, "reason": "Completed",
                "startedAt": self.created, "finishedAt": now(), "containerID": id } })
        };
        status["state"] = match stage {
            Stage::Created | Stage::Bound | Stage::Starting => {
                json!({ "waiting": { "reason": "ContainerCreating" } })
            }
            Stage::Running | Stage::Terminating if container.role == Role::Init => ended(0),
            Stage::Running | Stage::Terminating => {
                json!({ "running": { "startedAt": self.created } })
            }
            Stage::Succeeded | Stage::Ended => ended(0),
            Stage::Failed => ended(1),
        };
        if stage != Stage::Starting {
            status["containerID"] = json!(id);
        }
        status
    }

    /// As large as real ones: they are about half of an object.
    fn managed_fields(&self, stage: Stage) -> Value {
        let container = format!("k:{{\"name\":\"{}\"}}", self.containers[0].name);
        let manager = |name: &str, subresource: &str, fields: Value| {
            json!({ "manager": name, "operation": "Update", "apiVersion": "v1",
                "time": self.created, "fieldsType": "FieldsV1", "subresource": subresource,
                "fieldsV1": fields })
        };
        let spec = json!({
            "f:metadata": { "f:generateName": {}, "f:labels": { ".": {}, "f:app": {},
                "f:pod-template-hash": {} }, "f:ownerReferences": { ".": {} } },
            "f:spec": { "f:containers": { (container): { ".": {}, "f:command": {}, "f:image": {},
                "f:imagePullPolicy": {}, "f:name": {}, "f:resources": {},
                "f:terminationMessagePath": {}, "f:terminationMessagePolicy": {} } },
                "f:dnsPolicy": {}, "f:enableServiceLinks": {}, "f:restartPolicy": {},
                "f:schedulerName": {}, "f:securityContext": {},
                "f:terminationGracePeriodSeconds": {} },
        });
        let mut all = vec![manager("kube-controller-manager", "", spec)];
        if !matches!(stage, Stage::Created | Stage::Bound) {
            let condition = |name: &str| {
                json!({ ".": {}, "f:lastProbeTime": {}, "f:lastTransitionTime": {}, "f:status": {},
                    "f:type": {}, "f:observedGeneration": name.len() })
            };
            let status = json!({ "f:status": { "f:conditions": {
                "k:{\"type\":\"ContainersReady\"}": condition("ContainersReady"),
                "k:{\"type\":\"Initialized\"}": condition("Initialized"),
                "k:{\"type\":\"Ready\"}": condition("Ready") },
                "f:containerStatuses": {}, "f:hostIP": {}, "f:hostIPs": {}, "f:phase": {},
                "f:podIP": {}, "f:podIPs": { ".": {} }, "f:startTime": {} } });
            all.push(manager("kubelet", "status", status));
        }
        Value::Array(all)
    }
}
