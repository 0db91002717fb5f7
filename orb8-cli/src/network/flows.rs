//! `orb8 flows`: asks for flows, prints them, says what is missing; with `--follow` goes on with
//! events.

use std::fs::File;
use std::io::Write;

use orb8_proto::v1::{NetworkFlow, QueryFlowsRequest};
use orb8_query::file::{self, FileError};
use orb8_query::network::sort;
use orb8_query::rows::{FlowRecord, LossRecord, NodeRecord};
use orb8_query::{Client, FlowAnswer};
use serde::Serialize;
use serde_json::Value;

use super::args::FlowsArgs;
use super::columns::{self, COMPOSED, LEAVES, TABLE, WIDE};
use super::conversations;
use super::explain;
use super::legend::Legend;
use super::rows::{self, Line, Look};
use super::trace;
use crate::args::GlobalArgs;
use crate::error::{CliError, Exit, next_step};
use crate::output::table::Table;
use crate::output::{Format, csv, fields, json, yaml};
use crate::terminal::Terminal;

/// Runs the verb.
///
/// # Errors
/// If there is no answer or it cannot be printed.
pub async fn run(
    global: &GlobalArgs,
    args: &FlowsArgs,
    terminal: &mut Terminal<'_>,
) -> Result<Exit, CliError> {
    let request = args.request((terminal.clock)())?;
    if args.follow {
        return trace::follow(global, args, &request, terminal).await;
    }
    if args.conversations {
        conversations::check_fields(global)?;
    } else {
        check_fields(global)?;
    }
    let mut answer = match &global.file {
        Some(path) => from_file(path, args, &request, terminal)?,
        None => {
            let answer = Client::new(&global.agents, global.timeout).query_flows(&request).await;
            if answer.errors.len() == answer.nodes.len() {
                return Err(CliError::NoAgent(answer.errors));
            }
            explain::contexts(&answer, args, &request, &[], terminal);
            answer
        }
    };
    if args.conversations {
        let sort = args.sort.or(request.sort).unwrap_or_default();
        conversations::print(global, &answer, sort, terminal)?;
    } else {
        if args.last.is_some()
            && let Some(sort) = args.sort
        {
            sort::sort_and_limit(&mut answer.flows, sort, 0);
        }
        print(global, &answer, terminal)?;
    }
    terminal.out.flush()?;
    explain::cut_short(&answer, args, terminal);
    explain::passing(&answer, args, terminal);
    explain::missing(&answer, &[], terminal);
    Ok(if answer.is_complete() || global.allow_partial { Exit::Done } else { Exit::Partial })
}

fn from_file(
    path: &str,
    args: &FlowsArgs,
    request: &QueryFlowsRequest,
    terminal: &mut Terminal<'_>,
) -> Result<FlowAnswer, CliError> {
    let name = if path == "-" { "stdin" } else { path };
    let request = &QueryFlowsRequest { filter: args.filter.given(), ..request.clone() };
    let failed = |cause: FileError| CliError::File { path: name.to_owned(), cause };
    let read = if path == "-" {
        file::query(&mut terminal.input, request)
    } else {
        let opened = File::open(path).map_err(|error| failed(FileError::Read(error)))?;
        file::query(opened, request)
    };
    let read = read.map_err(failed)?;
    if read.flows.is_empty() {
        explain::file(name, read.held, args, request, terminal);
    }
    let mut nodes = read.nodes;
    nodes.extend(read.cut_off_at_line.map(|line| explain::cut_off_node(name, line)));
    Ok(FlowAnswer {
        flows: read.flows,
        nodes,
        loss: read.loss,
        matched: read.matched,
        ..FlowAnswer::default()
    })
}

fn check_fields(global: &GlobalArgs) -> Result<(), CliError> {
    let composed = if global.output.is_table() { &COMPOSED[..] } else { &[] };
    fields::check(&global.fields, &LEAVES, composed, &COMPOSED)
}

/// The document of `-o json` and `-o yaml`.
#[derive(Serialize)]
struct Document {
    flows: Vec<Value>,
    nodes: Vec<NodeRecord>,
    loss: Vec<LossRecord>,
}

