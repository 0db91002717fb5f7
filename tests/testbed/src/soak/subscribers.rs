//! As many subscribers as an agent takes, all but one of which never read.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use orb8_proto::v1::{StreamEventsRequest, Subscriber, event, flow_event};
use tokio::sync::oneshot;
use tonic::{Code, Status};

use super::bed::{Bed, account_of, connect, connect_narrowly, of_ring, options, runtime};
use super::figures::Figures;
use super::flows::paced;
use super::{Load, SHORT, Turn};
use crate::flood::{Flood, Small};
use crate::link::{Veth, VethOptions};
use crate::wait::wait;

/// Subscribers that never read; with the one that does, as many as there may be.
const STALLED: usize = 63;
/// The same for an agent that is not built for users, which takes ten times as long to fill what lies
/// between it and a subscriber.
const FEW_STALLED: usize = 15;
/// The events that queues hold where the load is over before one of the default's length is full.
const SHORT_QUEUE: usize = 2_048;
/// Flows that begin in a second of such a load.
const SHORT_RATE: f64 = 3_000.0;
/// The same in a longer one: the ends of a second's flows are told at once, and each of 64 subscribers has
/// room for 2 048 events.
const RATE: f64 = 1_000.0;
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
    let stalled = if turn.options.release { STALLED } else { FEW_STALLED };
    // Drains that a small budget keeps apart tell more at once than a queue holds.
    let options = options.env("ORB8_CPU_BUDGET", "100%");
    let (options, rate) = if turn.load < SHORT {
        (options.env("ORB8_BROADCAST_CHANNEL_SIZE", SHORT_QUEUE), SHORT_RATE)
    } else {
        (options, RATE)
    };
    let bed = Bed::start(link, &options)?;
    let plan = Plan { stalled, rate, time: turn.load };
    turn.overload(bed, |bed| load(bed, plan))
}

/// Who subscribes besides the one who reads, and what they are told of.
#[derive(Clone, Copy)]
struct Plan {
    stalled: usize,
    /// Flows that begin in a second.
    rate: f64,
    time: Duration,
}

/// Starts of flows that the one who reads has been told of.
#[derive(Default)]
struct Reader {
    starts: AtomicU64,
    over: AtomicBool,
}

fn load(bed: &Bed, plan: Plan) -> anyhow::Result<Load> {
    let reader = Reader::default();
    let (leave, until) = oneshot::channel::<()>();
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| bed.link.near.netns.enter(|| read(&reader)));
        // It comes first and alone, so that it is known by its address.
        let peer = only_subscriber(bed);
        let stall = move || stall(plan.stalled, until);
        let stalling = scope.spawn(move || bed.link.near.netns.enter(stall));
        let load = peer.and_then(|peer| under_load(bed, plan, &reader, &peer));
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

/// The address of the one who subscribes, once there is one.
fn only_subscriber(bed: &Bed) -> anyhow::Result<String> {
    let mut peer = None;
    wait("the one who reads", || {
        peer = bed.status()?.subscribers.pop().map(|one| one.peer);
        Ok(peer.is_some())
    })?;
    peer.context("a subscriber")
}

fn under_load(bed: &Bed, plan: Plan, reader: &Reader, peer: &str) -> anyhow::Result<Load> {
    let Plan { stalled, rate, time } = plan;
    wait("all subscribers", || Ok(bed.status()?.subscribers.len() == stalled + 1))?;
    let mut faults = Vec::new();
    if stalled == STALLED && has_room(bed)? {
        faults.push(format!("there was room for more than {} subscribers", STALLED + 1));
    }
    // What lies between the agent and those who do not read is filled first.
    let filling = send(bed, rate, 0..FILLING, Duration::ZERO);
    wait("the first flows to be told", || Ok(reader.starts.load(Ordering::Relaxed) >= filling))?;
    let from = Instant::now();
    let flows = filling + send(bed, rate, FILLING..FILLING, time);
    let to = Instant::now();
    let lost = told_all(bed, flows, reader, &mut faults)?;
    let all = at_rest(bed)?;
    faults.extend(against(&all, peer, stalled));
    if lost > 0 {
        faults.push(format!("{lost} starts of flows did not reach the one who read"));
    }
    let subscribers = all.iter().map(account_of).collect();
    let (from, to, flows) = (Some(from), Some(to), Some(flows));
    Ok(Load { from, to, flows, subscribers, faults, ..Load::default() })
}

