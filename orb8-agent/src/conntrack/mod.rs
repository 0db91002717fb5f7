//! The kernel's connection tracking: which connections have their addresses translated, and to
//! what.
//!
//! A thread of its own listens to the kernel ([`start`]); anybody looks up ([`Translations`]). Only
//! translated connections are kept. Whose the addresses are is not decided here.

mod history;
mod listen;
mod message;
mod socket;
mod table;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub use listen::{Bounds, Tracking, start};
pub use table::{Match, Translations};

/// The kernel tells of a beginning or an end after it happened, and we read it later: by this much
/// at most, as long as a second's work does not pile up.
const TOLD_LATE_NS: u64 = 1_000_000_000;

/// One direction of a connection. What has no ports has port 0; ICMP identifiers are not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// IP protocol number.
    pub protocol: u8,
    /// From.
    pub src: SocketAddr,
    /// To.
    pub dst: SocketAddr,
}

impl Tuple {
    /// The other direction, untranslated.
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self { protocol: self.protocol, src: self.dst, dst: self.src }
    }
}

/// A connection whose addresses the kernel rewrites.
#[derive(Debug)]
pub struct Translation {
    /// What its first packet looked like before translation.
    pub original: Tuple,
    /// What the answers to it look like when they arrive.
    pub reply: Tuple,
    /// CLOCK_MONOTONIC nanoseconds at which it was told, a little after its first packet; 0 for one
    /// that was there before anything was told.
    pub from_ns: u64,
    /// No packet from before then is its.
    earliest_ns: AtomicU64,
    /// The kernel's id and zone of the connection.
    id: u32,
    zone: u16,
    until_ns: AtomicU64,
    /// The last dump that told of it.
    dump: AtomicU64,
    /// Its end was not told: it was missed in a dump, or another has its tuple there.
    guessed: AtomicBool,
    /// Out of the table.
    dropped: AtomicBool,
}

/// `until_ns` of a connection that goes on.
const GOES_ON: u64 = u64::MAX;

impl Translation {
    /// A connection that goes on.
    #[must_use]
    pub const fn new(original: Tuple, reply: Tuple, from_ns: u64) -> Self {
        Self {
            original,
            reply,
            from_ns,
            earliest_ns: AtomicU64::new(from_ns.saturating_sub(TOLD_LATE_NS)),
            id: 0,
            zone: 0,
            until_ns: AtomicU64::new(GOES_ON),
            dump: AtomicU64::new(0),
            guessed: AtomicBool::new(false),
            dropped: AtomicBool::new(false),
        }
    }

    /// CLOCK_MONOTONIC nanoseconds until which it is certain; none while it goes on.
    #[must_use]
    pub fn until_ns(&self) -> Option<u64> {
        let until_ns = self.until_ns.load(Ordering::Acquire);
        (until_ns != GOES_ON).then_some(until_ns)
    }

    /// Whether it had not ended before a time (CLOCK_MONOTONIC nanoseconds).
    #[must_use]
    pub fn holds_at(&self, at_ns: u64) -> bool {
        self.until_ns.load(Ordering::Acquire) >= at_ns
    }

    /// Notes that it is certain until then (CLOCK_MONOTONIC nanoseconds); false if it had ended.
    pub fn end(&self, until_ns: u64) -> bool {
        let (order, lost) = (Ordering::AcqRel, Ordering::Relaxed);
        self.until_ns.compare_exchange(GOES_ON, until_ns, order, lost).is_ok()
    }

    /// Whether a packet at that time (CLOCK_MONOTONIC nanoseconds) may be its: both its beginning
    /// and its end are told a little late.
    #[must_use]
    pub fn may_hold_at(&self, at_ns: u64) -> bool {
        self.earliest_ns.load(Ordering::Acquire) <= at_ns
            && self.until_ns.load(Ordering::Acquire) >= at_ns
    }

    /// Whether it was over by the end of a time (CLOCK_MONOTONIC nanoseconds) of which earlier
    /// packets may be its.
    #[must_use]
    pub fn may_end_within(&self, since_ns: u64, until_ns: u64) -> bool {
        let ended_ns = self.until_ns.load(Ordering::Acquire);
        self.earliest_ns.load(Ordering::Acquire) <= ended_ns
            && (since_ns..until_ns).contains(&ended_ns)
    }

    /// Whether its end was told so soon after this time that it may have been over by then.
    #[must_use]
    pub fn may_be_over_at(&self, at_ns: u64) -> bool {
        self.until_ns().is_some_and(|until_ns| until_ns.saturating_sub(TOLD_LATE_NS) <= at_ns)
    }

    /// Whether it had begun well before a packet that opens a connection (CLOCK_MONOTONIC nanoseconds),
    /// and may have been over by then: the packet is of a later one.
    #[must_use]
    pub fn precedes(&self, opened_ns: u64) -> bool {
        // A little before is not enough: an answer opens its direction after the beginning was told.
        self.from_ns.saturating_add(TOLD_LATE_NS) < opened_ns && self.may_be_over_at(opened_ns)
    }

    /// Whether the client's address or port is rewritten (masquerade).
    #[must_use]
    pub fn rewrites_source(&self) -> bool {
        self.reply.dst != self.original.src
    }

    /// Whether the address or port asked for is rewritten (a Service's to a backend's).
    #[must_use]
    pub fn rewrites_destination(&self) -> bool {
        self.reply.src != self.original.dst
    }

    /// Whether a packet of this form belongs to it: either direction, before or after translation.
    #[must_use]
    pub fn covers(&self, tuple: &Tuple) -> bool {
        let turned = tuple.reversed();
        [self.original, self.reply].iter().any(|own| own == tuple || *own == turned)
    }

    /// Whether both are translated alike, so that it does not matter which is meant. The port that a
    /// masquerade picks, often at random, is nobody's name.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        let answers = |one: &Self| (one.reply.src, one.reply.dst.ip());
        self.original == other.original && answers(self) == answers(other)
    }
}

/// Whether the kernel tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// All translated connections are known, as far as they fit.
    Ok,
    /// The kernel tells nothing.
    Unavailable,
    /// The kernel's table is being read, at the start or because messages were lost.
    Resyncing,
}

impl State {
    /// The word for it in answers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unavailable => "unavailable",
            Self::Resyncing => "resyncing",
        }
    }
}

/// What there is to tell about connection tracking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Whether the kernel tells.
    pub state: State,
    /// Why it does not, if so.
    pub reason: String,
    /// Translated connections that are held, those that ended lately included.
    pub entries: u64,
    /// As many are held at most.
    pub max_entries: u64,
    /// Connections that had to go for others.
    pub evicted: u64,
    /// Times that messages were lost because they came too fast.
    pub overruns: u64,
    /// Messages that made no sense.
    pub rejected: u64,
}
