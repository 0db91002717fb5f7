//! What `orb8 bench` makes of the figures of runs, how it is printed, and when it refuses to run.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use insta::assert_snapshot;
use orb8_cli::args::{Cli, GlobalArgs};
use orb8_cli::bench::judge::{self, Figures, Round};
use orb8_cli::bench::page::{self, AgentFigures, Report};
use orb8_cli::error::Exit;
use orb8_cli::terminal::Terminal;
use orb8_proto::v1::{AgentStatus, Totals};
use support::fake_agent::{FakeAgent, Script};
use support::orb8;

/// So much of what a run gives, beside some that is near to 1.
fn figures(of: [f64; 6], share: f64) -> Figures {
    of.map(|figure| Some(figure * share))
}

/// A quiet machine on which each kind of verdict occurs.
fn rounds() -> Vec<Round> {
    const ALONE: [f64; 6] = [4.2e9, 0.31, 812_000.0, 1.2, 14.2, 31.0];
    const TRACED: [f64; 6] = [4.18e9, 0.32, 780_000.0, 1.25, 14.2, 31.5];
    let noise = [1.01, 0.99, 1.0, 1.005, 0.995];
    let spread = [1.002, 0.999, 1.0, 0.998, 1.001];
    noise
        .iter()
        .zip(spread)
        .map(|(share, spread)| {
            let mut again = figures(ALONE, *share);
            // Answers of equals are far apart.
            again[5] = again[5].map(|p99| p99 * share * share * share);
            Round { traced: figures(TRACED, spread), baseline: figures(ALONE, 1.0), again }
        })
        .collect()
}

fn report(rounds: &[Round]) -> Report {
    Report {
        target: "loopback".to_owned(),
        rounds: rounds.len(),
        rounds_asked: 5,
        duration_seconds: 3.0,
        rows: judge::rows(rounds),
        agent: AgentFigures {
            version: "0.1.0".to_owned(),
            capture: "both".to_owned(),
            cpu_percent: Some(0.4321),
            resident_bytes: 21 << 20,
            map_bytes: 12 << 20,
            datagrams: 24_000_000,
            datagrams_counted: 24_000_000,
            lost_packets: 0,
            lost_events: 0,
            ledger: "balanced".to_owned(),
            governor_steps: 0,
            given_up: Vec::new(),
            health_message: String::new(),
        },
    }
}

fn global(words: &[&str]) -> GlobalArgs {
    let words = ["orb8", "bench"].iter().chain(words);
    Cli::read(words.copied()).unwrap().global
}

/// The data and what is said beside it.
fn printed(report: &Report, words: &[&str]) -> String {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    {
        let mut terminal = Terminal {
            out: Box::new(&mut out),
            err: Box::new(&mut err),
            out_color: false,
            err_color: false,
            ..Terminal::process()
        };
        page::write(report, &global(words), &mut terminal).unwrap();
        page::conclude(report, &mut terminal);
    }
    let [out, err] = [out, err].map(|text| String::from_utf8(text).unwrap());
    format!("{out}--- stderr ---\n{err}")
}

#[test]
fn every_format_of_a_report() {
    let report = report(&rounds());
    for format in ["table", "json", "jsonl", "yaml", "csv"] {
        assert_snapshot!(format!("bench_{format}"), printed(&report, &["-o", format]));
    }
}

#[test]
fn one_round_shows_no_difference_and_a_system_without_cpu_clocks_says_so() {
    let mut one = rounds();
    one.truncate(1);
    let Round { traced, baseline, again } = &mut one[0];
    for figures in [traced, baseline, again] {
        (figures[1], figures[3]) = (None, None);
    }
    let mut report = report(&one);
    report.agent.cpu_percent = None;
    assert_snapshot!(printed(&report, &[]));
}

#[test]
fn what_the_agent_lost_or_counted_wrongly_is_a_warning_and_partial() {
    let whole = report(&rounds());
    assert!(whole.is_whole());
    let spoil = |change: &dyn Fn(&mut AgentFigures)| {
        let mut report = whole.clone();
        change(&mut report.agent);
        assert!(!report.is_whole());
        printed(&report, &["--no-headers"]).split("stderr ---\n").nth(1).unwrap().to_owned()
    };
    let all = [
        spoil(&|agent| (agent.datagrams_counted, agent.lost_packets) = (23_999_990, 10)),
        spoil(&|agent| agent.lost_events = 3),
        spoil(&|agent| agent.datagrams_counted += 1),
        spoil(&|agent| agent.ledger = "unbalanced".to_owned()),
    ];
    assert_snapshot!(all.join("\n"));
}

#[test]
fn what_agents_gave_up_to_keep_to_their_budgets_is_a_warning_and_still_whole() {
    let told = |steps, given_up: &[&str]| {
        let mut report = report(&rounds());
        report.agent.governor_steps = steps;
        report.agent.given_up = given_up.iter().map(ToString::to_string).collect();
        assert!(report.is_whole());
        let page = printed(&report, &["--no-headers"]);
        page.lines().last().unwrap().to_owned()
    };
    let starts = "early word of starts without a SYN";
    assert_eq!(
        [told(3, &["time between reads: 2 s", starts]), told(1, &[])],
        [
            "warning: the agents took 3 steps to keep to their budgets; given up at the end of a run: \
             time between reads: 2 s; early word of starts without a SYN",
            "warning: the agents took 1 step to keep to their budgets; nothing was given up at the end \
             of a run",
        ]
    );
    assert!(told(0, &[]).starts_with("note: "));
}

