//! How one end of a flow is named in a table, and the marks of what is not to be taken at its word.
//!
//! Names nobody: it writes down what the record says, and a mark where the record says that it is
//! not sure.

use orb8_proto::v1::Endpoint;
use orb8_util::net;

/// Characters of a uid or of a container's id that are shown.
const SHORT_UID: usize = 8;
const SHORT_ID: usize = 12;

/// A remark on a value, one character behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    /// Nobody is known there.
    Unknown,
    /// A node's address, behind which a pod may be.
    Masqueraded,
    /// Named after an earlier holder of the address.
    Reused,
    /// Named as the API told last, which was not heard at that time.
    Outdated,
    /// Counted beside the owner's totals.
    Supplement,
}

impl Mark {
    /// All of them, in the order of the legend.
    pub const ALL: [Self; 5] =
        [Self::Unknown, Self::Masqueraded, Self::Reused, Self::Outdated, Self::Supplement];

    /// The character.
    #[must_use]
    pub fn sign(self) -> char {
        match self {
            Self::Unknown => '?',
            Self::Masqueraded => '~',
            Self::Reused => '*',
            Self::Outdated => '!',
            Self::Supplement => '+',
        }
    }

    /// What it means, for the legend.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Unknown => "not identified",
            Self::Masqueraded => "a node's address that may hide a pod (masqueraded)",
            Self::Reused => "named by an address that has changed hands (address_reused)",
            Self::Outdated => {
                "known by an address that may have changed hands while the Kubernetes API was not \
                 heard (api_not_synced)"
            }
            Self::Supplement => "supplement, in no total: only the interface saw it",
        }
    }
}

/// The mark of an end; that somebody outside has no name is no remark, but that it may be somebody
/// inside by now is one.
#[must_use]
pub fn mark(end: &Endpoint) -> Option<Mark> {
    match (end.kind.as_str(), end.attribution.as_str()) {
        (_, "masqueraded") => Some(Mark::Masqueraded),
        (_, "address_reused") => Some(Mark::Reused),
        ("unknown", _) => Some(Mark::Unknown),
        ("external", "none") => None,
        (_, "none") => Some(Mark::Unknown),
        _ if end.reason == "api_not_synced" => Some(Mark::Outdated),
        _ => None,
    }
}

/// An end in one word or two: `shop/web-1:443`, `svc shop/cart:80`, `node/node-b:4000`,
/// `10.0.0.1:4000 (curl)`, `10.0.0.9:53`.
#[must_use]
pub fn name(end: Option<&Endpoint>, address: &str, port: Option<u32>) -> String {
    let plain = || net::endpoint(address, port);
    let Some(end) = end else { return plain() };
    let with_port = |name: String| match port {
        Some(port) => format!("{name}:{port}"),
        None => name,
    };
    match end.kind.as_str() {
        "pod" if !end.pod.is_empty() => with_port(format!("{}/{}", end.namespace, end.pod)),
        "pod" if !end.pod_uid.is_empty() => {
            with_port(format!("pod uid {}", start(&end.pod_uid, SHORT_UID)))
        }
        "service" if !end.service.is_empty() => {
            with_port(format!("svc {}/{}", end.namespace, end.service))
        }
        "node" if !end.node.is_empty() => with_port(format!("node/{}", end.node)),
        "process" => match local(end) {
            // The address first: a process may have chosen a name that reads like another's.
            Some(name) => format!("{} ({name})", plain()),
            None => plain(),
        },
        _ => plain(),
    }
}

/// A process of the host: its container, else its systemd unit, else its own name.
fn local(end: &Endpoint) -> Option<String> {
    let comm = end.process.as_ref().map(|process| process.comm.as_str());
    if !end.container.is_empty() || !end.container_id.is_empty() {
        let runtime = if end.runtime.is_empty() { "container" } else { &end.runtime };
        return Some(format!("{runtime}/{}", container(end)));
    }
    let unit = (!end.unit.is_empty()).then_some(end.unit.as_str());
    unit.or(comm.filter(|comm| !comm.is_empty())).map(str::to_owned)
}

