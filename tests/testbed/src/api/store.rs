//! Objects and their history: every change has a resource version, which is the next number for
//! all resources together, as in etcd. What is compacted can no longer be watched from.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value, json};
use tokio::sync::watch;

/// Changes that are kept before the oldest are compacted by themselves.
const HISTORY: usize = 200_000;
/// Lists that are kept for their next pages.
const SNAPSHOTS: usize = 64;

/// A resource that the server knows.
#[derive(Debug, PartialEq, Eq)]
pub struct Resource {
    /// API group, empty for the core.
    pub group: &'static str,
    /// Name in paths.
    pub plural: &'static str,
    /// Name in objects.
    pub kind: &'static str,
    /// Objects live in namespaces.
    pub namespaced: bool,
}

/// All resources; each group has version `v1` only.
pub const RESOURCES: [Resource; 11] = [
    Resource { group: "", plural: "pods", kind: "Pod", namespaced: true },
    Resource { group: "", plural: "nodes", kind: "Node", namespaced: false },
    Resource { group: "", plural: "services", kind: "Service", namespaced: true },
    Resource { group: "", plural: "namespaces", kind: "Namespace", namespaced: false },
    Resource {
        group: "discovery.k8s.io",
        plural: "endpointslices",
        kind: "EndpointSlice",
        namespaced: true,
    },
    Resource { group: "apps", plural: "replicasets", kind: "ReplicaSet", namespaced: true },
    Resource { group: "apps", plural: "deployments", kind: "Deployment", namespaced: true },
    Resource { group: "apps", plural: "statefulsets", kind: "StatefulSet", namespaced: true },
    Resource { group: "apps", plural: "daemonsets", kind: "DaemonSet", namespaced: true },
    Resource { group: "batch", plural: "jobs", kind: "Job", namespaced: true },
    Resource { group: "batch", plural: "cronjobs", kind: "CronJob", namespaced: true },
];

impl Resource {
    /// The resource with this name in paths.
    #[must_use]
    pub fn find(plural: &str) -> Option<&'static Self> {
        RESOURCES.iter().find(|resource| resource.plural == plural)
    }

    /// The resource of an object by its kind.
    #[must_use]
    pub fn of_kind(kind: &str) -> Option<&'static Self> {
        RESOURCES.iter().find(|resource| resource.kind == kind)
    }

    /// `apiVersion` of its objects.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { "v1".to_owned() } else { format!("{}/v1", self.group) }
    }
}

/// One version of an object, ready to be sent.
#[derive(Debug)]
pub struct Object {
    /// Empty where the resource has no namespaces.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Without kind and apiVersion.
    pub value: Value,
    /// `value` as text.
    pub text: String,
    /// Only its metadata, as text, likewise without kind and apiVersion.
    pub metadata: String,
}

impl Object {
    fn new(mut value: Value, version: u64) -> Self {
        let fields = value.as_object_mut().expect("an object is a JSON object");
        fields.remove("kind");
        fields.remove("apiVersion");
        let metadata = fields.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
        metadata["resourceVersion"] = json!(version.to_string());
        let word = |key: &str| metadata[key].as_str().unwrap_or_default().to_owned();
        let (namespace, name) = (word("namespace"), word("name"));
        let metadata = json!({ "metadata": metadata }).to_string();
        Self { namespace, name, text: value.to_string(), metadata, value }
    }

    /// Its place in the order of a list.
    #[must_use]
    pub fn key(&self) -> String {
        key(&self.namespace, &self.name)
    }
}

fn key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    /// It is new.
    Added,
    /// It was there before.
    Modified,
    /// It is gone; the change holds its last state.
    Deleted,
}

/// One change.
#[derive(Clone, Debug)]
pub struct Change {
    /// The resource version that it made.
    pub version: u64,
    /// Of which resource.
    pub resource: &'static Resource,
    /// What it was.
    pub happened: Happened,
    /// The object after it.
    pub object: Arc<Object>,
    /// The object before it.
    pub before: Option<Arc<Object>>,
}

/// A consistent list.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The resource version that it shows.
    pub version: u64,
    /// In order of their keys.
    pub objects: Arc<Vec<Arc<Object>>>,
}

/// All objects and what happened to them.
#[derive(Debug)]
pub struct Store {
    state: Mutex<State>,
    moved: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    version: u64,
    compacted: u64,
    tables: BTreeMap<&'static str, BTreeMap<String, Arc<Object>>>,
    /// The last word on every object that ever was, by its uid.
    ever: HashMap<String, Arc<Object>>,
    log: VecDeque<Change>,
    snapshots: VecDeque<(&'static str, Snapshot)>,
}

/// The version is older than what is kept; the current one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compacted(pub u64);

impl Default for Store {
    fn default() -> Self {
        let state = State {
            version: 300,
            compacted: 0,
            tables: BTreeMap::new(),
            ever: HashMap::new(),
            log: VecDeque::new(),
            snapshots: VecDeque::new(),
        };
        Self { state: Mutex::new(state), moved: watch::Sender::new(300) }
    }
}

impl Store {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The latest resource version.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.state().version
    }

    /// Tells when there is something new.
    #[must_use]
    pub fn moved(&self) -> watch::Receiver<u64> {
        self.moved.subscribe()
    }

