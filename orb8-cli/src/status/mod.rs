//! `orb8 status`: asks agents how they are and prints it.
//!
//! An agent that answers is an answer, also if it says that it is not healthy.

mod governor;
mod identity;
pub mod page;
pub mod rows;

use orb8_query::rows::NodeRecord;
use orb8_query::{Client, StatusAnswer};
use serde::Serialize;
use serde_json::Value;

use crate::args::GlobalArgs;
use crate::error::{CliError, Exit, next_step};
use crate::output::table::{Cell, Heading, Table};
use crate::output::{Format, csv, fields, json, yaml};
use crate::terminal::Terminal;
use rows::{LEAVES, StatusRecord};

/// Examples of `orb8 status`.
pub const EXAMPLES: &str = "\
Examples:
  orb8 status
  orb8 status -o json | jq '.packet_ledger'
  orb8 --agent node-a:9090 --agent node-b:9090 status -o csv

Exits with 0 if every agent answered, also if one says that it is not healthy, and with 3 if some
did not answer. -o json prints one agent's object, or {\"agents\",\"nodes\"} if several were asked.";

/// Runs the verb.
///
/// # Errors
/// If no agent answers or the answer cannot be printed.
pub async fn run(global: &GlobalArgs, terminal: &mut Terminal<'_>) -> Result<Exit, CliError> {
    let paths = rows::paths();
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    fields::check(&global.fields, &paths, &[], &[])?;
    let client = Client::new(&global.agents, global.timeout);
    let answer = client.status().await;
    if answer.agents.is_empty() {
        return Err(CliError::NoAgent(answer.errors));
    }
    print(global, &answer, client.agents().len() > 1, terminal)?;
    terminal.out.flush()?;
    for error in &answer.errors {
        terminal.warn(format!("{error}; {}", next_step(error)));
    }
    let whole = answer.errors.is_empty() || global.allow_partial;
    Ok(if whole { Exit::Done } else { Exit::Partial })
}

/// The document when several agents were asked.
#[derive(Serialize)]
struct Document {
    agents: Vec<Value>,
    nodes: Vec<NodeRecord>,
}

fn print(
    global: &GlobalArgs,
    answer: &StatusAnswer,
    several: bool,
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    let values = || {
        answer.agents.iter().map(|status| {
            let value = serde_json::to_value(StatusRecord::from(status)).unwrap_or(Value::Null);
            if global.fields.is_empty() { value } else { fields::project(&value, &global.fields) }
        })
    };
    let document = || Document {
        agents: values().collect(),
        nodes: answer.nodes.iter().map(NodeRecord::from).collect(),
    };
    let out = &mut *terminal.out;
    match global.output {
        Format::Table | Format::Wide if global.fields.is_empty() => {
            for (index, status) in answer.agents.iter().enumerate() {
                if index > 0 {
                    terminal.out.write_all(b"\n")?;
                }
                page::write(status, global.output == Format::Wide, terminal)?;
            }
            Ok(())
        }
        Format::Table | Format::Wide => {
            let rows: Vec<Value> = values().collect();
            columns(global, &rows, terminal)
        }
        Format::Json if several => json::document(out, &document()),
        Format::Json => values().try_for_each(|value| json::document(out, &value)),
        Format::Jsonl => values().try_for_each(|value| json::line(out, &value)),
        Format::Yaml if several => yaml::document(out, &document(), false),
        Format::Yaml => values().try_for_each(|value| yaml::document(out, &value, false)),
        Format::Csv => {
            let chosen: Vec<String> = if global.fields.is_empty() {
                LEAVES.iter().map(ToString::to_string).collect()
            } else {
                global.fields.clone()
            };
            if !global.no_headers {
                csv::header(out, &chosen)?;
            }
            values().try_for_each(|value| csv::row(out, &chosen, &value))
        }
    }
}

/// `--fields` in a table: one line an agent.
fn columns(
    global: &GlobalArgs,
    rows: &[Value],
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    let heading = |field: &String| Heading { title: field.to_uppercase(), right: false };
    let mut table = Table::new(global.fields.iter().map(heading).collect(), terminal.out_color);
    let cell = |row: &Value, field: &String| Cell::new(csv::plain(fields::at(row, field)));
    let cells: Vec<Vec<Cell>> = rows
        .iter()
        .map(|row| global.fields.iter().map(|field| cell(row, field)).collect())
        .collect();
    table.write(&mut terminal.out, &cells, !global.no_headers)?;
    Ok(())
}
