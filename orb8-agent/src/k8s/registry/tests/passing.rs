//! Addresses that pass on: from what is forgotten, from what is not kept, and of Services.

use super::super::tables::Tables;
use super::*;

/// A pod without an address yet, made at this time, bound to this node.
fn waiting(uid: &str, node: Option<&str>, created_ns: u64) -> Value {
    let mut value = running(uid, "", created_ns);
    value["status"] = json!({ "phase": "Pending" });
    value["spec"] = json!({ "containers": [] });
    if let Some(node) = node {
        value["spec"]["nodeName"] = json!(node);
    }
    value
}

/// A pod whose containers have all ended, about to go.
fn quiet(uid: &str, address: &str, created_ns: u64, ended_ns: u64) -> Value {
    let mut value = running(uid, address, created_ns);
    value["metadata"]["deletionTimestamp"] = json!(created(ended_ns));
    value["status"]["containerStatuses"][0]["state"] =
        json!({ "terminated": { "exitCode": 0, "finishedAt": created(ended_ns) } });
    value
}

/// Tells of something else, so that what is old is forgotten.
fn forget(registry: &Registry, now_ns: u64) {
    registry.apply_pod(&pod(&running("other", "10.0.0.77", now_ns)), at(now_ns));
}

#[test]
fn who_was_possible_beside_a_forgotten_holder_is_not_the_one_that_is_left() {
    let registry = listed();
    let old = running("old", "10.0.0.1", 10 * SECOND);
    registry.apply_pod(&pod(&old), at(10 * SECOND));
    registry.apply_pod(&pod(&waiting("new", Some(OWN), 20 * SECOND)), at(20 * SECOND));
    registry.delete_pod(&meta(&old), at(100 * SECOND));
    registry.apply_pod(&pod(&running("new", "10.0.0.1", 20 * SECOND)), at(110 * SECOND));
    assert_eq!(who(&registry, "10.0.0.1", 50 * SECOND), "ambiguous");
    forget(&registry, 500 * SECOND);
    assert_eq!(who(&registry, "10.0.0.1", 50 * SECOND), "in cluster");
    assert_eq!(who(&registry, "10.0.0.1", 120 * SECOND), "new");
}

#[test]
fn who_gets_an_address_after_its_holder_was_forgotten_had_it_not_before() {
    let registry = listed();
    let old = running("old", "10.0.0.1", 10 * SECOND);
    registry.apply_pod(&pod(&old), at(10 * SECOND));
    registry.apply_pod(&pod(&waiting("new", None, 20 * SECOND)), at(20 * SECOND));
    registry.delete_pod(&meta(&old), at(100 * SECOND));
    forget(&registry, 500 * SECOND);
    registry.apply_pod(&pod(&running("new", "10.0.0.1", 20 * SECOND)), at(510 * SECOND));
    assert_eq!(who(&registry, "10.0.0.1", 50 * SECOND), "in cluster");
    assert_eq!(who(&registry, "10.0.0.1", 510 * SECOND), "new");
}

#[test]
fn who_was_possible_beside_one_of_too_many_holders_is_not_the_one_that_is_left() {
    let registry = listed();
    registry.apply_pod(&pod(&waiting("new", Some(OWN), 5 * SECOND)), at(5 * SECOND));
    for number in 0..17 {
        let (uid, from_ns) = (format!("old{number}"), (10 + 4 * number) * SECOND);
        let old = running(&uid, "10.0.0.1", from_ns);
        registry.apply_pod(&pod(&old), at(from_ns));
        registry.delete_pod(&meta(&old), at(from_ns + 2 * SECOND));
    }
    registry.apply_pod(&pod(&running("new", "10.0.0.1", 5 * SECOND)), at(100 * SECOND));
    assert_eq!(who(&registry, "10.0.0.1", 11 * SECOND), "in cluster");
}

