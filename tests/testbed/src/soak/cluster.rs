//! An agent that knows pods from an API server: one that changes all the time, and one that stays
//! while a hundred thousand flows do.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use orb8_proto::v1::condition::{Field, Side};
use orb8_proto::v1::{Condition, FlowFilter, NetworkFlow, PortRange, Ports, QueryFlowsRequest};

use super::bed::{Bed, options, wait};
use super::figures::{Figures, MIB};
use super::{Load, Turn};
use crate::agent::AgentOptions;
use crate::api::ApiServer;
use crate::api::fault::Failure;
use crate::api::object;
use crate::api::pod::{Pod, Stage};
use crate::flood::{BATCH, Flood, Small};
use crate::link::{Veth, VethOptions};

/// Pods of another node.
const PODS: u32 = 500;
/// Live flows of the steady load.
const FLOWS: u32 = 100_000;
/// Time between two packets of such a flow, besides that for sending.
const ROUND: Duration = Duration::from_millis(700);
/// Memory with so many named flows, in an agent as users have it.
const STEADY_LIMIT: u64 = 64 * MIB;
/// What memory may grow by while the load stays the same.
const GROWTH_LIMIT: u64 = 2 * MIB;
/// Packets a second while the API changes, on a flow of each pod.
const RATE: f64 = 20_000.0;
/// Time between two changes of the API, and between two of its faults.
const CHANGE: Duration = Duration::from_millis(1);
const FAULT: Duration = Duration::from_millis(700);
/// The flows by which names are looked at go to this port.
const ASKED: u16 = 4_444;

/// The address of a pod.
fn address(pod: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 100, 0, 1)) + pod)
}

/// An API server beside the agent, and an agent that is to ask it.
fn cluster(turn: &Turn<'_>, link: &Veth) -> (ApiServer, AgentOptions) {
    let api = ApiServer::inside(&link.near.netns, Ipv4Addr::LOCALHOST.into());
    for (name, last) in [("elsewhere", 10), ("testbed", 11)] {
        let ranges = [format!("10.{}.0.0/16", 90 + last)];
        api.put(object::node(name, &[IpAddr::from([172, 30, 0, last])], &ranges, "zone-a"));
    }
    let options = options(&turn.options.agent, link)
        .env("ORB8_KUBERNETES", "on")
        .env("KUBECONFIG", api.kubeconfig("agent").display());
    (api, options)
}

/// A pod that has an address; which of all that have had it, `life` says.
fn pod(number: u32, life: u32) -> Pod {
    let (namespace, name) = (format!("team-{}", number % 20), format!("web-{number}-{life}"));
    let mut pod = Pod::new(&namespace, &name, "elsewhere");
    pod.ips = vec![address(number).into()];
    pod
}

fn wait_pods(bed: &Bed, pods: u32) -> anyhow::Result<()> {
    wait("an agent in step with the API", || {
        let kubernetes = bed.status()?.kubernetes.unwrap_or_default();
        Ok(kubernetes.state == "synced" && kubernetes.pods == u64::from(pods))
    })
}

/// A hundred thousand flows with names, and nothing changes.
pub(super) fn steady(turn: &Turn<'_>) -> anyhow::Result<Figures> {
    let link = Veth::quiet(VethOptions::default());
    let (api, options) = cluster(turn, &link);
    for number in 0..PODS {
        api.put(pod(number, 0).object(Stage::Running));
    }
    // A machine that stands still for a moment must not end the flows.
    let bed = Bed::start(link, &options.env("ORB8_FLOW_TIMEOUT_SECS", 4))?;
    wait_pods(&bed, PODS)?;
    let mut figures = turn.overload(bed, |bed| {
        let mut flood = Flood::open(&bed.link.far, &bed.link.near);
        let mut round = || {
            for first in (0..FLOWS).step_by(BATCH) {
                let flows = first..FLOWS.min(first + u32::try_from(BATCH).unwrap_or(u32::MAX));
                flood.send(flows.map(|flow| Small {
                    src: address(flow % PODS),
                    sport: 20_000 + u16::try_from(flow / PODS).unwrap_or(u16::MAX),
                    dport: 8_080,
                    syn: false,
                }));
            }
            std::thread::sleep(ROUND);
        };
        wait("all flows", || {
            round();
            Ok(bed.status()?.active_flows >= u64::from(FLOWS))
        })?;
        let from = Instant::now();
        while from.elapsed() < turn.load {
            round();
        }
        let faults = nameless(bed)?.into_iter().collect();
        Ok(Load { from: Some(from), flows: Some(FLOWS.into()), faults, ..Load::default() })
    })?;
    // Two seconds are too few to tell growth from a beginning.
    figures.memory.growth_limit = (!turn.options.quick).then_some(GROWTH_LIMIT);
    if turn.options.release {
        figures.memory.limit = STEADY_LIMIT;
    }
    Ok(figures)
}

