//! The thread that listens to the kernel: the whole table first, then what begins and ends. When
//! messages were lost, and now and then anyway, the whole table again.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::State;
use super::history::History;
use super::message::{Malformed, Message, messages};
use super::socket::{DATAGRAM, Events, Heard, dump};
use super::table::Translations;
use crate::clock::Clock;

/// Translated connections that are held; about 0.25 KiB each.
const MAX_ENTRIES: usize = 32_768;
/// Reading the kernel's table may take this part of a core: afterwards, as many times its own
/// duration pass, and at least [`MIN_REST`].
const REST: u32 = 20;
const MIN_REST: Duration = Duration::from_secs(1);
/// Datagrams that are read before anything else is seen to.
const BATCH: usize = 1024;
/// A kernel that tells nothing is asked again: its modules may be loaded later.
const RETRY: Duration = Duration::from_secs(60);
/// The kernel says nothing when somebody turns its events off, so this is looked at: what was held
/// is believed for so long after.
const LOOK: Duration = Duration::from_secs(5);
/// Of connections that began while nobody listened the kernel may tell no end; the whole table shows
/// which ones are over.
const RENEW: Duration = Duration::from_secs(300);

/// While the table is read, which may take seconds, what is told meanwhile is looked for so often: it
/// is to be read long before a beginning would be told too late.
const LOOK_ASIDE_NS: u64 = 100_000_000;
/// Bytes that are put aside; more waits for the end of the table where the kernel holds it.
const MAX_ASIDE: usize = 8 << 20;

/// Whether the kernel tells of connections, below the root of /proc (kernel's documentation,
/// nf_conntrack-sysctl); of the network namespace of the thread that reads it.
const EVENTS: &str = "sys/net/netfilter/nf_conntrack_events";

/// Bounds of a listener.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bounds {
    /// Connections that are held; none: 32 768.
    pub max_entries: Option<usize>,
    /// Bytes of messages that may wait; none: 8 MiB.
    pub queue_bytes: Option<usize>,
    /// How often the whole table is read, if nothing calls for it before; none: each 5 minutes.
    pub renew: Option<Duration>,
}

/// Listens until it is dropped.
#[derive(Debug)]
pub struct Tracking {
    translations: Translations,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Tracking {
    /// The connections that it hears of.
    #[must_use]
    pub const fn translations(&self) -> &Translations {
        &self.translations
    }
}

impl Drop for Tracking {
    fn drop(&mut self) {
        rustix::io::write(&self.stop, &1_u64.to_ne_bytes()).ok();
        if let Some(thread) = self.thread.take() {
            // A panic of that thread was told when it happened.
            thread.join().ok();
        }
    }
}

/// Starts to listen in the network namespace of the calling thread, whose settings are below
/// `proc`.
///
/// # Errors
/// The thread or what stops it could not be made. That the kernel tells nothing is no error but a
/// state.
pub fn start(bounds: Bounds, proc: &Path, clock: Arc<dyn Clock>) -> io::Result<Tracking> {
    let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let translations = Translations::empty(bounds.max_entries.unwrap_or(MAX_ENTRIES));
    let mut listener = Listener {
        history: History::new(translations.clone()),
        table: translations.clone(),
        stop: Arc::clone(&stop),
        events_file: proc.join(EVENTS),
        queue: bounds.queue_bytes,
        buffer: vec![0; DATAGRAM].into(),
        renew: bounds.renew.unwrap_or(RENEW),
        next_dump: clock.instant(),
        told_ns: 0,
        clock,
    };
    let thread = thread::Builder::new()
        .name("conntrack".to_owned())
        .stack_size(256 * 1024)
        .spawn(move || listener.run())?;
    Ok(Tracking { translations, stop, thread: Some(thread) })
}

struct Listener {
    history: History,
    table: Translations,
    stop: Arc<OwnedFd>,
    events_file: PathBuf,
    queue: Option<usize>,
    buffer: Box<[u8]>,
    clock: Arc<dyn Clock>,
    renew: Duration,
    /// No dump before.
    next_dump: Instant,
    /// The kernel was telling then: a message came, or its setting said so.
    told_ns: u64,
}

/// What there was to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Read {
    /// All that happened until now.
    All,
    /// Not all; there is more.
    Some,
    /// Not all; some was lost.
    Lost,
}

/// Asked to end.
struct Stopped;

impl Listener {
    fn run(&mut self) {
        loop {
            let Err(error) = self.listen() else { return };
            let until_ns = match error {
                Unavailable::TurnedOff => self.told_ns,
                Unavailable::Events(_) | Unavailable::Dump(_) => u64::MAX,
            };
            self.history.silenced(until_ns);
            self.table.set_state(State::Unavailable, &error.to_string());
            if self.wait(None, Some(RETRY)).is_err() {
                return;
            }
        }
    }

