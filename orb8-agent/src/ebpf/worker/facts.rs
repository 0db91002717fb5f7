//! What the attach thread tells the rest of the agent of this host: names, addresses, and which
//! addresses are behind the links to pods.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use orb8_common::network::TUNNEL_PORTS;

use super::super::netlink::{Address, Device, Routes};
use super::super::pod_links::{self, Link};
use super::Worker;
use crate::clock::{Clock, SystemClock};
use crate::datapath::ChosenBy;

/// Neighbours change all the time on a busy node; they are listed no more often than this.
const REST: Duration = Duration::from_secs(1);
/// Stamps of lines are as coarse as a tick of the kernel, up to 10 ms; a link is told to be there
/// so much earlier, that what is counted right after attaching is not from before its time.
const STAMP_SLACK_NS: u64 = 20_000_000;

/// Devices on which a Service proxy puts the addresses of all Services: kube-proxy's for IPVS and
/// kube-router's. They carry nothing. (NodeLocal DNS listens at its device's: it is not one of them.)
const SERVICE_DEVICES: [&str; 2] = ["kube-ipvs0", "kube-dummy-if"];

/// The addresses that stand on this host for Services.
fn of_services(devices: &[Device], addresses: &[Address]) -> Vec<IpAddr> {
    let of_proxy = |device: &&Device| SERVICE_DEVICES.contains(&device.name.as_str());
    let indexes: Vec<u32> = devices.iter().filter(of_proxy).map(|device| device.ifindex).collect();
    let at_proxy = addresses.iter().filter(|address| indexes.contains(&address.ifindex));
    at_proxy.map(|address| address.ip).collect()
}

/// What is known of the links to pods.
pub(super) struct Known {
    clock: Arc<dyn Clock>,
    links: Vec<Link>,
    /// The network namespace at the other end of each link.
    netns: HashMap<u32, Option<u32>>,
    listed: Option<Instant>,
}

impl Known {
    /// Nothing.
    pub(super) fn new() -> Self {
        let (links, netns) = (Vec::new(), HashMap::new());
        Self { clock: SystemClock::shared(), links, netns, listed: None }
    }
}

impl Worker {
    /// Tells names and addresses.
    pub(super) fn remember(&self, devices: &[Device], addresses: &[Address]) {
        let there: HashSet<u32> = devices.iter().map(|device| device.ifindex).collect();
        let gone = |ifindex: &u32| !there.contains(ifindex);
        let gone: Vec<u32> =
            self.known.iter().flat_map(HashMap::keys).copied().filter(gone).collect();
        self.shared.facts.update_if(|facts| {
            let mut news = facts.set_addresses(addresses.iter().map(|address| address.ip));
            news |= facts.set_service_addresses(of_services(devices, addresses));
            for ifindex in gone {
                news |= facts.remove_interface(ifindex);
            }
            for device in devices {
                news |= facts.set_interface(device.ifindex, &device.name);
            }
            news
        });
    }

    /// Tells the programs the ports of tunnels; those beyond the first few are taken for others'
    /// traffic.
    pub(super) fn tell_tunnels(&mut self, devices: &[Device]) {
        let mut ports = [0; TUNNEL_PORTS];
        let found: BTreeSet<u16> = devices.iter().filter_map(|device| device.tunnel_port).collect();
        for (place, port) in ports.iter_mut().zip(&found) {
            *place = port.to_be();
        }
        if found.len() > ports.len() {
            tracing::warn!(?found, "more ports of tunnels than can be told from other traffic");
        }
        if let Err(error) = self.maps.tunnels.set(0, ports, 0) {
            tracing::error!(%error, "the ports of tunnels cannot be told to the programs");
        }
    }

    /// Notes which links to pods there are, and tells what is behind them.
    pub(super) fn learn_pod_links(&mut self, chosen: &[(Device, ChosenBy)], routes: &Routes) {
        let links = chosen.iter().filter(|(_, why)| *why == ChosenBy::PodLink);
        let links: Vec<&Device> = links.map(|(device, _)| device).collect();
        self.renew_links(&links);
        self.behind.links = links
            .iter()
            .map(|device| Link { ifindex: device.ifindex, controller: device.controller })
            .collect();
        self.tell_pod_links(routes);
    }

