//! Hands what is told to the subscribers of `StreamEvents`.
//!
//! The pipeline's side only tries: a subscriber whose queue is full loses that event, which is
//! counted and told to it before the next one. Updates are not queued: a tick goes into the queue
//! and the subscriber reads the table when it gets there, so a slow one skips updates and slows
//! nobody.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use orb8_proto::v1;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::datapath::PacketWatch;
use crate::event::{DrainMark, LossRecord, Told, Volume};
use crate::export::feed::{Cursor, Selected, View, Wants};
use crate::pipeline::exporter::EventExporter;

mod watch;

use watch::OpenWatch;

/// Subscribers at one time.
pub const MAX_SUBSCRIBERS: usize = 64;
const SECOND_NS: u64 = 1_000_000_000;

/// Subscribers whose queues may all be full. While more waits than these hold, each has room for its
/// part of that: what waits in all queues is never more than [`FULL_QUEUES`] and three quarters of as
/// many again hold, in whatever order subscribers come and stall.
const FULL_QUEUES: usize = 16;

/// What stands in a subscriber's queue: two words, because there may be a quarter of a million of
/// them. An event is one for all who wait for it.
enum Item {
    Told(Arc<Told>),
    Tick(Box<DrainMark>),
}

/// Counters of one subscriber: offered = delivered + filtered + lost + queued.
#[derive(Debug, Default)]
struct Counters {
    offered: AtomicU64,
    delivered: AtomicU64,
    filtered: AtomicU64,
    lost: AtomicU64,
    queued: AtomicU64,
    /// Lost and not told yet.
    untold: AtomicU64,
    /// What the packets among them stand for.
    untold_packets: AtomicU64,
    /// Packets over this subscriber's rate and not told yet.
    over_rate: AtomicU64,
    /// Packets that were sampled away and not told yet.
    sampled: AtomicU64,
    /// A tick is in the queue: one is enough, since it tells of all there is by then.
    tick_waits: AtomicBool,
}

fn bump(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// A subscriber as status shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriberSummary {
    /// Number, from 1.
    pub id: u64,
    /// Address of the client.
    pub peer: String,
    /// Events that happened while it was subscribed.
    pub offered: u64,
    /// Handed to its connection.
    pub delivered: u64,
    /// It did not ask for.
    pub filtered: u64,
    /// Did not fit into its queue.
    pub lost: u64,
    /// Waiting in its queue.
    pub queued: u64,
}

struct Subscriber {
    id: u64,
    peer: String,
    wants: Box<dyn Wants>,
    queue: Sender<Item>,
    /// Events that the queue holds while few wait.
    room: u64,
    /// Events in all queues.
    waiting: Arc<AtomicU64>,
    counters: Arc<Counters>,
    interval_ns: u64,
    next_tick_ns: u64,
    packet_rate: Option<Rate>,
}

/// At most so many packets in each second that begins with a packet.
struct Rate {
    per_second: u64,
    since_ns: u64,
    passed: u64,
}

impl Rate {
    fn admit(&mut self, time_ns: u64, packets: u64) -> bool {
        if time_ns.saturating_sub(self.since_ns) >= SECOND_NS {
            (self.since_ns, self.passed) = (time_ns, 0);
        }
        let admitted = self.passed < self.per_second;
        if admitted {
            self.passed += packets;
        }
        admitted
    }
}

/// All subscribers.
#[derive(Default)]
pub struct Hub {
    subscribers: Mutex<Subscribers>,
    /// Events in all queues.
    waiting: Arc<AtomicU64>,
}

#[derive(Default)]
struct Subscribers {
    list: Vec<Subscriber>,
    last_id: u64,
    /// Lost by subscribers that are gone.
    lost_before: u64,
    closed: bool,
}

impl fmt::Debug for Hub {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Hub").field("subscribers", &self.lock().list.len()).finish()
    }
}