    /// Listens until asked to end, or until the kernel refuses.
    fn listen(&mut self) -> Result<(), Unavailable> {
        let events = Events::open(self.queue).map_err(Unavailable::Events)?;
        let mut behind = true;
        let mut look_again = self.clock.instant();
        let mut renew = look_again + self.renew;
        loop {
            let now = self.clock.instant();
            if now >= look_again {
                self.check_told()?;
                look_again = now + LOOK;
            }
            let read = self.read_events(&events).map_err(Unavailable::Events)?;
            if read == Read::Lost {
                self.table.count_overrun();
                behind = true;
            }
            let now_ns = self.clock.monotonic_ns();
            if read == Read::All && !behind {
                self.history.heard(now_ns);
            }
            if (behind || (now >= renew && read == Read::All)) && now >= self.next_dump {
                let lost = self.read_all(&events, now, behind).map_err(Unavailable::Dump)?;
                if lost {
                    self.table.count_overrun();
                }
                behind = lost;
                renew = self.clock.instant() + self.renew;
            }
            self.history.forget(now_ns);
            if behind {
                let reason = "messages came faster than they were read: reading the table again";
                self.table.set_state(State::Resyncing, reason);
            } else if read == Read::All {
                self.table.set_state(State::Ok, "");
            }
            let forget = self.history.forget_at().map(|at| {
                Duration::from_nanos(at.saturating_sub(now_ns)) + Duration::from_millis(1)
            });
            let dump = if behind { self.next_dump } else { renew.max(self.next_dump) };
            let timed = [dump, look_again].map(|at| at.saturating_duration_since(now));
            let next = forget.into_iter().chain(timed).min();
            if self.wait(Some(&events), next).is_err() {
                return Ok(());
            }
        }
    }

    /// Refuses if events are turned off. A file that is not there says nothing: kernels without the
    /// setting, or whose module is not loaded.
    fn check_told(&mut self) -> Result<(), Unavailable> {
        let now_ns = self.clock.monotonic_ns();
        match std::fs::read_to_string(&self.events_file) {
            Ok(value) if value.trim() == "0" => Err(Unavailable::TurnedOff),
            _ => {
                self.told_ns = now_ns;
                Ok(())
            }
        }
    }

    /// Reads the kernel's table; `behind` if what is held is not all that there is. True if messages
    /// were lost meanwhile.
    fn read_all(&mut self, events: &Events, start: Instant, behind: bool) -> io::Result<bool> {
        let Self { history, table, buffer, clock, .. } = self;
        if behind {
            table.set_state(State::Resyncing, "the kernel's table is being read");
        }
        history.begin_dump();
        let now_ns = clock.monotonic_ns();
        let mut aside = Aside::since(now_ns);
        let mut looked = Ok(());
        dump(buffer, |message| {
            match message {
                Ok(Message::New(connection)) => history.exists(&connection, now_ns),
                Ok(_) => {}
                Err(Malformed) => table.count_rejected(),
            }
            if looked.is_ok() && aside.is_due(clock.monotonic_ns()) {
                looked = aside.look(|buffer| events.read(buffer), || clock.monotonic_ns());
            }
        })?;
        looked?;
        history.end_dump(now_ns);
        for (read_ns, datagram) in &aside.datagrams {
            take_in(datagram, history, table, *read_ns);
        }
        self.told_ns = aside.datagrams.last().map_or(self.told_ns, |(read_ns, _)| *read_ns);
        let end = clock.instant();
        self.next_dump = end + MIN_REST.max((end - start) * REST);
        Ok(aside.lost)
    }

    /// Takes in what was told.
    fn read_events(&mut self, events: &Events) -> io::Result<Read> {
        let Self { history, table, buffer, clock, told_ns, .. } = self;
        let mut lost = false;
        let result = |lost, otherwise| if lost { Read::Lost } else { otherwise };
        for _ in 0..BATCH {
            let read = match events.read(buffer)? {
                Heard::Bytes(read) => read,
                Heard::Nothing => return Ok(result(lost, Read::All)),
                Heard::Overrun => {
                    lost = true;
                    continue;
                }
            };
            *told_ns = clock.monotonic_ns();
            take_in(&buffer[..read], history, table, *told_ns);
        }
        Ok(result(lost, Read::Some))
    }

    /// Until something is told, for at most so long.
    fn wait(&self, events: Option<&Events>, limit: Option<Duration>) -> Result<(), Stopped> {
        let limit = limit.map(|limit| Timespec {
            tv_sec: limit.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        });
        let stop = PollFd::new(&self.stop, PollFlags::IN);
        let told = events.map(|events| PollFd::from_borrowed_fd(events.as_fd(), PollFlags::IN));
        let mut ready: Vec<_> = std::iter::once(stop).chain(told).collect();
        // Interrupted is as good as woken: everything is looked at again.
        poll(&mut ready, limit.as_ref()).ok();
        if ready[0].revents().is_empty() { Ok(()) } else { Err(Stopped) }
    }
}

/// What was told while the table was read, and when: the end of the table would be too late a time
/// for a beginning or an end, and who asks for a packet before it would be told of another connection.
struct Aside {
    datagrams: Vec<(u64, Box<[u8]>)>,
    bytes: usize,
    buffer: Box<[u8]>,
    looked_ns: u64,
    lost: bool,
}

