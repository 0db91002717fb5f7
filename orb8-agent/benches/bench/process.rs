//! The agent as a process in a namespace, with real packets: idle cost, memory and queries at
//! 100 000 live flows, events to a subscriber.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use hdrhistogram::Histogram;
use orb8_proto::v1::orbit_agent_service_client::OrbitAgentServiceClient;
use orb8_proto::v1::{
    AgentStatus, Condition, FlowFilter, GetStatusRequest, PortRange, Ports, QueryFlowsRequest,
    StreamEventsRequest, condition, event, flow_event,
};
use orb8_testbed::agent::{AgentOptions, AgentProcess, LISTEN};
use orb8_testbed::link::{Veth, VethOptions};
use orb8_testbed::need::{Need, met};
use orb8_testbed::packet;
use orb8_testbed::raw::RawSocket;
use tonic::transport::{Channel, Endpoint};

use crate::report::{self, Goal, Row};

type Client = OrbitAgentServiceClient<Channel>;

const LIVE_FLOWS: u32 = 100_000;
/// The flows go to this port and the next four.
const FIRST_PORT: u16 = 20_000;
const MIB: f64 = 1024.0 * 1024.0;

/// One measurement; an error is a row too.
type Part = fn() -> anyhow::Result<Vec<Row>>;

/// Measures everything here; a part that fails says so in its rows.
pub(crate) fn run(rows: &mut Vec<Row>) {
    if !met("bench", &[Need::Root, Need::Bpf]) {
        for name in ["agent_idle_cpu", "memory_100k", "query_p99_ms", "events_in_per_s"] {
            push(rows, Row::failed(name, "", "needs root and BPF"));
        }
        return;
    }
    let parts: [(&str, Part); 4] =
        [("idle", idle), ("live", live), ("latency", latency), ("events", events)];
    for (name, part) in parts {
        match part() {
            Ok(measured) => measured.into_iter().for_each(|row| push(rows, row)),
            Err(error) => push(rows, Row::failed(name, "", &format!("{error:#}"))),
        }
    }
}

fn push(rows: &mut Vec<Row>, row: Row) {
    report::print(&row);
    rows.push(row);
}

/// An agent on one end of a link; the other end is quiet.
struct Bed {
    link: Veth,
    agent: AgentProcess,
}

impl Bed {
    fn new(environment: &[(&str, &str)]) -> Self {
        let link = Veth::quiet(VethOptions::default());
        let mut options = AgentOptions::of(env!("CARGO_BIN_EXE_orb8-agent"))
            .env("ORB8_INTERFACES", &link.near.ifname)
            .env("RUST_LOG", "warn");
        for (name, value) in environment {
            options = options.env(name, value);
        }
        let agent = options.start(&link.near.netns);
        let bed = Self { link, agent };
        let attached = |s: &AgentStatus| s.interfaces.iter().any(|i| i.state == "attached");
        while !bed.status().is_ok_and(|s| attached(&s)) {}
        bed
    }

    /// Frames that arrive at the agent's interface.
    fn sender(&self) -> RawSocket {
        RawSocket::open(&self.link.far, self.link.near.mac)
    }

    fn frames(&self, flows: std::ops::Range<u32>) -> Vec<Vec<u8>> {
        flows.map(|n| udp(n).frame(self.link.far.mac, self.link.near.mac, &[])).collect()
    }

    fn ask<T: Send>(
        &self,
        call: impl AsyncFnOnce(Client) -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        self.link.near.netns.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let channel = Endpoint::from_shared(format!("http://{LISTEN}"))?.connect().await?;
                let client = OrbitAgentServiceClient::new(channel);
                call(client.max_decoding_message_size(usize::MAX)).await
            })
        })
    }

    fn status(&self) -> anyhow::Result<AgentStatus> {
        self.ask(async |mut client| Ok(client.get_status(GetStatusRequest {}).await?.into_inner()))
    }

    /// RSS and kernel maps in MiB.
    fn memory(&self) -> anyhow::Result<(f64, f64)> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.agent.pid()))?;
        let kib = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("VmRSS")?;
        let kib: f64 = kib.trim().trim_end_matches(" kB").trim().parse()?;
        let mut maps = 0.0;
        for entry in std::fs::read_dir(format!("/proc/{}/fdinfo", self.agent.pid()))? {
            // A descriptor may be closed meanwhile.
            let text = std::fs::read_to_string(entry?.path()).unwrap_or_default();
            if let Some(bytes) = text.lines().find_map(|l| l.strip_prefix("memlock:"))
                && text.contains("map_id:")
            {
                maps += bytes.trim().parse::<f64>()?;
            }
        }
        let told = self.status()?.memory.context("memory in status")?.map_bytes as f64;
        // Maps that are only mapped have no descriptor, so the agent's own sum is the larger one.
        Ok((kib * 1024.0 / MIB, maps.max(told) / MIB))
    }

    /// User and system seconds of all threads.
    fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.agent.pid()))?;
        let after = stat.rsplit_once(')').context("a command name")?.1;
        let fields: Vec<&str> = after.split_whitespace().collect();
        let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
    }
}

fn udp(n: u32) -> packet::Packet {
    let port = u16::try_from(1024 + n % 50_000).unwrap_or(1024);
    let payload = packet::udp(port, FIRST_PORT + u16::try_from(n % 5).unwrap_or(0), 24);
    let host = u8::try_from(n / 50_000 % 250).unwrap_or(0);
    let src = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1 + host));
    packet::ip(src, IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)), &payload)
}

