//! `orb8 flows` as people and programs see it: every format, every remark, every exit code.

mod support;

use insta::assert_snapshot;
use orb8_cli::error::Exit;
use orb8_proto::v1::condition::Field;
use orb8_proto::v1::sort::Field as SortField;
use orb8_proto::v1::{AnswerContext, NetworkFlow, PortRange, QueryFlowsResponse, Sort};
use support::fake_agent::{End, FakeAgent, Script};
use support::{NOW, Run, orb8, sample};
use tonic::Status;

fn agent() -> FakeAgent {
    answering(sample::response(NOW))
}

fn answering(response: QueryFlowsResponse) -> FakeAgent {
    FakeAgent::start(Script { flows: Ok(response), ..Script::default() })
}

fn flows(words: &[&str]) -> Run {
    let words: Vec<&str> = ["flows"].iter().chain(words).copied().collect();
    orb8(&words, &[&agent()], b"")
}

/// What is said when the agent answers with no flows and this context.
fn empty(words: &[&str], context: Option<AnswerContext>) -> String {
    let words: Vec<&str> = ["flows"].iter().chain(words).copied().collect();
    let nodes = vec![sample::node("node-a")];
    let agent = answering(QueryFlowsResponse { nodes, context, ..QueryFlowsResponse::default() });
    let run = orb8(&words, &[&agent], b"");
    assert_eq!((run.out.as_str(), run.exit), ("", Exit::Done));
    run.err
}

#[test]
fn table_is_aligned_and_in_human_units() {
    assert_snapshot!(flows(&[]).page());
}

#[test]
fn wide_adds_columns() {
    assert_snapshot!(flows(&["-o", "wide"]).page());
}

#[test]
fn json_has_all_fields_with_plain_numbers_and_nulls() {
    assert_snapshot!(flows(&["-o", "json"]).page());
}

#[test]
fn jsonl_is_one_flow_a_line() {
    assert_snapshot!(flows(&["-o", "jsonl"]).page());
}

#[test]
fn yaml_is_the_document_of_json() {
    assert_snapshot!(flows(&["-o", "yaml"]).page());
}

#[test]
fn csv_has_one_column_a_value() {
    assert_snapshot!(flows(&["-o", "csv"]).page());
}

#[test]
fn colours_mark_direction_and_state() {
    assert_snapshot!(flows(&["--color", "always"]).out.replace('\u{1b}', "^"));
}

#[test]
fn fields_choose_columns_and_keys() {
    let chosen = ["--fields", "dst,bytes,tcp,source.process.comm,first_seen_ns"];
    assert_snapshot!("fields_table", flows(&chosen).page());
    let chosen = "src_ip,bytes,tcp.state,source.process";
    for format in ["json", "jsonl", "yaml", "csv"] {
        let run = flows(&["-o", format, "--fields", chosen]);
        assert_snapshot!(format!("fields_{format}"), run.page());
    }
}

#[test]
fn headers_can_be_left_out() {
    assert!(flows(&["--no-headers"]).out.starts_with("[fd00::2]:53 "));
    let run = flows(&["--no-headers", "-o", "csv", "--fields", "bytes"]);
    assert_eq!(run.out, "18446744073709551615\n1572864\n2960\n840\n100\n");
}

#[test]
fn the_request_carries_filter_bounds_sort_and_limit() {
    let agent = agent();
    let words = [
        "flows",
        "--port",
        "53,8000-8100",
        "--not",
        "--from-ip",
        "10.0.0.0/8",
        "--port",
        "443",
        "--since",
        "5m",
        "--until",
        "2026-01-31T11:59:00Z",
        "--sort",
        "+packet-rate",
        "--limit",
        "7",
    ];
    assert_eq!(orb8(&words, &[&agent], b"").exit, Exit::Done);
    let request = agent.asked().flows.remove(0);
    assert_eq!(request.start_time_ns, NOW - 300 * sample::SECOND);
    assert_eq!(request.end_time_ns, NOW - 60 * sample::SECOND);
    assert_eq!(request.limit, 7);
    let sort = Sort { field: SortField::PacketsPerSecond.into(), ascending: true };
    assert_eq!(request.sort, Some(sort));
    let conditions = request.filter.unwrap().all;
    assert_eq!(conditions.len(), 3, "the third leaves out what passes the node");
    let Some(Field::Port(ports)) = &conditions[0].field else { panic!("{conditions:?}") };
    let range = |first, last| PortRange { first, last };
    assert_eq!(ports.ranges, [range(53, 53), range(8000, 8100), range(443, 443)]);
    assert!(!conditions[0].negate && conditions[1].negate);
    assert_eq!(conditions[1].side, 1);
}