/// A flow that lacks its name: without names memory would be another figure.
fn nameless(bed: &Bed) -> anyhow::Result<Option<String>> {
    let answer = bed.query(QueryFlowsRequest { limit: 1_000, ..Default::default() })?;
    ensure!(answer.flows.len() == 1_000, "{} flows in an answer", answer.flows.len());
    let named = |flow: &NetworkFlow| {
        flow.source.as_ref().is_some_and(|source| source.pod.starts_with("web-"))
    };
    let found = answer.flows.iter().find(|flow| !named(flow));
    Ok(found.map(|flow| format!("a flow has no name: {} to {}", flow.src_ip, flow.dst_ip)))
}

/// Pods that come and go while they talk, and an API that fails.
pub(super) fn churn(turn: &Turn<'_>) -> anyhow::Result<Figures> {
    let link = Veth::quiet(VethOptions::default());
    let (api, options) = cluster(turn, &link);
    let mut lives = vec![0; PODS as usize];
    for number in 0..PODS {
        api.put(pod(number, 0).object(Stage::Running));
    }
    let bed = Bed::start(link, &options)?;
    wait_pods(&bed, PODS)?;
    turn.overload(bed, |bed| {
        let over = AtomicBool::new(false);
        let changes = std::thread::scope(|scope| {
            scope.spawn(|| talk(bed, &over));
            let changes = change(&api, &mut lives, turn.load);
            over.store(true, Ordering::Relaxed);
            changes
        });
        // What was told before is known when this one is.
        api.put(pod(PODS, 0).object(Stage::Running));
        wait_pods(bed, PODS + 1)?;
        let mut faults: Vec<String> = misnamed(bed, &lives)?.into_iter().collect();
        if changes < u64::from(PODS) {
            faults.push(format!("only {changes} changes of the API"));
        }
        Ok(Load { flows: Some(u64::from(PODS) * 2), faults, ..Load::default() })
    })
}

/// Packets from all pods, until it is over.
fn talk(bed: &Bed, over: &AtomicBool) {
    let mut flood = Flood::open(&bed.link.far, &bed.link.near);
    let batch = u32::try_from(BATCH).unwrap_or(u32::MAX);
    let (mut number, start) = (0_u32, Instant::now());
    while !over.load(Ordering::Relaxed) {
        let due = start + Duration::from_secs_f64(f64::from(number) / RATE);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let from = |number: u32| small(number % PODS, 20_000, 8_080);
        flood.send((number..number + batch).map(from));
        number += batch;
    }
}

fn small(pod: u32, sport: u16, dport: u16) -> Small {
    Small { src: address(pod), sport, dport, syn: false }
}

/// Replaces pod after pod for so long: each address goes to a new pod, now and then before the API has
/// told of the old one's end. How many changes that were.
fn change(api: &ApiServer, lives: &mut [u32], time: Duration) -> u64 {
    let (start, mut changes, mut faults) = (Instant::now(), 0, 0_u32);
    while start.elapsed() < time {
        for number in 0..PODS {
            let life = &mut lives[number as usize];
            let (old, new) = (pod(number, *life), pod(number, *life + 1));
            *life += 1;
            let first = if number.is_multiple_of(10) { Stage::Running } else { Stage::Starting };
            api.put(new.object(first));
            api.delete("pods", &old.namespace, &old.name);
            api.put(new.object(Stage::Running));
            changes += 3;
            if start.elapsed() > FAULT * (faults + 1) {
                misbehave(api, faults);
                faults += 1;
            }
            std::thread::sleep(CHANGE);
        }
    }
    api.heal();
    changes
}

/// One fault after another: it hangs up, it forgets, it fails, it says that it is too much.
fn misbehave(api: &ApiServer, number: u32) {
    api.heal();
    match number % 4 {
        0 => {}
        1 => api.compact(),
        2 => api.fail(Failure::Status(500)),
        _ => api.fail(Failure::TooMany(1)),
    }
    api.cut();
}

/// A new flow of each pod, and the first that does not bear the name of who has the address now.
fn misnamed(bed: &Bed, lives: &[u32]) -> anyhow::Result<Option<String>> {
    let mut flood = Flood::open(&bed.link.far, &bed.link.near);
    for first in (0..PODS).step_by(BATCH) {
        let pods = first..PODS.min(first + u32::try_from(BATCH).unwrap_or(u32::MAX));
        flood.send(pods.map(|number| small(number, 30_000, ASKED)));
    }
    let ranges = vec![PortRange { first: ASKED.into(), last: ASKED.into() }];
    let condition = Condition {
        side: Side::Destination.into(),
        negate: false,
        field: Some(Field::Port(Ports { ranges })),
    };
    let request = QueryFlowsRequest {
        limit: PODS * 2,
        filter: Some(FlowFilter { all: vec![condition] }),
        ..Default::default()
    };
    let mut flows = Vec::new();
    wait("a flow of each pod", || {
        flows = bed.query(request.clone())?.flows;
        Ok(flows.len() == PODS as usize)
    })?;
    let wrong = flows.iter().find_map(|flow| {
        let ip: Ipv4Addr = flow.src_ip.parse().ok()?;
        let number = u32::from(ip) - u32::from(address(0));
        let wanted = pod(number, lives[number as usize]).name;
        let source = flow.source.clone().unwrap_or_default();
        (source.pod != wanted).then(|| {
            let (is, reason) = (source.pod, source.reason);
            format!("{ip} is {wanted}, not {is:?} ({reason})")
        })
    });
    Ok(wrong)
}
