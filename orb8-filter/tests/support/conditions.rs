//! Conditions that can be read, for property tests.

use orb8_proto::v1::condition::Field;
use orb8_proto::v1::{Condition, PortRange, Ports, Strings};
use proptest::prelude::*;

fn strings(words: &'static [&'static str]) -> impl Strategy<Value = Strings> {
    proptest::collection::vec(proptest::sample::select(words), 1..4)
        .prop_map(|values| Strings { values: values.into_iter().map(str::to_owned).collect() })
}

/// Any field with values that can be read.
pub(crate) fn valid_field() -> BoxedStrategy<Field> {
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
        of_identity(),
    ]
    .boxed()
}

fn of_identity() -> BoxedStrategy<Field> {
    prop_oneof![
        strings(&["default", "shop", "bank"]).prop_map(Field::Namespace),
        strings(&["web", "", "shop/web-1", "db"]).prop_map(Field::Pod),
        strings(&["web", "deployment/web", "shop/web", "shop/Job/web"]).prop_map(Field::Workload),
        strings(&["web", "shop/cart", "bank/cart"]).prop_map(Field::Service),
        strings(&["node-a", "node-b"]).prop_map(Field::Node),
        strings(&["zone-a"]).prop_map(Field::Zone),
        strings(&["main", "4f1c9a7be2d0"]).prop_map(Field::Container),
        strings(&["app=web", "app!=web", "!app", "tier in (a,b)"]).prop_map(Field::Selector),
        strings(&["tc", "Socket"]).prop_map(Field::Plane),
        strings(&["cgroup", "none", "masqueraded"]).prop_map(Field::Attribution),
        strings(&["pod", "external", "service"]).prop_map(Field::Kind),
        strings(&["ok", "no_endpoints"]).prop_map(Field::Verdict),
        any::<bool>().prop_map(Field::Supplement),
    ]
    .boxed()
}

/// Any condition with values that can be read.
pub(crate) fn valid_condition() -> impl Strategy<Value = Condition> {
    (0i32..3, any::<bool>(), valid_field()).prop_map(|(side, negate, field)| Condition {
        side,
        negate,
        field: Some(field),
    })
}