#[test]
fn last_asks_for_the_latest_and_sorts_them_as_wanted() {
    let agent = agent();
    let words = ["flows", "--last", "3", "--sort", "+bytes", "-o", "csv", "--fields", "bytes"];
    let run = orb8(&words, &[&agent], b"");
    let request = agent.asked().flows.remove(0);
    assert_eq!(request.limit, 3);
    assert_eq!(request.sort.unwrap().field, i32::from(SortField::LastSeen));
    let bytes: Vec<u64> = run.out.lines().skip(1).map(|line| line.parse().unwrap()).collect();
    assert_eq!(bytes.len(), 3);
    assert!(bytes.is_sorted(), "{bytes:?}");
}

#[test]
fn several_nodes_are_named_in_the_table() {
    let mut second = sample::response(NOW);
    second.nodes = vec![sample::node("node-b")];
    second.flows.truncate(1);
    second.flows[0].node_name = "node-b".to_owned();
    let run = orb8(&["flows", "--limit", "3"], &[&agent(), &answering(second)], b"");
    assert_snapshot!(run.page());
}

#[test]
fn an_empty_answer_says_why() {
    let context = sample::context(NOW);
    let unattached = AnswerContext {
        interfaces_attached: 0,
        health_message: "CAP_BPF is missing".to_owned(),
        ..context.clone()
    };
    let no_interface = AnswerContext { interfaces_attached: 0, ..context.clone() };
    let no_packets = AnswerContext { packets_seen: 0, ..context.clone() };
    let none_held = AnswerContext { flows_held: 0, ..context.clone() };
    let at_sockets = |packets_seen, interfaces_attached| AnswerContext {
        interfaces_attached,
        socket_plane: "attached".to_owned(),
        packets_seen,
        ..context.clone()
    };
    let attaching = AnswerContext {
        health_message: "no interface is attached yet".to_owned(),
        interfaces_attaching: 3,
        ..no_interface.clone()
    };
    let no_sockets = AnswerContext {
        health_message: "sockets (attach to the cgroup /x: not permitted)".to_owned(),
        socket_plane: "failed".to_owned(),
        ..no_interface.clone()
    };
    let filter = ["--not", "--port", "443", "-4", "--since", "10m"];
    let said = [
        empty(&[], Some(unattached)),
        empty(&[], Some(no_interface)),
        empty(&[], Some(no_packets)),
        empty(&[], Some(none_held)),
        empty(&[], Some(at_sockets(0, 0))),
        empty(&[], Some(at_sockets(0, 2))),
        empty(&["--port", "443"], Some(at_sockets(9, 0))),
        empty(&[], Some(attaching)),
        empty(&[], Some(no_sockets)),
        empty(&filter, Some(context.clone())),
        empty(&[], Some(context)),
        empty(&[], None),
    ];
    assert_snapshot!(said.concat());
}

#[test]
fn bounds_beyond_what_is_held_are_told() {
    for words in [["--since", "2h"], ["--until", "90m"]] {
        assert_eq!(
            flows(&words).err,
            "note: the answer of node-a holds from 2026-01-31T11:00:00.000Z on; what ended before \
             may be forgotten\n"
        );
    }
    assert_eq!(flows(&["--since", "30m"]).err, "");
}

#[test]
fn a_limit_that_cuts_is_told() {
    let mut response = sample::response(NOW);
    response.matched = 5000;
    let run = orb8(&["flows"], &[&answering(response)], b"");
    assert_eq!(run.err, "note: 5 of 5000 matching flows shown; ask for more with --limit\n");
    assert_eq!(run.exit, Exit::Done);
    let mut response = sample::response(NOW);
    response.flows.truncate(2);
    let run = orb8(&["flows", "--last", "2"], &[&answering(response)], b"");
    assert_eq!(run.err, "note: 2 of 5 matching flows shown; ask for more with --last\n");
}

