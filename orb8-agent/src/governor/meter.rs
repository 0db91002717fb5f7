//! Measures what the agent and its programs take.
//!
//! The kernel keeps the time of programs only while it is asked to, and then of all programs of the host,
//! at a cost for each run. So it is asked for a moment only, now and then while there is traffic, and
//! what a packet cost in that moment is multiplied by the packets that were seen. Where it may not be
//! asked, a fixed cost stands in.

use std::any::Any;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Measured;
use crate::clock::{self, Clock};
use crate::datapath::Datapath;
use crate::pipeline::on_demand::{Drains, SPACING};
use crate::pipeline::runner::{SharedLedger, lock};
use crate::status;

/// What a packet costs in the programs, in nanoseconds, until the kernel has told.
pub(super) const PACKET_NS: f64 = 50.0;
/// Packets a second below which nobody needs to know what one costs.
const WORTH_KNOWING: f64 = 1000.0;
/// The kernel keeps statistics for so long. Packets are told as of when the drains at its ends begin,
/// which is a little before and a little after: so the time that programs took each second is compared
/// with the packets of each second.
const WINDOW: Duration = SPACING;
/// Packets within it that are enough.
const ENOUGH: u64 = 50;
/// It is asked again after so long.
const AGAIN: Duration = Duration::from_secs(60);
/// A drain within a calibration must have come by then.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(10);

/// How the cost of the programs is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// The kernel keeps statistics all the time (`kernel.bpf_stats_enabled`).
    Measured,
    /// By packets, each at a cost that the kernel told for a moment.
    Calibrated,
    /// By packets, each at a fixed cost.
    Estimated,
}

impl Basis {
    /// The word that status uses.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Measured => "measured",
            Self::Calibrated => "calibrated",
            Self::Estimated => "estimated",
        }
    }
}

/// What grows all the time, at one moment.
#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Instant,
    user: Duration,
    /// CPU time of the programs, if the kernel keeps statistics all the time.
    programs: Option<Duration>,
}

/// CPU time of the programs by a moment.
#[derive(Clone, Copy, Debug)]
struct Ran {
    at: Instant,
    time: Duration,
}

/// Packets seen by the beginning of a drain (CLOCK_MONOTONIC nanoseconds).
#[derive(Clone, Copy, Debug)]
struct Seen {
    at_ns: u64,
    packets: u64,
}

/// Asks the kernel what a packet costs.
enum Calibration {
    /// Nothing can be asked.
    Refused,
    /// Asked again from then on.
    Resting { until: Instant },
    /// Statistics are kept; the drain that says how many packets there were before is under way.
    Opening { guard: Box<dyn Any + Send>, request: u64, late: Instant },
    /// Statistics are kept.
    Running { guard: Box<dyn Any + Send>, ran: Ran, seen: Seen, until: Instant },
    /// The programs took this part of a CPU; the drain that says how many packets there were after it
    /// is under way.
    Closing { load: f64, seen: Seen, request: u64, late: Instant },
}

/// Measures.
pub struct Meter {
    proc_root: PathBuf,
    cpus: u32,
    datapath: Option<Arc<dyn Datapath>>,
    ledger: SharedLedger,
    drains: Arc<Drains>,
    clock: Arc<dyn Clock>,
    started: Instant,
    last: Reading,
    /// When the drain began that told the rate (CLOCK_MONOTONIC nanoseconds), and the packets that were
    /// seen by then.
    drained: (u64, u64),
    packet_ns: f64,
    basis: Basis,
    /// Packets a second, between drains: those of an interval are not known, since more or fewer drains
    /// may fall into it than the last time.
    rate: f64,
    calibration: Calibration,
    /// When it is looked whether a drain has come.
    look: Instant,
}

impl std::fmt::Debug for Meter {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Meter").field("basis", &self.basis).finish_non_exhaustive()
    }
}

