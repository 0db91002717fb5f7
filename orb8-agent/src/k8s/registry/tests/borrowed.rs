//! Objects that claim a cgroup which may be another pod's.

use super::*;

const HASH: &str = "0123456789abcdef0123456789abcdef";

/// A pod of this node that says whose cgroup it has.
fn mirror(uid: &str, of: &str, node: &str) -> Value {
    let mut value = running(uid, "10.0.0.9", SECOND);
    value["metadata"]["annotations"] = json!({ "kubernetes.io/config.mirror": of });
    value["metadata"]["labels"] = json!({ "from": uid });
    value["spec"]["nodeName"] = json!(node);
    value
}

/// The name and the label of the pod whose cgroup has this uid.
fn named(registry: &Registry, cgroup_uid: &str) -> (String, String) {
    let pod = registry.pod_of_cgroup(cgroup_uid).expect("there is room");
    let name = pod.identity().map(|identity| identity.name.to_string()).unwrap_or_default();
    let label = pod.state().labels.as_ref().map(|labels| labels[0].1.to_string());
    (name, label.unwrap_or_default())
}

#[test]
fn a_mirror_object_with_the_uid_of_a_pod_names_itself_alone() {
    for liar_is_first in [true, false] {
        let registry = listed();
        let mut victim = running("victim", "10.0.0.1", SECOND);
        victim["metadata"]["uid"] = json!("11111111-2222-4333-8444-555555555555");
        victim["metadata"]["labels"] = json!({ "from": "victim" });
        let liar = mirror("liar", "11111111-2222-4333-8444-555555555555", OWN);
        let told = if liar_is_first { [&liar, &victim] } else { [&victim, &liar] };
        for value in told {
            registry.apply_pod(&pod(value), at(2 * SECOND));
        }
        let found = named(&registry, "11111111-2222-4333-8444-555555555555");
        assert_eq!(found, ("victim".to_owned(), "victim".to_owned()), "{liar_is_first}");
        assert_eq!(named(&registry, "liar").0, "liar");
        assert_eq!(who(&registry, "10.0.0.1", 2 * SECOND), "victim");
    }
}

#[test]
fn a_config_hash_is_taken_once_and_only_of_a_pod_of_this_node() {
    let registry = listed();
    registry.apply_pod(&pod(&mirror("elsewhere", HASH, "node2")), at(SECOND));
    assert_eq!(named(&registry, HASH).0, "", "its cgroup is on that node");
    let uid = match registry.read().holder(ip("10.0.0.9"), SECOND) {
        Holder::Pod { pod, .. } => pod.uid.to_string(),
        other => panic!("it has an address, and {other:?} is told"),
    };
    assert_eq!(uid, HASH, "as the agent of that node names it");
    registry.delete_pod(&meta(&mirror("elsewhere", HASH, "node2")), at(SECOND));
    registry.apply_pod(&pod(&mirror("static", HASH, OWN)), at(2 * SECOND));
    let rejected = registry.status().rejected;
    registry.apply_pod(&pod(&mirror("liar", HASH, OWN)), at(3 * SECOND));
    assert_eq!(named(&registry, HASH), ("static".to_owned(), "static".to_owned()));
    assert_eq!(named(&registry, "liar").0, "liar");
    assert_eq!(registry.status().rejected, rejected + 1);
    registry.delete_pod(&meta(&mirror("liar", HASH, OWN)), at(4 * SECOND));
    let held = registry.pod_of_cgroup(HASH).expect("it is known");
    assert_eq!(held.state().ended_ns, None, "the liar's end is not the static pod's");
}
