//! `orb8 verify`: does orb8 count what the kernel itself counts?
//!
//! Asks the agent of this node for its running totals at both ends of a window, reads the kernel's
//! own counters right before and right after each, and compares. Changes nothing.

pub mod args;
pub mod counters;
pub mod judge;
pub mod kernel;
pub mod page;
mod stack;
pub mod window;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orb8_proto::v1::Totals;
use orb8_query::{AgentError, Client};
use orb8_util::duration;

use crate::args::GlobalArgs;
use crate::error::{CliError, Exit};
use crate::terminal::Terminal;
use args::VerifyArgs;
use judge::Verdict;
use kernel::{Home, Namespaces, Proc};
use page::Report;
use window::{End, Window};

/// Longer than the window, so that the totals are still there at its end.
const SPARE: Duration = Duration::from_secs(120);
/// Where cgroup2 is if it is not where the agent sees it.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// Runs the verb.
///
/// # Errors
/// The words do not fit, the agent does not answer, or the kernel's counters cannot be read.
pub async fn run(
    global: &GlobalArgs,
    args: &VerifyArgs,
    terminal: &mut Terminal<'_>,
) -> Result<Exit, CliError> {
    if !global.fields.is_empty() {
        let text = "verify has fixed columns, leave --fields out; -o json has all there is";
        return Err(CliError::Usage(text.to_owned()));
    }
    let client = Client::new(&global.agents, global.timeout);
    let [agent] = client.agents() else {
        let text = "verify compares one agent with its own node, name one with --agent HOST:PORT";
        return Err(CliError::Usage(text.to_owned()));
    };
    let proc = Proc::at(&args.proc);
    let kernel = |cause: io::Error| no_kernel(&args.proc, &cause);
    let own = proc.namespace("self").unwrap_or(0);
    let ask = || async { client.totals(agent, args.duration + SPARE).await.map_err(gone) };
    // Begins the session: from now on totals are kept.
    let first = ask().await?;
    check_place(&first, &proc, own).map_err(CliError::Usage)?;
    if first.session == 0 {
        let reason = format!("nothing is counted: {}", first.health_message);
        return conclude(&without(&first, args.tolerance, reason), global, terminal);
    }
    let namespaces = proc.namespaces().map_err(kernel)?;
    let before = || proc.read_before(own, &namespaces).map_err(kernel);
    let after = || proc.read_after(own, &namespaces).map_err(kernel);
    let start = End { before: before()?, totals: ask().await?, after: after()? };
    let length = duration::short(args.duration);
    terminal.note(format!("counting for {length}; Ctrl-C ends it earlier"));
    tokio::select! {
        () = tokio::time::sleep(args.duration) => {}
        () = &mut terminal.interrupt => {}
    }
    let end = End { before: before()?, totals: ask().await?, after: after()? };
    if start.totals.session != end.totals.session {
        let reason = "the agent was started anew within the window, verify again".to_owned();
        return conclude(&without(&end.totals, args.tolerance, reason), global, terminal);
    }
    let window = gather(&proc, own, &namespaces, start, end);
    conclude(&report(&window, args.tolerance), global, terminal)
}

/// What is to be printed of a window.
#[must_use]
pub fn report(window: &Window, tolerance: f64) -> Report {
    let rows = judge::rows(window, tolerance);
    let totals = &window.end.totals;
    let nanoseconds = totals.monotonic_ns.saturating_sub(window.start.totals.monotonic_ns);
    Report {
        window_seconds: nanoseconds as f64 / 1e9,
        verdict: page::gravest(&rows),
        lost_packets: window.ledger(window::lost).packets,
        rows,
        ..blank(totals, tolerance)
    }
}

/// What is to be printed where nothing can be compared.
fn without(totals: &Totals, tolerance: f64, reason: String) -> Report {
    Report { reason: Some(reason), ..blank(totals, tolerance) }
}

