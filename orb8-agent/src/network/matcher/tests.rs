//! Tests of filters: meaning, errors, agreement with the client's evaluator.

use std::sync::Arc;

use orb8_proto::v1::{PortRange, condition};
use proptest::prelude::*;

use super::*;
use crate::cgroup::{Answer, Cgroup, Membership, Process, no_pods};
use crate::event::{EndReason, FlowId};
use crate::network::table::blank;
use crate::network::wire::Shown;
use crate::testing::flow;

fn strings(values: &[&str]) -> Strings {
    Strings { values: values.iter().map(|value| (*value).to_owned()).collect() }
}

fn condition(field: Field) -> Condition {
    Condition { side: Side::Either.into(), negate: false, field: Some(field) }
}

fn compiled(conditions: Vec<Condition>) -> Result<Matcher, FilterError> {
    Matcher::compile(Some(&FlowFilter { all: conditions }), &[], &[])
}

/// 10.0.0.1:40000 > 10.0.0.2:80, TCP egress at eth0 from the process `curl` in `/user.slice/a`.
fn web() -> FlowRecord {
    let id = flow(6, ([10, 0, 0, 1].into(), 40_000), ([10, 0, 0, 2].into(), 80), true);
    let process = Process { pid: 1, comm: "curl".into(), started_ns: 0 };
    let cgroup = Arc::new(Cgroup::new(7, "/user.slice/a", &no_pods()));
    let answer = Answer { cgroup: Some(cgroup), process: Some(process), checked_ns: 10 };
    FlowRecord {
        flow_id: 1,
        first_seen_ns: 5,
        last_seen_ns: 9,
        interface: Some(Arc::new(InterfaceName { index: 2, name: "eth0".into() })),
        membership: Some(Arc::new(Membership::answered(7, answer))),
        scope: Scope::Local,
        ..blank(id)
    }
}

fn check(field: Field, expected: bool) {
    let text = format!("{field:?}");
    let mut plain = compiled(vec![condition(field.clone())]).unwrap();
    assert_eq!(plain.matches(&web()), expected, "{text}");
    let negated = Condition { negate: true, ..condition(field) };
    assert_eq!(compiled(vec![negated]).unwrap().matches(&web()), !expected, "not {text}");
}

#[test]
fn a_condition_holds_if_the_value_is_among_the_listed() {
    let port = |first, last| Field::Port(Ports { ranges: vec![PortRange { first, last }] });
    check(Field::Ip(strings(&["10.0.0.2"])), true);
    check(Field::Ip(strings(&["192.168.0.0/16", "10.0.0.0/30"])), true);
    check(Field::Ip(strings(&["::ffff:10.0.0.1"])), false);
    check(port(80, 80), true);
    check(port(1, 79), false);
    check(port(0, 65_535), true);
    check(Field::Protocol(strings(&["udp", "TCP"])), true);
    check(Field::Protocol(strings(&["17"])), false);
    check(Field::Interface(strings(&["e*"])), true);
    check(Field::Interface(strings(&["eth"])), false);
    check(Field::Direction(strings(&["Egress"])), true);
    check(Field::Direction(strings(&["ingress"])), false);
    check(Field::Scope(strings(&["forwarded", "local"])), true);
    check(Field::State(strings(&["ended"])), false);
    check(Field::Process(strings(&["curl"])), true);
    check(Field::Process(strings(&["cur"])), false);
    check(Field::Cgroup(strings(&["/user"])), true);
    check(Field::Cgroup(strings(&["user.slice/a"])), true);
    check(Field::Cgroup(strings(&["/system"])), false);
    check(Field::IpVersion(4), true);
    check(Field::IpVersion(6), false);
}

#[test]
fn sides_are_told_apart() {
    for (side, address, expected) in [
        (Side::Source, "10.0.0.1", true),
        (Side::Source, "10.0.0.2", false),
        (Side::Destination, "10.0.0.2", true),
        (Side::Destination, "10.0.0.1", false),
    ] {
        let field = Some(Field::Ip(strings(&[address])));
        let condition = Condition { side: side.into(), negate: false, field };
        assert_eq!(compiled(vec![condition]).unwrap().matches(&web()), expected);
    }
}

#[test]
fn all_conditions_must_hold_and_none_means_all() {
    assert!(Matcher::default().matches(&web()));
    let tcp = condition(Field::Protocol(strings(&["tcp"])));
    let udp = condition(Field::Protocol(strings(&["udp"])));
    assert!(!compiled(vec![tcp.clone(), udp]).unwrap().matches(&web()));
    assert!(compiled(vec![tcp.clone(), tcp]).unwrap().matches(&web()));
}