/// Nobody else can subscribe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    /// All places are taken.
    #[error("all {MAX_SUBSCRIBERS} places for subscribers are taken, end another stream first")]
    Full,
    /// The agent is stopping.
    #[error("the agent is stopping")]
    Closed,
}

/// What a subscriber wants besides its selection.
#[derive(Debug)]
pub struct Terms {
    /// Who it is.
    pub peer: String,
    /// Events its queue holds.
    pub queue: usize,
    /// Time between updates of a flow in nanoseconds.
    pub interval_ns: u64,
}

impl Hub {
    /// No subscribers yet.
    #[must_use]
    pub fn shared() -> Arc<Self> {
        Arc::default()
    }

    fn lock(&self) -> MutexGuard<'_, Subscribers> {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a subscriber.
    ///
    /// # Errors
    /// See [`SubscribeError`].
    pub fn subscribe(
        self: &Arc<Self>,
        selected: Selected,
        terms: Terms,
        watch: Option<Box<dyn PacketWatch>>,
    ) -> Result<Subscription, SubscribeError> {
        let watch = watch.map(OpenWatch::new);
        let room = terms.queue.max(1);
        let (queue, items) = channel(room);
        let counters = Arc::new(Counters::default());
        let mut subscribers = self.lock();
        if subscribers.closed {
            return Err(SubscribeError::Closed);
        }
        if subscribers.list.len() >= MAX_SUBSCRIBERS {
            return Err(SubscribeError::Full);
        }
        subscribers.last_id += 1;
        let id = subscribers.last_id;
        let rate = selected.packets.map(|ask| u64::from(ask.rate));
        subscribers.list.push(Subscriber {
            id,
            peer: terms.peer,
            wants: selected.wants,
            queue,
            room: room as u64,
            waiting: Arc::clone(&self.waiting),
            counters: Arc::clone(&counters),
            interval_ns: terms.interval_ns,
            next_tick_ns: 0,
            packet_rate: rate.map(|per_second| Rate { per_second, since_ns: 0, passed: 0 }),
        });
        drop(subscribers);
        Ok(Subscription {
            hub: Arc::clone(self),
            id,
            items,
            counters,
            view: Some(selected.view),
            cursor: None,
            seen_epoch: None,
            ready: VecDeque::new(),
            watch,
        })
    }

    /// The subscribers, in the order of their arrival.
    #[must_use]
    pub fn summaries(&self) -> Vec<SubscriberSummary> {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let summary = |subscriber: &Subscriber| SubscriberSummary {
            id: subscriber.id,
            peer: subscriber.peer.clone(),
            offered: get(&subscriber.counters.offered),
            delivered: get(&subscriber.counters.delivered),
            filtered: get(&subscriber.counters.filtered),
            lost: get(&subscriber.counters.lost),
            queued: get(&subscriber.counters.queued),
        };
        self.lock().list.iter().map(summary).collect()
    }

    /// Events lost by all subscribers, also those that are gone.
    #[must_use]
    pub fn lost(&self) -> u64 {
        let subscribers = self.lock();
        let lost = |subscriber: &Subscriber| subscriber.counters.lost.load(Ordering::Relaxed);
        subscribers.lost_before + subscribers.list.iter().map(lost).sum::<u64>()
    }

    /// The pipeline's side.
    #[must_use]
    pub fn exporter(self: &Arc<Self>) -> HubExporter {
        HubExporter { hub: Arc::clone(self) }
    }

    /// Ends all streams once they have sent what is queued.
    pub fn close(&self) {
        let mut subscribers = self.lock();
        subscribers.closed = true;
        // Their queues end with the senders.
        for subscriber in std::mem::take(&mut subscribers.list) {
            subscribers.lost_before += subscriber.counters.lost.load(Ordering::Relaxed);
        }
    }