#[test]
fn loss_within_the_answer_is_told_and_exits_with_3() {
    let mut response = sample::response(NOW);
    response.flows.truncate(1);
    response.loss = vec![sample::loss()];
    response.nodes[0].complete = false;
    let agent = answering(response);
    assert_snapshot!("loss_table", orb8(&["flows"], &[&agent], b"").page());
    let run = orb8(&["flows", "-o", "json", "--fields", "bytes"], &[&agent], b"");
    assert_snapshot!("loss_json", run.page());
    assert_eq!(orb8(&["flows", "--allow-partial"], &[&agent], b"").exit, Exit::Done);
}

#[test]
fn a_missing_node_is_named_and_exits_with_3() {
    let dead = FakeAgent::start(Script {
        flows: Err(Status::internal("the flow table is gone")),
        ..Script::default()
    });
    let agent = agent();
    let words = ["flows", "-o", "yaml", "--fields", "src_ip"];
    assert_snapshot!(orb8(&words, &[&agent, &dead], b"").page());
    let run = orb8(&["flows", "--allow-partial"], &[&agent, &dead], b"");
    assert_eq!(run.exit, Exit::Done);
    assert!(run.err.contains("the flow table is gone"), "{}", run.err);
}

#[test]
fn a_node_that_is_partial_is_told() {
    let mut response = sample::response(NOW);
    response.nodes[0].state = "partial".to_owned();
    response.nodes[0].message = "still starting".to_owned();
    let run = orb8(&["flows"], &[&answering(response)], b"");
    assert_eq!(run.err, "warning: node node-a is partial: still starting\n");
    assert_eq!(run.exit, Exit::Partial);
}

#[test]
fn failures_have_their_exit_codes() {
    let failing = |status: Status| {
        let agent = FakeAgent::start(Script { flows: Err(status), ..Script::default() });
        orb8(&["flows"], &[&agent], b"").page()
    };
    let silent = FakeAgent::start(Script { silent: true, ..Script::default() });
    let pages = [
        failing(Status::invalid_argument("limit 9 is above the maximum, 5")),
        failing(Status::internal("the flow table is gone")),
        failing(Status::unimplemented("")),
        orb8(&["--timeout", "100ms", "flows"], &[&silent], b"").page(),
    ];
    assert_snapshot!(pages.join("\n\n"));
}

#[test]
fn words_that_are_wrong_are_usage_errors() {
    let mut pages = String::new();
    for line in [
        "flows --ip 10.0.0",
        "flows --port 70000",
        "flows --port 9-1",
        "flows --protocol tpc",
        "flows --interface eth[",
        "flows --direction in",
        "flows --scope here",
        "flows --state done",
        "flows -4 -6",
        "flows --not",
        "flows --not --not --port 1",
        "flows --limit 0",
        "flows --limit 1 --last 1",
        "flows --sort size",
        "flows --since yesterday",
        "flows --since 1m --until 2m",
        "flows --duration 5s",
        "flows --follow --limit 1",
        "flows --fields nothing",
        "flows -o json --fields src",
        "flows -o xml",
        "flows --timeout 5",
        "flows --agent http://localhost",
        "flows --file a --agent localhost",
        "flows --file a --follow",
        "status --file a",
        "trace network --file a",
        "trace network --rate-limit 5",
        "trace network --interval 1us",
        "trace",
        "fows",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let run = orb8(&words, &[], b"");
        assert_eq!((run.exit, run.out.as_str()), (Exit::Usage, ""), "{line}: {}", run.err);
        pages += &format!("$ orb8 {line}\n{}\n", run.err);
    }
    assert_snapshot!(pages);
}

#[test]
fn saved_flows_read_back_with_the_same_filters() {
    let saved = flows(&["-o", "jsonl"]).out;
    let read = |words: &[&str]| {
        let words: Vec<&str> = ["flows", "--file", "-"].iter().chain(words).copied().collect();
        orb8(&words, &[], saved.as_bytes())
    };
    assert_eq!(read(&["-o", "jsonl"]).out, saved);
    assert_eq!(read(&[]).out, flows(&[]).out);
    let run = read(&["--protocol", "icmp", "-o", "csv", "--fields", "dst_ip,bytes"]);
    assert_eq!(run.page(), "dst_ip,bytes\n10.0.0.9,840\n--- exit 0 (Done) ---");
    let run = read(&["--port", "1"]);
    assert_eq!(run.err, "note: no flows in stdin: 5 flows held, none matches --port 1\n");
    assert_eq!(run.exit, Exit::Done);
}

