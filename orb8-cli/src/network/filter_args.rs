//! The filter flags: one table of flags, and `--not`, which turns around the filter that follows it.
//!
//! Built by hand instead of derived, because the meaning of `--not` depends on the order of flags.

use clap::builder::ValueParser;
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use orb8_proto::v1::condition::{Field, Side};
use orb8_proto::v1::{Condition, FlowFilter, PortRange, Ports, Strings};
use orb8_query::network::filter::{Filter, FilterError};
use orb8_util::net;

const HEADING: &str = "Filters";
const NOT: &str = "not";

/// One filter flag with a value.
struct Flag {
    name: &'static str,
    value: &'static str,
    side: Side,
    read: fn(&str) -> Result<Field, String>,
    help: &'static str,
}

const FLAGS: [Flag; 13] = [
    Flag {
        name: "ip",
        value: "CIDR",
        side: Side::Either,
        read: ip,
        help: "Address or prefix at either end",
    },
    Flag {
        name: "from-ip",
        value: "CIDR",
        side: Side::Source,
        read: ip,
        help: "Address or prefix of the sender",
    },
    Flag {
        name: "to-ip",
        value: "CIDR",
        side: Side::Destination,
        read: ip,
        help: "Address or prefix of the receiver",
    },
    Flag {
        name: "port",
        value: "N|A-B",
        side: Side::Either,
        read: port,
        help: "Port or range at either end",
    },
    Flag {
        name: "from-port",
        value: "N|A-B",
        side: Side::Source,
        read: port,
        help: "Port or range of the sender",
    },
    Flag {
        name: "to-port",
        value: "N|A-B",
        side: Side::Destination,
        read: port,
        help: "Port or range of the receiver",
    },
    Flag {
        name: "protocol",
        value: "PROTOCOL",
        side: Side::Either,
        read: |text| Ok(Field::Protocol(list(text))),
        help: "tcp, udp, icmp, icmpv6, sctp or a number",
    },
    Flag {
        name: "interface",
        value: "GLOB",
        side: Side::Either,
        read: |text| Ok(Field::Interface(one(text))),
        help: "Interface name or glob, such as 'eth*'",
    },
    Flag {
        name: "direction",
        value: "DIRECTION",
        side: Side::Either,
        read: |text| Ok(Field::Direction(list(text))),
        help: "ingress or egress, as the owner sees it",
    },
    Flag {
        name: "scope",
        value: "SCOPE",
        side: Side::Either,
        read: |text| Ok(Field::Scope(list(text))),
        help: "local, unclaimed, forwarded or tunnel",
    },
    Flag {
        name: "state",
        value: "STATE",
        side: Side::Either,
        read: |text| Ok(Field::State(list(text))),
        help: "active or ended",
    },
    Flag {
        name: "process",
        value: "NAME",
        side: Side::Either,
        read: |text| Ok(Field::Process(one(text))),
        help: "Name of the process at either end",
    },
    Flag {
        name: "cgroup",
        value: "PREFIX",
        side: Side::Either,
        read: |text| Ok(Field::Cgroup(one(text))),
        help: "Prefix of the cgroup path at either end",
    },
];

/// The filters of one command line.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FilterArgs {
    conditions: Vec<Condition>,
    words: Vec<String>,
}

impl FilterArgs {
    /// The filter to send; none if no flag was given.
    #[must_use]
    pub fn filter(&self) -> Option<FlowFilter> {
        (!self.conditions.is_empty()).then(|| FlowFilter { all: self.conditions.clone() })
    }

    /// The flags as they were typed, for a person: `--not --port 443`. Empty if none was given.
    #[must_use]
    pub fn describe(&self) -> String {
        self.words.join(" ")
    }
}

/// The value of one flag, checked.
#[derive(Clone, Debug)]
struct Value {
    text: String,
    field: Field,
}

/// One flag of a command line, in its place.
struct Occurrence {
    index: usize,
    flag: &'static str,
    side: Side,
    value: Value,
}