fn blank(totals: &Totals, tolerance: f64) -> Report {
    let ledger = totals.packet_ledger.as_ref();
    Report {
        node_name: totals.node_name.clone(),
        capture: totals.capture.clone(),
        window_seconds: 0.0,
        tolerance_percent: tolerance,
        verdict: Verdict::Unknown,
        reason: None,
        lost_packets: 0,
        ledger: ledger.map(|ledger| ledger.state.clone()).unwrap_or_default(),
        rows: Vec::new(),
    }
}

/// Prints a report and says on stderr how it came out; gives the exit code.
fn conclude(
    report: &Report,
    global: &GlobalArgs,
    terminal: &mut Terminal<'_>,
) -> Result<Exit, CliError> {
    page::write(report, global, terminal)?;
    terminal.out.flush()?;
    match &report.reason {
        Some(reason) => terminal.warn(reason),
        None => terminal.note(page::summary(report)),
    }
    let is_unbalanced = report.ledger == "unbalanced";
    if is_unbalanced {
        terminal.warn("the agent's own packet ledger does not add up, see `orb8 status`");
    }
    if report.lost_packets > 0 {
        let lost = report.lost_packets;
        terminal.warn(format!("the agent says that it lost {lost} packets within the window"));
    }
    Ok(match report.verdict {
        Verdict::Differs => Exit::Failed,
        Verdict::Unknown => partial(global),
        Verdict::Ok | Verdict::NotCompared if report.lost_packets > 0 || is_unbalanced => {
            partial(global)
        }
        Verdict::Ok | Verdict::NotCompared => Exit::Done,
    })
}

const fn partial(global: &GlobalArgs) -> Exit {
    if global.allow_partial { Exit::Done } else { Exit::Partial }
}

fn gone(error: AgentError) -> CliError {
    CliError::NoAgent(vec![error])
}

fn no_kernel(proc: &Path, cause: &io::Error) -> CliError {
    CliError::Usage(format!(
        "the kernel's counters cannot be read below {} ({cause}): run verify on the agent's node, or \
         name its /proc with --proc",
        proc.display()
    ))
}

/// Both sides must be those of one machine and one network namespace.
fn check_place(totals: &Totals, proc: &Proc, own: u64) -> Result<(), String> {
    let node = &totals.node_name;
    let boot = proc.boot_id().unwrap_or_default();
    if !totals.boot_id.is_empty() && totals.boot_id != boot {
        return Err(format!(
            "the agent of {node} is on another machine than this process: run verify on {node}, or \
             name its /proc with --proc"
        ));
    }
    if totals.network_namespace != 0 && totals.network_namespace != own {
        return Err(format!(
            "the agent of {node} is in another network namespace than this process: run verify \
             there, such as in the agent's container or with nsenter --net"
        ));
    }
    Ok(())
}

fn gather(proc: &Proc, own: u64, known: &Namespaces, start: End, end: End) -> Window {
    let roots: Vec<PathBuf> = std::iter::once(end.totals.cgroup_mount.as_str())
        .chain(MOUNTS)
        .filter(|root| !root.is_empty())
        .map(PathBuf::from)
        .collect();
    let mut homes = BTreeMap::new();
    for total in end.totals.totals.iter().filter(|total| total.plane == "socket") {
        let home = || {
            let below = total.cgroup.trim_start_matches('/');
            let homes = roots.iter().map(|root| proc.home(&root.join(below), total.cgroup_id));
            homes.into_iter().find(|home| *home != Home::Unknown).unwrap_or(Home::Unknown)
        };
        homes.entry(total.cgroup_id).or_insert_with(home);
    }
    let lived_in: BTreeSet<u64> = homes
        .values()
        .filter_map(|home| match home {
            Home::In(namespace) => Some(*namespace),
            Home::Several | Home::Unknown => None,
        })
        .collect();
    let addresses = known
        .iter()
        .filter(|(namespace, _)| **namespace != own && lived_in.contains(namespace))
        .map(|(namespace, processes)| (*namespace, proc.addresses(processes)))
        .collect();
    let outside = proc.is_below(Path::new(&end.totals.cgroup_mount)) == Some(false);
    Window { start, end, own, homes, addresses, outside }
}
