//! What `orb8 verify` prints, and what it ends with.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;
#[path = "support/window.rs"]
#[allow(dead_code, reason = "shared with tests that use more of it")]
mod window;

use std::fs;
use std::path::PathBuf;

use insta::assert_snapshot;
use orb8_cli::args::{Cli, GlobalArgs};
use orb8_cli::error::Exit;
use orb8_cli::terminal::Terminal;
use orb8_cli::verify::judge::Verdict;
use orb8_cli::verify::page;
use orb8_cli::verify::report;
use orb8_cli::verify::window::Window;
use orb8_proto::v1::{Count, Loss, PacketLedger, Totals};
use support::fake_agent::{FakeAgent, Script};
use support::{Run, orb8, orb8_until};
use window::*;

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
