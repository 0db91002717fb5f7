//! Tests of the subscribers' books, order and losses.

use std::time::Duration;

use orb8_proto::v1::event::Payload;

use super::*;
use crate::event::{FlowRecord, Notice, PacketRecord, Severity};
use crate::export::feed::PacketAsk;
use crate::network::table::blank;
use crate::pipeline::losses;
use crate::testing::udp;

/// Wants flows of odd numbers; numbers its messages by flow id.
struct Odd;

impl Wants for Odd {
    fn wants(&mut self, told: &Told) -> bool {
        match told {
            Told::FlowStart(flow) | Told::FlowEnd(flow) => flow.flow_id % 2 == 1,
            _ => true,
        }
    }
}

impl View for Odd {
    fn event(&self, told: &Told) -> Option<v1::Event> {
        let payload = match told {
            Told::FlowStart(flow) => return Some(event(flow.flow_id.cast_signed(), None)),
            Told::Packet(record) => return Some(event(record.packet.time_ns.cast_signed(), None)),
            Told::Loss(loss) => Payload::Loss(crate::export::wire::loss(loss)),
            other => panic!("{other:?}"),
        };
        Some(event(0, Some(payload)))
    }

    /// Three parts of two updates each.
    fn updates(&mut self, cursor: &mut Cursor, out: &mut Vec<v1::Event>) {
        for _ in 0..2 {
            out.push(event(1_000 + i64::try_from(cursor.row).unwrap(), None));
            cursor.row += 1;
        }
        cursor.done = cursor.row == 6;
    }
}

fn event(time_ns: i64, payload: Option<Payload>) -> v1::Event {
    v1::Event { node_name: String::new(), time_ns, payload }
}

fn start(flow_id: u64) -> Told {
    Told::FlowStart(FlowRecord { flow_id, ..blank(udp(1)) })
}

fn packet(time_ns: u64, packets: u32) -> Told {
    sampled(time_ns, packets, 1)
}

fn sampled(time_ns: u64, packets: u32, weight: u16) -> Told {
    let packet =
        orb8_common::network::PacketEvent { time_ns, packets, weight, ..Default::default() };
    Told::Packet(Box::new(PacketRecord { packet, flow: blank(udp(1)) }))
}

fn mark(epoch: u32, time_ns: u64) -> Told {
    Told::Drained(DrainMark { time_ns, epoch, lines_in_use: 0 })
}

fn subscribe(hub: &Arc<Hub>, queue: usize, packet_rate: Option<u32>) -> Subscription {
    let packets = packet_rate.map(|rate| PacketAsk { filter: Default::default(), rate });
    let selected = Selected { wants: Box::new(Odd), view: Box::new(Odd), packets };
    let terms = Terms { peer: "test".to_owned(), queue, interval_ns: 1_000 };
    hub.subscribe(selected, terms, None).unwrap()
}

/// Takes messages until none is there: numbers, and losses as text.
async fn take(subscription: &mut Subscription) -> Vec<String> {
    let mut taken = Vec::new();
    loop {
        // Updates are gathered on another thread, which takes its time and must not be cut off.
        let Subscription { items, ready, cursor, .. } = &*subscription;
        let comes = !items.is_empty() || !ready.is_empty() || cursor.is_some();
        let patience = if comes { Duration::from_secs(20) } else { Duration::ZERO };
        let next = tokio::time::timeout(patience, subscription.next());
        let Ok(Some(event)) = next.await else { return taken };
        taken.push(match event.payload {
            Some(Payload::Loss(loss)) => {
                format!("{} {} {}e {}p", loss.stage, loss.reason, loss.events, loss.packets)
            }
            _ => event.time_ns.to_string(),
        });
    }
}

fn books(hub: &Hub) -> (u64, u64, u64, u64, u64) {
    let summary = &hub.summaries()[0];
    let SubscriberSummary { offered, delivered, filtered, lost, queued, .. } = *summary;
    assert_eq!(offered, delivered + filtered + lost + queued);
    (offered, delivered, filtered, lost, queued)
}

#[tokio::test]
async fn a_subscriber_gets_what_it_wants_in_order() {
    let hub = Hub::shared();
    let mut subscription = subscribe(&hub, 16, None);
    hub.exporter().export(&[start(1), start(2), start(3)]);
    assert_eq!(books(&hub), (3, 0, 1, 0, 2));
    assert_eq!(take(&mut subscription).await, ["1", "3"]);
    assert_eq!(books(&hub), (3, 2, 1, 0, 0));
}

#[tokio::test]
async fn a_slow_subscriber_loses_its_own_and_is_told_first() {
    let hub = Hub::shared();
    let mut slow = subscribe(&hub, 2, None);
    let mut quick = subscribe(&hub, 16, None);
    hub.exporter().export(&[start(1), start(3), start(5), start(7)]);
    assert_eq!(books(&hub), (4, 0, 0, 2, 2));
    assert_eq!(take(&mut slow).await, ["subscriber queue_full 2e 0p", "1", "3"]);
    assert_eq!(take(&mut quick).await, ["1", "3", "5", "7"]);
    assert_eq!(hub.lost(), 2);
    drop(slow);
    assert_eq!(hub.lost(), 2, "it is remembered");
    assert_eq!(hub.summaries().len(), 1);
}

