//! A compiled filter and its evaluation.

use std::net::IpAddr;

use ipnet::IpNet;
use orb8_proto::v1::FlowFilter;
use orb8_proto::v1::condition::Side;

use crate::compile;
use crate::error::FilterError;
use crate::interface::Globs;
use crate::names::{self, PodPrefix, ServiceName, WorkloadName};
use crate::selector::Selector;
use crate::view::{End, EndView, FlowView};

/// A filter, checked and ready to be evaluated.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    namespaces: Vec<String>,
    pods: Vec<PodPrefix>,
    conditions: Vec<(bool, Test)>,
}

/// What every flow that a filter means has in common, for whoever can leave out others early. Never
/// more than the filter asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Required {
    /// One end is within.
    pub ip: Option<IpNet>,
    /// One end has this port.
    pub port: Option<u16>,
    /// The IP protocol number.
    pub protocol: Option<u8>,
}

#[derive(Clone, Debug)]
pub(crate) enum Test {
    Ip(Side, Vec<IpNet>),
    Port(Side, Vec<(u16, u16)>),
    Protocol(Vec<u8>),
    Interface(Globs),
    Word(FlowWord, Vec<&'static str>),
    IpVersion(u32),
    Supplement(bool),
    Service(Vec<ServiceName>),
    End(Side, EndTest),
}

/// Fields of a flow that have a closed set of words.
#[derive(Clone, Copy, Debug)]
pub(crate) enum FlowWord {
    Direction,
    Scope,
    State,
    Plane,
    Verdict,
}

/// A test of one end.
#[derive(Clone, Debug)]
pub(crate) enum EndTest {
    Comm(Vec<String>),
    Cgroup(Vec<String>),
    Namespace(Vec<String>),
    Pod(Vec<PodPrefix>),
    Workload(Vec<WorkloadName>),
    Node(Vec<String>),
    Selector(Vec<Selector>),
    Attribution(Vec<&'static str>),
    Kind(Vec<&'static str>),
    Container(Vec<String>),
    Zone(Vec<String>),
}

impl Filter {
    /// Checks and prepares a filter and the owners asked for, as in `QueryFlowsRequest`; none of all
    /// is the filter that every flow passes. An empty namespace means flows that no pod owns.
    ///
    /// # Errors
    /// The first condition that cannot be evaluated, and why.
    pub fn compile(
        filter: Option<&FlowFilter>,
        namespaces: &[String],
        pod_names: &[String],
    ) -> Result<Self, FilterError> {
        let conditions = filter.map_or(&[][..], |filter| &filter.all);
        let conditions = conditions
            .iter()
            .map(|condition| compile::test(condition).map(|test| (condition.negate, test)));
        Ok(Self {
            namespaces: namespaces.to_vec(),
            pods: pod_names.iter().map(|text| PodPrefix::parse(text)).collect::<Result<_, _>>()?,
            conditions: conditions.collect::<Result<_, _>>()?,
        })
    }

    /// True if the owner is asked for and all conditions hold. Allocates nothing; changes only what
    /// is remembered of interfaces.
    pub fn matches(&mut self, flow: &impl FlowView) -> bool {
        self.owner_matches(flow)
            && self.conditions.iter_mut().all(|(negate, test)| test.holds(flow) != *negate)
    }

    fn owner_matches(&self, flow: &impl FlowView) -> bool {
        if self.namespaces.is_empty() && self.pods.is_empty() {
            return true;
        }
        let (namespace, pod) = flow.owner();
        (self.namespaces.is_empty() || self.namespaces.iter().any(|wanted| wanted == namespace))
            && (self.pods.is_empty()
                || self.pods.iter().any(|prefix| prefix.matches(namespace, pod)))
    }

    /// What all flows that match have in common.
    #[must_use]
    pub fn required(&self) -> Required {
        let mut found = Required::default();
        for (_, test) in self.conditions.iter().filter(|(negate, _)| !negate) {
            match test {
                Test::Ip(_, nets) if nets.len() == 1 => found.ip = Some(nets[0]),
                Test::Port(_, ranges) if ranges.len() == 1 && ranges[0].0 == ranges[0].1 => {
                    found.port = Some(ranges[0].0);
                }
                Test::Protocol(numbers) if numbers.len() == 1 => found.protocol = Some(numbers[0]),
                Test::Ip(..)
                | Test::Port(..)
                | Test::Protocol(_)
                | Test::Interface(_)
                | Test::Word(..)
                | Test::IpVersion(_)
                | Test::Supplement(_)
                | Test::Service(_)
                | Test::End(..) => {}
            }
        }
        found
    }
}

impl Test {
    fn holds(&mut self, flow: &impl FlowView) -> bool {
        match self {
            Self::Ip(side, nets) => {
                let within = |ip: IpAddr| nets.iter().any(|net| net.contains(&ip));
                on_side(*side, |end| flow.address(end).is_some_and(within))
            }
            Self::Port(side, ranges) => {
                let within = |port: u16| ranges.iter().any(|(a, b)| (*a..=*b).contains(&port));
                on_side(*side, |end| flow.port(end).is_some_and(within))
            }
            Self::Protocol(numbers) => {
                flow.protocol().is_some_and(|protocol| numbers.contains(&protocol))
            }
            Self::Interface(globs) => globs.matches(flow.interface()),
            Self::Word(field, words) => words.contains(&field.of(flow)),
            Self::IpVersion(version) => {
                flow.address(End::Source).is_some_and(|ip| ip.is_ipv4() == (*version == 4))
            }
            Self::Supplement(wanted) => flow.supplement() == *wanted,
            Self::Service(names) => {
                let any = |(namespace, name): (&str, &str)| {
                    names.iter().any(|wanted| wanted.matches(namespace, name))
                };
                let is = |end: End| {
                    let end = flow.end(end);
                    any((end.namespace(), end.service()))
                };
                flow.service().is_some_and(any) || is(End::Source) || is(End::Destination)
            }
            Self::End(side, test) => on_side(*side, |end| test.holds(&flow.end(end))),
        }
    }
}

impl FlowWord {
    fn of(self, flow: &impl FlowView) -> &str {
        match self {
            Self::Direction => flow.direction(),
            Self::Scope => flow.scope(),
            Self::State => flow.state(),
            Self::Plane => flow.plane(),
            Self::Verdict => flow.verdict(),
        }
    }
}

impl EndTest {
    fn holds(&self, end: &impl EndView) -> bool {
        match self {
            Self::Comm(names) => is_one_of(end.comm(), names),
            Self::Cgroup(prefixes) => {
                let path = end.cgroup();
                !path.is_empty()
                    && prefixes.iter().any(|prefix| compile::below_root(path).starts_with(prefix))
            }
            Self::Namespace(names) => is_one_of(end.namespace(), names),
            Self::Pod(prefixes) => {
                let (namespace, pod) = (end.namespace(), end.pod());
                prefixes.iter().any(|prefix| prefix.matches(namespace, pod))
            }
            Self::Workload(names) => names.iter().any(|name| name.matches(end)),
            Self::Node(names) => is_one_of(end.node(), names),
            Self::Selector(selectors) => {
                end.labels(|labels| selectors.iter().any(|selector| selector.matches(labels)))
            }
            Self::Attribution(words) => words.contains(&end.attribution()),
            Self::Kind(words) => words.contains(&end.kind()),
            Self::Container(wanted) => wanted.iter().any(|name| names::is_container(name, end)),
            Self::Zone(names) => end.zone(|zone| is_one_of(zone, names)),
        }
    }
}

fn is_one_of(name: &str, names: &[String]) -> bool {
    !name.is_empty() && names.iter().any(|wanted| wanted == name)
}

fn on_side(side: Side, holds: impl Fn(End) -> bool) -> bool {
    match side {
        Side::Either => holds(End::Source) || holds(End::Destination),
        Side::Source => holds(End::Source),
        Side::Destination => holds(End::Destination),
    }
}
