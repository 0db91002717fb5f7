//! Clients that share no code with ours get what `orb8` gets: one in Python from the published
//! .proto files, one that learns everything by server reflection. Never asks for less than the
//! whole answer: what may differ is named, all else must be equal.

mod support;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use orb8_proto::v1::{IcmpInfo, NetworkFlow, QueryFlowsResponse};
use orb8_testbed::agent::{Captured, Cli, LISTEN};
use orb8_testbed::flow::{Flow, L4, TCP, Traffic, UDP};
use orb8_testbed::link::{Family, Port, Veth, VethOptions};
use orb8_testbed::need::{GRPC, Need};
use orb8_testbed::netns::Netns;
use orb8_testbed::packet::{self, Packet};
use orb8_testbed::raw::RawSocket;
use orb8_testbed::wait::{wait_for, wait_until};
use orb8_testbed::{need, python, traffic};
use serde_json::{Value, json};
use support::{DEADLINE, Direction, Egress, Ingress, Observed, Watch};

const NEEDS: &[Need] = &[Need::Root, Need::Bpf, Need::Tool("ip"), Need::Binary("orb8"), Need::Grpc];
const SERVICE: &str = "orb8.v1.OrbitAgentService";
/// More flows than any test makes, and the most that the agent answers.
const LIMIT: u32 = 100_000;

/// The three who ask, inside the agent's namespace.
struct Clients {
    netns: Netns,
    orb8: Cli,
}

/// One of those that share no code with ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Foreign {
    Published,
    Reflection,
}
use Foreign::{Published, Reflection};

impl Clients {
    fn of(watch: &Watch) -> Self {
        let netns = watch.netns().clone();
        Self { orb8: Cli::new(&netns), netns }
    }

    fn python(&self, script: &str) -> Command {
        let interpreter = python::interpreter(GRPC).expect("asked for as a need");
        let mut command = self.netns.command(interpreter);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
        // -B: the tests leave nothing beside their sources.
        command.arg("-B").arg(folder.join(script)).stdin(Stdio::null());
        command
    }

    /// A call of one of our service's methods.
    fn call(&self, client: Foreign, method: &str, request: &Value) -> Command {
        let mut command = match client {
            Published => {
                let mut command = self.python("published.py");
                let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../orb8-proto/proto");
                command.arg(root).args([LISTEN, method]);
                command
            }
            Reflection => self.reflection_call(&format!("{SERVICE}/{method}")),
        };
        command.arg(request.to_string());
        command
    }

    fn reflection_call(&self, path: &str) -> Command {
        let mut command = self.python("reflection.py");
        command.args([LISTEN, "call", path]);
        command
    }

    /// The one message that a method answers.
    #[track_caller]
    fn ask(&self, client: Foreign, method: &str, request: &Value) -> Value {
        only_line(&mut self.call(client, method, request), true)
    }

    /// What `orb8` prints as one document.
    #[track_caller]
    fn orb8(&self, line: &str) -> Value {
        let answer = self.orb8.run(line);
        assert_eq!(answer.code, Some(0), "orb8 {line}: {answer:?}");
        answer.json()
    }

    /// The answers of all three, once `orb8` says the same before and after the others: then
    /// nothing that `comparable` keeps has changed in between.
    #[track_caller]
    fn ask_all(
        &self,
        line: &str,
        method: &str,
        request: &Value,
        comparable: impl Fn(&Value) -> Value,
    ) -> [Value; 3] {
        wait_for(DEADLINE, "an answer that holds still", || {
            let before = self.orb8(line);
            let foreign = [Published, Reflection].map(|client| self.ask(client, method, request));
            let [published, reflection] = foreign;
            let same = comparable(&before) == comparable(&self.orb8(line));
            same.then_some([before, published, reflection])
        })
    }
}

/// Runs a script that prints one line; its exit code says whether it was answered.
#[track_caller]
fn only_line(command: &mut Command, answered: bool) -> Value {
    let output = command.output().expect("the interpreter starts");
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.success(), answered, "{command:?}: {stdout}{stderr}");
    assert_eq!(stdout.lines().count(), 1, "{command:?}: {stdout}{stderr}");
    serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}"))
}

/// A subscription whose lines are read as they come; ends with its handle.
struct Stream {
    child: Child,
    lines: Captured,
}

