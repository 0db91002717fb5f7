//! What a real API server told during one scenario, replayed in the order of its resource versions:
//! into the registry, with answers asserted on the way, and through an API server over TLS to a
//! watcher.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use orb8_agent::clock::{Clock, SystemClock};
use orb8_agent::host::HostFacts;
use orb8_agent::k8s::client::connect;
use orb8_agent::k8s::registry::{Field, Holder, Registry, Seen};
use orb8_agent::k8s::services::Verdict;
use orb8_agent::k8s::status::Resource;
use orb8_agent::k8s::watch::{Pace, Watchers};
use orb8_testbed::api::ApiServer;
use orb8_testbed::wait::wait_until;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(60);
const SECOND_NS: u64 = 1_000_000_000;

/// Monotonic time begins at 2026-11-21T04:55:00Z in this test.
const ZERO_UNIX_S: i64 = 1_795_236_900;

fn fixture(name: &str) -> String {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/kubernetes");
    let file = folder.join(name);
    std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn read<T: DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).expect("a recorded object can be read")
}

struct Told {
    version: u64,
    resource: Resource,
    kind: String,
    object: Value,
}

/// All recorded events, in the order in which the API server made them.
fn recorded() -> Vec<Told> {
    let mut events = vec![];
    for resource in Resource::ALL {
        for line in fixture(&format!("watch/{}.ndjson", resource.name())).lines() {
            let event: Value = serde_json::from_str(line).expect("a recorded line is JSON");
            let version = event["object"]["metadata"]["resourceVersion"].as_str();
            let version = version.and_then(|text| text.parse().ok()).expect("events have versions");
            let kind = event["type"].as_str().expect("events have types").to_owned();
            events.push(Told { version, resource, kind, object: event["object"].clone() });
        }
    }
    events.sort_by_key(|told| told.version);
    events.retain(|told| told.kind != "BOOKMARK");
    events
}

/// The newest time that an object tells of itself, in seconds since the test's zero.
fn newest(value: &Value) -> i64 {
    const KEYS: [&str; 3] = ["creationTimestamp", "startedAt", "finishedAt"];
    match value {
        Value::Object(fields) => fields.iter().map(|(key, field)| match field {
            Value::String(text) if KEYS.contains(&key.as_str()) => seconds(text),
            other => newest(other),
        }),
        Value::Array(items) => return items.iter().map(newest).max().unwrap_or(0),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => return 0,
    }
    .max()
    .unwrap_or(0)
}

/// `2026-11-21T04:55:44Z`, all of one day.
fn seconds(text: &str) -> i64 {
    let parts: Vec<i64> =
        text[11..19].split(':').map(|part| part.parse().expect("a number")).collect();
    (parts[0] - 4) * 3600 + (parts[1] - 55) * 60 + parts[2]
}

struct Replay {
    registry: Arc<Registry>,
    events: std::vec::IntoIter<Told>,
    now_ns: u64,
    /// Objects as the API has them now, by resource and uid.
    objects: BTreeMap<(usize, String), Value>,
}

impl Replay {
    fn begin() -> Self {
        let registry = Registry::shared("node1", 1000);
        let seen = Seen::late(SECOND_NS, 0, ZERO_UNIX_S * 1_000_000_000);
        for resource in Resource::ALL {
            registry.begin_list(resource);
            if resource == Resource::Nodes {
                let list: Value =
                    serde_json::from_str(&fixture("before-nodes.json")).expect("it is JSON");
                for item in list["items"].as_array().expect("a list has items") {
                    registry.apply_node(&read(item), seen);
                }
            }
            registry.end_list(resource, seen);
        }
        let events = recorded().into_iter();
        Self { registry, events, now_ns: 2 * SECOND_NS, objects: BTreeMap::new() }
    }

    /// Replays up to and with a resource version.
    fn until(&mut self, version: u64) {
        while self.events.as_slice().first().is_some_and(|told| told.version <= version) {
            let told = self.events.next().expect("it was looked at");
            self.apply(&told);
        }
    }

