//! Both sides over one window: what the agent's totals and the kernel's counters grew by.
//!
//! Each end of the window is read thrice: the kernel, the agent, the kernel again. What the two
//! readings of the kernel differ by is what the comparison does not know.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use orb8_proto::v1::{Count, Interface, PacketLedger, Total, Totals};

use super::counters::{Between, Bounds, Side};
use super::kernel::{Home, Reading};

/// Why there is nothing to compare with.
pub const SET_BACK: &str = "its counters were set back within the window";

/// One end of the window.
#[derive(Clone, Debug, Default)]
pub struct End {
    /// Before the agent was asked.
    pub before: Reading,
    /// What the agent said.
    pub totals: Totals,
    /// After it had answered.
    pub after: Reading,
}

/// The window, and who was where at its end.
#[derive(Clone, Debug, Default)]
pub struct Window {
    /// Its first end.
    pub start: End,
    /// Its last.
    pub end: End,
    /// This process's network namespace.
    pub own: u64,
    /// Where cgroups that sent or received have their processes, by cgroup id.
    pub homes: BTreeMap<u64, Home>,
    /// Addresses of other namespaces.
    pub addresses: BTreeMap<u64, BTreeSet<IpAddr>>,
    /// Processes of this namespace have sockets that the agent does not watch.
    pub outside: bool,
}

/// What the agent counted at one place within the window.
#[derive(Clone, Debug, PartialEq)]
pub struct Grown {
    /// Where and what; its own counts are those of the end.
    pub at: Total,
    /// Packets.
    pub packets: u64,
    /// IP bytes.
    pub bytes: u64,
}

impl Window {
    /// What the agent counted within the window, by place; places where nothing was are left out.
    #[must_use]
    pub fn grown(&self) -> Vec<Grown> {
        let before: BTreeMap<Place<'_>, &Total> =
            self.start.totals.totals.iter().map(|total| (place(total), total)).collect();
        let grown = |total: &Total| {
            let known = before.get(&place(total));
            let (packets, bytes) = known.map_or((0, 0), |known| (known.packets, known.bytes));
            Grown {
                at: total.clone(),
                packets: total.packets.saturating_sub(packets),
                bytes: total.bytes.saturating_sub(bytes),
            }
        };
        let all = self.end.totals.totals.iter().map(grown);
        all.filter(|grown| grown.packets > 0 || grown.bytes > 0).collect()
    }

    /// A protocol counter of a namespace, before and after each end; 0 if the kernel has none of the
    /// name, none if the namespace was not read.
    fn readings(&self, namespace: u64, name: &str) -> Option<[[u64; 2]; 2]> {
        let read = |reading: &Reading| {
            let stack = reading.stacks.get(&namespace)?;
            Some(stack.get(name).copied().unwrap_or(0))
        };
        let ends = [&self.start, &self.end].map(|end| [read(&end.before), read(&end.after)]);
        let [[a, b], [c, d]] = ends;
        Some([[a?, b?], [c?, d?]])
    }

    /// Whether the protocol counters of a namespace were read at both ends.
    #[must_use]
    pub fn is_read(&self, namespace: u64) -> bool {
        self.readings(namespace, "").is_some()
    }

    /// What a protocol counter of a namespace grew by; none if the namespace was not read, or the
    /// counter was set back.
    #[must_use]
    pub fn counter(&self, namespace: u64, name: &str) -> Option<Between> {
        let [start, end] = self.readings(namespace, name)?;
        Between::grown(start, end)
    }

    /// The most that a gauge of a namespace may have fallen by, negative if it certainly rose; none if
    /// the namespace was not read.
    #[must_use]
    pub fn fallen(&self, namespace: u64, name: &str) -> Option<i64> {
        let [start, end] = self.readings(namespace, name)?;
        let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        Some(signed(start[0].max(start[1])) - signed(end[0].min(end[1])))
    }

    /// Packets and IP bytes of one direction of an interface, link headers of `header` bytes taken
    /// off; and how many packets were faulty.
    ///
    /// # Errors
    /// Why that is not known, a sentence.
    pub fn device(
        &self,
        name: &str,
        rx: bool,
        header: Option<u64>,
    ) -> Result<(Bounds, u64), String> {
        let side = |reading: &Reading| {
            let device = reading.devices.get(name)?;
            Some(if rx { device.rx } else { device.tx })
        };
        let [start, end] =
            [&self.start, &self.end].map(|end| side(&end.before).zip(side(&end.after)));
        let Some((start, end)) = start.zip(end) else {
            return Err(format!("the kernel shows no interface {name} here"));
        };
        let twice = |value: &dyn Fn(Side) -> u64| {
            [start, end].map(|(before, after)| [value(before), value(after)])
        };
        let grown = |value: &dyn Fn(Side) -> u64| {
            let [start, end] = twice(value);
            Between::grown(start, end).ok_or_else(|| SET_BACK.to_owned())
        };
        let packets = grown(&|side| side.packets)?;
        let faulty = grown(&|side| side.faulty)?.high;
        grown(&|side| side.bytes)?;
        let bytes = header.map(|header| {
            let [start, end] =
                twice(&|side| side.bytes.saturating_sub(header.saturating_mul(side.packets)));
            Between::rise(start, end)
        });
        Ok((Bounds { packets, bytes }, faulty))
    }

