//! Leaves out what the agent itself sends and receives, so that watching does not feed itself; and
//! what is counted elsewhere under a better name.
//!
//! Own are the sockets whose cookie is known, the answers to what they sent where the kernel shows no
//! socket, and else what has an own local address and the own listening port together. A port alone
//! proves nothing: others serve on 9090 too. Neither does a loopback address at a socket: every
//! network namespace has its own.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use orb8_common::network::{FlowKey, flag};

use crate::capture::SocketRoot;
use crate::cgroup::Cgroups;
use crate::event::{Event, FlowId};
use crate::host::{Facts, HostFacts, HostReader, OwnHasher};
use crate::network::keys;
use crate::pipeline::filter::{EventFilter, Verdict};

/// The reason that the ledger shows.
pub const SELF_TRAFFIC: &str = "self_traffic";

/// Conversations with the API server that are remembered; those to come displace the oldest.
const CONVERSATIONS: usize = 256;
/// How long after the agent's socket was seen the last time, nanoseconds: others may get its port.
const REMEMBERED_NS: u64 = 60_000_000_000;

/// Drops the agent's own traffic.
#[derive(Debug)]
pub struct SelfTraffic {
    facts: HostReader,
    cgroups: Cgroups,
    /// The cgroup of the agent's sockets, as the first of them showed; 0: none was seen.
    own_cgroup: u64,
    asked: Conversations,
}

impl SelfTraffic {
    /// A filter that learns about the agent's sockets from these facts, and from the cgroups who
    /// else may be at a loopback address.
    #[must_use]
    pub fn new(facts: Arc<HostFacts>, cgroups: Cgroups) -> Self {
        Self {
            facts: HostReader::new(facts),
            cgroups,
            own_cgroup: 0,
            asked: Conversations::default(),
        }
    }

    fn is_own(&mut self, id: &FlowId, cookie: u64, at_ns: u64) -> bool {
        let facts = self.facts.get();
        let at_socket = keys::ifindex(id).is_none();
        if facts.is_own_cookie(cookie) {
            if at_socket {
                self.own_cgroup = id.owner;
            }
            if facts.is_api_cookie(cookie) {
                self.asked.note(&id.key, at_ns);
            }
            return true;
        }
        // The kernel tells no cookie of what arrives at an interface, and none once it has closed
        // the socket. Another socket is somebody else's who has got the port.
        if cookie != 0 {
            self.asked.forget(&id.key);
        } else if self.asked.knows(&id.key, at_ns) {
            return true;
        }
        is_own_listener(facts, id)
            && (!at_socket || !keys::owner(&id.key).is_loopback() || self.is_at_agents_loopback(id))
    }

    /// Whether the loopback addresses of a socket are the agent's: those of its own container, and
    /// of what is in no container.
    fn is_at_agents_loopback(&self, id: &FlowId) -> bool {
        let in_container = |placement: &crate::cgroup::Placement| {
            placement.pod.is_some() || placement.container.is_some()
        };
        id.owner == self.own_cgroup
            || self
                .cgroups
                .find(id.owner)
                .is_some_and(|cgroup| !cgroup.placement.as_ref().is_some_and(in_container))
    }
}

/// Addresses and ports between which the agent asks, on every plane, as the packets bear them: after
/// a translation, and not as the agent dials them. The rows of the other end are not the agent's,
/// though they may be counted on the same host.
#[derive(Debug, Default)]
struct Conversations {
    /// When the agent's socket was seen the last time, CLOCK_MONOTONIC nanoseconds. All keys are of
    /// conversations that the agent began; others are looked up and never come in.
    seen_ns: HashMap<FlowKey, u64, OwnHasher>,
}

impl Conversations {
    fn note(&mut self, key: &FlowKey, at_ns: u64) {
        // Every network namespace has its own loopback.
        if keys::owner(key).is_loopback() {
            return;
        }
        let key = sent(key);
        if !self.seen_ns.contains_key(&key) && self.seen_ns.len() >= CONVERSATIONS {
            let oldest = self.seen_ns.iter().min_by_key(|(_, seen_ns)| **seen_ns);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                self.seen_ns.remove(&oldest);
            }
        }
        let seen_ns = self.seen_ns.entry(key).or_default();
        *seen_ns = at_ns.max(*seen_ns);
    }

    fn forget(&mut self, key: &FlowKey) {
        if !self.seen_ns.is_empty() {
            self.seen_ns.remove(&sent(key));
        }
    }

    fn knows(&self, key: &FlowKey, at_ns: u64) -> bool {
        !self.seen_ns.is_empty()
            && self.seen_ns.get(&sent(key)).is_some_and(|ns| at_ns <= ns + REMEMBERED_NS)
    }
}