impl Stream {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("a client starts");
        let lines = Captured::follow(child.stdout.take().expect("stdout is piped"));
        Self { child, lines }
    }

    /// What has come so far, without a line that is still being written.
    fn events(&mut self) -> Vec<Value> {
        let ended = self.child.try_wait().expect("a child can be waited for");
        assert!(ended.is_none(), "a client ended with {ended:?}: {}", self.lines.finish());
        let text = self.lines.text();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole
            .lines()
            .map(|line| {
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
            })
            .collect()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A value as both forms of JSON mean it: protobuf's has 64-bit integers as text, `orb8`'s has
/// null for what is not known.
fn plain(value: &Value) -> Value {
    match value {
        Value::Null | Value::Bool(false) => Value::Null,
        Value::Bool(true) => json!("true"),
        Value::Number(number) => {
            let whole = number.as_i64().map(|n| n.to_string());
            let whole = whole.or_else(|| number.as_u64().map(|n| n.to_string()));
            let text = whole.or_else(|| number.as_f64().map(|n| n.to_string()));
            plain(&Value::String(text.expect("a number is one of these")))
        }
        Value::String(text) if text.is_empty() || text == "0" => Value::Null,
        Value::String(text) => json!(text),
        Value::Array(items) if items.is_empty() => Value::Null,
        Value::Array(items) => items.iter().map(plain).collect(),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| (name.clone(), plain(value)));
            // One without known fields stays: a message that is set is not one that is missing. But
            // `labels` is a map, and an empty one is none.
            let is_told = |(name, value): &(String, Value)| {
                !(value.is_null() || name == "labels" && *value == json!({}))
            };
            Value::Object(fields.filter(is_told).collect())
        }
    }
}

/// The parts of an answer that `orb8` prints, flows in the order of their numbers.
fn document(answer: &Value) -> Value {
    let mut flows: Vec<Value> = flows(answer).iter().map(plain).collect();
    flows.sort_by_key(|flow| flow["flow_id"].as_str().map(|id| id.parse::<u64>().ok()));
    json!({ "flows": flows, "nodes": plain(&answer["nodes"]), "loss": plain(&answer["loss"]) })
}

/// A status without what goes on while nothing happens.
fn standing(status: &Value) -> Value {
    let mut status = plain(status);
    let fields = status.as_object_mut().expect("a status is an object");
    for name in ["uptime_seconds", "memory"] {
        fields.remove(name);
    }
    // Whoever else is on this machine makes cgroups and connections meanwhile.
    for (section, names) in
        [("cgroups", &["known", "driver", "runtimes"][..]), ("connection_tracking", &["entries"])]
    {
        let section = fields.get_mut(section).and_then(Value::as_object_mut);
        let section = section.expect("a section of the status");
        for name in names {
            section.remove(*name);
        }
    }
    status
}

fn flows(answer: &Value) -> &[Value] {
    answer["flows"].as_array().expect("a list of flows")
}

/// The paths of all fields in a value that `keep` wants.
fn names(value: &Value, keep: fn(&Value) -> bool) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut open = vec![(String::new(), value)];
    while let Some((path, value)) = open.pop() {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields.iter().filter(|(_, value)| keep(value)) {
                    let path = format!("{path}.{name}");
                    names.insert(path.clone());
                    open.push((path, value));
                }
            }
            Value::Array(items) => open.extend(items.iter().map(|item| (path.clone(), item))),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    names
}

/// What the messages have is in `orb8`'s JSON under the same name, and all that `orb8` tells is in
/// the messages. What is not known is left out by the one and null in the other.
#[track_caller]
fn assert_same_names(orb8: &Value, foreign: &Value) {
    let missing = &names(foreign, |_| true) - &names(orb8, |_| true);
    assert!(missing.is_empty(), "orb8 does not print {missing:?}");
    let invented = &names(orb8, |value| !value.is_null()) - &names(foreign, |_| true);
    assert!(invented.is_empty(), "the messages do not have {invented:?}");
}

/// The flows of an answer as the testbed counts them.
fn counted(answer: &Value, watch: &Watch, direction: Direction) -> Traffic {
    let flows = flows(&document(answer)).iter().map(row).collect();
    let answer = QueryFlowsResponse { flows, ..QueryFlowsResponse::default() };
    Observed { status: watch.status(), answer }.traffic("eth0", direction)
}

