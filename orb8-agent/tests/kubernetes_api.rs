//! The watchers against an API server that lists, watches and misbehaves over TLS.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use orb8_agent::clock::{Clock, SystemClock};
use orb8_agent::host::HostFacts;
use orb8_agent::k8s::client::connect;
use orb8_agent::k8s::registry::{Holder, Registry};
use orb8_agent::k8s::status::{Resource, ResourceStatus, State};
use orb8_agent::k8s::watch::{Pace, Prepared, Watchers};
use orb8_agent::k8s::{KubernetesSettings, Mode};
use orb8_testbed::api::ApiServer;
use orb8_testbed::api::count::Requests;
use orb8_testbed::api::fault::Failure;
use orb8_testbed::api::object::{self, Owner};
use orb8_testbed::api::pod::{Pod, Stage};
use orb8_testbed::wait::wait_until;
use tokio::runtime::Runtime;

const DEADLINE: Duration = Duration::from_secs(60);
const SECOND_NS: u64 = 1_000_000_000;
const NODE: &str = "node1";

/// One agent's watchers, with waits that suit a test.
struct Agent {
    runtime: Runtime,
    registry: Arc<Registry>,
    clock: Arc<dyn Clock>,
    watchers: Option<Watchers>,
}

fn quick() -> Pace {
    Pace {
        first_within: Duration::from_millis(10),
        relist_within: Duration::from_millis(50),
        retry: Duration::from_millis(20),
        retry_at_most: Duration::from_millis(200),
        forbidden: Duration::from_millis(200),
        watch_for: Duration::from_secs(120),
        catch_up: Duration::from_millis(50),
        page: 2,
    }
}

impl Agent {
    fn start(api: &ApiServer) -> Self {
        Self::start_with(api, &quick())
    }

    fn start_with(api: &ApiServer, pace: &Pace) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let registry = Registry::shared(NODE, 10_000);
        let clock = SystemClock::shared();
        let config = api.kubeconfig("agent").display().to_string();
        let watchers = runtime.block_on(async {
            let connection =
                connect(&config, &HostFacts::shared()).await.expect("the kubeconfig is good");
            Watchers::start(&connection, &registry, &clock, pace)
        });
        Self { runtime, registry, clock, watchers: Some(watchers) }
    }

    fn state(&self, resource: Resource) -> State {
        self.registry.health().of(resource).state
    }

    fn wait_for(&self, state: State) {
        wait_until(DEADLINE, state.word(), || self.registry.status().state == state);
    }

    /// The pod that has an address now, as `namespace/name`, or what else there is to say.
    fn who(&self, address: Ipv4Addr) -> String {
        let view = self.registry.read();
        let word = match view.holder(IpAddr::V4(address), self.clock.monotonic_ns()) {
            Holder::Pod { pod, .. } => {
                let identity = pod.identity().expect("a pod with an address has a name");
                return format!("{}/{}", identity.namespace, identity.name);
            }
            Holder::Node { node, .. } => return node.name.to_string(),
            Holder::Service { service, .. } => return service.name.to_string(),
            Holder::Ambiguous => "ambiguous",
            Holder::InCluster => "in cluster",
            Holder::Outside => "outside",
            Holder::NotSynced => "not synced",
        };
        word.to_owned()
    }

    fn wait_for_who(&self, address: Ipv4Addr, wanted: &str) {
        wait_until(DEADLINE, &format!("{address} to be {wanted}"), || self.who(address) == wanted);
    }
}

const fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, 1, last)
}

fn pod(name: &str, last: u8) -> Pod {
    let mut pod = Pod::new("shop", name, NODE);
    pod.ips = vec![ip(last).into()];
    pod
}

/// Two nodes and five pods, so that lists have several pages.
fn cluster() -> ApiServer {
    let api = ApiServer::local();
    for (name, last) in [("node1", 11), ("node2", 12)] {
        let address = Ipv4Addr::new(172, 30, 0, last).into();
        let range = format!("10.244.{}.0/24", last - 10);
        api.put(object::node(name, &[address], &[range], "zone-a"));
    }
    for last in 1..=5 {
        api.put(pod(&format!("web-{last}"), last).object(Stage::Running));
    }
    api
}

