//! Which flows a `FlowFilter` means. The one evaluator on this side of the wire, for saved flows;
//! held to `tests/fixtures/filters.txt`. The agent has its own over its rows, held to this one by the
//! property `agent_and_client_agree`.
//!
//! The rules:
//! - All conditions must hold; no conditions hold for every flow.
//! - A condition holds if the field's value is among the listed ones. `negate` is plain logic: the
//!   condition holds exactly where it would not. So a field whose value is not known never holds a
//!   condition and always holds a negated one.
//! - A condition without a field, without values or with a value that cannot be read is an error,
//!   never ignored: a newer client may ask for what this side does not know.
//! - `ip`: an address or prefix; IPv4 and IPv6 never match each other, also not as `::ffff:a.b.c.d`.
//!   `port`: only flows of TCP, UDP and SCTP have ports, and later fragments do not, so that neither
//!   matches any range, not even one from 0. For both, side `either` needs one end, hence negated
//!   neither end.
//! - `protocol`, `direction`, `scope`, `state`: words in any case; a protocol also by number.
//! - `interface`: shell globs (`*`, `?`, `[ab]`, `{eth,ens}*`) over the whole name, in its case.
//! - `process`: the whole name (comm) of the process at either end, in its case; the kernel keeps 15
//!   bytes of a name, so only those of a longer value are compared.
//! - `cgroup`: a prefix, by character, of the cgroup path at either end; a leading `/` is optional.
//! - `ip_version`: 4 or 6, that of the source address.

use std::net::IpAddr;

use globset::{GlobBuilder, GlobMatcher};
use ipnet::IpNet;
use orb8_proto::v1::condition::{Field, Side};
use orb8_proto::v1::{
    Condition, Endpoint, FlowFilter, NetworkFlow, Ports, QueryFlowsRequest, Strings,
};
use orb8_util::net::{self, PrefixError};
use orb8_util::protocol::{self, ProtocolError};

/// The kernel's TASK_COMM_LEN without the terminating zero.
const COMM_BYTES: usize = 15;

/// The values of `direction`.
pub const DIRECTIONS: [&str; 2] = ["ingress", "egress"];
/// The values of `scope`.
pub const SCOPES: [&str; 4] = ["local", "unclaimed", "forwarded", "tunnel"];
/// The values of `state`.
pub const STATES: [&str; 2] = ["active", "ended"];

/// A filter cannot be evaluated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// The field is unset, or newer than this version.
    #[error("a filter condition has no field that this version knows, upgrade orb8")]
    UnknownField,
    /// The side is newer than this version.
    #[error("filter condition has the unknown side {0}, upgrade orb8")]
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
        allowed: String,
    },
    /// Neither 4 nor 6.
    #[error("unknown IP version {0}, use 4 or 6")]
    IpVersion(u32),
}

/// A filter, checked and ready to be evaluated.
#[derive(Clone, Debug)]
pub struct Matcher {
    conditions: Vec<(bool, Test)>,
}

#[derive(Clone, Debug)]
enum Test {
    Ip(Side, Vec<IpNet>),
    Port(Side, Vec<(u32, u32)>),
    Protocol(Vec<u8>),
    Interface(Vec<GlobMatcher>),
    Direction(Vec<String>),
    Scope(Vec<String>),
    State(Vec<String>),
    Process(Vec<String>),
    Cgroup(Vec<String>),
    IpVersion(u32),
}

impl Matcher {
    /// Checks and prepares a filter; `None` is the filter that all flows pass.
    ///
    /// # Errors
    /// The first condition that cannot be evaluated, and why.
    pub fn new(filter: Option<&FlowFilter>) -> Result<Self, FilterError> {
        let conditions = filter.map_or(&[][..], |filter| &filter.all);
        let conditions = conditions
            .iter()
            .map(|condition| compile(condition).map(|test| (condition.negate, test)));
        Ok(Self { conditions: conditions.collect::<Result<_, _>>()? })
    }

    /// True if all conditions hold for this flow.
    #[must_use]
    pub fn matches(&self, flow: &NetworkFlow) -> bool {
        self.conditions.iter().all(|(negate, test)| test.holds(flow) != *negate)
    }
}

/// A whole request that selects flows: owners and time bounds besides the filter.
#[derive(Clone, Debug)]
pub struct Selector {
    matcher: Matcher,
    namespaces: Vec<String>,
    pod_names: Vec<String>,
    start_time_ns: i64,
    end_time_ns: i64,
}

impl Selector {
    /// Checks and prepares what `request` selects; its sort and limit are not looked at.
    ///
    /// # Errors
    /// As [`Matcher::new`].
    pub fn new(request: &QueryFlowsRequest) -> Result<Self, FilterError> {
        Ok(Self {
            matcher: Matcher::new(request.filter.as_ref())?,
            namespaces: request.namespaces.clone(),
            pod_names: request.pod_names.clone(),
            start_time_ns: request.start_time_ns,
            end_time_ns: request.end_time_ns,
        })
    }