/// A flow of either JSON, as far as it tells whose packets it counts.
fn row(flow: &Value) -> NetworkFlow {
    let text = |name: &str| flow[name].as_str().unwrap_or_default().to_owned();
    let number =
        |value: &Value| -> u64 { value.as_str().map_or(0, |text| text.parse().expect("a number")) };
    let small = |value: &Value| u32::try_from(number(value)).expect("a small number");
    let icmp = &flow["icmp"];
    NetworkFlow {
        src_ip: text("src_ip"),
        dst_ip: text("dst_ip"),
        src_port: small(&flow["src_port"]),
        dst_port: small(&flow["dst_port"]),
        protocol: text("protocol"),
        direction: text("direction"),
        interface: text("interface"),
        packets: number(&flow["packets"]),
        bytes: number(&flow["bytes"]),
        fragment: flow["fragment"] == "true",
        icmp: (!icmp.is_null())
            .then(|| IcmpInfo { r#type: small(&icmp["type"]), code: small(&icmp["code"]) }),
        ..NetworkFlow::default()
    }
}

/// Two hosts and an agent at the near one; no flow ends by being idle while a test compares.
fn scene() -> (Veth, Watch) {
    let veth = Veth::addressed(VethOptions::default());
    traffic::plain_tcp([&veth.near, &veth.far]);
    let options = support::options("eth0").env("ORB8_FLOW_TIMEOUT_SECS", 3600);
    let watch = Watch::with(&options, &veth.near.netns, 1);
    watch.wait_status("health", |status| status.healthy);
    (veth, watch)
}

/// Frames that no host answers: their receivers are nobody's.
fn frames(udp_ports: impl IntoIterator<Item = u16>) -> Vec<Packet> {
    let v4: [IpAddr; 2] = [Ipv4Addr::new(10, 1, 0, 1).into(), Ipv4Addr::new(10, 2, 0, 1).into()];
    let v6 = [1, 2].map(|net| IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, 1)));
    let mut packets = Vec::new();
    for port in udp_ports {
        for [from, to] in [v4, v6] {
            packets.push(packet::ip(from, to, &packet::udp(port, 53, usize::from(port % 64))));
        }
    }
    packets
}

/// Every kind of row: all protocols, without ports, fragments, both families and directions.
fn send_everything(near: &Port, far: &Port) -> Traffic {
    let mut packets = frames(5000..5020);
    let (a, b): (IpAddr, IpAddr) =
        (Ipv4Addr::new(10, 1, 0, 9).into(), Ipv4Addr::new(10, 2, 0, 9).into());
    packets.push(packet::ip(a, b, &packet::sctp(3000, 36412, 40)));
    packets.push(packet::ip(a, b, &packet::other(253, 25)));
    packets.push(packet::ip(a, b, &packet::icmp(3, 1, 28)));
    packets.extend(packet::ip(a, b, &packet::udp(4000, 53, 3000)).fragments(1000));
    let mut sent = RawSocket::open(near, far.mac).send(&packets);
    for family in Family::ALL {
        for part in [
            traffic::udp(near, far, family, 30, 700),
            traffic::udp(far, near, family, 20, 100),
            traffic::tcp(near, far, family, 100_000, 1_000).traffic,
            traffic::echo(far, near, family, 3, 56),
        ] {
            for (&flow, total) in part.iter() {
                sent.add(flow, total.packets, total.bytes);
            }
        }
    }
    sent
}

/// A question in the words of `orb8` and of the service, and what fits it of what was sent.
struct Selection {
    flags: &'static str,
    filter: Value,
    fits: fn(&Flow, Direction) -> bool,
}

fn selections() -> [Selection; 4] {
    let of_sender = json!({ "side": "SIDE_SOURCE", "ip": { "values": ["10.1.0.0/16"] } });
    let not_udp = json!({ "negate": true, "protocol": { "values": ["udp"] } });
    let port = json!({ "port": { "ranges": [{ "first": 53, "last": 5009 }] } });
    let egress = json!({ "direction": { "values": ["egress"] } });
    [
        Selection { flags: "", filter: json!({}), fits: |_, _| true },
        Selection {
            flags: "--protocol tcp",
            filter: json!({ "all": [{ "protocol": { "values": ["tcp"] } }] }),
            fits: |flow, _| flow.protocol == TCP,
        },
        Selection {
            flags: "--from-ip 10.1.0.0/16 --not --protocol udp",
            filter: json!({ "all": [of_sender, not_udp] }),
            fits: |flow, _| {
                let sender = matches!(flow.src, IpAddr::V4(ip) if ip.octets()[..2] == [10, 1]);
                sender && flow.protocol != UDP
            },
        },
        Selection {
            flags: "--port 53-5009 --direction egress",
            filter: json!({ "all": [port, egress] }),
            fits: |flow, direction| {
                let L4::Ports { src, dst } = flow.l4 else { return false };
                direction == Egress && [src, dst].iter().any(|port| (53..=5009).contains(port))
            },
        },
    ]
}

