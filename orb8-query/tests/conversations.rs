//! Folding records into conversations: whatever their order, nothing lost and nothing counted twice.

#[path = "../../orb8-filter/tests/support/arbitrary.rs"]
mod arbitrary;

use orb8_proto::v1::sort::Field;
use orb8_proto::v1::{Endpoint, NetworkFlow, ServiceUse, Sort, TcpInfo};
use orb8_query::network::conversations::{Conversation, fold, sort};
use orb8_query::network::sort::sort_and_limit;
use orb8_query::rows::ConversationRecord;
use proptest::prelude::*;

const CLIENT: (&str, u32) = ("10.1.0.5", 40_000);
const VIRTUAL: (&str, u32) = ("10.96.0.10", 80);
const BACKEND: (&str, u32) = ("10.1.1.7", 8080);

fn record(
    node: &str,
    direction: &str,
    from: (&str, u32),
    to: (&str, u32),
    packets: u64,
) -> NetworkFlow {
    NetworkFlow {
        node_name: node.to_owned(),
        direction: direction.to_owned(),
        src_ip: from.0.to_owned(),
        src_port: from.1,
        dst_ip: to.0.to_owned(),
        dst_port: to.1,
        protocol: "tcp".to_owned(),
        plane: "socket".to_owned(),
        scope: "local".to_owned(),
        packets,
        bytes: packets * 100,
        ..NetworkFlow::default()
    }
}

fn pod(name: &str, uid: &str) -> Option<Endpoint> {
    Some(Endpoint {
        kind: "pod".to_owned(),
        namespace: "shop".to_owned(),
        pod: name.to_owned(),
        pod_uid: uid.to_owned(),
        ..Endpoint::default()
    })
}

fn only(flows: &[NetworkFlow]) -> Conversation {
    let mut found = fold(flows);
    assert_eq!(found.len(), 1, "{found:#?}");
    found.remove(0)
}

/// `a > b : packets there and back`.
fn line(talk: &Conversation) -> String {
    let party = |ip: &str, port: Option<u32>| match port {
        Some(port) => format!("{ip}:{port}"),
        None => ip.to_owned(),
    };
    format!(
        "{} > {} : {} {}",
        party(&talk.a.ip, talk.a.port),
        party(&talk.b.ip, talk.b.port),
        talk.a_to_b.packets,
        talk.b_to_a.packets
    )
}

#[test]
fn both_ends_on_both_nodes_are_one_conversation() {
    let flows = [
        record("a", "egress", CLIENT, BACKEND, 10),
        record("a", "ingress", BACKEND, CLIENT, 19),
        record("b", "ingress", CLIENT, BACKEND, 9),
        record("b", "egress", BACKEND, CLIENT, 20),
    ];
    let talk = only(&flows);
    assert_eq!(line(&talk), "10.1.0.5:40000 > 10.1.1.7:8080 : 10 20", "the senders' own numbers");
    assert_eq!((talk.records, talk.nodes), (4, vec!["a".to_owned(), "b".to_owned()]));
}

#[test]
fn the_receiver_counts_where_the_sender_did_not_tell() {
    let talk = only(&[
        record("b", "ingress", CLIENT, BACKEND, 9),
        record("a", "ingress", BACKEND, CLIENT, 19),
    ]);
    assert_eq!(line(&talk), "10.1.0.5:40000 > 10.1.1.7:8080 : 9 19");
}

#[test]
fn what_the_client_asked_and_who_answered_are_one_conversation() {
    let service = Some(ServiceUse {
        name: "cart".to_owned(),
        ip: VIRTUAL.0.to_owned(),
        port: VIRTUAL.1,
        backend_ip: BACKEND.0.to_owned(),
        backend_port: BACKEND.1,
        backend: pod("cart-0", "uid-1"),
        ..ServiceUse::default()
    });
    let asked = |flow| NetworkFlow { service: service.clone(), ..flow };
    let flows = [
        asked(record("a", "egress", CLIENT, VIRTUAL, 10)),
        asked(record("a", "ingress", VIRTUAL, CLIENT, 20)),
        record("b", "ingress", CLIENT, BACKEND, 10),
        record("b", "egress", BACKEND, CLIENT, 20),
    ];
    let talk = only(&flows);
    assert_eq!(line(&talk), "10.1.0.5:40000 > 10.1.1.7:8080 : 10 20");
    assert_eq!(talk.b.end, pod("cart-0", "uid-1"));
    assert_eq!(talk.service, service);
    // Of a backend that is not told nothing is guessed.
    let untold = ServiceUse { backend_ip: String::new(), ..service.clone().unwrap_or_default() };
    let flows = flows.map(|flow| NetworkFlow {
        service: flow.service.is_some().then(|| untold.clone()),
        ..flow
    });
    assert_eq!(fold(&flows).len(), 2);
}