fn print(
    global: &GlobalArgs,
    answer: &FlowAnswer,
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    let out = &mut *terminal.out;
    match global.output {
        Format::Table | Format::Wide => print_table(global, answer, terminal),
        Format::Json => json::document(out, &document(global, answer)),
        Format::Yaml => yaml::document(out, &document(global, answer), false),
        Format::Jsonl => {
            answer.flows.iter().try_for_each(|flow| {
                if global.fields.is_empty() {
                    json::line(out, &FlowRecord::from(flow))
                } else {
                    json::line(out, &fields::project(Line::flow(flow).json(), &global.fields))
                }
            })?;
            print_lacks(answer, out)
        }
        Format::Csv => {
            let columns = csv_columns(global);
            if !global.no_headers {
                csv::header(out, &columns)?;
            }
            answer
                .flows
                .iter()
                .try_for_each(|flow| csv::row(out, &columns, Line::flow(flow).json()))
        }
    }
}

/// A line of jsonl that is no flow.
#[derive(Serialize)]
struct Lack<T> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(flatten)]
    record: T,
}

/// Writes what the answer lacks: a file of flows alone would pass for a whole answer.
pub(super) fn print_lacks(answer: &FlowAnswer, out: &mut dyn Write) -> Result<(), CliError> {
    for node in answer.nodes.iter().filter(|node| node.state != "ok" || !node.complete) {
        json::line(out, &Lack { kind: "node", record: NodeRecord::from(node) })?;
    }
    for loss in &answer.loss {
        json::line(out, &Lack { kind: "loss", record: LossRecord::from(loss) })?;
    }
    Ok(())
}

fn document(global: &GlobalArgs, answer: &FlowAnswer) -> Document {
    let flow = |flow: &NetworkFlow| {
        let line = Line::flow(flow);
        if global.fields.is_empty() {
            line.json().clone()
        } else {
            fields::project(line.json(), &global.fields)
        }
    };
    Document {
        flows: answer.flows.iter().map(flow).collect(),
        nodes: answer.nodes.iter().map(NodeRecord::from).collect(),
        loss: answer.loss.iter().map(LossRecord::from).collect(),
    }
}

/// The columns of csv: those asked for, else all.
pub(super) fn csv_columns(global: &GlobalArgs) -> Vec<String> {
    if global.fields.is_empty() {
        LEAVES.iter().map(ToString::to_string).collect()
    } else {
        global.fields.clone()
    }
}

/// The columns of a table: those asked for, else the usual ones, with the node where several are.
pub(super) fn table_columns(global: &GlobalArgs, several_nodes: bool) -> Vec<&str> {
    if !global.fields.is_empty() {
        return global.fields.iter().map(String::as_str).collect();
    }
    let mut columns = Vec::new();
    if several_nodes {
        columns.push("node_name");
    }
    columns.extend(TABLE);
    if global.output == Format::Wide {
        columns.extend(WIDE);
    }
    columns
}

fn print_table(
    global: &GlobalArgs,
    answer: &FlowAnswer,
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    if answer.flows.is_empty() {
        // A header over nothing says less than the reason, which is on stderr.
        return Ok(());
    }
    let several = answer.nodes.len() > 1 || rows::of_several_nodes(&answer.flows);
    let columns = table_columns(global, several);
    let look = Look { now_ns: (terminal.clock)(), zone: terminal.zone.clone() };
    let cells: Vec<_> =
        answer.flows.iter().map(|flow| Line::flow(flow).cells(&columns, &look)).collect();
    let mut table = Table::new(columns::headings(&columns), terminal.out_color);
    table.write(&mut terminal.out, &cells, !global.no_headers)?;
    let mut legend = Legend::default();
    for flow in &answer.flows {
        legend.add(Line::flow(flow).marks(&columns));
    }
    terminal.out.flush()?;
    legend.tell(terminal);
    Ok(())
}

/// Tells about an agent that did not answer.
pub(super) fn warn_missing(errors: &[orb8_query::AgentError], terminal: &mut Terminal<'_>) {
    for error in errors {
        terminal.warn(format!("{error}; {}", next_step(error)));
    }
}
