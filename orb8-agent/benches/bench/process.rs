//! The agent as a process that sees little, or very much at once: idle cost, the time from a packet to
//! a subscriber, and as many flow starts as it has to take.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use hdrhistogram::Histogram;
use orb8_proto::v1::{
    Condition, FlowFilter, PortRange, Ports, StreamEventsRequest, condition, event, flow_event,
};
use orb8_testbed::packet;

use crate::bed::Bed;
use crate::packets::LINK_HEADER;
use crate::report::{Amount, Goal, Report, Row};

/// The flows go to this port and the next four.
const FIRST_PORT: u16 = 20_000;

/// All rows of this file.
pub(crate) fn run(report: &mut Report) {
    let names = ["agent_idle_cpu", "memory_idle", "memory_idle_rss", "memory_idle_maps"];
    report.measure(&names, idle);
    report.measure(&["latency_p99_ms", "latency_p50_ms"], latency);
    let names = [
        "events_in_per_s",
        "events_in_lost",
        "events_out_per_s",
        "events_out_lost",
        "events_unexplained",
    ];
    report.measure(&names, events);
}

fn frames(bed: &Bed, flows: u32) -> Vec<Vec<u8>> {
    (0..flows).map(|n| udp(n).frame(bed.link.far.mac, bed.link.near.mac, &[])).collect()
}

/// All frames were sent once, and nothing else.
fn compare(report: &mut Report, what: &str, bed: &Bed, frames: &[Vec<u8>]) -> anyhow::Result<()> {
    let bytes = frames.iter().map(|frame| (frame.len() - LINK_HEADER) as u64).sum();
    report.compare(what, Amount { packets: frames.len() as u64, bytes }, bed).map(drop)
}

fn udp(n: u32) -> packet::Packet {
    let port = u16::try_from(1024 + n % 50_000).unwrap_or(1024);
    let payload = packet::udp(port, FIRST_PORT + u16::try_from(n % 5).unwrap_or(0), 24);
    let host = u8::try_from(n / 50_000 % 250).unwrap_or(0);
    let src = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1 + host));
    packet::ip(src, IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)), &payload)
}

/// An agent that sees nothing.
fn idle(report: &mut Report) -> anyhow::Result<Vec<Row>> {
    let bed = Bed::quiet(&[])?;
    std::thread::sleep(Duration::from_secs(2));
    let percent = bed.cpu_percent(Duration::from_secs(if report.quick { 3 } else { 20 }))?;
    let (rss, maps) = bed.memory()?;
    Ok(vec![
        Row::new("agent_idle_cpu", percent, "% of a core", Goal::AtMost(0.3)),
        Row::new("memory_idle", rss + maps, "MiB", Goal::AtMost(25.0)),
        Row::new("memory_idle_rss", rss, "MiB", Goal::None),
        Row::new("memory_idle_maps", maps, "MiB", Goal::None),
    ])
}

fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// From the first packet in the kernel to a flow start at a subscriber, at 1 000 a second.
fn latency(report: &mut Report) -> anyhow::Result<Vec<Row>> {
    let bed = Bed::quiet(&[])?;
    let (socket, frames) = (bed.sender(), frames(&bed, if report.quick { 1_000 } else { 10_000 }));
    let histogram = std::thread::scope(|scope| {
        let receive = scope.spawn(|| receive_starts(&bed, frames.len()));
        std::thread::sleep(Duration::from_secs(1));
        let start = Instant::now();
        for (n, frame) in frames.iter().enumerate() {
            let due = start + Duration::from_millis(n as u64);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            socket.send_frames(std::slice::from_ref(frame));
        }
        receive.join().map_err(|_panic| anyhow::anyhow!("the subscriber panicked"))?
    })?;
    compare(report, "latency_p99_ms", &bed, &frames)?;
    let ms = |q: f64| histogram.value_at_quantile(q) as f64 / 1e6;
    Ok(vec![
        Row::new("latency_p99_ms", ms(0.99), "ms", Goal::AtMost(10.0)),
        Row::new("latency_p50_ms", ms(0.5), "ms", Goal::None),
    ])
}