    /// True if the request means this flow.
    #[must_use]
    pub fn matches(&self, flow: &NetworkFlow) -> bool {
        let pod = |pattern: &String| match pattern.split_once('/') {
            Some((namespace, prefix)) => {
                flow.namespace == namespace && flow.pod_name.starts_with(prefix)
            }
            None => flow.pod_name.starts_with(pattern.as_str()),
        };
        (self.start_time_ns == 0 || flow.last_seen_ns >= self.start_time_ns)
            && (self.end_time_ns == 0 || flow.first_seen_ns <= self.end_time_ns)
            && (self.namespaces.is_empty() || self.namespaces.contains(&flow.namespace))
            && (self.pod_names.is_empty()
                || !flow.pod_name.is_empty() && self.pod_names.iter().any(pod))
            && self.matcher.matches(flow)
    }
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
        Field::Interface(list) => Test::Interface(values("interface", list, glob)?),
        Field::Direction(list) => Test::Direction(words("direction", list, &DIRECTIONS)?),
        Field::Scope(list) => Test::Scope(words("scope", list, &SCOPES)?),
        Field::State(list) => Test::State(words("state", list, &STATES)?),
        Field::Process(list) => Test::Process(values("process", list, |text| Ok(comm(text)))?),
        Field::Cgroup(list) => {
            Test::Cgroup(values("cgroup", list, |text| Ok(below_root(text).to_owned()))?)
        }
        Field::IpVersion(version @ (4 | 6)) => Test::IpVersion(*version),
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

fn words(
    field: &'static str,
    list: &Strings,
    allowed: &[&str],
) -> Result<Vec<String>, FilterError> {
    values(field, list, |text| {
        let word = allowed.iter().find(|word| word.eq_ignore_ascii_case(text));
        word.map(|word| (*word).to_owned()).ok_or_else(|| FilterError::Word {
            field,
            value: text.to_owned(),
            allowed: choice(allowed),
        })
    })
}

/// `a, b or c`.
fn choice(words: &[&str]) -> String {
    match words {
        [first @ .., last] if !first.is_empty() => format!("{} or {last}", first.join(", ")),
        _ => words.concat(),
    }
}

fn ranges(ports: &Ports) -> Result<Vec<(u32, u32)>, FilterError> {
    if ports.ranges.is_empty() {
        return Err(FilterError::Empty("port"));
    }
    let range = |first: u32, last: u32| {
        let valid = first <= last && last <= u32::from(u16::MAX);
        valid.then_some((first, last)).ok_or(FilterError::Ports(first, last))
    };
    ports.ranges.iter().map(|ports| range(ports.first, ports.last)).collect()
}

fn glob(text: &str) -> Result<GlobMatcher, FilterError> {
    let bad = |error: globset::Error| FilterError::Glob(text.to_owned(), error.kind().to_string());
    // As on Linux on every system: a backslash quotes, and case matters.
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

impl Test {
    fn holds(&self, flow: &NetworkFlow) -> bool {
        match self {
            Self::Ip(side, nets) => {
                let within = |text: &str| {
                    text.parse::<IpAddr>().is_ok_and(|ip| nets.iter().any(|net| net.contains(&ip)))
                };
                on_side(*side, || within(&flow.src_ip), || within(&flow.dst_ip))
            }
            Self::Port(side, ranges) => {
                let within = |port: u32| ranges.iter().any(|(a, b)| (*a..=*b).contains(&port));
                has_ports(flow)
                    && on_side(*side, || within(flow.src_port), || within(flow.dst_port))
            }
            Self::Protocol(numbers) => {
                protocol::number(&flow.protocol).is_ok_and(|number| numbers.contains(&number))
            }
            Self::Interface(globs) => {
                let name = flow.interface.as_str();
                !name.is_empty() && globs.iter().any(|glob| glob.is_match(name))
            }
            Self::Direction(words) => words.contains(&flow.direction),
            Self::Scope(words) => words.contains(&flow.scope),
            Self::State(words) => words.contains(&flow.state),
            Self::Process(names) => ends(flow).any(|end| {
                let process = end.process.as_ref().map_or("", |process| &process.comm);
                !process.is_empty() && names.iter().any(|name| name == process)
            }),
            Self::Cgroup(prefixes) => ends(flow).any(|end| {
                let path = below_root(&end.cgroup);
                !end.cgroup.is_empty() && prefixes.iter().any(|prefix| path.starts_with(prefix))
            }),
            Self::IpVersion(version) => {
                flow.src_ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv4() == (*version == 4))
            }
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

/// True if the ports of a flow mean something: TCP, UDP and SCTP, but not later fragments.
#[must_use]
pub fn has_ports(flow: &NetworkFlow) -> bool {
    !flow.fragment && protocol::number(&flow.protocol).is_ok_and(protocol::has_ports)
}

fn ends(flow: &NetworkFlow) -> impl Iterator<Item = &Endpoint> {
    flow.source.iter().chain(flow.destination.iter())
}
