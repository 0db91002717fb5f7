//! One address, one holder after the other: a name holds only for the time in which it was true.

mod cluster_support;

use std::time::{Duration, Instant};

use cluster_support::rows::{End, by_address, ends, heard, is_owned, key, said, who};
use cluster_support::{
    Auto, Capture, DEADLINE, PORT, Scene, Socket, Tc, from_port, in_a_later_second, one_node,
};
use orb8_proto::v1::NetworkFlow;
use orb8_testbed::api::object::{Owner, wall_second};
use orb8_testbed::api::pod::Stage;
use orb8_testbed::cluster::NEEDS;
use orb8_testbed::cluster::plan::{Cni, Plan, PodPlan};
use orb8_testbed::cluster::pod::Pod;
use orb8_testbed::cluster::talk::Talk;
use orb8_testbed::flow::Total;
use orb8_testbed::need;
use orb8_testbed::wait::wait_until;

#[test]
fn an_address_reused_within_a_second_names_each_holder() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let scene = Scene::start(one_node(), capture);
        let server = scene.cluster.simple("shop/server", 1);
        let far = |peer: &str| End::pod(&server, capture, peer);
        let holder = |number: u16| {
            let plan = PodPlan::new(&format!("shop/holder-{number}"), 1).number(99);
            let pod = scene.cluster.pod(plan);
            scene.wait_link(&pod);
            pod
        };
        scene.wait_link(&server);
        let (mut rows, mut now, mut within) = (Vec::new(), holder(0), Duration::MAX);
        // A busy machine may need more than one try.
        for number in 1..=10 {
            let before = from_port(&now, &server, PORT + number, 5);
            scene.expect_own(&heard(capture, &before, &far(&by_address(&now))));
            // What was said of a holder stays, though somebody else has its address now.
            let past = format!("pod shop/{} address_reused", now.key().1);
            rows.extend(heard(capture, &before, &far(&past)));
            let given_up = Instant::now();
            scene.cluster.delete(now);
            now = holder(number);
            within = given_up.elapsed();
            if within < Duration::from_secs(1) {
                break;
            }
        }
        assert!(within < Duration::from_secs(1), "{within:?}");
        let after = from_port(&now, &server, PORT, 7);
        rows.extend(heard(capture, &after, &far(&by_address(&now))));
        scene.expect_own(&rows);
        scene.assert_complete();
    }
}

#[test]
fn within_one_second_both_ends_on_one_node_are_exact_and_a_far_one_gets_no_wrong_name() {
    need!(@check NEEDS);
    for (capture, cni) in
        [(Auto, Cni::Bridge), (Socket, Cni::Routed), (Tc, Cni::Bridge), (Tc, Cni::Routed)]
    {
        let scene = Scene::start(Plan { cni, ..Plan::default() }, capture);
        let servers = [1, 2].map(|node| scene.cluster.simple(&format!("shop/server-{node}"), node));
        servers.iter().for_each(|server| scene.wait_link(server));
        let all = within_one_second(&scene, &servers);
        let rows = all.iter().flat_map(|one| said(capture, &one.talk, &one.near, None));
        scene.expect_own(&rows.collect::<Vec<_>>());
        all.iter().for_each(|one| check_at_server(&scene, one));
        scene.assert_complete();
    }
}

/// The rows of a server come to name the holder that talked to it, and never name another.
#[track_caller]
fn check_at_server(scene: &Scene, HolderTalk { name, talk, server, .. }: &HolderTalk) {
    let is_name = |word: &String| word.starts_with(&format!("pod {name} "));
    // The holder's own rows on the same node prove when it had the address. Another node has the
    // API's word alone, in which the second belongs to both.
    let may_say =
        |word: &String| is_name(word) || (*server == 2 && word == "unknown address_ambiguous none");
    wait_until(DEADLINE, &format!("{name} to be told on node{server}"), || {
        let (words, totals) = peers_of(&scene.flows(*server), talk);
        totals == [talk.there, talk.back] && words.iter().all(may_say)
    });
    for word in peers_of(&scene.trace(*server).said(), talk).0 {
        assert!(is_name(&word) || word.starts_with("unknown "), "{name}: {word}");
    }
}

/// What a holder of an address said to the server of a node, and how its own rows are to tell it.
struct HolderTalk {
    name: String,
    near: End,
    talk: Talk,
    server: u8,
}

