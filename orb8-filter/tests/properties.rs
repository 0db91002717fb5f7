//! What holds for any flows and filters.

#[path = "support/arbitrary.rs"]
mod arbitrary;
#[path = "support/conditions.rs"]
mod conditions;

use std::net::IpAddr;

use arbitrary::{flow, text};
use conditions::{valid_condition, valid_field};
use orb8_filter::Filter;
use orb8_proto::v1::condition::{Field, Side};
use orb8_proto::v1::{Condition, FlowFilter, NetworkFlow, PortRange, Ports, Strings};
use proptest::prelude::*;

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
        strings().prop_map(Field::Namespace),
        strings().prop_map(Field::Pod),
        strings().prop_map(Field::Workload),
        strings().prop_map(Field::Service),
        strings().prop_map(Field::Selector),
        strings().prop_map(Field::Kind),
        strings().prop_map(Field::Container),
    ];
    (any::<i32>(), any::<bool>(), proptest::option::of(field))
        .prop_map(|(side, negate, field)| Condition { side, negate, field })
}

fn matches(conditions: &[Condition], flow: &NetworkFlow) -> bool {
    let filter = FlowFilter { all: conditions.to_vec() };
    Filter::compile(Some(&filter), &[], &[]).expect("a valid filter").matches(flow)
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
        Field::Namespace(list) => each(list, Field::Namespace),
        Field::Pod(list) => each(list, Field::Pod),
        Field::Workload(list) => each(list, Field::Workload),
        Field::Service(list) => each(list, Field::Service),
        Field::Node(list) => each(list, Field::Node),
        Field::Zone(list) => each(list, Field::Zone),
        Field::Container(list) => each(list, Field::Container),
        Field::Selector(list) => each(list, Field::Selector),
        Field::Plane(list) => each(list, Field::Plane),
        Field::Attribution(list) => each(list, Field::Attribution),
        Field::Kind(list) => each(list, Field::Kind),
        Field::Verdict(list) => each(list, Field::Verdict),
        Field::IpVersion(_) | Field::Supplement(_) => vec![field.clone()],
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
        let filter = FlowFilter { all: conditions };
        if let Ok(mut filter) = Filter::compile(Some(&filter), &[], &[]) {
            prop_assert_eq!(filter.matches(&flow), filter.matches(&flow.clone()));
        }
    }
}
