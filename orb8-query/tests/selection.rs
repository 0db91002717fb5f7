//! The bounds of time and the orders of queries.

use orb8_proto::v1::sort::Field;
use orb8_proto::v1::{NetworkFlow, QueryFlowsRequest, Sort};
use orb8_query::network::filter::Selector;
use orb8_query::network::sort::sort_and_limit;

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
        let mut selector = Selector::new(&request).unwrap();
        let flows = [seen(5, 9), seen(9, 11), seen(11, 15)];
        let found = flows.map(|flow| selector.matches(&flow));
        assert_eq!(found, expected, "{start_time_ns} to {end_time_ns}");
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
