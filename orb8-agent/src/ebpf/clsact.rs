//! Filters on clsact hooks: kernels before 6.6 leave them behind when an agent is killed, so each
//! says whose it is.
//!
//! The handle of a filter is the number of the agent that made it; the lowest bit says that the
//! agent also made the qdisc. An agent lives as long as the abstract socket of its number is
//! taken: sockets go with their process and their network namespace, whatever container the
//! agents run in.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

use super::netlink::{Filter, Netlink, NetlinkError};

/// Names of our programs begin so, also as filters.
const NAME_PREFIX: &str = "orb8_";
/// The bit of a handle that says that the agent made the qdisc.
const MADE_QDISC: u32 = 1;

/// The number of a living agent, held by a socket.
#[derive(Debug)]
pub struct Instance {
    number: u32,
    _alive: UnixListener,
}

impl Instance {
    /// Takes a number that no living agent of this network namespace has.
    ///
    /// # Errors
    /// What binding the socket says.
    pub fn take(seed: u64) -> io::Result<Self> {
        let mut number = u32::try_from(seed & 0x7fff_fffe).unwrap_or(2).max(2);
        loop {
            match listen(number) {
                Ok(alive) => return Ok(Self { number, _alive: alive }),
                Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                    number = (number + 2) & 0x7fff_fffe;
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// The handle of this agent's filters.
    #[must_use]
    pub const fn handle(&self, made_qdisc: bool) -> u32 {
        self.number | if made_qdisc { MADE_QDISC } else { 0 }
    }
}

fn listen(number: u32) -> io::Result<UnixListener> {
    let name = format!("orb8-agent/{number:08x}");
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)
}

/// Whether the agent that made a filter still lives; true also if that cannot be told.
fn lives(handle: u32) -> bool {
    match listen(handle & !MADE_QDISC) {
        Ok(_nobody) => false,
        Err(_taken_or_unknown) => true,
    }
}

fn is_ours(filter: &Filter) -> bool {
    filter.name.as_deref().is_some_and(|name| name.starts_with(NAME_PREFIX))
}

/// What a clean-up removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Filters of dead agents.
    pub filters: u32,
    /// qdiscs that a dead agent had made and nobody else uses.
    pub qdiscs: u32,
    /// Filters of living agents that stay.
    pub living: u32,
}

/// Removes the filters of dead agents from every interface, and nothing else.
///
/// # Errors
/// If interfaces cannot be listed; one that vanishes meanwhile is passed over.
pub fn remove_dead(netlink: &Netlink) -> Result<Removed, NetlinkError> {
    let mut removed = Removed::default();
    for device in netlink.devices()? {
        let filters = netlink.filters(device.ifindex)?;
        let mut made_qdisc = false;
        let mut left = 0;
        for filter in &filters {
            if !is_ours(filter) {
                left += 1;
            } else if lives(filter.handle) {
                removed.living += 1;
                left += 1;
            } else if netlink.delete_filter(device.ifindex, filter).is_ok() {
                removed.filters += 1;
                made_qdisc |= filter.handle & MADE_QDISC != 0;
            } else {
                left += 1;
            }
        }
        if made_qdisc && left == 0 && netlink.delete_clsact(device.ifindex).is_ok() {
            removed.qdiscs += 1;
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_lives_as_long_as_its_socket_is_bound() {
        let instance = Instance::take(0x1234_5678_9abc_def0).unwrap();
        assert!(lives(instance.handle(false)));
        assert!(lives(instance.handle(true)), "the qdisc bit does not change who it is");
        let handle = instance.handle(true);
        drop(instance);
        assert!(!lives(handle));
    }

    #[test]
    fn two_agents_with_the_same_seed_get_two_numbers() {
        let (a, b) = (Instance::take(42).unwrap(), Instance::take(42).unwrap());
        assert_ne!(a.handle(false), b.handle(false));
    }

    #[test]
    fn only_filters_with_our_name_are_ours() {
        let filter = |name: Option<&str>| Filter {
            ingress: true,
            priority: 1,
            protocol: 3,
            handle: 7,
            name: name.map(str::to_owned),
        };
        assert!(is_ours(&filter(Some("orb8_in_eth"))));
        assert!(!is_ours(&filter(Some("cil_from_netdev"))));
        assert!(!is_ours(&filter(None)));
    }
}