    fn apply(&mut self, told: &Told) {
        let told_ns = u64::try_from(newest(&told.object)).expect("it is later") * SECOND_NS;
        self.now_ns = (self.now_ns + 5_000_000).max(told_ns + SECOND_NS / 2);
        let seen = Seen::live(self.now_ns, ZERO_UNIX_S * 1_000_000_000);
        let (registry, object) = (&self.registry, &told.object);
        let meta: ObjectMeta = read(&object["metadata"]);
        let uid = meta.uid.clone().expect("objects have uids");
        let key = (told.resource.index(), uid);
        if told.kind == "DELETED" {
            self.objects.remove(&key);
            match told.resource {
                Resource::Pods => registry.delete_pod(&meta, seen),
                Resource::Nodes => registry.delete_node(&meta, seen),
                Resource::Services => registry.delete_service(&meta, seen),
                Resource::EndpointSlices => registry.delete_slice(&meta, seen),
                Resource::ReplicaSets | Resource::Jobs => registry.delete_owner(&meta, seen),
            }
            return;
        }
        self.objects.insert(key, object.clone());
        match told.resource {
            Resource::Pods => registry.apply_pod(&read(object), seen),
            Resource::Nodes => registry.apply_node(&read(object), seen),
            Resource::Services => registry.apply_service(&read(object), seen),
            Resource::EndpointSlices => registry.apply_slice(&read(object), seen),
            Resource::ReplicaSets | Resource::Jobs => {
                registry.apply_owner(told.resource, &meta, seen);
            }
        }
    }

    fn who(&self, address: &str) -> String {
        who(&self.registry, address, self.now_ns)
    }

    fn verdict(&self, name: &str, port: u16) -> Option<Verdict> {
        let spec = self.objects.values().find(|object| {
            object["metadata"]["name"] == name && !object["spec"]["clusterIP"].is_null()
        });
        verdict(&self.registry, spec.expect("it is there"), port)
    }
}

fn who(registry: &Registry, address: &str, at_ns: u64) -> String {
    let address: IpAddr = address.parse().expect("an address");
    match registry.read().holder(address, at_ns) {
        Holder::Pod { pod, .. } => {
            let identity = pod.identity().expect("a pod with an address has a name");
            format!("{}/{}", identity.namespace, identity.name)
        }
        Holder::Node { node, .. } => node.name.to_string(),
        Holder::Service { service, .. } => format!("{} (Service)", service.name),
        other => format!("{other:?}"),
    }
}

fn workload(registry: &Registry, address: &str, at_ns: u64) -> String {
    let address: IpAddr = address.parse().expect("an address");
    let view = registry.read();
    let Holder::Pod { pod, .. } = view.holder(address, at_ns) else {
        return "no pod".to_owned();
    };
    let workload = pod.state().workload.clone();
    workload.map_or("none".to_owned(), |top| format!("{}/{}", top.kind, top.name))
}

/// Whether anybody answers behind a Service, if it is known by its ClusterIP.
fn verdict(registry: &Registry, service: &Value, port: u16) -> Option<Verdict> {
    let address = service["spec"]["clusterIP"].as_str().and_then(|ip| ip.parse().ok());
    let address: IpAddr = address.expect("it has a ClusterIP");
    let view = registry.read();
    let hit = view.service(address, port, 6, u64::MAX)?;
    assert_eq!(*hit.service.name, *service["metadata"]["name"].as_str().expect("it has a name"));
    Some(hit.verdict)
}

/// Right before the first scale-up, when all is steady.
const STEADY: u64 = 709;

/// Pods that have an address then, and their workloads.
const STEADY_PODS: [(&str, &str, &str); 7] = [
    ("10.244.1.3", "shop/web-947559696-7nwqw", "Deployment/web"),
    ("10.244.2.2", "shop/web-947559696-td6dl", "Deployment/web"),
    ("10.244.1.4", "shop/bare", "none"),
    ("10.244.2.4", "shop/db-0", "StatefulSet/db"),
    ("10.244.1.10", "default/static-web-node1", "none"),
    ("10.244.1.7", "shop/crash", "none"),
    ("10.244.2.11", "shop/slice-b", "none"),
];

/// Addresses that no pod has then.
const STEADY_OTHERS: [(&str, &str); 7] = [
    // Of the hostNetwork pods, and so of the nodes.
    ("172.30.0.11", "node1"),
    ("172.30.0.12", "node2"),
    // Of finished Jobs, which keep their address in the object.
    ("10.244.2.7", "InCluster"),
    ("10.244.2.8", "InCluster"),
    ("10.244.2.14", "InCluster"),
    // Of an earlier sandbox of the static pod, which the kubelet told first.
    ("10.244.1.2", "InCluster"),
    ("203.0.113.1", "Outside"),
];

#[test]
fn the_steady_cluster_is_known_by_name_owner_and_service() {
    let mut replay = Replay::begin();
    replay.until(STEADY);
    for (address, name, workload) in STEADY_PODS {
        assert_eq!(replay.who(address), name, "{address}");
        let found = self::workload(&replay.registry, address, replay.now_ns);
        assert_eq!(found, workload, "{address}");
    }
    for (address, wanted) in STEADY_OTHERS {
        assert_eq!(replay.who(address), wanted, "{address}");
    }
    assert_eq!(replay.verdict("web", 80), Some(Verdict::Ok));
    assert_eq!(replay.verdict("web-np", 80), Some(Verdict::Ok));
    let view = replay.registry.read();
    let node_port = view.node_port(30080, 6, u64::MAX).expect("web-np has it");
    assert_eq!(&*node_port.service.name, "web-np");
    assert!(view.knows(Field::Pod, "shop/unsched"), "it waits for a node");
    assert!(view.knows(Field::Namespace, "shop") && !view.knows(Field::Namespace, "brief"));
    drop(view);
    assert_eq!(replay.registry.status().rejected, 0);
}

