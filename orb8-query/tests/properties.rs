//! What holds for any flows, filters and answers.

#[path = "support/arbitrary.rs"]
mod arbitrary;

use std::net::IpAddr;

use arbitrary::{flow, text};
use orb8_proto::v1::condition::{Field, Side};
use orb8_proto::v1::{
    AnswerContext, Condition, FlowFilter, Loss, NetworkFlow, NodeStatus, PortRange, Ports,
    QueryFlowsRequest, QueryFlowsResponse, Sort, Strings,
};
use orb8_query::network::filter::{Matcher, Selector};
use orb8_query::network::sort;
use orb8_query::rows::{FlowRecord, LossRecord, NodeRecord};
use orb8_query::{AgentError, ErrorKind, FlowAnswer, file};
use orb8_util::net::HostPort;
use proptest::prelude::*;

fn strings(words: &'static [&'static str]) -> impl Strategy<Value = Strings> {
    proptest::collection::vec(proptest::sample::select(words), 1..4)
        .prop_map(|values| Strings { values: values.into_iter().map(str::to_owned).collect() })
}

/// Any field with values that can be read.
fn valid_field() -> BoxedStrategy<Field> {
    let range = (0u32..=65535, 0u32..=65535)
        .prop_map(|(a, b)| PortRange { first: a.min(b), last: a.max(b) });
    let ports = proptest::collection::vec(range, 1..4).prop_map(|ranges| Ports { ranges });
    prop_oneof![
        strings(&["10.0.0.1", "10.0.0.0/8", "0.0.0.0/0", "fd00::/8", "::/0"]).prop_map(Field::Ip),
        ports.prop_map(Field::Port),
        strings(&["tcp", "UDP", "1", "icmpv6", "47"]).prop_map(Field::Protocol),
        strings(&["eth0", "eth*", "*", "?????", "ens[0-9]"]).prop_map(Field::Interface),
        strings(&["ingress", "egress"]).prop_map(Field::Direction),
        strings(&["local", "unclaimed", "forwarded", "tunnel"]).prop_map(Field::Scope),
        strings(&["active", "ended"]).prop_map(Field::State),
        strings(&["curl", "nginx", "nothing"]).prop_map(Field::Process),
        strings(&["/", "system.slice", "/user"]).prop_map(Field::Cgroup),
        prop_oneof![Just(4), Just(6)].prop_map(Field::IpVersion),
    ]
    .boxed()
}

fn valid_condition() -> impl Strategy<Value = Condition> {
    (0i32..3, any::<bool>(), valid_field()).prop_map(|(side, negate, field)| Condition {
        side,
        negate,
        field: Some(field),
    })
}

/// Any condition at all, most of them nonsense.
fn any_condition() -> impl Strategy<Value = Condition> {
    let strings = || {
        proptest::collection::vec(text(&["10.0.0.1", "tcp", "eth0", "*"]), 0..3)
            .prop_map(|values| Strings { values })
    };
    let ranges = proptest::collection::vec((any::<u32>(), any::<u32>()), 0..3).prop_map(|ranges| {
        let ranges = ranges.into_iter().map(|(first, last)| PortRange { first, last });
        Ports { ranges: ranges.collect() }
    });
    let field = prop_oneof![
        strings().prop_map(Field::Ip),
        ranges.prop_map(Field::Port),
        strings().prop_map(Field::Protocol),
        strings().prop_map(Field::Interface),
        strings().prop_map(Field::Direction),
        strings().prop_map(Field::Scope),
        strings().prop_map(Field::State),
        strings().prop_map(Field::Process),
        strings().prop_map(Field::Cgroup),
        any::<u32>().prop_map(Field::IpVersion),
    ];
    (any::<i32>(), any::<bool>(), proptest::option::of(field))
        .prop_map(|(side, negate, field)| Condition { side, negate, field })
}

fn matches(conditions: &[Condition], flow: &NetworkFlow) -> bool {
    let filter = FlowFilter { all: conditions.to_vec() };
    Matcher::new(Some(&filter)).expect("a valid filter").matches(flow)
}