#[test]
fn each_resource_is_listed_once_and_watched_once() {
    let api = cluster();
    let agent = Agent::start(&api);
    agent.wait_for(State::Synced);
    wait_until(DEADLINE, "six watches", || api.requests("agent", "").open == 6);
    for resource in Resource::ALL {
        let requests = api.requests("agent", resource.name());
        assert_eq!((requests.lists, requests.watches), (1, 1), "{}", resource.name());
        let told = agent.registry.health().of(resource);
        assert_eq!((told.lists, told.watches), (requests.pages, requests.watches));
    }
    assert_eq!(api.requests("agent", "pods").pages, 3);
    assert_eq!(agent.who(ip(3)), "shop/web-3");
    assert_eq!(agent.who(ip(99)), "in cluster");
    assert_eq!(agent.who(Ipv4Addr::new(172, 30, 0, 12)), "node2");
    assert_eq!(agent.who(Ipv4Addr::new(9, 9, 9, 9)), "outside");
    let status = agent.registry.status();
    assert_eq!((status.pods, status.pods_local, status.rejected), (5, 5, 0));
    assert_eq!(status.server, api.url());
}

#[test]
fn changes_are_told_by_the_watch() {
    let api = cluster();
    let agent = Agent::start(&api);
    agent.wait_for(State::Synced);
    let late = pod("late", 40);
    for stage in [Stage::Created, Stage::Bound, Stage::Starting, Stage::Running] {
        api.put(late.object(stage));
    }
    agent.wait_for_who(ip(40), "shop/late");
    let moved = agent.registry.generation();
    api.put(late.object(Stage::Terminating));
    api.put(late.object(Stage::Succeeded));
    api.delete("pods", "shop", "late");
    agent.wait_for_who(ip(40), "in cluster");
    assert!(agent.registry.generation() > moved);
    assert_eq!(api.requests("agent", "pods").lists, 1);
}

#[test]
fn owners_are_followed_to_the_top_whoever_comes_first() {
    let api = cluster();
    let deployment = Owner::new("Deployment", "web");
    let replicas = Owner::new("ReplicaSet", "web-1a2b");
    let mut owned = pod("web-1a2b-x", 50);
    owned.owner = Some(replicas.clone());
    api.put(owned.object(Stage::Running));
    let agent = Agent::start(&api);
    agent.wait_for(State::Synced);
    let found = agent.registry.pod_of_cgroup(&owned.uid).expect("there is room");
    let top = || {
        let workload = found.state().workload.clone().expect("it has an owner");
        format!("{}/{}", workload.kind, workload.name)
    };
    assert_eq!(top(), "ReplicaSet/web-1a2b");
    let set = object::owned("ReplicaSet", "shop", &replicas.name, &replicas.uid, Some(&deployment));
    api.put(set);
    wait_until(DEADLINE, "the Deployment", || top() == "Deployment/web");
}

#[test]
fn a_job_that_a_schedule_made_is_the_cron_jobs_whoever_comes_first() {
    let api = cluster();
    let (schedule, job) = (Owner::new("CronJob", "nightly"), Owner::new("Job", "nightly-29"));
    let late = Owner::new("Job", "nightly-30");
    let made = |job: &Owner| object::owned("Job", "shop", &job.name, &job.uid, Some(&schedule));
    let by = |job: &Owner, last| {
        let mut owned = pod(&format!("{}-x", job.name), last);
        owned.owner = Some(job.clone());
        owned
    };
    let (first, second) = (by(&job, 51), by(&late, 52));
    api.put(made(&job));
    api.put(first.object(Stage::Running));
    api.put(second.object(Stage::Running));
    let agent = Agent::start(&api);
    agent.wait_for(State::Synced);
    let top = |pod: &Pod| {
        let found = agent.registry.pod_of_cgroup(&pod.uid).expect("there is room");
        let workload = found.state().workload.clone().expect("it has an owner");
        format!("{}/{}", workload.kind, workload.name)
    };
    wait_until(DEADLINE, "the schedule", || top(&first) == "CronJob/nightly");
    assert_eq!(top(&second), "Job/nightly-30");
    api.put(made(&late));
    wait_until(DEADLINE, "the schedule", || top(&second) == "CronJob/nightly");
}

