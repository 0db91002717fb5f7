//! Comparisons as a table for people, or as a document.

use orb8_util::format;
use serde::Serialize;

use super::cpu;
use super::judge::{Measure, Row, Verdict};
use crate::args::GlobalArgs;
use crate::error::CliError;
use crate::output::table::{Cell, Heading, Table};
use crate::output::{Format, csv, json, yaml};
use crate::status::page::{GREEN, RED};
use crate::terminal::Terminal;

/// What is printed.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[expect(missing_docs, reason = "docs/features/bench.md names each")]
pub struct Report {
    /// loopback, or where the far end was.
    pub target: String,
    /// Rounds that were completed, of so many that were asked for.
    pub rounds: usize,
    pub rounds_asked: u32,
    /// Of each load.
    pub duration_seconds: f64,
    pub rows: Vec<Row>,
    pub agent: AgentFigures,
}

/// What the agents said and took, all runs together.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "docs/features/bench.md names each")]
pub struct AgentFigures {
    pub version: String,
    /// tc, socket or both.
    pub capture: String,
    /// The median of the runs, of one core, while the loads ran.
    pub cpu_percent: Option<f64>,
    /// The most of any run, at the end of its loads.
    pub resident_bytes: u64,
    pub map_bytes: u64,
    /// Datagrams that were sent and that were received.
    pub datagrams: u64,
    /// As many as the agent counted of them.
    pub datagrams_counted: u64,
    /// What the agent says it lost.
    pub lost_packets: u64,
    pub lost_events: u64,
    /// balanced or unbalanced, the worse of all runs.
    pub ledger: String,
    /// Steps to keep to budgets, in both directions.
    pub governor_steps: u64,
    /// What was given up for that at the end of any run, one sentence each.
    pub given_up: Vec<String>,
    /// Why an agent did not see everything, if so.
    pub health_message: String,
}

impl Report {
    /// True if nothing is missing from what the agent counted.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let agent = &self.agent;
        let lost = agent.lost_packets > 0 || agent.lost_events > 0;
        !lost && agent.datagrams_counted == agent.datagrams && agent.ledger != "unbalanced"
    }
}

/// Writes the report.
///
/// # Errors
/// If the stream cannot be written to.
pub fn write(
    report: &Report,
    global: &GlobalArgs,
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    let out = &mut *terminal.out;
    match global.output {
        Format::Table | Format::Wide if report.rounds == 0 => Ok(()),
        Format::Table | Format::Wide => table(report, global, terminal),
        Format::Json => json::document(out, report),
        Format::Jsonl => report.rows.iter().try_for_each(|row| json::line(out, row)),
        Format::Yaml => yaml::document(out, report, false),
        Format::Csv => csv::rows(out, global.no_headers, None, &report.rows),
    }
}

const TITLES: [(&str, bool); 7] = [
    ("WHAT", false),
    ("BASELINE", true),
    ("TRACED", true),
    ("RATIO", true),
    ("INTERVAL_95%", false),
    ("NOISE", false),
    ("VERDICT", false),
];

fn table(
    report: &Report,
    global: &GlobalArgs,
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    let headings = TITLES.map(|(title, right)| Heading { title: title.to_owned(), right });
    let mut table = Table::new(headings.into(), terminal.out_color);
    let mut rows: Vec<Vec<Cell>> = report.rows.iter().map(cells).collect();
    let agent = &report.agent;
    let cpu = agent.cpu_percent.map(|percent| format!("{percent:.2}%"));
    rows.push(of_agent("agent CPU, of a core", cpu));
    rows.push(of_agent("agent memory", Some(format::bytes(agent.resident_bytes))));
    rows.push(of_agent("agent kernel maps", Some(format::bytes(agent.map_bytes))));
    table.write(&mut terminal.out, &rows, !global.no_headers)?;
    Ok(())
}

fn of_agent(what: &str, figure: Option<String>) -> Vec<Cell> {
    let none = || Cell::new("");
    let why = match figure {
        Some(_) => String::new(),
        None => not_measured(cpu::UNTOLD),
    };
    let figure = Cell::new(figure.unwrap_or_default());
    vec![Cell::new(what), none(), figure, none(), none(), none(), Cell::new(why)]
}

fn not_measured(why: &str) -> String {
    format!("not measured: {why}")
}