impl Aside {
    /// Nothing yet; the first look is due some time after this.
    fn since(now_ns: u64) -> Self {
        let (datagrams, buffer) = (vec![], Box::default());
        Self { datagrams, bytes: 0, buffer, looked_ns: now_ns, lost: false }
    }

    const fn is_due(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.looked_ns) >= LOOK_ASIDE_NS
    }

    /// Puts aside what waits, as far as there is room.
    fn look(
        &mut self,
        mut read: impl FnMut(&mut [u8]) -> io::Result<Heard>,
        now_ns: impl Fn() -> u64,
    ) -> io::Result<()> {
        if self.buffer.is_empty() {
            self.buffer = vec![0; DATAGRAM].into();
        }
        while self.bytes < MAX_ASIDE {
            match read(&mut self.buffer)? {
                Heard::Bytes(read) => {
                    self.bytes += read;
                    self.datagrams.push((now_ns(), self.buffer[..read].into()));
                }
                Heard::Nothing => break,
                Heard::Overrun => self.lost = true,
            }
        }
        // What waits beyond that would be told too late.
        self.lost |= self.bytes >= MAX_ASIDE;
        self.looked_ns = now_ns();
        Ok(())
    }
}

/// Takes in what a datagram tells; what makes no sense is counted.
fn take_in(datagram: &[u8], history: &mut History, table: &Translations, now_ns: u64) {
    for message in messages(datagram) {
        match message {
            Ok(Message::New(connection)) => history.begin(&connection, now_ns),
            Ok(Message::Destroy(connection)) => history.end(&connection, now_ns),
            Ok(_) => {}
            Err(Malformed) => table.count_rejected(),
        }
    }
}

/// Why the kernel tells nothing.
#[derive(Debug, thiserror::Error)]
enum Unavailable {
    #[error("the kernel does not tell of connections ({0}): {remedy}", remedy = remedy(.0))]
    Events(io::Error),
    #[error("the kernel's table of connections cannot be read ({0}): {remedy}", remedy = remedy(.0))]
    Dump(io::Error),
    #[error(
        "the kernel does not tell of connections (nf_conntrack_events is 0): set the sysctl net.netfilter.nf_conntrack_events to 1 or 2"
    )]
    TurnedOff,
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "give the agent CAP_NET_ADMIN",
        _ => "load the module nf_conntrack_netlink",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_counted_and_the_rest_is_taken() {
        let table = Translations::empty(8);
        let mut history = History::new(table.clone());
        // A message of conntrack without attributes, then one of another kind.
        let mut datagram = vec![20, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0];
        datagram.extend([16, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        take_in(&datagram, &mut history, &table, 1);
        assert_eq!(table.status().rejected, 1);
        take_in(&[0xff; 64], &mut history, &table, 2);
        assert_eq!((table.status().rejected, table.status().entries), (2, 0));
    }

    #[test]
    fn what_is_told_while_the_table_is_read_keeps_its_time() {
        let mut aside = Aside::since(1);
        assert!(!aside.is_due(LOOK_ASIDE_NS), "a table that is read at once is not disturbed");
        for (at_ns, told) in [(LOOK_ASIDE_NS + 1, vec![7, 8]), (3 * LOOK_ASIDE_NS, vec![9])] {
            assert!(aside.is_due(at_ns));
            let mut waiting = told.into_iter();
            let read = |buffer: &mut [u8]| {
                let Some(byte) = waiting.next() else { return Ok(Heard::Nothing) };
                buffer[0] = byte;
                Ok(Heard::Bytes(1))
            };
            aside.look(read, || at_ns).unwrap();
        }
        let told: Vec<_> = aside.datagrams.iter().map(|(at_ns, told)| (*at_ns, told[0])).collect();
        let (first, second) = (LOOK_ASIDE_NS + 1, 3 * LOOK_ASIDE_NS);
        assert_eq!(told, [(first, 7), (first, 8), (second, 9)]);
        assert!(!aside.lost);
    }

    #[test]
    fn what_is_put_aside_is_bounded_and_a_loss_is_told() {
        let mut aside = Aside::since(0);
        let mut reads = 0;
        let read = |buffer: &mut [u8]| {
            reads += 1;
            Ok(if reads == 1 { Heard::Overrun } else { Heard::Bytes(buffer.len()) })
        };
        aside.look(read, || 1).unwrap();
        assert_eq!((aside.bytes, aside.lost, reads), (MAX_ASIDE, true, 1 + MAX_ASIDE / DATAGRAM));
    }

    #[test]
    fn a_refusal_names_the_next_step() {
        let refused = Unavailable::Events(io::Error::from_raw_os_error(libc::EPERM));
        insta::assert_snapshot!(refused, @"the kernel does not tell of connections (Operation not permitted (os error 1)): give the agent CAP_NET_ADMIN");
        let missing = Unavailable::Dump(io::Error::from_raw_os_error(libc::EINVAL));
        insta::assert_snapshot!(missing, @"the kernel's table of connections cannot be read (Invalid argument (os error 22)): load the module nf_conntrack_netlink");
    }
}