#[test]
fn each_shown_address_names_its_pod_at_once_through_the_whole_scenario() {
    let mut replay = Replay::begin();
    let versions: Vec<u64> = replay.events.as_slice().iter().map(|told| told.version).collect();
    let (mut checked, mut doubtful) = (0, 0);
    for version in versions {
        replay.until(version);
        for object in replay.objects.values().filter(|object| object["kind"] == "Pod") {
            let status = &object["status"];
            let finished = matches!(status["phase"].as_str(), Some("Succeeded" | "Failed"));
            let Some(address) = status["podIP"].as_str() else { continue };
            if finished || object["spec"]["hostNetwork"] == true {
                continue;
            }
            let meta = &object["metadata"];
            let name = format!(
                "{}/{}",
                meta["namespace"].as_str().expect("pods have namespaces"),
                meta["name"].as_str().expect("pods have names")
            );
            // Once its containers have ended, its address may be another's before the API says so.
            let who = replay.who(address);
            if who == "Ambiguous" && !status.to_string().contains("\"running\"") {
                doubtful += 1;
                continue;
            }
            assert_eq!(who, name, "{address} at version {version}");
            checked += 1;
        }
    }
    assert!(checked > 5000 && doubtful * 50 < checked, "{checked} sure, {doubtful} doubtful");
    assert_eq!(replay.registry.status().rejected, 0);
}

#[test]
fn what_is_deleted_by_force_is_named_while_it_may_run_on() {
    let mut replay = Replay::begin();
    replay.until(934);
    assert_eq!(replay.who("10.244.1.6"), "shop/forced");
    replay.until(935);
    replay.now_ns += SECOND_NS;
    assert_eq!(replay.who("10.244.1.6"), "shop/forced", "its container still runs");
    replay.until(1073);
    assert_eq!(replay.who("10.244.2.5"), "Ambiguous", "another pod of the node waits for one");
    // Ended before its deletion: nobody has its address.
    replay.until(967);
    assert_eq!(replay.who("10.244.1.8"), "InCluster");
}

#[test]
fn a_static_pod_and_a_restarted_container_keep_who_they_are() {
    let mut replay = Replay::begin();
    replay.until(STEADY);
    let mirror = replay
        .objects
        .values()
        .find(|object| object["metadata"]["name"] == "static-web-node1" && object["kind"] == "Pod");
    let hash =
        mirror.expect("it is there")["metadata"]["annotations"]["kubernetes.io/config.mirror"]
            .as_str()
            .expect("a mirror names its hash")
            .to_owned();
    let held = replay.registry.pod_of_cgroup(&hash).expect("there is room");
    replay.until(962);
    assert!(Arc::ptr_eq(&held, &replay.registry.pod_of_cgroup(&hash).expect("it is known")));
    assert_eq!(held.state().ended_ns, None, "its mirror object was made again");
    assert_eq!(replay.who("10.244.1.10"), "default/static-web-node1");
    let containers_of = |replay: &Replay, name: &str| {
        let pods = replay.registry.local_pods();
        let pod = pods.iter().find(|pod| pod.identity().is_some_and(|of| &*of.name == name));
        let state = pod.expect("it is of this node").state();
        let all = state.containers.iter();
        all.map(|one| (one.id.to_string(), one.name.to_string())).collect::<Vec<_>>()
    };
    let crash = containers_of(&replay, "crash");
    assert!(!crash.is_empty() && crash.iter().all(|(id, _)| id.len() == 64), "{crash:?}");
    let multi = containers_of(&replay, "multi");
    let names: Vec<&str> = multi.iter().map(|(_, name)| name.as_str()).collect();
    assert!(names.contains(&"side") && names.contains(&"init"), "{names:?}");
}