/// Somebody who does not hinder a run here.
fn elsewhere() -> FakeAgent {
    let totals = Totals { boot_id: "of another machine".to_owned(), ..Totals::default() };
    FakeAgent::start(Script { totals: Ok(totals), ..Script::default() })
}

#[test]
fn ended_before_a_round_it_is_a_document_without_figures() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let run = |format| {
        let words = ["bench", "--agent-binary", file, "--duration", "10m", "-o", format];
        let run = support::orb8_until(&words, &[&elsewhere()], "Ctrl-C ends it");
        assert_eq!(run.exit, Exit::Done, "{run:?}");
        assert!(run.err.contains("ended before a round was complete"), "{run:?}");
        run.out
    };
    let document: serde_json::Value = serde_json::from_str(&run("json")).unwrap();
    let verdicts = document["rows"].as_array().unwrap().iter().map(|row| &row["verdict"]);
    assert_eq!(verdicts.collect::<Vec<_>>(), ["not_measured"; 6]);
    assert_eq!((&document["rounds"], &document["agent"]["cpu_percent"]), (&0.into(), &().into()));
    assert_eq!(run("csv").lines().count(), 7);
    assert_eq!(run("table"), "");
}

#[test]
fn an_agent_that_answers_with_an_error_may_count_here() {
    use tonic::Status;
    let refusal = |script: Script| orb8(&["bench"], &[&FakeAgent::start(script)], b"");
    let failed = Err(Status::resource_exhausted("not now"));
    let older = Err(Status::unimplemented("GetTotals"));
    for (totals, status, says) in [
        (failed, Ok(AgentStatus::default()), "not now"),
        (older.clone(), Ok(AgentStatus::default()), "does not serve orb8"),
    ] {
        let run = refusal(Script { totals, status, ..Script::default() });
        assert_eq!(run.exit, Exit::Usage, "{run:?}");
        assert!(run.err.contains(says) && run.err.contains("is not known"), "{run:?}");
    }
    // Something else that speaks gRPC.
    let other =
        Script { totals: older, status: Err(Status::unimplemented("")), ..Script::default() };
    let agent = FakeAgent::start(other);
    let run = orb8(&["bench", "--agent-binary", "/nowhere/orb8-agent"], &[&agent], b"");
    assert!(run.err.ends_with("error: --agent-binary /nowhere/orb8-agent is no file\n"), "{run:?}");
}

#[test]
fn another_agent_on_this_host_is_refused_with_the_remedy() {
    let agent = FakeAgent::start(Script { totals: Ok(Totals::default()), ..Script::default() });
    assert_snapshot!(orb8(&["bench"], &[&agent], b"").page());
}

#[test]
fn an_agent_of_another_machine_is_no_hindrance_but_one_is_needed_here() {
    let agent = elsewhere();
    let run = orb8(&["bench", "--agent-binary", "/nowhere/orb8-agent"], &[&agent], b"");
    assert_eq!(run.exit, Exit::Usage);
    assert!(run.err.ends_with("error: --agent-binary /nowhere/orb8-agent is no file\n"), "{run:?}");
    // Not a program.
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let words = ["bench", "--agent-binary", file, "--duration", "50ms", "--pairs", "1"];
    let run = orb8(&words, &[&agent], b"");
    assert_eq!(run.exit, Exit::Usage);
    assert!(run.err.contains("cannot be started"), "{run:?}");
    assert!(run.err.contains("name it with --agent-binary FILE"), "{run:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn an_agent_that_ends_at_once_is_told_with_its_status() {
    let run = |program| {
        let words = ["bench", "--agent-binary", program, "--duration", "50ms", "--pairs", "1"];
        orb8(&words, &[&elsewhere()], b"")
    };
    // It refuses the agent's words, and says so.
    let refused = run("/bin/ls");
    assert_eq!(refused.exit, Exit::Failed, "{refused:?}");
    assert!(refused.err.contains("the agent ended with exit status: 2 before"), "{refused:?}");
    assert!(refused.err.contains("--strict"), "{refused:?}");
}

#[test]
fn words_that_are_wrong_are_usage_errors() {
    let lines = [
        "--pairs 0",
        "--duration 1ms",
        "--capture both",
        "--fields name",
        "--file saved.jsonl",
        "--target http://node-b:7000",
        "--target node-b:7000 --listen 127.0.0.1:0",
        "--listen localhost:7000",
    ];
    let all = lines.map(|line| {
        let words: Vec<&str> = ["bench"].into_iter().chain(line.split(' ')).collect();
        let run = orb8(&words, &[], b"");
        assert_eq!(run.exit, Exit::Usage, "{line}");
        format!("{line}\n{}", run.page())
    });
    assert_snapshot!(all.join("\n\n"));
}

#[test]
fn a_far_end_says_where_it_is_and_ends_when_asked_to() {
    let run = support::orb8_until(&["bench", "--listen", "127.0.0.1:0"], &[], "Ctrl-C ends it");
    assert_eq!(run.exit, Exit::Done);
    assert!(run.err.contains("at 127.0.0.1:"), "{run:?}");
}
