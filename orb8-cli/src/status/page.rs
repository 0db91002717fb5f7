//! The page of `orb8 status` for people: one agent, from its health down to its notices.
//!
//! Shows exact counts: a ledger that is rounded cannot be checked.

use std::time::Duration;

use anstyle::{AnsiColor, Style};
use orb8_proto::v1::{
    AgentStatus, Check, Count, EventLedger, Interface, Loss, PacketLedger, ReasonCount,
};
use orb8_util::{duration, format, time};

use super::{governor, identity};
use crate::error::CliError;
use crate::output::table::{Cell, Heading, Table};
use crate::terminal::Terminal;

pub(crate) const GREEN: Style = Style::new().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Green)));
pub(crate) const YELLOW: Style =
    Style::new().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Yellow)));
pub(crate) const RED: Style =
    Style::new().bold().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Red)));

/// Writes the page; `wide` adds the checks that passed and each pod with its plane.
///
/// # Errors
/// If stdout cannot be written to.
pub fn write(
    status: &AgentStatus,
    wide: bool,
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    let mut page = Page { terminal };
    page.list(&summary(status, page.terminal))?;
    page.checks(&status.checks, wide)?;
    page.interfaces(&status.interfaces)?;
    page.identity(status, wide)?;
    if let Some(ledger) = &status.packet_ledger {
        let title = title("Packet ledger", &ledger.state);
        page.section(&title, &["", "PACKETS", "BYTES"], packet_ledger(ledger))?;
    }
    if let Some(ledger) = &status.event_ledger {
        let title = title("Event ledger", &ledger.state);
        page.section(&title, &["", "EVENTS"], event_ledger(ledger))?;
    }
    if let Some(view) = status.packet_view.filter(|view| view.matched > 0) {
        page.section(&[bold("Packet view")], &["", "PACKETS"], governor::packet_view(&view))?;
    }
    page.subscribers(status)?;
    page.notices(status)
}

struct Page<'a, 'b> {
    terminal: &'a mut Terminal<'b>,
}

impl Page<'_, '_> {
    fn list(&mut self, rows: &[Vec<Cell>]) -> Result<(), CliError> {
        let mut table = Table::new(left(&["", ""]), self.terminal.out_color);
        Ok(table.write(&mut self.terminal.out, rows, false)?)
    }

    fn title(&mut self, title: &[Cell]) -> Result<(), CliError> {
        self.terminal.out.write_all(b"\n")?;
        let mut line = Table::new(left(&vec![""; title.len()]), self.terminal.out_color);
        Ok(line.row(&mut self.terminal.out, title)?)
    }

    /// A titled table whose first column is words and whose others are numbers.
    fn section(
        &mut self,
        title: &[Cell],
        headings: &[&str],
        rows: Vec<Vec<Cell>>,
    ) -> Result<(), CliError> {
        let headings = headings.iter().enumerate();
        let headings =
            headings.map(|(index, title)| Heading { title: (*title).to_owned(), right: index > 0 });
        self.table(title, headings.collect(), &rows)
    }

    fn table(
        &mut self,
        title: &[Cell],
        headings: Vec<Heading>,
        rows: &[Vec<Cell>],
    ) -> Result<(), CliError> {
        self.title(title)?;
        let mut table = Table::new(headings, self.terminal.out_color).indented("  ");
        Ok(table.write(&mut self.terminal.out, rows, true)?)
    }

    fn checks(&mut self, checks: &[Check], wide: bool) -> Result<(), CliError> {
        let shown: Vec<&Check> =
            checks.iter().filter(|check| wide || check.verdict != "ok").collect();
        if shown.is_empty() {
            return Ok(());
        }
        let rows: Vec<Vec<Cell>> = shown
            .iter()
            .map(|check| {
                vec![
                    Cell::new(&check.name),
                    verdict(&check.verdict),
                    Cell::new(&check.reason),
                    Cell::new(&check.remedy),
                ]
            })
            .collect();
        let headings = left(&["CHECK", "VERDICT", "REASON", "REMEDY"]);
        self.table(&[bold("Checks")], headings, &rows)
    }