#[test]
fn a_pod_that_is_not_kept_ends_the_time_in_which_the_last_holder_may_run_on() {
    let registry = Registry::shared(OWN, 2);
    for resource in Resource::ALL {
        registry.begin_list(resource);
        registry.end_list(resource, Seen::late(0, 0, ZERO_UNIX_NS));
    }
    for (uid, address) in [("a", "10.0.0.1"), ("b", "10.0.0.2")] {
        registry.apply_pod(&pod(&running(uid, address, SECOND)), at(SECOND));
    }
    registry.delete_pod(&meta(&running("a", "", 0)), at(10 * SECOND));
    registry.apply_pod(&pod(&running("c", "10.0.0.3", 11 * SECOND)), at(11 * SECOND));
    assert_eq!(who(&registry, "10.0.0.1", 20 * SECOND), "a", "its containers may run on");
    registry.apply_pod(&pod(&running("d", "10.0.0.1", 15 * SECOND)), at(15 * SECOND));
    assert_eq!(registry.status().rejected, 1);
    assert_eq!(who(&registry, "10.0.0.1", 5 * SECOND), "a");
    assert_eq!(who(&registry, "10.0.0.1", 20 * SECOND), "in cluster");
}

#[test]
fn an_address_of_no_nodes_range_may_pass_to_a_pod_of_any_node() {
    let registry = listed();
    registry.apply_node(&node(OWN, "172.30.0.11", "10.0.0.0/24"), at(SECOND));
    for (uid, address) in [("ranged", "10.0.0.1"), ("pooled", "10.9.0.1")] {
        registry.apply_pod(&pod(&running(uid, address, 2 * SECOND)), at(2 * SECOND));
        registry.apply_pod(&pod(&quiet(uid, address, 2 * SECOND, 9 * SECOND)), at(10 * SECOND));
        assert_eq!(who(&registry, address, 11 * SECOND), uid);
    }
    registry.apply_pod(&pod(&waiting("new", Some("node2"), 10 * SECOND)), at(10 * SECOND));
    assert_eq!(who(&registry, "10.0.0.1", 11 * SECOND), "ranged", "of its node alone");
    assert_eq!(who(&registry, "10.9.0.1", 11 * SECOND), "ambiguous");
    registry.apply_pod(&pod(&waiting("near", Some(OWN), 10 * SECOND)), at(10 * SECOND));
    assert_eq!(who(&registry, "10.0.0.1", 11 * SECOND), "ambiguous");
}

/// A Service with an address outside of the cluster, or none.
fn balanced(name: &str, address: &str, created_ns: u64) -> Value {
    let ingress = if address.is_empty() { json!([]) } else { json!([{ "ip": address }]) };
    json!({
        "metadata": {
            "namespace": "shop", "name": name, "creationTimestamp": created(created_ns),
        },
        "spec": { "type": "LoadBalancer", "ports": [{ "port": 80, "nodePort": 30080 }] },
        "status": { "loadBalancer": { "ingress": ingress } },
    })
}

