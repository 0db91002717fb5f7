//! Which flows a `FlowFilter` means: compiled once, evaluated over rows without allocating.
//!
//! The rules are those of the client's evaluator for saved flows, and a test holds both to them: a
//! condition without a field, without values or with an unreadable value is an error; `negate` is
//! plain logic, so what is not known never holds a condition and always holds a negated one.

use std::net::IpAddr;
use std::sync::Arc;

use globset::{GlobBuilder, GlobMatcher};
use ipnet::IpNet;
use orb8_common::network::flag;
use orb8_proto::v1::condition::{Field, Side};
use orb8_proto::v1::{Condition, FlowFilter, Ports, Strings};
use orb8_util::net::{self, PrefixError};
use orb8_util::protocol::{self, ProtocolError};

use crate::event::{FlowRecord, FlowState, Scope};
use crate::host::InterfaceName;
use crate::network::keys;

/// The kernel's TASK_COMM_LEN without the terminating zero.
const COMM_BYTES: usize = 15;
/// Interfaces whose match with the globs is remembered.
const REMEMBERED: usize = 32;

/// A filter cannot be evaluated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// The field is unset, or newer than this version.
    #[error("a filter condition has no field that this version knows, upgrade the agent")]
    UnknownField,
    /// The side is newer than this version.
    #[error("filter condition has the unknown side {0}, upgrade the agent")]
    UnknownSide(i32),
    /// No values are listed.
    #[error("filter condition on {0} lists no values, give at least one")]
    Empty(&'static str),
    /// Not an address or prefix.
    #[error(transparent)]
    Prefix(#[from] PrefixError),
    /// Not a protocol.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// Not a range of ports.
    #[error("ports {0} to {1} are no range, give a first that is not above the last, to 65535")]
    Ports(u32, u32),
    /// Not a glob.
    #[error("{0:?} is not an interface glob, give one such as eth0, ens* or wlp[0-9]s0: {1}")]
    Glob(String, String),
    /// A word that the field does not have.
    #[error("unknown {field} {value:?}, use {allowed}")]
    Word {
        /// The field.
        field: &'static str,
        /// What was given.
        value: String,
        /// The words that it has.
        allowed: &'static str,
    },
    /// Neither 4 nor 6.
    #[error("unknown IP version {0}, use 4 or 6")]
    IpVersion(u32),
}

/// A filter, checked and ready.
#[derive(Clone, Debug, Default)]
pub struct Matcher {
    /// The owner's namespace and pod are asked for, and no flow has either yet.
    nobody: bool,
    conditions: Vec<(bool, Test)>,
}

#[derive(Clone, Debug)]
enum Test {
    Ip(Side, Vec<IpNet>),
    Port(Side, Vec<(u16, u16)>),
    Protocol(Vec<u8>),
    Interface(Globs),
    Egress(Vec<bool>),
    Scope(Vec<Scope>),
    Active(Vec<bool>),
    Process(Vec<String>),
    Cgroup(Vec<String>),
    Ipv6(bool),
}

impl Matcher {
    /// Checks and prepares a filter; none is the filter that all flows pass.
    ///
    /// # Errors
    /// The first condition that cannot be evaluated, and why.
    pub fn compile(
        filter: Option<&FlowFilter>,
        namespaces: &[String],
        pod_names: &[String],
    ) -> Result<Self, FilterError> {
        let nobody = !pod_names.is_empty()
            || !(namespaces.is_empty() || namespaces.iter().any(String::is_empty));
        let conditions = filter.map_or(&[][..], |filter| &filter.all);
        let conditions = conditions
            .iter()
            .map(|condition| compile(condition).map(|test| (condition.negate, test)))
            .collect::<Result<_, _>>()?;
        Ok(Self { nobody, conditions })
    }

    /// True if all conditions hold for this flow.
    pub fn matches(&mut self, flow: &FlowRecord) -> bool {
        !self.nobody && self.conditions.iter_mut().all(|(negate, test)| test.holds(flow) != *negate)
    }

    /// What of the filter the kernel's packet view can check: never more than the filter asks.
    #[must_use]
    pub fn packet_filter(&self) -> orb8_common::network::PacketFilter {
        let mut found = orb8_common::network::PacketFilter::default();
        for (negate, test) in &self.conditions {
            match test {
                _ if *negate => {}
                Test::Ip(_, nets) if nets.len() == 1 => {
                    found.address = keys::words(nets[0].network());
                    found.mask = mask(&nets[0]);
                    found.flags = if nets[0].addr().is_ipv6() { flag::IPV6 } else { 0 };
                }
                Test::Port(_, ranges) if ranges.len() == 1 && ranges[0].0 == ranges[0].1 => {
                    found.port = ranges[0].0.to_be_bytes();
                }
                Test::Protocol(numbers) if numbers.len() == 1 => found.protocol = numbers[0],
                Test::Ip(..)
                | Test::Port(..)
                | Test::Protocol(_)
                | Test::Interface(_)
                | Test::Egress(_)
                | Test::Scope(_)
                | Test::Active(_)
                | Test::Process(_)
                | Test::Cgroup(_)
                | Test::Ipv6(_) => {}
            }
        }
        found
    }
}

fn mask(net: &IpNet) -> [u32; 4] {
    keys::words(net.netmask())
}

fn compile(condition: &Condition) -> Result<Test, FilterError> {
    let side = Side::try_from(condition.side)
        .map_err(|_unknown| FilterError::UnknownSide(condition.side))?;
    Ok(match condition.field.as_ref().ok_or(FilterError::UnknownField)? {
        Field::Ip(list) => Test::Ip(side, values("ip", list, |text| Ok(net::prefix(text)?))?),
        Field::Port(ports) => Test::Port(side, ranges(ports)?),
        Field::Protocol(list) => {
            Test::Protocol(values("protocol", list, |text| Ok(protocol::number(text)?))?)
        }
        Field::Interface(list) => Test::Interface(Globs {
            globs: values("interface", list, glob)?,
            remembered: Vec::new(),
        }),
        Field::Direction(list) => Test::Egress(words(
            "direction",
            list,
            "ingress or egress",
            &[("ingress", false), ("egress", true)],
        )?),
        Field::Scope(list) => Test::Scope(words(
            "scope",
            list,
            "local or unclaimed or forwarded or tunnel",
            &[
                ("local", Scope::Local),
                ("unclaimed", Scope::Unclaimed),
                ("forwarded", Scope::Forwarded),
                ("tunnel", Scope::Tunnel),
            ],
        )?),
        Field::State(list) => {
            let known = [("active", true), ("ended", false)];
            Test::Active(words("state", list, "active or ended", &known)?)
        }
        Field::Process(list) => Test::Process(values("process", list, |text| Ok(comm(text)))?),
        Field::Cgroup(list) => {
            Test::Cgroup(values("cgroup", list, |text| Ok(below_root(text).to_owned()))?)
        }
        Field::IpVersion(version @ (4 | 6)) => Test::Ipv6(*version == 6),
        Field::IpVersion(version) => return Err(FilterError::IpVersion(*version)),
        _ => return Err(FilterError::UnknownField),
    })
}

fn values<T>(
    field: &'static str,
    list: &Strings,
    read: impl Fn(&str) -> Result<T, FilterError>,
) -> Result<Vec<T>, FilterError> {
    if list.values.is_empty() {
        return Err(FilterError::Empty(field));
    }
    list.values.iter().map(|text| read(text)).collect()
}

fn words<T: Copy>(
    field: &'static str,
    list: &Strings,
    allowed: &'static str,
    known: &[(&str, T)],
) -> Result<Vec<T>, FilterError> {
    values(field, list, |text| {
        let word = known.iter().find(|(word, _)| word.eq_ignore_ascii_case(text));
        word.map(|(_, value)| *value).ok_or_else(|| FilterError::Word {
            field,
            value: text.to_owned(),
            allowed,
        })
    })
}

fn ranges(ports: &Ports) -> Result<Vec<(u16, u16)>, FilterError> {
    if ports.ranges.is_empty() {
        return Err(FilterError::Empty("port"));
    }
    let range = |first: u32, last: u32| match (u16::try_from(first), u16::try_from(last)) {
        (Ok(low), Ok(high)) if low <= high => Ok((low, high)),
        _ => Err(FilterError::Ports(first, last)),
    };
    ports.ranges.iter().map(|ports| range(ports.first, ports.last)).collect()
}

fn glob(text: &str) -> Result<GlobMatcher, FilterError> {
    let bad = |error: globset::Error| FilterError::Glob(text.to_owned(), error.kind().to_string());
    let glob = GlobBuilder::new(text).backslash_escape(true).build().map_err(bad)?;
    Ok(glob.compile_matcher())
}

fn comm(text: &str) -> String {
    let mut end = text.len().min(COMM_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

fn below_root(path: &str) -> &str {
    path.strip_prefix('/').unwrap_or(path)
}

/// Globs with the answers for the interfaces met so far: a glob costs more than all other tests.
#[derive(Clone, Debug)]
struct Globs {
    globs: Vec<GlobMatcher>,
    /// Holds the names, so that an address is not taken for another name later.
    remembered: Vec<(Arc<InterfaceName>, bool)>,
}

impl Globs {
    fn matches(&mut self, interface: &Arc<InterfaceName>) -> bool {
        let known = self.remembered.iter().find(|(known, _)| Arc::ptr_eq(known, interface));
        if let Some((_, answer)) = known {
            return *answer;
        }
        let answer = self.globs.iter().any(|glob| glob.is_match(&*interface.name));
        if self.remembered.len() >= REMEMBERED {
            self.remembered.clear();
        }
        self.remembered.push((Arc::clone(interface), answer));
        answer
    }
}

impl Test {
    fn holds(&mut self, flow: &FlowRecord) -> bool {
        let key = &flow.id.key;
        match self {
            Self::Ip(side, nets) => {
                let within = |address: IpAddr| nets.iter().any(|net| net.contains(&address));
                on_side(*side, || within(keys::source(key)), || within(keys::destination(key)))
            }
            Self::Port(side, ranges) => {
                let within = |port: u16| ranges.iter().any(|(a, b)| (*a..=*b).contains(&port));
                let known = keys::ports(key).filter(|_| protocol::has_ports(key.protocol));
                known.is_some_and(|(source, destination)| {
                    on_side(*side, || within(source), || within(destination))
                })
            }
            Self::Protocol(numbers) => numbers.contains(&key.protocol),
            Self::Interface(globs) => {
                flow.interface.as_ref().is_some_and(|interface| globs.matches(interface))
            }
            Self::Egress(wanted) => wanted.contains(&keys::is_egress(key)),
            Self::Scope(wanted) => wanted.contains(&flow.scope),
            Self::Active(wanted) => wanted.contains(&(flow.state == FlowState::Active)),
            Self::Process(names) => {
                let membership = flow.membership.as_ref();
                let process = membership.and_then(|found| found.process_at(flow.first_seen_ns));
                process.is_some_and(|process| names.iter().any(|name| **name == *process.comm))
            }
            Self::Cgroup(prefixes) => {
                let path = flow.membership.as_ref().and_then(|found| found.path());
                path.map(below_root)
                    .is_some_and(|path| prefixes.iter().any(|prefix| path.starts_with(prefix)))
            }
            Self::Ipv6(wanted) => (key.flags & flag::IPV6 != 0) == *wanted,
        }
    }
}

fn on_side(side: Side, source: impl Fn() -> bool, destination: impl Fn() -> bool) -> bool {
    match side {
        Side::Either => source() || destination(),
        Side::Source => source(),
        Side::Destination => destination(),
    }
}

#[cfg(test)]
mod tests;