fn receive_starts(bed: &Bed, count: usize) -> anyhow::Result<Histogram<u64>> {
    bed.ask(async |mut client| {
        let mut stream = client.stream_events(StreamEventsRequest::default()).await?.into_inner();
        let mut histogram = Histogram::new(3)?;
        while (histogram.len() as usize) < count {
            let next = tokio::time::timeout(Duration::from_secs(15), stream.message());
            let event = next.await.context("no event for 15 s")??.context("the stream ended")?;
            if let Some(event::Payload::Flow(flow)) = event.payload
                && flow.r#type == i32::from(flow_event::Type::Start)
                && let Some(flow) = flow.flow
            {
                let ns = now_ns().saturating_sub(flow.first_seen_ns);
                histogram.record(u64::try_from(ns.max(1)).unwrap_or(1))?;
            }
        }
        Ok(histogram)
    })
}

/// 100 000 flow starts a second into the agent, a fifth of them on to one subscriber.
fn events(report: &mut Report) -> anyhow::Result<Vec<Row>> {
    const RATE: u32 = 100_000;
    let flows = RATE * if report.quick { 2 } else { 6 };
    let bed = Bed::quiet(&[
        ("ORB8_MAX_FLOWS", "1000000".to_owned()),
        ("ORB8_MEMORY_BUDGET", "1024MiB".to_owned()),
    ])?;
    let (socket, frames) = (bed.sender(), frames(&bed, flows));
    let before = bed.status()?.event_ledger.unwrap_or_default();
    let stop = AtomicBool::new(false);
    let (rate, received) = std::thread::scope(|scope| -> anyhow::Result<(f64, u64)> {
        let receive = scope.spawn(|| receive_fifth(&bed, &stop));
        std::thread::sleep(Duration::from_secs(1));
        let start = Instant::now();
        for (n, batch) in frames.chunks(500).enumerate() {
            let due = start + Duration::from_secs_f64(n as f64 * 500.0 / f64::from(RATE));
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            socket.send_frames(batch);
        }
        let rate = f64::from(flows) / start.elapsed().as_secs_f64();
        std::thread::sleep(Duration::from_secs(2));
        stop.store(true, Ordering::Relaxed);
        let received = receive.join().map_err(|_panic| anyhow::anyhow!("subscriber"))??;
        Ok((rate, received))
    })?;
    compare(report, "events_in_per_s", &bed, &frames)?;
    let ledger = bed.status()?.event_ledger.context("an event ledger")?;
    let produced = ledger.produced - before.produced;
    let ring_lost: u64 = ledger.lost.iter().map(|l| l.events).sum();
    let wanted = u64::from(flows / 5);
    let lost = |lost: u64, of: u64| lost as f64 / of.max(1) as f64 * 100.0;
    Ok(vec![
        Row::new("events_in_per_s", rate, "events/s", Goal::AtLeast(99_000.0)),
        Row::new("events_in_lost", lost(ring_lost, produced), "%", Goal::AtMost(0.1)),
        Row::new("events_out_per_s", rate / 5.0, "events/s", Goal::AtLeast(19_800.0)),
        Row::new(
            "events_out_lost",
            lost(wanted.saturating_sub(received), wanted),
            "%",
            Goal::AtMost(0.1),
        ),
        Row::new(
            "events_unexplained",
            ledger.unexplained_events as f64,
            "events",
            Goal::AtMost(0.0),
        ),
    ])
}

/// Subscribes to one of the five ports that the flows of [`events`] spread over; the number of
/// starts received.
fn receive_fifth(bed: &Bed, stop: &AtomicBool) -> anyhow::Result<u64> {
    bed.ask(async |mut client| {
        let port = u32::from(FIRST_PORT);
        let ranges = vec![PortRange { first: port, last: port }];
        let all = vec![Condition {
            side: condition::Side::Destination.into(),
            negate: false,
            field: Some(condition::Field::Port(Ports { ranges })),
        }];
        let request = StreamEventsRequest {
            filter: Some(FlowFilter { all }),
            // Updates would be another load than the one that is asked for.
            update_interval_ms: 3_600_000,
            ..Default::default()
        };
        let mut stream = client.stream_events(request).await?.into_inner();
        let mut starts = 0;
        while !stop.load(Ordering::Relaxed) {
            let next = tokio::time::timeout(Duration::from_millis(500), stream.message());
            let Ok(event) = next.await else { continue };
            if let Some(event::Payload::Flow(flow)) = event?.context("the stream ended")?.payload {
                starts += u64::from(flow.r#type == i32::from(flow_event::Type::Start));
            }
        }
        Ok(starts)
    })
}
