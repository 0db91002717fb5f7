//! What is known of this host: interface names, local addresses, the agent's own sockets.
//!
//! The datapath and the gRPC listener write here when something changes; the pipeline reads a
//! snapshot without taking a lock. Nothing here asks the kernel.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Cookies of the agent's own sockets that are remembered. Counts of a closed connection arrive
/// at the next drain, so the latest ones matter; older ones are forgotten.
const OWN_COOKIES: usize = 1024;

/// An interface as it was called when a flow began there.
#[derive(Debug, PartialEq, Eq)]
pub struct InterfaceName {
    /// ifindex.
    pub index: u32,
    /// Its name.
    pub name: Box<str>,
}

/// The end of a link into a pod's network namespace, as its node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodLink {
    /// Addresses behind it: from host routes, or from neighbours and the bridge's table. Sorted,
    /// and no more than [`MAX_POD_ADDRESSES`].
    pub addresses: Vec<IpAddr>,
}

/// Addresses that are kept of one pod link.
pub const MAX_POD_ADDRESSES: usize = 16;

/// A snapshot of what is known.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    interfaces: HashMap<u32, Arc<InterfaceName>>,
    pod_links: Arc<HashMap<u32, PodLink>>,
    addresses: HashSet<IpAddr>,
    listening: Vec<SocketAddr>,
    own_addresses: HashSet<IpAddr>,
    cookies: HashSet<u64>,
    cookie_order: VecDeque<u64>,
}

impl Facts {
    /// Names an interface; an index that is used again gets its new name.
    pub fn set_interface(&mut self, index: u32, name: &str) {
        self.interfaces.insert(index, Arc::new(InterfaceName { index, name: name.into() }));
    }

    /// Forgets an interface that is gone.
    pub fn remove_interface(&mut self, index: u32) {
        self.interfaces.remove(&index);
    }

    /// Replaces what is known of the links to pods, by ifindex.
    pub fn set_pod_links(&mut self, links: HashMap<u32, PodLink>) {
        self.pod_links = Arc::new(links);
    }

    /// The link to a pod with this ifindex; none if the interface is another kind.
    #[must_use]
    pub fn pod_link(&self, index: u32) -> Option<&PodLink> {
        self.pod_links.get(&index)
    }

    /// Every link to a pod, in no order.
    pub fn pod_links(&self) -> impl Iterator<Item = (u32, &PodLink)> {
        self.pod_links.iter().map(|(index, link)| (*index, link))
    }

    /// Replaces the addresses of this host.
    pub fn set_addresses(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.addresses = addresses.into_iter().collect();
    }

    /// Adds an address of this host.
    pub fn add_address(&mut self, address: IpAddr) {
        self.addresses.insert(address);
    }

    /// Removes an address of this host.
    pub fn remove_address(&mut self, address: IpAddr) {
        self.addresses.remove(&address);
    }

    /// Notes that the agent listens there; an unspecified address means all of this host's.
    pub fn add_listening(&mut self, address: SocketAddr) {
        self.listening.push(address);
    }

    /// Notes that somebody reached the agent at this address of the host.
    pub fn add_own_address(&mut self, address: IpAddr) {
        self.own_addresses.insert(address.to_canonical());
    }

    /// Notes a socket of the agent by its cookie.
    pub fn add_own_cookie(&mut self, cookie: u64) {
        if cookie == 0 || !self.cookies.insert(cookie) {
            return;
        }
        self.cookie_order.push_back(cookie);
        if self.cookie_order.len() > OWN_COOKIES
            && let Some(oldest) = self.cookie_order.pop_front()
        {
            self.cookies.remove(&oldest);
        }
    }

    /// The name of an interface.
    #[must_use]
    pub fn interface(&self, index: u32) -> Option<&Arc<InterfaceName>> {
        self.interfaces.get(&index)
    }

    /// Whether an address belongs to this host; unknown while no address is known.
    #[must_use]
    pub fn is_local(&self, address: IpAddr) -> Option<bool> {
        if address.is_loopback() {
            return Some(true);
        }
        (!self.addresses.is_empty()).then(|| self.addresses.contains(&address))
    }

    /// Whether the agent owns the socket with this cookie.
    #[must_use]
    pub fn is_own_cookie(&self, cookie: u64) -> bool {
        cookie != 0 && self.cookies.contains(&cookie)
    }

