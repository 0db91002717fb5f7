//! An agent that knows pods from an API server: one that changes all the time, and one that stays
//! while a hundred thousand flows do.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use orb8_proto::v1::condition::{Field, Side};
use orb8_proto::v1::{Condition, FlowFilter, PortRange, Ports, QueryFlowsRequest};

use super::bed::{Bed, options};
use super::figures::{Figures, MIB};
use super::flows::paced;
use super::{Load, SHORT, Turn};
use crate::agent::AgentOptions;
use crate::api::ApiServer;
use crate::api::fault::Failure;
use crate::api::pod::Stage;
use crate::flood::{BATCH, Flood, Small};
use crate::link::{Veth, VethOptions};
use crate::pods::{self, PODS, address, pod};
use crate::wait::wait;

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
/// An agent spares an API that failed for up to 30 s, and begins to list anew within 10 s.
const API_SPARED: Duration = Duration::from_secs(40);
/// The flows by which names are looked at go to this port.
const ASKED: u16 = 4_444;

/// An agent that is to ask an API server.
fn asking(options: AgentOptions, api: &ApiServer) -> AgentOptions {
    pods::settings(api).iter().fold(options, |options, (name, value)| options.env(name, value))
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
    let api = pods::api(&link.near.netns);
    let options = asking(options(&turn.options.agent, &link), &api);
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
        let to = Instant::now();
        let faults = fewer(bed.status()?.active_flows).into_iter().chain(nameless(bed)?).collect();
        let (from, to, flows) = (Some(from), Some(to), Some(FLOWS.into()));
        Ok(Load { from, to, flows, faults, ..Load::default() })
    })?;
    figures.memory.growth_limit = (turn.load >= SHORT).then_some(GROWTH_LIMIT);
    if turn.options.release {
        figures.memory.limit = STEADY_LIMIT;
    }
    Ok(figures)
}

/// That there are not as many flows at the end as at the beginning.
fn fewer(active: u64) -> Option<String> {
    let wanted = u64::from(FLOWS);
    (active < wanted).then(|| format!("only {active} of {wanted} flows were live at the end"))
}

/// What is wrong with the names of a thousand flows.
fn nameless(bed: &Bed) -> anyhow::Result<Option<String>> {
    let answer = bed.query(QueryFlowsRequest { limit: 1_000, ..Default::default() })?;
    ensure!(answer.flows.len() == 1_000, "{} flows in an answer", answer.flows.len());
    Ok(pods::all_named(&answer.flows).err().map(|error| error.to_string()))
}

/// Pods that come and go while they talk, and an API that fails.
pub(super) fn churn(turn: &Turn<'_>) -> anyhow::Result<Figures> {
    let link = Veth::quiet(VethOptions::default());
    let api = pods::api(&link.near.netns);
    let options = asking(options(&turn.options.agent, &link), &api);
    let mut lives = vec![0; PODS as usize];
    let bed = Bed::start(link, &options)?;
    wait_pods(&bed, PODS)?;
    let mut figures = turn.overload(bed, |bed| {
        let over = AtomicBool::new(false);
        let changes = std::thread::scope(|scope| {
            scope.spawn(|| talk(bed, &over));
            let changes = change(&api, &mut lives, turn.load);
            over.store(true, Ordering::Relaxed);
            changes
        });
        let to = Instant::now();
        // What was told before is known when this one is.
        api.put(pod(PODS, 0).object(Stage::Running));
        wait_pods(bed, PODS + 1)?;
        let mut faults: Vec<String> = misnamed(bed, &lives)?.into_iter().collect();
        if changes < u64::from(PODS) {
            faults.push(format!("only {changes} changes of the API"));
        }
        Ok(Load { to: Some(to), flows: Some(u64::from(PODS) * 2), faults, ..Load::default() })
    })?;
    figures.recovery.limit += API_SPARED.as_secs_f64();
    Ok(figures)
}

/// Packets from all pods, until it is over.
fn talk(bed: &Bed, over: &AtomicBool) {
    let mut flood = Flood::open(&bed.link.far, &bed.link.near);
    let more = |_| !over.load(Ordering::Relaxed);
    paced(&mut flood, RATE, PODS, more, |number| small(number, 20_000, 8_080));
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
        let number = pods::number(ip)?;
        let wanted = pod(number, *lives.get(number as usize)?).name;
        let source = flow.source.clone().unwrap_or_default();
        (source.pod != wanted).then(|| {
            let (is, reason) = (source.pod, source.reason);
            format!("{ip} is {wanted}, not {is:?} ({reason})")
        })
    });
    Ok(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_that_ended_under_the_load_are_a_fault() {
        assert_eq!(fewer(u64::from(FLOWS)), None);
        let told = fewer(99_999).expect("one is missing");
        assert_eq!(told, "only 99999 of 100000 flows were live at the end");
    }
}
