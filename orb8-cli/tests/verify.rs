//! What `orb8 verify` makes of two readings, and how it is printed.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use insta::assert_snapshot;
use orb8_cli::args::{Cli, GlobalArgs};
use orb8_cli::error::Exit;
use orb8_cli::terminal::Terminal;
use orb8_cli::verify::counters::{Device, Side, Stack};
use orb8_cli::verify::judge::{Row, Verdict};
use orb8_cli::verify::kernel::{Home, Reading};
use orb8_cli::verify::page::{self, Report};
use orb8_cli::verify::report;
use orb8_cli::verify::window::{End, Window};
use orb8_proto::v1::{
    Count, Interface, Loss, PacketLedger, ReasonCount, SocketPlane, Total, Totals,
};
use support::fake_agent::{FakeAgent, Script};
use support::{Run, orb8, orb8_until};

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

fn plane(state: &str, reason: &str) -> SocketPlane {
    SocketPlane { state: state.to_owned(), reason: reason.to_owned() }
}

/// The kernel counts this too, up to the end of the window.
fn also(window: &mut Window, namespace: u64, counters: &[(&str, u64)]) {
    for reading in [&mut window.end.before, &mut window.end.after] {
        reading.stacks.get_mut(&namespace).unwrap().extend(stack(counters));
    }
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
    let last = Totals { monotonic_ns: 10_000_000_000, ..totals(counted) };
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
fn headers_of_segments_are_told_where_the_readings_leave_whole_packets_open() {
    // Four packets of 1500 bytes came after the agent had answered, or before.
    let with_slack = |come| {
        let mut window = at_interfaces(come, [50, 4000]);
        window.end.after.devices.insert("eth0".to_owned(), device([1104, 106_000], [550, 54_000]));
        window
    };
    for passed in [0, 4] {
        let come = [100 + passed + 30, 10_000 + 1500 * passed + 30 * 52];
        check(&with_slack(come), 0.0, &[Verdict::Ok, Verdict::Ok]);
    }
    // More than headers, whoever came when.
    let doubled = with_slack([134, 16_000 + 30 * 1500]);
    check(&doubled, 0.0, &[Verdict::Differs, Verdict::Ok]);
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

#[test]
fn an_interface_that_goes_within_the_window_takes_its_counters_with_it() {
    let goes = || {
        let mut window = at_sockets([20, 2000], [30, 3000]);
        let mut gone = interface("veth2", 4, "supplement");
        window.start.totals.interfaces.push(gone.clone());
        gone.name = "veth3".to_owned();
        (window, gone)
    };
    let kinds = |window: &Window| -> Vec<(&str, String, Verdict)> {
        let rows = report(window, 0.0).rows.into_iter();
        let rows = rows.filter(|row| row.kind.starts_with("interface"));
        rows.map(|row| (row.kind, row.scope, row.verdict)).collect()
    };
    let (mut window, _) = goes();
    window.end.totals.packet_ledger.as_mut().unwrap().filtered[0].packets += 9;
    assert_eq!(kinds(&window), [("interface", "veth2".to_owned(), Verdict::Unknown)]);
    // Its index and name are another's by now.
    let (mut window, other) = goes();
    window.end.totals.interfaces.push(other);
    let unknown = ["veth3", "veth2"].map(|name| ("interface", name.to_owned(), Verdict::Unknown));
    assert_eq!(kinds(&window), unknown);
    // It came within the window too, and only its totals tell.
    let mut window = at_sockets([20, 2000], [30, 3000]);
    let passed = Total { supplement: true, ..at_interface(5, "ingress", 4, 400) };
    window.end.totals.totals.push(passed);
    assert_eq!(kinds(&window), [("interfaces", "veth1".to_owned(), Verdict::Unknown)]);
    let full = at_interfaces([100, 10_000], [50, 4000]);
    let mut window = full.clone();
    window.end.totals.interfaces.clear();
    assert_eq!(kinds(&window), [("interface", "eth0".to_owned(), Verdict::Unknown)]);
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
    also(&mut refused, POD, &[("Udp.NoPorts", 1)]);
    check(&refused, [Ok, Ok, Ok]);
}

/// The verdicts on what a pod took and sent.
fn on_ip(window: &Window) -> [Verdict; 2] {
    let report = report(window, 0.0);
    let rows = of_pod(&report);
    [rows[0].verdict, rows[1].verdict]
}

#[test]
fn one_packet_without_a_socket_does_not_excuse_hundreds_counted_too_often() {
    use Verdict::{Differs, Ok};
    // As many bytes, so that no headers can be in them.
    let mut refused = at_sockets([20 + 500, 2000], [30 + 500, 3000]);
    also(&mut refused, POD, &[("Udp.NoPorts", 1), ("Icmp.OutMsgs", 1)]);
    assert_eq!(on_ip(&refused), [Differs, Differs]);
    // Whole packets, counted twice.
    let mut doubled = at_sockets([20, 2000], [30 + 40, 3000 + 40 * 1500]);
    also(&mut doubled, POD, &[("Icmp.OutMsgs", 1)]);
    assert_eq!(on_ip(&doubled), [Ok, Differs]);
    // One is no hindrance for segments either.
    let mut segments = at_sockets([20, 2000], [29 + 40, 2500 + 40 * 52]);
    also(&mut segments, POD, &[("Icmp.OutMsgs", 1)]);
    assert_eq!(on_ip(&segments), [Ok, Ok]);
}

#[test]
fn one_faulty_packet_does_not_excuse_dozens_counted_twice() {
    use Verdict::{Differs, Ok};
    let with_fault = |come| {
        let mut window = at_interfaces(come, [50, 4000]);
        for reading in [&mut window.end.before, &mut window.end.after] {
            reading.devices.get_mut("eth0").unwrap().rx.faulty = 1;
        }
        window
    };
    check(&with_fault([140, 10_000 + 40 * 1500]), 0.0, &[Differs, Ok]);
    check(&with_fault([101, 10_000 + 1500]), 0.0, &[Ok, Ok]);
    // It came beside segments.
    check(&with_fault([131, 10_000 + 1500 + 30 * 52]), 0.0, &[Ok, Ok]);
}

#[test]
fn small_packets_counted_twice_are_no_segments_where_the_kernel_tells_segments() {
    use Verdict::{Differs, Ok};
    let mut doubled = at_sockets([40, 2000 + 20 * 52], [30, 3000]);
    assert_eq!(on_ip(&doubled), [Differs, Ok]);
    // A kernel that does not tell them.
    for end in [&mut doubled.start, &mut doubled.end] {
        for reading in [&mut end.before, &mut end.after] {
            reading.stacks.get_mut(&POD).unwrap().remove("IpExt.InNoECTPkts");
        }
    }
    assert_eq!(on_ip(&doubled), [Ok, Ok]);
}

#[test]
fn a_namespace_that_forwards_is_compared_by_tcp_alone() {
    let mut window = at_sockets([20, 2000], [30, 3000]);
    also(&mut window, POD, &[("Ip.ForwDatagrams", 9)]);
    let report = report(&window, 0.0);
    let found: Vec<_> = of_pod(&report).iter().map(|row| (row.protocol, row.verdict)).collect();
    assert_eq!(found, [(None, Verdict::NotCompared), (Some("tcp"), Verdict::Ok)]);
}

#[test]
fn tcp_that_passes_a_host_without_a_socket_may_be_forwarded() {
    let passing = |forwarded| {
        let mut window = at_sockets([20, 2000], [30, 3000]);
        let uplink = Total { supplement: true, ..at_interface(2, "egress", 40, 4000) };
        window.start.totals.interfaces.push(interface("eth0", 2, "supplement"));
        window.end.totals.interfaces.push(interface("eth0", 2, "supplement"));
        window.end.totals.totals.push(uplink);
        window.end.totals.totals.push(at_cgroup(88, "egress", 6, 600));
        window.homes.insert(88, Home::In(HOST));
        let counters = [("Tcp.OutSegs", 6), ("Ip.OutRequests", 6), ("IpExt.OutOctets", 600)];
        also(&mut window, HOST, &counters);
        also(&mut window, HOST, &[("Ip.ForwDatagrams", forwarded)]);
        window
    };
    let tcp = |window: &Window| {
        let rows = report(window, 0.0).rows;
        rows.into_iter().find(|row| row.kind == "host" && row.protocol == Some("tcp")).unwrap()
    };
    let row = tcp(&passing(40));
    assert_eq!((row.verdict, row.kernel_packets), (Verdict::Ok, Some(6)), "{row:#?}");
    let reason = row.reason.unwrap();
    assert_eq!(reason, "40 packets without a socket may have been forwarded");
    assert_eq!(tcp(&passing(0)).verdict, Verdict::Differs, "it is the host's own then");
    // What the host's sockets lack is found nevertheless, unless what passed can be it.
    let mut lacks = passing(40);
    also(&mut lacks, HOST, &[("Tcp.OutSegs", 60)]);
    assert_eq!(tcp(&lacks).verdict, Verdict::Differs);
}

#[test]
fn what_the_kernel_says_for_connections_that_were_closed_early_has_no_socket() {
    let of = |window: &Window| -> Vec<Verdict> {
        of_pod(&report(window, 0.0)).iter().map(|row| row.verdict).collect()
    };
    // Of one connection the peer's FIN and the last ACK, which the kernel takes and sends alone.
    let with = |opened: &str, open| {
        let mut window = at_sockets([19, 1948], [29, 2948]);
        also(&mut window, POD, &[(opened, 1), ("Tcp.CurrEstab", open)]);
        window
    };
    for opened in ["Tcp.ActiveOpens", "Tcp.PassiveOpens"] {
        assert_eq!(of(&with(opened, 0)), [Verdict::Ok; 3], "{opened}");
        assert_eq!(of(&with(opened, 1)), [Verdict::Differs; 3], "{opened}: it is still open");
    }
    let mut before = with("Tcp.ActiveOpens", 1);
    for reading in [&mut before.start.before, &mut before.start.after] {
        reading.stacks.get_mut(&POD).unwrap().insert("Tcp.CurrEstab".to_owned(), 1);
    }
    assert_eq!(of(&before), [Verdict::Ok; 3], "one from before the window was closed");
    // They have no data.
    let mut data = at_sockets([19, 1000], [29, 2948]);
    also(&mut data, POD, &[("Tcp.ActiveOpens", 1)]);
    assert_eq!(of(&data), [Verdict::Differs, Verdict::Ok, Verdict::Ok]);
    // What the kernel counted is shown as it is.
    let window = with("Tcp.ActiveOpens", 0);
    let report = report(&window, 0.0);
    let row = of_pod(&report)[0];
    assert_eq!((row.orb8_packets, row.kernel_packets), (Some(19), Some(20)));
    assert_eq!((row.uncertain_packets, row.difference_packets), (Some(1), Some(0)));
}

#[test]
fn what_was_lost_may_be_what_a_pod_lacks() {
    let mut window = at_sockets([18, 1800], [30, 3000]);
    assert_eq!(of_pod(&report(&window, 0.0))[0].verdict, Verdict::Differs);
    let ledger = window.end.totals.packet_ledger.as_mut().unwrap();
    let loss =
        |stage: &str| Loss { stage: stage.to_owned(), packets: 2, bytes: 200, ..Loss::default() };
    // That is in the totals.
    ledger.lost = vec![loss("flow_table")];
    assert_eq!(of_pod(&report(&window, 0.0))[0].verdict, Verdict::Differs);
    window.end.totals.packet_ledger.as_mut().unwrap().lost.push(loss("hook"));
    let report = report(&window, 0.0);
    let row = of_pod(&report)[0];
    assert_eq!(row.verdict, Verdict::Ok);
    assert_eq!(row.reason.as_deref(), Some("2 packets were lost, whose is not told"));
    assert_eq!(report.lost_packets, 4);
}

#[test]
fn sockets_are_not_compared_where_programs_were_not_there_all_the_time() {
    let of = |start: Option<SocketPlane>, end: Option<SocketPlane>| {
        let mut window = at_sockets([0, 0], [0, 0]);
        (window.start.totals.socket_plane, window.end.totals.socket_plane) = (start, end);
        let rows = report(&window, 0.0).rows.into_iter();
        let rows = rows.filter(|row| row.kind != "interfaces");
        rows.map(|row| (row.kind, row.verdict, row.reason.unwrap_or_default())).collect::<Vec<_>>()
    };
    let attached = || Some(plane("attached", ""));
    let refused = || Some(plane("failed", "operation not permitted"));
    let told = "the programs at sockets were not attached over the whole window (failed: operation \
                not permitted)";
    let expected = [("host", Verdict::Unknown, told.to_owned())];
    assert_eq!(of(refused(), attached()), expected);
    assert_eq!(of(attached(), refused()), expected);
    let untold = of(attached(), None);
    assert_eq!((untold.len(), untold[0].1), (1, Verdict::Unknown));
    assert!(untold[0].2.ends_with("(the agent does not say)"), "{untold:?}");
    assert!(of(attached(), attached()).len() > 1);
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

/// A `/proc` of a machine on which nothing passes.
struct Quiet(PathBuf);

impl Quiet {
    fn new(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("orb8-quiet-{name}-{}", std::process::id()));
        fs::create_dir_all(root.join("self/net")).unwrap();
        let line = "eth0: 100 2 0 0 0 0 0 0 100 2 0 0 0 0 0 0\n";
        fs::write(root.join("self/net/dev"), line).unwrap();
        Self(root)
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// Verifies an agent that answers this, until the window is open if it ever is.
fn verified(name: &str, words: &[&str], script: Script, opens: bool) -> Run {
    let quiet = Quiet::new(name);
    let proc = ["verify", "--duration", "10m", "--proc", quiet.0.to_str().unwrap()];
    let words: Vec<&str> = proc.iter().chain(words).copied().collect();
    let agent = FakeAgent::start(script);
    if opens { orb8_until(&words, &[&agent], "counting for") } else { orb8(&words, &[&agent], b"") }
}

fn quiet_totals(session: u64, ledger_state: &str) -> Totals {
    Totals {
        session,
        node_name: "n1".to_owned(),
        capture: "tc".to_owned(),
        interfaces: vec![interface("eth0", 2, "full")],
        packet_ledger: Some(PacketLedger { state: ledger_state.to_owned(), ..ledger() }),
        ..Totals::default()
    }
}

#[test]
fn a_ledger_that_does_not_add_up_is_no_success() {
    for (state, words, exit) in [
        ("balanced", &[][..], Exit::Done),
        ("unbalanced", &[], Exit::Partial),
        ("unbalanced", &["--allow-partial"], Exit::Done),
    ] {
        let script = Script { totals: Ok(quiet_totals(1, state)), ..Script::default() };
        let run = verified("ledger", words, script, true);
        assert_eq!(run.exit, exit, "{state}: {}", run.page());
        assert_eq!(run.err.contains("does not add up"), state == "unbalanced", "{}", run.err);
    }
}

#[test]
fn a_window_without_a_comparison_is_a_document_that_says_why() {
    let nothing = Totals {
        node_name: "n1".to_owned(),
        health_message: "no capability".to_owned(),
        ..Totals::default()
    };
    let idle = Script { totals: Ok(nothing), ..Script::default() };
    let anew = Script {
        first_totals: vec![quiet_totals(1, "balanced"), quiet_totals(1, "balanced")],
        totals: Ok(quiet_totals(2, "balanced")),
        ..Script::default()
    };
    for (name, script, opens, said) in [
        ("idle", idle, false, "nothing is counted: no capability"),
        ("anew", anew, true, "the agent was started anew within the window, verify again"),
    ] {
        let run = verified(name, &["-o", "json"], script.clone(), opens);
        assert_eq!(run.exit, Exit::Partial, "{}", run.page());
        let document: serde_json::Value = serde_json::from_str(&run.out).unwrap();
        let found = ["node_name", "verdict", "reason"].map(|key| document[key].as_str().unwrap());
        assert_eq!(found, ["n1", "unknown", said]);
        assert_eq!(document["rows"].as_array().map(Vec::len), Some(0));
        assert!(run.err.contains(said), "{}", run.err);
        let csv = verified(name, &["-o", "csv"], script.clone(), opens).out;
        assert!(csv.starts_with("kind,scope,") && csv.lines().count() == 1, "{csv}");
        assert_eq!(verified(name, &[], script, opens).out, "");
    }
}
