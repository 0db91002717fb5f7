//! Floods of small packets, sent in turns to the agent's link and to one at which a program only counts.

use std::time::{Duration, Instant};

use super::bed::{Bed, options};
use super::figures::{Figures, Pace};
use super::{Load, Turn};
use crate::bpf::{Foreign, Hook, Place};
use crate::flood::{BATCH, Flood, Small};
use crate::link::{Veth, VethOptions};

/// Flows of the flood at least; in the short form twice as many as the table has room for.
const FLOWS: u64 = 1_000_000;
const QUICK_FLOWS: u64 = 200_000;
/// How much longer it may take to send as many as that.
const DEADLINE: Duration = Duration::from_mins(2);
/// One turn on the link that is watched, and on the other one.
const WATCHED: Duration = Duration::from_millis(160);
const ALONE: Duration = Duration::from_millis(40);
/// The most that a packet of a known flow may take more, in nanoseconds: the dearest row of the benchmark.
const COST_LIMIT_NS: f64 = 110.0;
/// Flows of every other turn of the packet flood.
const KNOWN: u32 = 1_000;

/// Each packet another flow.
pub(super) fn unique(turn: &Turn<'_>) -> anyhow::Result<Figures> {
    let link = Veth::quiet(VethOptions::default());
    let options = options(&turn.options.agent, &link);
    let bed = Bed::start(link, &options)?;
    let least = if turn.options.quick { QUICK_FLOWS } else { FLOWS };
    turn.overload(bed, |bed| Ok(drive(bed, turn.load, least, |_, number| Small::unique(number))))
}

/// The same, and nothing has more room than it must have.
pub(super) fn minimum(turn: &Turn<'_>) -> anyhow::Result<Figures> {
    let link = Veth::quiet(VethOptions::default());
    let options = options(&turn.options.agent, &link)
        .env("ORB8_MAX_FLOWS", 16)
        .env("ORB8_RING_BUFFER_SIZE", "64KiB")
        .env("ORB8_BROADCAST_CHANNEL_SIZE", 16);
    let bed = Bed::start(link, &options)?;
    turn.overload(bed, |bed| Ok(drive(bed, turn.load, 0, |_, number| Small::unique(number))))
}

/// Packets of flows that are known, as many as a core sends.
pub(super) fn packets(turn: &Turn<'_>) -> anyhow::Result<Figures> {
    let link = Veth::quiet(VethOptions::default());
    let options = options(&turn.options.agent, &link);
    let bed = Bed::start(link, &options)?;
    turn.overload(bed, |bed| {
        let known = |turn: usize, number: u32| {
            let flow = if turn.is_multiple_of(2) { 0 } else { number % KNOWN };
            Small { syn: false, ..Small::unique(flow * 2) }
        };
        let mut load = drive(bed, turn.load, 0, known);
        load.flows = Some(KNOWN.into());
        if let Some(pace) = &mut load.pace {
            pace.limit_ns = Some(COST_LIMIT_NS);
        }
        Ok(load)
    })
}

/// Sends packets at a rate, as long as `more` says of those that were begun; how many were taken. They
/// are numbered up to `among`, and then anew.
pub(super) fn paced(
    flood: &mut Flood,
    rate: f64,
    among: u32,
    more: impl Fn(u64) -> bool,
    next: impl Fn(u32) -> Small,
) -> u64 {
    let start = Instant::now();
    let (mut begun, mut taken) = (0_u64, 0);
    while more(begun) {
        let due = start + Duration::from_secs_f64(begun as f64 / rate);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let end = begun + BATCH as u64;
        taken += flood.send((begun..end).map(|number| next(within(number, among)))).packets;
        begun = end;
    }
    taken
}

/// A number of a long run as one below `among`.
fn within(number: u64, among: u32) -> u32 {
    u32::try_from(number % u64::from(among)).unwrap_or(0)
}

/// Sends packet after packet for so long, and at least so many; which one, the turn and its number say.
fn drive(bed: &Bed, time: Duration, least: u64, next: impl Fn(usize, u32) -> Small) -> Load {
    let beside = Veth::quiet(VethOptions::default());
    let (near, name) = (&beside.near.netns, &beside.near.ifname);
    let _empty = Foreign::attach(near, name, Hook::Ingress, Place::First, -1);
    let mut watched = Flood::open(&bed.link.far, &bed.link.near);
    let mut alone = Flood::open(&beside.far, &beside.near);
    let (mut sent, mut turns) = (0, Vec::new());
    let (mut first, mut first_alone) = (0, 0);
    let start = Instant::now();
    while start.elapsed() < time || sent < least && start.elapsed() < time + DEADLINE {
        let next = |number| next(turns.len(), number);
        let on_watched = send(&mut watched, WATCHED, &mut first, next);
        let on_alone = send(&mut alone, ALONE, &mut first_alone, next);
        sent += on_watched.0;
        turns.push((on_watched.1, on_alone.1));
    }
    let mut faults = Vec::new();
    if sent < least {
        faults.push(format!("{sent} packets were sent in time, and not {least}"));
    }
    Load { flows: Some(sent), pace: Some(Pace::of(&turns, None)), faults, ..Load::default() }
}

/// Sends for so long; how many packets were taken, and nanoseconds for each that was sent.
fn send(
    flood: &mut Flood,
    time: Duration,
    first: &mut u32,
    next: impl Fn(u32) -> Small,
) -> (u64, f64) {
    let batch = u32::try_from(BATCH).unwrap_or(u32::MAX);
    let (mut taken, mut sent) = (0, 0_u64);
    let start = Instant::now();
    while start.elapsed() < time {
        taken += flood.send((0..batch).map(|n| next(first.wrapping_add(n)))).packets;
        *first = first.wrapping_add(batch);
        sent += u64::from(batch);
    }
    (taken, start.elapsed().as_nanos() as f64 / sent.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_numbered_beyond_what_32_bits_hold() {
        let large = u64::from(u32::MAX) + 5_001;
        assert_eq!(
            [0, 4_999, 5_000, large].map(|number| within(number, 5_000)),
            [0, 4_999, 0, 2_296]
        );
        assert_eq!(within(large, u32::MAX), 5_001);
    }
}
