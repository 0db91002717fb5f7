//! Figures as a table for people and as JSON for programs. Says nothing that `judge` has not said.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::figures::{Cost, Figures, MIB};
use super::judge::judge;
use crate::flow::Total;

/// Headings of the columns.
const HEADINGS: [&str; 17] = [
    "SCENARIO",
    "SECONDS",
    "OFFERED",
    "FLOWS",
    "OPENED",
    "REPORTED",
    "FILTERED",
    "REJECTED",
    "LOST",
    "LEDGER",
    "MEMORY_MIB",
    "GROWTH",
    "ANSWER_MS",
    "RECOVERED_S",
    "PROGRAM_NS",
    "PACE",
    "VERDICT",
];
/// Columns that are words; the others are figures and stand to the right.
const WORDS: [usize; 3] = [0, 9, 16];

/// All scenarios, a line each, and below what was lost and what is wrong.
#[must_use]
pub fn table(all: &[Figures]) -> String {
    let rows: Vec<[String; 17]> = all.iter().map(row).collect();
    let headings = HEADINGS.map(str::to_owned);
    let widths: Vec<usize> = (0..HEADINGS.len())
        .map(|column| {
            rows.iter().chain([&headings]).map(|row| row[column].len()).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in [&headings].into_iter().chain(&rows) {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            if WORDS.contains(&column) {
                format!("{cell:<width$}")
            } else {
                format!("{cell:>width$}")
            }
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        let _infallible = writeln!(text, "{}", line.trim_end());
    }
    for figures in all {
        for lost in &figures.account.lost {
            let (name, total) = (&figures.name, lost.total);
            let _infallible =
                writeln!(text, "{name}: lost at {}, {}: {total}", lost.stage, lost.reason);
        }
        let (events, name) = (&figures.events, &figures.name);
        if events.lost + events.rejected > 0 {
            let (lost, produced) = (events.lost + events.rejected, events.produced);
            let _infallible =
                writeln!(text, "{name}: {lost} of {produced} events lost in the ring");
        }
        for wrong in judge(figures) {
            let _infallible = writeln!(text, "{name}: WRONG: {wrong}");
        }
    }
    text
}

fn row(figures: &Figures) -> [String; 17] {
    let count = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let mib = |bytes: u64| bytes as f64 / MIB as f64;
    let (account, memory, answers) = (&figures.account, &figures.memory, &figures.answers);
    let exact = account.accounted() == account.seen && account.seen == figures.offered.total;
    let pace = figures.pace.as_ref();
    [
        figures.name.clone(),
        format!("{:.0}", figures.seconds),
        figures.offered.total.packets.to_string(),
        count(figures.offered.flows),
        count(figures.offered.connections),
        account.reported.packets.to_string(),
        account.filtered.packets.to_string(),
        account.rejected.packets.to_string(),
        account.lost().packets.to_string(),
        if exact { "exact" } else { "WRONG" }.to_owned(),
        format!("{:.1}/{:.0}", mib(memory.max), mib(memory.limit)),
        format!("{:+.1}", memory.growth() as f64 / MIB as f64),
        format!("{:.0}/{:.0}", answers.p99_ms, answers.max_ms),
        figures.recovery.seconds.map_or_else(|| "never".to_owned(), |s| format!("{s:.1}")),
        program(&figures.cost),
        pace.map_or_else(|| "-".to_owned(), |pace| format!("{:.3}", pace.ratio())),
        if judge(figures).is_empty() { "ok" } else { "FAILED" }.to_owned(),
    ]
}

/// What a packet cost, and what it may.
fn program(cost: &Cost) -> String {
    let limit = cost.limit_ns().map(|limit| format!("/{limit:.0}")).unwrap_or_default();
    if cost.looks == 0 { "-".to_owned() } else { format!("{:.0}{limit}", cost.surely_ns) }
}

/// All figures, with what is wrong.
#[must_use]
pub fn json(all: &[Figures]) -> Value {
    all.iter().map(document).collect()
}

fn document(figures: &Figures) -> Value {
    let (account, events) = (&figures.account, &figures.events);
    let (memory, answers) = (&figures.memory, &figures.answers);
    let lost: Vec<Value> = account
        .lost
        .iter()
        .map(|lost| {
            json!({ "stage": lost.stage, "reason": lost.reason,
                "packets": lost.total.packets, "bytes": lost.total.bytes })
        })
        .collect();
    let wrong = judge(figures);
    json!({
        "name": figures.name,
        "seconds": figures.seconds,
        "offered": total(figures.offered.total),
        "flows": figures.offered.flows,
        "connections": figures.offered.connections,
        "seen": total(account.seen),
        "reported": total(account.reported),
        "filtered": total(account.filtered),
        "rejected": total(account.rejected),
        "lost": lost,
        "events": { "produced": events.produced, "processed": events.processed,
            "rejected": events.rejected, "lost": events.lost },
        "subscribers": figures.subscribers.iter().map(|one| json!({
            "offered": one.offered, "delivered": one.delivered, "filtered": one.filtered,
            "lost": one.lost, "queued": one.queued })).collect::<Vec<_>>(),
        "memory_max_bytes": memory.max,
        "memory_limit_bytes": memory.limit,
        "memory_growth_bytes": memory.growth(),
        "answers": answers.asked,
        "answer_max_ms": answers.max_ms,
        "answer_p99_ms": answers.p99_ms,
        "recovered_seconds": figures.recovery.seconds,
        "program_ns": figures.cost.median_ns,
        "program_surely_ns": figures.cost.surely_ns,
        "program_limit_ns": figures.cost.limit_ns(),
        "program_empty_ns": figures.cost.empty_ns,
        "program_looks": figures.cost.looks,
        "pace": figures.pace.map(|pace| json!({ "pairs": pace.pairs, "ratio": pace.ratio(),
            "watched_ns": pace.watched_ns, "alone_ns": pace.alone_ns,
            "surely_more_ns": pace.surely_more_ns })),
        "pass": wrong.is_empty(),
        "wrong": wrong,
    })
}

fn total(total: Total) -> Value {
    json!({ "packets": total.packets, "bytes": total.bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::soak::judge::tests::kept;

    fn scenes() -> [Figures; 2] {
        let mut broken = kept();
        broken.name = "steady".to_owned();
        broken.seconds = 5.4;
        broken.offered.flows = None;
        broken.offered.connections = Some(600_000);
        broken.account.reported.packets -= 1;
        broken.recovery.seconds = None;
        broken.pace = None;
        broken.events.lost = 0;
        broken.events.processed = broken.events.produced;
        broken.memory.late = 60 << 20;
        [kept(), broken]
    }

    #[test]
    fn the_table_shows_every_figure_and_what_is_wrong() {
        insta::assert_snapshot!(table(&scenes()));
    }

    #[test]
    fn the_json_has_the_verdict_of_the_judge() {
        let all = json(&scenes());
        assert_eq!((&all[0]["pass"], &all[1]["pass"]), (&json!(true), &json!(false)));
        assert_eq!(all[1]["wrong"], json!(judge(&scenes()[1])));
        insta::assert_snapshot!(serde_json::to_string_pretty(&all[0]).expect("JSON"));
    }
}
