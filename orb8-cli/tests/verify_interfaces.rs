//! `orb8 verify` at interfaces: what programs counted there against the kernel's counters of them.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/window.rs"]
#[allow(dead_code, reason = "shared with tests that use more of it")]
mod window;

use orb8_cli::verify::counters::{Device, Side};
use orb8_cli::verify::judge::Verdict;
use orb8_cli::verify::report;
use orb8_cli::verify::window::Window;
use orb8_proto::v1::{PacketLedger, ReasonCount, Total};
use proptest::prelude::*;
use window::*;

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
fn counters_of_an_interface_that_were_set_back_leave_it_unknown_and_say_why() {
    let set_back: [fn(&mut Device); 4] = [
        |device| device.rx.packets = 3,
        |device| device.rx.bytes = 3,
        |device| device.tx.packets = 3,
        |device| device.tx.bytes = 3,
    ];
    for set_back in set_back {
        let mut full = at_interfaces([100, 10_000], [50, 4000]);
        let mut both = at_sockets([20, 2000], [30, 3000]);
        for reading in [&mut both.start.before, &mut both.start.after] {
            reading.devices.insert("veth1".to_owned(), device([5, 500], [5, 500]));
        }
        for (window, name) in [(&mut full, "eth0"), (&mut both, "veth1")] {
            for reading in [&mut window.end.before, &mut window.end.after] {
                set_back(reading.devices.get_mut(name).unwrap());
            }
        }
        check(&full, 100.0, &[Verdict::Unknown]);
        let reason = report(&full, 0.0).rows.remove(0).reason;
        assert_eq!(reason.as_deref(), Some("its counters were set back within the window"));
        let row = report(&both, 0.0).rows.remove(0);
        assert_eq!((row.kind, row.verdict), ("interfaces", Verdict::Unknown));
        let reason = row.reason.unwrap_or_default();
        assert_eq!(reason, "veth1: its counters were set back within the window");
    }
}

/// The interface whose sending side was set back within the window, and whose receiving side grew by so
/// many packets and bytes less, or more, than what was counted.
fn set_back_in_one_direction(packets: i64, bytes: i64) -> Window {
    let mut window = at_interfaces([100, 10_000], [50, 4000]);
    for reading in [&mut window.end.before, &mut window.end.after] {
        let device = reading.devices.get_mut("eth0").unwrap();
        device.tx.packets = 3;
        device.rx.packets = device.rx.packets.checked_add_signed(packets).unwrap();
        device.rx.bytes = device.rx.bytes.checked_add_signed(bytes + 14 * packets).unwrap();
    }
    window
}

#[test]
fn what_the_kernel_has_more_in_one_direction_is_said_where_the_other_was_set_back() {
    use Verdict::{Differs, Unknown};
    check(&set_back_in_one_direction(1000, 100_000), 0.0, &[Differs, Unknown]);
    check(&set_back_in_one_direction(0, 100), 0.0, &[Differs, Unknown]);
}

#[test]
fn a_direction_that_counted_past_its_reading_after_a_set_back_is_no_difference() {
    check(&set_back_in_one_direction(-50, -5000), 0.0, &[Verdict::Unknown]);
    check(&set_back_in_one_direction(0, -5000), 0.0, &[Verdict::Unknown]);
    // The kernel has more packets than we by less than the tolerance, and much fewer bytes.
    check(&set_back_in_one_direction(1, -5000), 10.0, &[Verdict::Unknown]);
    check(&set_back_in_one_direction(1, -5000), 0.5, &[Verdict::Differs, Verdict::Unknown]);
}

proptest! {
    /// Four readings in any order: nothing panics, and nothing that was set back is compared.
    #[test]
    fn whatever_the_readings_only_those_that_grow_are_compared(
        readings in prop::array::uniform4(prop::array::uniform2(0_u64..4)),
    ) {
        let mut window = at_interfaces([1, 100], [0, 0]);
        let Window { start, end, .. } = &mut window;
        let all = [&mut start.before, &mut start.after, &mut end.before, &mut end.after];
        for (reading, rx) in all.into_iter().zip(readings) {
            reading.devices.insert("eth0".to_owned(), device(rx, [0, 0]));
        }
        let bytes = readings.map(|[packets, bytes]| bytes + 14 * packets);
        let grows = readings.map(|[packets, _]| packets).is_sorted() && bytes.is_sorted();
        let known = report(&window, 0.0).rows.iter().all(|row| row.verdict != Verdict::Unknown);
        prop_assert_eq!(known, grows);
    }
}
