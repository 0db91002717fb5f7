//! Reads conditions as they travel; every value that means nothing is an error.

use orb8_proto::v1::condition::{Field, Side};
use orb8_proto::v1::{Condition, Ports, Strings};
use orb8_util::{net, protocol};

use crate::error::FilterError;
use crate::filter::{EndTest, FlowWord, Test};
use crate::interface::{Globs, glob};
use crate::names::{PodPrefix, ServiceName, WorkloadName, whole};
use crate::selector::Selector;
use crate::{ATTRIBUTIONS, DIRECTIONS, KINDS, PLANES, SCOPES, STATES, VERDICTS};

/// The kernel's TASK_COMM_LEN without the terminating zero.
const COMM_BYTES: usize = 15;

/// Reads one condition, `negate` left aside.
pub(crate) fn test(condition: &Condition) -> Result<Test, FilterError> {
    let side = Side::try_from(condition.side)
        .map_err(|_unknown| FilterError::UnknownSide(condition.side))?;
    let field = condition.field.as_ref().ok_or(FilterError::UnknownField)?;
    let side = match field {
        // As the contract has it: at either end, whatever side is given.
        Field::Process(_) | Field::Cgroup(_) => Side::Either,
        _ => side,
    };
    match end_test(field)? {
        Some(test) => Ok(Test::End(side, test)),
        None => flow_test(field, side),
    }
}

/// Reads a condition on one end; none if the field is of the whole flow.
fn end_test(field: &Field) -> Result<Option<EndTest>, FilterError> {
    Ok(Some(match field {
        Field::Process(list) => EndTest::Comm(values("process", list, |text| Ok(comm(text)))?),
        Field::Cgroup(list) => {
            EndTest::Cgroup(values("cgroup", list, |text| Ok(below_root(text).to_owned()))?)
        }
        Field::Namespace(list) => EndTest::Namespace(wholes("namespace", list)?),
        Field::Pod(list) => EndTest::Pod(values("pod", list, PodPrefix::parse)?),
        Field::Workload(list) => EndTest::Workload(values("workload", list, WorkloadName::parse)?),
        Field::Node(list) => EndTest::Node(wholes("node", list)?),
        Field::Selector(list) => EndTest::Selector(values("selector", list, Selector::parse)?),
        Field::Attribution(list) => {
            EndTest::Attribution(words("attribution", list, &ATTRIBUTIONS)?)
        }
        Field::Kind(list) => EndTest::Kind(words("kind", list, &KINDS)?),
        Field::Container(list) => EndTest::Container(wholes("container", list)?),
        Field::Zone(list) => EndTest::Zone(wholes("zone", list)?),
        Field::Ip(_)
        | Field::Port(_)
        | Field::Protocol(_)
        | Field::Interface(_)
        | Field::Direction(_)
        | Field::Scope(_)
        | Field::State(_)
        | Field::IpVersion(_)
        | Field::Service(_)
        | Field::Plane(_)
        | Field::Supplement(_)
        | Field::Verdict(_) => return Ok(None),
    }))
}

fn flow_test(field: &Field, side: Side) -> Result<Test, FilterError> {
    Ok(match field {
        Field::Ip(list) => Test::Ip(side, values("ip", list, |text| Ok(net::prefix(text)?))?),
        Field::Port(ports) => Test::Port(side, ranges(ports)?),
        Field::Protocol(list) => {
            Test::Protocol(values("protocol", list, |text| Ok(protocol::number(text)?))?)
        }
        Field::Interface(list) => Test::Interface(Globs::new(values("interface", list, glob)?)),
        Field::Direction(list) => {
            Test::Word(FlowWord::Direction, words("direction", list, &DIRECTIONS)?)
        }
        Field::Scope(list) => Test::Word(FlowWord::Scope, words("scope", list, &SCOPES)?),
        Field::State(list) => Test::Word(FlowWord::State, words("state", list, &STATES)?),
        Field::Plane(list) => Test::Word(FlowWord::Plane, words("plane", list, &PLANES)?),
        Field::Verdict(list) => Test::Word(FlowWord::Verdict, words("verdict", list, &VERDICTS)?),
        Field::Service(list) => Test::Service(values("service", list, ServiceName::parse)?),
        Field::Supplement(wanted) => Test::Supplement(*wanted),
        Field::IpVersion(version @ (4 | 6)) => Test::IpVersion(*version),
        Field::IpVersion(version) => return Err(FilterError::IpVersion(*version)),
        Field::Process(_)
        | Field::Cgroup(_)
        | Field::Namespace(_)
        | Field::Pod(_)
        | Field::Workload(_)
        | Field::Node(_)
        | Field::Selector(_)
        | Field::Attribution(_)
        | Field::Kind(_)
        | Field::Container(_)
        | Field::Zone(_) => return Err(FilterError::UnknownField),
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

fn wholes(field: &'static str, list: &Strings) -> Result<Vec<String>, FilterError> {
    values(field, list, |text| whole(field, text))
}

fn words(
    field: &'static str,
    list: &Strings,
    allowed: &'static [&'static str],
) -> Result<Vec<&'static str>, FilterError> {
    values(field, list, |text| {
        let word = allowed.iter().find(|word| word.eq_ignore_ascii_case(text));
        word.copied().ok_or_else(|| FilterError::Word {
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

fn comm(text: &str) -> String {
    let mut end = text.len().min(COMM_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// A cgroup's path without its leading slash.
pub(crate) fn below_root(path: &str) -> &str {
    path.strip_prefix('/').unwrap_or(path)
}