#[test]
fn what_is_not_known_holds_no_condition_and_every_negated_one() {
    let unknown = FlowRecord { interface: None, membership: None, scope: Scope::Unknown, ..web() };
    for field in [
        Field::Interface(strings(&["*"])),
        Field::Process(strings(&["curl"])),
        Field::Cgroup(strings(&["/"])),
        Field::Scope(strings(&["local", "unclaimed", "forwarded", "tunnel"])),
    ] {
        assert!(!compiled(vec![condition(field.clone())]).unwrap().matches(&unknown));
        let negated = Condition { negate: true, ..condition(field) };
        assert!(compiled(vec![negated]).unwrap().matches(&unknown));
    }
}

#[test]
fn no_flow_has_a_namespace_or_pod_yet() {
    let check = |namespaces: &[&str], pods: &[&str], expected| {
        let own = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let mut matcher = Matcher::compile(None, &own(namespaces), &own(pods)).unwrap();
        assert_eq!(matcher.matches(&web()), expected, "{namespaces:?} {pods:?}");
    };
    check(&[], &[], true);
    check(&["shop"], &[], false);
    check(&["shop", ""], &[], true);
    check(&[], &["cart"], false);
}

#[test]
fn a_value_that_cannot_be_read_is_named() {
    let check = |field: Field, expected: &str| {
        let error = compiled(vec![condition(field)]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(Field::Ip(strings(&["10.0.0.0/33"])), "10.0.0.0/33");
    check(Field::Ip(strings(&[])), "ip lists no values");
    check(Field::Protocol(strings(&["quic"])), "\"quic\"");
    check(Field::Interface(strings(&["eth[0"])), "\"eth[0\"");
    check(Field::Direction(strings(&["up"])), "unknown direction \"up\", use ingress or egress");
    check(Field::Scope(strings(&["global"])), "local or unclaimed");
    check(Field::State(strings(&["dead"])), "active or ended");
    check(Field::IpVersion(5), "unknown IP version 5");
    check(Field::Port(Ports { ranges: vec![] }), "port lists no values");
    for (first, last) in [(2, 1), (0, 65_536), (70_000, 70_000)] {
        let ranges = vec![PortRange { first, last }];
        check(Field::Port(Ports { ranges }), &format!("ports {first} to {last} are no range"));
    }
    let nothing = Condition { side: 0, negate: false, field: None };
    assert_eq!(compiled(vec![nothing]).unwrap_err(), FilterError::UnknownField);
    let side = Condition { side: 9, ..condition(Field::IpVersion(4)) };
    assert_eq!(compiled(vec![side]).unwrap_err(), FilterError::UnknownSide(9));
}

#[test]
fn an_interface_that_changes_its_name_is_judged_anew() {
    let mut matcher = compiled(vec![condition(Field::Interface(strings(&["eth*"])))]).unwrap();
    for round in 0..3 * REMEMBERED {
        let name = if round % 2 == 0 { "eth7" } else { "wlan7" };
        let interface = Some(Arc::new(InterfaceName { index: 7, name: name.into() }));
        assert_eq!(matcher.matches(&FlowRecord { interface, ..web() }), round % 2 == 0);
    }
}

#[test]
fn the_kernel_is_asked_for_no_less_than_the_filter_means() {
    let port = Field::Port(Ports { ranges: vec![PortRange { first: 80, last: 80 }] });
    let matcher = compiled(vec![
        condition(Field::Ip(strings(&["10.0.0.0/8"]))),
        condition(port.clone()),
        condition(Field::Protocol(strings(&["tcp"]))),
        condition(Field::Interface(strings(&["eth*"]))),
    ]);
    let filter = matcher.unwrap().packet_filter();
    assert_eq!(filter.port, 80_u16.to_be_bytes());
    assert_eq!(filter.protocol, 6);
    assert_eq!(filter.address, [0, 0, 0, u32::from_ne_bytes([10, 0, 0, 0])]);
    assert_eq!(filter.mask, [0, 0, 0, u32::from_ne_bytes([255, 0, 0, 0])]);
    let negated = Condition { negate: true, ..condition(port) };
    let any = condition(Field::Protocol(strings(&["tcp", "udp"])));
    let filter = compiled(vec![negated, any]).unwrap().packet_filter();
    assert_eq!(filter, orb8_common::network::PacketFilter::default());
}

fn any_flow() -> impl Strategy<Value = FlowRecord> {
    let address = prop_oneof![
        (1_u8..4).prop_map(|n| IpAddr::from([10, 0, 0, n])),
        (1_u16..4).prop_map(|n| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n])),
    ];
    let protocol = prop::sample::select(vec![1_u8, 6, 17, 58, 132, 136, 47]);
    let word = (0_u8..5, any::<bool>(), any::<bool>(), any::<bool>());
    (address, 1_u8..4, protocol, (75_u16..90, 75_u16..90), word).prop_map(
        |(source, last, protocol, ports, (scope, egress, ended, fragment))| {
            let destination = match source {
                IpAddr::V4(_) => IpAddr::from([10, 0, 1, last]),
                IpAddr::V6(_) => IpAddr::from([0xfd01, 0, 0, 0, 0, 0, 0, last.into()]),
            };
            let mut id: FlowId = flow(protocol, (source, ports.0), (destination, ports.1), egress);
            if fragment {
                id.key.flags |= flag::FRAGMENT;
                (id.key.src_port, id.key.dst_port) = ([0; 2], [0; 2]);
            }
            let scopes =
                [Scope::Unknown, Scope::Local, Scope::Unclaimed, Scope::Forwarded, Scope::Tunnel];
            let known = web();
            FlowRecord {
                scope: scopes[usize::from(scope)],
                state: if ended { FlowState::Ended(EndReason::Fin) } else { FlowState::Active },
                interface: known.interface.filter(|_| scope != 0),
                membership: known.membership.filter(|_| egress),
                first_seen_ns: 5,
                ..blank(id)
            }
        },
    )
}

