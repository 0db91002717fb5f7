//! `orb8 flows --conversations`: one line for both directions and both ends of a conversation, in every
//! format.
//!
//! Folding is orb8-query's; nothing is added up here.

use std::time::Duration;

use anstyle::{AnsiColor, Style};
use orb8_proto::v1::{Endpoint, Process, ServiceUse, Sort};
use orb8_query::FlowAnswer;
use orb8_query::network::conversations::{self, Amount, Conversation, Party};
use orb8_query::rows::{ConversationRecord, LossRecord, NodeRecord};
use orb8_util::{duration, format, net};
use serde::Serialize;
use serde_json::Value;

use super::ends::{self, Mark};
use super::flows::print_lacks;
use super::legend::Legend;
use super::rows::{Look, pair, service_name, since};
use crate::args::GlobalArgs;
use crate::error::CliError;
use crate::output::table::{Cell, Heading, Table};
use crate::output::{Format, csv, fields, json, yaml};
use crate::terminal::Terminal;

/// Columns of `-o table`.
const TABLE: [&str; 12] = [
    "a",
    "b",
    "proto",
    "service",
    "a_to_b.packets",
    "a_to_b.bytes",
    "b_to_a.packets",
    "b_to_a.bytes",
    "records",
    "age",
    "last",
    "state",
];

/// Columns that `-o wide` adds.
const WIDE: [&str; 11] = [
    "a_addr",
    "b_addr",
    "attribution",
    "workload",
    "node",
    "zone",
    "nodes",
    "a_to_b.rate",
    "b_to_a.rate",
    "duration",
    "supplement.packets",
];

/// Columns that exist in tables only.
const COMPOSED: [&str; 14] = [
    "a",
    "b",
    "proto",
    "service",
    "age",
    "last",
    "a_addr",
    "b_addr",
    "attribution",
    "workload",
    "node",
    "zone",
    "a_to_b.rate",
    "b_to_a.rate",
];

/// Checks `--fields`.
///
/// # Errors
/// A usage error that names a field that conversations do not have.
pub fn check_fields(global: &GlobalArgs) -> Result<(), CliError> {
    let leaves = leaves();
    let leaves: Vec<&str> = leaves.iter().map(String::as_str).collect();
    let in_tables = [&COMPOSED[..], &["duration"]].concat();
    let composed = if global.output.is_table() { &in_tables[..] } else { &[] };
    fields::check(&global.fields, &leaves, composed, &in_tables)
}

/// Folds the flows of an answer and prints what comes out.
///
/// # Errors
/// If the output cannot be written.
pub fn print(
    global: &GlobalArgs,
    answer: &FlowAnswer,
    sort: Sort,
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    let mut talks = conversations::fold(&answer.flows);
    conversations::sort(&mut talks, sort);
    let out = &mut *terminal.out;
    let value = |talk: &Conversation| {
        let value = serde_json::to_value(ConversationRecord::from(talk)).unwrap_or(Value::Null);
        if global.fields.is_empty() { value } else { fields::project(&value, &global.fields) }
    };
    let document = || Document {
        conversations: talks.iter().map(value).collect(),
        nodes: answer.nodes.iter().map(NodeRecord::from).collect(),
        loss: answer.loss.iter().map(LossRecord::from).collect(),
    };
    match global.output {
        Format::Table | Format::Wide => table(global, &talks, terminal),
        Format::Json => json::document(out, &document()),
        Format::Yaml => yaml::document(out, &document(), false),
        Format::Jsonl => {
            talks.iter().try_for_each(|talk| json::line(out, &value(talk)))?;
            print_lacks(answer, out)
        }
        Format::Csv => {
            let columns = if global.fields.is_empty() { leaves() } else { global.fields.clone() };
            if !global.no_headers {
                csv::header(out, &columns)?;
            }
            talks.iter().try_for_each(|talk| csv::row(out, &columns, &value(talk)))
        }
    }
}

/// The document of `-o json` and `-o yaml`.
#[derive(Serialize)]
struct Document {
    conversations: Vec<Value>,
    nodes: Vec<NodeRecord>,
    loss: Vec<LossRecord>,
}

/// The paths of all single values, drawn from a conversation that has every object.
fn leaves() -> Vec<String> {
    let end = Some(Endpoint { process: Some(Process::default()), ..Endpoint::default() });
    let party = || Party { end: end.clone(), ..Party::default() };
    let whole = Conversation {
        a: party(),
        b: party(),
        service: Some(ServiceUse { backend: end.clone(), ..ServiceUse::default() }),
        ..Conversation::default()
    };
    let record = ConversationRecord::from(&whole);
    fields::paths(&serde_json::to_value(record).unwrap_or(Value::Null))
}

