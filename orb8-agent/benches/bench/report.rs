//! Rows of figures: a table for people, `target/bench.json` for programs; and the account of what
//! was sent against what was reported.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use orb8_proto::v1::AgentStatus;
use serde::Serialize;

use crate::bed::Bed;
use orb8_util::stats::{Interval, Verdict};

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// Stable over versions.
    pub(crate) name: String,
    /// The figure, net of the baseline where there is one; `null` if it could not be taken.
    pub(crate) value: Option<f64>,
    /// `ns`, `events/s`, `ms`, `MiB`, `% of a core`, ...
    pub(crate) unit: &'static str,
    /// What it was measured against in the same run.
    pub(crate) baseline: Option<f64>,
    /// The most (or least) that is wanted, if anything is.
    pub(crate) goal: Option<String>,
    /// Whether the goal is met; `null` without a goal, or where the run does not decide it.
    pub(crate) pass: Option<bool>,
    /// 95 % of a median of pairs.
    #[serde(skip_serializing_if = "Option::is_none")]
    interval: Option<[f64; 2]>,
    /// What the same pairs say where nothing differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    noise: Option<[f64; 2]>,
    /// The figure lies inside the noise: no difference was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    undecided: Option<bool>,
    /// Pairs behind the median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pairs: Option<usize>,
}

/// Which side of the goal is good.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
    Within(f64),
    None,
}

fn rounded(value: f64) -> f64 {
    (value * 10_000.0).round() / 10_000.0
}

impl Row {
    pub(crate) fn new(name: impl Into<String>, value: f64, unit: &'static str, goal: Goal) -> Self {
        let (text, pass) = match goal {
            Goal::AtMost(limit) => (Some(format!("<= {limit}")), Some(value <= limit)),
            Goal::AtLeast(limit) => (Some(format!(">= {limit}")), Some(value >= limit)),
            Goal::Within(limit) => (Some(format!("+-{limit}")), Some(value.abs() <= limit)),
            Goal::None => (None, None),
        };
        Self {
            name: name.into(),
            value: Some(rounded(value)),
            unit,
            baseline: None,
            goal: text,
            pass,
            interval: None,
            noise: None,
            undecided: None,
            pairs: None,
        }
    }

    /// A ratio from pairs, as they were judged.
    pub(crate) fn judged(name: &str, verdict: &Verdict, goal: f64, pairs: usize) -> Self {
        let both = |of: Interval| Some([rounded(of.low), rounded(of.high)]);
        Self {
            pass: verdict.pass,
            interval: both(verdict.found.interval),
            noise: both(verdict.found.noise),
            undecided: Some(verdict.undecided),
            pairs: Some(pairs),
            ..Self::new(name, verdict.found.median, "ratio", Goal::AtLeast(goal))
        }
    }

    pub(crate) fn against(mut self, baseline: f64) -> Self {
        self.baseline = Some(rounded(baseline));
        self
    }

    /// A figure that could not be taken; a goal that was not shown is not met.
    fn failed(name: &str, why: &str) -> Self {
        Self {
            value: None,
            goal: Some(format!("not measured: {why}")),
            pass: Some(false),
            ..Self::new(name, 0.0, "", Goal::None)
        }
    }

    fn print(&self) {
        let number = |v: Option<f64>| v.map_or_else(|| "-".to_owned(), |v| format!("{v:.3}"));
        let pass = match (self.pass, self.undecided) {
            (Some(true), _) => "yes",
            (Some(false), _) => "NO",
            (None, Some(true)) => "undecided",
            (None, Some(false)) => "open",
            (None, None) => "",
        };
        println!(
            "{:<30} {:>12} {:<12} {:>12} {:>9}  {pass}",
            self.name,
            number(self.value),
            self.unit,
            number(self.baseline),
            self.goal.as_deref().unwrap_or("-"),
        );
        if let (Some([low, high]), Some([quiet, loud])) = (self.interval, self.noise) {
            println!("    95 % {low:.3} to {high:.3}, noise {quiet:.3} to {loud:.3}");
        }
    }
}

