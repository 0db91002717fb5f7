//! The evaluator of saved flows against the cases that define what filters mean, and the bounds and
//! orders of queries.

#[path = "support/filter_cases.rs"]
mod filter_cases;

use std::collections::BTreeSet;

use orb8_proto::v1::sort::Field;
use orb8_proto::v1::{NetworkFlow, QueryFlowsRequest, Sort};
use orb8_query::network::filter::{Matcher, Selector};
use orb8_query::network::sort::sort_and_limit;

#[test]
fn every_case_means_what_the_fixture_says() {
    let cases = filter_cases::read();
    assert!(cases.cases.len() > 80, "the fixture was not read: {} cases", cases.cases.len());
    let mut wrong = Vec::new();
    for case in &cases.cases {
        let found = Matcher::new(Some(&case.filter)).ok().map(|matcher| {
            let matching = cases.flows.iter().filter(|(_, flow)| matcher.matches(flow));
            matching.map(|(name, _)| name.clone()).collect::<BTreeSet<_>>()
        });
        if found != case.expected {
            wrong.push(format!("{}\n  found {found:?}", case.line));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_filter_at_all_means_all_flows() {
    let matcher = Matcher::new(None).unwrap();
    assert!(filter_cases::read().flows.iter().all(|(_, flow)| matcher.matches(flow)));
}

#[test]
fn a_refusal_names_the_value_and_the_next_step() {
    let messages: Vec<String> = filter_cases::read()
        .cases
        .iter()
        .filter_map(|case| Matcher::new(Some(&case.filter)).err())
        .map(|error| error.to_string())
        .collect();
    for expected in [
        "\"10.0.0\" is not an address or prefix, give one such as 10.0.0.1, 10.0.0.0/8 or fd00::/8",
        "ports 443 to 53 are no range, give a first that is not above the last, to 65535",
        "unknown protocol \"tpc\", use tcp, udp, icmp, icmpv6, sctp or a number from 0 to 255",
        "unknown direction \"in\", use ingress or egress",
        "unknown scope \"somewhere\", use local, unclaimed, forwarded or tunnel",
        "unknown IP version 5, use 4 or 6",
        "filter condition on port lists no values, give at least one",
        "a filter condition has no field that this version knows, upgrade orb8",
    ] {
        assert!(messages.iter().any(|message| message == expected), "{expected}: {messages:#?}");
    }
}

fn seen(first_seen_ns: i64, last_seen_ns: i64) -> NetworkFlow {
    NetworkFlow { first_seen_ns, last_seen_ns, ..NetworkFlow::default() }
}

#[test]
fn bounds_of_time_take_what_overlaps_them_both_ends_included() {
    for (start_time_ns, end_time_ns, expected) in [
        (0, 0, [true, true, true]),
        (10, 0, [false, true, true]),
        (9, 0, [true, true, true]),
        (0, 10, [true, true, false]),
        (0, 11, [true, true, true]),
        (10, 10, [false, true, false]),
    ] {
        let request =
            QueryFlowsRequest { start_time_ns, end_time_ns, ..QueryFlowsRequest::default() };
        let selector = Selector::new(&request).unwrap();
        let flows = [seen(5, 9), seen(9, 11), seen(11, 15)];
        let found = flows.map(|flow| selector.matches(&flow));
        assert_eq!(found, expected, "{start_time_ns} to {end_time_ns}");
    }
}

#[test]
fn owners_are_chosen_by_namespace_and_prefix_of_the_pod() {
    let owned = |namespace: &str, pod: &str| NetworkFlow {
        namespace: namespace.to_owned(),
        pod_name: pod.to_owned(),
        ..NetworkFlow::default()
    };
    let flows =
        [owned("shop", "web-1"), owned("shop", "db-1"), owned("bank", "web-2"), owned("", "")];
    for (namespaces, pods, expected) in [
        (&[][..], &[][..], [true, true, true, true]),
        (&["shop"], &[], [true, true, false, false]),
        (&["shop", "bank"], &[], [true, true, true, false]),
        (&[], &["web"], [true, false, true, false]),
        (&[], &["bank/web", "db-1"], [false, true, true, false]),
        (&["shop"], &["web"], [true, false, false, false]),
        (&[], &[""], [true, true, true, false]),
    ] {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let request = QueryFlowsRequest {
            namespaces: owned(namespaces),
            pod_names: owned(pods),
            ..QueryFlowsRequest::default()
        };
        let selector = Selector::new(&request).unwrap();
        let found = flows.each_ref().map(|flow| selector.matches(flow));
        assert_eq!(found, expected, "{namespaces:?} {pods:?}");
    }
}

#[test]
fn each_field_sorts_both_ways_and_ties_go_by_node_and_addresses() {
    let flow =
        |id: u64, node: &str, src: &str, numbers: [u32; 4], first: i64, last: i64| NetworkFlow {
            flow_id: id,
            node_name: node.to_owned(),
            src_ip: src.to_owned(),
            bytes: numbers[0].into(),
            packets: numbers[1].into(),
            bytes_per_second: numbers[2].into(),
            packets_per_second: numbers[3].into(),
            first_seen_ns: first,
            last_seen_ns: last,
            ..NetworkFlow::default()
        };
    let flows = [
        flow(1, "b", "10.0.0.1", [7, 1, 2, 3], 10, 40),
        flow(2, "a", "10.0.0.2", [7, 2, 3, 1], 20, 30),
        flow(3, "a", "10.0.0.1", [7, 3, 1, 2], 30, 50),
    ];
    for (field, expected) in [
        (Field::Bytes, [3, 2, 1]),
        (Field::Packets, [3, 2, 1]),
        (Field::BytesPerSecond, [2, 1, 3]),
        (Field::PacketsPerSecond, [1, 3, 2]),
        (Field::FirstSeen, [3, 2, 1]),
        (Field::LastSeen, [3, 1, 2]),
        (Field::Duration, [1, 3, 2]),
    ] {
        let sorted = |ascending| {
            let mut sorted = flows.to_vec();
            sort_and_limit(&mut sorted, Sort { field: field.into(), ascending }, 0);
            sorted.iter().map(|flow| flow.flow_id).collect::<Vec<_>>()
        };
        assert_eq!(sorted(false), expected, "{field:?}");
        if field == Field::Bytes {
            assert_eq!(sorted(true), expected, "ties do not turn around");
        } else {
            assert_eq!(
                sorted(true),
                expected.iter().rev().copied().collect::<Vec<_>>(),
                "{field:?}"
            );
        }
    }
}
