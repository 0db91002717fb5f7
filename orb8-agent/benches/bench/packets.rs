//! The packets that test runs repeat.

use crate::report::Amount;

/// Bytes of an Ethernet header.
pub(crate) const LINK_HEADER: usize = 14;

/// A kind of packet.
#[derive(Clone, Debug)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// The program that makes each run another flow.
    pub(crate) front: &'static str,
    pub(crate) packet: Vec<u8>,
}

impl Kind {
    pub(crate) fn all() -> [Self; 3] {
        [
            Self { name: "ipv4", front: "bench_rotate_v4", packet: ipv4(6) },
            Self { name: "ipv6", front: "bench_rotate_v6", packet: ipv6() },
            Self { name: "udp", front: "bench_rotate_v4", packet: ipv4(17) },
        ]
    }

    /// What so many runs come to.
    pub(crate) fn amount(&self, runs: u64) -> Amount {
        Amount { packets: runs, bytes: runs * (self.packet.len() - LINK_HEADER) as u64 }
    }

    /// The packet as another flow: its number in the source's address and port.
    pub(crate) fn flow(&self, n: u32) -> Vec<u8> {
        let mut packet = self.packet.clone();
        let (address, port) = if self.name == "ipv6" { (8 + 12, 40) } else { (12, 20) };
        let (address, port) = (LINK_HEADER + address, LINK_HEADER + port);
        packet[address..address + 4].copy_from_slice(&n.wrapping_mul(0x9e37_79b1).to_ne_bytes());
        packet[port..port + 2].copy_from_slice(&(n as u16).to_ne_bytes());
        packet
    }
}

fn ethernet(ethertype: u16) -> Vec<u8> {
    let mut packet = vec![2; 12];
    packet.extend(ethertype.to_be_bytes());
    packet
}

/// 66 bytes: Ethernet, IPv4, and TCP with timestamps or UDP with 24 bytes.
fn ipv4(protocol: u8) -> Vec<u8> {
    let mut packet = ethernet(0x0800);
    packet.extend([0x45, 0, 0, 52, 0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    packet.extend(transport());
    packet
}

/// 86 bytes: Ethernet, IPv6 and TCP with timestamps.
fn ipv6() -> Vec<u8> {
    let mut packet = ethernet(0x86dd);
    packet.extend([0x60, 0, 0, 0, 0, 32, 6, 64]);
    packet.extend([0xfd; 16]);
    packet.extend([0xfe; 16]);
    packet.extend(transport());
    packet
}

fn transport() -> [u8; 32] {
    let mut header = [0; 32];
    header[..4].copy_from_slice(&[0x9c, 0x40, 0, 80]);
    header[12] = 0x80;
    header[13] = 0x10;
    header
}
