//! Many pods of another node, as an API server tells of them, and whether flows bear their names. For
//! loads that are about their number; where pods have namespaces of their own, that is `cluster`.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::ensure;
use orb8_proto::v1::NetworkFlow;

use crate::api::ApiServer;
use crate::api::object;
use crate::api::pod::{Pod, Stage};
use crate::netns::Netns;

/// How many.
pub const PODS: u32 = 500;
/// How the name of each begins.
const NAME: &str = "web-";
/// The node that an agent is to be on.
const NODE: &str = "testbed";

/// The address of a pod.
#[must_use]
pub fn address(pod: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 100, 0, 1)) + pod)
}

/// Which pod has an address.
#[must_use]
pub fn number(ip: Ipv4Addr) -> Option<u32> {
    u32::from(ip).checked_sub(u32::from(address(0)))
}

/// A pod that has an address; which of all that have had it, `life` says.
#[must_use]
pub fn pod(number: u32, life: u32) -> Pod {
    let namespace = format!("team-{}", number % 20);
    let mut pod = Pod::new(&namespace, &format!("{NAME}{number}-{life}"), "elsewhere");
    pod.ips = vec![address(number).into()];
    pod
}

/// An API server beside an agent, with both nodes and the first life of all pods.
#[must_use]
pub fn api(netns: &Netns) -> ApiServer {
    let api = ApiServer::inside(netns, Ipv4Addr::LOCALHOST.into());
    for (name, last) in [("elsewhere", 10), (NODE, 11)] {
        let ranges = [format!("10.{}.0.0/16", 90 + last)];
        api.put(object::node(name, &[IpAddr::from([172, 30, 0, last])], &ranges, "zone-a"));
    }
    for number in 0..PODS {
        api.put(pod(number, 0).object(Stage::Running));
    }
    api
}

/// Settings of an agent that is to ask it.
#[must_use]
pub fn settings(api: &ApiServer) -> [(&'static str, String); 3] {
    [
        ("ORB8_KUBERNETES", "on".to_owned()),
        ("KUBECONFIG", api.kubeconfig("agent").display().to_string()),
        ("NODE_NAME", NODE.to_owned()),
    ]
}

/// That all flows come from pods by their names: without names memory would be another figure.
///
/// # Errors
/// There is none, or one lacks its name.
pub fn all_named(flows: &[NetworkFlow]) -> anyhow::Result<()> {
    ensure!(!flows.is_empty(), "there are no flows");
    let named = |flow: &&NetworkFlow| {
        flow.source.as_ref().is_some_and(|source| source.pod.starts_with(NAME))
    };
    let nameless = flows.iter().find(|flow| !named(flow));
    let told = nameless.map(|flow| format!("{} to {}", flow.src_ip, flow.dst_ip));
    ensure!(told.is_none(), "a flow has no name: {}", told.unwrap_or_default());
    Ok(())
}

#[cfg(test)]
mod tests {
    use orb8_proto::v1::Endpoint;

    use super::*;

    #[test]
    fn an_address_is_that_of_its_pod() {
        assert_eq!(address(PODS - 1), Ipv4Addr::new(10, 100, 1, 244));
        assert_eq!(number(address(7)), Some(7));
        assert_eq!(number(Ipv4Addr::new(10, 100, 0, 0)), None);
        assert_eq!(pod(7, 2).ips, [IpAddr::V4(address(7))]);
    }

    #[test]
    fn a_flow_without_a_name_is_found_among_others() {
        let flow = |pod: &str| NetworkFlow {
            src_ip: "10.100.0.1".to_owned(),
            dst_ip: "10.0.0.2".to_owned(),
            source: Some(Endpoint { pod: pod.to_owned(), ..Default::default() }),
            ..Default::default()
        };
        all_named(&[flow(&pod(3, 0).name)]).expect("it has one");
        let error = all_named(&[flow("web-3-0"), flow("")]).expect_err("one has none");
        assert_eq!(error.to_string(), "a flow has no name: 10.100.0.1 to 10.0.0.2");
        all_named(&[]).expect_err("there are none");
    }
}
