//! The table of filter flags: how each is called, what it takes, and which condition it means.

use clap::Arg;
use orb8_proto::v1::condition::{Field, Side};
use orb8_proto::v1::{PortRange, Ports, Strings};
use orb8_query::network::filter::{
    ATTRIBUTIONS, DIRECTIONS, KINDS, PLANES, SCOPES, STATES, VERDICTS,
};
use orb8_util::net;

/// What a flag selects by.
#[derive(Clone, Copy, Debug)]
pub(super) enum Meaning {
    /// A condition of the filter.
    Condition(Side, Take),
    /// The namespace of the owner, outside the filter.
    Namespace,
    /// The pod that is the owner, outside the filter.
    Pod,
}

/// How a value becomes a field.
#[derive(Clone, Copy, Debug)]
pub(super) enum Take {
    /// Values joined by commas.
    List(fn(Strings) -> Field),
    /// One value, which may hold commas itself.
    One(fn(Strings) -> Field),
    /// Ports and ranges joined by commas.
    Ports,
}

impl Take {
    /// Reads the value of a flag.
    ///
    /// # Errors
    /// A port that is none; other values are checked by compiling the condition.
    pub(super) fn read(self, text: &str) -> Result<Field, String> {
        Ok(match self {
            Self::List(field) => field(Strings { values: split(text) }),
            Self::One(field) => field(Strings { values: vec![text.to_owned()] }),
            Self::Ports => Field::Port(Ports {
                ranges: text.split(',').map(port_range).collect::<Result<_, _>>()?,
            }),
        })
    }
}

/// The values of a list.
pub(super) fn split(text: &str) -> Vec<String> {
    text.split(',').map(str::to_owned).collect()
}

fn port_range(text: &str) -> Result<PortRange, String> {
    let (first, last) = net::port_range(text).map_err(|error| error.to_string())?;
    Ok(PortRange { first: first.into(), last: last.into() })
}

/// One flag with a value.
#[derive(Clone, Debug)]
pub(super) struct Flag {
    /// Without the dashes.
    pub(super) name: String,
    /// What it means.
    pub(super) meaning: Meaning,
    short: Option<char>,
    value: &'static str,
    help: String,
}

impl Flag {
    /// Its argument, without how it is read.
    pub(super) fn arg(&self) -> Arg {
        let arg = Arg::new(self.name.clone())
            .long(self.name.clone())
            .value_name(self.value)
            .help(self.help.clone());
        match self.short {
            Some(short) => arg.short(short),
            None => arg,
        }
    }
}

/// One row of the table.
struct Row {
    name: &'static str,
    short: Option<char>,
    value: &'static str,
    on: On,
    take: Take,
    what: &'static str,
    /// What it takes, behind what it is.
    forms: &'static [&'static str],
}

/// On what a flag of that name is a condition.
#[derive(Clone, Copy)]
enum On {
    /// The flow.
    Flow,
    /// Either end.
    Either,
    /// Either end, and with `--from-` and `--to-` one of them.
    Ends,
    /// The owner, and with `--from-` and `--to-` an end.
    Owner(Meaning),
}

const fn row(
    name: &'static str,
    value: &'static str,
    on: On,
    take: Take,
    what: &'static str,
    forms: &'static [&'static str],
) -> Row {
    Row { name, short: None, value, on, take, what, forms }
}

const fn short(short: char, row: Row) -> Row {
    Row { short: Some(short), ..row }
}

use On::{Either, Ends, Flow, Owner};
use Take::{List, One};

