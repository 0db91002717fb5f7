//! `orb8 verify` at sockets: what they took and sent against the protocol counters of their network
//! namespaces.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/window.rs"]
#[allow(dead_code, reason = "shared with tests that use more of it")]
mod window;

use orb8_cli::verify::judge::{Row, Verdict};
use orb8_cli::verify::kernel::Home;
use orb8_cli::verify::page::Report;
use orb8_cli::verify::report;
use orb8_cli::verify::window::Window;
use orb8_proto::v1::{Loss, SocketPlane, Total};
use window::*;

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
fn protocol_counters_that_were_set_back_leave_a_pod_unknown_and_say_why() {
    for name in ["Ip.InReceives", "IpExt.OutOctets", "Tcp.OutSegs", "Ip.ForwDatagrams"] {
        let mut window = at_sockets([20, 2000], [30, 3000]);
        for (reading, value) in
            [(&mut window.start.before, 9_000), (&mut window.start.after, 9_000)]
        {
            reading.stacks.get_mut(&POD).unwrap().insert(name.to_owned(), value);
        }
        let report = report(&window, 0.0);
        let rows = of_pod(&report);
        assert_eq!(rows.len(), 1, "{name}: {rows:#?}");
        assert_eq!(rows[0].verdict, Verdict::Unknown);
        assert_eq!(rows[0].reason.as_deref(), Some("its counters were set back within the window"));
    }
}