#[test]
fn python_and_reflection_clients_get_the_same_flows_as_orb8() {
    need!(@check NEEDS);
    let (veth, watch) = scene();
    let sent = send_everything(&veth.near, &veth.far);
    watch.settled(sent.total().packets).assert_complete();
    let own = |address: IpAddr| {
        // The sender of the frames stands on the near side, too.
        let frames = match address {
            IpAddr::V4(ip) => ip.octets()[..2] == [10, 1],
            IpAddr::V6(ip) => ip.segments()[..3] == [0x2001, 0xdb8, 1],
        };
        frames || veth.near.v4 == address || veth.near.v6 == address
    };
    let clients = Clients::of(&watch);
    for Selection { flags, filter, fits } in selections() {
        let line = format!("flows -o json --limit {LIMIT} {flags}");
        let request = json!({ "limit": LIMIT, "filter": filter });
        let answers = clients.ask_all(&line, "QueryFlows", &request, document);
        let directions = [Egress, Ingress].map(|direction| {
            (direction, sent.only(|f| own(f.src) == (direction == Egress) && fits(f, direction)))
        });
        assert!(directions.iter().any(|(_, sent)| !sent.is_empty()), "{flags} fits something");
        for (answer, client) in answers.iter().zip(["orb8", "published", "reflection"]) {
            for (direction, sent) in &directions {
                let what = format!("{client}, {direction:?}, flows {flags:?}");
                counted(answer, &watch, *direction).assert_equals(sent, &what);
            }
            let matched = directions.iter().map(|(_, sent)| sent.len()).sum::<usize>();
            assert_eq!(flows(answer).len(), matched, "{client}: no flow twice, none besides");
        }
        let [orb8, published, reflection] = answers;
        assert_eq!(document(&published), document(&orb8), "published, {flags:?}");
        assert_eq!(reflection, published, "reflection, {flags:?}");
        assert_eq!(published["matched"], flows(&orb8).len().to_string(), "{flags:?}");
    }
}

#[test]
fn names_of_fields_are_those_of_the_messages() {
    need!(@check NEEDS);
    let (veth, watch) = scene();
    let sent = send_everything(&veth.near, &veth.far);
    watch.settled(sent.total().packets).assert_complete();
    let clients = Clients::of(&watch);
    let line = format!("flows -o json --limit {LIMIT}");
    let [orb8, published, _] =
        clients.ask_all(&line, "QueryFlows", &json!({ "limit": LIMIT }), document);
    for list in ["flows", "nodes", "loss"] {
        assert_same_names(&orb8[list], &published[list]);
    }
    for name in ["tcp", "icmp", "source", "destination"] {
        let set = flows(&published).iter().any(|flow| flow[name].is_object());
        assert!(set, "some flow has {name}, else its names are not compared");
    }
    assert!(flows(&orb8).iter().all(|flow| flow["bytes"].is_u64()), "64 bits are a number here");
    let [orb8, published, _] = clients.ask_all("status -o json", "GetStatus", &json!({}), standing);
    assert_same_names(&orb8, &published);
}

#[test]
fn python_and_reflection_clients_get_the_same_status_as_orb8() {
    need!(@check NEEDS);
    let (veth, watch) = scene();
    let sent = send_everything(&veth.near, &veth.far);
    watch.settled(sent.total().packets).assert_complete();
    let clients = Clients::of(&watch);
    let answers = clients.ask_all("status -o json", "GetStatus", &json!({}), standing);
    let [orb8, published, reflection] = &answers;
    assert_eq!(standing(published), standing(orb8), "published");
    assert_eq!(standing(reflection), standing(orb8), "reflection");
    let seen = sent.total();
    for answer in answers.iter().map(plain) {
        let ledger = &answer["packet_ledger"];
        assert_eq!(ledger["seen"]["packets"], seen.packets.to_string());
        assert_eq!(ledger["reported"]["bytes"], seen.bytes.to_string());
        assert_eq!((&answer["node_name"], &answer["healthy"]), (&json!("testbed"), &json!("true")));
        assert!(!answer["memory"]["resident_bytes"].is_null(), "{answer}");
    }
}

