//! What is known of this host: interface names, local addresses, the agent's own sockets.
//!
//! The datapath and the gRPC listener write here when something changes; the pipeline reads a
//! snapshot without taking a lock. Nothing here asks the kernel.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Cookies of each kind of the agent's own sockets that are remembered. Counts of a closed connection arrive
/// at the next drain, so the latest ones matter; older ones are forgotten.
const OWN_COOKIES: usize = 1024;

/// For tables whose keys this host chooses, which are asked for each count: several times faster than
/// the standard one, and nobody elsewhere can fill them.
pub type OwnHasher = hashbrown::DefaultHashBuilder;

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

/// Links that are gone and still remembered: rows of the pods behind them are named for a while.
const MAX_GONE_LINKS: usize = 1024;
/// How long, nanoseconds.
const GONE_LINK_NS: u64 = 300_000_000_000;

/// A link to a pod, with its time; also one that has gone a short while ago.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownLink {
    /// What is behind it.
    pub link: PodLink,
    /// Its device; another one with the same index has another object.
    pub interface: Option<Arc<InterfaceName>>,
    /// When it was first listed, CLOCK_MONOTONIC nanoseconds; nothing is counted there before.
    pub since_ns: u64,
    /// When it was found to be gone.
    gone_ns: Option<u64>,
}

/// A snapshot of what is known.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    interfaces: HashMap<u32, Arc<InterfaceName>, OwnHasher>,
    pod_links: Arc<HashMap<u32, KnownLink, OwnHasher>>,
    addresses: HashSet<IpAddr, OwnHasher>,
    /// Those of [`Self::addresses`] at which the kernel answers for Services.
    service_addresses: HashSet<IpAddr, OwnHasher>,
    listening: Vec<SocketAddr>,
    own_addresses: HashSet<IpAddr, OwnHasher>,
    served: Cookies,
    asked: Cookies,
}

/// The latest cookies of one kind of socket.
#[derive(Debug, Clone, Default)]
struct Cookies {
    known: HashSet<u64, OwnHasher>,
    order: VecDeque<u64>,
}

