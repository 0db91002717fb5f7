//! Who the ends are, as clients of the agent see it: in answers, in streams and in the status.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod agent_support;

use std::net::SocketAddr;

use agent_support::{TestAgent, drained, next, query};
use orb8_agent::event::{Event, FlowCount, FlowFacts, FlowId, SignalKind};
use orb8_agent::testing::{World, cgroup_of, flow, signal};
use orb8_common::network::{flag, scope};
use orb8_proto::v1::condition::{Field, Side};
use orb8_proto::v1::event::Payload;
use orb8_proto::v1::{
    Condition, FlowFilter, NetworkFlow, QueryFlowsRequest, StreamEventsRequest, Strings, Unmatched,
};

const SYN: u8 = 2;

/// `shop/client` of this node with its cgroup 7, `shop/server` of n2, the Service `shop/web`.
fn shop() -> World {
    let mut world = World::synced();
    world.pod("shop/client", "n1", "10.244.1.5", 2).pod("shop/server", "n2", "10.244.2.6", 2);
    world.service("shop/web", "10.96.0.10", 0, 1, 2);
    world.cgroup(7, &cgroup_of("shop/client"));
    world
}

fn to(destination: &str) -> FlowId {
    let destination: SocketAddr = destination.parse().unwrap();
    let source = ([10, 244, 1, 5].into(), 40_000);
    let mut id = flow(6, source, (destination.ip(), destination.port()), true);
    id.key.flags |= flag::SOCKET_PLANE;
    id.owner = 7;
    id
}

fn counted(id: FlowId, packets: u64, time_ns: u64) -> Event {
    Event::Count(FlowCount {
        id,
        line: 0,
        new_line: false,
        packets,
        bytes: 100 * packets,
        first_seen_ns: time_ns,
        last_seen_ns: time_ns,
        facts: FlowFacts { scope: scope::SOCKET, ..FlowFacts::default() },
    })
}

fn filter(fields: impl IntoIterator<Item = Field>) -> Option<FlowFilter> {
    let condition =
        |field| Condition { side: Side::Either.into(), negate: false, field: Some(field) };
    Some(FlowFilter { all: fields.into_iter().map(condition).collect() })
}

fn strings(value: &str) -> Strings {
    Strings { values: vec![value.to_owned()] }
}

/// Both ends and the Service, in words.
fn words(flow: &NetworkFlow) -> [String; 4] {
    let end = |end: &Option<orb8_proto::v1::Endpoint>| {
        let end = end.as_ref().unwrap();
        let name = [&end.pod, &end.service, &end.node];
        let name = name.into_iter().find(|name| !name.is_empty());
        let name = name.map_or("", |name| name);
        format!("{} {}/{name} {} {}", end.kind, end.namespace, end.attribution, end.reason)
    };
    let service = flow.service.as_ref();
    let service = service.map_or_else(String::new, |it| format!("{}/{}", it.namespace, it.name));
    let owner = format!("{}/{}", flow.namespace, flow.pod_name);
    [end(&flow.source), end(&flow.destination), service, owner]
}

#[tokio::test]
async fn streams_and_answers_give_the_same_identity() {
    let agent = TestAgent::knowing(shop().known).await;
    let mut stream = agent.subscribe(StreamEventsRequest::default()).await;
    let ids = [to("10.244.2.6:80"), to("10.96.0.10:80"), to("1.1.1.1:443"), to("10.0.0.2:22")];
    for (number, id) in (1_u64..).zip(ids) {
        agent.script.tell([
            signal(id, SignalKind::Start, 10 + number, SYN),
            counted(id, number, 10 + number),
        ]);
    }
    agent.script.tell([drained(100, 10, 1_000)]);
    let answer = agent.wait_for_flows(ids.len()).await;
    let mut started = Vec::new();
    while started.len() < ids.len() {
        if let Some(Payload::Flow(event)) = next(&mut stream).await.payload {
            started.push(event.flow.unwrap());
        }
    }
    for flow in &started {
        let held = answer.flows.iter().find(|held| held.flow_id == flow.flow_id).unwrap();
        assert_eq!(words(flow), words(held));
    }
    let owner = ["pod shop/client cgroup ", "shop/client"];
    let expected = [
        ("pod shop/server address ", ""),
        ("service shop/web address ", "shop/web"),
        ("external / address ", ""),
        ("node /n2 address ", ""),
    ];
    for (flow, (peer, service)) in started.iter().zip(expected) {
        assert_eq!(words(flow), [owner[0], peer, service, owner[1]]);
    }
    agent.stop().await;
}