    fn remove(&self, id: u64) {
        let mut subscribers = self.lock();
        if let Some(at) = subscribers.list.iter().position(|subscriber| subscriber.id == id) {
            let gone = subscribers.list.remove(at);
            subscribers.lost_before += gone.counters.lost.load(Ordering::Relaxed);
        }
    }
}

impl Subscriber {
    /// Offers an event.
    fn offer(&mut self, event: &mut Shared<'_>) {
        let told = event.told;
        match told {
            Told::Drained(mark) => self.tick(*mark),
            Told::Packet(record) => {
                let Some(rate) = &mut self.packet_rate else { return };
                bump(&self.counters.offered, 1);
                let packets = u64::from(record.packet.packets).max(1);
                let stands_for = packets * u64::from(record.packet.weight.max(1));
                if !self.wants.wants(told) {
                    bump(&self.counters.filtered, 1);
                } else if !rate.admit(record.packet.time_ns, packets) {
                    bump(&self.counters.filtered, 1);
                    bump(&self.counters.over_rate, stands_for);
                } else {
                    self.send(event, stands_for);
                }
            }
            Told::FlowStart(_) | Told::FlowEnd(_) | Told::Notice(_) | Told::Loss(_) => {
                bump(&self.counters.offered, 1);
                if self.wants.wants(told) {
                    self.send(event, 0);
                } else {
                    bump(&self.counters.filtered, 1);
                }
            }
        }
    }

    /// Queues an event that stands for so many packets.
    fn send(&self, event: &mut Shared<'_>, packets: u64) {
        // Before it is sent, so that the other side never takes what is not counted.
        let waiting = self.counters.queued.fetch_add(1, Ordering::Relaxed);
        let all = self.waiting.fetch_add(1, Ordering::Relaxed);
        let most = self.room * FULL_QUEUES as u64;
        let room = if all < most { self.room } else { most / MAX_SUBSCRIBERS as u64 };
        let sent = waiting < room.max(1) && self.queue.try_send(Item::Told(event.share())).is_ok();
        if !sent {
            self.counters.queued.fetch_sub(1, Ordering::Relaxed);
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            bump(&self.counters.lost, 1);
            bump(&self.counters.untold_packets, packets);
            bump(&self.counters.untold, 1);
        }
    }

    fn tick(&mut self, mark: DrainMark) {
        // Drains come a little early or late; a tenth of the interval decides for this one.
        if mark.time_ns + self.interval_ns / 10 < self.next_tick_ns {
            return;
        }
        self.next_tick_ns = mark.time_ns + self.interval_ns;
        // Without room the updates are skipped: the next tick tells the same totals and more.
        if !self.counters.tick_waits.swap(true, Ordering::Relaxed)
            && self.queue.try_send(Item::Tick(Box::new(mark))).is_err()
        {
            self.counters.tick_waits.store(false, Ordering::Relaxed);
        }
    }
}

/// An event that is copied once, if anybody wants it at all.
struct Shared<'a> {
    told: &'a Told,
    copy: Option<Arc<Told>>,
}

impl Shared<'_> {
    fn share(&mut self) -> Arc<Told> {
        Arc::clone(self.copy.get_or_insert_with(|| Arc::new(self.told.clone())))
    }
}

/// The exporter that feeds the subscribers.
#[derive(Debug)]
pub struct HubExporter {
    hub: Arc<Hub>,
}

impl EventExporter for HubExporter {
    fn export(&mut self, told: &[Told]) {
        let mut subscribers = self.hub.lock();
        for told in told {
            let mut event = Shared { told, copy: None };
            for subscriber in &mut subscribers.list {
                subscriber.offer(&mut event);
            }
        }
    }

    fn finish(&mut self, _deadline: Instant) {
        self.hub.close();
    }
}