#[test]
fn supplement_is_told_beside_the_totals() {
    let refused = NetworkFlow {
        supplement: true,
        plane: "tc".to_owned(),
        ..record("b", "egress", BACKEND, CLIENT, 3)
    };
    let talk = only(&[record("a", "egress", CLIENT, BACKEND, 2), refused]);
    assert_eq!(line(&talk), "10.1.0.5:40000 > 10.1.1.7:8080 : 2 0");
    assert_eq!((talk.supplement.packets, talk.supplement.bytes), (3, 300));
}

#[test]
fn what_passes_a_node_counts_only_where_nobody_else_tells() {
    let passing =
        |flow| NetworkFlow { scope: "forwarded".to_owned(), plane: "tc".to_owned(), ..flow };
    let passed = passing(record("c", "egress", CLIENT, BACKEND, 7));
    let own = record("b", "ingress", CLIENT, BACKEND, 5);
    assert_eq!(line(&only(&[passed.clone(), own])), "10.1.0.5:40000 > 10.1.1.7:8080 : 5 0");
    assert_eq!(line(&only(&[passed])), "10.1.0.5:40000 > 10.1.1.7:8080 : 7 0");
}

#[test]
fn interfaces_that_saw_the_same_packets_are_not_added_up() {
    let at = |ifindex: u32, packets: u64| NetworkFlow {
        plane: "tc".to_owned(),
        ifindex,
        ..record("a", "egress", CLIENT, BACKEND, packets)
    };
    let talk = only(&[at(2, 10), at(3, 9), at(2, 1)]);
    assert_eq!(line(&talk), "10.1.0.5:40000 > 10.1.1.7:8080 : 11 0");
}

#[test]
fn loopback_means_something_only_within_one_pod() {
    let within = |node: &str, uid: &str| {
        let local = |port| ("127.0.0.1", port);
        let end = pod("web", uid);
        let both = |flow| NetworkFlow { source: end.clone(), destination: end.clone(), ..flow };
        [
            both(record(node, "egress", local(4000), local(80), 1)),
            both(record(node, "ingress", local(4000), local(80), 1)),
        ]
    };
    let flows = [within("a", "one"), within("a", "two"), within("b", "three")].concat();
    let found: Vec<String> = fold(&flows).iter().map(line).collect();
    assert_eq!(found, vec!["127.0.0.1:4000 > 127.0.0.1:80 : 1 0"; 3]);
}

#[test]
fn two_holders_of_one_address_are_two_conversations() {
    let with = |uid: &str, flow| NetworkFlow { source: pod("web", uid), ..flow };
    let flows = [
        with("one", record("a", "egress", CLIENT, BACKEND, 1)),
        with("two", record("a", "egress", CLIENT, BACKEND, 2)),
        with("two", record("b", "ingress", CLIENT, BACKEND, 2)),
    ];
    let mut found: Vec<String> = fold(&flows).iter().map(line).collect();
    found.sort();
    let expected = [1, 2].map(|n| format!("10.1.0.5:40000 > 10.1.1.7:8080 : {n} 0"));
    assert_eq!(found, expected);
    // Who does not know the holder does not contradict it.
    let flows = [flows[0].clone(), record("b", "ingress", CLIENT, BACKEND, 1)];
    assert_eq!(only(&flows).a.end, pod("web", "one"));
}