#[test]
fn an_external_address_is_a_services_for_as_long_as_it_had_it() {
    const ADDRESS: &str = "203.0.113.9";
    let registry = listed();
    let asked = |registry: &Registry, at_ns| {
        let view = registry.read();
        let hit = view.service(ip(ADDRESS), 80, 6, at_ns)?;
        Some(hit.service.name.to_string())
    };
    registry.apply_service(&service(balanced("old", ADDRESS, SECOND)), at(2 * SECOND));
    registry.apply_service(&service(balanced("new", "", SECOND)), at(2 * SECOND));
    assert_eq!(asked(&registry, 5 * SECOND).as_deref(), Some("old"));
    registry.apply_service(&service(balanced("old", "", SECOND)), at(20 * SECOND));
    assert_eq!(who(&registry, ADDRESS, 5 * SECOND), "service old", "then it had it");
    assert_eq!(who(&registry, ADDRESS, 21 * SECOND), "outside");
    registry.apply_service(&service(balanced("new", ADDRESS, SECOND)), at(30 * SECOND));
    assert_eq!(who(&registry, ADDRESS, 5 * SECOND), "service old");
    assert_eq!(who(&registry, ADDRESS, 25 * SECOND), "outside", "nobody's in between");
    assert_eq!(who(&registry, ADDRESS, 31 * SECOND), "service new");
    assert_eq!(asked(&registry, 5 * SECOND), None);
    assert_eq!(asked(&registry, 31 * SECOND).as_deref(), Some("new"));
    registry.apply_service(&service(balanced("both", ADDRESS, 40 * SECOND)), at(40 * SECOND));
    assert_eq!(who(&registry, ADDRESS, 41 * SECOND), "ambiguous", "two share it");
    registry.apply_node(&node(OWN, ADDRESS, "10.0.0.0/24"), at(50 * SECOND));
    assert_eq!(who(&registry, ADDRESS, 51 * SECOND), "node node1", "its own balancer");
}

#[test]
fn after_a_cut_a_service_has_its_port_though_the_one_before_is_told_gone_later() {
    const ADDRESS: &str = "203.0.113.9";
    let registry = listed();
    registry.apply_service(&service(balanced("old", ADDRESS, SECOND)), at(2 * SECOND));
    let seen = Seen::late(20 * SECOND, 10 * SECOND, ZERO_UNIX_NS);
    registry.begin_list(Resource::Services);
    registry.apply_service(&service(balanced("new", ADDRESS, 15 * SECOND)), seen);
    registry.end_list(Resource::Services, seen);
    let view = registry.read();
    for hit in
        [view.service(ip(ADDRESS), 80, 6, 21 * SECOND), view.node_port(30080, 6, 21 * SECOND)]
    {
        assert_eq!(hit.map(|hit| hit.service.name.to_string()).as_deref(), Some("new"));
    }
    assert!(view.node_port(30080, 6, 5 * SECOND).is_none(), "it was another's then");
}

#[test]
fn however_many_hold_an_address_none_is_forgotten_while_it_does() {
    const ADDRESS: &str = "203.0.113.9";
    let registry = listed();
    let services: Vec<_> =
        (0..18).map(|n| balanced(&format!("s{n}"), ADDRESS, n * SECOND)).collect();
    for (n, one) in (0..).zip(&services) {
        registry.apply_service(&service(one.clone()), at(n * SECOND));
    }
    for one in &services[1..17] {
        registry.delete_service(&meta(one), at(20 * SECOND));
    }
    assert_eq!(who(&registry, ADDRESS, 30 * SECOND), "ambiguous", "the first and the last have it");
    registry.delete_service(&meta(&services[0]), at(40 * SECOND));
    assert_eq!(who(&registry, ADDRESS, 50 * SECOND), "service s17");
}

#[test]
fn a_time_without_sight_that_goes_on_is_not_forgotten_for_those_that_are_over() {
    let mut tables = Tables::new(OWN, 64);
    tables.blind_for(200 * SECOND, 320 * SECOND);
    for n in 0..70 {
        tables.blind_for(2 * n * SECOND, (2 * n + 1) * SECOND);
    }
    assert!(tables.is_blind(300 * SECOND));
    assert!(tables.is_blind(138 * SECOND));
    assert!(!tables.is_blind(0), "bounded: the earliest went");
}

#[test]
fn times_without_sight_that_touch_are_one() {
    let mut tables = Tables::new(OWN, 64);
    for (since, until) in [(50, 60), (10, 20), (30, 40), (15, 35), (39, 55)] {
        tables.blind_for(since * SECOND, until * SECOND);
    }
    let seen = |at: u64| !tables.is_blind(at * SECOND);
    assert!(seen(9) && seen(60));
    assert!((10..60).all(|at| !seen(at)));
}
