//! What the cluster itself knows of a pod, against what an answer says of it beside its name: the
//! uid, the node and its zone, the workload, the container; and whom the backend's address is of.

use orb8_proto::v1::{Endpoint, NetworkFlow, ServiceUse};
use orb8_testbed::api::store::Store;

use super::rows::{ends, line, who};
use orb8_testbed::cluster::plan::Cni;

/// A row as one line, and after it what it says wrongly of the pods and nodes that it names.
pub fn checked_line(store: &Store, row: &NetworkFlow, cni: Cni) -> String {
    let (owner, peer) = ends(row);
    let backend = row.service.as_ref().and_then(|service| service.backend.clone());
    let all = [Some(owner), Some(peer), backend];
    let mut wrong: Vec<String> =
        all.iter().flatten().flat_map(|end| mistakes(store, end)).collect();
    wrong.extend(row.service.as_ref().and_then(|service| wrong_backend(store, service)));
    let wrong = if wrong.is_empty() { String::new() } else { format!(" BUT {}", wrong.join(", ")) };
    line(row, cni) + &wrong
}

/// A backend at a pod's address is that pod. Only where several had the address, one after the other,
/// it may be said that nobody knows which of them it was.
fn wrong_backend(store: &Store, service: &ServiceUse) -> Option<String> {
    let holders = store.pods_ever_at(&service.backend_ip);
    let said = service.backend.clone().unwrap_or_default();
    let is_doubt = holders.len() > 1 && said.reason == "address_ambiguous";
    let is_right = holders.is_empty() || holders.contains(&said.pod_uid) || is_doubt;
    (!is_right).then(|| format!("backend {}: {}", service.backend_ip, who(&said)))
}

/// What is wrong with an end, as `field: said, not true`.
fn mistakes(store: &Store, end: &Endpoint) -> Vec<String> {
    let told: Vec<(&str, String, String)> = match end.kind.as_str() {
        "pod" if !end.pod.is_empty() => of_pod(store, end),
        "node" => vec![("zone", end.zone.clone(), zone_of(&end.node))],
        _ => Vec::new(),
    };
    let wrong = told.into_iter().filter(|(_, said, truth)| said != truth);
    wrong.map(|(field, said, truth)| format!("{field}: {said:?}, not {truth:?}")).collect()
}

/// Each thing that is said of a pod, and what its object says.
fn of_pod(store: &Store, end: &Endpoint) -> Vec<(&'static str, String, String)> {
    let Some(pod) = store.ever(&end.pod_uid) else {
        return vec![("pod uid", end.pod_uid.clone(), format!("that of {}", end.pod))];
    };
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let node = text(&pod["spec"]["nodeName"]);
    let workload = format!("{}/{}", end.workload_kind, end.workload);
    let mut all = vec![
        ("namespace", end.namespace.clone(), text(&pod["metadata"]["namespace"])),
        ("pod", end.pod.clone(), text(&pod["metadata"]["name"])),
        ("zone", end.zone.clone(), zone_of(&node)),
        ("node", end.node.clone(), node),
        ("workload", workload, workload_of(store, &pod)),
    ];
    if !end.container.is_empty() {
        all.push(("container id", end.container_id.clone(), id_of(&pod, end)));
    }
    all
}

/// `Deployment/web`, the owner that nobody owns; `/` without an owner.
fn workload_of(store: &Store, pod: &serde_json::Value) -> String {
    let mut object = pod.clone();
    let mut top = "/".to_owned();
    while let Some(owner) = object["metadata"]["ownerReferences"].get(0).cloned() {
        let part = |name: &str| owner[name].as_str().unwrap_or_default().to_owned();
        top = format!("{}/{}", part("kind"), part("name"));
        match store.ever(&part("uid")) {
            Some(next) => object = next,
            None => break,
        }
    }
    top
}

/// The id of the container by the name that the end says.
fn id_of(pod: &serde_json::Value, end: &Endpoint) -> String {
    let kinds = ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"];
    let all = kinds.iter().filter_map(|kind| pod["status"][kind].as_array()).flatten();
    let ids = all.filter(|one| one["name"] == end.container.as_str());
    let ids: Vec<&str> = ids.filter_map(|one| one["containerID"].as_str()).collect();
    let id = ids.first().and_then(|id| id.split_once("://")).map(|(_, id)| id.to_owned());
    id.unwrap_or_else(|| format!("one of {ids:?}"))
}

/// The zone that the cluster gives a node.
fn zone_of(node: &str) -> String {
    node.strip_prefix("node").map_or_else(String::new, |number| format!("zone-{number}"))
}
