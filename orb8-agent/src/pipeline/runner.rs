//! The thread that moves events from the sources through the stages.
//!
//! It sleeps until a source's descriptor is readable, a source is due, or it is told to stop; with
//! nothing due it sleeps without a timer. A source that fails is counted, told and asked again
//! later; nothing a source or an exporter does ends the thread.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::clock::Clock;
use crate::event::{DrainMark, Event, Notice, Severity, Told, Volume};
use crate::pipeline::enricher::{EnrichedEvent, EventEnricher};
use crate::pipeline::exporter::EventExporter;
use crate::pipeline::filter::{EventFilter, Verdict};
use crate::pipeline::ledger::Ledger;
use crate::pipeline::processor::{EventProcessor, Output};
use crate::pipeline::source::{BATCH, EventSource, SourceError};

/// A source that failed is left alone for this long, so that a broken one costs nothing.
const RETRY: Duration = Duration::from_secs(1);

/// Events that stages handle under one lock: they and their rows stay in the core's cache between the
/// stages, and queries wait for no more.
const AT_ONCE: usize = 256;

/// The ledger, shared with whoever shows it.
pub type SharedLedger = Arc<Mutex<Ledger>>;

/// Takes the lock; a panic elsewhere does not make the figures unreadable.
pub fn lock(ledger: &SharedLedger) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What events pass through, in this order.
#[derive(Default)]
pub struct Stages {
    /// All must keep an event.
    pub filters: Vec<Box<dyn EventFilter>>,
    /// Each may add something.
    pub enrichers: Vec<Box<dyn EventEnricher>>,
    /// Each sees every event.
    pub processors: Vec<Box<dyn EventProcessor>>,
    /// Each is told everything.
    pub exporters: Vec<Box<dyn EventExporter>>,
}

impl fmt::Debug for Stages {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Stages")
            .field("filters", &self.filters.len())
            .field("enrichers", &self.enrichers.len())
            .field("processors", &self.processors.len())
            .field("exporters", &self.exporters.len())
            .finish()
    }
}

/// Moves events through the stages; separate from the thread so that it can be driven by hand.
#[derive(Debug)]
pub struct Mover {
    stages: Stages,
    ledger: SharedLedger,
    epoch: u32,
    enriched: Vec<EnrichedEvent>,
    output: Output,
}

impl Mover {
    /// A mover through these stages.
    #[must_use]
    pub fn new(stages: Stages, ledger: SharedLedger) -> Self {
        Self { stages, ledger, epoch: 0, enriched: Vec::new(), output: Output::default() }
    }

    /// Moves all events of the batch and leaves it empty.
    pub fn move_all(&mut self, batch: &mut Vec<Event>) {
        for event in batch.drain(..) {
            match event {
                Event::Notice(notice) => {
                    self.flush();
                    self.output.told.push(Told::Notice(notice));
                }
                Event::Drained(_) => {
                    self.enriched.push(EnrichedEvent::plain(event));
                    self.close_drain();
                }
                Event::Flow(_) | Event::Count(_) | Event::Released(_) | Event::Packet(_) => {
                    self.take(event);
                }
            }
        }
        self.flush();
        // A burst may have grown it far beyond what batches need.
        batch.shrink_to(4 * BATCH);
    }

    /// Ends the work: processors tell what they hold, exporters hand over what they have queued.
    pub fn finish(&mut self, time_ns: u64, deadline: Instant) {
        self.flush();
        for processor in &mut self.stages.processors {
            processor.finish(time_ns, &mut self.output);
        }
        self.flush();
        for exporter in &mut self.stages.exporters {
            exporter.finish(deadline);
        }
    }

    fn take(&mut self, event: Event) {
        let counted = volume(&event);
        if matches!(event, Event::Flow(_)) {
            self.output.tally.events += 1;
        }
        for filter in &mut self.stages.filters {
            match filter.filter(&event) {
                Verdict::Keep => {}
                Verdict::Drop(reason) => {
                    self.output.tally.filter(reason, counted);
                    return;
                }
            }
        }
        self.output.tally.counted.add(counted);
        self.enriched.push(EnrichedEvent::plain(event));
        if self.enriched.len() >= AT_ONCE {
            self.flush();
        }
    }

