//! The agent with many live flows whose pods have names: CPU, memory, queries.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use hdrhistogram::Histogram;
use orb8_proto::v1::QueryFlowsRequest;
use orb8_testbed::link::{Veth, VethOptions};
use orb8_testbed::packet;
use orb8_testbed::pods::{self, PODS, address};

use crate::bed::{Bed, at_interfaces, wait};
use crate::packets::LINK_HEADER;
use crate::report::{Amount, Goal, Report, Row};

/// Time between packets of a flow: each has one in about every drain.
const PAUSE: Duration = Duration::from_millis(700);

/// All rows of this file.
pub(crate) fn run(report: &mut Report) {
    report.measure(&["agent_cpu_10k"], |report| {
        let found = live(report, 10_000, "agent_cpu_10k")?;
        Ok(vec![Row::new("agent_cpu_10k", found.cpu, "% of a core", Goal::AtMost(0.5))])
    });
    let names = [
        "memory_100k",
        "memory_100k_rss",
        "memory_100k_maps",
        "agent_cpu_100k",
        "query_p99_ms",
        "query_p50_ms",
        "packets_lost_100k",
    ];
    report.measure(&names, |report| {
        let found = live(report, 100_000, "agent_cpu_100k")?;
        let ms = |quantile: f64| found.queries.value_at_quantile(quantile) as f64 / 1000.0;
        let (rss, maps) = found.memory;
        Ok(vec![
            Row::new("memory_100k", rss + maps, "MiB", Goal::AtMost(64.0)),
            Row::new("memory_100k_rss", rss, "MiB", Goal::None),
            Row::new("memory_100k_maps", maps, "MiB", Goal::None),
            Row::new("agent_cpu_100k", found.cpu, "% of a core", Goal::AtMost(4.0)),
            Row::new("query_p99_ms", ms(0.99), "ms", Goal::AtMost(10.0)),
            Row::new("query_p50_ms", ms(0.5), "ms", Goal::None),
            Row::new("packets_lost_100k", found.lost, "packets", Goal::AtMost(0.0)),
        ])
    });
}

/// What one run says.
struct Live {
    cpu: f64,
    queries: Histogram<u64>,
    memory: (f64, f64),
    lost: f64,
}

/// The frame of a flow, of which each pod has a share: from a pod to a port of this host.
fn frame(link: &Veth, flow: u32) -> Vec<u8> {
    let port = u16::try_from(20_000 + flow / PODS).unwrap_or(u16::MAX);
    let payload = packet::udp(port, 8_080, 24);
    let packet =
        packet::ip(address(flow % PODS).into(), Ipv4Addr::new(10, 0, 0, 2).into(), &payload);
    packet.frame(link.far.mac, link.near.mac, &[])
}

fn live(report: &mut Report, flows: u32, name: &str) -> anyhow::Result<Live> {
    let link = Veth::quiet(VethOptions::default());
    let api = pods::api(&link.near.netns);
    let mut settings = at_interfaces();
    settings.extend(pods::settings(&api));
    let bed = Bed::start(link, &settings)?;
    wait("the pods' names", || {
        Ok(bed.status()?.kubernetes.is_some_and(|k| k.state == "synced" && k.pods >= PODS.into()))
    })?;
    let frames: Vec<_> = (0..flows).map(|flow| frame(&bed.link, flow)).collect();
    let socket = bed.sender();
    socket.send_frames(&frames);
    bed.wait_flows(flows.into())?;
    let first = bed.query(&QueryFlowsRequest { limit: 1_000, ..Default::default() })?;
    pods::all_named(&first.flows)?;
    let stop = AtomicBool::new(false);
    let (measured, rounds) = std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut rounds = 1_u64;
            while !stop.load(Ordering::Relaxed) {
                socket.send_frames(&frames);
                rounds += 1;
                std::thread::sleep(PAUSE);
            }
            rounds
        });
        let measured = measure(report.quick, &bed);
        stop.store(true, Ordering::Relaxed);
        (measured, sender.join())
    });
    let (cpu, queries) = measured?;
    let packets = rounds.map_err(|_panic| anyhow::anyhow!("the sender"))? * u64::from(flows);
    let memory = bed.memory()?;
    let bytes = packets * (frames[0].len() - LINK_HEADER) as u64;
    let status = report.compare(name, Amount { packets, bytes }, &bed)?;
    ensure!(status.active_flows == u64::from(flows), "{} flows", status.active_flows);
    let lost = status.packet_ledger.map_or(0, |l| l.lost.iter().map(|x| x.packets).sum());
    Ok(Live { cpu, queries, memory, lost: lost as f64 })
}

/// CPU without queries, then the time of queries in microseconds.
fn measure(quick: bool, bed: &Bed) -> anyhow::Result<(f64, Histogram<u64>)> {
    let (seconds, queries) = if quick { (2, 50) } else { (15, 400) };
    let cpu = bed.cpu_percent(Duration::from_secs(seconds))?;
    let histogram = bed.ask(async |mut client| {
        let mut histogram = Histogram::new(3)?;
        for _ in 0..queries {
            let start = Instant::now();
            let request = QueryFlowsRequest { limit: 100, ..Default::default() };
            let answer = client.query_flows(request).await?.into_inner();
            histogram.record(u64::try_from(start.elapsed().as_micros()).context("a time")?)?;
            ensure!(answer.flows.len() == 100, "{} flows", answer.flows.len());
            // Spread over many drains.
            tokio::time::sleep(Duration::from_millis(17)).await;
        }
        Ok(histogram)
    })?;
    Ok((cpu, histogram))
}
