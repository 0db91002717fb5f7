//! Reads `fixtures/*.txt`: what filters mean, as data.

use std::collections::BTreeSet;

use orb8_proto::v1::condition::{Field, Side};
use orb8_proto::v1::{
    Condition, Endpoint, FlowFilter, NetworkFlow, PortRange, Ports, Process, ServiceUse, Strings,
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

/// The cases on addresses, protocols, interfaces and processes.
pub(crate) fn filters() -> Cases {
    read(include_str!("../fixtures/filters.txt"))
}

/// The cases on who is at the ends.
pub(crate) fn identity() -> Cases {
    read(include_str!("../fixtures/identity.txt"))
}

fn read(text: &str) -> Cases {
    let mut cases = Cases::default();
    for line in text.lines() {
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
            "plane" => flow.plane = text,
            "supplement" => flow.supplement = value == "true",
            "service" => service(&mut flow, value),
            "verdict" => flow.service.get_or_insert_default().verdict = text,
            "owner" => (flow.namespace, flow.pod_name) = pair(value),
            _ => match key.split_once('.') {
                Some(("src", key)) => endpoint(source(&mut flow), key, text),
                Some(("dst", key)) => endpoint(destination(&mut flow), key, text),
                _ => panic!("unknown key {key:?}"),
            },
        }
    }
    (name, flow)
}

fn endpoint(end: &mut Endpoint, key: &str, text: String) {
    match key {
        "kind" => end.kind = text,
        "pod" => (end.namespace, end.pod) = pair(&text),
        "service" => (end.namespace, end.service) = pair(&text),
        "workload" => (end.workload_kind, end.workload) = pair(&text),
        "node" => end.node = text,
        "zone" => end.zone = text,
        "container" => end.container = text,
        "id" => end.container_id = text,
        "by" => end.attribution = text,
        "labels" => {
            end.labels = text
                .split(',')
                .map(|label| label.split_once(':').expect("key:value"))
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect();
        }
        _ => panic!("unknown key {key:?} of an end"),
    }
}

fn service(flow: &mut NetworkFlow, value: &str) {
    let service: &mut ServiceUse = flow.service.get_or_insert_default();
    (service.namespace, service.name) = pair(value);
}

fn pair(text: &str) -> (String, String) {
    let (first, second) = text.split_once('/').expect("first/second");
    (first.to_owned(), second.to_owned())
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
        "supplement" => Some(Field::Supplement(values[0] == "true")),
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
                "namespace" => Field::Namespace(strings),
                "pod" => Field::Pod(strings),
                "workload" => Field::Workload(strings),
                "service" => Field::Service(strings),
                "node" => Field::Node(strings),
                "selector" => Field::Selector(strings),
                "plane" => Field::Plane(strings),
                "attribution" => Field::Attribution(strings),
                "kind" => Field::Kind(strings),
                "container" => Field::Container(strings),
                "zone" => Field::Zone(strings),
                "verdict" => Field::Verdict(strings),
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