fn cells(row: &Row) -> Vec<Cell> {
    let value = |value: Option<f64>| {
        Cell::new(value.map(|value| figure(row.measure, value)).unwrap_or_default())
    };
    let range = |low: Option<f64>, high: Option<f64>| {
        let both = low.zip(high).map(|(low, high)| format!("{low:.3}..{high:.3}"));
        Cell::new(both.unwrap_or_default())
    };
    vec![
        Cell::new(label(row.measure)),
        value(row.baseline),
        value(row.traced),
        Cell::new(row.ratio.map(|ratio| format!("{ratio:.3}")).unwrap_or_default()),
        range(row.interval_low, row.interval_high),
        range(row.noise_low, row.noise_high),
        verdict(row),
    ]
}

const fn label(measure: Measure) -> &'static str {
    match measure {
        Measure::TcpRate => "TCP throughput",
        Measure::TcpCpu => "TCP, CPU for a GiB",
        Measure::UdpRate => "UDP, 64-byte datagrams",
        Measure::UdpCpu => "UDP, CPU for a million",
        Measure::LatencyP50 => "answer over TCP, p50",
        Measure::LatencyP99 => "answer over TCP, p99",
    }
}

fn figure(measure: Measure, value: f64) -> String {
    match measure {
        Measure::TcpRate => format::byte_rate(value),
        Measure::UdpRate => format::packet_rate(value),
        Measure::TcpCpu | Measure::UdpCpu => format!("{value:.3}s"),
        Measure::LatencyP50 | Measure::LatencyP99 => format!("{value:.1}us"),
    }
}

fn verdict(row: &Row) -> Cell {
    let percent = row.worse_percent.unwrap_or_default().abs();
    let (worse, better) = match row.measure {
        Measure::TcpCpu | Measure::UdpCpu => ("dearer", "cheaper"),
        _ => ("slower", "faster"),
    };
    let reason = row.reason.as_deref();
    match row.verdict {
        Verdict::Undecided => {
            let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
            Cell::new(format!("undecided{reason}"))
        }
        Verdict::NotMeasured => Cell::new(not_measured(reason.unwrap_or_default())),
        Verdict::Worse => Cell::new(format!("{worse} by {percent:.1}%")).style(RED),
        Verdict::Better => Cell::new(format!("{better} by {percent:.1}%")).style(GREEN),
    }
}

/// What a person should know beside the figures, and what is missing.
pub fn conclude(report: &Report, terminal: &mut Terminal<'_>) {
    if report.rounds == 0 {
        terminal.note("ended before a round was complete, so there is nothing to compare");
        return;
    }
    let agent = &report.agent;
    let rounds = if report.rounds == 1 { "round" } else { "rounds" };
    terminal.note(format!(
        "{} {rounds} over {}, the agent counted at {}: {} of {} datagrams, {} packets and {} events lost",
        report.rounds,
        report.target,
        place(&agent.capture),
        agent.datagrams_counted,
        agent.datagrams,
        agent.lost_packets,
        agent.lost_events,
    ));
    if report.target == super::LOOPBACK {
        terminal.note(
            "over loopback each packet is counted twice, as it is sent and as it is received, and no \
             wire takes any time: this is the dearest case",
        );
    }
    if !agent.health_message.is_empty() {
        terminal.warn(format!("the agent was not healthy: {}", agent.health_message));
    }
    if let Some(sparing) = sparing(agent) {
        terminal.warn(sparing);
    }
    if report.is_whole() {
        return;
    }
    if agent.ledger == "unbalanced" {
        terminal.warn("an agent's own packet ledger did not add up");
    } else if agent.datagrams_counted != agent.datagrams && agent.lost_packets == 0 {
        terminal.warn("the agent did not count all datagrams once and says of no loss");
    } else {
        let setting =
            if agent.lost_packets > 0 { "ORB8_MAX_FLOWS" } else { "ORB8_RING_BUFFER_SIZE" };
        terminal.warn(format!("the agent lost something and says so; {setting} may be too small"));
    }
}

/// What agents did to keep to their budgets: without that, they would have cost something else.
fn sparing(agent: &AgentFigures) -> Option<String> {
    let steps = match agent.governor_steps {
        0 if agent.given_up.is_empty() => return None,
        1 => "1 step".to_owned(),
        steps => format!("{steps} steps"),
    };
    let given_up = match agent.given_up.join("; ") {
        none if none.is_empty() => "nothing was given up at the end of a run".to_owned(),
        some => format!("given up at the end of a run: {some}"),
    };
    Some(format!("the agents took {steps} to keep to their budgets; {given_up}"))
}

/// Where an agent counts, in words.
pub(super) fn place(capture: &str) -> &str {
    match capture {
        "socket" => "sockets",
        "tc" => "interfaces",
        "both" => "sockets and interfaces",
        other => other,
    }
}
