//! What a flow's key says: addresses, ports, which end is the owner's, whose traffic it is.
//!
//! Pure functions over kernel layouts; who an address belongs to is not decided here.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use orb8_common::network::{FlowKey, flag, scope};
use orb8_util::protocol;

use crate::event::{Event, FlowId, Scope};
use crate::pipeline::enricher::Keys;

/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const UDP_LITE: u8 = 136;
/// IPv4 in IP, IPv6 in IP, GRE.
const ENCAPSULATIONS: [u8; 3] = [4, 41, 47];

impl fmt::Display for FlowId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (source, destination) = (source(&self.key), destination(&self.key));
        let protocol = protocol::name(self.key.protocol);
        let direction = if is_egress(&self.key) { "egress" } else { "ingress" };
        match ports(&self.key) {
            Some((from, to)) => {
                let (source, destination) =
                    (SocketAddr::new(source, from), SocketAddr::new(destination, to));
                write!(out, "{protocol} {source} > {destination} {direction} at {}", self.owner)
            }
            None => {
                write!(out, "{protocol} {source} > {destination} {direction} at {}", self.owner)
            }
        }
    }
}

/// The sender's address.
#[must_use]
pub fn source(key: &FlowKey) -> IpAddr {
    address(&key.src, key.flags)
}

/// The receiver's address.
#[must_use]
pub fn destination(key: &FlowKey) -> IpAddr {
    address(&key.dst, key.flags)
}

fn address(words: &[u32; 4], flags: u8) -> IpAddr {
    if flags & flag::IPV6 == 0 {
        return IpAddr::V4(Ipv4Addr::from(words[3].to_ne_bytes()));
    }
    let mut bytes = [0; 16];
    for (part, word) in bytes.chunks_exact_mut(4).zip(words) {
        part.copy_from_slice(&word.to_ne_bytes());
    }
    IpAddr::V6(Ipv6Addr::from(bytes))
}

/// An address as it stands in a key.
#[must_use]
pub fn words(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(address) => [0, 0, 0, u32::from_ne_bytes(address.octets())],
        IpAddr::V6(address) => {
            let bytes = address.octets();
            [0, 4, 8, 12].map(|at| {
                u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
            })
        }
    }
}

/// Whether the owner sends.
#[must_use]
pub const fn is_egress(key: &FlowKey) -> bool {
    key.flags & flag::EGRESS != 0
}

/// Source and destination port, if packets of this flow carry ports.
#[must_use]
pub fn ports(key: &FlowKey) -> Option<(u16, u16)> {
    let carried = protocol::has_ports(key.protocol) || key.protocol == UDP_LITE;
    (carried && key.flags & flag::FRAGMENT == 0)
        .then(|| (u16::from_be_bytes(key.src_port), u16::from_be_bytes(key.dst_port)))
}

/// ICMP type and code, if it is ICMP.
#[must_use]
pub fn icmp(key: &FlowKey) -> Option<(u8, u8)> {
    (matches!(key.protocol, ICMP | ICMPV6) && key.flags & flag::FRAGMENT == 0)
        .then_some((key.src_port[0], key.src_port[1]))
}

/// The owner's address: the sender of egress, the receiver of ingress.
#[must_use]
pub fn owner(key: &FlowKey) -> IpAddr {
    if is_egress(key) { source(key) } else { destination(key) }
}

/// The other end's address.
#[must_use]
pub fn peer(key: &FlowKey) -> IpAddr {
    if is_egress(key) { destination(key) } else { source(key) }
}

/// How a conversation shows who began it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// By TCP flags.
    ByFlags,
    /// Packets of this flow ask.
    Asks,
    /// Packets of this flow answer.
    Answers,
    /// Who sends first asks.
    ByTime,
    /// Not at all.
    Untold,
}

