//! The evaluator of saved flows against the cases that define what filters mean.

#[path = "support/filter_cases.rs"]
mod filter_cases;

use std::collections::BTreeSet;

use orb8_query::network::filter::Matcher;

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
