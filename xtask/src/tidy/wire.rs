//! Rules of the wire types: in the agent they are made in `wire.rs` or files of a `wire` folder,
//! elsewhere only the envelopes of requests and answers may be named; in the command line the fields of a flow are read in
//! `rows.rs`.

use super::imports::first_segments;
use super::{Source, assert_found, assert_none, source};

const AGENT: &str = "orb8-agent/src/";
const COMMAND_LINE: &str = "orb8-cli/src/";

/// What the agent may name of `orb8.v1` outside `wire.rs`: the service, its requests and answers with
/// the parts that a feature hands to them, the filters inside a request, and the module itself.
const ENVELOPES: [&str; 23] = [
    "AgentStatus",
    "AnswerContext",
    "AttributionShare",
    "Condition",
    "Event",
    "FlowFilter",
    "GetStatusRequest",
    "GetTotalsRequest",
    "NodeStatus",
    "Ports",
    "QueryFlowsRequest",
    "QueryFlowsResponse",
    "StreamEventsRequest",
    "Strings",
    "Totals",
    "Unmatched",
    "condition",
    "event",
    "flow_event",
    "orbit_agent_service_client",
    "orbit_agent_service_server",
    "self",
    "sort",
];

fn conversions(sources: &[Source]) -> Vec<String> {
    let home = |path: &str| path.ends_with("/wire.rs") || path.contains("/wire/");
    let bound = |source: &&Source| {
        source.path.starts_with(AGENT) && !home(&source.path) && !source.is_test()
    };
    let mut found = vec![];
    for source in sources.iter().filter(bound) {
        for name in named(&source.code) {
            if !ENVELOPES.contains(&name.as_str()) {
                found.push(format!("{}: names `v1::{name}` outside wire.rs", source.path));
            }
        }
        // Under another name the rule above would not see it.
        for line in source.lines_with("v1 as") {
            found.push(format!("{}:{line}: renames `v1`", source.path));
        }
    }
    found
}

/// First segments of what is named behind `v1::`, however the path begins.
fn named(code: &str) -> Vec<String> {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices("v1::")
        .filter(|(at, _)| !code[..*at].ends_with(part))
        // The API groups of Kubernetes have a `v1` of their own.
        .filter(|(at, _)| {
            let begin = code[..*at].rfind(|c: char| !part(c) && c != ':').map_or(0, |at| at + 1);
            !code[begin..*at].starts_with("k8s_openapi::")
        })
        .flat_map(|(at, start)| first_segments(&code[at + start.len()..]))
        // A group may end with a comma.
        .filter(|name| !name.is_empty())
        .collect()
}

fn reads(sources: &[Source], fields: &[String]) -> Vec<String> {
    let bound = |source: &&Source| {
        let home = source.path.ends_with("/rows.rs") || source.is_test();
        source.path.starts_with(COMMAND_LINE) && !home
    };
    let mut found = vec![];
    for source in sources.iter().filter(bound) {
        for line in source.lines_with("NetworkFlow {") {
            found.push(format!("{}:{line}: makes or takes apart a flow", source.path));
        }
        let flows = names_of_flows(&source.code);
        for field in fields {
            for (at, read) in source.code.match_indices(&format!(".{field}")) {
                let after = source.code[at + read.len()..].chars().next();
                let whole = !after.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | '('));
                if whole && flows.iter().any(|flow| *flow == receiver(&source.code[..at])) {
                    let line = source.code[..at].lines().count();
                    found.push(format!("{}:{line}: reads `{field}` of a flow", source.path));
                }
            }
        }
    }
    found
}

/// Names that stand for flows: those that always do, and those declared with their type.
fn names_of_flows(code: &str) -> Vec<&str> {
    let mut names = vec!["flow", "flows"];
    for (at, _) in code.match_indices("NetworkFlow") {
        let before = code[..at].trim_end_matches(|c: char| c != ':' && c != '|' && c != '\n');
        if let Some(declared) = before.strip_suffix(':') {
            names.push(receiver(declared));
        }
    }
    names
}

