//! Ring records to events. What is not a record of ours is `None`, and the source counts it.

use orb8_common::network::{FlowEvent, FlowKey, PacketEvent, event_kind, scope};
use orb8_common::parse::tcp_flag;

use crate::event::{Event, FlowFacts, FlowId, FlowSignal, SignalKind};

/// Decodes a record of the lifecycle ring.
#[must_use]
pub fn flow_event(bytes: &[u8]) -> Option<Event> {
    let raw = FlowEvent::from_bytes(bytes)?;
    let kind = match raw.kind {
        event_kind::START => SignalKind::Start,
        event_kind::TCP_STATE => SignalKind::TcpState,
        event_kind::END => SignalKind::End,
        _ => return None,
    };
    if raw.scope > scope::TUNNEL {
        return None;
    }
    Some(Event::Flow(FlowSignal {
        id: FlowId { key: FlowKey { tag: 0, ..raw.key }, owner: raw.owner },
        kind,
        time_ns: raw.time_ns,
        tcp_flags: raw.tcp_flags,
        facts: FlowFacts {
            cgroup_id: raw.cgroup_id,
            cookie: raw.cookie,
            scope: raw.scope,
            tcp_seen: tcp_seen(raw.tcp_flags),
        },
    }))
}

/// Decodes a record of the packet ring.
#[must_use]
pub fn packet_event(bytes: &[u8]) -> Option<Event> {
    let raw = PacketEvent::from_bytes(bytes)?;
    Some(Event::Packet(PacketEvent { key: FlowKey { tag: 0, ..raw.key }, ..raw }))
}

/// The bits of [`FlowFacts::tcp_seen`] that one packet's flags set.
pub(super) fn tcp_seen(flags: u8) -> u8 {
    let bit = |set: bool, value: u8| if set { value } else { 0 };
    let syn = flags & tcp_flag::SYN != 0;
    let ack = flags & tcp_flag::ACK != 0;
    bit(flags & tcp_flag::FIN != 0, 1)
        | bit(syn && !ack, 2)
        | bit(flags & tcp_flag::RST != 0, 4)
        | bit(syn && ack, 8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(kind: u8, scope: u8, tcp_flags: u8) -> Vec<u8> {
        let mut bytes = vec![0; 88];
        bytes[76] = kind;
        bytes[77] = tcp_flags;
        bytes[78] = scope;
        bytes
    }

    #[test]
    fn unknown_kinds_and_scopes_are_not_events() {
        assert!(flow_event(&record(1, scope::TUNNEL, 0)).is_some());
        assert!(flow_event(&record(0, 0, 0)).is_none());
        assert!(flow_event(&record(4, 0, 0)).is_none());
        assert!(flow_event(&record(1, scope::TUNNEL + 1, 0)).is_none());
    }

    #[test]
    fn syn_and_syn_ack_are_told_apart() {
        for (flags, seen) in [(0x02, 2), (0x12, 8), (0x11, 1), (0x04, 4), (0x10, 0), (0x07, 7)] {
            let Some(Event::Flow(signal)) = flow_event(&record(2, 1, flags)) else {
                panic!("flags {flags:#x} are not an event")
            };
            assert_eq!(signal.facts.tcp_seen, seen, "flags {flags:#x}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _event = flow_event(&bytes);
            let _packet = packet_event(&bytes);
        }
    }
}