impl Args for FilterArgs {
    fn augment_args(command: Command) -> Command {
        let values = FLAGS.iter().map(|flag| {
            let (side, read) = (flag.side, flag.read);
            Arg::new(flag.name)
                .long(flag.name)
                .value_name(flag.value)
                .help(flag.help)
                .help_heading(HEADING)
                .action(ArgAction::Append)
                .value_parser(ValueParser::new(move |text: &str| checked(side, read, text)))
        });
        command.args(values).args([
            switch("ipv4").short('4').help("Only IPv4").conflicts_with("ipv6"),
            switch("ipv6").short('6').help("Only IPv6"),
            switch(NOT).help("Turn the filter that follows around: --not --port 443"),
        ])
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// A flag without a value whose places are kept, which clap does for values only.
fn switch(name: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .help_heading(HEADING)
        .action(ArgAction::Append)
        .num_args(0)
        .value_parser(clap::value_parser!(bool))
        .default_missing_value("true")
}

impl FromArgMatches for FilterArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut filters = occurrences(matches);
        let mut nots = indices(matches, NOT);
        let mut args = Self::default();
        // Flags of one kind are one condition: any of their values, or none of them after --not.
        let mut places: Vec<(&str, bool)> = Vec::new();
        for filter in filters.drain(..) {
            let before = nots.iter().filter(|not| **not < filter.index).count();
            if before > 1 {
                return Err(usage("--not is given twice before one filter, give it once"));
            }
            nots.drain(..before);
            args.add(&mut places, filter, before == 1);
        }
        if !nots.is_empty() {
            return Err(usage("--not has no filter after it, give one such as --not --port 443"));
        }
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl FilterArgs {
    fn add(&mut self, places: &mut Vec<(&str, bool)>, filter: Occurrence, negate: bool) {
        let Occurrence { flag, side, value, .. } = filter;
        if negate {
            self.words.push("--not".to_owned());
        }
        self.words.push(format!("--{flag}"));
        if !value.text.is_empty() {
            self.words.push(value.text);
        }
        match places.iter().position(|place| *place == (flag, negate)) {
            Some(index) => extend(&mut self.conditions[index], value.field),
            None => {
                places.push((flag, negate));
                self.conditions.push(Condition {
                    side: side.into(),
                    negate,
                    field: Some(value.field),
                });
            }
        }
    }
}

fn occurrences(matches: &ArgMatches) -> Vec<Occurrence> {
    let mut all = Vec::new();
    for flag in &FLAGS {
        let values = matches.get_many::<Value>(flag.name).into_iter().flatten().cloned();
        all.extend(
            indices(matches, flag.name).into_iter().zip(values).map(|(index, value)| Occurrence {
                index,
                flag: flag.name,
                side: flag.side,
                value,
            }),
        );
    }
    for (flag, version) in [("ipv4", 4), ("ipv6", 6)] {
        let value = || Value { text: String::new(), field: Field::IpVersion(version) };
        all.extend(indices(matches, flag).into_iter().map(|index| Occurrence {
            index,
            flag,
            side: Side::Either,
            value: value(),
        }));
    }
    all.sort_by_key(|occurrence| occurrence.index);
    all
}

fn indices(matches: &ArgMatches, flag: &str) -> Vec<usize> {
    matches.indices_of(flag).into_iter().flatten().collect()
}

fn usage(text: &str) -> clap::Error {
    clap::Error::raw(ErrorKind::ValueValidation, text)
}

/// Adds the values of a second flag of the same kind.
fn extend(condition: &mut Condition, more: Field) {
    match (condition.field.as_mut(), more) {
        (Some(Field::Port(ports)), Field::Port(more)) => ports.ranges.extend(more.ranges),
        (
            Some(
                Field::Ip(values)
                | Field::Protocol(values)
                | Field::Interface(values)
                | Field::Direction(values)
                | Field::Scope(values)
                | Field::State(values)
                | Field::Process(values)
                | Field::Cgroup(values),
            ),
            Field::Ip(more)
            | Field::Protocol(more)
            | Field::Interface(more)
            | Field::Direction(more)
            | Field::Scope(more)
            | Field::State(more)
            | Field::Process(more)
            | Field::Cgroup(more),
        ) => values.values.extend(more.values),
        // A version has no list; said twice it means the same.
        (_, _) => {}
    }
}

/// Reads a value and has it checked by the rules that the filter is evaluated with.
fn checked(
    side: Side,
    read: fn(&str) -> Result<Field, String>,
    text: &str,
) -> Result<Value, String> {
    let field = read(text)?;
    let condition = Condition { side: side.into(), negate: false, field: Some(field.clone()) };
    Filter::compile(Some(&FlowFilter { all: vec![condition] }), &[], &[])
        .map_err(|error: FilterError| error.to_string())?;
    Ok(Value { text: text.to_owned(), field })
}

fn ip(text: &str) -> Result<Field, String> {
    Ok(Field::Ip(list(text)))
}

fn port(text: &str) -> Result<Field, String> {
    let range = |text: &str| {
        let (first, last) = net::port_range(text).map_err(|error| error.to_string())?;
        Ok(PortRange { first: first.into(), last: last.into() })
    };
    let ranges = text.split(',').map(range).collect::<Result<_, String>>()?;
    Ok(Field::Port(Ports { ranges }))
}

fn list(text: &str) -> Strings {
    Strings { values: text.split(',').map(str::to_owned).collect() }
}

/// Globs and names may hold commas themselves.
fn one(text: &str) -> Strings {
    Strings { values: vec![text.to_owned()] }
}
