//! A flood at the other plane: datagrams between sockets of two namespaces, in a cgroup at which the
//! agent counts. Both ends are in it, so each packet is counted twice.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::net::sockopt::set_socket_recv_buffer_size;

use super::bed::{Bed, CANARY, CANARY_PORT, NEXT_CANARY, options};
use super::figures::Figures;
use super::{Load, PATIENCE, Turn};
use crate::cgroup::{self, Tree};
use crate::counters;
use crate::flow::Total;
use crate::link::{Veth, VethOptions};

/// Sockets that send, each to all that take, and these; one of each pair has a port that no other has.
const SENDERS: u16 = 256;
const TAKERS: u16 = 256;
/// Addresses under which each taker is sent to.
const ADDRESSES: u8 = 4;
/// Different flows on the way, each of which is one more at the other end.
const FLOWS: u64 = SENDERS as u64 * TAKERS as u64 * ADDRESSES as u64;
const FIRST_SENDER: u16 = 20_000;
const FIRST_TAKER: u16 = 30_000;
/// Data of a datagram that fills the smallest frame of Ethernet.
const DATA: [u8; 18] = [0; 18];
/// Datagrams at least in the short form, each on another flow: both ends' flows are more than the table holds.
const QUICK: u64 = FLOWS / 4;
/// How much longer it may take to have sent so many.
const DEADLINE: Duration = Duration::from_mins(2);
/// Datagrams between two looks at the clock.
const BATCH: u64 = 256;

/// Sockets in a cgroup of their own, at both ends of a link. Nobody reads: the kernel drops what no longer
/// fits behind the programs.
#[derive(Debug)]
pub(super) struct Sockets {
    senders: Vec<UdpSocket>,
    canaries: Vec<UdpSocket>,
    _takers: Vec<UdpSocket>,
    to: Vec<SocketAddrV4>,
    link: Veth,
    tree: Tree,
}

impl Sockets {
    /// Makes them.
    fn new() -> anyhow::Result<Self> {
        cgroup::permission().map_err(anyhow::Error::msg)?;
        let (link, tree) = (prepared(), Tree::new("sockets"));
        let pod = tree.make("pod");
        let canaries = u16::try_from(PATIENCE.as_millis() / NEXT_CANARY.as_millis() + 1)?;
        let (near, far) = (&link.near, &link.far);
        let (senders, canaries, takers) = cgroup::within(&pod, || {
            let senders = near.netns.enter(|| bind(near.v4, FIRST_SENDER, SENDERS))?;
            let canaries = near.netns.enter(|| bind(CANARY, CANARY_PORT, canaries))?;
            let takers = far.netns.enter(|| bind(Ipv4Addr::UNSPECIFIED, FIRST_TAKER, TAKERS))?;
            anyhow::Ok((senders, canaries, takers))
        })?;
        for taker in &takers {
            // As small as it can be.
            set_socket_recv_buffer_size(taker, 1)?;
        }
        let ports = FIRST_TAKER..FIRST_TAKER + TAKERS;
        let to =
            ports.flat_map(|port| (0..ADDRESSES).map(move |n| SocketAddrV4::new(address(n), port)));
        Ok(Self { to: to.collect(), senders, canaries, _takers: takers, link, tree })
    }

    /// What the kernel says that it sent from and took for them: it has nobody else in both namespaces.
    pub(super) fn passed(&self) -> Total {
        let mut sum = Total::default();
        for port in [&self.link.near, &self.link.far] {
            let all = counters::protocols(&port.netns);
            let of = |name: &str| all.get(name).copied().unwrap_or_default();
            sum.add(of("Ip.OutRequests"), of("IpExt.OutOctets"));
            sum.add(of("Ip.InReceives"), of("IpExt.InOctets"));
        }
        sum
    }

    /// Sends one datagram of a flow that nothing else is sent on.
    pub(super) fn canary(&self, number: usize) -> anyhow::Result<()> {
        let canary =
            self.canaries.get(number).context("as many canaries as patience has room for")?;
        canary.send_to(&DATA, self.to[0]).context("a canary's datagram")?;
        Ok(())
    }

    /// Sends one datagram; each number up to [`FLOWS`] is another flow's.
    fn send(&self, number: u64) -> std::io::Result<()> {
        let (from, to) = pair(number);
        self.senders[from].send_to(&DATA, self.to[to])?;
        Ok(())
    }
}

/// A sender and a destination.
fn pair(number: u64) -> (usize, usize) {
    let place = |number: u64| usize::try_from(number).unwrap_or(0);
    let (senders, to) = (u64::from(SENDERS), u64::from(TAKERS) * u64::from(ADDRESSES));
    (place(number % senders), place(number / senders % to))
}

/// The `n`th address of those who take.
fn address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 20 + n)
}

fn prepared() -> Veth {
    let link = Veth::addressed(VethOptions::default());
    let (near, far) = (&link.near, &link.far);
    let (dev, mac) = (&near.ifname, crate::link::mac_text(far.mac));
    let (mut own, mut others) = (vec![format!("addr add {CANARY}/32 dev {dev}")], Vec::new());
    others.push(format!("route add {CANARY}/32 dev {}", far.ifname));
    for ip in (0..ADDRESSES).map(address) {
        own.push(format!("neigh replace {ip} lladdr {mac} dev {dev} nud permanent"));
        others.push(format!("addr add {ip}/24 dev {}", far.ifname));
    }
    far.netns.ip_batch(&others);
    near.netns.ip_batch(&own);
    link
}

fn bind(ip: Ipv4Addr, first: u16, count: u16) -> anyhow::Result<Vec<UdpSocket>> {
    let bind = |port| UdpSocket::bind((ip, port)).with_context(|| format!("port {port} of {ip}"));
    (first..first + count).map(bind).collect()
}

pub(super) fn run(turn: &Turn<'_>) -> anyhow::Result<Figures> {
    let sockets = Sockets::new()?;
    let link = Veth::quiet(VethOptions::default());
    let options = options(&turn.options.agent, &link)
        .unset("ORB8_INTERFACES")
        .env("ORB8_CAPTURE", "socket")
        .env("ORB8_CGROUP_ROOT", sockets.tree.root().display());
    let bed = Bed::start_at_sockets(link, sockets, &options)?;
    let least = if turn.options.quick { QUICK } else { FLOWS };
    turn.overload(bed, |bed| load(bed.sockets()?, turn.load, least))
}

/// Sends for so long, and at least so many.
fn load(sockets: &Sockets, time: Duration, least: u64) -> anyhow::Result<Load> {
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < time || sent < least && start.elapsed() < time + DEADLINE {
        for number in sent..sent + BATCH {
            sockets.send(number).context("a datagram")?;
        }
        sent += BATCH;
    }
    let to = Some(Instant::now());
    let few = format!("{sent} datagrams were sent in time, and not {least}");
    let faults = (sent < least).then_some(few).into_iter().collect();
    // Each at both ends.
    Ok(Load { to, flows: Some(2 * FLOWS.min(sent)), faults, ..Load::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_is_another_flow_until_all_were_sent_to() {
        let all: std::collections::HashSet<_> = (0..FLOWS).map(pair).collect();
        assert_eq!(all.len() as u64, FLOWS);
        assert_eq!(pair(FLOWS), pair(0));
        let (from, to) =
            all.iter().fold((0, 0), |most, pair| (most.0.max(pair.0), most.1.max(pair.1)));
        assert_eq!((from + 1, to + 1), (256, 1024));
    }
}
