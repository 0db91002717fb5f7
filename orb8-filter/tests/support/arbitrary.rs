//! Flows of any content for property tests: any text, any number, every field set or not.

use orb8_proto::v1::{Endpoint, IcmpInfo, NetworkFlow, Process, ServiceUse, TcpInfo};
use proptest::option;
use proptest::prelude::*;

/// Any text, often empty, often a word that means something, at times what a terminal would act upon.
pub(crate) fn text(words: &'static [&'static str]) -> BoxedStrategy<String> {
    prop_oneof![
        1 => Just(String::new()),
        4 => proptest::sample::select(words).prop_map(str::to_owned),
        1 => any_text(),
        1 => proptest::sample::select(vec![
            "\u{1b}[2J", "\u{9b}31m", "a\nb", "\r", "\t", "\u{7f}", "\u{202e}txt", "\u{2028}", "\u{feff}",
            "- a", "a: b", "# a", "\"", "'", "a,b", "null", "1e3", "~", " a ", "\\", "{}", "|", "\u{10ffff}",
        ]).prop_map(str::to_owned),
    ]
    .boxed()
}

/// Any characters; the usual strategy for text leaves control characters out.
fn any_text() -> BoxedStrategy<String> {
    proptest::collection::vec(any::<char>(), 0..8).prop_map(String::from_iter).boxed()
}

/// Any flow whose rates are numbers. Boxed throughout: unboxed, the state of so many strategies in
/// one another overflows a test's stack.
pub(crate) fn flow() -> BoxedStrategy<NetworkFlow> {
    let addresses =
        text(&["10.0.0.1", "10.0.0.2", "10.1.0.1", "192.168.0.1", "fd00::1", "::ffff:10.0.0.1"]);
    let ends = (addresses, text(&["10.0.0.2", "10.0.0.1", "fd00::2", "1.1.1.1"]));
    let ports = (port(), port());
    let names = (
        text(&["tcp", "udp", "icmp", "icmpv6", "sctp", "47"]),
        text(&["ingress", "egress"]),
        text(&["eth0", "eth1", "ens5", "wlp2s0"]),
        text(&["local", "unclaimed", "forwarded", "tunnel"]),
        text(&["active", "ended"]),
        text(&["idle", "fin", "rst"]),
        text(&["tc", "socket"]),
        text(&["node-a", "node-b"]),
    );
    let numbers = (amount(), amount(), small_time(), small_time(), 0u64..4, 0u32..4, 0u64..4);
    let rates = (rate(), rate());
    let details = (
        option::of(tcp()),
        option::of(icmp()),
        option::of(endpoint()),
        option::of(endpoint()),
        any::<bool>(),
        text(&["default", "shop"]),
        text(&["web-1", "web-2"]),
        (option::of(service()), any::<bool>()),
    );
    (ends, ports, names, numbers, rates, details)
        .prop_map(|(ends, ports, names, numbers, rates, details)| NetworkFlow {
            src_ip: ends.0,
            dst_ip: ends.1,
            src_port: ports.0,
            dst_port: ports.1,
            protocol: names.0,
            direction: names.1,
            interface: names.2,
            scope: names.3,
            state: names.4,
            end_reason: names.5,
            plane: names.6,
            node_name: names.7,
            bytes: numbers.0,
            packets: numbers.1,
            first_seen_ns: numbers.2,
            last_seen_ns: numbers.3,
            flow_id: numbers.4,
            ifindex: numbers.5,
            socket_cookie: numbers.6,
            bytes_per_second: rates.0,
            packets_per_second: rates.1,
            tcp: details.0,
            icmp: details.1,
            source: details.2,
            destination: details.3,
            fragment: details.4,
            namespace: details.5,
            pod_name: details.6,
            service: details.7.0,
            supplement: details.7.1,
        })
        .boxed()
}

fn port() -> BoxedStrategy<u32> {
    prop_oneof![Just(0), Just(53), Just(443), 0u32..=65535, any::<u32>()].boxed()
}

fn amount() -> BoxedStrategy<u64> {
    prop_oneof![0u64..4, any::<u64>()].boxed()
}

fn small_time() -> BoxedStrategy<i64> {
    prop_oneof![0i64..4, any::<i64>()].boxed()
}

fn rate() -> BoxedStrategy<f64> {
    prop_oneof![
        Just(0.0),
        (0u32..1000).prop_map(f64::from),
        proptest::num::f64::POSITIVE | proptest::num::f64::NEGATIVE | proptest::num::f64::ZERO,
    ]
    .boxed()
}

fn tcp() -> BoxedStrategy<TcpInfo> {
    let flags = proptest::collection::vec(text(&["syn", "fin", "rst", "syn_ack"]), 0..4);
    (flags, text(&["opening", "open"])).prop_map(|(flags, state)| TcpInfo { flags, state }).boxed()
}

fn icmp() -> BoxedStrategy<IcmpInfo> {
    (any::<u8>(), any::<u8>())
        .prop_map(|(kind, code)| IcmpInfo { r#type: kind.into(), code: code.into() })
        .boxed()
}

fn endpoint() -> BoxedStrategy<Endpoint> {
    let process = option::of((any::<u32>(), text(&["curl", "nginx"])));
    let process = process.prop_map(|told| told.map(|(pid, comm)| Process { pid, comm }));
    let names = (
        text(&["process", "external", "pod", "service"]),
        text(&["default", "shop"]),
        text(&["web-1"]),
        text(&["main"]),
        text(&["web"]),
        text(&["node-a"]),
        text(&["zone-a"]),
    );
    let cgroup =
        (amount(), text(&["/", "/system.slice/a", "/user.slice"]), text(&["cgroup", "none"]));
    let more = (
        text(&["cart"]),
        text(&["4f1c9a7be2d03355"]),
        text(&["containerd"]),
        text(&["sshd.service"]),
        text(&["8f0a"]),
        text(&["Deployment", "Job"]),
        text(&["pod_unknown"]),
    );
    let labels = proptest::collection::hash_map(text(&["app", "tier"]), text(&["web", "a"]), 0..3);
    (process, names, cgroup, more, labels)
        .prop_map(|(process, names, cgroup, more, labels)| Endpoint {
            kind: names.0,
            namespace: names.1,
            pod: names.2,
            container: names.3,
            workload: names.4,
            node: names.5,
            zone: names.6,
            process,
            cgroup_id: cgroup.0,
            cgroup: cgroup.1,
            attribution: cgroup.2,
            service: more.0,
            container_id: more.1,
            runtime: more.2,
            unit: more.3,
            pod_uid: more.4,
            workload_kind: more.5,
            reason: more.6,
            labels,
        })
        .boxed()
}

fn service() -> BoxedStrategy<ServiceUse> {
    let names = (text(&["shop", "bank"]), text(&["cart", "web"]), text(&["http"]));
    let words = (text(&["cluster_ip", "node_port"]), text(&["ok", "no_endpoints"]));
    let ends = (text(&["10.96.0.1"]), port(), text(&["10.0.0.2"]), port());
    (names, words, ends, option::of(endpoint()))
        .prop_map(|(names, words, ends, backend)| ServiceUse {
            namespace: names.0,
            name: names.1,
            port_name: names.2,
            kind: words.0,
            verdict: words.1,
            ip: ends.0,
            port: ends.1,
            backend_ip: ends.2,
            backend_port: ends.3,
            backend,
        })
        .boxed()
}
