//! As many subscribers as an agent takes, all but one of which never read.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use orb8_proto::v1::{StreamEventsRequest, event, flow_event};

use super::bed::{Bed, connect, connect_narrowly, of_ring, options, runtime, wait};
use super::figures::{Figures, SubscriberAccount};
use super::{Load, Options, Turn};
use crate::flood::{BATCH, Flood, Small};
use crate::link::{Veth, VethOptions};

/// Subscribers that never read; with the one that does, as many as there may be.
const STALLED: usize = 63;
/// The same for an agent that is not built for users, which takes ten times as long to fill what lies
/// between it and a subscriber.
const FEW_STALLED: usize = 15;
/// The events that its queues hold; also in the short form, which is over before a whole queue is full.
const SHORT_QUEUE: usize = 2_048;
/// Flows that begin in a second.
const RATE: f64 = 3_000.0;
/// Time between two updates of a flow for the one that reads: they would be another load.
const NO_UPDATES_MS: u32 = 3_600_000;
/// Flows that begin before: more than what 64 KiB and a few buffers hold.
const FILLING: u32 = 1_024;
/// How long events may take to a subscriber that reads.
const PATIENCE: Duration = Duration::from_secs(20);
/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(50);

pub(super) fn run(turn: &Turn<'_>) -> anyhow::Result<Figures> {
    let link = Veth::quiet(VethOptions::default());
    let options = options(&turn.options.agent, &link);
    let Options { release, quick, .. } = *turn.options;
    let stalled = if release { STALLED } else { FEW_STALLED };
    let options = if release && !quick {
        options
    } else {
        options.env("ORB8_BROADCAST_CHANNEL_SIZE", SHORT_QUEUE)
    };
    let bed = Bed::start(link, &options)?;
    turn.overload(bed, |bed| load(bed, stalled, turn.load))
}

/// Starts of flows that the one who reads has been told of.
#[derive(Default)]
struct Reader {
    starts: AtomicU64,
    over: AtomicBool,
}

fn load(bed: &Bed, stalled: usize, time: Duration) -> anyhow::Result<Load> {
    let reader = Reader::default();
    let (leave, until) = sync_channel::<()>(0);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| bed.link.near.netns.enter(|| read(&reader)));
        let stall = move || stall(stalled, &until);
        let stalling = scope.spawn(move || bed.link.near.netns.enter(stall));
        let load = under_load(bed, stalled, time, &reader);
        // Also if something failed: nobody waits for us any longer.
        reader.over.store(true, Ordering::Relaxed);
        drop(leave);
        let told = [reading.join(), stalling.join()];
        let mut load = load?;
        for end in told {
            let end = end.map_err(|_told| anyhow::anyhow!("a subscriber panicked"))?;
            load.faults.extend(end.err().map(|error| format!("a subscriber: {error:#}")));
        }
        Ok(load)
    })
}

fn under_load(bed: &Bed, stalled: usize, time: Duration, reader: &Reader) -> anyhow::Result<Load> {
    wait("all subscribers", || Ok(bed.status()?.subscribers.len() == stalled + 1))?;
    let mut faults = Vec::new();
    if stalled == STALLED && has_room(bed)? {
        faults.push(format!("there was room for more than {} subscribers", STALLED + 1));
    }
    // What lies between the agent and those who do not read is filled first.
    let filling = send(bed, 0, Duration::ZERO, FILLING);
    wait("the first flows to be told", || Ok(reader.starts.load(Ordering::Relaxed) >= filling))?;
    let from = Instant::now();
    let flows = filling + send(bed, FILLING, time, 0);
    let lost = told_all(bed, flows, reader, &mut faults)?;
    let subscribers = at_rest(bed)?;
    let of_reader = subscribers.iter().filter(|one| one.lost == 0).count();
    if subscribers.len() - of_reader == 0 {
        faults.push("no subscriber stalled, so nothing was shown".to_owned());
    }
    if of_reader == 0 {
        faults.push("the one who read lost events, too".to_owned());
    }
    if lost > 0 {
        faults.push(format!("{lost} starts of flows did not reach the one who read"));
    }
    Ok(Load { from: Some(from), flows: Some(flows), subscribers, faults, ..Load::default() })
}

/// Whether there is room for one more.
fn has_room(bed: &Bed) -> anyhow::Result<bool> {
    bed.ask(async |mut client| {
        Ok(client.stream_events(StreamEventsRequest::default()).await.is_ok())
    })
}

/// Begins flows at the rate, from one number on, for so long and at least so many; how many.
fn send(bed: &Bed, first: u32, time: Duration, least: u32) -> u64 {
    let mut flood = Flood::open(&bed.link.far, &bed.link.near);
    let batch = u32::try_from(BATCH).unwrap_or(u32::MAX);
    let (mut number, mut sent) = (0, 0);
    let start = Instant::now();
    while start.elapsed() < time || number < least {
        let due = start + Duration::from_secs_f64(f64::from(number) / RATE);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let flows = first + number..first + number + batch;
        sent += flood.send(flows.map(Small::unique)).packets;
        number += batch;
    }
    sent
}

/// Waits until the one who reads has been told of all flows; how many starts it never was, without
/// those that the kernel's ring had no room for.
fn told_all(
    bed: &Bed,
    flows: u64,
    reader: &Reader,
    faults: &mut Vec<String>,
) -> anyhow::Result<u64> {
    let end = Instant::now() + PATIENCE;
    loop {
        let ledger = bed.status()?.event_ledger.context("an event ledger")?;
        let in_ring = of_ring(&ledger.lost);
        let told = reader.starts.load(Ordering::Relaxed);
        if told + in_ring >= flows {
            return Ok(0);
        }
        if Instant::now() > end {
            faults.push(format!("{in_ring} events were lost in the ring"));
            return Ok(flows - told - in_ring);
        }
        std::thread::sleep(PAUSE);
    }
}

/// What the agent says of each, once that adds up, or will not.
fn at_rest(bed: &Bed) -> anyhow::Result<Vec<SubscriberAccount>> {
    let end = Instant::now() + PATIENCE;
    loop {
        let all = super::bed::subscribers(&bed.status()?);
        let adds_up = |one: &SubscriberAccount| {
            one.offered == one.delivered + one.filtered + one.lost + one.queued
        };
        if all.iter().all(adds_up) || Instant::now() > end {
            return Ok(all);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Reads until it is over.
fn read(reader: &Reader) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        let mut client = connect().await?;
        let request =
            StreamEventsRequest { update_interval_ms: NO_UPDATES_MS, ..Default::default() };
        let mut stream = client.stream_events(request).await?.into_inner();
        while !reader.over.load(Ordering::Relaxed) {
            let next = tokio::time::timeout(PAUSE, stream.message());
            let Ok(event) = next.await else { continue };
            let event = event?.context("the stream ended")?;
            if let Some(event::Payload::Flow(flow)) = event.payload
                && flow.r#type == i32::from(flow_event::Type::Start)
            {
                reader.starts.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    })
}

/// Subscribes, each on a connection of its own, and does nothing more until it is told to leave.
fn stall(count: usize, until: &Receiver<()>) -> anyhow::Result<()> {
    let runtime = runtime()?;
    let streams = runtime.block_on(async {
        let mut streams = Vec::new();
        for _ in 0..count {
            let mut client = connect_narrowly().await?;
            let request = StreamEventsRequest::default();
            streams.push(client.stream_events(request).await?.into_inner());
        }
        anyhow::Ok(streams)
    })?;
    // The runtime stands still, and with it all that would read: only the kernel takes what comes.
    let _left = until.recv();
    drop(streams);
    Ok(())
}
