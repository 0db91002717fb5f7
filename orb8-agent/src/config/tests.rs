//! Tests of the settings: the reference, bounds, bad values.

use proptest::prelude::*;

use super::values::{RING_BUFFER, ring_buffer_size};
use super::*;
use crate::capture::Planes;

fn settings(flags: &[&str]) -> Result<Settings, clap::Error> {
    let all = ["orb8-agent"].iter().chain(flags);
    parse(all).map(|config| config.settings)
}

#[test]
fn the_reference_lists_every_setting() {
    let lines: Vec<_> = reference()
        .into_iter()
        .map(|setting| {
            let Setting { flag, env, default, range, doc } = setting;
            format!("{flag} | {env} | {default} | {range} | {doc}")
        })
        .collect();
    insta::assert_snapshot!(lines.join("\n"));
    let actions = ["print_config", "cleanup", "help", "version"];
    let flags = Settings::command();
    let settings = flags
        .get_arguments()
        .filter(|known| !actions.contains(&known.get_id().as_str()) && !known.is_hide_set());
    assert_eq!(settings.count(), reference().len());
}

#[test]
fn the_shown_ranges_are_the_checked_ones() {
    for setting in reference() {
        let Some((low, high)) = setting.range.split_once(" to ") else { continue };
        let (Ok(low), Ok(high)) = (low.parse::<i64>(), high.parse::<i64>()) else { continue };
        for (value, allowed) in [(low, true), (high, true), (low - 1, false), (high + 1, false)] {
            let flag = format!("{}={value}", setting.flag);
            assert_eq!(settings(&[&flag]).is_ok(), allowed, "{flag}");
        }
    }
}

#[test]
fn every_bad_setting_is_refused_with_its_name_and_what_is_allowed() {
    let check = |flag: &str, value: &str, expected: &str| {
        let error = settings(&[flag, value]).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.exit_code(), 2, "{text}");
        assert!(text.contains(flag) && text.contains(expected), "{flag} {value}: {text}");
    };
    check("--max-flows", "15", "16..=4000000");
    check("--max-flows", "many", "invalid digit");
    check("--flow-timeout-secs", "0", "1..=86400");
    check("--flow-history-secs", "86401", "0..=86400");
    check("--expiration-interval-secs", "61", "1..=60");
    check("--max-query-limit", "0", "1..=1000000");
    check("--broadcast-channel-size", "8", "16..=1048576");
    check("--ring-buffer-size", "100000", "100000 bytes are no power of two, use 65536 or 131072");
    check("--ring-buffer-size", "32KiB", "64KiB to 32MiB");
    check("--ring-buffer-size", "64MiB", "64KiB to 32MiB");
    check("--ring-buffer-size", "1GiB", "64KiB to 32MiB");
    check("--capture", "xdp", "possible values: auto, socket, tc");
    check("--tc-attach", "xdp", "possible values: auto, tcx, clsact");
    check("--interfaces", "eth0,,wg0", "between commas is empty");
    check("--interfaces", "eth[0", "is no glob");
    check("--grpc-port", "65536", "0..=65535");
    check("--grpc-listen", "localhost", "invalid IP address");
    check("--proc-root", "/nowhere", "no such directory");
    check("--cgroup-root", "/nowhere", "no such directory");
    check("--shutdown-timeout-secs", "301", "1..=300");
    check("--memory-budget", "31MiB", "give 32MiB");
    check("--memory-budget", "5000MiB", "give 32MiB");
    check("--cpu-budget", "0", "give 0.01% to 100%");
    check("--cpu-budget", "101%", "give 0.01% to 100%");
    check("--cpu-budget", "half", "give 0.01% to 100%");
    check("--sampling-threshold", "0.5%", "give 1% to 100%");
    check("--node-name", "", "1 to 253 printable");
    check("--node-name", "a b", "1 to 253 printable");
    check("--rust-log", "orb8=loud", "is no log filter");
}

#[test]
fn sizes_are_read_with_units() {
    for (text, bytes) in
        [("65536", 65_536), ("64KiB", 65_536), ("2MiB", 2 << 20), ("32M", 32 << 20)]
    {
        assert_eq!(settings(&["--ring-buffer-size", text]).unwrap().ring_buffer_size, bytes);
    }
    assert_eq!(settings(&["--memory-budget", "64MiB"]).unwrap().memory_budget, 64 << 20);
}

#[test]
fn shares_are_read_in_percent() {
    for (text, part, shown) in [
        ("1%", 0.01, "1%"),
        ("0.01 %", 0.0001, "0.01%"),
        ("2.5", 0.025, "2.5%"),
        ("100%", 1.0, "100%"),
    ] {
        let share = settings(&["--cpu-budget", text]).unwrap().cpu_budget;
        assert!((share.part() - part).abs() < 1e-9, "{text}");
        assert_eq!(share.to_string(), shown);
    }
}

#[test]
fn no_more_flows_are_held_than_the_memory_budget_has_room_for() {
    let small = settings(&["--memory-budget", "64MiB"]).unwrap();
    assert!(small.max_flows_held() < 100_000);
    assert_eq!(small.datapath(Planes::Tc).max_flows, small.max_flows_held());
    assert_eq!(settings(&[]).unwrap().max_flows_held(), 100_000);
}

#[test]
fn the_room_of_a_larger_ring_is_that_of_flows() {
    let held = |ring| settings(&["--ring-buffer-size", ring]).unwrap().max_flows_held();
    assert_eq!((held("4MiB"), held("8MiB"), held("32MiB")), (96_256, 71_680, 60_416));
}

#[test]
fn the_kernel_side_gets_what_was_set() {
    let found = settings(&["--interfaces", "eth0, wg*", "--tc-attach", "clsact"])
        .unwrap()
        .datapath(Planes::Tc);
    assert_eq!(found.interfaces, ["eth0", "wg*"]);
    assert_eq!(found.attach, AttachMode::Clsact);
    let found = settings(&[]).unwrap().datapath(Planes::Tc);
    assert!(found.interfaces.is_empty());
    assert_eq!(found.ring_buffer_bytes, 1 << 20);
}

#[test]
fn printed_settings_name_their_source() {
    let flags = ["orb8-agent", "--node-name", "n1", "--max-flows", "500", "--rust-log", "warn"];
    insta::assert_snapshot!(parse(flags).unwrap().print());
}

proptest! {
    #[test]
    fn any_text_is_a_setting_or_refused(text in "\\PC*") {
        for setting in reference() {
            let flag = format!("{}={text}", setting.flag);
            if let Err(error) = settings(&[&flag]) {
                prop_assert_eq!(error.exit_code(), 2, "{}", error);
            }
        }
    }

    #[test]
    fn only_powers_of_two_within_bounds_are_ring_sizes(bytes: u32) {
        let fits = RING_BUFFER.contains(&bytes) && bytes.is_power_of_two();
        prop_assert_eq!(ring_buffer_size(&bytes.to_string()).is_ok(), fits);
    }
}