#[test]
fn an_api_that_is_away_at_start_is_found_when_it_comes() {
    let api = cluster();
    api.close_port();
    let agent = Agent::start(&api);
    agent.wait_for(State::Unreachable);
    let status = agent.registry.status();
    assert!(status.reason.contains("is https://127.0.0.1"), "{}", status.reason);
    assert_eq!(agent.who(ip(1)), "not synced");
    api.open_port();
    agent.wait_for(State::Synced);
    assert_eq!(agent.registry.status().reason, "");
    assert_eq!(agent.who(ip(1)), "shop/web-1");
}

#[test]
fn a_cut_is_resumed_without_a_list() {
    let api = cluster();
    let agent = Agent::start(&api);
    agent.wait_for(State::Synced);
    wait_until(DEADLINE, "six watches", || api.requests("agent", "").open == 6);
    api.close_port();
    agent.wait_for(State::Stale);
    // Names stay while the API is away.
    assert_eq!(agent.who(ip(1)), "shop/web-1");
    api.delete("pods", "shop", "web-1");
    api.put(pod("next", 1).object(Stage::Running));
    api.open_port();
    agent.wait_for_who(ip(1), "shop/next");
    agent.wait_for(State::Synced);
    assert_eq!(api.requests("agent", "").lists, 6);
}

#[test]
fn names_are_doubtful_from_a_cut_until_all_is_told_again() {
    let api = cluster();
    let agent = Agent::start(&api);
    agent.wait_for(State::Synced);
    wait_until(DEADLINE, "six watches", || api.requests("agent", "").open == 6);
    let is_sure = || agent.registry.read().is_in_touch(Resource::Pods, agent.clock.monotonic_ns());
    let before_ns = agent.registry.health().of(Resource::Pods).last_heard_ns;
    assert!(is_sure());
    api.close_port();
    agent.wait_for(State::Stale);
    api.delete("pods", "shop", "web-1");
    api.put(pod("next", 1).object(Stage::Running));
    assert_eq!(agent.who(ip(1)), "shop/web-1", "the old name is what there is");
    assert!(!is_sure(), "and said to be doubtful");
    let was_sure = agent.registry.read().is_in_touch(Resource::Pods, before_ns - SECOND_NS);
    assert!(was_sure, "for what was before the cut it is not");
    api.open_port();
    wait_until(DEADLINE, "names that are sure", is_sure);
    assert_eq!(agent.who(ip(1)), "shop/next", "sure is only what the API has told");
}

#[test]
fn what_went_while_the_api_had_forgotten_is_found_by_one_list() {
    let api = cluster();
    let agent = Agent::start(&api);
    agent.wait_for(State::Synced);
    wait_until(DEADLINE, "six watches", || api.requests("agent", "").open == 6);
    api.close_port();
    api.delete("pods", "shop", "web-1");
    api.put(pod("next", 2).object(Stage::Running));
    api.delete("pods", "shop", "web-2");
    api.compact();
    api.open_port();
    agent.wait_for_who(ip(2), "shop/next");
    // It was not seen to end, so that it may have run on for some time.
    wait_until(DEADLINE, "web-1 to be gone", || agent.registry.status().pods == 4);
    assert_eq!(agent.who(ip(1)), "shop/web-1");
    assert_eq!(api.requests("agent", "pods").lists, 2);
    assert!(agent.registry.health().of(Resource::Pods).errors > 0);
}