#[test]
fn a_saved_document_keeps_its_losses_and_missing_nodes() {
    let mut response = sample::response(NOW);
    response.loss = vec![sample::loss()];
    let saved = orb8(&["flows", "-o", "json"], &[&answering(response)], b"").out;
    let run = orb8(&["flows", "--file", "-", "-o", "json"], &[], saved.as_bytes());
    assert_eq!(run.out, saved);
    assert_eq!(run.exit, Exit::Partial);
}

#[test]
fn saved_lines_keep_what_the_answer_lacks() {
    let mut response = sample::response(NOW);
    response.flows.truncate(1);
    response.loss = vec![sample::loss()];
    response.nodes[0].complete = false;
    let dead = FakeAgent::start(Script {
        flows: Err(Status::internal("the flow table is gone")),
        ..Script::default()
    });
    let asked = orb8(&["flows", "-o", "jsonl"], &[&answering(response), &dead], b"");
    let read = |words: &[&str]| {
        let words: Vec<&str> = ["flows", "--file", "-"].iter().chain(words).copied().collect();
        orb8(&words, &[], asked.out.as_bytes())
    };
    assert_eq!((asked.exit, read(&[]).exit), (Exit::Partial, Exit::Partial));
    assert_eq!(read(&["-o", "jsonl"]).out, asked.out);
    assert_eq!(read(&["--allow-partial"]).exit, Exit::Done);
    let words = ["-o", "jsonl", "--fields", "src_ip"];
    assert_snapshot!(read(&words).page());
    // A missing node alone makes it partial, too.
    let words = ["flows", "-o", "jsonl"];
    let asked = orb8(&words, &[&agent(), &dead], b"");
    let read = orb8(&["flows", "--file", "-"], &[], asked.out.as_bytes());
    assert_eq!(read.exit, Exit::Partial, "{}", read.err);
}

#[test]
fn files_that_are_no_answer_are_told() {
    let read = |input: &str| {
        orb8(&["flows", "--file", "-", "-o", "csv", "--fields", "src_ip"], &[], input.as_bytes())
    };
    let flow = r#"{"src_ip":"10.0.0.1","dst_ip":"10.0.0.2"}"#;
    let mut pages = [
        read(""),
        read("hello"),
        read("{\"bytes\":1}"),
        read(&format!("{flow}\n{{\"src_ip\":\"10.")),
    ]
    .map(|run| run.page())
    .join("\n\n");
    pages += "\n\n";
    pages += &orb8(&["flows", "--file", "/nowhere/saved.jsonl"], &[], b"").page();
    assert_snapshot!(pages);
}

#[test]
fn following_prints_held_flows_first_and_then_events() {
    let mut response = sample::response(NOW);
    response.flows.truncate(2);
    let agent = FakeAgent::start(Script {
        flows: Ok(response),
        events: sample::events(NOW),
        end: End::Close,
        ..Script::default()
    });
    let words = ["flows", "-f", "--last", "2", "--port", "443", "-o", "csv"];
    let run =
        orb8(&[&words[..], &["--fields", "type,time_ns,src_ip,state"]].concat(), &[&agent], b"");
    assert_snapshot!(run.page());
    let asked = agent.asked();
    assert_eq!(asked.flows[0].filter, asked.streams[0].filter);
    assert!(asked.flows[0].filter.is_some());
}

#[test]
fn following_without_bounds_asks_only_whether_the_agent_can_see() {
    let agent = FakeAgent::start(Script { end: End::Close, ..Script::default() });
    let run = orb8(&["flows", "-f", "--interval", "250ms"], &[&agent], b"");
    assert_eq!(run.exit, Exit::Partial, "the agent ended the stream");
    let limits: Vec<u32> = agent.asked().flows.iter().map(|request| request.limit).collect();
    assert_eq!(limits, [1]);
    assert_eq!(agent.asked().streams[0].update_interval_ms, 250);
}

/// Follows an agent that holds this and tells nothing more.
fn follow(words: &[&str], response: QueryFlowsResponse) -> (Run, FakeAgent) {
    let agent = answering(response);
    let words: Vec<&str> =
        ["flows", "-f", "--duration", "50ms"].iter().chain(words).copied().collect();
    (orb8(&words, &[&agent], b""), agent)
}

