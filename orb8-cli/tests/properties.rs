//! What holds for any flow that an agent or a file may bring, and for any words.

#[path = "../../orb8-filter/tests/support/arbitrary.rs"]
mod arbitrary;
mod support;

use orb8_cli::error::Exit;
use orb8_proto::v1::NetworkFlow;
use orb8_query::rows::FlowRecord;
use orb8_util::text::{is_printable, printable};
use proptest::prelude::*;
use support::{Run, orb8};

/// Runs `orb8 flows` over these flows as if they had been saved.
fn over(flows: &[NetworkFlow], words: &[&str]) -> Run {
    let lines: String = flows
        .iter()
        .map(|flow| serde_json::to_string(&FlowRecord::from(flow)).expect("JSON") + "\n")
        .collect();
    let words: Vec<&str> = ["flows", "--file", "-"].iter().chain(words).copied().collect();
    orb8(&words, &[], lines.as_bytes())
}

fn some_flows() -> impl Strategy<Value = Vec<NetworkFlow>> {
    proptest::collection::vec(arbitrary::flow(), 1..4)
}

/// One filter flag with a value that means something.
fn flag() -> impl Strategy<Value = (&'static str, &'static str)> {
    proptest::sample::select(vec![
        ("--ip", "10.0.0.0/8"),
        ("--ip", "fd00::1"),
        ("--from-ip", "10.0.0.1"),
        ("--to-ip", "1.1.1.1,10.0.0.2"),
        ("--port", "53"),
        ("--port", "443,0-10"),
        ("--protocol", "tcp"),
        ("--protocol", "udp"),
        ("--interface", "eth*"),
        ("--direction", "egress"),
        ("--scope", "local"),
        ("--state", "active"),
        ("--process", "curl"),
        ("--cgroup", "/"),
        ("--from-namespace", "shop"),
        ("--to-pod", "web,shop/"),
        ("--selector", "app=web"),
        ("--from-selector", "!tier,app"),
        ("--workload", "job/web"),
        ("--service", "cart,shop/web"),
        ("--to-node", "node-a"),
        ("--zone", "zone-a"),
        ("--container", "main"),
        ("--plane", "tc"),
        ("--verdict", "no_endpoints"),
        ("--kind", "pod,service"),
        ("--attribution", "none"),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_format_lets_a_control_character_through(flows in some_flows()) {
        for format in ["table", "wide", "json", "jsonl", "yaml", "csv"] {
            for more in [&[][..], &["--conversations"]] {
                let run = over(&flows, &[&["-o", format], more].concat());
                prop_assert_eq!(run.exit, Exit::Done, "{}", run.err);
                for line in run.out.lines() {
                    prop_assert!(is_printable(line), "{}: {:?}", format, line);
                }
            }
        }
    }

    #[test]
    fn jsonl_read_back_prints_the_same(flows in some_flows()) {
        let saved = over(&flows, &["-o", "jsonl"]).out;
        let words = ["flows", "--file", "-", "-o", "jsonl"];
        prop_assert_eq!(&orb8(&words, &[], saved.as_bytes()).out, &saved);
        let words = ["flows", "--file", "-", "-o", "json"];
        let document = orb8(&words, &[], saved.as_bytes()).out;
        let words = ["flows", "--file", "-", "-o", "jsonl"];
        prop_assert_eq!(orb8(&words, &[], document.as_bytes()).out, saved);
    }

    #[test]
    fn csv_cells_read_back_as_they_were(flows in some_flows()) {
        let fields = "interface,state,bytes,source.process.comm";
        let run = over(&flows, &["-o", "csv", "--fields", fields]);
        let mut reader = csv::Reader::from_reader(run.out.as_bytes());
        let mut found: Vec<Vec<String>> = reader.records().map(|record| {
            record.expect("a record").iter().map(str::to_owned).collect()
        }).collect();
        let mut expected: Vec<Vec<String>> = flows.iter().map(|flow| {
            let comm = flow.source.as_ref().and_then(|source| source.process.as_ref());
            let comm = comm.map_or("", |process| &process.comm);
            vec![
                printable(&flow.interface).into_owned(),
                printable(&flow.state).into_owned(),
                flow.bytes.to_string(),
                printable(comm).into_owned(),
            ]
        }).collect();
        found.sort();
        expected.sort();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn a_table_is_as_wide_in_every_line(flows in some_flows()) {
        use unicode_width::UnicodeWidthStr;
        // The last column is one of numbers, so that it ends where the line does.
        let run = over(&flows, &["--fields", "interface,state,process,bytes"]);
        let widths: Vec<usize> = run.out.lines().map(UnicodeWidthStr::width).collect();
        prop_assert_eq!(widths.len(), flows.len() + 1);
        prop_assert!(widths.windows(2).all(|pair| pair[0] == pair[1]), "{:?}\n{}", widths, run.out);
    }

    #[test]
    fn flags_mean_any_of_a_kind_all_kinds_and_none_negated(
        flow in arbitrary::flow(), flags in proptest::collection::vec((any::<bool>(), flag()), 0..5),
    ) {
        let matches = |words: &[&str]| {
            !over(std::slice::from_ref(&flow), &[&["-o", "jsonl"], words].concat()).out.is_empty()
        };
        let alone = |name: &str, value: &str| matches(&[name, value]);
        let expected = flags.iter().all(|(negate, (name, value))| {
            if *negate {
                return !alone(name, value);
            }
            flags.iter().any(|(negate, (other, value))| {
                !*negate && other == name && alone(other, value)
            })
        });
        let words: Vec<&str> = flags.iter().flat_map(|(negate, (name, value))| {
            let not = negate.then_some("--not");
            not.into_iter().chain([*name, *value])
        }).collect();
        prop_assert_eq!(matches(&words), expected, "{:?}", words);
    }

    #[test]
    fn no_words_panic(
        words in proptest::collection::vec(".{0,12}", 0..4),
        value in ".{0,16}", index in 0usize..18,
    ) {
        let name = [
            "--ip", "--port", "--protocol", "--interface", "--direction", "--scope", "--state",
            "--process", "--cgroup", "--sort", "--since", "--until", "--limit", "--last",
            "--fields", "--timeout", "--output", "--color",
        ][index];
        let flag = format!("{name}={value}");
        let run = over(&[], &[flag.as_str()]);
        prop_assert!(matches!(run.exit, Exit::Done | Exit::Usage), "{:?} {}", run.exit, run.err);
        // After `--` they are words and no flags: none of them makes it ask an agent.
        let words: Vec<&str> =
            ["flows", "--file", "-", "--"].into_iter().chain(words.iter().map(String::as_str)).collect();
        let run = orb8(&words, &[], b"");
        prop_assert!(matches!(run.exit, Exit::Done | Exit::Usage));
    }

    #[test]
    fn no_saved_bytes_panic(bytes: Vec<u8>, format in 0usize..6) {
        let format = ["table", "wide", "json", "jsonl", "yaml", "csv"][format];
        let run = orb8(&["flows", "--file", "-", "-o", format], &[], &bytes);
        prop_assert!(matches!(run.exit, Exit::Done | Exit::Failed | Exit::Partial));
    }
}
