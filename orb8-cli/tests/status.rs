//! `orb8 status` as people and programs see it.

mod support;

use insta::assert_snapshot;
use orb8_cli::error::Exit;
use orb8_proto::v1::AgentStatus;
use support::fake_agent::{FakeAgent, Script};
use support::{NOW, Run, cluster, orb8, sample};
use tonic::Status;

fn agent(status: AgentStatus) -> FakeAgent {
    FakeAgent::start(Script { status: Ok(status), ..Script::default() })
}

fn status(words: &[&str]) -> Run {
    let words: Vec<&str> = ["status"].iter().chain(words).copied().collect();
    orb8(&words, &[&agent(sample::status(NOW))], b"")
}

fn unwell(words: &[&str]) -> Run {
    let words: Vec<&str> = ["status"].iter().chain(words).copied().collect();
    orb8(&words, &[&agent(sample::unwell(NOW))], b"")
}

#[test]
fn the_page_of_a_well_agent() {
    assert_snapshot!(status(&[]).page());
}

#[test]
fn the_wide_page_adds_the_checks_that_passed() {
    assert_snapshot!(status(&["-o", "wide"]).page());
}

#[test]
fn the_page_of_an_unwell_agent_shows_remedies_and_what_does_not_balance() {
    assert_snapshot!(unwell(&[]).page());
}

#[test]
fn the_page_of_an_agent_in_a_cluster_says_what_is_known_of_whom() {
    let agent = agent(cluster::status(NOW));
    assert_snapshot!("cluster_table", orb8(&["status"], &[&agent], b"").page());
    let wide = orb8(&["status", "-o", "wide"], &[&agent], b"").out;
    let (_, pods) = wide.split_once("\nPods\n").expect("the list of pods");
    let (pods, _) = pods.split_once("\n\n").expect("its end");
    assert_snapshot!("cluster_pods", pods);
    assert_snapshot!("cluster_json", orb8(&["status", "-o", "json"], &[&agent], b"").page());
}

#[test]
fn the_page_of_an_agent_that_lost_the_api_says_why() {
    let agent = agent(cluster::cut_off(NOW));
    assert_snapshot!(orb8(&["status"], &[&agent], b"").page());
}

#[test]
fn what_is_wrong_is_red() {
    assert_snapshot!(unwell(&["--color", "always"]).out.replace('\u{1b}', "^"));
}

#[test]
fn json_has_the_keys_of_the_status_at_top_level() {
    assert_snapshot!(status(&["-o", "json"]).page());
}

#[test]
fn other_formats_hold_the_same() {
    assert_snapshot!("jsonl", unwell(&["-o", "jsonl"]).page());
    assert_snapshot!("yaml", unwell(&["-o", "yaml"]).page());
    assert_snapshot!("csv", unwell(&["-o", "csv"]).page());
}

#[test]
fn fields_choose_columns_and_keys() {
    let fields = ["--fields", "node_name,packet_ledger.seen,memory.map_bytes"];
    assert_snapshot!("fields_table", status(&fields).page());
    let run = status(&[&fields[..], &["-o", "json"]].concat());
    assert_snapshot!("fields_json", run.page());
    let unknown = status(&["--fields", "packets"]);
    assert_eq!((unknown.exit, unknown.out.as_str()), (Exit::Usage, ""));
}

#[test]
fn every_path_of_the_json_is_a_field_in_every_format() {
    fn walk(value: &serde_json::Value, path: &str, found: &mut Vec<String>) {
        for (key, value) in value.as_object().into_iter().flatten() {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            walk(value, &path, found);
            found.push(path);
        }
    }
    let json = serde_json::from_str(&status(&["-o", "json"]).out).unwrap();
    let mut paths = Vec::new();
    walk(&json, "", &mut paths);
    assert!(paths.iter().any(|path| path == "packet_ledger.lost"), "{paths:?}");
    let chosen = paths.join(",");
    for format in ["table", "json", "jsonl", "yaml", "csv"] {
        let run = status(&["-o", format, "--fields", &chosen]);
        assert_eq!(run.exit, Exit::Done, "{format}: {}", run.err);
    }
    let lost = unwell(&["-o", "csv", "--fields", "packet_ledger.lost,event_ledger.produced"]);
    assert_snapshot!("fields_lists_csv", lost.page());
}

#[test]
fn every_column_of_csv_is_a_path_of_the_json() {
    let paths = orb8_cli::status::rows::paths();
    for leaf in orb8_cli::status::rows::LEAVES {
        assert!(paths.iter().any(|path| path == leaf), "{leaf}");
    }
}

#[test]
fn several_agents_are_pages_or_one_document() {
    let second = AgentStatus { node_name: "node-b".to_owned(), ..AgentStatus::default() };
    let agents = [agent(sample::status(NOW)), agent(second)];
    let agents = [&agents[0], &agents[1]];
    assert_snapshot!("several_table", orb8(&["status"], &agents, b"").page());
    let words = ["status", "-o", "json", "--fields", "node_name,healthy"];
    assert_snapshot!("several_json", orb8(&words, &agents, b"").page());
    let words = ["status", "-o", "csv", "--fields", "node_name,healthy"];
    assert_snapshot!("several_csv", orb8(&words, &agents, b"").page());
}

#[test]
fn a_missing_agent_is_named_and_exits_with_3() {
    let dead = FakeAgent::start(Script {
        status: Err(Status::internal("no memory")),
        ..Script::default()
    });
    let well = agent(sample::status(NOW));
    let words = ["status", "-o", "json", "--fields", "node_name"];
    assert_snapshot!(orb8(&words, &[&dead, &well], b"").page());
    assert_eq!(orb8(&["status", "--allow-partial"], &[&dead, &well], b"").exit, Exit::Done);
}

#[test]
fn an_old_agent_that_says_little_gives_a_short_page() {
    let little = AgentStatus { node_name: "node-a".to_owned(), ..AgentStatus::default() };
    assert_snapshot!(orb8(&["status"], &[&agent(little)], b"").page());
}
