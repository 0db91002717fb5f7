//! Packets and bytes per flow: what a test sent, or what somebody says was sent.
//!
//! Counts follow the product's definition: IP bytes on the wire, from the IP header on.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

/// TCP's protocol number.
pub const TCP: u8 = 6;
/// UDP's protocol number.
pub const UDP: u8 = 17;
/// ICMP's protocol number.
pub const ICMP: u8 = 1;
/// ICMPv6's protocol number.
pub const ICMPV6: u8 = 58;
/// SCTP's protocol number.
pub const SCTP: u8 = 132;

/// What tells flows apart besides addresses and protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum L4 {
    /// Ports.
    Ports {
        /// The sender's.
        src: u16,
        /// The receiver's.
        dst: u16,
    },
    /// ICMP or ICMPv6.
    Icmp {
        /// The message's type.
        kind: u8,
        /// The message's code.
        code: u8,
    },
    /// Later fragments, which carry none of it.
    Fragment,
    /// A protocol without ports.
    Plain,
}

/// Packets of one sender, receiver and protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// The sender.
    pub src: IpAddr,
    /// The receiver.
    pub dst: IpAddr,
    /// IP protocol number, behind any IPv6 extension headers.
    pub protocol: u8,
    /// Ports or what stands in their place.
    pub l4: L4,
}

impl Flow {
    /// A flow with ports.
    #[must_use]
    pub fn ports(protocol: u8, src: (IpAddr, u16), dst: (IpAddr, u16)) -> Self {
        let l4 = L4::Ports { src: src.1, dst: dst.1 };
        Self { src: src.0, dst: dst.0, protocol, l4 }
    }

    /// The same flow in the other direction; for ICMP, the echo reply to the echo request.
    #[must_use]
    pub fn reply(self) -> Self {
        let l4 = match self.l4 {
            L4::Ports { src, dst } => L4::Ports { src: dst, dst: src },
            L4::Icmp { kind: 8, code } => L4::Icmp { kind: 0, code },
            L4::Icmp { kind: 128, code } => L4::Icmp { kind: 129, code },
            other => other,
        };
        Self { src: self.dst, dst: self.src, l4, ..self }
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { src, dst, protocol, l4 } = self;
        match l4 {
            L4::Ports { src: sport, dst: dport } => {
                write!(f, "{protocol} [{src}]:{sport} > [{dst}]:{dport}")
            }
            L4::Icmp { kind, code } => write!(f, "{protocol} {src} > {dst} type {kind}/{code}"),
            L4::Fragment => write!(f, "{protocol} {src} > {dst} fragment"),
            L4::Plain => write!(f, "{protocol} {src} > {dst}"),
        }
    }
}

/// Packets and IP bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// Packets on the wire.
    pub packets: u64,
    /// Bytes from the IP header on.
    pub bytes: u64,
}

impl Total {
    /// Adds packets and their bytes.
    pub fn add(&mut self, packets: u64, bytes: u64) {
        self.packets += packets;
        self.bytes += bytes;
    }
}

impl fmt::Display for Total {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} packets {} bytes", self.packets, self.bytes)
    }
}

/// Totals per flow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic(BTreeMap<Flow, Total>);

impl Traffic {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds packets and their bytes to a flow.
    pub fn add(&mut self, flow: Flow, packets: u64, bytes: u64) {
        self.0.entry(flow).or_default().add(packets, bytes);
    }

    /// What is known of a flow, zero if nothing.
    #[must_use]
    pub fn get(&self, flow: &Flow) -> Total {
        self.0.get(flow).copied().unwrap_or_default()
    }

    /// All flows in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Flow, &Total)> {
        self.0.iter()
    }

    /// Number of flows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if there is no flow.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The sum over all flows.
    #[must_use]
    pub fn total(&self) -> Total {
        let mut sum = Total::default();
        for total in self.0.values() {
            sum.add(total.packets, total.bytes);
        }
        sum
    }

    /// Only the flows that `keep` wants.
    #[must_use]
    pub fn only(&self, mut keep: impl FnMut(&Flow) -> bool) -> Self {
        Self(self.0.iter().filter(|(flow, _)| keep(flow)).map(|(&f, &t)| (f, t)).collect())
    }

    /// The difference to what was `expected`, a line a flow; empty if there is none.
    #[must_use]
    pub fn difference(&self, expected: &Self) -> String {
        let flows =
            self.0.keys().chain(expected.0.keys()).collect::<std::collections::BTreeSet<_>>();
        flows
            .into_iter()
            .filter(|flow| self.0.get(flow) != expected.0.get(flow))
            .map(|flow| {
                format!("{flow}: expected {}, found {}\n", expected.get(flow), self.get(flow))
            })
            .collect()
    }

    /// Compares with what was expected.
    ///
    /// # Panics
    /// If a flow is missing, superfluous or differs; the message lists the first of them.
    #[track_caller]
    pub fn assert_equals(&self, expected: &Self, what: &str) {
        let difference = self.difference(expected);
        let lines: Vec<&str> = difference.lines().take(20).collect();
        assert!(lines.is_empty(), "{what}:\n{}", lines.join("\n"));
    }
}

impl FromIterator<(Flow, Total)> for Traffic {
    fn from_iter<I: IntoIterator<Item = (Flow, Total)>>(flows: I) -> Self {
        let mut traffic = Self::new();
        for (flow, total) in flows {
            traffic.add(flow, total.packets, total.bytes);
        }
        traffic
    }
}
