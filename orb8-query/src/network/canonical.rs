//! Messages as bytes that are equal for equal messages, to order them by everything they carry. The
//! plain encoding is not: maps are written in the order of a hash that differs from run to run.

use orb8_proto::v1::{Endpoint, NetworkFlow, ServiceUse};
use prost::Message;

/// All of a flow.
pub(super) fn flow(flow: &NetworkFlow) -> Vec<u8> {
    let mut flow = flow.clone();
    let mut labels = Vec::new();
    take(flow.source.as_mut(), &mut labels);
    take(flow.destination.as_mut(), &mut labels);
    take(flow.service.as_mut().and_then(|service| service.backend.as_mut()), &mut labels);
    with(flow.encode_to_vec(), &labels)
}

/// All of an end.
pub(super) fn endpoint(end: &Endpoint) -> Vec<u8> {
    let mut end = end.clone();
    let mut labels = Vec::new();
    take(Some(&mut end), &mut labels);
    with(end.encode_to_vec(), &labels)
}

/// All of the use of a Service.
pub(super) fn service(service: &ServiceUse) -> Vec<u8> {
    let mut service = service.clone();
    let mut labels = Vec::new();
    take(service.backend.as_mut(), &mut labels);
    with(service.encode_to_vec(), &labels)
}

type Labels = Vec<(String, String)>;

fn take(end: Option<&mut Endpoint>, into: &mut Vec<Labels>) {
    let taken = end.map(|end| std::mem::take(&mut end.labels)).unwrap_or_default();
    let mut labels: Labels = taken.into_iter().collect();
    labels.sort();
    into.push(labels);
}

fn with(mut bytes: Vec<u8>, labels: &[Labels]) -> Vec<u8> {
    for labels in labels {
        bytes.extend(labels.len().to_be_bytes());
        for text in labels.iter().flat_map(|(key, value)| [key, value]) {
            bytes.extend(text.len().to_be_bytes());
            bytes.extend(text.bytes());
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labelled(labels: &[(&str, &str)]) -> NetworkFlow {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let source = Endpoint { labels: labels.collect(), ..Endpoint::default() };
        NetworkFlow { source: Some(source), ..NetworkFlow::default() }
    }

    #[test]
    fn equal_flows_have_equal_bytes_whatever_the_order_of_their_labels() {
        let names: Vec<String> = (0..20).map(|n| format!("key-{n}")).collect();
        let mut labels: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "x")).collect();
        let one = labelled(&labels);
        labels.reverse();
        let other = labelled(&labels);
        assert_eq!(one, other);
        assert_eq!(flow(&one), flow(&other));
        labels.pop();
        assert_ne!(flow(&one), flow(&labelled(&labels)));
        assert_ne!(flow(&labelled(&[("a", "bc")])), flow(&labelled(&[("ab", "c")])));
    }
}