    /// Whether the agent listens at this address and port, both together.
    #[must_use]
    pub fn is_own_listener(&self, address: IpAddr, port: u16) -> bool {
        self.listening.iter().any(|own| {
            own.port() == port
                && (own.ip() == address
                    || (own.ip().is_unspecified()
                        && (own.is_ipv6() || address.is_ipv4())
                        && (self.is_local(address) == Some(true)
                            || self.own_addresses.contains(&address))))
        })
    }
}

/// Facts that several threads write and the pipeline reads.
#[derive(Debug, Default)]
pub struct HostFacts {
    generation: AtomicU64,
    facts: Mutex<Arc<Facts>>,
}

impl HostFacts {
    /// Nothing known yet.
    #[must_use]
    pub fn shared() -> Arc<Self> {
        Arc::default()
    }

    /// Changes the facts; readers see the change with their next look.
    pub fn update(&self, change: impl FnOnce(&mut Facts)) {
        let mut facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut facts));
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// A number that moves with every change.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The facts as of now.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Facts> {
        Arc::clone(&self.facts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A reader that takes the lock only after a change.
#[derive(Debug)]
pub struct HostReader {
    source: Arc<HostFacts>,
    generation: u64,
    facts: Arc<Facts>,
}

impl HostReader {
    /// A reader of these facts.
    #[must_use]
    pub fn new(source: Arc<HostFacts>) -> Self {
        let generation = source.generation.load(Ordering::Acquire);
        let facts = source.snapshot();
        Self { source, generation, facts }
    }

    /// The facts, fresh.
    pub fn get(&mut self) -> &Facts {
        let generation = self.source.generation.load(Ordering::Acquire);
        if generation != self.generation {
            self.facts = self.source.snapshot();
            self.generation = generation;
        }
        &self.facts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_reader_sees_changes_made_after_it_was_made() {
        let facts = HostFacts::shared();
        let mut reader = HostReader::new(Arc::clone(&facts));
        assert!(reader.get().interface(3).is_none());
        facts.update(|facts| facts.set_interface(3, "eth0"));
        assert_eq!(&*reader.get().interface(3).unwrap().name, "eth0");
        facts.update(|facts| facts.set_interface(3, "eth1"));
        assert_eq!(&*reader.get().interface(3).unwrap().name, "eth1");
        facts.update(|facts| facts.remove_interface(3));
        assert!(reader.get().interface(3).is_none());
    }

    #[test]
    fn an_own_listener_needs_address_and_port_together() {
        let mut facts = Facts::default();
        facts.add_listening("10.0.0.1:9090".parse().unwrap());
        facts.add_listening("0.0.0.0:9191".parse().unwrap());
        facts.add_listening("[::]:9292".parse().unwrap());
        facts.set_addresses([ip("10.0.0.1"), ip("fd00::1")]);
        let check = |address: &str, port, expected| {
            assert_eq!(facts.is_own_listener(ip(address), port), expected, "{address} {port}");
        };
        check("10.0.0.1", 9090, true);
        check("10.0.0.2", 9090, false);
        check("10.0.0.1", 9091, false);
        check("10.0.0.1", 9191, true);
        check("fd00::1", 9191, false);
        check("fd00::1", 9292, true);
        check("10.0.0.1", 9292, true);
        check("10.0.0.2", 9191, false);
    }

    #[test]
    fn own_cookies_are_bounded_and_the_latest_are_kept() {
        let mut facts = Facts::default();
        for cookie in 1..=(OWN_COOKIES as u64 + 10) {
            facts.add_own_cookie(cookie);
        }
        assert!(!facts.is_own_cookie(10));
        assert!(facts.is_own_cookie(11));
        assert!(facts.is_own_cookie(OWN_COOKIES as u64 + 10));
        assert!(!facts.is_own_cookie(0));
        assert_eq!(facts.cookies.len(), OWN_COOKIES);
    }

    #[test]
    fn locality_is_unknown_without_addresses() {
        let mut facts = Facts::default();
        assert_eq!(facts.is_local(ip("10.0.0.1")), None);
        assert_eq!(facts.is_local(ip("127.0.0.1")), Some(true));
        facts.add_address(ip("10.0.0.1"));
        assert_eq!(facts.is_local(ip("10.0.0.1")), Some(true));
        assert_eq!(facts.is_local(ip("10.0.0.2")), Some(false));
        facts.remove_address(ip("10.0.0.1"));
        assert_eq!(facts.is_local(ip("10.0.0.1")), None);
    }
}
