//! `make soak` as a person would see it: it passes an agent that keeps its promises, and no other.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use orb8_testbed::need;
use orb8_testbed::need::{KERNEL, Need, binary};
use orb8_testbed::scratch::Scratch;
use serde_json::Value;

/// What a run ended with, printed and wrote.
struct Run {
    code: Option<i32>,
    stdout: String,
    figures: Value,
}

/// The short form of one scenario with an agent.
fn soak(scenario: &str, agent: &Path) -> Run {
    let folder = Scratch::folder("soak");
    let json = folder.path().join("soak.json");
    let output = Command::new(env!("CARGO_BIN_EXE_soak"))
        .args(["--quick", "--only", scenario, "--agent"])
        .arg(agent)
        .arg("--json")
        .arg(&json)
        .output()
        .expect("it starts");
    let text = std::fs::read_to_string(&json).expect("figures are written");
    Run {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        figures: serde_json::from_str(&text).expect("JSON"),
    }
}

#[test]
fn an_agent_that_keeps_its_promises_passes() {
    need!(@check KERNEL);
    need!(@check &[Need::Tcx, Need::Cgroup2, Need::Binary("orb8-agent")]);
    let run = soak("sockets", &binary("orb8-agent").expect("a need of the test"));
    assert_eq!(run.code, Some(0), "{}", run.stdout);
    let figures = &run.figures[0];
    assert_eq!(figures["pass"], true, "{figures:#}");
    assert_eq!(figures["offered"], figures["seen"]);
    assert!(figures["offered"]["packets"].as_u64() > Some(100_000), "{figures:#}");
    assert_eq!(run.figures.as_array().map(Vec::len), Some(1), "only what was asked for");
}

#[test]
fn an_agent_that_takes_more_than_its_budget_fails_for_that_alone() {
    need!(@check KERNEL);
    need!(@check &[Need::Tcx, Need::Binary("orb8-agent")]);
    let folder = Scratch::folder("greedy");
    let greedy = folder.path().join("orb8-agent");
    let agent = binary("orb8-agent").expect("a need of the test");
    let settings = "ORB8_MAX_FLOWS=2000000 ORB8_MEMORY_BUDGET=1024MiB";
    let script = format!("#!/bin/sh\n{settings} exec {} \"$@\"\n", agent.display());
    std::fs::write(&greedy, script).expect("a file of our own");
    std::fs::set_permissions(&greedy, std::fs::Permissions::from_mode(0o755)).expect("ours");
    let run = soak("packet_flood", &greedy);
    assert_eq!(run.code, Some(1), "{}", run.stdout);
    let figures = &run.figures[0];
    assert_eq!(figures["pass"], false);
    let wrong = figures["wrong"].as_array().expect("sentences").iter().filter_map(Value::as_str);
    // Of so short a load the pace is what else goes on at the moment.
    let others: Vec<_> = wrong
        .filter(|told| !told.starts_with("memory reached") && !told.starts_with("a packet takes"))
        .collect();
    assert!(others.is_empty(), "{others:#?}");
    assert!(run.stdout.contains("WRONG: memory reached"), "{}", run.stdout);
}

#[test]
fn an_agent_that_does_not_even_start_fails() {
    need!(@check KERNEL);
    need!(@check &[Need::Tcx]);
    let run = soak("packet_flood", Path::new("/bin/false"));
    assert_eq!(run.code, Some(1), "{}", run.stdout);
    assert_eq!(run.figures[0]["pass"], false);
    assert!(run.stdout.contains("it did not come to its end"), "{}", run.stdout);
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let code = |arguments: &[&str]| {
        let run = Command::new(env!("CARGO_BIN_EXE_soak")).args(arguments).output();
        run.expect("it starts").status.code()
    };
    for wrong in [&["--minutes", "0"][..], &["--minutes", "x"], &["--fast"], &["--only"]] {
        assert_eq!(code(wrong), Some(2), "{wrong:?}");
    }
    let misspelt = ["--quick", "--only", "packet_flood", "--only", "packet_floot"];
    assert_eq!(code(&misspelt), Some(2), "one of two names is no scenario's");
    assert_eq!(code(&["--agent", "/nowhere/orb8-agent"]), Some(2));
    assert_eq!((code(&["--help"]), code(&["--list"])), (Some(0), Some(0)));
}
