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
    Board, Governor, GovernorSource, Hands, MOST_INTERVALS, Meter, State, is_large,
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
        fewer_flows(settings).into_iter().collect(),
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

/// What is to be said if the memory budget has no room for the flows that are set.
fn fewer_flows(settings: &Settings) -> Option<Notice> {
    let held = settings.max_flows_held();
    let (budget, ring) = (settings.memory_budget.into(), settings.ring_buffer_size);
    let beside = if is_large(budget, ring) {
        let ring = format::bytes(ring.into());
        format!(
            " beside an event ring of {ring}, which is too large for it (ORB8_RING_BUFFER_SIZE)"
        )
    } else {
        String::new()
    };
    (held < settings.max_flows).then(|| Notice {
        severity: Severity::Warning,
        code: "max_flows_lowered",
        message: format!(
            "at most {held} flows are held, not {} (ORB8_MAX_FLOWS): {} have room for no more \
             (ORB8_MEMORY_BUDGET){beside}",
            settings.max_flows,
            format::bytes(budget),
        ),
    })
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
}