#[test]
fn a_forbidden_resource_is_named_and_the_others_go_on() {
    let api = cluster();
    api.forbid("endpointslices");
    let agent = Agent::start(&api);
    agent.wait_for(State::Forbidden);
    for resource in Resource::ALL {
        let wanted = match resource {
            Resource::EndpointSlices => State::Forbidden,
            _ => State::Synced,
        };
        wait_until(DEADLINE, resource.name(), || agent.state(resource) == wanted);
    }
    let reason = agent.registry.status().reason;
    let hint = "grant list and watch on endpointslices in API group \"discovery.k8s.io\"";
    assert!(reason.starts_with("endpointslices: ") && reason.contains(hint), "{reason}");
    assert_eq!(agent.who(ip(1)), "shop/web-1");
    api.heal();
    agent.wait_for(State::Synced);
}

#[test]
fn refused_credentials_are_told_and_those_that_replace_them_are_taken_up() {
    let api = cluster();
    let agent = Agent::start(&api);
    agent.wait_for(State::Synced);
    wait_until(DEADLINE, "six watches", || api.requests("agent", "").open == 6);
    api.revoke("agent");
    agent.wait_for(State::Forbidden);
    let reason = agent.registry.status().reason;
    assert!(reason.contains("the credentials are refused (Unauthorized)"), "{reason}");
    assert!(reason.contains("renew the service account's token or the kubeconfig"), "{reason}");
    assert_eq!(agent.who(ip(1)), "shop/web-1", "what was told stays");
    api.put(pod("next", 70).object(Stage::Running));
    let replaced = api.kubeconfig("agent");
    assert_eq!(replaced, api.kubeconfig("agent"), "it lies where it lay");
    agent.wait_for(State::Synced);
    agent.wait_for_who(ip(70), "shop/next");
    assert_eq!(api.requests("agent", "").lists, 6, "watches went on where they were");
}

#[test]
fn credentials_for_another_server_are_not_taken_up() {
    let (api, other) = (cluster(), cluster());
    let agent = Agent::start(&api);
    agent.wait_for(State::Synced);
    std::fs::copy(other.kubeconfig("agent"), api.kubeconfig("agent")).expect("a file of our own");
    api.revoke("agent");
    agent.wait_for(State::Forbidden);
    let refusals = || agent.registry.health().of(Resource::Pods).errors;
    let before = refusals();
    wait_until(DEADLINE, "more refusals", || refusals() > before + 3);
    assert_eq!(agent.state(Resource::Pods), State::Forbidden);
    assert_eq!(other.requests("", ""), Requests::default());
}

#[test]
fn a_401_that_passes_heals_without_a_word_of_anybody() {
    let api = cluster();
    api.fail(Failure::Status(401));
    let agent = Agent::start(&api);
    agent.wait_for(State::Forbidden);
    assert_eq!(agent.who(ip(1)), "not synced");
    api.heal();
    agent.wait_for(State::Synced);
    assert_eq!(agent.registry.status().reason, "");
    assert_eq!(agent.who(ip(1)), "shop/web-1");
}

#[test]
fn too_many_requests_are_repeated_when_the_api_says_so() {
    let api = cluster();
    {
        let faults = api.faults();
        let mut switches = faults.switches();
        switches.failing = Some((Failure::TooMany(1), Some(1)));
        switches.failing_only = Some("pods");
    }
    let agent = Agent::start(&api);
    wait_until(DEADLINE, "a refusal", || api.requests("agent", "pods").refused == 1);
    let begun = std::time::Instant::now();
    agent.wait_for(State::Synced);
    assert!(begun.elapsed() >= Duration::from_millis(700), "{:?}", begun.elapsed());
    assert_eq!(api.requests("agent", "pods").lists, 1);
}

#[test]
fn hangups_and_errors_are_survived() {
    let api = cluster();
    for failure in [Failure::Hangup, Failure::Status(500), Failure::Status(503)] {
        api.faults().switches().failing = Some((failure, Some(10)));
        let agent = Agent::start(&api);
        agent.wait_for(State::Synced);
        assert_eq!(agent.who(ip(5)), "shop/web-5");
    }
}

#[test]
fn a_slow_api_delays_names_and_nothing_else() {
    let api = cluster();
    api.slow(Duration::from_millis(300));
    let agent = Agent::start(&api);
    assert_eq!(agent.state(Resource::Pods), State::Connecting);
    assert_eq!(agent.who(ip(1)), "not synced");
    agent.wait_for_who(ip(1), "shop/web-1");
}

