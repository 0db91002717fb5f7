//! What holds for any flows, filters and answers.

#[path = "../../orb8-filter/tests/support/arbitrary.rs"]
mod arbitrary;
#[path = "../../orb8-filter/tests/support/conditions.rs"]
mod conditions;

use arbitrary::{flow, text};
use conditions::valid_condition;
use orb8_proto::v1::{
    AnswerContext, FlowFilter, Loss, NetworkFlow, NodeStatus, QueryFlowsRequest,
    QueryFlowsResponse, Sort,
};
use orb8_query::network::filter::Selector;
use orb8_query::network::sort;
use orb8_query::rows::{FlowRecord, LossRecord, NodeRecord};
use orb8_query::{AgentError, ErrorKind, FlowAnswer, file};
use orb8_util::net::HostPort;
use proptest::prelude::*;

proptest! {
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
        let mut selector = Selector::new(&request).unwrap();
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
                ..AnswerContext::default()
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