    fn interfaces(&mut self, interfaces: &[Interface]) -> Result<(), CliError> {
        if interfaces.is_empty() {
            return self.title(&[bold("Interfaces"), Cell::new("none").style(YELLOW)]);
        }
        let rows: Vec<Vec<Cell>> = interfaces
            .iter()
            .map(|interface| {
                vec![
                    Cell::new(&interface.name),
                    Cell::new(interface.ifindex.to_string()),
                    verdict(&interface.state),
                    Cell::new(&interface.attach),
                    Cell::new(&interface.link),
                    Cell::new(&interface.chosen_by),
                    Cell::new(&interface.mode),
                    Cell::new(interface.before.join(",")),
                    Cell::new(interface.after.join(",")),
                    Cell::new(&interface.reason),
                ]
            })
            .collect();
        let mut headings = left(&[
            "NAME",
            "INDEX",
            "STATE",
            "ATTACH",
            "LINK",
            "CHOSEN_BY",
            "MODE",
            "BEFORE",
            "AFTER",
            "REASON",
        ]);
        headings[1].right = true;
        self.table(&[bold("Interfaces")], headings, &rows)
    }

    fn identity(&mut self, status: &AgentStatus, wide: bool) -> Result<(), CliError> {
        if let Some(kubernetes) = status.kubernetes.as_ref().filter(|api| !api.resources.is_empty())
        {
            let rows = identity::resources(&kubernetes.resources, (self.terminal.clock)());
            let title = title("Kubernetes", &kubernetes.state);
            self.table(&title, numbered(&identity::RESOURCES, &[2, 3, 4, 5, 6]), &rows)?;
        }
        if !status.attribution_shares.is_empty() {
            let mut title = vec![bold("Attribution")];
            title.extend(identity::identified(&status.attribution_shares));
            let rows = identity::shares(&status.attribution_shares);
            self.table(&title, numbered(&identity::SHARES, &[3, 4, 5]), &rows)?;
        }
        let pods = &status.pod_planes;
        if pods.is_empty() {
            return Ok(());
        }
        self.table(
            &[bold("Pods by plane")],
            numbered(&identity::PLANES, &[1]),
            &identity::planes(pods),
        )?;
        if wide {
            self.table(&[bold("Pods")], left(&identity::PODS), &identity::pods(pods))?;
        }
        Ok(())
    }

    fn subscribers(&mut self, status: &AgentStatus) -> Result<(), CliError> {
        if status.subscribers.is_empty() {
            return Ok(());
        }
        let rows = status.subscribers.iter().map(|subscriber| {
            let mut row = vec![Cell::new(&subscriber.peer)];
            let numbers = [
                subscriber.id,
                subscriber.offered,
                subscriber.delivered,
                subscriber.filtered,
                subscriber.queued,
            ];
            row.extend(numbers.map(|number| Cell::new(number.to_string())));
            row.push(lost(subscriber.lost));
            row
        });
        let headings = ["PEER", "ID", "OFFERED", "DELIVERED", "FILTERED", "QUEUED", "LOST"];
        let title = [bold("Subscribers")];
        self.section(&title, &headings, rows.collect())
    }

    fn notices(&mut self, status: &AgentStatus) -> Result<(), CliError> {
        if status.notices.is_empty() {
            return Ok(());
        }
        let rows: Vec<Vec<Cell>> = status
            .notices
            .iter()
            .map(|notice| {
                vec![verdict(&notice.severity), Cell::new(&notice.code), Cell::new(&notice.message)]
            })
            .collect();
        let headings = left(&["SEVERITY", "CODE", "MESSAGE"]);
        self.table(&[bold("Notices")], headings, &rows)
    }
}

fn left(titles: &[&str]) -> Vec<Heading> {
    titles.iter().map(|title| Heading { title: (*title).to_owned(), right: false }).collect()
}

/// Headings of which those at `right` are of numbers.
fn numbered(titles: &[&str], right: &[usize]) -> Vec<Heading> {
    let mut headings = left(titles);
    for index in right {
        headings[*index].right = true;
    }
    headings
}

fn bold(text: &str) -> Cell {
    Cell::new(text).style(Style::new().bold())
}

fn title(name: &str, state: &str) -> [Cell; 2] {
    [bold(name), verdict(state)]
}

/// Words that say how something is, in the colour that says how bad.
pub(super) fn verdict(word: &str) -> Cell {
    let style = match word {
        "ok" | "attached" | "balanced" | "healthy" | "synced" => GREEN,
        "warning" | "attaching" | "connecting" | "stale" => YELLOW,
        "failed" | "error" | "unbalanced" | "not healthy" | "forbidden" | "unreachable" => RED,
        _ => Style::new(),
    };
    Cell::new(word).style(style)
}

pub(super) fn lost(count: u64) -> Cell {
    let cell = Cell::new(count.to_string());
    if count > 0 { cell.style(RED) } else { cell }
}