#[test]
fn who_began_is_told_by_the_handshake_before_the_ports() {
    let flagged = |flag: &str, flow| NetworkFlow {
        tcp: Some(TcpInfo { flags: vec![flag.to_owned()], state: String::new() }),
        ..flow
    };
    let (low, high) = (("10.0.0.1", 22), ("10.0.0.2", 40_000));
    let plain = record("a", "egress", low, high, 1);
    assert_eq!(only(std::slice::from_ref(&plain)).a.port, Some(40_000));
    assert_eq!(only(&[flagged("syn", plain.clone())]).a.port, Some(22));
    assert_eq!(only(&[flagged("syn_ack", plain.clone())]).a.port, Some(40_000));
    let contradiction =
        [flagged("syn", plain), flagged("syn", record("a", "egress", high, low, 1))];
    assert_eq!(only(&contradiction).a.port, Some(40_000), "they tell nothing");
}

#[test]
fn the_best_known_name_of_an_end_is_shown() {
    let by = |attribution: &str, pod: &str| {
        Some(Endpoint {
            kind: "pod".to_owned(),
            pod: pod.to_owned(),
            attribution: attribution.to_owned(),
            ..Endpoint::default()
        })
    };
    let unknown = Some(Endpoint { kind: "unknown".to_owned(), ..Endpoint::default() });
    let flows = [
        NetworkFlow { source: unknown, ..record("b", "ingress", CLIENT, BACKEND, 1) },
        NetworkFlow { source: by("address", "web"), ..record("b", "ingress", CLIENT, BACKEND, 1) },
        NetworkFlow { source: by("cgroup", "web"), ..record("a", "egress", CLIENT, BACKEND, 1) },
    ];
    assert_eq!(only(&flows).a.end, by("cgroup", "web"));
}

#[test]
fn a_name_of_an_agent_that_did_not_hear_the_api_gives_way_to_one_that_did() {
    let by = |attribution: &str, reason: &str, pod: &str| {
        Some(Endpoint {
            kind: "pod".to_owned(),
            pod: pod.to_owned(),
            attribution: attribution.to_owned(),
            reason: reason.to_owned(),
            ..Endpoint::default()
        })
    };
    let flow = |node, direction, source| NetworkFlow {
        source,
        ..record(node, direction, CLIENT, BACKEND, 1)
    };
    let sure = by("address_reused", "", "web");
    let flows = [
        flow("b", "ingress", by("address", "api_not_synced", "web")),
        flow("a", "egress", sure.clone()),
    ];
    assert_eq!(only(&flows).a.end, sure);
}

/// What is true of one direction, and who told of it.
#[derive(Clone, Debug)]
struct Way {
    packets: u64,
    /// Rows that the sender's record came in, as after a pause.
    parts: u64,
    sender: Told,
    receiver: Told,
    passed: bool,
    supplement: bool,
}

/// The planes that an end told of.
#[derive(Clone, Copy, Debug)]
struct Told {
    socket: bool,
    tc: bool,
}

fn told() -> impl Strategy<Value = Told> {
    (any::<bool>(), any::<bool>()).prop_map(|(socket, tc)| Told { socket, tc })
}

fn way() -> impl Strategy<Value = Way> {
    (4u64..1000, 1u64..4, told(), told(), any::<bool>(), any::<bool>()).prop_map(
        |(packets, parts, sender, receiver, passed, supplement)| Way {
            packets,
            parts,
            sender,
            receiver,
            passed,
            supplement,
        },
    )
}