/// The values of a field one by one.
fn singly(field: &Field) -> Vec<Field> {
    let each = |list: &Strings, make: fn(Strings) -> Field| {
        let one = |value: &String| make(Strings { values: vec![value.clone()] });
        list.values.iter().map(one).collect()
    };
    match field {
        Field::Ip(list) => each(list, Field::Ip),
        Field::Port(ports) => {
            let one = |range: &PortRange| Field::Port(Ports { ranges: vec![*range] });
            ports.ranges.iter().map(one).collect()
        }
        Field::Protocol(list) => each(list, Field::Protocol),
        Field::Interface(list) => each(list, Field::Interface),
        Field::Direction(list) => each(list, Field::Direction),
        Field::Scope(list) => each(list, Field::Scope),
        Field::State(list) => each(list, Field::State),
        Field::Process(list) => each(list, Field::Process),
        Field::Cgroup(list) => each(list, Field::Cgroup),
        Field::IpVersion(version) => vec![Field::IpVersion(*version)],
    }
}

/// A prefix test on bits, written independently of the one under test.
fn within(address: IpAddr, net: IpAddr, length: u8) -> bool {
    let (address, net, width) = match (address, net) {
        (IpAddr::V4(a), IpAddr::V4(n)) => (u128::from(a.to_bits()), u128::from(n.to_bits()), 32),
        (IpAddr::V6(a), IpAddr::V6(n)) => (a.to_bits(), n.to_bits(), 128),
        _ => return false,
    };
    (0..u32::from(length)).all(|bit| {
        let mask = 1u128 << (width - 1 - bit);
        address & mask == net & mask
    })
}

proptest! {
    #[test]
    fn a_negated_condition_holds_exactly_where_it_would_not(
        flow in flow(), condition in valid_condition(),
    ) {
        let negated = Condition { negate: !condition.negate, ..condition.clone() };
        prop_assert_ne!(matches(&[condition], &flow), matches(&[negated], &flow));
    }

    #[test]
    fn all_conditions_must_hold(
        flow in flow(), conditions in proptest::collection::vec(valid_condition(), 0..5),
    ) {
        let each = conditions.iter().all(|condition| {
            matches(std::slice::from_ref(condition), &flow)
        });
        prop_assert_eq!(matches(&conditions, &flow), each);
    }

    #[test]
    fn one_value_of_a_list_is_enough(flow in flow(), side in 0i32..3, field in valid_field()) {
        let condition = |field: Field| Condition { side, negate: false, field: Some(field) };
        let any = singly(&field).into_iter().any(|one| matches(&[condition(one)], &flow));
        prop_assert_eq!(matches(&[condition(field)], &flow), any);
    }

    #[test]
    fn either_side_is_source_or_destination(flow in flow(), field in valid_field()) {
        let on = |side: Side| {
            let field = Some(field.clone());
            matches(&[Condition { side: side.into(), negate: false, field }], &flow)
        };
        prop_assert_eq!(on(Side::Either), on(Side::Source) || on(Side::Destination));
    }

    #[test]
    fn prefixes_are_compared_bit_by_bit(
        address: IpAddr, net: IpAddr, flip in 0u32..128, length in 0u8..=128, near: bool,
    ) {
        // Unrelated addresses rarely share a prefix: half of the cases differ in one bit only.
        let net = match address {
            IpAddr::V4(v4) if near => IpAddr::from((v4.to_bits() ^ (1 << (flip % 32))).to_be_bytes()),
            IpAddr::V6(v6) if near => IpAddr::from((v6.to_bits() ^ (1 << flip)).to_be_bytes()),
            _ => net,
        };
        let length = if net.is_ipv4() { length % 33 } else { length };
        let flow = NetworkFlow { src_ip: address.to_string(), ..NetworkFlow::default() };
        let values = vec![format!("{net}/{length}")];
        let field = Some(Field::Ip(Strings { values }));
        let condition = Condition { side: Side::Source.into(), negate: false, field };
        prop_assert_eq!(matches(&[condition], &flow), within(address, net, length));
    }

    #[test]
    fn no_filter_panics(
        flow in flow(), conditions in proptest::collection::vec(any_condition(), 0..4),
    ) {
        let request = QueryFlowsRequest {
            filter: Some(FlowFilter { all: conditions }),
            ..QueryFlowsRequest::default()
        };
        if let Ok(selector) = Selector::new(&request) {
            prop_assert_eq!(selector.matches(&flow), selector.matches(&flow.clone()));
        }
    }

    #[test]
    fn flows_survive_their_json_form(flow in flow()) {
        let line = serde_json::to_string(&FlowRecord::from(&flow)).unwrap();
        let read: FlowRecord = serde_json::from_str(&line).unwrap();
        let read = NetworkFlow::from(read);
        prop_assert_eq!(read.bytes_per_second.to_bits(), flow.bytes_per_second.to_bits());
        prop_assert_eq!(read, flow);
    }

    #[test]
    fn written_lines_read_back_as_the_same_flows(
        flows in proptest::collection::vec(flow(), 0..8),
    ) {
        let lines: String = flows.iter().map(|flow| {
            serde_json::to_string(&FlowRecord::from(flow)).unwrap() + "\n"
        }).collect();
        let request = QueryFlowsRequest::default();
        let answer = file::query(lines.as_bytes(), &request).unwrap();
        prop_assert_eq!(answer.held, flows.len() as u64);
        let mut expected = flows;
        sort::sort_and_limit(&mut expected, Sort::default(), 0);
        prop_assert_eq!(answer.flows, expected);
    }

    #[test]
    fn no_bytes_panic_the_reader(bytes: Vec<u8>, text in "[\\[\\]{}\":,a-z0-9 ]{0,60}") {
        for input in [bytes.as_slice(), text.as_bytes()] {
            drop(file::query(input, &QueryFlowsRequest::default()));
        }
    }

    #[test]
    fn a_file_selects_what_the_selector_matches(
        flows in proptest::collection::vec(flow(), 0..8),
        conditions in proptest::collection::vec(valid_condition(), 0..3),
        start_time_ns in 0i64..4, end_time_ns in 0i64..4, limit in 0u32..5,
    ) {
        let filter = Some(FlowFilter { all: conditions });
        let request = QueryFlowsRequest {
            filter, start_time_ns, end_time_ns, limit, ..QueryFlowsRequest::default()
        };
        let lines: String = flows.iter().map(|flow| {
            serde_json::to_string(&FlowRecord::from(flow)).unwrap() + "\n"
        }).collect();
        let answer = file::query(lines.as_bytes(), &request).unwrap();
        let selector = Selector::new(&request).unwrap();
        let mut expected = flows;
        expected.retain(|flow| selector.matches(flow));
        prop_assert_eq!(answer.matched, expected.len() as u64);
        sort::sort_and_limit(&mut expected, Sort::default(), limit);
        prop_assert_eq!(answer.flows, expected);
    }
}

