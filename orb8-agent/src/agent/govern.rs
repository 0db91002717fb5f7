//! Gives the governor what it measures and acts on.

use std::sync::Arc;
use std::time::Duration;

use orb8_util::format;

use super::Shared;
use crate::config::Settings;
use crate::datapath::Datapath;
use crate::ebpf;
use crate::event::{Notice, Severity};
use crate::governor::{
    Board, Governor, GovernorSource, Hands, MOST_INTERVALS, Meter, State, has_room, is_large,
};
use crate::pipeline::on_demand::Drains;

/// It must have been calm for so many intervals before something is taken back.
const CALM_INTERVALS: u32 = 3;

/// How long ended flows are kept as set.
pub(super) fn history(settings: &Settings) -> Duration {
    Duration::from_secs(settings.flow_history_secs.into())
}

/// The most time between drains, whatever is given up.
pub(super) fn most_between_drains(settings: &Settings) -> Duration {
    Drains::stretched_by(settings.drain_interval(), MOST_INTERVALS)
}

/// Nothing is given up yet.
pub(super) fn board(settings: &Settings) -> Arc<Board> {
    let state = State::new(settings.budgets(), settings.drain_interval(), history(settings));
    Arc::new(Board::new(state))
}

/// The governor of this agent.
pub(super) fn source(
    settings: &Settings,
    shared: &Shared,
    datapath: Option<Arc<dyn Datapath>>,
) -> GovernorSource {
    let interval = settings.governor_interval();
    let meter = Meter::new(
        settings.proc_root.clone(),
        cpus(),
        datapath.clone(),
        Arc::clone(&shared.ledger),
        shared.totals.drains(),
        Arc::clone(&shared.clock),
    );
    let table = Arc::clone(&shared.table);
    let hands = Hands {
        drains: shared.totals.drains(),
        datapath,
        keep_history: Box::new(move |history| table.write().keep_for(history)),
        give_back: Box::new(ebpf::memory::give_back),
        drain_interval: settings.drain_interval(),
        history: history(settings),
    };
    GovernorSource::new(
        Governor::new(
            settings.budgets(),
            CALM_INTERVALS * interval,
            settings.drain_interval(),
            history(settings),
        ),
        meter,
        hands,
        Arc::clone(&shared.governor),
        Arc::clone(&shared.clock),
        interval,
        lacks_room(settings).into_iter().collect(),
    )
}

/// The node's CPUs. Where the kernel does not tell, those that the agent may run on, which are no more:
/// then a step may come too early, not too late.
fn cpus() -> u32 {
    ebpf::meter::online_cpus().unwrap_or_else(|error| {
        let own = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        tracing::warn!(%error, cpus = own, "the node's CPUs are not known, those of the agent are taken");
        u32::try_from(own).unwrap_or(1)
    })
}

/// What is to be said if the memory budget has no room for the flows that are set, or none for them
/// beside the event ring.
fn lacks_room(settings: &Settings) -> Option<Notice> {
    let held = settings.max_flows_held();
    let (budget, ring) = (settings.memory_budget.into(), settings.ring_buffer_size);
    let (memory, ring_bytes) = (format::bytes(budget), format::bytes(ring.into()));
    let warning = |code, message| Some(Notice { severity: Severity::Warning, code, message });
    if held < settings.max_flows {
        let set = settings.max_flows;
        let mut message = format!(
            "at most {held} flows are held, not {set} (ORB8_MAX_FLOWS): {memory} have room for no \
             more (ORB8_MEMORY_BUDGET)"
        );
        if is_large(budget, ring) {
            message = format!(
                "{message} beside an event ring of {ring_bytes}, which is too large for it \
                 (ORB8_RING_BUFFER_SIZE)"
            );
        }
        warning("max_flows_lowered", message)
    } else if has_room(held, budget, ring) {
        None
    } else {
        let message = format!(
            "an event ring of {ring_bytes} (ORB8_RING_BUFFER_SIZE) is too large beside {held} flows: \
             all of them are held, and the agent may take more than {memory} (ORB8_MEMORY_BUDGET)"
        );
        warning("event_ring_too_large", message)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn drains_are_never_further_apart_than_the_table_is_told() {
        let most = |seconds: &str| {
            let line = ["orb8-agent", "--expiration-interval-secs", seconds];
            most_between_drains(&Settings::parse_from(line)).as_secs()
        };
        assert_eq!(["1", "5", "10", "60"].map(most), [4, 20, 20, 60]);
    }

    fn said(line: &[&str]) -> Option<(&'static str, String)> {
        let line = ["orb8-agent"].iter().chain(line);
        lacks_room(&Settings::parse_from(line)).map(|notice| (notice.code, notice.message))
    }

    #[test]
    fn a_ring_that_leaves_too_little_room_is_named_whether_or_not_it_leaves_fewer_flows() {
        let large = ["--ring-buffer-size=32MiB"];
        let lowered = "at most 60416 flows are held, not 100000 (ORB8_MAX_FLOWS): 96.0MiB have room for no \
                       more (ORB8_MEMORY_BUDGET) beside an event ring of 32.0MiB, which is too large for \
                       it (ORB8_RING_BUFFER_SIZE)";
        assert_eq!(said(&large), Some(("max_flows_lowered", lowered.to_owned())));
        let held = "an event ring of 32.0MiB (ORB8_RING_BUFFER_SIZE) is too large beside 50000 flows: all of \
                    them are held, and the agent may take more than 96.0MiB (ORB8_MEMORY_BUDGET)";
        let fewer = [large[0], "--max-flows=50000"];
        assert_eq!(said(&fewer), Some(("event_ring_too_large", held.to_owned())));
    }

    #[test]
    fn nothing_is_said_of_a_ring_that_there_is_room_for() {
        assert_eq!(said(&[]), None);
        assert_eq!(
            said(&["--ring-buffer-size=16MiB", "--max-flows=20000"]),
            None,
            "more than half"
        );
        let (code, lowered) = said(&["--ring-buffer-size=8MiB"]).unwrap();
        assert_eq!(code, "max_flows_lowered");
        assert!(!lowered.contains("ring"), "{lowered}");
    }
}