impl Cookies {
    fn add(&mut self, cookie: u64) {
        if cookie == 0 || !self.known.insert(cookie) {
            return;
        }
        self.order.push_back(cookie);
        if self.order.len() > OWN_COOKIES
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

impl Facts {
    /// Names an interface; an index that is used again gets its new name, and what was known of
    /// its former link is forgotten. True if that is news.
    pub fn set_interface(&mut self, index: u32, name: &str) -> bool {
        if self.interfaces.get(&index).is_some_and(|known| *known.name == *name) {
            return false;
        }
        self.interfaces.insert(index, Arc::new(InterfaceName { index, name: name.into() }));
        if self.pod_links.get(&index).is_some_and(|link| link.gone_ns.is_some()) {
            Arc::make_mut(&mut self.pod_links).remove(&index);
        }
        true
    }

    /// Forgets an interface that is gone; true if it was known.
    pub fn remove_interface(&mut self, index: u32) -> bool {
        self.interfaces.remove(&index).is_some()
    }

    /// Replaces what is known of the links to pods, by ifindex, as listed at `now_ns` (monotonic).
    /// Those whose interface has gone are remembered for a while. True if that is news.
    pub fn set_pod_links(&mut self, links: HashMap<u32, PodLink>, now_ns: u64) -> bool {
        let mut known = self.gone_links(&links, now_ns);
        for (index, link) in links {
            let interface = self.interfaces.get(&index).cloned();
            let before = self.pod_links.get(&index).filter(|before| {
                before.gone_ns.is_none() && is_same_interface(&before.interface, &interface)
            });
            let since_ns = before.map_or(now_ns, |before| before.since_ns);
            known.insert(index, KnownLink { link, interface, since_ns, gone_ns: None });
        }
        let changed = known != *self.pod_links;
        if changed {
            self.pod_links = Arc::new(known);
        }
        changed
    }

    /// The links that are gone, the latest ones of the last minutes. An interface that is there and
    /// is no link to a pod any more is what it is now.
    fn gone_links(
        &self,
        links: &HashMap<u32, PodLink>,
        now_ns: u64,
    ) -> HashMap<u32, KnownLink, OwnHasher> {
        let is_gone =
            |index: &u32| !links.contains_key(index) && !self.interfaces.contains_key(index);
        let mut gone: Vec<(u64, u32)> = self
            .pod_links
            .iter()
            .filter(|(index, _)| is_gone(index))
            .map(|(index, link)| (link.gone_ns.unwrap_or(now_ns), *index))
            .filter(|(gone_ns, _)| now_ns.saturating_sub(*gone_ns) < GONE_LINK_NS)
            .collect();
        gone.sort_unstable_by(|a, b| b.cmp(a));
        gone.truncate(MAX_GONE_LINKS);
        let remembered = |(gone_ns, index): (u64, u32)| {
            let link = self.pod_links.get(&index)?.clone();
            Some((index, KnownLink { gone_ns: Some(gone_ns), ..link }))
        };
        gone.into_iter().filter_map(remembered).collect()
    }

    /// The link to a pod with this ifindex, also one that has gone minutes ago and whose index
    /// nobody else has; none if the interface is another kind.
    #[must_use]
    pub fn pod_link(&self, index: u32) -> Option<&KnownLink> {
        self.pod_links.get(&index)
    }

    /// Whether this is an interface of the host, and no link to a pod.
    #[must_use]
    pub fn is_uplink(&self, index: u32) -> bool {
        self.interfaces.contains_key(&index) && !self.pod_links.contains_key(&index)
    }

    /// Every link to a pod that is there, in no order.
    pub fn pod_links(&self) -> impl Iterator<Item = (u32, &PodLink)> {
        let there = self.pod_links.iter().filter(|(_, known)| known.gone_ns.is_none());
        there.map(|(index, known)| (*index, &known.link))
    }

    /// Replaces the addresses of this host; true if that is news.
    pub fn set_addresses(&mut self, addresses: impl IntoIterator<Item = IpAddr>) -> bool {
        let now: HashSet<IpAddr, _> = addresses.into_iter().collect();
        let changed = now != self.addresses;
        self.addresses = now;
        changed
    }

    /// Replaces those addresses of this host that a Service proxy has put here, so that the kernel
    /// takes what is sent to Services; nobody of this host listens there. True if that is news.
    pub fn set_service_addresses(&mut self, addresses: impl IntoIterator<Item = IpAddr>) -> bool {
        let now: HashSet<IpAddr, OwnHasher> = addresses.into_iter().collect();
        let changed = now != self.service_addresses;
        self.service_addresses = now;
        changed
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

    /// Notes a socket of the agent's server by its cookie.
    pub fn add_own_cookie(&mut self, cookie: u64) {
        self.served.add(cookie);
    }

    /// Notes a socket with which the agent asks the API server. They are few and live long, and
    /// however many come to ask the agent, these are not forgotten for them.
    pub fn add_api_cookie(&mut self, cookie: u64) {
        self.asked.add(cookie);
    }

    /// The name of an interface.
    #[must_use]
    pub fn interface(&self, index: u32) -> Option<&Arc<InterfaceName>> {
        self.interfaces.get(&index)
    }

    /// Whether the kernel of this host takes what is sent to an address, and sends from it; unknown
    /// while no address is known.
    #[must_use]
    pub fn is_local(&self, address: IpAddr) -> Option<bool> {
        if address.is_loopback() {
            return Some(true);
        }
        (!self.addresses.is_empty()).then(|| self.addresses.contains(&address))
    }

    /// Whether an address stands for this host: it is this host's, and not put here for a Service.
    #[must_use]
    pub fn is_own(&self, address: IpAddr) -> bool {
        self.is_local(address) == Some(true) && !self.service_addresses.contains(&address)
    }

    /// Whether the agent owns the socket with this cookie.
    #[must_use]
    pub fn is_own_cookie(&self, cookie: u64) -> bool {
        self.served.known.contains(&cookie) || self.is_api_cookie(cookie)
    }

    /// Whether the agent asks the API server through the socket with this cookie.
    #[must_use]
    pub fn is_api_cookie(&self, cookie: u64) -> bool {
        self.asked.known.contains(&cookie)
    }

    /// Whether the agent listens at this address and port, both together.
    #[must_use]
    pub fn is_own_listener(&self, address: IpAddr, port: u16) -> bool {
        self.listening.iter().any(|own| {
            own.port() == port
                && (own.ip() == address
                    || (own.ip().is_unspecified()
                        && (own.is_ipv6() || address.is_ipv4())
                        && (self.is_own(address) || self.own_addresses.contains(&address))))
        })
    }
}

fn is_same_interface(a: &Option<Arc<InterfaceName>>, b: &Option<Arc<InterfaceName>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

/// Facts that several threads write and the pipeline reads.
#[derive(Debug, Default)]
pub struct HostFacts {
    generation: AtomicU64,
    /// Moves with the agent's own sockets, which tell nothing of who is who.
    sockets: AtomicU64,
    facts: Mutex<Arc<Facts>>,
}

impl HostFacts {
    /// Nothing known yet.
    #[must_use]
    pub fn shared() -> Arc<Self> {
        Arc::default()
    }

    /// Changes the facts; readers see the change with their next look.
    pub fn update<T>(&self, change: impl FnOnce(&mut Facts) -> T) {
        let mut facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut facts));
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Notes sockets of the agent; readers see them with their next look, and whoever follows who is
    /// who has nothing to ask anew.
    pub fn update_sockets(&self, change: impl FnOnce(&mut Facts)) {
        let mut facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut facts));
        self.sockets.fetch_add(1, Ordering::Release);
    }

    /// Changes the facts, if there is news at all: whoever follows them asks anew after a change.
    pub fn update_if(&self, change: impl FnOnce(&mut Facts) -> bool) {
        let mut facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        if change(Arc::make_mut(&mut facts)) {
            self.generation.fetch_add(1, Ordering::Release);
        }
    }

    /// A number that moves with every change but those of the agent's own sockets.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn versions(&self) -> (u64, u64) {
        (self.generation(), self.sockets.load(Ordering::Acquire))
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
    seen: (u64, u64),
    facts: Arc<Facts>,
}

impl HostReader {
    /// A reader of these facts.
    #[must_use]
    pub fn new(source: Arc<HostFacts>) -> Self {
        let seen = source.versions();
        let facts = source.snapshot();
        Self { source, seen, facts }
    }

