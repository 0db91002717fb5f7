//! The filters of a command line: reads the flags in their order, because `--not` turns around the
//! filter that follows it, and makes the request's conditions of them.
//!
//! Built by hand instead of derived, because clap's derived arguments know no order.

use clap::builder::ValueParser;
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use orb8_proto::v1::condition::{Field, Side};
use orb8_proto::v1::{Condition, FlowFilter, Strings};
use orb8_query::network::filter::{Filter, FilterError};

use super::flags::{self, Meaning, Take};

const OF_FLOWS: &str = "Filters";
const OF_ENDS: &str = "Filters on who is at the ends";
const NOT: &str = "not";
const ALL_NAMESPACES: &str = "all-namespaces";
const ALL_SCOPES: &str = "all-scopes";
/// Scopes that are shown only if asked for: what passes a node is not what it sends or takes, and
/// would be read as that.
const HIDDEN_SCOPES: [&str; 2] = ["forwarded", "tunnel"];

/// Flags without a value that are filters, and what they mean.
const SWITCHES: [(&str, Field, &str); 4] = [
    ("ipv4", Field::IpVersion(4), "Only IPv4"),
    ("ipv6", Field::IpVersion(6), "Only IPv6"),
    ("supplement", Field::Supplement(true), "Only what the socket plane cannot see of an owner"),
    ("no-supplement", Field::Supplement(false), "Nothing of that"),
];

/// The filters of one command line.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FilterArgs {
    conditions: Vec<Condition>,
    namespaces: Vec<String>,
    pods: Vec<String>,
    words: Vec<String>,
    all_scopes: bool,
}

impl FilterArgs {
    /// The conditions that were given, for saved flows: what is in a file was chosen when it was
    /// saved.
    #[must_use]
    pub fn given(&self) -> Option<FlowFilter> {
        (!self.conditions.is_empty()).then(|| FlowFilter { all: self.conditions.clone() })
    }

    /// The conditions for agents: unless a scope was asked for, what passes a node is left out.
    #[must_use]
    pub fn filter(&self) -> Option<FlowFilter> {
        let mut all = self.conditions.clone();
        all.extend(self.hides_scopes().then(hidden_scopes));
        (!all.is_empty()).then_some(FlowFilter { all })
    }

    /// Namespaces of owners to send; none means all.
    #[must_use]
    pub fn namespaces(&self) -> Vec<String> {
        self.namespaces.clone()
    }

    /// Prefixes of owners' pod names to send; none means all.
    #[must_use]
    pub fn pod_names(&self) -> Vec<String> {
        self.pods.clone()
    }

    /// The flags as they were typed, for a person: `--not --port 443`. Empty if none was given.
    #[must_use]
    pub fn describe(&self) -> String {
        self.words.join(" ")
    }

    /// True if flows that pass the node are left out without having been asked about.
    #[must_use]
    pub fn hides_scopes(&self) -> bool {
        let on_scope = |condition: &Condition| matches!(condition.field, Some(Field::Scope(_)));
        !self.all_scopes && !self.conditions.iter().any(on_scope)
    }

    /// True if a flag speaks of names that only Kubernetes tells.
    #[must_use]
    pub fn asks_names(&self) -> bool {
        let named = |condition: &Condition| {
            matches!(
                condition.field,
                Some(
                    Field::Namespace(_)
                        | Field::Pod(_)
                        | Field::Workload(_)
                        | Field::Service(_)
                        | Field::Node(_)
                        | Field::Zone(_)
                        | Field::Selector(_)
                )
            )
        };
        !self.namespaces.is_empty() || !self.pods.is_empty() || self.conditions.iter().any(named)
    }
}

fn hidden_scopes() -> Condition {
    let values = HIDDEN_SCOPES.map(str::to_owned).to_vec();
    Condition { side: 0, negate: true, field: Some(Field::Scope(Strings { values })) }
}

/// The value of one flag, checked.
#[derive(Clone, Debug)]
struct Value {
    text: String,
    what: What,
}

/// What one flag selects by.
#[derive(Clone, Debug)]
enum What {
    Condition(Side, Field),
    Namespaces(Vec<String>),
    Pods(Vec<String>),
}

/// One flag of a command line, in its place.
struct Occurrence {
    index: usize,
    flag: String,
    value: Value,
}

