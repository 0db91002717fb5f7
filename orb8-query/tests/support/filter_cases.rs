//! Reads `fixtures/filters.txt`: what filters mean, as data. Depends on orb8-proto only, so that any
//! evaluator of `FlowFilter` can include it and be held to the same cases.

use std::collections::BTreeSet;

use orb8_proto::v1::condition::{Field, Side};
use orb8_proto::v1::{
    Condition, Endpoint, FlowFilter, NetworkFlow, PortRange, Ports, Process, Strings,
};

/// The flows and the cases.
#[derive(Debug, Default)]
pub(crate) struct Cases {
    /// By name.
    pub(crate) flows: Vec<(String, NetworkFlow)>,
    /// In the order of the file.
    pub(crate) cases: Vec<Case>,
}

/// One filter and what it means.
#[derive(Debug)]
pub(crate) struct Case {
    /// The line, to name it in a failure.
    pub(crate) line: String,
    /// The filter.
    pub(crate) filter: FlowFilter,
    /// The names of the flows that match; none if the filter must be refused.
    pub(crate) expected: Option<BTreeSet<String>>,
}

/// Reads the fixture.
pub(crate) fn read() -> Cases {
    let mut cases = Cases::default();
    for line in include_str!("../fixtures/filters.txt").lines() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(flow) = line.strip_prefix("flow ") {
            cases.flows.push(self::flow(flow));
            continue;
        }
        let (conditions, expected) =
            line.split_once("=>").unwrap_or_else(|| panic!("no => in {line:?}"));
        // An empty value keeps its blank: `ip  => error` lists one empty value.
        let conditions = conditions.strip_suffix(' ').unwrap_or(conditions);
        let all = if conditions.is_empty() {
            Vec::new()
        } else {
            conditions.split(" & ").map(condition).collect()
        };
        let every = || cases.flows.iter().map(|(name, _)| name.clone()).collect::<BTreeSet<_>>();
        let expected = match expected.trim() {
            "error" => None,
            "all" => Some(every()),
            "none" => Some(BTreeSet::new()),
            names => Some(names.split(' ').map(str::to_owned).collect()),
        };
        if let Some(stranger) =
            expected.iter().flatten().find(|name| !every().contains(name.as_str()))
        {
            panic!("{line:?} names the flow {stranger:?}, which is not defined");
        }
        cases.cases.push(Case { line: line.to_owned(), filter: FlowFilter { all }, expected });
    }
    cases
}

fn flow(line: &str) -> (String, NetworkFlow) {
    let mut words = line.split_whitespace();
    let name = words.next().expect("a flow has a name").to_owned();
    let mut flow = NetworkFlow::default();
    for word in words {
        let (key, value) = word.split_once('=').expect("key=value");
        let text = value.to_owned();
        let number = || value.parse().expect("a number");
        match key {
            "src" => flow.src_ip = text,
            "dst" => flow.dst_ip = text,
            "sport" => flow.src_port = number(),
            "dport" => flow.dst_port = number(),
            "protocol" => flow.protocol = text,
            "direction" => flow.direction = text,
            "interface" => flow.interface = text,
            "scope" => flow.scope = text,
            "state" => flow.state = text,
            "fragment" => flow.fragment = value == "true",
            "process" => source(&mut flow).process = Some(Process { pid: 1, comm: text }),
            "process2" => destination(&mut flow).process = Some(Process { pid: 1, comm: text }),
            "cgroup" => source(&mut flow).cgroup = text,
            "cgroup2" => destination(&mut flow).cgroup = text,
            _ => panic!("unknown key {key:?}"),
        }
    }
    (name, flow)
}

fn source(flow: &mut NetworkFlow) -> &mut Endpoint {
    flow.source.get_or_insert_default()
}

fn destination(flow: &mut NetworkFlow) -> &mut Endpoint {
    flow.destination.get_or_insert_default()
}

fn condition(text: &str) -> Condition {
    let (negate, text) = match text.strip_prefix("not ") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (side, text) = if let Some(rest) = text.strip_prefix("from ") {
        (Side::Source, rest)
    } else if let Some(rest) = text.strip_prefix("to ") {
        (Side::Destination, rest)
    } else {
        (Side::Either, text)
    };
    let (field, values) = match text.split_once(' ') {
        Some((field, values)) => (field, values.split('|').map(str::to_owned).collect()),
        None => (text, Vec::new()),
    };
    let field = match field {
        "?" => None,
        "port" => Some(Field::Port(Ports { ranges: values.iter().map(|v| range(v)).collect() })),
        "ip_version" => Some(Field::IpVersion(values[0].parse().expect("a number"))),
        field => {
            let strings = Strings { values };
            Some(match field {
                "ip" => Field::Ip(strings),
                "protocol" => Field::Protocol(strings),
                "interface" => Field::Interface(strings),
                "direction" => Field::Direction(strings),
                "scope" => Field::Scope(strings),
                "state" => Field::State(strings),
                "process" => Field::Process(strings),
                "cgroup" => Field::Cgroup(strings),
                _ => panic!("unknown field {field:?}"),
            })
        }
    };
    Condition { side: side.into(), negate, field }
}

fn range(text: &str) -> PortRange {
    let number = |text: &str| text.parse().expect("a port");
    match text.split_once('-') {
        Some((first, last)) => PortRange { first: number(first), last: number(last) },
        None => PortRange { first: number(text), last: number(text) },
    }
}