/// What a client was told about the starts of flows, in one form.
fn starts(events: &[Value]) -> Vec<Value> {
    let start = |event: &Value| {
        let told = &event["flow"];
        let mut flow = if told.is_object() { told["flow"].clone() } else { event.clone() };
        let fields = flow.as_object_mut()?;
        // One says it beside the flow, the other among the flow's fields.
        let kind = fields.remove("type").unwrap_or_else(|| told["type"].clone());
        fields.insert("time_ns".to_owned(), event["time_ns"].clone());
        // Paths and processes are looked up beside the stream: of two subscribers that are told the
        // same start, the later one may get them already.
        for end in ["source", "destination"] {
            let end = fields.get_mut(end).and_then(Value::as_object_mut)?;
            end.retain(|name, _| name != "cgroup" && name != "process");
        }
        (kind == "flow_start" || kind == "TYPE_START").then(|| plain(&flow))
    };
    let mut starts: Vec<Value> = events.iter().filter_map(start).collect();
    starts.sort_by_key(|flow| flow["flow_id"].as_str().map(|id| id.parse::<u64>().ok()));
    starts
}

#[test]
fn every_client_is_told_the_start_of_each_new_flow_once() {
    need!(@check NEEDS);
    let (veth, watch) = scene();
    let clients = Clients::of(&watch);
    let request = json!({ "filter": { "all": [{ "protocol": { "values": ["udp"] } }] } });
    let mut streams = [
        clients.orb8.command("trace network -o json --protocol udp"),
        clients.call(Published, "StreamEvents", &request),
        clients.call(Reflection, "StreamEvents", &request),
    ]
    .map(Stream::start);
    let all = streams.len();
    watch.wait_status("every subscription", |status| status.subscribers.len() == all);
    let socket = RawSocket::open(&veth.near, veth.far.mac);
    let wanted = frames(6000..6020);
    let unwanted = packet::ip(wanted[0].flow.src, wanted[0].flow.dst, &packet::icmp(8, 0, 9));
    let mut sent = socket.send(&wanted).len();
    let _filtered = socket.send(&[unwanted]);
    // A flow that is there already does not start again.
    let _again = socket.send(&wanted);
    sent += socket.send(&frames(6020..6021)).len();
    let told = streams.each_mut().map(|stream| {
        wait_until(DEADLINE, "the start of every new flow", || {
            starts(&stream.events()).len() >= sent
        });
        starts(&stream.events())
    });
    let mut flows = Traffic::new();
    for start in &told[0] {
        flows.add(support::key(&row(start)), 1, 0);
    }
    assert_eq!((flows.len(), flows.total().packets), (sent, sent as u64), "each once: {told:#?}");
    for packet in wanted.iter().chain(&frames(6020..6021)) {
        assert_eq!(flows.get(&packet.flow).packets, 1, "{}", packet.flow);
    }
    assert_eq!(told[1], told[0], "the published client's and orb8's");
    assert_eq!(told[2], told[0], "the reflection client's and orb8's");
}

#[test]
fn reflection_names_every_service_and_the_health_service_says_serving() {
    need!(@check NEEDS);
    let (_veth, watch) = scene();
    let clients = Clients::of(&watch);
    let mut list = clients.python("reflection.py");
    let listed = only_line(list.args([LISTEN, "list"]), true);
    for version in ["v1", "v1alpha"] {
        let reflection = format!("grpc.reflection.{version}.ServerReflection");
        let expected = json!(["grpc.health.v1.Health", reflection, SERVICE]);
        assert_eq!(listed[version], expected, "{version}");
    }
    let health = |service: &str, answered: bool| {
        let mut call = clients.reflection_call("grpc.health.v1.Health/Check");
        only_line(call.arg(json!({ "service": service }).to_string()), answered)
    };
    for service in ["", SERVICE] {
        // The health service learns it a moment after the status.
        wait_until(DEADLINE, "the health service to say SERVING", || {
            health(service, true) == json!({ "status": "SERVING" })
        });
    }
    assert_eq!(health("no.such.Service", false)["code"], "NOT_FOUND");
}

#[test]
fn a_refused_question_is_refused_in_the_same_words() {
    need!(@check NEEDS);
    let (_veth, watch) = scene();
    let clients = Clients::of(&watch);
    let request = json!({ "limit": LIMIT + 1 });
    let [published, reflection] = [Published, Reflection]
        .map(|client| only_line(&mut clients.call(client, "QueryFlows", &request), false));
    assert_eq!(published["code"], "INVALID_ARGUMENT");
    assert_eq!(reflection, published);
    let orb8 = clients.orb8.run(&format!("flows -o json --limit {}", LIMIT + 1));
    let details = published["details"].as_str().expect("a reason");
    assert!(details.contains("100000"), "the reason names the most: {details}");
    assert!(orb8.stderr.contains(details), "{details} in {orb8:?}");
    assert_eq!((orb8.code, orb8.stdout.as_str()), (Some(2), ""));
}