    /// The facts, fresh.
    pub fn get(&mut self) -> &Facts {
        let now = self.source.versions();
        if now != self.seen {
            self.facts = self.source.snapshot();
            self.seen = now;
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
    fn a_reader_sees_the_agents_sockets_and_nobody_has_to_ask_who_is_who_for_them() {
        let facts = HostFacts::shared();
        let mut reader = HostReader::new(Arc::clone(&facts));
        let generation = facts.generation();
        facts.update_sockets(|facts| facts.add_own_cookie(7));
        assert!(reader.get().is_own_cookie(7));
        assert_eq!(facts.generation(), generation);
    }

    #[test]
    fn what_is_told_again_is_no_news() {
        let facts = HostFacts::shared();
        let tell = || {
            facts.update_if(|facts| {
                facts.set_addresses([ip("10.0.0.1")]) | facts.set_interface(3, "eth0")
            });
        };
        tell();
        let (generation, before) = (facts.generation(), facts.snapshot());
        tell();
        assert_eq!(facts.generation(), generation);
        let after = facts.snapshot();
        assert!(Arc::ptr_eq(before.interface(3).unwrap(), after.interface(3).unwrap()));
    }

    #[test]
    fn a_link_that_has_gone_is_a_link_until_its_index_is_used_again_or_minutes_pass() {
        let links = |indexes: &[u32]| {
            indexes.iter().map(|index| (*index, PodLink::default())).collect::<HashMap<_, _>>()
        };
        let mut facts = Facts::default();
        for index in [5, 6, 7] {
            facts.set_interface(index, "veth");
        }
        facts.set_pod_links(links(&[5, 6, 7]), 1);
        facts.remove_interface(5);
        facts.remove_interface(6);
        facts.set_pod_links(links(&[]), 2);
        assert!(facts.pod_link(5).is_some() && facts.pod_link(6).is_some());
        assert!(facts.pod_link(7).is_none() && facts.is_uplink(7), "it is there, as another kind");
        assert_eq!(facts.pod_links().count(), 0);
        facts.set_interface(5, "eth5");
        assert!(facts.pod_link(5).is_none() && facts.is_uplink(5));
        facts.set_pod_links(links(&[]), 2 + GONE_LINK_NS);
        assert!(facts.pod_link(6).is_none());
    }

    #[test]
    fn links_that_have_gone_are_bounded_and_the_latest_are_kept() {
        let mut facts = Facts::default();
        for index in 0..=1024_u32 {
            facts.set_pod_links(HashMap::from([(index, PodLink::default())]), u64::from(index));
        }
        facts.set_pod_links(HashMap::new(), 2000);
        assert!(facts.pod_link(0).is_none());
        assert!(facts.pod_link(1).is_some() && facts.pod_link(1024).is_some());
        assert_eq!(facts.pod_links.len(), MAX_GONE_LINKS);
    }

    #[test]
    fn another_device_with_the_same_index_is_another_link() {
        let mut facts = Facts::default();
        let link = || HashMap::from([(5, PodLink::default())]);
        facts.set_interface(5, "veth5");
        facts.set_pod_links(link(), 1);
        facts.set_pod_links(link(), 2);
        assert_eq!(facts.pod_link(5).unwrap().since_ns, 1);
        facts.remove_interface(5);
        facts.set_interface(5, "veth5");
        facts.set_pod_links(link(), 3);
        assert_eq!(facts.pod_link(5).unwrap().since_ns, 3);
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
        // All Services on an IPVS node: others serve on the agent's port, too.
        facts.set_addresses([ip("10.0.0.1"), ip("10.96.0.10")]);
        facts.set_service_addresses([ip("10.96.0.10")]);
        let check = |address: &str, expected| {
            assert_eq!(facts.is_own_listener(ip(address), 9191), expected, "{address}");
        };
        check("10.0.0.1", true);
        check("10.96.0.10", false);
        assert_eq!(facts.is_local(ip("10.96.0.10")), Some(true));
    }

    #[test]
    fn own_cookies_are_bounded_and_the_latest_are_kept() {
        let mut facts = Facts::default();
        facts.add_api_cookie(1_000_000);
        for cookie in 1..=(OWN_COOKIES as u64 + 10) {
            facts.add_own_cookie(cookie);
        }
        assert!(!facts.is_own_cookie(10));
        assert!(facts.is_own_cookie(11));
        assert!(facts.is_own_cookie(OWN_COOKIES as u64 + 10));
        assert!(!facts.is_own_cookie(0));
        assert!(facts.is_own_cookie(1_000_000), "who asks us does not displace whom we ask");
        assert_eq!(facts.served.known.len(), OWN_COOKIES);
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
