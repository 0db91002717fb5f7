//! A filter means the same over a row and over the message made of it.

use orb8_filter::{Filter, Selector};
use orb8_proto::v1::condition::{Field, Side};
use orb8_proto::v1::{Condition, FlowFilter, PortRange, Ports, Strings};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::cgroup::{Answer, Membership};
use crate::event::{Asked, Attribution, FlowId, How, Reason};
use crate::host::InterfaceName;
use crate::k8s::identity::Span;
use crate::k8s::services::ServiceKind;
use crate::network::table::blank;
use crate::network::wire::Shown;
use crate::testing::{World, cgroup_of, flow};

fn strings(values: &[&str]) -> Strings {
    Strings { values: values.iter().map(|value| (*value).to_owned()).collect() }
}

fn world() -> World {
    let mut world = World::synced();
    world.pod("shop/web", "n1", "10.244.1.5", 1).pod("data/db", "n2", "10.244.2.6", 1);
    world.service("shop/svc", "10.96.0.10", 0, 1, 1);
    world
}

fn fields() -> Vec<Field> {
    let all = |list: &[&str], field: fn(Strings) -> Field| -> Vec<Field> {
        list.iter().map(|value| field(strings(&[value]))).collect()
    };
    let ports = |first, last| Field::Port(Ports { ranges: vec![PortRange { first, last }] });
    [
        all(&["10.0.0.0/30", "10.244.2.6", "fd00::/8", "0.0.0.0/0"], Field::Ip),
        vec![ports(80, 80), ports(0, 65_535), Field::IpVersion(4), Field::IpVersion(6)],
        vec![Field::Supplement(true), Field::Supplement(false)],
        all(&["tcp", "icmp", "47"], Field::Protocol),
        all(&["eth*", "wg0"], Field::Interface),
        all(&["ingress", "egress"], Field::Direction),
        all(&["local", "forwarded", "tunnel"], Field::Scope),
        all(&["active", "ended"], Field::State),
        all(&["curl", "nginx"], Field::Process),
        all(&["kubepods.slice", "/system.slice/a"], Field::Cgroup),
        all(&["shop", "data"], Field::Namespace),
        all(&["we", "data/d", "shop/d"], Field::Pod),
        all(&["web", "shop/web"], Field::Workload),
        all(&["svc", "data/svc"], Field::Service),
        all(&["n1", "n2"], Field::Node),
        all(&["app=web", "app!=web", "!app"], Field::Selector),
        all(&["socket", "tc"], Field::Plane),
        all(&Attribution::ALL.map(Attribution::as_str), Field::Attribution),
        all(&["pod", "service", "node", "process", "external", "unknown"], Field::Kind),
        all(&["main", "c0ffee00c0ffee"], Field::Container),
        all(&["z1", "z2"], Field::Zone),
        all(&["ok", "no_endpoints", "unknown"], Field::Verdict),
    ]
    .concat()
}

fn end(world: &World, which: u8, how: How) -> End {
    let span = Span { since_ns: 5, until_ns: 5 };
    let who = |address: [u8; 4]| world.known.who(address.into(), span);
    match (which, who([10, 244, 1, 5]), who([10, 244, 2, 6]), who([10, 96, 0, 10])) {
        (0, End::Pod(_, pod), ..) | (1, _, End::Pod(_, pod), _) => End::Pod(how, pod),
        (2, _, _, End::Service(_, service)) => End::Service(how, service),
        (3, ..) => End::Node(how, world.known.registry.own_node()),
        (4, ..) => End::Process(how),
        (5, ..) => End::External(how),
        _ => End::Unknown(how),
    }
}