/// An agent that sees nothing.
fn idle() -> anyhow::Result<Vec<Row>> {
    let bed = Bed::new(&[]);
    let time = Duration::from_secs(20);
    std::thread::sleep(Duration::from_secs(2));
    let (before, start) = (bed.cpu_seconds()?, Instant::now());
    std::thread::sleep(time);
    let percent = (bed.cpu_seconds()? - before) / start.elapsed().as_secs_f64() * 100.0;
    let (rss, maps) = bed.memory()?;
    Ok(vec![
        Row::new("agent_idle_cpu", percent, "% of a core", Goal::AtMost(0.3)),
        Row::new("memory_idle", rss + maps, "MiB", Goal::AtMost(25.0)),
        Row::new("memory_idle_rss", rss, "MiB", Goal::None),
        Row::new("memory_idle_maps", maps, "MiB", Goal::None),
    ])
}

/// 100 000 flows that stay alive, while queries run beside the drains.
fn live() -> anyhow::Result<Vec<Row>> {
    let bed = Bed::new(&[("ORB8_FLOW_TIMEOUT_SECS", "120")]);
    let (socket, frames) = (bed.sender(), bed.frames(0..LIVE_FLOWS));
    socket.send_frames(&frames);
    let deadline = Instant::now() + Duration::from_secs(60);
    while bed.status()?.active_flows < u64::from(LIVE_FLOWS) {
        ensure!(Instant::now() < deadline, "{} flows", bed.status()?.active_flows);
        std::thread::sleep(Duration::from_millis(200));
    }
    let stop = AtomicBool::new(false);
    let (cpu, queries) = std::thread::scope(|scope| {
        scope.spawn(|| {
            // Every flow has a packet in about every drain.
            while !stop.load(Ordering::Relaxed) {
                socket.send_frames(&frames);
                std::thread::sleep(Duration::from_millis(700));
            }
        });
        let measured = measure_live(&bed);
        stop.store(true, Ordering::Relaxed);
        measured
    })?;
    let status = bed.status()?;
    let (rss, maps) = bed.memory()?;
    let ms = |q: f64| queries.value_at_quantile(q) as f64 / 1000.0;
    let loss = status.packet_ledger.map_or(0, |l| l.lost.iter().map(|x| x.packets).sum());
    Ok(vec![
        Row::new("memory_100k", rss + maps, "MiB", Goal::AtMost(64.0)),
        Row::new("memory_100k_rss", rss, "MiB", Goal::None),
        Row::new("agent_cpu_100k", cpu, "% of a core", Goal::None),
        Row::new("query_p99_ms", ms(0.99), "ms", Goal::AtMost(20.0)),
        Row::new("query_p50_ms", ms(0.5), "ms", Goal::None),
        Row::new("packets_lost_100k", loss as f64, "packets", Goal::AtMost(0.0)),
    ])
}

/// CPU without queries over five seconds, then the time of 300 queries in microseconds.
fn measure_live(bed: &Bed) -> anyhow::Result<(f64, Histogram<u64>)> {
    let (before, start) = (bed.cpu_seconds()?, Instant::now());
    std::thread::sleep(Duration::from_secs(5));
    let cpu = (bed.cpu_seconds()? - before) / start.elapsed().as_secs_f64() * 100.0;
    let histogram = bed.ask(async |mut client| {
        let mut histogram = Histogram::new(3)?;
        for _ in 0..300 {
            let start = Instant::now();
            let request = QueryFlowsRequest { limit: 100, ..Default::default() };
            let answer = client.query_flows(request).await?.into_inner();
            histogram.record(start.elapsed().as_micros() as u64)?;
            ensure!(answer.flows.len() == 100, "{} flows", answer.flows.len());
            // Spread over many drains.
            tokio::time::sleep(Duration::from_millis(17)).await;
        }
        Ok(histogram)
    })?;
    Ok((cpu, histogram))
}

fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// From the first packet in the kernel to a flow start at a subscriber, at 1 000 a second.
fn latency() -> anyhow::Result<Vec<Row>> {
    let bed = Bed::new(&[]);
    let (socket, frames) = (bed.sender(), bed.frames(0..10_000));
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
fn events() -> anyhow::Result<Vec<Row>> {
    const RATE: u32 = 100_000;
    const SECONDS: u32 = 6;
    let bed = Bed::new(&[("ORB8_MAX_FLOWS", "1000000"), ("ORB8_FLOW_TIMEOUT_SECS", "60")]);
    let (socket, frames) = (bed.sender(), bed.frames(0..RATE * SECONDS));
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
        let rate = f64::from(RATE * SECONDS) / start.elapsed().as_secs_f64();
        std::thread::sleep(Duration::from_secs(2));
        stop.store(true, Ordering::Relaxed);
        let received = receive.join().map_err(|_panic| anyhow::anyhow!("subscriber"))??;
        Ok((rate, received))
    })?;
    let ledger = bed.status()?.event_ledger.context("an event ledger")?;
    let produced = ledger.produced - before.produced;
    let ring_lost: u64 = ledger.lost.iter().map(|l| l.events).sum();
    let wanted = u64::from(RATE * SECONDS / 5);
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