impl Meter {
    /// Measures from now on, on a node with so many CPUs.
    #[must_use]
    pub fn new(
        proc_root: PathBuf,
        cpus: u32,
        datapath: Option<Arc<dyn Datapath>>,
        ledger: SharedLedger,
        drains: Arc<Drains>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let now = clock.instant();
        let calibration = match datapath {
            Some(_) => Calibration::Resting { until: now },
            None => Calibration::Refused,
        };
        let last = Reading { at: now, user: clock::process_cpu(), programs: None };
        let mut meter = Self {
            proc_root,
            cpus,
            datapath,
            ledger,
            drains,
            clock,
            started: now,
            last,
            drained: (0, 0),
            packet_ns: PACKET_NS,
            basis: Basis::Estimated,
            rate: 0.0,
            calibration,
            look: now,
        };
        meter.last = meter.read(now);
        meter
    }

    /// What was taken since the last call, or since the start.
    pub fn measure(&mut self, now: Instant) -> Measured {
        let reading = self.read(now);
        let last = std::mem::replace(&mut self.last, reading);
        let interval = reading.at.saturating_duration_since(last.at);
        let drained = self.note_rate(now);
        let programs = if let (Some(before), Some(after)) = (last.programs, reading.programs) {
            self.basis = Basis::Measured;
            after.saturating_sub(before)
        } else {
            if self.basis == Basis::Measured {
                self.estimate();
            }
            let packets = self.rate * interval.as_secs_f64();
            Duration::from_secs_f64(packets * self.packet_ns / 1e9)
        };
        Measured {
            interval,
            cpus: self.cpus,
            user: reading.user.saturating_sub(last.user),
            programs,
            exact: self.basis == Basis::Measured,
            memory_bytes: self.memory_bytes(),
            drained,
        }
    }

    /// Notes how many packets a second passed between the drain that told it last and the last one;
    /// false if it is the same.
    fn note_rate(&mut self, now: Instant) -> bool {
        let (began_ns, seen) = lock(&self.ledger).seen_before();
        let (last_ns, packets) = self.drained;
        if began_ns <= last_ns {
            return false;
        }
        let passed = match last_ns {
            0 => now.saturating_duration_since(self.started),
            _ => Duration::from_nanos(began_ns - last_ns),
        };
        #[allow(clippy::cast_precision_loss, reason = "packets of seconds")]
        let packets = seen.packets.saturating_sub(packets) as f64;
        self.rate = if passed.is_zero() { 0.0 } else { packets / passed.as_secs_f64() };
        self.drained = (began_ns, seen.packets);
        true
    }

    /// What a packet costs is not known.
    const fn estimate(&mut self) {
        (self.basis, self.packet_ns) = (Basis::Estimated, PACKET_NS);
    }

    /// How the cost of the programs is known, and what a packet costs in nanoseconds.
    #[must_use]
    pub const fn basis(&self) -> (Basis, f64) {
        (self.basis, self.packet_ns)
    }

    /// When [`Self::advance`] is to be called; none: when there is time.
    #[must_use]
    pub const fn due(&self) -> Option<Instant> {
        match self.calibration {
            Calibration::Refused | Calibration::Resting { .. } => None,
            Calibration::Opening { .. } | Calibration::Closing { .. } => Some(self.look),
            Calibration::Running { until, .. } => Some(until),
        }
    }

    /// Goes on with asking the kernel what a packet costs.
    pub fn advance(&mut self, now: Instant) {
        let calibration = std::mem::replace(&mut self.calibration, Calibration::Refused);
        self.calibration = self.advanced(calibration, now);
        self.look = now + LOOK;
    }

