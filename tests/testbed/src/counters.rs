//! What the kernel itself counted: interface counters and protocol (SNMP) counters.

use std::collections::BTreeMap;

use crate::netns::Netns;

/// Counters of one interface (`/proc/net/dev`); bytes as the device counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Received packets that were dropped.
    pub rx_dropped: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets that were not sent.
    pub tx_dropped: u64,
}

impl Interface {
    /// What was added since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            rx_packets: self.rx_packets - earlier.rx_packets,
            rx_bytes: self.rx_bytes - earlier.rx_bytes,
            rx_dropped: self.rx_dropped - earlier.rx_dropped,
            tx_packets: self.tx_packets - earlier.tx_packets,
            tx_bytes: self.tx_bytes - earlier.tx_bytes,
            tx_dropped: self.tx_dropped - earlier.tx_dropped,
        }
    }
}

/// Reads the counters of `ifname` inside `netns`.
///
/// # Panics
/// If there is no such interface.
#[must_use]
#[track_caller]
pub fn interface(netns: &Netns, ifname: &str) -> Interface {
    let text = read(netns, "dev");
    let line = text
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(ifname)?.strip_prefix(':'))
        .unwrap_or_else(|| panic!("no interface {ifname} in namespace {}", netns.label()));
    let column: Vec<u64> =
        line.split_whitespace().map(|word| word.parse().expect("a counter")).collect();
    Interface {
        rx_bytes: column[0],
        rx_packets: column[1],
        rx_dropped: column[3],
        tx_bytes: column[8],
        tx_packets: column[9],
        tx_dropped: column[11],
    }
}

/// The protocol counters of `netns` by name, such as `Udp.InDatagrams` or `Udp6InErrors`.
///
/// # Panics
/// If they cannot be read.
#[must_use]
pub fn protocols(netns: &Netns) -> BTreeMap<String, u64> {
    let mut counters = BTreeMap::new();
    for file in ["snmp", "netstat"] {
        let text = read(netns, file);
        let lines: Vec<&str> = text.lines().collect();
        for pair in lines.chunks_exact(2) {
            let (group, names) = pair[0].split_once(": ").expect("a line of names");
            let (_, values) = pair[1].split_once(": ").expect("a line of values");
            for (name, value) in names.split(' ').zip(values.split(' ')) {
                counters.insert(format!("{group}.{name}"), value.parse().unwrap_or_default());
            }
        }
    }
    for line in read(netns, "snmp6").lines() {
        if let Some((name, value)) = line.split_once(char::is_whitespace) {
            counters.insert(name.to_owned(), value.trim().parse().unwrap_or_default());
        }
    }
    counters
}

/// `/proc/net` follows the process, `/proc/thread-self/net` the thread that is inside.
fn read(netns: &Netns, file: &str) -> String {
    let path = format!("/proc/thread-self/net/{file}");
    netns
        .enter(|| std::fs::read_to_string(&path))
        .unwrap_or_else(|error| panic!("{path} in namespace {}: {error}", netns.label()))
}