fn any_sort() -> impl Strategy<Value = Sort> {
    (0i32..8, any::<bool>()).prop_map(|(field, ascending)| Sort { field, ascending })
}

fn loss() -> impl Strategy<Value = Loss> {
    let small = || 0u64..1000;
    (text(&["ring", "flow_table"]), text(&["full"]), small(), small(), small()).prop_map(
        |(stage, reason, packets, bytes, events)| Loss { stage, reason, packets, bytes, events },
    )
}

fn node() -> impl Strategy<Value = NodeStatus> {
    (text(&["node-a", "node-b"]), text(&["ok", "partial"]), any::<bool>(), text(&["late"]))
        .prop_map(|(node_name, state, complete, message)| NodeStatus {
            node_name,
            state,
            complete,
            message,
        })
}

fn response() -> impl Strategy<Value = QueryFlowsResponse> {
    let context = (0u64..4, 0u64..4, 0u32..2, 0i64..4, text(&["no interface"])).prop_map(
        |(flows_held, packets_seen, interfaces_attached, held_since_ns, health_message)| {
            AnswerContext {
                flows_held,
                packets_seen,
                interfaces_attached,
                held_since_ns,
                health_message,
            }
        },
    );
    (
        proptest::collection::vec(flow(), 0..6),
        proptest::collection::vec(node(), 0..3),
        proptest::collection::vec(loss(), 0..3),
        0u64..10,
        proptest::option::of(context),
    )
        .prop_map(|(flows, nodes, loss, matched, context)| QueryFlowsResponse {
            flows,
            nodes,
            loss,
            matched,
            context,
        })
}