    /// Adds an object or puts it in the place of its namesake; its new resource version.
    ///
    /// # Panics
    /// If its `kind` is none that the server knows.
    pub fn put(&self, value: Value) -> u64 {
        let kind = value["kind"].as_str().unwrap_or_default();
        let resource =
            Resource::of_kind(kind).unwrap_or_else(|| panic!("no resource of kind {kind:?}"));
        self.write(|state| {
            let object = Arc::new(Object::new(value, state.version + 1));
            let table = state.tables.entry(resource.plural).or_default();
            let before = table.insert(object.key(), Arc::clone(&object));
            let happened = if before.is_some() { Happened::Modified } else { Happened::Added };
            Some(Change { version: 0, resource, happened, object, before })
        })
    }

    /// Removes the object at `(namespace, name)`; what is told of it is `last`, or its present
    /// state.
    ///
    /// # Panics
    /// If it is not there.
    pub fn remove(&self, plural: &str, place: (&str, &str), last: Option<Value>) -> u64 {
        let (namespace, name) = place;
        let resource = Resource::find(plural).unwrap_or_else(|| panic!("no resource {plural:?}"));
        self.write(|state| {
            let table = state.tables.entry(resource.plural).or_default();
            let before = table.remove(&key(namespace, name));
            let before =
                before.unwrap_or_else(|| panic!("no {plural} {namespace}/{name} to delete"));
            let last = last.unwrap_or_else(|| before.value.clone());
            let object = Arc::new(Object::new(last, state.version + 1));
            let happened = Happened::Deleted;
            Some(Change { version: 0, resource, happened, object, before: Some(before) })
        })
    }

    fn write(&self, change: impl FnOnce(&mut State) -> Option<Change>) -> u64 {
        let mut state = self.state();
        if let Some(mut change) = change(&mut state) {
            state.version += 1;
            change.version = state.version;
            if let Some(uid) = change.object.value["metadata"]["uid"].as_str() {
                state.ever.insert(uid.to_owned(), Arc::clone(&change.object));
            }
            state.log.push_back(change);
            if state.log.len() > HISTORY
                && let Some(oldest) = state.log.pop_front()
            {
                state.compacted = oldest.version;
            }
        }
        let version = state.version;
        drop(state);
        self.moved.send_replace(version);
        version
    }

    /// An object as it is now, with kind and apiVersion.
    #[must_use]
    pub fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let resource = Resource::find(plural)?;
        let object = Arc::clone(self.state().tables.get(plural)?.get(&key(namespace, name))?);
        let mut value = object.value.clone();
        value["kind"] = json!(resource.kind);
        value["apiVersion"] = json!(resource.api_version());
        Some(value)
    }

    /// The last word on an object, also on one that is gone, by its uid or by the config hash of its
    /// static pod.
    #[must_use]
    pub fn ever(&self, uid: &str) -> Option<Value> {
        let state = self.state();
        let hashed = |object: &&Arc<Object>| {
            object.value["metadata"]["annotations"]["kubernetes.io/config.hash"] == uid
        };
        let found = state.ever.get(uid).or_else(|| state.ever.values().find(hashed));
        found.map(|object| object.value.clone())
    }

    /// The uids of all pods that ever had an address of a pod's network, by their last word.
    #[must_use]
    pub fn pods_ever_at(&self, address: &str) -> Vec<String> {
        let holds = |pod: &Value| {
            let addresses = pod["status"]["podIPs"].as_array().into_iter().flatten();
            pod["spec"]["hostNetwork"] != true
                && addresses.into_iter().any(|one| one["ip"] == address)
        };
        let state = self.state();
        let pods = state.ever.iter().filter(|(_, object)| holds(&object.value));
        pods.map(|(uid, _)| uid.clone()).collect()
    }

    /// Forgets all history: watches from before now, and pages of older lists, are gone.
    pub fn compact(&self) {
        self.write(|state| {
            // What is now can still be watched from, as after etcd's compaction to the latest.
            state.compacted = state.version;
            state.log.clear();
            state.snapshots.clear();
            None
        });
    }

    /// All objects of a resource as they are now.
    #[must_use]
    pub fn list(&self, resource: &'static Resource) -> Snapshot {
        let mut state = self.state();
        let version = state.version;
        if let Some(known) = state.snapshot(resource, version) {
            return known;
        }
        let table = state.tables.get(resource.plural);
        let objects = table.map(|table| table.values().cloned().collect()).unwrap_or_default();
        let snapshot = Snapshot { version, objects: Arc::new(objects) };
        state.snapshots.push_back((resource.plural, snapshot.clone()));
        if state.snapshots.len() > SNAPSHOTS {
            state.snapshots.pop_front();
        }
        snapshot
    }

    /// All objects of a resource as they were, if that is still known.
    #[must_use]
    pub fn list_at(&self, resource: &'static Resource, version: u64) -> Option<Snapshot> {
        self.state().snapshot(resource, version)
    }

    /// The changes of a resource after `version`, and up to which version that is.
    ///
    /// # Errors
    /// If `version` is older than what is kept.
    pub fn since(
        &self,
        resource: &'static Resource,
        version: u64,
    ) -> Result<(Vec<Change>, u64), Compacted> {
        let state = self.state();
        if version < state.compacted {
            return Err(Compacted(state.compacted));
        }
        let first = state.log.partition_point(|change| change.version <= version);
        let changes = state.log.range(first..).filter(|change| change.resource == resource);
        Ok((changes.cloned().collect(), state.version.max(version)))
    }
}

impl State {
    fn snapshot(&self, resource: &'static Resource, version: u64) -> Option<Snapshot> {
        self.snapshots
            .iter()
            .find(|(plural, snapshot)| *plural == resource.plural && snapshot.version == version)
            .map(|(_, snapshot)| snapshot.clone())
    }
}