#[tokio::test]
async fn flows_are_found_by_the_names_of_their_ends() {
    let agent = TestAgent::knowing(shop().known).await;
    let (server, service) = (to("10.244.2.6:80"), to("10.96.0.10:80"));
    agent.script.tell([counted(server, 1, 5), counted(service, 2, 5), drained(9, 3, 300)]);
    agent.wait_for_flows(2).await;
    let ask = async |request: QueryFlowsRequest| {
        let answer = query(&agent, request).await.unwrap();
        let unmatched = answer.context.unwrap().unmatched;
        (answer.flows.iter().map(|flow| flow.packets).collect::<Vec<_>>(), unmatched)
    };
    let by = |field| QueryFlowsRequest { filter: filter([field]), ..Default::default() };
    let found: [(QueryFlowsRequest, &[u64]); 8] = [
        (QueryFlowsRequest { namespaces: vec!["shop".to_owned()], ..Default::default() }, &[2, 1]),
        (
            QueryFlowsRequest { pod_names: vec!["shop/cli".to_owned()], ..Default::default() },
            &[2, 1],
        ),
        (by(Field::Pod(strings("serv"))), &[1]),
        (by(Field::Service(strings("shop/web"))), &[2]),
        (by(Field::Selector(strings("app=server"))), &[1]),
        (by(Field::Node(strings("n2"))), &[1]),
        (by(Field::Zone(strings("z2"))), &[1]),
        (by(Field::Attribution(strings("cgroup"))), &[2, 1]),
    ];
    for (request, packets) in found {
        assert_eq!(ask(request.clone()).await, (packets.to_vec(), vec![]), "{request:?}");
    }
    let nobody: [(_, _, _, &[&str]); 12] = [
        ("pod", "nobody", Field::Pod(strings("nobody")), &[]),
        ("pod", "sevr", Field::Pod(strings("sevr")), &["server"]),
        ("pod", "shp/client", Field::Pod(strings("shp/client")), &["shop/client"]),
        ("namespace", "nowhere", Field::Namespace(strings("nowhere")), &[]),
        ("namespace", "shpo", Field::Namespace(strings("shpo")), &["shop"]),
        ("workload", "none", Field::Workload(strings("none")), &[]),
        ("service", "none", Field::Service(strings("none")), &[]),
        ("service", "shop/wbe", Field::Service(strings("shop/wbe")), &["shop/web"]),
        ("node", "n9", Field::Node(strings("n9")), &["n1", "n2"]),
        ("node", "elsewhere", Field::Node(strings("elsewhere")), &[]),
        ("selector", "app=none", Field::Selector(strings("app=none")), &[]),
        ("container", "none", Field::Container(strings("none")), &[]),
    ];
    for (field, value, condition, near) in nobody {
        let unmatched = Unmatched {
            field: field.to_owned(),
            value: value.to_owned(),
            suggestions: near.iter().map(ToString::to_string).collect(),
        };
        assert_eq!(ask(by(condition)).await, (vec![], vec![unmatched]));
    }
    agent.stop().await;
}

#[tokio::test]
async fn while_kubernetes_is_not_listed_no_name_is_called_unknown() {
    let agent = TestAgent::knowing(World::silent().known).await;
    let request = QueryFlowsRequest { pod_names: vec!["web".to_owned()], ..Default::default() };
    let context = query(&agent, request).await.unwrap().context.unwrap();
    assert_eq!(context.unmatched, []);
    let request = QueryFlowsRequest {
        filter: filter([Field::Selector(strings("a=b"))]),
        ..Default::default()
    };
    let context = query(&agent, request).await.unwrap().context.unwrap();
    assert_eq!(context.unmatched, []);
    agent.stop().await;
}

#[tokio::test]
async fn labels_are_shown_to_who_asks_for_them() {
    let agent = TestAgent::knowing(shop().known).await;
    agent.script.tell([counted(to("10.244.2.6:80"), 1, 5), drained(9, 1, 100)]);
    agent.wait_for_flows(1).await;
    for (labels, expected) in [(false, 0), (true, 1)] {
        let request = QueryFlowsRequest { labels, ..Default::default() };
        let flow = query(&agent, request).await.unwrap().flows.remove(0);
        assert_eq!(flow.source.unwrap().labels.len(), expected);
    }
    agent.stop().await;
}

#[tokio::test]
async fn a_foreign_server_on_the_agents_port_is_seen() {
    let agent = TestAgent::knowing(shop().known).await;
    let id = to(&format!("10.244.2.6:{}", agent.address.port()));
    agent.script.tell([counted(id, 3, 5), drained(9, 3, 300)]);
    assert_eq!(agent.wait_for_flows(1).await.flows[0].packets, 3);
    agent.stop().await;
}

#[tokio::test]
async fn the_status_says_how_much_is_known_and_of_what() {
    let agent = TestAgent::knowing(shop().known).await;
    let stranger = FlowId { owner: 99, ..to("1.1.1.1:443") };
    agent.script.tell([counted(to("10.244.2.6:80"), 4, 5), counted(stranger, 1, 5)]);
    agent.script.tell([drained(9, 5, 500)]);
    agent.wait_for_flows(2).await;
    let status = agent.wait_for_status("a status", |_| true).await;
    assert!(status.healthy);
    let shares: Vec<_> = status
        .attribution_shares
        .iter()
        .map(|it| (&*it.plane, &*it.attribution, &*it.reason, &*it.scope, it.packets, it.bytes))
        .collect();
    let expected = [
        // Its cgroup is not known (yet); the address was the client's.
        ("socket", "cgroup", "", "local", 4, 400),
        ("socket", "address", "", "local", 1, 100),
    ];
    assert_eq!(shares, expected);
    assert_eq!((status.pods_tracked, status.pod_planes.len()), (2, 1));
    let plane = &status.pod_planes[0];
    assert_eq!((&*plane.namespace, &*plane.pod, &*plane.plane), ("shop", "client", "tc"));
    assert_eq!(status.kubernetes.unwrap().pods_local, 1);
    assert_eq!(status.connection_tracking.unwrap().state, "unavailable");
    agent.stop().await;
}