#[test]
fn an_event_is_in_memory_once_however_many_wait_for_it() {
    let hub = Hub::shared();
    let mut all: Vec<_> = (0..3).map(|_| subscribe(&hub, 4, None)).collect();
    hub.exporter().export(&[start(1)]);
    let held: Vec<Arc<Told>> = all
        .iter_mut()
        .map(|subscription| match subscription.items.try_recv() {
            Ok(Item::Told(told)) => told,
            _ => panic!("an event waits"),
        })
        .collect();
    assert!(held.iter().all(|told| Arc::ptr_eq(told, &held[0])));
    assert_eq!(size_of::<Item>(), 16, "what a quarter of a million times may be there");
    assert!(size_of::<Told>() <= 160, "and what each of them is, see governor.md");
}

#[test]
fn of_many_subscribers_each_has_less_room_and_of_few_none_has() {
    let lost = |subscribers: usize, events: u64| {
        let hub = Hub::shared();
        let _all: Vec<_> = (0..subscribers).map(|_| subscribe(&hub, 64, None)).collect();
        let told: Vec<_> = (0..events).map(|n| start(2 * n + 1)).collect();
        hub.exporter().export(&told);
        let summaries = hub.summaries();
        for one in &summaries {
            assert_eq!(one.offered, one.delivered + one.filtered + one.lost + one.queued);
            assert_eq!(one.lost, summaries[0].lost);
        }
        summaries[0].lost
    };
    assert_eq!((lost(FULL_QUEUES, 64), lost(FULL_QUEUES, 65)), (0, 1));
    assert_eq!((lost(32, 32), lost(32, 33)), (0, 1));
    assert_eq!((lost(MAX_SUBSCRIBERS, 16), lost(MAX_SUBSCRIBERS, 20)), (0, 4));
}

#[tokio::test]
async fn what_waits_for_all_is_bounded_in_whatever_order_subscribers_stall() {
    const ROOM: u64 = 64;
    let hub = Hub::shared();
    let waiting = |hub: &Hub| hub.summaries().iter().map(|one| one.queued).sum::<u64>();
    let mut stalled = Vec::new();
    for arrived in 1..=MAX_SUBSCRIBERS as u64 {
        stalled.push(subscribe(&hub, 64, None));
        hub.exporter().export(&(0..2 * ROOM).map(|n| start(2 * n + 1)).collect::<Vec<_>>());
        let full = arrived.min(FULL_QUEUES as u64);
        assert_eq!(waiting(&hub), full * ROOM + (arrived - full) * ROOM / 4);
    }
    assert_eq!(waiting(&hub), 28 * ROOM);
    assert_eq!(hub.waiting.load(Ordering::Relaxed), 28 * ROOM);
    stalled.truncate(15);
    assert_eq!(hub.waiting.load(Ordering::Relaxed), 15 * ROOM, "who leaves makes room");
    let mut late = subscribe(&hub, 64, None);
    hub.exporter().export(&(0..ROOM).map(|n| start(2 * n + 1)).collect::<Vec<_>>());
    assert_eq!(hub.waiting.load(Ordering::Relaxed), 16 * ROOM);
    take(&mut late).await;
    assert_eq!(hub.waiting.load(Ordering::Relaxed), 15 * ROOM, "and who catches up");
}

#[tokio::test]
async fn a_packet_that_is_lost_takes_with_it_what_it_stands_for() {
    let hub = Hub::shared();
    let mut slow = subscribe(&hub, 1, Some(100));
    hub.exporter().export(&[sampled(1, 1, 1), sampled(2, 1, 8), sampled(3, 3, 2)]);
    assert_eq!(take(&mut slow).await, ["subscriber queue_full 2e 14p", "1"]);
}

#[tokio::test]
async fn updates_come_after_what_was_told_before_and_in_parts() {
    let hub = Hub::shared();
    let mut subscription = subscribe(&hub, 16, None);
    hub.exporter().export(&[start(1), mark(1, 10_000), start(3)]);
    let mut taken = Vec::new();
    while taken.len() < 8 {
        let next = tokio::time::timeout(Duration::from_secs(20), subscription.next()).await;
        taken.push(next.unwrap().unwrap().time_ns);
    }
    assert_eq!(taken, [1, 1000, 1001, 1002, 1003, 1004, 1005, 3]);
    assert_eq!(books(&hub), (8, 8, 0, 0, 0));
}

#[tokio::test]
async fn ticks_come_at_the_subscribers_interval() {
    let hub = Hub::shared();
    let mut subscription = subscribe(&hub, 16, None);
    let mut exporter = hub.exporter();
    let mut ticks = |times: &[u64]| {
        exporter.export(&times.iter().map(|time| mark(1, *time)).collect::<Vec<_>>());
        let ticks = std::iter::from_fn(|| subscription.items.try_recv().ok()).count();
        subscription.counters.tick_waits.store(false, Ordering::Relaxed);
        ticks
    };
    assert_eq!(ticks(&[10_000]), 1);
    assert_eq!(ticks(&[10_500, 10_899]), 0, "too early");
    assert_eq!(ticks(&[10_950]), 1, "a little early is in time");
}

