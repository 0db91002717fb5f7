//! Rows of figures: a table for people, `target/bench.json` for programs.

use std::path::PathBuf;

use serde::Serialize;

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// Stable over versions.
    pub(crate) name: String,
    /// The figure, net of the baseline where there is one; `null` if it could not be taken.
    pub(crate) value: Option<f64>,
    /// `ns`, `events/s`, `ms`, `MiB`, `% of a core`, ...
    pub(crate) unit: &'static str,
    /// What it was measured against in the same run, in the same unit.
    pub(crate) baseline: Option<f64>,
    /// The most (or least) that is wanted, if anything is.
    pub(crate) goal: Option<String>,
    /// Whether the goal is met; `null` without a goal or a value.
    pub(crate) pass: Option<bool>,
}

/// Which side of the goal is good.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
    None,
}

impl Row {
    pub(crate) fn new(name: impl Into<String>, value: f64, unit: &'static str, goal: Goal) -> Self {
        let (text, pass) = match goal {
            Goal::AtMost(limit) => (Some(format!("<= {limit}")), Some(value <= limit)),
            Goal::AtLeast(limit) => (Some(format!(">= {limit}")), Some(value >= limit)),
            Goal::None => (None, None),
        };
        let value = Some((value * 1000.0).round() / 1000.0);
        Self { name: name.into(), value, unit, baseline: None, goal: text, pass }
    }

    pub(crate) fn against(mut self, baseline: f64) -> Self {
        self.baseline = Some((baseline * 1000.0).round() / 1000.0);
        self
    }

    /// A figure that could not be taken; a goal that was not shown is not met.
    pub(crate) fn failed(name: &str, unit: &'static str, why: &str) -> Self {
        println!("{name}: not measured: {why}");
        Self {
            name: name.to_owned(),
            value: None,
            unit,
            baseline: None,
            goal: Some(format!("not measured: {why}")),
            pass: Some(false),
        }
    }
}

/// Prints the header of the table.
pub(crate) fn header() {
    println!(
        "{:<34} {:>14} {:<12} {:>12} {:>12}  pass",
        "name", "value", "unit", "baseline", "goal"
    );
}

/// Prints one row as soon as it is known.
pub(crate) fn print(row: &Row) {
    let number = |v: Option<f64>| v.map_or_else(|| "-".to_owned(), |v| format!("{v:.2}"));
    let pass = match row.pass {
        Some(true) => "yes",
        Some(false) => "NO",
        None => "",
    };
    println!(
        "{:<34} {:>14} {:<12} {:>12} {:>12}  {pass}",
        row.name,
        number(row.value),
        row.unit,
        number(row.baseline),
        row.goal.as_deref().unwrap_or("-"),
    );
}

/// Writes all rows.
pub(crate) fn write(rows: &[Row]) -> anyhow::Result<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bench.json");
    std::fs::write(&path, serde_json::to_string_pretty(rows)?)?;
    Ok(path)
}

/// The median of some samples.
pub(crate) fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}