    /// Tells of links that lead elsewhere than those that had their index and name before.
    fn renew_links(&mut self, links: &[&Device]) {
        let now: HashMap<u32, Option<u32>> =
            links.iter().map(|device| (device.ifindex, device.peer_netns)).collect();
        let before = std::mem::replace(&mut self.behind.netns, now);
        let is_other = |device: &Device| {
            before.get(&device.ifindex).is_some_and(|id| *id != device.peer_netns)
        };
        self.shared.facts.update_if(|facts| {
            let mut news = false;
            for device in links.iter().filter(|device| is_other(device)) {
                facts.remove_interface(device.ifindex);
                news |= facts.set_interface(device.ifindex, &device.name);
            }
            news
        });
    }

    /// Neighbours or routes to single addresses have changed since they were listed.
    fn is_stale(&self) -> bool {
        self.shared.neighbours.load(Ordering::Acquire)
    }

    /// How long there is to wait at most, for what has changed to be listed in time.
    pub(super) fn until_neighbours(&self, wait: Duration) -> Duration {
        match self.behind.listed {
            Some(listed) if self.is_stale() => {
                wait.min((listed + REST).saturating_duration_since(Instant::now()))
            }
            _ => wait,
        }
    }

    /// Lists neighbours and routes anew if they have changed, and not more often than is good.
    pub(super) fn refresh_pod_links(&mut self) {
        let rested = self.behind.listed.is_none_or(|listed| listed.elapsed() >= REST);
        if !self.is_stale() || !rested {
            return;
        }
        match self.netlink.routes() {
            Ok(routes) => self.tell_pod_links(&routes),
            Err(error) => {
                self.behind.listed = Some(Instant::now());
                tracing::debug!(%error, "routes cannot be listed, tried again soon");
            }
        }
    }

    fn tell_pod_links(&mut self, routes: &Routes) {
        self.behind.listed = Some(Instant::now());
        // Before the listing, so that a change in between is not missed.
        self.shared.neighbours.store(false, Ordering::Release);
        let neighbours = if self.behind.links.is_empty() {
            Default::default()
        } else {
            match self.netlink.neighbours() {
                Ok(neighbours) => neighbours,
                Err(error) => {
                    // Without them nothing would be behind a bridge's ports: what was told stays.
                    tracing::debug!(%error, "neighbours cannot be listed, tried again soon");
                    self.shared.neighbours.store(true, Ordering::Release);
                    return;
                }
            }
        };
        let now = pod_links::behind(&self.behind.links, &routes.hosts, &neighbours);
        let listed_ns = self.behind.clock.monotonic_ns().saturating_sub(STAMP_SLACK_NS);
        self.shared.facts.update_if(|facts| facts.set_pod_links(now, listed_ns));
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::netlink::Carried;
    use super::*;
    use crate::datapath::LinkKind;

    #[test]
    fn addresses_of_a_service_proxys_device_stand_for_services() {
        let device = |ifindex, name: &str| Device {
            ifindex,
            name: name.to_owned(),
            link: LinkKind::Ethernet,
            loopback: false,
            bridge: false,
            veth: false,
            peer_netns: None,
            controller: None,
            tunnel_port: None,
            hardware: false,
            carried: Carried::default(),
        };
        let address = |ifindex, text: &str| Address {
            ifindex,
            ip: text.parse().unwrap(),
            prefix: 32,
            global: true,
        };
        let devices = [device(2, "eth0"), device(3, "kube-ipvs0"), device(4, "nodelocaldns")];
        let addresses =
            [address(2, "10.0.0.1"), address(3, "10.96.0.10"), address(4, "169.254.20.10")];
        let service: IpAddr = "10.96.0.10".parse().unwrap();
        assert_eq!(of_services(&devices, &addresses), [service]);
    }
}
