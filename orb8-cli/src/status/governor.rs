//! Budgets, what is given up for them, and what became of the packets of the packet view.

use orb8_proto::v1::{AgentStatus, Governor, PacketView};
use orb8_util::{format, time};

use super::page::{YELLOW, lost};
use crate::output::table::Cell;
use crate::terminal::Terminal;

/// What is used, of how much.
pub(super) fn budgets(governor: &Governor) -> Cell {
    let percent = |part: f64| (part * 10_000.0).round() / 100.0;
    Cell::new(format!(
        "CPU {}% of {}% (programs {}), memory {} of {}",
        percent(governor.cpu_agent + governor.cpu_programs),
        percent(governor.cpu_budget),
        governor.cpu_programs_by,
        format::bytes(governor.memory_bytes),
        format::bytes(governor.memory_budget_bytes)
    ))
}

/// What is given up, why and since when; none if nothing is.
pub(super) fn given_up(governor: &Governor, terminal: &Terminal<'_>) -> Option<Cell> {
    if governor.level == 0 {
        return None;
    }
    let since = time::rfc3339(governor.since_ns, &terminal.zone);
    let text = format!("{} ({} at {since})", governor.given_up.join("; "), governor.cause);
    Some(Cell::new(text).style(YELLOW))
}

/// Why fewer flows are held than are set.
pub(super) fn lowered(status: &AgentStatus) -> String {
    match status.max_flows_set {
        0 => String::new(),
        set => format!(" (ORB8_MAX_FLOWS is {set}, for which ORB8_MEMORY_BUDGET has no room)"),
    }
}

/// What became of the packets.
pub(super) fn packet_view(view: &PacketView) -> Vec<Vec<Cell>> {
    let row = |name: &str, count: Cell| vec![Cell::new(name), count];
    let number = |count: u64| Cell::new(count.to_string());
    let mut rows = vec![row("matched", number(view.matched)), row("told", number(view.told))];
    if view.untold > 0 {
        rows.push(row("sampled away", number(view.untold)));
    }
    for (name, count) in
        [("over the rate", view.rate_limited), ("lost: ring (ring_full)", view.ring_full)]
    {
        if count > 0 {
            rows.push(row(name, lost(count)));
        }
    }
    rows
}