/// How a flow shows who began the conversation.
#[must_use]
pub fn opening(key: &FlowKey) -> Opening {
    const ECHO_REQUEST: [(u8, u8); 2] = [(ICMP, 8), (ICMPV6, 128)];
    const ECHO_REPLY: [(u8, u8); 2] = [(ICMP, 0), (ICMPV6, 129)];
    match icmp(key) {
        Some((kind, _)) if ECHO_REQUEST.contains(&(key.protocol, kind)) => Opening::Asks,
        Some((kind, _)) if ECHO_REPLY.contains(&(key.protocol, kind)) => Opening::Answers,
        Some(_) => Opening::Untold,
        None if key.protocol == TCP => Opening::ByFlags,
        None if ports(key).is_some() => Opening::ByTime,
        None => Opening::Untold,
    }
}

/// The cgroup of a flow's owner: its key in the socket plane, else what the kernel told of the
/// sender. 0 if not known.
#[must_use]
pub const fn cgroup_id(id: &FlowId, told: u64) -> u64 {
    if id.key.flags & flag::SOCKET_PLANE == 0 { told } else { id.owner }
}

/// The interface index of a `tc` flow.
#[must_use]
pub fn ifindex(id: &FlowId) -> Option<u32> {
    if id.key.flags & flag::SOCKET_PLANE == 0 { u32::try_from(id.owner).ok() } else { None }
}

/// The other direction of the same conversation, at the same owner.
#[must_use]
pub const fn reverse(id: &FlowId) -> FlowId {
    let key = id.key;
    FlowId {
        key: FlowKey {
            src: key.dst,
            dst: key.src,
            src_port: key.dst_port,
            dst_port: key.src_port,
            flags: key.flags ^ flag::EGRESS,
            ..key
        },
        owner: id.owner,
    }
}

/// By what the owner of an event is looked up; none for events without one.
#[must_use]
pub fn of_event(event: &Event) -> Option<Keys> {
    let (id, told, since_ns) = match event {
        Event::Flow(signal) => (signal.id, signal.facts.cgroup_id, signal.time_ns),
        Event::Count(count) => (count.id, count.facts.cgroup_id, count.first_seen_ns),
        Event::Packet(packet) => (packet_id(packet), packet.cgroup_id, packet.time_ns),
        Event::Released(_) | Event::Drained(_) | Event::Notice(_) => return None,
    };
    let cgroup_id = cgroup_id(&id, told);
    Some(Keys { ifindex: ifindex(&id), cgroup_id, since_ns, local: owner(&id.key) })
}

/// The flow of a packet.
#[must_use]
pub const fn packet_id(packet: &orb8_common::network::PacketEvent) -> FlowId {
    FlowId { key: FlowKey { tag: 0, ..packet.key }, owner: packet.owner }
}