impl Args for FilterArgs {
    fn augment_args(command: Command) -> Command {
        let of_flows = flags::of_flows().into_iter().map(|flag| (OF_FLOWS, flag));
        let of_ends = flags::of_ends().into_iter().map(|flag| (OF_ENDS, flag));
        let values = of_flows.chain(of_ends).map(|(heading, flag)| {
            let meaning = flag.meaning;
            flag.arg()
                .help_heading(heading)
                .action(ArgAction::Append)
                .value_parser(ValueParser::new(move |text: &str| checked(meaning, text)))
        });
        let switches = SWITCHES.map(|(name, _, help)| switch(name).help(help));
        let [ipv4, ipv6, supplement, no_supplement] = switches;
        command.args(values).args([
            ipv4.short('4').conflicts_with("ipv6"),
            ipv6.short('6'),
            supplement.conflicts_with("no-supplement"),
            no_supplement,
            switch(NOT).help("Turn the filter that follows around: --not --port 443"),
            plain(ALL_SCOPES).help("Also what passes the node: scopes forwarded and tunnel"),
            plain(ALL_NAMESPACES)
                .short('A')
                .help("All namespaces, whatever --namespace says; the default")
                .help_heading(OF_ENDS),
        ])
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// A flag without a value.
fn plain(name: &'static str) -> Arg {
    Arg::new(name).long(name).help_heading(OF_FLOWS).action(ArgAction::SetTrue)
}

/// A flag without a value whose places are kept, which clap does for values only.
fn switch(name: &'static str) -> Arg {
    plain(name)
        .action(ArgAction::Append)
        .num_args(0)
        .value_parser(clap::value_parser!(bool))
        .default_missing_value("true")
}

impl FromArgMatches for FilterArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut nots = indices(matches, NOT);
        let mut args = Self { all_scopes: matches.get_flag(ALL_SCOPES), ..Self::default() };
        // Flags of one kind are one condition: any of their values, or none of them after --not.
        let mut places: Vec<(String, bool)> = Vec::new();
        let all_namespaces = matches.get_flag(ALL_NAMESPACES);
        for filter in occurrences(matches) {
            let before = nots.iter().filter(|not| **not < filter.index).count();
            if before > 1 {
                return Err(usage("--not is given twice before one filter, give it once"));
            }
            nots.drain(..before);
            let overruled = all_namespaces && matches!(filter.value.what, What::Namespaces(_));
            if !overruled {
                args.add(&mut places, filter, before == 1)?;
            }
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
    fn add(
        &mut self,
        places: &mut Vec<(String, bool)>,
        filter: Occurrence,
        negate: bool,
    ) -> Result<(), clap::Error> {
        let Occurrence { flag, value, .. } = filter;
        if negate {
            self.words.push("--not".to_owned());
        }
        self.words.push(format!("--{flag}"));
        if !value.text.is_empty() {
            self.words.push(value.text);
        }
        let (side, field) = match value.what {
            What::Namespaces(_) | What::Pods(_) if negate => {
                return Err(usage(&format!(
                    "--not cannot turn --{flag} around, which chooses owners; \
                     use --not --from-{flag} or --not --to-{flag}"
                )));
            }
            What::Namespaces(more) => {
                self.namespaces.extend(more);
                return Ok(());
            }
            What::Pods(more) => {
                self.pods.extend(more);
                return Ok(());
            }
            What::Condition(side, field) => (side, field),
        };
        match places.iter().position(|(name, negated)| *name == flag && *negated == negate) {
            Some(index) => extend(&mut self.conditions[index], field),
            None => {
                places.push((flag, negate));
                self.conditions.push(Condition { side: side.into(), negate, field: Some(field) });
            }
        }
        Ok(())
    }
}

/// All filters, in the order of the command line.
fn occurrences(matches: &ArgMatches) -> Vec<Occurrence> {
    let mut all = Vec::new();
    for flag in flags::of_flows().into_iter().chain(flags::of_ends()) {
        let values = matches.get_many::<Value>(&flag.name).into_iter().flatten().cloned();
        let places = indices(matches, &flag.name).into_iter();
        all.extend(places.zip(values).map(|(index, value)| Occurrence {
            index,
            flag: flag.name.clone(),
            value,
        }));
    }
    for (flag, field, _) in SWITCHES {
        let what = What::Condition(Side::Either, field);
        all.extend(indices(matches, flag).into_iter().map(|index| Occurrence {
            index,
            flag: flag.to_owned(),
            value: Value { text: String::new(), what: what.clone() },
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
    let Some(field) = condition.field.as_mut() else { return };
    if let (Field::Port(ports), Field::Port(more)) = (&mut *field, &more) {
        ports.ranges.extend(&more.ranges);
    } else if let (Some(values), Some(more)) = (strings(field), strings(&mut more.clone())) {
        values.append(more);
    }
    // Others have no list; said twice they mean the same.
}

/// The values of a field that lists texts.
fn strings(field: &mut Field) -> Option<&mut Vec<String>> {
    match field {
        Field::Ip(list)
        | Field::Protocol(list)
        | Field::Interface(list)
        | Field::Direction(list)
        | Field::Scope(list)
        | Field::State(list)
        | Field::Process(list)
        | Field::Cgroup(list)
        | Field::Namespace(list)
        | Field::Pod(list)
        | Field::Workload(list)
        | Field::Service(list)
        | Field::Node(list)
        | Field::Selector(list)
        | Field::Plane(list)
        | Field::Attribution(list)
        | Field::Kind(list)
        | Field::Container(list)
        | Field::Zone(list)
        | Field::Verdict(list) => Some(&mut list.values),
        Field::Port(_) | Field::IpVersion(_) | Field::Supplement(_) => None,
    }
}

/// Reads a value and has it checked by the rules that the filter is evaluated with.
fn checked(meaning: Meaning, text: &str) -> Result<Value, String> {
    let told = |error: FilterError| error.to_string();
    let what = match meaning {
        Meaning::Condition(side, take) => {
            let field = take.read(text)?;
            check(side, field.clone()).map_err(told)?;
            What::Condition(side, field)
        }
        Meaning::Namespace => {
            let field = Take::List(Field::Namespace).read(text)?;
            check(Side::Either, field).map_err(told)?;
            What::Namespaces(flags::split(text))
        }
        Meaning::Pod => {
            let pods = flags::split(text);
            Filter::compile(None, &[], &pods).map_err(told)?;
            What::Pods(pods)
        }
    };
    Ok(Value { text: text.to_owned(), what })
}

fn check(side: Side, field: Field) -> Result<(), FilterError> {
    let condition = Condition { side: side.into(), negate: false, field: Some(field) };
    Filter::compile(Some(&FlowFilter { all: vec![condition] }), &[], &[]).map(drop)
}