/// Passes one address from pod to pod, each of which talks to the servers right after it got it and
/// right before it goes, until the machine was once so fast that the last words of one and the first
/// of the next fell within one second.
fn within_one_second(scene: &Scene, servers: &[Pod]) -> Vec<HolderTalk> {
    const HANDOVERS: u16 = 30;
    let holder = |number: u16| {
        let plan = PodPlan::new(&format!("shop/holder-{number}"), 1).number(99);
        let pod = scene.cluster.pod(plan);
        scene.wait_link(&pod);
        pod
    };
    let mut all = Vec::new();
    let mut speak = |pod: &Pod, port: u16| {
        let (namespace, name) = pod.key();
        for server in servers {
            let near = End::pod(pod, scene.capture, &by_address(server));
            let talk = from_port(pod, server, port, u64::from(port % 7));
            all.push(HolderTalk {
                name: format!("{namespace}/{name}"),
                near,
                talk,
                server: server.node,
            });
        }
    };
    let mut old = holder(0);
    for number in 1..=HANDOVERS {
        let before = wall_second();
        wait_until(DEADLINE, "a second to begin", || wall_second() != before);
        let second = wall_second();
        speak(&old, PORT + 2 * number);
        scene.cluster.delete(old);
        old = holder(number);
        speak(&old, PORT + 2 * number + 1);
        if wall_second() == second {
            return all;
        }
    }
    panic!("no address passed on within a second in {HANDOVERS} tries");
}

/// Whom rows of a server name as the other end of a talk, and what they come to there and back.
fn peers_of(rows: &[NetworkFlow], talk: &Talk) -> (Vec<String>, [Total; 2]) {
    let mut words = Vec::new();
    let mut totals = [Total::default(); 2];
    for row in rows.iter().filter(|row| is_owned(row) && ends(row).0.pod.starts_with("server-")) {
        let ways = [talk.server, talk.server.reply()];
        if let Some(way) = ways.iter().position(|flow| *flow == key(row)) {
            totals[way].add(row.packets, row.bytes);
            words.push(who(&ends(row).1));
        }
    }
    (words, totals)
}

#[test]
fn a_five_tuple_that_outlives_its_holder_is_split_and_never_misnamed() {
    need!(@check NEEDS);
    let scene = Scene::start(one_node(), Auto);
    let server = scene.cluster.simple("shop/server", 1);
    let first = scene.cluster.pod(PodPlan::new("shop/first", 1).number(99));
    scene.wait_links(1, 2);
    let before = from_port(&first, &server, PORT, 5);
    let far = |peer: &str| End::pod(&server, Auto, peer);
    scene.expect_own(&heard(Auto, &before, &far(&by_address(&first))));
    // Whatever is said of these rows from now on is looked at below.
    scene.begin_anew();
    in_a_later_second();
    scene.cluster.delete(first);
    let second = scene.cluster.pod(PodPlan::new("shop/second", 1).number(99));
    scene.wait_links(1, 2);
    let after = from_port(&second, &server, PORT, 7);
    assert_eq!(before.client, after.client, "not even the 5-tuple tells them apart");
    let both = before.there.packets + after.there.packets;
    let of_server = |row: &NetworkFlow| {
        key(row) == before.server && row.direction == "ingress" && ends(row).0.pod == "server"
    };
    let mut rows = Vec::new();
    wait_until(DEADLINE, "all packets to be answered", || {
        rows = scene.flows(1).into_iter().filter(of_server).collect();
        rows.iter().map(|row| row.packets).sum::<u64>() == both
    });
    // Packets of the interval in which the holder changed may be either's, so they are nobody's.
    for row in &rows {
        let (_, peer) = ends(row);
        let right = match (peer.pod.as_str(), peer.reason.as_str()) {
            ("first", _) => row.packets == before.there.packets,
            ("second", _) | ("", "address_ambiguous") => row.packets == after.there.packets,
            _ => false,
        };
        assert!(right, "{row:?}");
    }
    let split = rows.iter().filter(|row| row.end_reason == "peer_changed").count();
    assert_eq!((rows.len(), split), (2, 1), "{rows:?}");
    scene.assert_complete();
}

#[test]
fn the_address_of_a_completed_job_is_its_next_holders() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let scene = Scene::start(one_node(), capture);
        let server = scene.cluster.simple("shop/server", 1);
        let job = PodPlan::new("shop/once-abcde", 1).number(77).owner(&Owner::new("Job", "once"));
        let job = scene.cluster.pod(job);
        scene.wait_links(1, 2);
        let before = from_port(&job, &server, PORT, 2);
        let far = End::pod(&server, capture, &by_address(&job));
        let own = said(capture, &before, &End::pod(&job, capture, &by_address(&server)), None);
        scene.expect_own(&heard(capture, &before, &far));
        scene.expect_own(&own);
        // The object stays, its address with it.
        scene.cluster.announce(&job, Stage::Succeeded);
        drop(job);
        let next = scene.cluster.pod(PodPlan::new("shop/next", 1).number(77));
        scene.wait_links(1, 2);
        let after = from_port(&next, &server, PORT + 1, 3);
        let past = End::pod(&server, capture, "pod shop/once-abcde address_reused");
        let mut rows = heard(capture, &before, &past);
        rows.extend(heard(capture, &after, &End::pod(&server, capture, &by_address(&next))));
        rows.extend(own);
        scene.expect_own(&rows);
        assert!(scene.cluster.api.store().get("pods", "shop", "once-abcde").is_some());
        scene.assert_complete();
    }
}