#[test]
fn a_watch_that_the_api_ends_after_its_time_is_opened_anew_without_a_list() {
    let api = cluster();
    let pace = Pace { watch_for: Duration::from_secs(1), ..quick() };
    let agent = Agent::start_with(&api, &pace);
    agent.wait_for(State::Synced);
    wait_until(DEADLINE, "each resource's third watch", || {
        Resource::ALL.iter().all(|resource| api.requests("agent", resource.name()).watches >= 3)
    });
    api.put(pod("late", 40).object(Stage::Running));
    agent.wait_for_who(ip(40), "shop/late");
    for resource in Resource::ALL {
        let told = agent.registry.health().of(resource);
        let lists = api.requests("agent", resource.name()).lists;
        assert_eq!((lists, told.errors, told.state), (1, 0, State::Synced), "{}", resource.name());
    }
}

#[test]
fn bookmarks_count_as_hearing() {
    let api = cluster();
    let agent = Agent::start(&api);
    wait_until(DEADLINE, "six watches", || api.requests("agent", "").open == 6);
    agent.wait_for(State::Synced);
    let heard = || agent.registry.health().of(Resource::Jobs).last_heard_ns;
    let before = heard();
    wait_until(DEADLINE, "a bookmark", || {
        api.bookmark();
        heard() > before
    });
}

#[test]
fn an_object_that_cannot_be_read_is_counted_and_costs_no_other() {
    let api = cluster();
    let mut broken = pod("broken", 60).object(Stage::Running);
    broken["status"]["podIPs"] = serde_json::json!("none");
    api.put(broken.clone());
    let agent = Agent::start(&api);
    agent.wait_for(State::Synced);
    assert_eq!(agent.registry.status().rejected, 1);
    api.put(broken);
    api.put(pod("next", 61).object(Stage::Running));
    agent.wait_for_who(ip(61), "shop/next");
    assert_eq!(agent.registry.status().rejected, 2);
    assert_eq!(agent.who(ip(60)), "in cluster");
}

#[test]
fn watchers_end_with_their_handle() {
    let api = cluster();
    let mut agent = Agent::start(&api);
    wait_until(DEADLINE, "six watches", || api.requests("agent", "").open == 6);
    agent.watchers.take();
    agent.runtime.block_on(tokio::task::yield_now());
    wait_until(DEADLINE, "no watch", || api.requests("agent", "").open == 0);
}

#[test]
fn settings_say_whether_the_api_is_asked() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let start = |mode, kubeconfig: &str| {
        let registry = Registry::shared(NODE, 100);
        let settings = KubernetesSettings { mode, kubeconfig: kubeconfig.to_owned() };
        let started = runtime.block_on(Prepared::new(&settings, &registry, &HostFacts::shared()));
        (started.map_err(|error| error.to_string()), registry.status())
    };
    let (started, status) = start(Mode::Off, "/dev/null");
    assert!(started.is_ok());
    assert_eq!((status.state, status.reason.as_str()), (State::Off, "ORB8_KUBERNETES is off"));
    let (started, status) = start(Mode::Auto, "");
    assert!(started.is_ok());
    assert_eq!(status.state, State::Off);
    assert!(status.reason.starts_with("no KUBECONFIG is set"), "{}", status.reason);
    let (started, status) = start(Mode::Auto, "/nowhere/config");
    assert!(started.is_ok());
    assert!(status.reason.starts_with("kubeconfig /nowhere/config"), "{}", status.reason);
    for kubeconfig in ["", "/nowhere/config"] {
        let (started, _) = start(Mode::On, kubeconfig);
        assert!(started.is_err());
    }
}

type Agents = [(Arc<Registry>, Watchers)];

fn pods(agents: &Agents) -> Vec<ResourceStatus> {
    agents.iter().map(|(registry, _)| registry.health().of(Resource::Pods)).collect()
}