/// Whose traffic a flow is: what the kernel answered, and whether the owner's address is local.
#[must_use]
pub fn scope_of(key: &FlowKey, told: u8, local: Option<bool>) -> Scope {
    if ENCAPSULATIONS.contains(&key.protocol) && local != Some(false) {
        return Scope::Tunnel;
    }
    let address = owner(key);
    let shared = address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST);
    match (told, local) {
        (scope::TUNNEL, local) if local != Some(false) => Scope::Tunnel,
        (scope::SOCKET, _) => Scope::Local,
        // Groups and broadcasts are received here without being anybody's own address.
        (scope::NO_SOCKET, Some(true)) => Scope::Unclaimed,
        (scope::NO_SOCKET, _) if shared => Scope::Unclaimed,
        (_, Some(false)) if !shared => Scope::Forwarded,
        _ => Scope::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(source: &str, destination: &str, protocol: u8, flags: u8) -> FlowKey {
        let (source, destination): (IpAddr, IpAddr) =
            (source.parse().unwrap(), destination.parse().unwrap());
        let family = if source.is_ipv6() { flag::IPV6 } else { 0 };
        FlowKey {
            src: words(source),
            dst: words(destination),
            src_port: 1234_u16.to_be_bytes(),
            dst_port: 80_u16.to_be_bytes(),
            protocol,
            flags: flags | family,
            tag: 0,
        }
    }

    #[test]
    fn the_owner_sends_egress_and_receives_ingress() {
        let check = |flags, expected: &str| {
            assert_eq!(owner(&key("10.0.0.1", "10.0.0.2", TCP, flags)).to_string(), expected);
        };
        check(flag::EGRESS, "10.0.0.1");
        check(0, "10.0.0.2");
    }

    #[test]
    fn a_flow_is_shown_in_a_line() {
        let shown = |key| FlowId { key, owner: 3 }.to_string();
        let web = key("fd00::1", "fd00::2", TCP, flag::EGRESS);
        assert_eq!(shown(web), "tcp [fd00::1]:1234 > [fd00::2]:80 egress at 3");
        assert_eq!(
            shown(key("10.0.0.1", "10.0.0.2", 47, 0)),
            "47 10.0.0.1 > 10.0.0.2 ingress at 3"
        );
    }

    #[test]
    fn only_protocols_with_ports_have_ports() {
        let check = |protocol, flags, expected| {
            assert_eq!(ports(&key("10.0.0.1", "10.0.0.2", protocol, flags)), expected);
        };
        check(TCP, 0, Some((1234, 80)));
        check(TCP, flag::FRAGMENT, None);
        check(17, 0, Some((1234, 80)));
        check(132, 0, Some((1234, 80)));
        check(ICMP, 0, None);
        check(47, 0, None);
        let echo = key("fe80::1", "fe80::2", ICMPV6, 0);
        assert_eq!(icmp(&echo), Some((4, 210)), "1234 is type 4, code 210");
        assert_eq!(icmp(&key("10.0.0.1", "10.0.0.2", TCP, 0)), None);
    }

    #[test]
    fn scope_follows_the_socket_then_the_address() {
        let check = |destination: &str, protocol, told, local, expected| {
            let key = key("10.0.0.9", destination, protocol, 0);
            assert_eq!(scope_of(&key, told, local), expected, "{destination} {told} {local:?}");
        };
        check("10.0.0.1", TCP, scope::SOCKET, Some(true), Scope::Local);
        check("10.0.0.1", TCP, scope::SOCKET, None, Scope::Local);
        check("10.0.0.1", TCP, scope::NO_SOCKET, Some(true), Scope::Unclaimed);
        check("10.0.0.1", TCP, scope::NO_SOCKET, Some(false), Scope::Forwarded);
        check("10.0.0.1", TCP, scope::NO_SOCKET, None, Scope::Unknown);
        check("10.0.0.1", ICMP, scope::UNKNOWN, Some(false), Scope::Forwarded);
        check("10.0.0.1", ICMP, scope::UNKNOWN, Some(true), Scope::Unknown);
        check("224.0.0.251", 17, scope::NO_SOCKET, Some(false), Scope::Unclaimed);
        check("255.255.255.255", 17, scope::UNKNOWN, Some(false), Scope::Unknown);
        check("10.0.0.1", 47, scope::UNKNOWN, Some(true), Scope::Tunnel);
        check("10.0.0.1", 47, scope::UNKNOWN, Some(false), Scope::Forwarded);
        check("10.0.0.1", 17, scope::TUNNEL, Some(true), Scope::Tunnel);
        check("10.0.0.1", 17, scope::TUNNEL, Some(false), Scope::Forwarded);
    }

    proptest! {
        #[test]
        fn addresses_survive_the_key(bytes: [u8; 16], v6: bool) {
            let address = if v6 {
                IpAddr::from(bytes)
            } else {
                IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]])
            };
            let flags = if v6 { flag::IPV6 } else { 0 };
            let key = FlowKey { src: words(address), flags, ..FlowKey::EMPTY };
            prop_assert_eq!(source(&key), address);
        }

        #[test]
        fn reversing_twice_changes_nothing(src: [u32; 4], dst: [u32; 4], ports: [u8; 4], flags: u8) {
            let key = FlowKey {
                src,
                dst,
                src_port: [ports[0], ports[1]],
                dst_port: [ports[2], ports[3]],
                protocol: TCP,
                flags,
                tag: 0,
            };
            let id = FlowId { key, owner: 4 };
            prop_assert_eq!(reverse(&reverse(&id)), id);
            prop_assert_eq!(owner(&reverse(&id).key), owner(&id.key));
        }
    }
}