fn any_field() -> impl Strategy<Value = Field> {
    let pick = |words: &'static [&'static str]| {
        prop::collection::vec(prop::sample::select(words), 1..3)
            .prop_map(|words| Strings { values: words.into_iter().map(str::to_owned).collect() })
    };
    prop_oneof![
        pick(&["10.0.0.1", "10.0.0.0/24", "fd00::/64", "fd01::2", "0.0.0.0/0"]).prop_map(Field::Ip),
        (0_u32..90, 0_u32..20).prop_map(|(first, more)| Field::Port(Ports {
            ranges: vec![PortRange { first, last: first + more }]
        })),
        pick(&["tcp", "UDP", "icmp", "icmpv6", "sctp", "47", "136"]).prop_map(Field::Protocol),
        pick(&["eth0", "e*", "wlan?", "{eth,ens}*"]).prop_map(Field::Interface),
        pick(&["ingress", "EGRESS"]).prop_map(Field::Direction),
        pick(&["local", "unclaimed", "forwarded", "tunnel"]).prop_map(Field::Scope),
        pick(&["active", "ended"]).prop_map(Field::State),
        pick(&["curl", "sshd"]).prop_map(Field::Process),
        pick(&["/user", "user.slice/a", "/", "/x"]).prop_map(Field::Cgroup),
        prop::sample::select(vec![4_u32, 6]).prop_map(Field::IpVersion),
    ]
}

proptest! {
    /// The agent and the client, which replays saved flows, mean the same by a filter.
    #[test]
    fn agent_and_client_agree(
        flow in any_flow(),
        conditions in prop::collection::vec((any_field(), 0_i32..3, any::<bool>()), 0..4),
    ) {
        let all: Vec<_> = conditions
            .into_iter()
            .map(|(field, side, negate)| Condition { side, negate, field: Some(field) })
            .collect();
        let filter = FlowFilter { all };
        let mut ours = Matcher::compile(Some(&filter), &[], &[]).unwrap();
        let mut theirs = orb8_query::network::filter::Filter::compile(Some(&filter), &[], &[]).unwrap();
        let shown = Shown { node_name: "n".into(), unix_offset_ns: 0 };
        prop_assert_eq!(ours.matches(&flow), theirs.matches(&shown.flow(&flow)));
    }

    #[test]
    fn any_text_compiles_or_is_refused(text in "\\PC*", first: u32, last: u32, side: i32) {
        let list = || Strings { values: vec![text.clone()] };
        let port = Field::Port(Ports { ranges: vec![PortRange { first, last }] });
        for field in [
            Field::Ip(list()),
            Field::Protocol(list()),
            Field::Interface(list()),
            Field::Direction(list()),
            Field::Scope(list()),
            Field::State(list()),
            Field::Process(list()),
            Field::Cgroup(list()),
            Field::IpVersion(first),
            port,
        ] {
            let condition = Condition { side, negate: false, field: Some(field) };
            if let Ok(mut matcher) = compiled(vec![condition]) {
                matcher.matches(&web());
            }
        }
    }

    #[test]
    fn an_unknown_side_is_refused(side in 3_i32..) {
        let condition = Condition { side, ..condition(condition::Field::IpVersion(4)) };
        prop_assert_eq!(compiled(vec![condition]).unwrap_err(), FilterError::UnknownSide(side));
    }
}
