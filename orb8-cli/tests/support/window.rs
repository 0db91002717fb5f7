//! Windows of `orb8 verify` whose figures are known: what the kernel and the agent counted in them.

use std::collections::BTreeMap;

use orb8_cli::verify::counters::{Device, Side, Stack};
use orb8_cli::verify::judge::Verdict;
use orb8_cli::verify::kernel::{Home, Reading};
use orb8_cli::verify::report;
use orb8_cli::verify::window::{End, Window};
use orb8_proto::v1::{Interface, PacketLedger, ReasonCount, SocketPlane, Total, Totals};

pub(crate) const HOST: u64 = 1;
pub(crate) const POD: u64 = 2;

pub(crate) fn interface(name: &str, ifindex: u32, mode: &str) -> Interface {
    Interface {
        name: name.to_owned(),
        ifindex,
        state: "attached".to_owned(),
        link: "ethernet".to_owned(),
        mode: mode.to_owned(),
        ..Interface::default()
    }
}

pub(crate) fn at_interface(ifindex: u32, direction: &str, packets: u64, bytes: u64) -> Total {
    Total {
        plane: "tc".to_owned(),
        direction: direction.to_owned(),
        ip_version: 4,
        protocol: "tcp".to_owned(),
        ifindex,
        packets,
        bytes,
        ..Total::default()
    }
}

pub(crate) fn at_cgroup(id: u64, direction: &str, packets: u64, bytes: u64) -> Total {
    Total {
        plane: "socket".to_owned(),
        cgroup_id: id,
        cgroup: format!("/kubepods/pod{id}"),
        namespace: "shop".to_owned(),
        pod: "cart".to_owned(),
        ..at_interface(0, direction, packets, bytes)
    }
}

pub(crate) fn device(rx: [u64; 2], tx: [u64; 2]) -> Device {
    let side =
        |[packets, bytes]: [u64; 2]| Side { packets, bytes: bytes + 14 * packets, faulty: 0 };
    Device { rx: side(rx), tx: side(tx) }
}

pub(crate) fn plane(state: &str, reason: &str) -> SocketPlane {
    SocketPlane { state: state.to_owned(), reason: reason.to_owned() }
}

/// The kernel counts this too, up to the end of the window.
pub(crate) fn also(window: &mut Window, namespace: u64, counters: &[(&str, u64)]) {
    for reading in [&mut window.end.before, &mut window.end.after] {
        reading.stacks.get_mut(&namespace).expect("a known namespace").extend(stack(counters));
    }
}

pub(crate) fn stack(counters: &[(&str, u64)]) -> Stack {
    counters.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
}

/// Both readings are alike.
pub(crate) fn end(reading: Reading, totals: Totals) -> End {
    End { before: reading.clone(), totals, after: reading }
}

pub(crate) fn ledger() -> PacketLedger {
    PacketLedger { state: "balanced".to_owned(), ..PacketLedger::default() }
}

/// A node that counts at interfaces; within the window the kernel saw 100 packets of 10 000 bytes
/// come and 50 of 4000 go, and orb8 these.
pub(crate) fn at_interfaces(come: [u64; 2], gone: [u64; 2]) -> Window {
    let totals = |totals| Totals {
        node_name: "n1".to_owned(),
        session: 1,
        capture: "tc".to_owned(),
        interfaces: vec![interface("eth0", 2, "full")],
        packet_ledger: Some(ledger()),
        totals,
        ..Totals::default()
    };
    let reading = |device| Reading {
        devices: BTreeMap::from([("eth0".to_owned(), device)]),
        stacks: BTreeMap::new(),
    };
    let counted = vec![
        at_interface(2, "ingress", 7 + come[0], 700 + come[1]),
        at_interface(2, "egress", gone[0], gone[1]),
    ];
    let start = totals(vec![at_interface(2, "ingress", 7, 700)]);
    let last = Totals { monotonic_ns: 10_000_000_000, ..totals(counted) };
    Window {
        start: end(reading(device([1000, 90_000], [500, 50_000])), start),
        end: end(reading(device([1100, 100_000], [550, 54_000])), last),
        own: HOST,
        ..Window::default()
    }
}

pub(crate) fn verdicts(window: &Window, tolerance: f64) -> Vec<Verdict> {
    report(window, tolerance).rows.iter().map(|row| row.verdict).collect()
}

#[track_caller]
pub(crate) fn check(window: &Window, tolerance: f64, expected: &[Verdict]) {
    let report = report(window, tolerance);
    assert_eq!(verdicts(window, tolerance), expected, "{report:#?}");
}

pub(crate) const BEFORE: [(&str, u64); 4] = [
    ("Ip.InReceives", 10),
    ("IpExt.InOctets", 900),
    ("IpExt.InNoECTPkts", 10),
    ("Ip.OutRequests", 3),
];

/// A node with both planes: one pod, which took and sent these.
pub(crate) fn at_sockets(taken: [u64; 2], sent: [u64; 2]) -> Window {
    let totals = |totals, left: u64| Totals {
        node_name: "n1".to_owned(),
        session: 1,
        capture: "both".to_owned(),
        interfaces: vec![interface("veth1", 3, "supplement")],
        socket_plane: Some(plane("attached", "")),
        packet_ledger: Some(PacketLedger {
            filtered: vec![ReasonCount {
                reason: "counted_at_socket".to_owned(),
                packets: left,
                bytes: 100 * left,
            }],
            ..ledger()
        }),
        totals,
        ..Totals::default()
    };
    let reading = |device, pod: &[(&str, u64)]| Reading {
        devices: BTreeMap::from([("veth1".to_owned(), device)]),
        stacks: BTreeMap::from([(HOST, stack(&[])), (POD, stack(pod))]),
    };
    let counted = vec![
        at_cgroup(77, "ingress", taken[0], taken[1]),
        at_cgroup(77, "egress", sent[0], sent[1]),
    ];
    let after = [
        ("Ip.InReceives", 30),
        ("IpExt.InOctets", 2900),
        ("IpExt.InNoECTPkts", 30),
        ("Ip.OutRequests", 33),
        ("IpExt.OutOctets", 3000),
        ("Tcp.OutSegs", 30),
    ];
    let last = Totals { monotonic_ns: 1_500_000_000, ..totals(counted, 50) };
    Window {
        start: end(reading(device([0, 0], [0, 0]), &BEFORE), totals(Vec::new(), 0)),
        end: end(reading(device([30, 3000], [20, 2000]), &after), last),
        own: HOST,
        homes: BTreeMap::from([(77, Home::In(POD))]),
        ..Window::default()
    }
}
