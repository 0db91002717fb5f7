//! What 5 000 pods of a cluster cost, 500 of them on this node, listed in pages over TLS.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use orb8_agent::clock::SystemClock;
use orb8_agent::host::HostFacts;
use orb8_agent::k8s::client::connect;
use orb8_agent::k8s::registry::Registry;
use orb8_agent::k8s::status::State;
use orb8_agent::k8s::watch::{Pace, Watchers};
use orb8_testbed::api::ApiServer;
use orb8_testbed::api::object;
use orb8_testbed::api::pod::{Pod, Stage};
use orb8_testbed::wait::wait_until;

const PODS: u32 = 5_000;
const LOCAL: u32 = 500;
const DEADLINE: Duration = Duration::from_secs(120);

/// The knowledge alone may take this; the agent has 96 MiB for all that it does.
const BOUND_KIB: u64 = 24 << 10;

/// Resident memory of this process that is its own, in KiB.
fn resident_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("proc is mounted");
    let line = text.lines().find(|line| line.starts_with("RssAnon:")).expect("RssAnon is told");
    let number = line.split_whitespace().nth(1).and_then(|word| word.parse().ok());
    number.expect("it is a number")
}

#[test]
fn five_thousand_pods_fit() {
    let api = ApiServer::local();
    for node in 0..10_u8 {
        let address = IpAddr::from([172, 30, 0, 10 + node]);
        let ranges = [format!("10.{}.0.0/16", 100 + u16::from(node))];
        api.put(object::node(&format!("node{node}"), &[address], &ranges, "zone-a"));
    }
    for number in 0..PODS {
        let node = number / LOCAL;
        let mut pod = Pod::new(
            &format!("team-{}", number % 20),
            &format!("web-{number}"),
            &format!("node{node}"),
        );
        let host = number % LOCAL + 1;
        let last = u32::from(Ipv4Addr::new(10, 100, 0, 0)) + (node << 16) + host;
        pod.ips = vec![IpAddr::V4(Ipv4Addr::from(last))];
        api.put(pod.object(Stage::Running));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let registry = Registry::shared("node0", 10_000);
    let config = api.kubeconfig("agent").display().to_string();
    let before = resident_kib();
    let clock = SystemClock::shared();
    let watchers = runtime.block_on(async {
        let connection =
            connect(&config, &HostFacts::shared()).await.expect("the kubeconfig is good");
        Watchers::start(&connection, &registry, &clock, &Pace::default())
    });
    wait_until(DEADLINE, "all to be listed", || registry.status().state == State::Synced);
    let grown = resident_kib().saturating_sub(before);
    let status = registry.status();
    assert_eq!((status.pods, status.pods_local, status.rejected), (5_000, 500, 0));
    println!("{PODS} pods: {grown} KiB, the API double's answers included");
    assert!(grown < BOUND_KIB, "{grown} KiB");
    drop(watchers);
}