const OF_FLOWS: [Row; 9] = [
    row("ip", "CIDR", Ends, List(Field::Ip), "Address or prefix", &[]),
    row("port", "N|A-B", Ends, Take::Ports, "Port or range", &[]),
    row("protocol", "PROTOCOL", Flow, List(Field::Protocol), "Protocol", &PROTOCOLS),
    row("interface", "GLOB", Flow, One(Field::Interface), "Interface name or glob", &["'eth*'"]),
    row(
        "direction",
        "DIRECTION",
        Flow,
        List(Field::Direction),
        "As the owner sees it",
        &DIRECTIONS,
    ),
    row("scope", "SCOPE", Flow, List(Field::Scope), "Part that the node has in it", &SCOPES),
    row("state", "STATE", Flow, List(Field::State), "State", &STATES),
    row("plane", "PLANE", Flow, List(Field::Plane), "Plane that counted it", &PLANES),
    row("verdict", "VERDICT", Flow, List(Field::Verdict), "Verdict on the Service", &VERDICTS),
];

const OF_ENDS: [Row; 12] = [
    short('n', row("namespace", "NAME", NAMESPACE, List(Field::Namespace), "Namespace", &[])),
    row("pod", "POD", POD, List(Field::Pod), "Pod", &["[namespace/]prefix"]),
    short(
        'l',
        row("selector", "LABELS", Ends, One(Field::Selector), "Labels of the pod", SELECTORS),
    ),
    row("workload", "NAME", Ends, List(Field::Workload), "Top owner of the pod", WORKLOADS),
    row("node", "NAME", Ends, List(Field::Node), "Node", &[]),
    row("zone", "NAME", Either, List(Field::Zone), "Zone of the node", &[]),
    row("container", "NAME", Either, List(Field::Container), "Container", &["name or id"]),
    row("service", "NAME", Flow, List(Field::Service), "Service asked for, or an end", SERVICES),
    row("kind", "KIND", Either, List(Field::Kind), "Kind", &KINDS),
    row("attribution", "WORD", Either, List(Field::Attribution), "How identified", &ATTRIBUTIONS),
    row("process", "NAME", Either, One(Field::Process), "Name of the process", &[]),
    row("cgroup", "PREFIX", Either, One(Field::Cgroup), "Prefix of the cgroup path", &[]),
];

const NAMESPACE: On = Owner(Meaning::Namespace);
const POD: On = Owner(Meaning::Pod);
const PROTOCOLS: [&str; 6] = ["tcp", "udp", "icmp", "icmpv6", "sctp", "a number"];
const SELECTORS: &[&str] = &["as kubectl -l takes them"];
const WORKLOADS: &[&str] = &["[namespace/][kind/]name"];
const SERVICES: &[&str] = &["[namespace/]name"];

/// Flags of the flow itself, in the order of the help.
pub(super) fn of_flows() -> Vec<Flag> {
    OF_FLOWS.iter().flat_map(Row::flags).collect()
}

/// Flags of who is at the ends, in the order of the help.
pub(super) fn of_ends() -> Vec<Flag> {
    OF_ENDS.iter().flat_map(Row::flags).collect()
}

impl Row {
    fn flags(&self) -> Vec<Flag> {
        let flag = |prefix: &str, meaning, whose: &str| Flag {
            name: format!("{prefix}{}", self.name),
            meaning,
            short: self.short.filter(|_| prefix.is_empty()),
            value: self.value,
            help: match self.forms {
                forms if prefix.is_empty() && !forms.is_empty() => {
                    format!("{}{whose}: {}", self.what, forms.join(", "))
                }
                _ => format!("{}{whose}", self.what),
            },
        };
        let condition = |side| Meaning::Condition(side, self.take);
        let sides = [
            flag("from-", condition(Side::Source), " of the sender"),
            flag("to-", condition(Side::Destination), " of the receiver"),
        ];
        let either = || flag("", condition(Side::Either), " at either end");
        match self.on {
            Flow => vec![flag("", condition(Side::Either), "")],
            Either => vec![either()],
            Ends => std::iter::once(either()).chain(sides).collect(),
            Owner(meaning) => {
                std::iter::once(flag("", meaning, " that owns the flow")).chain(sides).collect()
            }
        }
    }
}