/// The last name of a path, what is indexed if it ends so.
fn receiver(code: &str) -> &str {
    let code = code.trim_end();
    let code = code.strip_suffix(']').and_then(|c| c.rsplit_once('[')).map_or(code, |(c, _)| c);
    let start = code.rfind(|c: char| !c.is_alphanumeric() && c != '_').map_or(0, |at| at + 1);
    &code[start..]
}

/// Names of the fields of a message of a `.proto` file.
fn fields_of(proto: &str, message: &str) -> Vec<String> {
    let body = proto.split_once(&format!("message {message} {{")).map_or("", |(_, body)| body);
    let body = body.split_once("\n}").map_or(body, |(body, _)| body);
    body.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .filter_map(|line| line.split_once(" = "))
        .filter_map(|(declared, _)| declared.split_whitespace().last())
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_agent_makes_wire_types_in_wire_rs() {
    let sources = source::repository();
    assert!(named(&sources.iter().map(|s| s.code.as_str()).collect::<String>()).len() > 20);
    assert_none(&conversions(&sources));
}

#[test]
fn the_command_line_reads_flows_in_rows_rs() {
    let path = crate::root().join("orb8-proto/proto/orb8/v1/network.proto");
    let fields = fields_of(&std::fs::read_to_string(path).expect("read"), "NetworkFlow");
    assert!(fields.len() > 20 && fields.iter().any(|field| field == "src_ip"), "{fields:?}");
    assert_none(&reads(&source::repository(), &fields));
}

#[test]
fn conversions_out_of_place_are_found_in_every_form() {
    let file = |path: &str, code: &str| Source::new(&format!("{AGENT}{path}"), code);
    let sources = [
        file("network/wire.rs", "v1::NetworkFlow { a }"),
        file("network/wire/ends.rs", "v1::Endpoint { a }"),
        file("k8s/pods.rs", "use k8s_openapi::api::core::v1::Pod;"),
        file("network/a.rs", "v1::NetworkFlow { a }"),
        file("network/b.rs", "use orb8_proto::v1;\nuse v1::NetworkFlow;"),
        file("network/c.rs", "use orb8_proto::v1::{Event, Endpoint, event::Payload};"),
        file("network/d.rs", "use orb8_proto::{v1::IcmpInfo};"),
        file("network/e.rs", "use orb8_proto::v1::*;"),
        file("network/f.rs", "use orb8_proto::v1 as wire;"),
        file("export/grpc.rs", "use orb8_proto::v1::{QueryFlowsRequest, AgentStatus};"),
        file("agent.rs", "use tonic::transport::Endpoint; // v1::Endpoint"),
        file("k8s/a.rs", "use k8s_openapi::api::core::v1::{Node as ApiNode, Pod as ApiPod};"),
    ];
    assert_found(
        &conversions(&sources),
        &[
            "a.rs: names `v1::NetworkFlow`",
            "b.rs: names `v1::NetworkFlow`",
            "c.rs: names `v1::Endpoint`",
            "d.rs: names `v1::IcmpInfo`",
            "e.rs: names `v1::*`",
            "f.rs:1: renames `v1`",
        ],
    );
}

#[test]
fn reads_of_a_flow_out_of_place_are_found() {
    let file = |path: &str, code: &str| Source::new(&format!("{COMMAND_LINE}{path}"), code);
    let sources = [
        file("network/rows.rs", "flow.state"),
        file("network/a.rs", "let a = &flow.state;\nlet b = flow\n    .src_ip;"),
        file("network/b.rs", "fn a(told: &NetworkFlow) { told.state == b; }"),
        file("network/c.rs", "answer.flows[0].src_ip; |f: NetworkFlow| f.src_ip"),
        file("network/d.rs", "let NetworkFlow { state, .. } = flow;"),
        file("network/e.rs", "ledger.state; flow.state(); flow.state_cell; Line::flow(flow)"),
    ];
    let fields = ["src_ip", "state"].map(str::to_owned);
    assert_found(
        &reads(&sources, &fields),
        &[
            "a.rs:3: reads `src_ip`",
            "a.rs:1: reads `state`",
            "b.rs:1: reads `state`",
            "c.rs:1: reads `src_ip`",
            "c.rs:1: reads `src_ip`",
            "d.rs:1: makes or takes apart",
        ],
    );
}