type Parts = Vec<(HostPort, Result<QueryFlowsResponse, AgentError>)>;

fn parts() -> impl Strategy<Value = Parts> {
    let part = prop_oneof![4 => response().prop_map(Some), 1 => Just(None)];
    proptest::collection::vec(part, 0..5).prop_map(|parts| {
        let part = |(index, response): (usize, Option<QueryFlowsResponse>)| {
            let port = u16::try_from(index).expect("few parts") + 1;
            let address = HostPort { host: "node".to_owned(), port };
            let error = AgentError {
                address: address.clone(),
                kind: ErrorKind::Timeout,
                cause: "within 5s".to_owned(),
            };
            (address, response.ok_or(error))
        };
        parts.into_iter().enumerate().map(part).collect()
    })
}

proptest! {
    #[test]
    fn a_merge_does_not_depend_on_who_answers_first(
        (parts, shuffled) in parts().prop_flat_map(|parts| {
            (Just(parts.clone()), Just(parts).prop_shuffle())
        }),
        sort in any_sort(), limit in 0u32..8,
    ) {
        let request = QueryFlowsRequest { sort: Some(sort), limit, ..Default::default() };
        let one = FlowAnswer::merge(parts, &request);
        prop_assert_eq!(one, FlowAnswer::merge(shuffled, &request));
    }

    #[test]
    fn a_merge_loses_no_flow_no_node_and_no_loss(parts in parts(), sort in any_sort()) {
        let responses: Vec<_> = parts.iter().filter_map(|(_, part)| part.as_ref().ok()).collect();
        let flows: usize = responses.iter().map(|response| response.flows.len()).sum();
        let nodes: usize = responses.iter().map(|response| response.nodes.len().max(1)).sum();
        let missing = parts.len() - responses.len();
        let lost = |field: fn(&Loss) -> u64| -> u64 {
            responses.iter().flat_map(|response| &response.loss).map(field).sum()
        };
        let expected = [lost(|l| l.packets), lost(|l| l.bytes), lost(|l| l.events)];
        let request = QueryFlowsRequest { sort: Some(sort), ..Default::default() };
        let answer = FlowAnswer::merge(parts.clone(), &request);
        prop_assert_eq!(answer.flows.len(), flows);
        prop_assert_eq!(answer.nodes.len(), nodes + missing);
        prop_assert_eq!(answer.errors.len(), missing);
        let told = |field: fn(&Loss) -> u64| -> u64 { answer.loss.iter().map(field).sum() };
        prop_assert_eq!([told(|l| l.packets), told(|l| l.bytes), told(|l| l.events)], expected);
        let whole = expected == [0; 3] && missing == 0
            && answer.nodes.iter().all(|node| node.state == "ok" && node.complete);
        prop_assert_eq!(answer.is_complete(), whole);
    }

    #[test]
    fn the_first_of_the_whole_are_the_first_of_the_parts(
        flows in proptest::collection::vec(flow(), 0..12), split in 0usize..12,
        sort in any_sort(), limit in 1u32..6,
    ) {
        // What each agent would answer with the same sort and limit is enough for the whole.
        let (left, right) = flows.split_at(split.min(flows.len()));
        let request = QueryFlowsRequest { sort: Some(sort), limit, ..Default::default() };
        let agent = |port: u16, flows: &[NetworkFlow]| {
            let mut flows = flows.to_vec();
            sort::sort_and_limit(&mut flows, sort, limit);
            let address = HostPort { host: "node".to_owned(), port };
            (address, Ok(QueryFlowsResponse { flows, ..Default::default() }))
        };
        let merged = FlowAnswer::merge(vec![agent(1, left), agent(2, right)], &request).flows;
        let mut whole = flows.clone();
        sort::sort_and_limit(&mut whole, sort, limit);
        prop_assert_eq!(merged, whole);
    }

    #[test]
    fn nodes_and_losses_survive_their_json_form(node in node(), loss in loss()) {
        let text = serde_json::to_string(&NodeRecord::from(&node)).unwrap();
        let read: NodeRecord = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(NodeStatus::from(read), node);
        let text = serde_json::to_string(&LossRecord::from(&loss)).unwrap();
        let read: LossRecord = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(Loss::from(read), loss);
    }
}
