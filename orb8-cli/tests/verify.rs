//! What `orb8 verify` makes of two readings, and how it is printed.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;

use insta::assert_snapshot;
use orb8_cli::args::{Cli, GlobalArgs};
use orb8_cli::terminal::Terminal;
use orb8_cli::verify::counters::{Device, Side, Stack};
use orb8_cli::verify::judge::{Row, Verdict};
use orb8_cli::verify::kernel::{Home, Reading};
use orb8_cli::verify::page::{self, Report};
use orb8_cli::verify::report;
use orb8_cli::verify::window::{End, Window};
use orb8_proto::v1::{Count, Interface, Loss, PacketLedger, ReasonCount, Total, Totals};

const HOST: u64 = 1;
const POD: u64 = 2;

fn interface(name: &str, ifindex: u32, mode: &str) -> Interface {
    Interface {
        name: name.to_owned(),
        ifindex,
        state: "attached".to_owned(),
        link: "ethernet".to_owned(),
        mode: mode.to_owned(),
        ..Interface::default()
    }
}

fn at_interface(ifindex: u32, direction: &str, packets: u64, bytes: u64) -> Total {
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

fn at_cgroup(id: u64, direction: &str, packets: u64, bytes: u64) -> Total {
    Total {
        plane: "socket".to_owned(),
        cgroup_id: id,
        cgroup: format!("/kubepods/pod{id}"),
        namespace: "shop".to_owned(),
        pod: "cart".to_owned(),
        ..at_interface(0, direction, packets, bytes)
    }
}

fn device(rx: [u64; 2], tx: [u64; 2]) -> Device {
    let side =
        |[packets, bytes]: [u64; 2]| Side { packets, bytes: bytes + 14 * packets, faulty: 0 };
    Device { rx: side(rx), tx: side(tx) }
}

fn stack(counters: &[(&str, u64)]) -> Stack {
    counters.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
}

/// Both readings are alike.
fn end(reading: Reading, totals: Totals) -> End {
    End { before: reading.clone(), totals, after: reading }
}

fn ledger() -> PacketLedger {
    PacketLedger { state: "balanced".to_owned(), ..PacketLedger::default() }
}

/// A node that counts at interfaces; within the window the kernel saw 100 packets of 10 000 bytes
/// come and 50 of 4000 go, and orb8 these.
fn at_interfaces(come: [u64; 2], gone: [u64; 2]) -> Window {
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
    let last = Totals { time_ns: 10_000_000_000, ..totals(counted) };
    Window {
        start: end(reading(device([1000, 90_000], [500, 50_000])), start),
        end: end(reading(device([1100, 100_000], [550, 54_000])), last),
        own: HOST,
        ..Window::default()
    }
}

fn verdicts(window: &Window, tolerance: f64) -> Vec<Verdict> {
    report(window, tolerance).rows.iter().map(|row| row.verdict).collect()
}

#[track_caller]
fn check(window: &Window, tolerance: f64, expected: &[Verdict]) {
    let report = report(window, tolerance);
    assert_eq!(verdicts(window, tolerance), expected, "{report:#?}");
}

#[test]
fn a_difference_is_measured_against_the_tolerance() {
    use Verdict::{Differs, Ok};
    let exact = at_interfaces([100, 10_000], [50, 4000]);
    check(&exact, 0.0, &[Ok, Ok]);
    let lacks = at_interfaces([99, 9900], [50, 4000]);
    check(&lacks, 0.0, &[Differs, Ok]);
    check(&lacks, 0.99, &[Differs, Ok]);
    check(&lacks, 1.0, &[Ok, Ok]);
    let bytes_alone = at_interfaces([100, 9990], [50, 4000]);
    check(&bytes_alone, 0.05, &[Differs, Ok]);
}

#[test]
fn headers_of_segments_are_no_difference_and_whole_packets_are_one() {
    use Verdict::{Differs, Ok};
    let segments = at_interfaces([130, 10_000 + 30 * 52], [50, 4000]);
    check(&segments, 0.0, &[Ok, Ok]);
    assert_eq!(report(&segments, 0.0).rows[0].super_packet_segments, 30);
    // Twice counted.
    check(&at_interfaces([130, 10_000 + 30 * 1500], [50, 4000]), 0.0, &[Differs, Ok]);
    // Headers cannot be less.
    check(&at_interfaces([70, 10_000 - 30 * 52], [50, 4000]), 0.0, &[Differs, Ok]);
}

#[test]
fn what_the_kernel_counted_between_its_readings_is_no_difference() {
    let mut window = at_interfaces([103, 10_900], [50, 4000]);
    check(&window, 0.0, &[Verdict::Differs, Verdict::Ok]);
    window.end.after.devices.get_mut("eth0").unwrap().rx =
        Side { packets: 1104, bytes: 101_200 + 14 * 1104, faulty: 0 };
    check(&window, 0.0, &[Verdict::Ok, Verdict::Ok]);
    assert_eq!(report(&window, 0.0).rows[0].uncertain_packets, Some(2));
}

#[test]
fn rejected_packets_may_be_what_the_kernel_has_more() {
    let mut window = at_interfaces([98, 9940], [50, 4000]);
    check(&window, 0.0, &[Verdict::Differs, Verdict::Ok]);
    let rejected = vec![ReasonCount { reason: "not_ip".to_owned(), packets: 2, bytes: 60 }];
    window.end.totals.packet_ledger = Some(PacketLedger { rejected, ..ledger() });
    check(&window, 0.0, &[Verdict::Ok, Verdict::Ok]);
}

#[test]
fn interfaces_that_were_not_attached_all_the_time_are_unknown() {
    let mut window = at_interfaces([0, 0], [0, 0]);
    window.start.totals.interfaces[0].state = "attaching".to_owned();
    check(&window, 0.0, &[Verdict::Unknown]);
    let mut window = at_interfaces([0, 0], [0, 0]);
    window.end.after.devices.clear();
    check(&window, 0.0, &[Verdict::Unknown]);
}

const BEFORE: [(&str, u64); 4] = [
    ("Ip.InReceives", 10),
    ("IpExt.InOctets", 900),
    ("IpExt.InNoECTPkts", 10),
    ("Ip.OutRequests", 3),
];

/// A node with both planes: one pod, which took and sent these.
fn at_sockets(taken: [u64; 2], sent: [u64; 2]) -> Window {
    let totals = |totals, left: u64| Totals {
        node_name: "n1".to_owned(),
        session: 1,
        capture: "both".to_owned(),
        interfaces: vec![interface("veth1", 3, "supplement")],
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
    let last = Totals { time_ns: 1_500_000_000, ..totals(counted, 50) };
    Window {
        start: end(reading(device([0, 0], [0, 0]), &BEFORE), totals(Vec::new(), 0)),
        end: end(reading(device([30, 3000], [20, 2000]), &after), last),
        own: HOST,
        homes: BTreeMap::from([(77, Home::In(POD))]),
        ..Window::default()
    }
}

/// The rows of the pod alone.
fn of_pod(report: &Report) -> Vec<&Row> {
    report.rows.iter().filter(|row| row.kind == "pod").collect()
}

#[test]
fn a_pod_is_compared_with_its_own_namespace() {
    use Verdict::{Differs, Ok};
    let check = |window: &Window, expected: [Verdict; 3]| {
        let report = report(window, 0.0);
        let found: Vec<_> = of_pod(&report).iter().map(|row| row.verdict).collect();
        assert_eq!(found, expected, "{report:#?}");
    };
    check(&at_sockets([20, 2000], [30, 3000]), [Ok, Ok, Ok]);
    check(&at_sockets([19, 1900], [30, 3000]), [Differs, Ok, Ok]);
    check(&at_sockets([20, 2000], [29, 2900]), [Ok, Differs, Differs]);
    // A refused datagram has no socket that takes it.
    let mut refused = at_sockets([19, 1900], [30, 3000]);
    for reading in [&mut refused.end.before, &mut refused.end.after] {
        reading.stacks.get_mut(&POD).unwrap().insert("Udp.NoPorts".to_owned(), 1);
    }
    check(&refused, [Ok, Ok, Ok]);
}

#[test]
fn a_namespace_that_forwards_is_compared_by_tcp_alone() {
    let mut window = at_sockets([20, 2000], [30, 3000]);
    for reading in [&mut window.end.before, &mut window.end.after] {
        reading.stacks.get_mut(&POD).unwrap().insert("Ip.ForwDatagrams".to_owned(), 9);
    }
    let report = report(&window, 0.0);
    let found: Vec<_> = of_pod(&report).iter().map(|row| (row.protocol, row.verdict)).collect();
    assert_eq!(found, [(None, Verdict::NotCompared), (Some("tcp"), Verdict::Ok)]);
}

#[test]
fn a_cgroup_whose_processes_are_gone_is_in_nobodys_row_and_told() {
    let mut window = at_sockets([20, 2000], [30, 3000]);
    window.homes.insert(77, Home::Unknown);
    let report = report(&window, 0.0);
    let last = report.rows.last().unwrap();
    assert_eq!((last.kind, &*last.scope), ("cgroup", "/kubepods/pod77"));
    assert_eq!(report.verdict, Verdict::Unknown);
}

#[test]
fn what_programs_leave_to_sockets_is_part_of_what_passes_interfaces() {
    let window = at_sockets([20, 2000], [30, 3000]);
    assert_eq!(report(&window, 0.0).rows[0].kind, "interfaces");
    assert_eq!(report(&window, 0.0).rows[0].verdict, Verdict::Ok);
    let mut lacks = window;
    lacks.end.totals.packet_ledger.as_mut().unwrap().filtered[0].packets = 49;
    assert_eq!(report(&lacks, 0.0).rows[0].verdict, Verdict::Differs);
}

#[test]
fn what_the_agent_lost_is_said() {
    let mut window = at_interfaces([90, 9000], [50, 4000]);
    let loss = Loss { stage: "hook".to_owned(), packets: 10, bytes: 1000, ..Loss::default() };
    window.end.totals.packet_ledger = Some(PacketLedger { lost: vec![loss], ..ledger() });
    let report = report(&window, 0.0);
    assert_eq!(report.lost_packets, 10);
    assert_eq!(report.verdict, Verdict::Ok, "it is no difference that nobody knows of");
    let unlisted = Some(Count { packets: 10, bytes: 1000 });
    let mut window = at_interfaces([90, 9000], [50, 4000]);
    window.end.totals.unlisted = unlisted;
    check(&window, 0.0, &[Verdict::Ok, Verdict::Ok]);
}

fn printed(window: &Window, words: &[&str]) -> String {
    let words = ["orb8", "verify"].iter().chain(words);
    let global: GlobalArgs = Cli::read(words).unwrap().global;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let report = report(window, 0.1);
    {
        let mut terminal = Terminal {
            out: Box::new(&mut out),
            err: Box::new(&mut err),
            out_color: false,
            err_color: false,
            ..Terminal::process()
        };
        page::write(&report, &global, &mut terminal).unwrap();
    }
    let text = String::from_utf8(out).unwrap();
    format!("{text}--- note: {} ---", page::summary(&report))
}

#[test]
fn every_format_of_a_comparison() {
    let differs = at_interfaces([93, 9300], [80, 4000 + 30 * 40]);
    let both = at_sockets([20, 2000], [30, 3000]);
    assert_snapshot!("verify_tc_table", printed(&differs, &[]));
    assert_snapshot!("verify_both_table", printed(&both, &[]));
    for format in ["json", "jsonl", "yaml", "csv"] {
        assert_snapshot!(format!("verify_{format}"), printed(&differs, &["-o", format]));
    }
}