/// Packets and their IP bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

impl Amount {
    pub(crate) fn add(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

/// What is measured, what was, and what was missing or doubled meanwhile.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
    /// Parts of names; none means all.
    only: Vec<String>,
    /// Fewer and shorter runs: to see that everything works, not for figures.
    pub(crate) quick: bool,
    sent: Amount,
    wrong: Amount,
}

impl Report {
    /// From the arguments of the program; `--bench` is cargo's.
    pub(crate) fn new(arguments: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let (flags, only): (Vec<_>, Vec<_>) = arguments.partition(|a| a.starts_with('-'));
        if let Some(unknown) = flags.iter().find(|flag| !matches!(&***flag, "--quick" | "--bench"))
        {
            anyhow::bail!("{unknown} is unknown: there are --quick and parts of rows' names");
        }
        println!(
            "{:<30} {:>12} {:<12} {:>12} {:>9}  pass",
            "name", "value", "unit", "baseline", "goal"
        );
        Ok(Self { only, quick: flags.iter().any(|flag| flag == "--quick"), ..Self::default() })
    }

    /// Whether a row was asked for.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part.as_str()))
    }

    pub(crate) fn push(&mut self, row: Row) {
        row.print();
        self.rows.push(row);
    }

    /// Takes the rows of `names` that were asked for, all at once; what fails says so in each of them,
    /// and the next ones are measured all the same.
    pub(crate) fn measure(
        &mut self,
        names: &[&str],
        part: impl FnOnce(&mut Self) -> anyhow::Result<Vec<Row>>,
    ) {
        if !names.iter().any(|name| self.wants(name)) {
            return;
        }
        let result = catch_unwind(AssertUnwindSafe(|| part(self)))
            .unwrap_or_else(|_told| Err(anyhow::anyhow!("it panicked, see above")));
        match result {
            Ok(rows) => rows.into_iter().for_each(|row| self.push(row)),
            Err(error) => {
                let why = format!("{error:#}");
                names.iter().for_each(|name| self.push(Row::failed(name, &why)));
            }
        }
    }

    /// Books what was sent under the eyes of an agent against what it accounts for; its status when
    /// that is known.
    pub(crate) fn compare(
        &mut self,
        what: &str,
        sent: Amount,
        bed: &Bed,
    ) -> anyhow::Result<AgentStatus> {
        let (accounted, status) = bed.accounted(sent)?;
        self.book(what, sent, accounted);
        Ok(status)
    }

    /// Books what was sent against what was accounted for.
    pub(crate) fn book(&mut self, what: &str, sent: Amount, accounted: Amount) {
        self.sent.add(sent);
        let wrong = Amount {
            packets: sent.packets.abs_diff(accounted.packets),
            bytes: sent.bytes.abs_diff(accounted.bytes),
        };
        if wrong != Amount::default() {
            println!("    {what}: sent {sent:?}, reported or in the ledger {accounted:?}");
        }
        self.wrong.add(wrong);
    }

    /// Adds the account and writes all rows.
    pub(crate) fn finish(mut self) -> anyhow::Result<PathBuf> {
        if self.sent.packets > 0 {
            let (sent, wrong) = (self.sent, self.wrong);
            for (name, wrong, sent, unit) in [
                ("lost_or_doubled", wrong.packets, sent.packets, "packets"),
                ("lost_or_doubled_bytes", wrong.bytes, sent.bytes, "bytes"),
            ] {
                let row = Row::new(name, wrong as f64, unit, Goal::AtMost(0.0));
                self.push(row.against(sent as f64));
            }
        }
        anyhow::ensure!(
            !self.rows.is_empty(),
            "no row is called {}; docs/benchmark.md names all",
            self.only.join(" or ")
        );
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?;
        let path = root.join("target/bench.json");
        std::fs::write(&path, serde_json::to_string_pretty(&self.rows)?)?;
        Ok(path)
    }
}