/// The subscriber's side; unsubscribes when it is dropped.
pub struct Subscription {
    hub: Arc<Hub>,
    id: u64,
    items: Receiver<Item>,
    counters: Arc<Counters>,
    /// Away while updates are gathered.
    view: Option<Box<dyn View>>,
    cursor: Option<Cursor>,
    /// The last drain whose updates were asked for.
    seen_epoch: Option<u32>,
    ready: VecDeque<v1::Event>,
    watch: Option<OpenWatch>,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Subscription").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.hub.remove(self.id);
        // Nobody sends any more, and nobody takes what waits.
        let queued = self.counters.queued.swap(0, Ordering::Relaxed);
        self.hub.waiting.fetch_sub(queued, Ordering::Relaxed);
    }
}

impl Subscription {
    /// Keeps a packet view open for as long as this subscription lives.
    pub fn attend(&mut self, watch: Box<dyn PacketWatch>) {
        self.watch = Some(OpenWatch::new(watch));
    }

    /// The next message; none when the agent stops.
    pub async fn next(&mut self) -> Option<v1::Event> {
        loop {
            if let Some(loss) = self.own_loss() {
                return Some(loss);
            }
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if let Some(cursor) = self.cursor.take() {
                self.gather(cursor).await?;
                continue;
            }
            match self.items.recv().await? {
                Item::Told(told) => {
                    self.counters.queued.fetch_sub(1, Ordering::Relaxed);
                    self.hub.waiting.fetch_sub(1, Ordering::Relaxed);
                    bump(&self.counters.delivered, 1);
                    if let Some(event) = self.view.as_ref()?.event(&told) {
                        return Some(event);
                    }
                }
                Item::Tick(mark) => {
                    self.counters.tick_waits.store(false, Ordering::Relaxed);
                    self.start_updates(*mark);
                }
            }
        }
    }

    fn start_updates(&mut self, mark: DrainMark) {
        let since = self.seen_epoch.unwrap_or(mark.epoch.saturating_sub(1));
        self.seen_epoch = Some(mark.epoch);
        let (until, time_ns) = (mark.epoch, mark.time_ns);
        self.cursor = Some(Cursor { row: 0, since, until, time_ns, done: false });
        if let Some(watch) = &mut self.watch {
            let (skipped, sampled) = watch.take();
            bump(&self.counters.over_rate, skipped);
            bump(&self.counters.sampled, sampled);
        }
    }

    /// Gathers a part of the updates where waiting for the table's lock harms nobody.
    async fn gather(&mut self, mut cursor: Cursor) -> Option<()> {
        let mut view = self.view.take()?;
        let gathered = tokio::task::spawn_blocking(move || {
            let mut events = Vec::new();
            view.updates(&mut cursor, &mut events);
            (view, cursor, events)
        });
        let (view, cursor, events) = gathered.await.ok()?;
        let count = u64::try_from(events.len()).unwrap_or(u64::MAX);
        bump(&self.counters.offered, count);
        bump(&self.counters.delivered, count);
        self.ready.extend(events);
        self.view = Some(view);
        self.cursor = (!cursor.done).then_some(cursor);
        Some(())
    }

    /// What this subscriber did not get since it was told last.
    fn own_loss(&self) -> Option<v1::Event> {
        let Counters { untold, untold_packets, over_rate, sampled, .. } = &*self.counters;
        let taken = |counter: &AtomicU64| counter.swap(0, Ordering::Relaxed);
        let of = |stage, reason, events, packets| LossRecord {
            stage,
            reason,
            volume: Volume { packets, bytes: 0 },
            events,
        };
        let loss = match taken(untold) {
            0 => match taken(over_rate) {
                0 => of("packet_view", "sampled", 0, taken(sampled)),
                packets => of("packet_view", "rate_limit", 0, packets),
            },
            events => of("subscriber", "queue_full", events, taken(untold_packets)),
        };
        if loss.events == 0 && loss.volume.is_empty() {
            return None;
        }
        self.view.as_ref()?.event(&Told::Loss(loss))
    }
}

#[cfg(test)]
mod tests;