    /// The interfaces that were attached at both ends of the window; and those that are attached or
    /// were to be, and were not all the time.
    #[must_use]
    pub fn interfaces(&self) -> (Vec<&Interface>, Vec<&Interface>) {
        let is_attached = |interface: &&Interface| interface.state == "attached";
        let was_attached = |now: &&Interface| {
            self.start.totals.interfaces.iter().filter(is_attached).any(|then| {
                (then.ifindex, &then.name, &then.mode) == (now.ifindex, &now.name, &now.mode)
            })
        };
        let all = self.end.totals.interfaces.iter();
        all.partition(|interface| is_attached(interface) && was_attached(interface))
    }

    /// The interfaces that were attached at the start of the window and are not there at its end: what
    /// the kernel counted at them went with them.
    #[must_use]
    pub fn gone(&self) -> Vec<&Interface> {
        let is_there = |then: &&Interface| {
            let mut now = self.end.totals.interfaces.iter();
            now.any(|now| (now.ifindex, &now.name) == (then.ifindex, &then.name))
        };
        let then = self.start.totals.interfaces.iter();
        then.filter(|then| then.state == "attached" && !is_there(then)).collect()
    }

    /// Why the programs at sockets were not there over the whole window; none if they were.
    #[must_use]
    pub fn lacks_sockets(&self) -> Option<String> {
        let told = [&self.start, &self.end].map(|end| end.totals.socket_plane.clone());
        let missing = told.into_iter().map(Option::unwrap_or_default);
        let plane = missing.into_iter().find(|plane| plane.state != "attached")?;
        let parts = [plane.state, plane.reason];
        let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        Some(if parts.is_empty() { "the agent does not say".to_owned() } else { parts.join(": ") })
    }

    /// What the ledger says of packets that are in no total: rejected, or lost.
    #[must_use]
    pub fn ledger(&self, of: fn(&PacketLedger) -> Count) -> Count {
        let at = |totals: &Totals| totals.packet_ledger.as_ref().map(of).unwrap_or_default();
        let (start, end) = (at(&self.start.totals), at(&self.end.totals));
        Count {
            packets: end.packets.saturating_sub(start.packets),
            bytes: end.bytes.saturating_sub(start.bytes),
        }
    }

    /// What was counted at places for which the agent had no room.
    #[must_use]
    pub fn unlisted(&self) -> Count {
        let at = |totals: &Totals| totals.unlisted.unwrap_or_default();
        let (start, end) = (at(&self.start.totals), at(&self.end.totals));
        Count {
            packets: end.packets.saturating_sub(start.packets),
            bytes: end.bytes.saturating_sub(start.bytes),
        }
    }
}

/// What tells places apart; names may become known within the window.
type Place<'a> = (&'a str, &'a str, u32, &'a str, bool, u32, u64, &'a str);

fn place(total: &Total) -> Place<'_> {
    (
        &total.plane,
        &total.direction,
        total.ip_version,
        &total.protocol,
        total.supplement,
        total.ifindex,
        total.cgroup_id,
        &total.filtered,
    )
}

/// Packets that could not be parsed.
#[must_use]
pub fn rejected(ledger: &PacketLedger) -> Count {
    let mut sum = Count::default();
    for reason in &ledger.rejected {
        sum.packets += reason.packets;
        sum.bytes += reason.bytes;
    }
    sum
}

/// Packets that were lost, or passed before programs were attached.
#[must_use]
pub fn lost(ledger: &PacketLedger) -> Count {
    lost_at(ledger, |_stage| true)
}

/// Those of them that no total has: what the flow table lost is in the totals.
#[must_use]
pub fn untold(ledger: &PacketLedger) -> Count {
    lost_at(ledger, |stage| stage != "flow_table")
}

fn lost_at(ledger: &PacketLedger, is_meant: fn(&str) -> bool) -> Count {
    let mut sum = Count::default();
    for loss in ledger.lost.iter().filter(|loss| is_meant(&loss.stage)) {
        sum.packets += loss.packets;
        sum.bytes += loss.bytes;
    }
    sum
}

/// Packets that programs at interfaces leave to the socket plane.
#[must_use]
pub fn left_to_sockets(ledger: &PacketLedger) -> Count {
    let mut sum = Count::default();
    let by_programs = ["counted_at_socket", "later_fragment"];
    for reason in ledger.filtered.iter().filter(|found| by_programs.contains(&&*found.reason)) {
        sum.packets += reason.packets;
        sum.bytes += reason.bytes;
    }
    sum
}
