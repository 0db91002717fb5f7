//! A thousand pods come and go on forty addresses while they talk: no name is ever wrong, and what
//! has none says why.

mod cluster_support;

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use cluster_support::rows::{ends, is_owned, key};
use cluster_support::{Auto, Capture, DEADLINE, Scene, Tc};
use orb8_proto::v1::{Endpoint, NetworkFlow};
use orb8_testbed::api::pod::Stage;
use orb8_testbed::cluster::plan::{Plan, PodPlan};
use orb8_testbed::cluster::pod::Pod;
use orb8_testbed::cluster::talk::{Talk, UdpTalk};
use orb8_testbed::cluster::{Cluster, NEEDS};
use orb8_testbed::flow::{Flow, Total};
use orb8_testbed::link::Family::V4;
use orb8_testbed::need;
use orb8_testbed::wait::wait_until;

/// Pods in all, where sockets tell whose a packet is and where interfaces alone do.
const PODS: usize = 1_000;
const PODS_AT_LINKS: usize = 300;
/// Who makes them at the same time.
const WORKERS: usize = 4;
/// Addresses that each of these gives out again and again.
const SLOTS: u16 = 10;
/// Every so many pods, the API tells of the end of one only after its successor has its address.
const LATE: usize = 50;

/// Who sent a flow to whom, and how much.
struct Said {
    client: String,
    server: String,
    talk: Talk,
}

type Truth = HashMap<Flow, Said>;

#[test]
fn a_thousand_pods_on_forty_addresses_are_never_misnamed() {
    need!(@check NEEDS);
    let scene = start(Auto);
    let (sum, expected) = run(&scene, PODS);
    assert_eq!(sum.bytes, 2 * expected, "both ends of every pod's talk were counted");
    assert!(sum.unknown_owner * 100 < sum.bytes, "owners unknown: {sum:?}");
    assert!(sum.unknown_peer * 100 < sum.bytes, "peers unknown: {sum:?}");
    for node in [1, 2] {
        check_shares(&scene, node);
    }
}

#[test]
fn from_interfaces_alone_no_pod_on_forty_addresses_is_misnamed() {
    need!(@check NEEDS);
    let scene = start(Tc);
    let (sum, expected) = run(&scene, PODS_AT_LINKS);
    assert!(sum.bytes <= 2 * expected, "{sum:?} of {expected} bytes");
    assert!(sum.unknown_owner * 100 < sum.bytes, "owners unknown: {sum:?}");
    assert!(sum.unknown_peer * 100 < sum.bytes, "peers unknown: {sum:?}");
    // Interfaces alone cannot see what a pod says before its link is attached, but the link has
    // counted it: not a byte is missing without a word, and the servers' half is whole.
    let missing = 2 * expected - sum.bytes;
    assert!(sum.unattached >= missing && missing <= expected, "{sum:?} of {expected} bytes");
}

/// Agents that keep every row until all is said, however slow the machine.
fn start(capture: Capture) -> Scene {
    let scene = Scene::without_agents(Plan::default(), capture);
    let mut scene = scene.env("ORB8_FLOW_HISTORY_SECS", 3_600);
    scene.start_agents();
    scene
}

/// Pods that come, talk and go; what all answers say of it, and the bytes that were said.
fn run(scene: &Scene, pods: usize) -> (Sum, u64) {
    let servers = [1, 2].map(|node| scene.cluster.simple(&format!("shop/server-{node}"), node));
    for node in [1, 2] {
        scene.wait_links(node, 1);
    }
    let truth = Mutex::new(Truth::new());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (cluster, servers, truth, next) = (&scene.cluster, &servers, &truth, &next);
            scope.spawn(move || churn(cluster, servers, worker, pods, next, truth));
        }
    });
    let truth = truth.into_inner().expect("no worker panicked");
    assert_eq!(truth.len(), pods, "each pod's flow is its own");
    for node in [1, 2] {
        scene.wait_status(node, "a paused ledger", |status| {
            let ledger = status.packet_ledger.as_ref();
            ledger.is_some_and(|l| l.in_flight.unwrap_or_default().packets == 0)
        });
    }
    let mut sum = Sum::default();
    for node in [1, 2] {
        for row in scene.flows(node) {
            check_names(&row, &truth);
            if !row.supplement && row.plane == scene.capture.plane() && is_owned(&row) {
                sum.add(&row, &truth);
            }
        }
        sum.unattached += unattached(scene, node);
        for row in scene.trace(node).said() {
            check_names(&row, &truth);
        }
        wait_until(DEADLINE, "a trace that names what is named", || {
            let traced = scene.trace(node).flows().into_iter().map(|row| (row.flow_id, row));
            let traced: HashMap<u64, NetworkFlow> = traced.collect();
            let mut answered = scene.flows(node);
            answered.retain(|row| is_said(row, &truth));
            answered
                .iter()
                .all(|row| traced.get(&row.flow_id).is_some_and(|told| agrees(told, row)))
        });
    }
    let expected = truth.values().map(|said| said.talk.there.bytes + said.talk.back.bytes).sum();
    (sum, expected)
}

/// Whether a row is of the churn.
fn is_said(row: &NetworkFlow, truth: &Truth) -> bool {
    truth.contains_key(&key(row)) || truth.contains_key(&key(row).reply())
}

/// Whether the last word of the trace on a flow has the counts of its row, and its names: what was
/// named and is taken back after the end is not told again.
fn agrees(told: &NetworkFlow, row: &NetworkFlow) -> bool {
    let named = |end: &Endpoint, told: &Endpoint| end.pod.is_empty() || end.pod_uid == told.pod_uid;
    let ((owner, peer), (told_owner, told_peer)) = (ends(row), ends(told));
    (told.packets, told.bytes) == (row.packets, row.bytes)
        && named(&owner, &told_owner)
        && named(&peer, &told_peer)
}