#[test]
fn the_end_of_the_scenario_is_what_a_list_says() {
    let mut replay = Replay::begin();
    replay.until(u64::MAX);
    let list: Value = serde_json::from_str(&fixture("after-pods.json")).expect("it is JSON");
    let items = list["items"].as_array().expect("a list has items");
    let generation = replay.registry.generation();
    let before = replay.registry.status();
    let seen = Seen::late(replay.now_ns + SECOND_NS, replay.now_ns, ZERO_UNIX_S * 1_000_000_000);
    replay.registry.begin_list(Resource::Pods);
    for item in items {
        replay.registry.apply_pod(&read(item), seen);
    }
    assert_eq!(replay.registry.generation(), generation, "the list told nothing new");
    replay.registry.end_list(Resource::Pods, seen);
    let after = replay.registry.status();
    assert_eq!((after.pods, after.pods_local), (before.pods, before.pods_local));
    assert!(after.pods > 10 && after.pods <= items.len(), "{after:?}");
}

/// Watchers of an API server that tells what was recorded, over TLS.
struct Watched {
    api: ApiServer,
    registry: Arc<Registry>,
    clock: Arc<dyn Clock>,
    events: std::vec::IntoIter<Told>,
    _watchers: Watchers,
    _runtime: tokio::runtime::Runtime,
}

impl Watched {
    /// What came up to and with `listed` is there before the first question, so that lists tell it.
    fn begin(listed: u64) -> Self {
        let api = ApiServer::local();
        api.load_list(&serde_json::from_str(&fixture("before-nodes.json")).expect("it is JSON"));
        let mut events = recorded().into_iter();
        tell(&api, &mut events, listed);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let (registry, clock) = (Registry::shared("node1", 1000), SystemClock::shared());
        let pace = Pace { first_within: Duration::from_millis(10), page: 3, ..Pace::default() };
        let config = api.kubeconfig("agent").display().to_string();
        let watchers = runtime.block_on(async {
            let connection = connect(&config, &HostFacts::shared()).await;
            Watchers::start(&connection.expect("the kubeconfig is good"), &registry, &clock, &pace)
        });
        let watched = Self { api, registry, clock, events, _watchers: watchers, _runtime: runtime };
        wait_until(DEADLINE, "six watches", || watched.api.requests("agent", "").open == 6);
        watched
    }

    fn until(&mut self, version: u64) {
        tell(&self.api, &mut self.events, version);
    }

    #[track_caller]
    fn wait_for_who(&self, address: &str, wanted: &str) {
        let mut found = String::new();
        let end = Instant::now() + DEADLINE;
        while found != wanted {
            found = who(&self.registry, address, self.clock.monotonic_ns());
            assert!(Instant::now() < end, "{address} is {found}, not {wanted}");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}

fn tell(api: &ApiServer, events: &mut std::vec::IntoIter<Told>, version: u64) {
    while events.as_slice().first().is_some_and(|told| told.version <= version) {
        let told = events.next().expect("it was looked at");
        api.replay(&json!({ "type": told.kind, "object": told.object }));
    }
}

#[test]
fn a_watcher_that_hears_the_scenario_over_tls_knows_the_steady_cluster() {
    // All by watches; half by lists; all by lists.
    for listed in [0, 500, STEADY] {
        let mut watched = Watched::begin(listed);
        watched.until(STEADY);
        for (address, name, workload) in STEADY_PODS {
            watched.wait_for_who(address, name);
            wait_until(DEADLINE, workload, || {
                let now_ns = watched.clock.monotonic_ns();
                self::workload(&watched.registry, address, now_ns) == workload
            });
        }
        for (address, wanted) in STEADY_OTHERS {
            watched.wait_for_who(address, wanted);
        }
        for name in ["web", "web-np"] {
            let service = watched.api.store().get("services", "shop", name).expect("it is there");
            wait_until(DEADLINE, name, || {
                verdict(&watched.registry, &service, 80) == Some(Verdict::Ok)
            });
        }
        let lists = watched.api.requests("agent", "").lists;
        assert_eq!((lists, watched.registry.status().rejected), (6, 0), "from {listed}");
    }
}

#[test]
fn a_watcher_that_heard_the_whole_scenario_over_tls_has_what_a_list_says() {
    let mut watched = Watched::begin(0);
    watched.until(u64::MAX);
    let list: Value = serde_json::from_str(&fixture("after-pods.json")).expect("it is JSON");
    let mut named = 0;
    for object in list["items"].as_array().expect("a list has items") {
        let (meta, status) = (&object["metadata"], &object["status"]);
        let finished = matches!(status["phase"].as_str(), Some("Succeeded" | "Failed"));
        let Some(address) = status["podIP"].as_str() else { continue };
        if finished || object["spec"]["hostNetwork"] == true {
            continue;
        }
        let word = |key: &str| meta[key].as_str().expect("pods have names").to_owned();
        watched.wait_for_who(address, &format!("{}/{}", word("namespace"), word("name")));
        named += 1;
    }
    assert!(named >= 5, "{named}");
    assert_eq!(watched.registry.status().rejected, 0);
}