/// How long after each agent's next failure, if `failing`, else after now, it begins a list of pods:
/// before anything is sent, because on a busy machine the requests themselves take their time.
fn pauses(agents: &Agents, failing: bool, before: &[ResourceStatus]) -> Vec<Duration> {
    let (start, end) = (Instant::now(), Instant::now() + DEADLINE);
    let mut seen = vec![(None, None); agents.len()];
    while seen.iter().any(|(_, listed)| listed.is_none()) {
        for (((failed, listed), before), now) in seen.iter_mut().zip(before).zip(pods(agents)) {
            if !failing || now.errors > before.errors {
                let at = if failing { Instant::now() } else { start };
                failed.get_or_insert(at);
            }
            if now.lists > before.lists {
                listed.get_or_insert_with(Instant::now);
            }
        }
        assert!(Instant::now() < end, "not all agents began another list");
        std::thread::park_timeout(Duration::from_millis(5));
    }
    let pauses = seen.into_iter().filter_map(|(failed, listed)| Some(listed? - failed?));
    pauses.collect()
}

/// What happens at once is over in a fraction of the time over which chance would spread it.
#[track_caller]
fn assert_spread(mut pauses: Vec<Duration>, over: Duration) {
    pauses.sort_unstable();
    let count = pauses.len();
    let most = pauses[count * 9 / 10] - pauses[count / 10];
    assert!(most >= over / 2, "8 of 10 within {most:?} of {over:?}");
}

/// Agents that all start at once, that are all told at once that history is gone, and whose API
/// server comes back without its history: each lists each resource once a time, spread over what the
/// pace gives.
#[test]
fn what_100_agents_have_to_list_at_once_is_listed_once_and_spread_over_time() {
    const AGENTS: usize = 100;
    let api = cluster();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let pace = Pace {
        first_within: Duration::from_secs(6),
        relist_within: Duration::from_secs(6),
        retry: Duration::from_millis(500),
        ..Pace::default()
    };
    let names: Vec<String> = (0..AGENTS).map(|number| format!("agent{number}")).collect();
    let connections = names.iter().map(|name| {
        let config = api.kubeconfig(name).display().to_string();
        let connection = runtime.block_on(connect(&config, &HostFacts::shared()));
        connection.expect("the kubeconfig is good")
    });
    let connections: Vec<_> = connections.collect();
    let inside = runtime.enter();
    let start = |connection| {
        let (registry, clock) = (Registry::shared(NODE, 100), SystemClock::shared());
        let watchers = Watchers::start(connection, &registry, &clock, &pace);
        (registry, watchers)
    };
    // Nobody answers yet, so that no answer keeps anybody from asking.
    api.close_port();
    let agents: Vec<(Arc<Registry>, Watchers)> = connections.iter().map(start).collect();
    drop(inside);
    let none = vec![ResourceStatus::default(); AGENTS];
    assert_spread(pauses(&agents, false, &none), pace.first_within);
    api.open_port();
    let all = |state: State| agents.iter().all(|(registry, _)| registry.status().state == state);
    let open = || usize::try_from(api.requests("", "").open).expect("it is a small number");
    let all_watch = || all(State::Synced) && open() == 6 * AGENTS;
    wait_until(DEADLINE, "all to watch", all_watch);
    // Watches are told so on the connections that they have.
    let before = pods(&agents);
    api.stall();
    api.delete("pods", "shop", "web-1");
    api.compact();
    api.heal();
    assert_spread(pauses(&agents, true, &before), pace.relist_within);
    wait_until(DEADLINE, "all to watch again", all_watch);
    api.close_port();
    wait_until(DEADLINE, "all to be stale", || all(State::Stale));
    api.delete("pods", "shop", "web-2");
    api.compact();
    api.open_port();
    wait_until(DEADLINE, "all to watch after the restart", all_watch);
    for name in &names {
        for resource in Resource::ALL {
            let requests = api.requests(name, resource.name());
            assert!((3..=4).contains(&requests.lists), "{name} {}: {requests:?}", resource.name());
        }
    }
    drop(agents);
}
