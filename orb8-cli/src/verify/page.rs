//! Comparisons as a table for people, or as a document.

use orb8_util::duration;
use serde::Serialize;

use super::judge::{Row, Verdict};
use crate::args::GlobalArgs;
use crate::error::CliError;
use crate::output::table::{Cell, Heading, Table};
use crate::output::{Format, csv, json, yaml};
use crate::status::page::{GREEN, RED, YELLOW};
use crate::terminal::Terminal;

/// What is printed.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[expect(missing_docs, reason = "docs/features/verify.md names each")]
pub struct Report {
    pub node_name: String,
    /// tc, socket or both.
    pub capture: String,
    pub window_seconds: f64,
    pub tolerance_percent: f64,
    /// The gravest of the rows'.
    pub verdict: Verdict,
    /// Why nothing was compared at all, if so; there are no rows then.
    pub reason: Option<String>,
    /// Packets that the agent says it lost within the window.
    pub lost_packets: u64,
    /// balanced or unbalanced: the agent's own account.
    pub ledger: String,
    pub rows: Vec<Row>,
}

impl Report {
    /// How many rows have a verdict.
    #[must_use]
    pub fn count(&self, verdict: Verdict) -> usize {
        self.rows.iter().filter(|row| row.verdict == verdict).count()
    }
}

/// The gravest verdict; without a comparison nothing is known.
#[must_use]
pub fn gravest(rows: &[Row]) -> Verdict {
    let any = |verdict| rows.iter().any(|row| row.verdict == verdict);
    match (any(Verdict::Differs), any(Verdict::Unknown), any(Verdict::Ok)) {
        (true, _, _) => Verdict::Differs,
        (false, false, true) => Verdict::Ok,
        (false, true, _) | (false, false, false) => Verdict::Unknown,
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
        Format::Table | Format::Wide if report.rows.is_empty() => Ok(()),
        Format::Table | Format::Wide => table(report, global, terminal),
        Format::Json => json::document(out, report),
        Format::Jsonl => report.rows.iter().try_for_each(|row| json::line(out, row)),
        Format::Yaml => yaml::document(out, report, false),
        Format::Csv => {
            let blank = Row::without("", "", Verdict::Unknown, String::new());
            csv::rows(out, global.no_headers, Some(&blank), &report.rows)
        }
    }
}

const TITLES: [(&str, bool); 12] = [
    ("SCOPE", false),
    ("DIRECTION", false),
    ("KERNEL_COUNTER", false),
    ("PACKETS", true),
    ("KERNEL_PACKETS", true),
    ("DIFFERENCE", true),
    ("BYTES", true),
    ("KERNEL_BYTES", true),
    ("DIFFERENCE", true),
    ("PERCENT", true),
    ("VERDICT", false),
    ("REASON", false),
];

fn table(
    report: &Report,
    global: &GlobalArgs,
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    let headings = TITLES.map(|(title, right)| Heading { title: title.to_owned(), right });
    let mut table = Table::new(headings.into(), terminal.out_color);
    let cells: Vec<Vec<Cell>> = report.rows.iter().map(cells).collect();
    table.write(&mut terminal.out, &cells, !global.no_headers)?;
    Ok(())
}

fn cells(row: &Row) -> Vec<Cell> {
    let scope = match row.kind {
        "host" => row.scope.clone(),
        kind => format!("{kind} {}", row.scope),
    };
    let figure = |value: Option<u64>| Cell::new(value.map(|it| it.to_string()).unwrap_or_default());
    let (verdict, style) = match row.verdict {
        Verdict::Ok => ("ok", GREEN),
        Verdict::Differs => ("differs", RED),
        Verdict::NotCompared => ("not compared", anstyle::Style::new()),
        Verdict::Unknown => ("unknown", YELLOW),
    };
    let percent = row.orb8_packets.map(|_| match row.difference_percent {
        Some(percent) => format!("{percent:.3}"),
        None => "all".to_owned(),
    });
    vec![
        Cell::new(scope),
        Cell::new(row.protocol.map_or_else(
            || row.direction.to_owned(),
            |protocol| format!("{} {protocol}", row.direction),
        )),
        Cell::new(&row.kernel_counter),
        figure(row.orb8_packets),
        figure(row.kernel_packets),
        difference(row.difference_packets, row.uncertain_packets),
        figure(row.orb8_bytes),
        figure(row.kernel_bytes),
        difference(row.difference_bytes, row.uncertain_bytes),
        Cell::new(percent.unwrap_or_default()),
        Cell::new(verdict).style(style),
        Cell::new(reason(row)),
    ]
}

fn difference(difference: Option<i64>, uncertain: Option<u64>) -> Cell {
    let Some(difference) = difference else { return Cell::new("") };
    Cell::new(match uncertain {
        None | Some(0) => format!("{difference:+}"),
        Some(uncertain) => format!("{difference:+} (±{uncertain})"),
    })
}

fn reason(row: &Row) -> String {
    let segments = (row.super_packet_segments > 0).then(|| {
        format!("{} segments were in super-packets in the kernel", row.super_packet_segments)
    });
    let parts: Vec<String> = segments.into_iter().chain(row.reason.clone()).collect();
    parts.join("; ")
}

/// One line that says how it came out.
#[must_use]
pub fn summary(report: &Report) -> String {
    let over = duration::short(std::time::Duration::from_secs_f64(report.window_seconds));
    format!(
        "over {over} on {}: {} agree within {} %, {} differ, {} could not be compared, {} are not comparable",
        report.node_name,
        report.count(Verdict::Ok),
        report.tolerance_percent,
        report.count(Verdict::Differs),
        report.count(Verdict::Unknown),
        report.count(Verdict::NotCompared),
    )
}