/// The key of what the owner sends, whatever the plane.
fn sent(key: &FlowKey) -> FlowKey {
    let (source, destination) = ((key.src, key.src_port), (key.dst, key.dst_port));
    let (owner, peer) =
        if keys::is_egress(key) { (source, destination) } else { (destination, source) };
    FlowKey {
        src: owner.0,
        dst: peer.0,
        src_port: owner.1,
        dst_port: peer.1,
        protocol: key.protocol,
        flags: key.flags & flag::IPV6,
        tag: 0,
    }
}

impl EventFilter for SelfTraffic {
    fn filter(&mut self, event: &Event) -> Verdict {
        let is_own = match event {
            Event::Flow(signal) => self.is_own(&signal.id, signal.facts.cookie, signal.time_ns),
            Event::Count(count) => self.is_own(&count.id, count.facts.cookie, count.last_seen_ns),
            Event::Packet(packet) => self.is_own(&keys::packet_id(packet), 0, packet.time_ns),
            // The table knows whether it holds the flow.
            Event::Released(_) | Event::Drained(_) | Event::Notice(_) => return Verdict::Keep,
        };
        if is_own { Verdict::Drop(SELF_TRAFFIC) } else { Verdict::Keep }
    }
}

/// The reason that the ledger shows.
pub const ROOT_CGROUP: &str = "root_cgroup";

/// Drops what the socket plane counted for sockets of its own cgroup in other network namespaces,
/// as far as the pod's own link shows it, with the pod's name: what they send, which may be a reply
/// of the kernel, since the program there leaves out only what comes from below that cgroup; and
/// what they take of protocols that cannot be looked up, since only a sender below that cgroup
/// vouches for its answers. TCP and UDP that they take stays: a look-up at the link finds the
/// socket, and does not tell its cgroup. An address that stands for many does not tell the
/// namespace: what uses one stays.
#[derive(Debug)]
pub struct RootCgroup {
    facts: HostReader,
    /// 0: there is no socket plane.
    id: u64,
}

impl RootCgroup {
    /// A filter for sockets seen below this cgroup.
    #[must_use]
    pub fn new(facts: Arc<HostFacts>, root: Option<&SocketRoot>) -> Self {
        let id = root.map_or(0, |root| root.id);
        Self { facts: HostReader::new(facts), id }
    }
}

impl EventFilter for RootCgroup {
    fn filter(&mut self, event: &Event) -> Verdict {
        let id = match event {
            Event::Flow(signal) => &signal.id,
            Event::Count(count) => &count.id,
            Event::Packet(_) | Event::Released(_) | Event::Drained(_) | Event::Notice(_) => {
                return Verdict::Keep;
            }
        };
        let is_of_root = keys::ifindex(id).is_none() && self.id != 0 && id.owner == self.id;
        let owner = keys::owner(&id.key);
        let is_at_link = id.key.flags & flag::EGRESS != 0 || !is_looked_up(&id.key);
        if is_of_root
            && is_at_link
            && !is_nobodys(owner)
            && self.facts.get().is_local(owner) == Some(false)
        {
            Verdict::Drop(ROOT_CGROUP)
        } else {
            Verdict::Keep
        }
    }
}

/// Whether programs at interfaces look up who takes such a packet.
const fn is_looked_up(key: &FlowKey) -> bool {
    matches!(key.protocol, keys::TCP | keys::UDP)
}

/// Addresses that no host has as its own, so that they do not say which host it is.
const fn is_nobodys(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    broadcast || address.is_multicast() || address.is_unspecified()
}