    fn advanced(&mut self, calibration: Calibration, now: Instant) -> Calibration {
        let rest = Calibration::Resting { until: now + AGAIN };
        match calibration {
            Calibration::Resting { until } if now >= until && self.is_worth_knowing() => {
                match self.keep_statistics() {
                    Ok(guard) => {
                        let request = self.drains.ask();
                        Calibration::Opening { guard, request, late: now + PATIENCE }
                    }
                    Err(error) if is_refusal(&error) => {
                        tracing::debug!(%error, "the kernel keeps no statistics of programs for us");
                        if self.basis == Basis::Calibrated {
                            self.estimate();
                        }
                        Calibration::Refused
                    }
                    Err(error) => {
                        tracing::debug!(%error, "the kernel is asked for statistics again later");
                        rest
                    }
                }
            }
            Calibration::Opening { guard, request, .. } if self.drains.served() >= request => {
                let seen = self.seen();
                match self.ran() {
                    Some(ran) => {
                        let until = self.clock.instant() + WINDOW;
                        Calibration::Running { guard, ran, seen, until }
                    }
                    None => rest,
                }
            }
            Calibration::Running { guard, ran, seen, until } if now >= until => {
                let Some(after) = self.ran() else { return rest };
                drop(guard);
                let load = part(
                    after.time.saturating_sub(ran.time),
                    after.at.saturating_duration_since(ran.at),
                );
                let request = self.drains.ask();
                Calibration::Closing { load, seen, request, late: now + PATIENCE }
            }
            Calibration::Closing { load, seen, request, .. } if self.drains.served() >= request => {
                self.learn(load, seen, self.seen());
                rest
            }
            Calibration::Opening { late, .. } | Calibration::Closing { late, .. }
                if now >= late =>
            {
                rest
            }
            going_on => going_on,
        }
    }

    /// Notes what a packet took where the programs took this part of a CPU.
    fn learn(&mut self, load: f64, before: Seen, after: Seen) {
        let packets = after.packets.saturating_sub(before.packets);
        let passed_ns = after.at_ns.saturating_sub(before.at_ns);
        if packets >= ENOUGH && passed_ns > 0 {
            #[allow(clippy::cast_precision_loss, reason = "nanoseconds and packets of a moment")]
            let (packets, passed_ns) = (packets as f64, passed_ns as f64);
            self.packet_ns = load * passed_ns / packets;
            self.basis = Basis::Calibrated;
        }
    }

    fn is_worth_knowing(&self) -> bool {
        self.basis != Basis::Measured && self.rate >= WORTH_KNOWING
    }

    fn read(&self, now: Instant) -> Reading {
        let programs = if self.keeps_statistics() { self.ran() } else { None };
        Reading { at: now, user: clock::process_cpu(), programs: programs.map(|ran| ran.time) }
    }

    /// Whether the kernel keeps statistics all the time.
    fn keeps_statistics(&self) -> bool {
        let file = self.proc_root.join("sys/kernel/bpf_stats_enabled");
        std::fs::read_to_string(file).is_ok_and(|text| text.trim() == "1")
    }

    fn keep_statistics(&self) -> io::Result<Box<dyn Any + Send>> {
        let none = || Err(io::ErrorKind::Unsupported.into());
        self.datapath.as_ref().map_or_else(none, |datapath| datapath.keep_statistics())
    }

    /// Of now, not of when the sources were asked: one before may have taken long.
    fn ran(&self) -> Option<Ran> {
        let time = self.datapath.as_ref()?.program_time()?;
        Some(Ran { at: self.clock.instant(), time })
    }

    /// Packets seen as of the beginning of the last drain.
    fn seen(&self) -> Seen {
        let (at_ns, seen) = lock(&self.ledger).seen_before();
        Seen { at_ns, packets: seen.packets }
    }

    /// Bytes, resident and maps.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        let maps = self.datapath.as_ref().map_or(0, |datapath| datapath.map_bytes());
        status::resident_bytes(&self.proc_root).saturating_add(maps)
    }
}

/// Whether it is of no use to ask again: no capability (EPERM), a kernel that knows no such statistics
/// (EINVAL), or no such call (ENOSYS).
fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
    matches!(error.kind(), PermissionDenied | InvalidInput | Unsupported)
}

/// A time as a part of another; 0 of none.
fn part(time: Duration, of: Duration) -> f64 {
    if of.is_zero() { 0.0 } else { time.as_secs_f64() / of.as_secs_f64() }
}

#[cfg(test)]
mod tests;