#[tokio::test]
async fn one_tick_waits_for_a_subscriber_that_stalls_and_the_next_comes_when_it_was_taken() {
    let hub = Hub::shared();
    let mut stalled = subscribe(&hub, 16, None);
    let in_queue = |hub: &Hub| {
        let subscribers = hub.lock();
        let queue = &subscribers.list[0].queue;
        queue.max_capacity() - queue.capacity()
    };
    for drain in 1..=20 {
        hub.exporter().export(&[mark(drain, 10_000 * u64::from(drain))]);
    }
    assert_eq!(in_queue(&hub), 1);
    assert_eq!(take(&mut stalled).await.len(), 6, "the updates of one tick");
    hub.exporter().export(&[mark(21, 300_000)]);
    assert_eq!(in_queue(&hub), 1);
}

#[tokio::test]
async fn packets_go_only_to_who_asked_and_only_at_its_rate() {
    let hub = Hub::shared();
    let mut plain = subscribe(&hub, 16, None);
    let mut watching = subscribe(&hub, 16, Some(2));
    let second = SECOND_NS;
    hub.exporter().export(&[packet(1, 1), packet(2, 1), sampled(3, 4, 5), packet(second + 1, 1)]);
    assert_eq!(
        take(&mut watching).await,
        ["packet_view rate_limit 0e 20p", "1", "2", "1000000001"]
    );
    assert!(take(&mut plain).await.is_empty());
    assert_eq!(books(&hub), (0, 0, 0, 0, 0));
    let summary = &hub.summaries()[1];
    assert_eq!((summary.offered, summary.delivered, summary.filtered), (4, 3, 1));
}

#[tokio::test]
async fn the_kernels_skipped_packets_are_told_at_the_next_drain() {
    struct Skipping(Arc<[AtomicU64; 2]>);
    impl PacketWatch for Skipping {
        fn skipped(&self) -> u64 {
            self.0[0].load(Ordering::Relaxed)
        }
        fn sampled(&self) -> u64 {
            self.0[1].load(Ordering::Relaxed)
        }
    }
    let hub = Hub::shared();
    let skipped: Arc<[AtomicU64; 2]> = Arc::default();
    let packets = Some(PacketAsk { filter: Default::default(), rate: 9 });
    let selected = Selected { wants: Box::new(Odd), view: Box::new(Odd), packets };
    let terms = Terms { peer: String::new(), queue: 16, interval_ns: 1 };
    let watch = Box::new(Skipping(Arc::clone(&skipped)));
    let mut subscription = hub.subscribe(selected, terms, Some(watch)).unwrap();
    let mut told = Vec::new();
    for (drain, over_rate, sampled) in [(1, 5, 0), (2, 5, 3), (3, 9, 1), (4, 9, 3), (5, 10, 7)] {
        skipped[0].store(over_rate, Ordering::Relaxed);
        skipped[1].store(sampled, Ordering::Relaxed);
        hub.exporter().export(&[mark(drain, 1_000_000 * u64::from(drain))]);
        let mut updates = 0;
        while updates < 6 {
            match subscription.next().await.unwrap().payload {
                Some(Payload::Loss(loss)) => told.push((drain, loss.reason, loss.packets)),
                _ => updates += 1,
            }
        }
    }
    let told: Vec<_> = told.iter().map(|(drain, why, count)| (*drain, &**why, *count)).collect();
    let (rate, sampled) = ("rate_limit", "sampled");
    let all = [(1, rate, 5), (2, sampled, 3), (3, rate, 4), (5, rate, 1), (5, sampled, 4)];
    assert_eq!(told, all);
}

#[tokio::test]
async fn places_are_bounded_and_a_closed_hub_ends_its_streams() {
    let hub = Hub::shared();
    let mut held: Vec<_> = (0..MAX_SUBSCRIBERS).map(|_| subscribe(&hub, 4, None)).collect();
    let full = || {
        let selected = Selected { wants: Box::new(Odd), view: Box::new(Odd), packets: None };
        let terms = Terms { peer: String::new(), queue: 4, interval_ns: 1 };
        hub.subscribe(selected, terms, None).unwrap_err()
    };
    assert_eq!(full(), SubscribeError::Full);
    held.truncate(1);
    let mut exporter = hub.exporter();
    exporter.export(&[start(1)]);
    exporter.finish(Instant::now());
    assert_eq!(held[0].next().await.unwrap().time_ns, 1, "what was queued is delivered");
    assert!(held[0].next().await.is_none());
    assert_eq!(full(), SubscribeError::Closed);
}

#[test]
fn notices_and_losses_concern_everybody() {
    let hub = Hub::shared();
    let _subscription = subscribe(&hub, 16, None);
    let notice = Notice { severity: Severity::Info, code: "test", message: String::new() };
    let loss = losses::of_events("ring", "ring_full", 1);
    hub.exporter().export(&[Told::Notice(notice), Told::Loss(loss)]);
    assert_eq!(books(&hub), (2, 0, 0, 0, 2));
}