/// The agent listens on TCP alone; the same port of another protocol is somebody else's.
fn is_own_listener(facts: &Facts, id: &FlowId) -> bool {
    let key = &id.key;
    key.protocol == keys::TCP
        && keys::ports(key).is_some_and(|(source, destination)| {
            facts.is_own_listener(keys::source(key), source)
                || facts.is_own_listener(keys::destination(key), destination)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{FlowCount, FlowFacts};
    use crate::testing::{World, cgroup_of};

    fn check(source: &str, destination: &str, cookie: u64, expected: Verdict) {
        let facts = HostFacts::shared();
        facts.update(|facts| {
            facts.add_listening("10.0.0.1:9090".parse().unwrap());
            facts.add_own_cookie(77);
        });
        let read = |end: &str| -> ([u32; 4], [u8; 2]) {
            let (address, port) = end.rsplit_once(':').unwrap();
            let address: IpAddr = address.parse().unwrap();
            (keys::words(address), port.parse::<u16>().unwrap().to_be_bytes())
        };
        let ((src, src_port), (dst, dst_port)) = (read(source), read(destination));
        let flags = flag::EGRESS;
        let key = FlowKey { src, dst, src_port, dst_port, protocol: keys::TCP, flags, tag: 0 };
        let event = Event::Count(FlowCount {
            id: FlowId { key, owner: 2 },
            line: 0,
            new_line: false,
            packets: 1,
            bytes: 60,
            first_seen_ns: 1,
            last_seen_ns: 1,
            facts: FlowFacts { cookie, ..FlowFacts::default() },
        });
        let verdict = SelfTraffic::new(facts, Cgroups::default()).filter(&event);
        assert_eq!(verdict, expected, "{source} > {destination}, cookie {cookie}");
    }

    #[test]
    fn what_the_root_cgroup_sends_in_other_namespaces_is_left_to_the_pods_link() {
        let facts = HostFacts::shared();
        facts.update(|facts| facts.set_addresses([IpAddr::from([10, 0, 0, 1])]));
        let root = SocketRoot { path: "/sys/fs/cgroup".into(), id: 77, level: 0 };
        let at = |root: Option<&SocketRoot>, own: [u8; 4], owner, plane, protocol, egress| {
            let (own, other) = ((IpAddr::from(own), 80), (IpAddr::from([10, 0, 0, 9]), 81));
            let (source, destination) = if egress { (own, other) } else { (other, own) };
            let mut id = crate::testing::flow(protocol, source, destination, egress);
            (id.owner, id.key.flags) = (owner, id.key.flags | plane);
            let event = crate::testing::count(id, 1, 60, 1);
            RootCgroup::new(Arc::clone(&facts), root).filter(&event)
        };
        let sent = |root: Option<&SocketRoot>, own, owner, plane, expected| {
            let verdict = at(root, own, owner, plane, keys::TCP, true);
            assert_eq!(verdict, expected, "{own:?} {owner} {plane:#x}");
        };
        let (pod, host) = ([10, 244, 1, 5], [10, 0, 0, 1]);
        let drop = Verdict::Drop(ROOT_CGROUP);
        sent(Some(&root), pod, 77, flag::SOCKET_PLANE, drop);
        sent(Some(&root), pod, 78, flag::SOCKET_PLANE, Verdict::Keep);
        sent(Some(&root), pod, 77, 0, Verdict::Keep);
        sent(Some(&root), host, 77, flag::SOCKET_PLANE, Verdict::Keep);
        sent(None, pod, 77, flag::SOCKET_PLANE, Verdict::Keep);
        for shared in [[224, 0, 0, 251], [255, 255, 255, 255], [0, 0, 0, 0]] {
            sent(Some(&root), shared, 77, flag::SOCKET_PLANE, Verdict::Keep);
        }
        for (protocol, expected) in
            [(keys::TCP, Verdict::Keep), (keys::UDP, Verdict::Keep), (1, drop), (132, drop)]
        {
            let verdict = at(Some(&root), pod, 77, flag::SOCKET_PLANE, protocol, false);
            assert_eq!(verdict, expected, "taken: protocol {protocol}");
        }
    }

    #[test]
    fn loopback_at_a_socket_is_the_agents_only_outside_of_containers_and_in_its_own() {
        let world = World::synced();
        world.known.facts.update(|facts| {
            facts.add_listening("0.0.0.0:9090".parse().unwrap());
            facts.add_own_cookie(77);
        });
        world.cgroup(5, &cgroup_of("shop/web"));
        world.cgroup(6, "/user.slice/session-1.scope");
        world.cgroup(7, &cgroup_of("orb8/agent"));
        let new = || {
            let facts = Arc::clone(&world.known.facts);
            SelfTraffic::new(facts, world.known.cgroups.clone())
        };
        let at = |plane, owner, cookie| {
            let end = |port| (IpAddr::from([127, 0, 0, 1]), port);
            let mut id = crate::testing::flow(6, end(40_000), end(9090), true);
            (id.owner, id.key.flags) = (owner, id.key.flags | plane);
            let Event::Count(mut count) = crate::testing::count(id, 1, 60, 1) else {
                unreachable!("it is a count")
            };
            count.facts.cookie = cookie;
            Event::Count(count)
        };
        let own = Verdict::Drop(SELF_TRAFFIC);
        let mut filter = new();
        let mut check = |plane, owner, cookie, expected| {
            let verdict = filter.filter(&at(plane, owner, cookie));
            assert_eq!(verdict, expected, "{plane:#x} {owner} {cookie}");
        };
        check(flag::SOCKET_PLANE, 5, 0, Verdict::Keep);
        check(flag::SOCKET_PLANE, 6, 0, own);
        check(flag::SOCKET_PLANE, 99, 0, Verdict::Keep);
        check(0, 1, 0, own);
        check(flag::SOCKET_PLANE, 7, 0, Verdict::Keep);
        // The agent's own socket shows where the agent is.
        check(flag::SOCKET_PLANE, 7, 77, own);
        check(flag::SOCKET_PLANE, 7, 0, own);
        check(flag::SOCKET_PLANE, 5, 0, Verdict::Keep);
    }

    #[test]
    fn answers_to_what_the_agent_asked_are_its_own_where_no_other_socket_is_seen() {
        const SECOND_NS: u64 = 1_000_000_000;
        let facts = HostFacts::shared();
        facts.update(|facts| {
            facts.add_api_cookie(77);
            facts.add_own_cookie(78);
        });
        let mut filter = SelfTraffic::new(facts, Cgroups::default());
        let node = |port| (IpAddr::from([10, 0, 0, 1]), port);
        let (api, loopback) = ((IpAddr::from([10, 0, 0, 7]), 6443), IpAddr::from([127, 0, 0, 1]));
        let mut check = |at_s, src, dst, flags, cookie, expected| {
            let mut id = crate::testing::flow(6, src, dst, true);
            id.key.flags = flags;
            let Event::Count(mut count) = crate::testing::count(id, 1, 60, 1) else {
                unreachable!("it is a count")
            };
            (count.facts.cookie, count.last_seen_ns) = (cookie, at_s * SECOND_NS);
            let verdict = filter.filter(&Event::Count(count));
            assert_eq!(verdict, expected, "{at_s}: {src:?} > {dst:?}, {flags:#x}, cookie {cookie}");
        };
        let (own, keep) = (Verdict::Drop(SELF_TRAFFIC), Verdict::Keep);
        check(1, api, node(40_000), 0, 0, keep);
        check(1, node(40_000), api, flag::EGRESS, 77, own);
        check(1, api, node(40_000), 0, 0, own);
        check(1, node(40_000), api, flag::EGRESS | flag::SUPPLEMENT, 0, own);
        check(1, api, node(40_001), 0, 0, keep);
        // The API server's own rows, if it is on this host: at its socket and at its link.
        check(1, node(40_000), api, flag::SOCKET_PLANE, 5, keep);
        check(1, node(40_000), api, 0, 0, keep);
        check(1, api, node(40_000), flag::EGRESS, 6, keep);
        check(1, api, node(40_000), 0, 0, own);
        // Who asks the agent is known by the agent's address and port.
        check(1, node(41_000), api, flag::EGRESS, 78, own);
        check(1, api, node(41_000), 0, 0, keep);
        check(1, (loopback, 1), (loopback, 6443), flag::EGRESS, 77, own);
        check(1, (loopback, 6443), (loopback, 1), 0, 0, keep);
        // As long as the socket is seen, and a minute more.
        check(50, node(40_000), api, flag::EGRESS, 77, own);
        check(110, api, node(40_000), 0, 0, own);
        check(111, api, node(40_000), 0, 0, keep);
        // Somebody else has got the port.
        check(112, node(40_000), api, flag::EGRESS, 77, own);
        check(113, node(40_000), api, flag::EGRESS, 9, keep);
        check(113, api, node(40_000), 0, 0, keep);
        check(114, node(40_000), api, flag::EGRESS, 77, own);
        for port in 1..=u16::try_from(CONVERSATIONS).unwrap() {
            check(115, node(port), api, flag::EGRESS, 77, own);
        }
        check(116, api, node(40_000), 0, 0, keep);
        check(116, api, node(2), 0, 0, own);
    }

    #[test]
    fn own_traffic_is_known_by_cookie_or_by_address_and_port_together() {
        let own = Verdict::Drop(SELF_TRAFFIC);
        check("10.0.0.1:9090", "10.0.0.7:40000", 0, own);
        check("10.0.0.7:40000", "10.0.0.1:9090", 0, own);
        check("10.0.0.1:41000", "10.0.0.7:443", 77, own);
        check("10.0.0.1:41000", "10.0.0.7:443", 78, Verdict::Keep);
        check("10.0.0.1:41000", "10.0.0.7:9090", 0, Verdict::Keep);
        check("10.0.0.2:9090", "10.0.0.7:40000", 0, Verdict::Keep);
    }
}