#[test]
fn following_since_asks_for_the_latest_and_prints_the_oldest_first() {
    let mut response = sample::response(NOW);
    response.matched = 1509;
    let words = ["--since", "2h", "-o", "csv", "--fields", "time_ns"];
    let (run, agent) = follow(&words, response);
    let asked = agent.asked().flows.remove(0);
    assert_eq!((asked.limit, asked.start_time_ns), (0, NOW - 2 * sample::HOUR));
    assert_eq!(asked.sort, Some(Sort { field: SortField::LastSeen.into(), ascending: false }));
    // The one whose time is not known comes before all others.
    let times: Vec<i64> =
        run.out.lines().skip(1).map(|line| line.parse().unwrap_or_default()).collect();
    assert_eq!(times.len(), 5);
    assert!(times.is_sorted(), "{times:?}");
    assert_eq!(
        run.err,
        "note: the answer of node-a holds from 2026-01-31T11:00:00.000Z on; what ended before may \
         be forgotten\n\
         note: 5 of 1509 matching flows shown; ask for more with --last\n\
         note: 0 flows started, 0 ended, 0 updates; nothing lost\n\
         note: nothing went by on node-a: no packets seen on 1 interface meanwhile\n"
    );
    assert_eq!(run.exit, Exit::Done);
}

#[test]
fn following_says_why_nothing_that_is_held_matches() {
    let mut response = sample::response(NOW);
    response.flows.clear();
    response.matched = 0;
    response.context.as_mut().unwrap().of_other_scopes = 3;
    let (run, _) = follow(&["--last", "5", "--port", "1"], response);
    let why = "note: no flows on node-a: 5 flows held, none matches --port 1; 3 flows that pass the \
               node are hidden; show what passes with --all-scopes\n";
    assert!(run.err.starts_with(why), "{}", run.err);
}

#[test]
fn what_the_held_flows_lack_is_part_of_the_recorded_stream() {
    let mut response = sample::response(NOW);
    response.loss = vec![sample::loss()];
    response.nodes[0].complete = false;
    let (run, _) = follow(&["--last", "5", "-o", "jsonl"], response);
    let read = orb8(&["flows", "--file", "-"], &[], run.out.as_bytes());
    assert_eq!((run.exit, read.exit), (Exit::Partial, Exit::Partial), "{}", run.out);
    assert!(read.err.contains("12 packets and 1.5KiB at flow_table"), "{}", read.err);
}

#[test]
fn following_a_blind_agent_says_so_once_and_exits_with_3() {
    let mut response = sample::response(NOW);
    response.flows.clear();
    response.nodes[0].complete = false;
    response.nodes[0].state = "partial".to_owned();
    response.nodes[0].message = "CAP_BPF is missing".to_owned();
    let context = response.context.as_mut().unwrap();
    context.interfaces_attached = 0;
    context.health_message = "CAP_BPF is missing".to_owned();
    let (run, _) = follow(&["--last", "5"], response);
    assert_snapshot!(run.page());
}

#[test]
fn every_leaf_of_json_is_a_column_and_none_is_missing() {
    fn leaves(value: &serde_json::Value, path: &str, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(object) => {
                for (key, value) in object {
                    let dot = if path.is_empty() { "" } else { "." };
                    leaves(value, &format!("{path}{dot}{key}"), found);
                }
            }
            _ => found.push(path.to_owned()),
        }
    }
    let whole = NetworkFlow {
        tcp: Some(orb8_proto::v1::TcpInfo::default()),
        icmp: Some(orb8_proto::v1::IcmpInfo::default()),
        source: sample::flows(NOW)[0].source.clone(),
        destination: sample::flows(NOW)[0].source.clone(),
        service: Some(orb8_proto::v1::ServiceUse {
            backend: sample::flows(NOW)[0].source.clone(),
            ..Default::default()
        }),
        ..NetworkFlow::default()
    };
    let record = orb8_query::rows::FlowRecord::from(&whole);
    let mut found = Vec::new();
    leaves(&serde_json::to_value(record).unwrap(), "", &mut found);
    assert_eq!(found, orb8_cli::network::columns::LEAVES);
}