fn summary(status: &AgentStatus, terminal: &Terminal<'_>) -> Vec<Vec<Cell>> {
    let row = |name: &str, cell: Cell| vec![bold(name), cell];
    let mut rows =
        vec![row("Node", Cell::new(&status.node_name)), row("Version", Cell::new(&status.version))];
    if !status.kernel_release.is_empty() {
        rows.push(row("Kernel", Cell::new(&status.kernel_release)));
    }
    rows.push(row("Health", verdict(if status.healthy { "healthy" } else { "not healthy" })));
    if !status.health_message.is_empty() {
        let style = if status.healthy { YELLOW } else { RED };
        rows.push(row("", Cell::new(&status.health_message).style(style)));
        // An empty name would be shown as a dash.
        let index = rows.len() - 1;
        rows[index][0] = Cell::new(" ");
    }
    let mut uptime = duration::short(Duration::from_secs(status.uptime_seconds));
    if status.started_at_ns != 0 {
        uptime += &format!(" since {}", time::rfc3339(status.started_at_ns, &terminal.zone));
    }
    rows.push(row("Uptime", Cell::new(uptime)));
    if !status.capture.is_empty() {
        let reason = &status.capture_reason;
        let reason = if reason.is_empty() { String::new() } else { format!(", {reason}") };
        rows.push(row("Capture", Cell::new(format!("{}{reason}", status.capture))));
    }
    rows.push(row(
        "Flows",
        Cell::new(format!(
            "{} active, {} ended, at most {}{}",
            status.active_flows,
            status.ended_flows,
            status.max_flows,
            governor::lowered(status)
        )),
    ));
    rows.push(row(
        "Events",
        Cell::new(format!(
            "{} processed, {} dropped",
            status.events_processed, status.events_dropped
        ))
        .style(if status.events_dropped > 0 { RED } else { Style::new() }),
    ));
    if status.pods_tracked > 0 {
        rows.push(row("Pods", Cell::new(status.pods_tracked.to_string())));
    }
    rows.extend(identity::summary(status).into_iter().map(|(name, cell)| row(name, cell)));
    if let Some(governor) = &status.governor {
        rows.push(row("Budgets", governor::budgets(governor)));
        rows.extend(governor::given_up(governor, terminal).map(|cell| row("Given up", cell)));
    }
    if let Some(memory) = &status.memory {
        let text = format!(
            "{} resident, {} in kernel maps",
            format::bytes(memory.resident_bytes),
            format::bytes(memory.map_bytes)
        );
        rows.push(row("Memory", Cell::new(text)));
    }
    rows
}

fn packet_ledger(ledger: &PacketLedger) -> Vec<Vec<Cell>> {
    let line = |name: String, packets: u64, bytes: u64| {
        vec![Cell::new(name), Cell::new(packets.to_string()), Cell::new(bytes.to_string())]
    };
    let count = |name: &str, count: Option<Count>| {
        let Count { packets, bytes } = count.unwrap_or_default();
        line(name.to_owned(), packets, bytes)
    };
    let reason = |name: &str, counts: &[ReasonCount]| -> Vec<Vec<Cell>> {
        let row = |c: &ReasonCount| line(format!("{name}: {}", c.reason), c.packets, c.bytes);
        counts.iter().map(row).collect()
    };
    let mut rows = vec![count("seen", ledger.seen), count("reported", ledger.reported)];
    rows.extend(reason("filtered", &ledger.filtered));
    rows.extend(reason("rejected", &ledger.rejected));
    rows.extend(
        ledger.lost.iter().map(|loss| vec![loss_name(loss), lost(loss.packets), lost(loss.bytes)]),
    );
    rows.push(count("in flight", ledger.in_flight));
    if ledger.unexplained_packets != 0 || ledger.unexplained_bytes != 0 {
        rows.push(vec![
            Cell::new("unexplained").style(RED),
            Cell::new(ledger.unexplained_packets.to_string()).style(RED),
            Cell::new(ledger.unexplained_bytes.to_string()).style(RED),
        ]);
    }
    rows
}

fn event_ledger(ledger: &EventLedger) -> Vec<Vec<Cell>> {
    let line = |name: &str, events: u64| vec![Cell::new(name), Cell::new(events.to_string())];
    let mut rows = vec![
        line("produced", ledger.produced),
        line("processed", ledger.processed),
        line("rejected", ledger.rejected),
    ];
    if ledger.deferred > 0 {
        rows.push(line("deferred to a read", ledger.deferred));
    }
    rows.extend(ledger.lost.iter().map(|loss| vec![loss_name(loss), lost(loss.events)]));
    if ledger.unexplained_events != 0 {
        rows.push(vec![
            Cell::new("unexplained").style(RED),
            Cell::new(ledger.unexplained_events.to_string()).style(RED),
        ]);
    }
    rows
}

fn loss_name(loss: &Loss) -> Cell {
    Cell::new(format!("lost: {} ({})", loss.stage, loss.reason)).style(RED)
}