/// The container's name, or the beginning of its id; empty if neither is known.
#[must_use]
pub fn container(end: &Endpoint) -> String {
    if end.container.is_empty() {
        start(&end.container_id, SHORT_ID)
    } else {
        end.container.clone()
    }
}

/// `Deployment/web`, or the name alone where its kind is not known.
#[must_use]
pub fn workload(end: &Endpoint) -> String {
    match (end.workload_kind.as_str(), end.workload.as_str()) {
        (_, "") => String::new(),
        ("", name) => name.to_owned(),
        (kind, name) => format!("{kind}/{name}"),
    }
}

/// How it was identified, and why not better: `none(api_not_synced)`.
#[must_use]
pub fn attribution(end: &Endpoint) -> String {
    match end.reason.as_str() {
        "" => end.attribution.clone(),
        reason => format!("{}({reason})", end.attribution),
    }
}

fn start(text: &str, characters: usize) -> String {
    text.chars().take(characters).collect()
}

#[cfg(test)]
mod tests {
    use orb8_proto::v1::Process;

    use super::*;

    fn end(kind: &str, change: impl FnOnce(&mut Endpoint)) -> Endpoint {
        let mut end = Endpoint {
            kind: kind.to_owned(),
            attribution: "cgroup".to_owned(),
            ..Endpoint::default()
        };
        change(&mut end);
        end
    }

    fn check(end: &Endpoint, expected: &str) {
        let shown = name(Some(end), "10.0.0.1", Some(80));
        let mark = mark(end).map(Mark::sign).map(String::from).unwrap_or_default();
        assert_eq!(format!("{shown}{mark}"), expected, "{end:?}");
    }

    #[test]
    fn each_kind_of_end_has_its_form() {
        check(
            &end("pod", |end| (end.namespace, end.pod) = ("shop".into(), "web-1".into())),
            "shop/web-1:80",
        );
        check(&end("pod", |end| end.pod_uid = "8f0a1b2c-77".into()), "pod uid 8f0a1b2c:80");
        check(
            &end("service", |end| (end.namespace, end.service) = ("shop".into(), "cart".into())),
            "svc shop/cart:80",
        );
        check(&end("node", |end| end.node = "node-b".into()), "node/node-b:80");
        check(&end("process", |_| ()), "10.0.0.1:80");
        check(&end("external", |end| end.attribution = "none".into()), "10.0.0.1:80");
        check(&end("unknown", |end| end.attribution = "none".into()), "10.0.0.1:80?");
        assert_eq!(name(None, "fd00::1", Some(80)), "[fd00::1]:80");
        assert_eq!(name(None, "fd00::1", None), "fd00::1");
    }

    #[test]
    fn a_process_goes_by_container_then_unit_then_its_own_name() {
        let process = |change: fn(&mut Endpoint)| {
            end("process", |end| {
                end.process = Some(Process { pid: 1, comm: "sshd".into() });
                change(end);
            })
        };
        check(&process(|_| ()), "10.0.0.1:80 (sshd)");
        check(&process(|end| end.unit = "ssh.service".into()), "10.0.0.1:80 (ssh.service)");
        check(
            &process(|end| {
                (end.runtime, end.container_id) = ("docker".into(), "4f1c9a7be2d03355aa".into())
            }),
            "10.0.0.1:80 (docker/4f1c9a7be2d0)",
        );
        check(&process(|end| end.container = "db".into()), "10.0.0.1:80 (container/db)");
    }

    #[test]
    fn marks_tell_what_is_not_to_be_taken_at_its_word() {
        let node = |by: &str| {
            end("node", |end| (end.node, end.attribution) = ("node-b".into(), by.into()))
        };
        check(&node("masqueraded"), "node/node-b:80~");
        check(&node("address_reused"), "node/node-b:80*");
        check(&node("none"), "node/node-b:80?");
        check(&node("address"), "node/node-b:80");
        let outdated = Endpoint { reason: "api_not_synced".into(), ..node("address") };
        check(&outdated, "node/node-b:80!");
        let outside = |reason: &str| {
            end("external", |end| (end.attribution, end.reason) = ("address".into(), reason.into()))
        };
        check(&outside("api_not_synced"), "10.0.0.1:80!");
        check(&outside(""), "10.0.0.1:80");
    }
}