impl Way {
    /// Every record of this direction. Each class of them counts a little less than the one before,
    /// so that a total tells where it comes from.
    fn records(&self, from: (&str, u32), to: (&str, u32)) -> Vec<NetworkFlow> {
        let with = |plane: &str, scope: &str, flow| NetworkFlow {
            plane: plane.to_owned(),
            scope: scope.to_owned(),
            ..flow
        };
        let mut all = Vec::new();
        let own = |node: &str, direction: &str, told: Told, less: [u64; 2]| {
            let record = |plane: &'static str, less: u64| {
                let each = (self.packets - less) / self.parts;
                let rest = self.packets - less - each * (self.parts - 1);
                (0..self.parts).map(move |part| {
                    let packets = if part == 0 { rest } else { each };
                    with(plane, "local", record(node, direction, from, to, packets))
                })
            };
            let socket = told.socket.then(|| record("socket", less[0])).into_iter().flatten();
            let tc = told.tc.then(|| record("tc", less[1])).into_iter().flatten();
            socket.chain(tc).collect::<Vec<_>>()
        };
        all.extend(own("sender", "egress", self.sender, [0, 1]));
        all.extend(own("receiver", "ingress", self.receiver, [2, 3]));
        if self.passed {
            all.push(with(
                "tc",
                "forwarded",
                record("between", "egress", from, to, self.packets + 1),
            ));
        }
        if self.supplement {
            let flow = with("tc", "unclaimed", record("sender", "egress", from, to, 5));
            all.push(NetworkFlow { supplement: true, ..flow });
        }
        all
    }

    fn expected(&self) -> u64 {
        let by_rank = [
            (self.sender.socket, self.packets),
            (self.sender.tc, self.packets - 1),
            (self.receiver.socket, self.packets - 2),
            (self.receiver.tc, self.packets - 3),
            (self.passed, self.packets + 1),
        ];
        by_rank.into_iter().find_map(|(told, packets)| told.then_some(packets)).unwrap_or(0)
    }
}

proptest! {
    #[test]
    fn the_order_of_records_does_not_matter(
        (flows, shuffled) in proptest::collection::vec(arbitrary::flow(), 0..12).prop_flat_map(
            |flows| (Just(flows.clone()), Just(flows).prop_shuffle()),
        ),
        field in 0i32..7, ascending: bool,
    ) {
        // As JSON, where a rate that is no number equals itself.
        let folded = |flows: &[NetworkFlow]| {
            let mut talks = fold(flows);
            sort(&mut talks, Sort { field, ascending });
            let records = talks.iter().map(ConversationRecord::from);
            serde_json::to_string(&records.collect::<Vec<_>>()).unwrap()
        };
        prop_assert_eq!(folded(&flows), folded(&shuffled));
    }

    #[test]
    fn no_record_is_lost_and_none_is_in_two_conversations(
        flows in proptest::collection::vec(arbitrary::flow(), 0..12),
    ) {
        let records: u64 = fold(&flows).iter().map(|talk| talk.records).sum();
        prop_assert_eq!(records, flows.len() as u64);
    }

    #[test]
    fn totals_are_those_of_the_first_in_rank_who_told(
        talks in proptest::collection::vec((way(), way()), 1..5), seed: u64,
    ) {
        let mut flows = Vec::new();
        let mut expected = Vec::new();
        for (index, (there, back)) in talks.iter().enumerate() {
            let client = (CLIENT.0, 40_000 + u32::try_from(index).unwrap());
            let mut records = there.records(client, BACKEND);
            records.extend(back.records(BACKEND, client));
            if records.is_empty() {
                continue;
            }
            let supplement = 5 * (u64::from(there.supplement) + u64::from(back.supplement));
            expected.push((client.1, there.expected(), back.expected(), supplement));
            flows.extend(records);
        }
        // Any order that the seed gives.
        flows.sort_by_key(|flow| (flow.packets ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut found: Vec<_> = fold(&flows)
            .iter()
            .map(|talk| {
                assert_eq!(talk.a_to_b.bytes, talk.a_to_b.packets * 100);
                let port = talk.a.port.unwrap();
                (port, talk.a_to_b.packets, talk.b_to_a.packets, talk.supplement.packets)
            })
            .collect();
        found.sort_unstable();
        prop_assert_eq!(found, expected);
    }
}

#[test]
fn conversations_sort_by_both_directions_together() {
    let mut flows = vec![
        record("a", "egress", CLIENT, BACKEND, 5),
        record("a", "ingress", BACKEND, CLIENT, 6),
        record("a", "egress", CLIENT, ("10.9.9.9", 53), 10),
    ];
    flows[2].last_seen_ns = 7;
    sort_and_limit(&mut flows, Sort::default(), 0);
    let sorted = |field: Field, ascending| {
        let mut talks = fold(&flows);
        sort(&mut talks, Sort { field: field.into(), ascending });
        talks.iter().map(|talk| talk.b.port.unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(sorted(Field::Bytes, false), [8080, 53]);
    assert_eq!(sorted(Field::Bytes, true), [53, 8080]);
    assert_eq!(sorted(Field::LastSeen, false), [53, 8080]);
}