/// What is wrong with those who watched: the one at `peer` read and may have lost nothing; all others,
/// so many, did not, and must have.
fn against(all: &[Subscriber], peer: &str, stalled: usize) -> Vec<String> {
    let (reading, others): (Vec<_>, Vec<_>) = all.iter().partition(|one| one.peer == peer);
    let mut faults = Vec::new();
    match reading.as_slice() {
        [one] if one.lost == 0 => {}
        [one] => faults.push(format!("the one who read lost {} events, too", one.lost)),
        _ => faults.push("the one who read is not among the subscribers any more".to_owned()),
    }
    if others.len() != stalled {
        faults.push(format!("{} of {stalled} who did not read are left", others.len()));
    }
    let lost_nothing = others.iter().filter(|one| one.lost == 0).count();
    if lost_nothing > 0 {
        faults.push(format!("{lost_nothing} of {} who did not read lost nothing", others.len()));
    }
    faults
}

/// Whether there is room for one more.
fn has_room(bed: &Bed) -> anyhow::Result<bool> {
    let one_more = bed.ask(async |mut client| {
        Ok(client.stream_events(StreamEventsRequest::default()).await.map(drop))
    });
    room(one_more?)
}

/// Whether a subscriber was let in; only that there is no room is a reason not to.
fn room(let_in: Result<(), Status>) -> anyhow::Result<bool> {
    match let_in {
        Ok(()) => Ok(true),
        Err(status) if status.code() == Code::ResourceExhausted => Ok(false),
        Err(status) => Err(status).context("one more subscriber"),
    }
}

/// Begins flows at the rate: these, and those that follow for so long; how many.
fn send(bed: &Bed, rate: f64, first: Range<u32>, time: Duration) -> u64 {
    let mut flood = Flood::open(&bed.link.far, &bed.link.near);
    let (start, least) = (Instant::now(), u64::try_from(first.len()).unwrap_or(0));
    let more = |sent| start.elapsed() < time || sent < least;
    let from = first.start;
    paced(&mut flood, rate, u32::MAX - from, more, |number| Small::unique(from + number))
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
fn at_rest(bed: &Bed) -> anyhow::Result<Vec<Subscriber>> {
    let end = Instant::now() + PATIENCE;
    loop {
        let all = bed.status()?.subscribers;
        let adds_up =
            |one: &Subscriber| one.offered == one.delivered + one.filtered + one.lost + one.queued;
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

/// Subscribes, each on a connection of its own, and reads nothing until it is told to leave.
fn stall(count: usize, until: oneshot::Receiver<()>) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        let mut streams = Vec::new();
        for _ in 0..count {
            let mut client = connect_narrowly().await?;
            let request = StreamEventsRequest::default();
            streams.push(client.stream_events(request).await?.into_inner());
        }
        // The connections live on, and answer when the agent asks whether they do: only what the
        // streams may hold is taken in.
        let _left = until.await;
        anyhow::Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One who read, at the first address, and two who did not.
    fn three() -> Vec<Subscriber> {
        let one =
            |peer: &str, lost| Subscriber { peer: peer.to_owned(), lost, ..Default::default() };
        vec![one("[::1]:1", 0), one("[::1]:2", 7), one("[::1]:3", 9)]
    }

    #[test]
    fn one_who_reads_and_others_who_lose_are_as_wanted() {
        assert_eq!(against(&three(), "[::1]:1", 2), [""; 0]);
    }

    #[test]
    fn each_stalled_subscriber_must_lose_and_the_reader_must_not() {
        let mut all = three();
        all[2].lost = 0;
        assert_eq!(against(&all, "[::1]:1", 2), ["1 of 2 who did not read lost nothing"]);
        let mut all = three();
        (all[0].lost, all[1].lost) = (3, 0);
        assert_eq!(
            against(&all, "[::1]:1", 2),
            ["the one who read lost 3 events, too", "1 of 2 who did not read lost nothing"]
        );
    }

    #[test]
    fn subscribers_that_the_agent_no_longer_has_are_missed() {
        assert_eq!(against(&three()[..2], "[::1]:1", 2), ["1 of 2 who did not read are left"]);
        assert_eq!(
            against(&three()[1..], "[::1]:1", 2),
            ["the one who read is not among the subscribers any more"]
        );
    }

    #[test]
    fn only_an_exhausted_resource_is_a_lack_of_room() {
        assert!(room(Ok(())).expect("it was let in"));
        assert!(!room(Err(Status::resource_exhausted("64 subscribers"))).expect("a refusal"));
        room(Err(Status::unavailable("no agent"))).expect_err("that says nothing of room");
    }
}