/// Flows of all kinds, with and without what may be known of them.
fn any_flow() -> impl Strategy<Value = (FlowRecord, World)> {
    let shape = (any::<bool>(), any::<bool>(), any::<bool>(), 0_u8..32, 0_u8..5);
    let protocol = prop::sample::select(vec![1_u8, 6, 17, 47, 58, 132, 136]);
    let hows = (0_usize..6, 0_usize..6);
    (shape, protocol, (0_u8..7, 0_u8..7), hows, 0_u8..4).prop_map(
        |((egress, v6, ended, flags, scope), protocol, who, hows, known)| {
            let world = world();
            let (source, destination): (IpAddr, IpAddr) = if v6 {
                ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap())
            } else {
                ([10, 0, 0, 1].into(), [10, 244, 2, 6].into())
            };
            let mut id: FlowId = flow(protocol, (source, 1234), (destination, 80), egress);
            id.key.flags |= flags & (flag::SOCKET_PLANE | flag::SUPPLEMENT | flag::FRAGMENT);
            if id.key.flags & flag::SOCKET_PLANE != 0 {
                id.key.flags &= !flag::SUPPLEMENT;
            }
            let scopes =
                [Scope::Unknown, Scope::Local, Scope::Unclaimed, Scope::Forwarded, Scope::Tunnel];
            let mut record = FlowRecord {
                first_seen_ns: 5,
                scope: scopes[usize::from(scope)],
                state: if ended { FlowState::Ended(EndReason::Fin) } else { FlowState::Active },
                ..blank(id)
            };
            let how = |which: usize| How::by(Attribution::ALL[which]);
            let ends = Arc::make_mut(&mut record.ends);
            ends.owner = end(&world, who.0, how(hows.0));
            ends.peer = end(&world, who.1, How { reason: Reason::PodUnknown, ..how(hows.1) });
            if known & 1 != 0 {
                let path = cgroup_of("shop/web");
                let cgroup = world.cgroup(7, &path).cgroup().cloned();
                let process = Process { pid: 4, comm: "curl".into(), started_ns: 0 };
                let answer = Answer { cgroup, process: Some(process), checked_ns: 10 };
                record.membership = Some(Arc::new(Membership::answered(7, answer)));
                let name = InterfaceName { index: 2, name: "eth0".into() };
                record.interface = Some(Arc::new(name));
            }
            if let (2.., End::Service(_, service)) = (known, &end(&world, 2, How::default())) {
                let (service, kind) = (Arc::clone(service), ServiceKind::ClusterIp);
                let verdict = [Verdict::Ok, Verdict::NoEndpoints][usize::from(known & 1)];
                ends.asked = Some(Asked { service, port: 80, kind, verdict });
            }
            (record, world)
        },
    )
}

proptest! {
    #[test]
    fn a_filter_means_the_same_over_a_row_and_over_its_message(
        (flow, world) in any_flow(),
        at in any::<prop::sample::Index>(),
        side in prop::sample::select(vec![Side::Either, Side::Source, Side::Destination]),
        negate in any::<bool>(),
    ) {
        let known = world.known.clone();
        let node = world.known.registry.own_node();
        let shown = Shown { node: Arc::clone(&node), known, unix_offset_ns: 0, labels: true };
        let message = shown.flow(&flow);
        let fields = fields();
        let field = Some(fields[at.index(fields.len())].clone());
        let condition = Condition { side: side.into(), negate, field };
        let filter = FlowFilter { all: vec![condition] };
        for namespaces in [vec![], vec!["shop".to_owned()]] {
            let mut filter = Filter::compile(Some(&filter), &namespaces, &[]).unwrap();
            let over_row = filter.matches(&Seen { flow: &flow, node: &node });
            prop_assert_eq!(over_row, filter.matches(&message), "{:?}", message);
        }
    }
}

#[test]
fn a_pod_without_labels_fulfils_what_asks_for_none_and_an_unknown_pod_nothing() {
    let mut world = World::synced();
    world.pod_with("shop/bare", "n1", "10.244.1.7", 1, |pod| pod["metadata"]["labels"] = json!({}));
    let told = world.known.registry.pod_of_cgroup(&crate::testing::uid("shop/bare")).unwrap();
    let untold = world.known.registry.pod_of_cgroup("not-told").unwrap();
    for (selector, expected) in [("!app", true), ("app!=web", true), ("app", false)] {
        let selector = Selector::parse(selector).unwrap();
        assert_eq!(with_labels(&told, |labels| selector.matches(labels)), expected);
        assert!(!with_labels(&untold, |labels| selector.matches(labels)));
    }
}

#[test]
fn the_kernel_gets_the_part_of_the_filter_that_it_can_check() {
    let condition = |negate, field| Condition { side: 0, negate, field: Some(field) };
    let port = Field::Port(Ports { ranges: vec![PortRange { first: 80, last: 80 }] });
    let asked = |all| {
        let filter = Filter::compile(Some(&FlowFilter { all }), &[], &[]).unwrap();
        packet_filter(&filter.required())
    };
    let found = asked(vec![
        condition(false, port.clone()),
        condition(false, Field::Protocol(strings(&["tcp"]))),
        condition(false, Field::Ip(strings(&["10.1.2.3/8"]))),
        condition(false, Field::Pod(strings(&["web"]))),
    ]);
    assert_eq!((found.port, found.protocol, found.flags), (80_u16.to_be_bytes(), 6, 0));
    assert_eq!(found.address, [0, 0, 0, u32::from_ne_bytes([10, 0, 0, 0])]);
    assert_eq!(found.mask, [0, 0, 0, u32::from_ne_bytes([255, 0, 0, 0])]);
    let any = condition(false, Field::Protocol(strings(&["tcp", "udp"])));
    assert_eq!(asked(vec![condition(true, port), any]), PacketFilter::default());
}
