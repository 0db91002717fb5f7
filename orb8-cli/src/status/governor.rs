//! Budgets, what is given up for them, and what became of the packets of the packet view.

use orb8_proto::v1::{AgentStatus, Governor, PacketView};
use orb8_util::{format, time};

use super::page::{YELLOW, lost};
use crate::output::table::Cell;
use crate::terminal::Terminal;

/// What is used, of how much.
pub(super) fn budgets(governor: &Governor) -> Cell {
    let percent = |part: f64| (part * 10_000.0).round() / 100.0;
    let budget = percent(governor.cpu_budget);
    let cpu = match governor.cpu_programs_by.as_str() {
        "" => format!("CPU not measured yet of {budget}%"),
        by => {
            let used = percent(governor.cpu_agent + governor.cpu_programs);
            format!("CPU {used}% of {budget}% (programs {by})")
        }
    };
    let mut text = format!(
        "{cpu}, memory {} of {}",
        format::bytes(governor.memory_bytes),
        format::bytes(governor.memory_budget_bytes)
    );
    if governor.ring_threshold > 0.0 {
        let [events, packets, threshold] =
            [governor.event_ring, governor.packet_ring, governor.ring_threshold].map(percent);
        text += &format!(", rings {events}% (events) and {packets}% (packets) of {threshold}%");
    }
    Cell::new(text)
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
    let mut rows =
        vec![row("matched", number(view.matched)), row("told, or stood for", number(view.told))];
    if view.untold > 0 {
        rows.push(row("not stood for yet", number(view.untold)));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_yet_is_not_shown_as_nothing() {
        let governor =
            Governor { cpu_budget: 0.01, memory_budget_bytes: 96 << 20, ..Governor::default() };
        assert_eq!(
            budgets(&governor),
            Cell::new("CPU not measured yet of 1%, memory 0B of 96.0MiB")
        );
        let record = crate::status::rows::GovernorRecord::from(&governor);
        assert_eq!((record.cpu_agent, record.cpu_programs), (None, None));
    }
}