    /// Hands the events over; the last one ends a drain, so the ledger is closed with them.
    fn close_drain(&mut self) {
        self.process();
        let Some(Event::Drained(report)) = self.enriched.pop().map(|enriched| enriched.event)
        else {
            return;
        };
        self.enriched.clear();
        self.epoch = self.epoch.wrapping_add(1);
        let losses = {
            let mut ledger = lock(&self.ledger);
            ledger.apply(&mut self.output.tally);
            ledger.close_drain(&report)
        };
        self.output.told.extend(losses.into_iter().map(Told::Loss));
        self.output.told.push(Told::Drained(DrainMark {
            time_ns: report.time_ns,
            epoch: self.epoch,
            lines_in_use: report.lines_in_use,
        }));
        self.export();
    }

    fn flush(&mut self) {
        self.process();
        self.enriched.clear();
        lock(&self.ledger).apply(&mut self.output.tally);
        self.export();
    }

    fn process(&mut self) {
        if self.enriched.is_empty() {
            return;
        }
        if let [processor] = &mut self.stages.processors[..] {
            processor.spare(&mut self.enriched);
        }
        for event in self.enriched.iter_mut().filter(|event| event.wanted) {
            for enricher in &mut self.stages.enrichers {
                enricher.enrich(event);
            }
        }
        for processor in &mut self.stages.processors {
            processor.process(&self.enriched, &mut self.output);
        }
    }

    fn export(&mut self) {
        if self.output.told.is_empty() {
            return;
        }
        for exporter in &mut self.stages.exporters {
            exporter.export(&self.output.told);
        }
        self.output.told.clear();
    }

    fn tell(&mut self, notice: Notice) {
        self.output.told.push(Told::Notice(notice));
        self.export();
    }
}

fn volume(event: &Event) -> Volume {
    match event {
        Event::Count(count) => Volume { packets: count.packets, bytes: count.bytes },
        Event::Flow(_)
        | Event::Released(_)
        | Event::Drained(_)
        | Event::Packet(_)
        | Event::Notice(_) => Volume::default(),
    }
}

struct Slot {
    source: Box<dyn EventSource>,
    /// Set after a failure.
    retry_at: Option<Instant>,
}

struct Runner {
    slots: Vec<Slot>,
    mover: Mover,
    clock: Arc<dyn Clock>,
    stop: Arc<Stop>,
    batch: Vec<Event>,
}

#[derive(Debug)]
struct Stop {
    asked: AtomicBool,
    deadline: Mutex<Option<Instant>>,
    wake: OwnedFd,
}

/// The running pipeline.
#[derive(Debug)]
pub struct Handle {
    stop: Arc<Stop>,
    ended: Receiver<io::Result<()>>,
}

/// Why a pipeline did not stop as asked.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// It was still busy at the deadline; what it had not handed over is lost.
    #[error("the pipeline was still busy at the shutdown deadline")]
    Deadline,
    /// The thread panicked.
    #[error("the pipeline thread panicked; please report this with the log above")]
    Panicked,
    /// It could not wait for its sources.
    #[error("the pipeline could not wait for its sources: {0}")]
    Wait(#[source] io::Error),
}

/// Starts the thread `pipeline`. `on_end` is called when it ends, for whatever reason.
///
/// # Errors
/// The thread or its wake-up descriptor could not be made.
pub fn spawn(
    sources: Vec<Box<dyn EventSource>>,
    mover: Mover,
    clock: Arc<dyn Clock>,
    on_end: impl FnOnce() + Send + 'static,
) -> io::Result<Handle> {
    let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let stop = Arc::new(Stop { asked: AtomicBool::new(false), deadline: Mutex::new(None), wake });
    let slots = sources.into_iter().map(|source| Slot { source, retry_at: None }).collect();
    let mut runner = Runner { slots, mover, clock, stop: Arc::clone(&stop), batch: Vec::new() };
    let (sender, ended) = sync_channel(1);
    let guard = OnEnd(Some(Box::new(on_end)));
    thread::Builder::new().name("pipeline".to_owned()).spawn(move || {
        let _guard = guard;
        let result = runner.run();
        // Nobody listens if the agent gave up waiting.
        drop(runner);
        sender.try_send(result).ok();
    })?;
    Ok(Handle { stop, ended })
}