fn table(
    global: &GlobalArgs,
    talks: &[Conversation],
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    if talks.is_empty() {
        return Ok(());
    }
    let mut columns: Vec<&str> = global.fields.iter().map(String::as_str).collect();
    if columns.is_empty() {
        columns.extend(TABLE);
        if global.output == Format::Wide {
            columns.extend(WIDE);
        }
    }
    let look = Look { now_ns: (terminal.clock)(), zone: terminal.zone.clone() };
    let row =
        |talk: &Conversation| columns.iter().map(|column| cell(talk, column, &look)).collect();
    let cells: Vec<Vec<Cell>> = talks.iter().map(row).collect();
    let mut table =
        Table::new(columns.iter().map(|column| heading(column)).collect(), terminal.out_color);
    table.write(&mut terminal.out, &cells, !global.no_headers)?;
    terminal.out.flush()?;
    let mut legend = Legend::default();
    for talk in talks {
        legend.add(marks(talk, &columns));
    }
    legend.tell(terminal);
    Ok(())
}

fn heading(column: &str) -> Heading {
    let title = match column {
        "a_to_b.packets" => "PACKETS>",
        "a_to_b.bytes" => "BYTES>",
        "a_to_b.rate" => "RATE>",
        "b_to_a.packets" => "<PACKETS",
        "b_to_a.bytes" => "<BYTES",
        "b_to_a.rate" => "<RATE",
        "a_addr" => "A_ADDR",
        "b_addr" => "B_ADDR",
        "node" => "NODES",
        "nodes" => "SEEN_BY",
        "supplement.packets" => "SUPPLEMENT",
        other => other,
    };
    let numbers = ["records", "age", "last", "duration", "port"];
    let amounts = ["a_to_b.", "b_to_a.", "supplement."];
    let right =
        numbers.contains(&column) || amounts.iter().any(|amount| column.starts_with(amount));
    Heading { title: title.to_uppercase(), right }
}

fn cell(talk: &Conversation, column: &str, look: &Look) -> Cell {
    let ends = |text: fn(&Endpoint) -> String| {
        Cell::new(pair(talk.a.end.as_ref(), talk.b.end.as_ref(), text))
    };
    match column {
        "a" => party(&talk.a),
        "b" => party(&talk.b),
        "proto" if talk.fragment => Cell::new(format!("{}/fragment", talk.protocol)),
        "proto" => Cell::new(&talk.protocol),
        "service" => Cell::new(talk.service.as_ref().map(service_name).unwrap_or_default()),
        "records" if talk.supplement.packets > 0 => {
            Cell::new(format!("{}{}", talk.records, Mark::Supplement.sign()))
        }
        "records" => Cell::new(talk.records.to_string()),
        "age" => Cell::new(since(talk.first_seen_ns, look.now_ns)),
        "last" => Cell::new(since(talk.last_seen_ns, look.now_ns)),
        "duration" => {
            let nanos = u64::try_from(talk.duration_ns()).unwrap_or(0);
            Cell::new(duration::short(Duration::from_nanos(nanos)))
        }
        "state" => state(talk),
        "a_addr" => Cell::new(net::endpoint(&talk.a.ip, talk.a.port)),
        "b_addr" => Cell::new(net::endpoint(&talk.b.ip, talk.b.port)),
        "attribution" => ends(ends::attribution),
        "workload" => ends(ends::workload),
        "node" => ends(|end| end.node.clone()),
        "zone" => ends(|end| end.zone.clone()),
        "nodes" => Cell::new(talk.nodes.join(",")),
        "supplement.packets" => Cell::new(format::count(talk.supplement.packets)),
        column => match column.split_once('.') {
            Some(("a_to_b", what)) => amount(talk.a_to_b, what),
            Some(("b_to_a", what)) => amount(talk.b_to_a, what),
            _ => any(talk, column),
        },
    }
}

fn amount(amount: Amount, what: &str) -> Cell {
    Cell::new(match what {
        "packets" => format::count(amount.packets),
        "bytes" => format::bytes(amount.bytes),
        "packets_per_second" => format::packet_rate(amount.packets_per_second),
        _ => format::byte_rate(amount.bytes_per_second),
    })
}

/// What has no form of its own, as it is in JSON.
fn any(talk: &Conversation, path: &str) -> Cell {
    let value = serde_json::to_value(ConversationRecord::from(talk)).unwrap_or(Value::Null);
    Cell::new(csv::plain(fields::at(&value, path)))
}

fn party(party: &Party) -> Cell {
    let mut name = ends::name(party.end.as_ref(), &party.ip, party.port);
    name.extend(party.end.as_ref().and_then(ends::mark).map(Mark::sign));
    Cell::new(name)
}

fn state(talk: &Conversation) -> Cell {
    let color = |color: AnsiColor| Style::new().fg_color(Some(color.into()));
    if talk.service.as_ref().is_some_and(|service| service.verdict == "no_endpoints") {
        Cell::new("no_endpoints").style(color(AnsiColor::Red))
    } else if talk.active {
        Cell::new("active").style(color(AnsiColor::Green))
    } else {
        Cell::new("ended").style(Style::new().dimmed())
    }
}

fn marks(talk: &Conversation, columns: &[&str]) -> impl Iterator<Item = Mark> {
    let has = |column: &str| columns.contains(&column);
    let mark = |party: &Party| party.end.as_ref().and_then(ends::mark);
    let supplement = (talk.supplement.packets > 0).then_some(Mark::Supplement);
    [
        mark(&talk.a).filter(|_| has("a")),
        mark(&talk.b).filter(|_| has("b")),
        supplement.filter(|_| has("records")),
    ]
    .into_iter()
    .flatten()
}
