//! The evaluator against the cases that define what filters mean.

#[path = "support/filter_cases.rs"]
mod filter_cases;

use std::collections::BTreeSet;

use filter_cases::{Case, Cases};
use orb8_filter::{Filter, FilterError, Required};
use orb8_proto::v1::condition::{Field, Side};
use orb8_proto::v1::{Condition, FlowFilter, NetworkFlow, PortRange, Ports, Strings};

fn compiled(filter: &FlowFilter) -> Result<Filter, FilterError> {
    Filter::compile(Some(filter), &[], &[])
}

/// The names of the flows that a case's filter matches; none if it is refused.
fn found(cases: &Cases, case: &Case) -> Option<BTreeSet<String>> {
    let mut filter = compiled(&case.filter).ok()?;
    let matching = cases.flows.iter().filter(|(_, flow)| filter.matches(flow));
    Some(matching.map(|(name, _)| name.clone()).collect())
}

#[test]
fn every_case_means_what_the_fixture_says() {
    let mut wrong = Vec::new();
    for (cases, least) in [(filter_cases::filters(), 80), (filter_cases::identity(), 90)] {
        assert!(cases.cases.len() > least, "not read to its end: {} cases", cases.cases.len());
        for case in &cases.cases {
            let found = found(&cases, case);
            if found != case.expected {
                wrong.push(format!("{}\n  found {found:?}", case.line));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_filter_at_all_means_all_flows() {
    let mut filter = Filter::compile(None, &[], &[]).unwrap();
    assert!(filter_cases::filters().flows.iter().all(|(_, flow)| filter.matches(flow)));
    let mut filter = Filter::default();
    assert!(filter_cases::identity().flows.iter().all(|(_, flow)| filter.matches(flow)));
}

#[test]
fn a_refusal_names_the_value_and_the_next_step() {
    let cases = [filter_cases::filters(), filter_cases::identity()];
    let messages: Vec<String> = cases
        .iter()
        .flat_map(|cases| &cases.cases)
        .filter_map(|case| compiled(&case.filter).err())
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
        "unknown plane \"xdp\", use socket or tc",
        "unknown verdict \"fine\", use ok, no_endpoints or unknown",
        "unknown kind \"host\", use pod, service, node, process, external or unknown",
        "unknown attribution \"guess\", use cgroup, interface, address, address_reused, masqueraded or none",
        "\"/web\" is not a pod, give [namespace/]prefix of its name",
        "\"shop/\" is not a service, give [namespace/]name",
        "\"a/b/c/d\" is not a workload, give [namespace/][kind/]name",
        "\"\" is not a namespace, give its whole name",
        "\"app in (cart\" is not a label selector, give one such as app=web, tier!=db, env in (a,b), app or !app: a list of values does not end with )",
    ] {
        assert!(messages.iter().any(|message| message == expected), "{expected}: {messages:#?}");
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
        (&["shop", ""], &[], [true, true, false, true]),
        (&[], &["web"], [true, false, true, false]),
        (&[], &["bank/web", "db-1"], [false, true, true, false]),
        (&["shop"], &["web"], [true, false, false, false]),
        (&[], &[""], [true, true, true, false]),
    ] {
        let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let mut filter = Filter::compile(None, &own(namespaces), &own(pods)).unwrap();
        let found = flows.each_ref().map(|flow| filter.matches(flow));
        assert_eq!(found, expected, "{namespaces:?} {pods:?}");
    }
}

fn condition(field: Field) -> Condition {
    Condition { side: Side::Either.into(), negate: false, field: Some(field) }
}

fn strings(values: &[&str]) -> Strings {
    Strings { values: values.iter().map(|value| (*value).to_owned()).collect() }
}

#[test]
fn a_side_of_a_newer_version_is_refused() {
    let all = vec![Condition { side: 9, ..condition(Field::IpVersion(4)) }];
    assert_eq!(compiled(&FlowFilter { all }).unwrap_err(), FilterError::UnknownSide(9));
}

#[test]
fn what_is_required_is_never_more_than_the_filter_asks() {
    let port = Field::Port(Ports { ranges: vec![PortRange { first: 80, last: 80 }] });
    let all = vec![
        condition(Field::Ip(strings(&["10.0.0.0/8"]))),
        condition(port.clone()),
        condition(Field::Protocol(strings(&["tcp"]))),
        condition(Field::Interface(strings(&["eth*"]))),
    ];
    let required = compiled(&FlowFilter { all }).unwrap().required();
    let ip = Some("10.0.0.0/8".parse().unwrap());
    assert_eq!(required, Required { ip, port: Some(80), protocol: Some(6) });
    let all = vec![
        Condition { negate: true, ..condition(port) },
        condition(Field::Protocol(strings(&["tcp", "udp"]))),
        condition(Field::Port(Ports { ranges: vec![PortRange { first: 80, last: 81 }] })),
        condition(Field::Ip(strings(&["10.0.0.1", "10.0.0.2"]))),
    ];
    assert_eq!(compiled(&FlowFilter { all }).unwrap().required(), Required::default());
}