/// Makes pods and deletes them, one after the other on its own addresses.
fn churn(
    cluster: &Cluster,
    servers: &[Pod; 2],
    worker: usize,
    pods: usize,
    next: &AtomicUsize,
    truth: &Mutex<Truth>,
) {
    let mut slots: Vec<Option<Pod>> = (0..SLOTS).map(|_| None).collect();
    let mut turn = 0;
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= pods {
            break;
        }
        let slot = turn % slots.len();
        turn += 1;
        let node = 1 + u8::try_from(worker % 2).expect("small");
        let base = 100 + u16::try_from(worker).expect("small") * SLOTS;
        let address = base + u16::try_from(slot).expect("small");
        let name = format!("shop/p{number}");
        // Now and then the API tells of an old holder's end only after the new one's beginning.
        let late = number.is_multiple_of(LATE).then(|| slots[slot].take()).flatten();
        let late = late.map(|old| cluster.end(old));
        // As a rule an address is free for as long as it takes to make one pod.
        let following = turn % slots.len();
        for at in [slot, following] {
            if let Some(old) = slots[at].take() {
                cluster.delete(old);
            }
        }
        let pod = cluster.pod(PodPlan::new(&name, node).number(address).unannounced());
        cluster.announce(&pod, Stage::Created);
        cluster.announce(&pod, Stage::Bound);
        let server = &servers[number % 2];
        let port = 10_000 + u16::try_from(number).expect("small");
        let socket = pod.app.udp(pod.at(V4, port));
        let (_, mut talk) = UdpTalk::open_with(socket, &[&server.app], server.at(V4, port), port);
        talk.say(2, 200);
        // The address is told after the first packets, as on a real node.
        cluster.announce(&pod, Stage::Running);
        talk.say(10, 400);
        if let Some(old) = late {
            cluster.let_go(&old);
        }
        let (talk, server) = (talk.talk(), server.object.name.clone());
        let said = Said { client: name, server, talk };
        truth.lock().expect("no worker panicked").insert(talk.client, said);
        slots[slot] = Some(pod);
    }
    for pod in slots.into_iter().flatten() {
        cluster.delete(pod);
    }
}

/// No end of a row of the churn has a wrong name, or is what no pod is; whether it is such a row.
#[track_caller]
fn check_names(row: &NetworkFlow, truth: &Truth) -> bool {
    let flow = key(row);
    let there = truth.get(&flow);
    let Some(said) = there.or_else(|| truth.get(&flow.reply())) else { return false };
    let (source, destination) = (row.source.as_ref(), row.destination.as_ref());
    let ends = if there.is_some() { [source, destination] } else { [destination, source] };
    let [own, other] = ends.map(|end| end.expect("a row has both ends"));
    if !own.pod.is_empty() {
        let name = format!("{}/{}", own.namespace, own.pod);
        assert_eq!(name, said.client, "a wrong name: {row:?}");
    }
    if !other.pod.is_empty() {
        let name = (other.namespace.as_str(), &other.pod);
        assert_eq!(name, ("shop", &said.server), "a wrong name: {row:?}");
    }
    for end in [own, other] {
        assert!(matches!(end.kind.as_str(), "pod" | "unknown"), "a wrong kind: {row:?}");
        assert!(!end.pod.is_empty() || !end.reason.is_empty(), "no name, no reason: {row:?}");
    }
    true
}

/// What all rows of the churn come to.
#[derive(Debug, Default)]
struct Sum {
    bytes: u64,
    unknown_owner: u64,
    unknown_peer: u64,
    /// Bytes that were never counted, as the status tells.
    unattached: u64,
    /// Bytes by the reason of an end without a name.
    reasons: HashMap<String, u64>,
}

impl Sum {
    fn add(&mut self, row: &NetworkFlow, truth: &Truth) {
        if !is_said(row, truth) {
            return;
        }
        let (owner, peer) = ends(row);
        self.bytes += row.bytes;
        self.unknown_owner += self.unknown(&owner, row);
        self.unknown_peer += self.unknown(&peer, row);
    }

    /// Bytes of a row one end of which has no name; such an end says why.
    fn unknown(&mut self, end: &Endpoint, row: &NetworkFlow) -> u64 {
        if !end.pod.is_empty() {
            return 0;
        }
        assert_ne!(end.reason, "", "no name and no reason: {row:?}");
        *self.reasons.entry(end.reason.clone()).or_default() += row.bytes;
        row.bytes
    }
}

/// Bytes that passed before their interface was attached; nothing else was lost.
fn unattached(scene: &Scene, node: u8) -> u64 {
    let ledger = scene.status(node).packet_ledger.expect("a ledger");
    assert_eq!(ledger.state, "balanced", "{ledger:?}");
    let unattached = ledger.lost.iter().filter(|loss| loss.stage == "unattached");
    unattached.map(|loss| loss.bytes).sum()
}

/// Less than one byte in a hundred has no owner, those before an interface was attached included.
fn check_shares(scene: &Scene, node: u8) {
    let status = scene.status(node);
    let mut all = Total::default();
    let mut none = Total::default();
    for share in status.attribution_shares.iter().filter(|share| !share.supplement) {
        all.add(share.packets, share.bytes);
        if share.attribution == "none" {
            assert_ne!(share.reason, "", "{share:?}");
            none.add(share.packets, share.bytes);
        }
    }
    let unattached = unattached(scene, node);
    let lost = none.bytes + unattached;
    assert!(
        lost * 100 < all.bytes + unattached,
        "node{node}: {none} without an owner and {unattached} bytes unattached, of {all}: {:#?}",
        status.attribution_shares
    );
}