struct OnEnd(Option<Box<dyn FnOnce() + Send>>);

impl Drop for OnEnd {
    fn drop(&mut self) {
        if let Some(on_end) = self.0.take() {
            on_end();
        }
    }
}

impl Handle {
    /// Asks the pipeline to finish and waits for it until the deadline.
    ///
    /// # Errors
    /// See [`StopError`].
    pub fn stop(self, deadline: Instant) -> Result<(), StopError> {
        *self.stop.deadline.lock().unwrap_or_else(PoisonError::into_inner) = Some(deadline);
        self.stop.asked.store(true, Ordering::Release);
        // The counter cannot overflow: it is written once.
        rustix::io::write(&self.stop.wake, &1_u64.to_ne_bytes())
            .map_err(|error| StopError::Wait(error.into()))?;
        let left = deadline.saturating_duration_since(Instant::now());
        match self.ended.recv_timeout(left) {
            Ok(result) => result.map_err(StopError::Wait),
            Err(RecvTimeoutError::Timeout) => Err(StopError::Deadline),
            Err(RecvTimeoutError::Disconnected) => Err(StopError::Panicked),
        }
    }
}

impl Runner {
    fn run(&mut self) -> io::Result<()> {
        while !self.stop.asked.load(Ordering::Acquire) {
            let ready = self.wait()?;
            let now = self.clock.instant();
            for index in 0..self.slots.len() {
                if ready & (1 << index) != 0 || self.is_due(index, now) {
                    self.collect(index, now);
                }
            }
        }
        self.finish();
        Ok(())
    }

    fn is_due(&self, index: usize, now: Instant) -> bool {
        let slot = &self.slots[index];
        match slot.retry_at {
            Some(retry_at) => retry_at <= now,
            None => slot.source.wakeup().due.is_some_and(|due| due <= now),
        }
    }

    /// Sleeps until something is ready; gives the sources whose descriptor is, as bits.
    fn wait(&self) -> io::Result<u64> {
        let mut fds = vec![PollFd::from_borrowed_fd(self.stop.wake.as_fd(), PollFlags::IN)];
        let mut owners = Vec::with_capacity(self.slots.len());
        let mut due: Option<Instant> = None;
        for (index, slot) in self.slots.iter().enumerate() {
            let wakeup = slot.source.wakeup();
            let next = slot.retry_at.or(wakeup.due);
            due = [due, next].into_iter().flatten().min();
            if let (None, Some(fd)) = (slot.retry_at, wakeup.fd) {
                fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
                owners.push(index);
            }
        }
        let timeout = due.map(|due| timespec(due.saturating_duration_since(self.clock.instant())));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(0),
            Err(error) => return Err(error.into()),
        }
        let ready = fds[1..].iter().zip(owners).filter(|(fd, _)| !fd.revents().is_empty());
        Ok(ready.fold(0, |bits, (_, index)| bits | (1 << index)))
    }

    fn collect(&mut self, index: usize, now: Instant) {
        let slot = &mut self.slots[index];
        let result = slot.source.collect(now, &mut self.batch);
        slot.retry_at = result.is_err().then(|| now + RETRY);
        let name = slot.source.name();
        // What was collected before a failure still counts.
        self.mover.move_all(&mut self.batch);
        self.note(name, result);
    }

    fn note(&mut self, source: &'static str, result: Result<(), SourceError>) {
        let notice = match result {
            Ok(()) => {
                if !lock(&self.mover.ledger).source_succeeded(source) {
                    return;
                }
                let message = format!("source {source} can be read again");
                Notice { severity: Severity::Info, code: "source_recovered", message }
            }
            Err(error) => {
                let message = error.to_string();
                if !lock(&self.mover.ledger).source_failed(source, message.clone()) {
                    return;
                }
                Notice { severity: Severity::Error, code: "source_failed", message }
            }
        };
        self.mover.tell(notice);
    }

    fn finish(&mut self) {
        let deadline = *self.stop.deadline.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = deadline.unwrap_or_else(Instant::now);
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            let result = slot.source.finish(&mut self.batch);
            let name = slot.source.name();
            self.mover.move_all(&mut self.batch);
            self.note(name, result);
        }
        self.mover.finish(self.clock.monotonic_ns(), deadline);
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
