//! `make soak`: an agent under loads that no node should have, one after the other, and whether it
//! keeps what it promises in each: every packet accounted for, memory within the budget, answers
//! within a second, and normal again by itself.
//!
//! | module | content |
//! |---|---|
//! | `flows` | floods: each packet another flow, the smallest packets, the smallest tables |
//! | `sockets` | a flood between sockets |
//! | `connections` | TCP connections that end as soon as they are open |
//! | `subscribers` | watchers that never read |
//! | `cluster` | an API that changes all the time; many flows with names for long |
//! | `starved` | others on the agent's only CPU |
//! | `bed` | an agent on a link, and what is asked of it |
//! | `watch` | answers, memory and programs, looked at all the time |
//! | `cost` | the time of programs, against one that only counts |
//! | [`figures`] | what was found |
//! | [`mod@judge`] | what of it is wrong |
//! | [`mod@table`] | both, for people and programs |

#![allow(clippy::print_stdout, reason = "a program that is there to be read")]

mod bed;
mod cluster;
mod connections;
mod cost;
pub mod figures;
mod flows;
pub mod judge;
mod sockets;
mod starved;
mod subscribers;
pub mod table;
mod watch;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use bed::Bed;
use figures::{Figures, MIB, Memory, Offered, Pace, Recovery, SubscriberAccount};

/// The agent's default budget, `ORB8_MEMORY_BUDGET`.
const MEMORY_LIMIT: u64 = 96 * MIB;
/// The longest that an agent may take to be normal again; its flows end after two to four seconds.
const RECOVERY_LIMIT: Duration = Duration::from_secs(30);
/// How long is waited for it all the same, to tell how long it took.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a scenario takes besides its load: an agent that starts, recovers and stops.
const BESIDES: Duration = Duration::from_secs(8);
/// The load in the short form.
const QUICK_LOAD: Duration = Duration::from_secs(2);
/// A load that is shorter shows neither growth nor what programs cost.
const SHORT: Duration = Duration::from_secs(10);

/// What is to be run, and on which agent.
#[derive(Debug)]
pub struct Options {
    /// `orb8-agent`.
    pub agent: PathBuf,
    /// It is built as users have it, so that figures of memory hold for them.
    pub release: bool,
    /// For how long in all.
    pub time: Duration,
    /// A few seconds each, whatever `time` says.
    pub quick: bool,
    /// Parts of names; none means all.
    pub only: Vec<String>,
    /// Where the figures go.
    pub json: PathBuf,
}

/// One scenario's turn.
struct Turn<'a> {
    options: &'a Options,
    /// How long the load goes on.
    load: Duration,
}

/// What a load has to say about itself.
#[derive(Default)]
struct Load {
    /// When it was under way; `None`: at once.
    from: Option<Instant>,
    /// When it ended, after which the agent was only waited for; `None`: when it was done.
    to: Option<Instant>,
    flows: Option<u64>,
    connections: Option<u64>,
    pace: Option<Pace>,
    /// Those who watched, before they went.
    subscribers: Vec<SubscriberAccount>,
    faults: Vec<String>,
}

impl Load {
    /// From when to when it was under way, of a time in which it was done.
    fn span(&self, begun: Instant, done: Instant) -> (Instant, Instant) {
        (self.from.unwrap_or(begun), self.to.unwrap_or(done))
    }
}

struct Scenario {
    name: &'static str,
    what: &'static str,
    /// Its share of the time.
    weight: u32,
    /// How often as much as a program that only counts its runs the agent's may take for a packet.
    cost: f64,
    run: fn(&Turn<'_>) -> anyhow::Result<Figures>,
}

const SCENARIOS: [Scenario; 9] = [
    Scenario {
        name: "unique_flows",
        what: "each packet is another flow: a million and more, from spoofed sources",
        weight: 1,
        cost: 25.0,
        run: flows::unique,
    },
    Scenario {
        name: "packet_flood",
        what: "the smallest packets, as many as a core sends, on one flow and on a thousand",
        weight: 1,
        cost: 1.75,
        run: flows::packets,
    },
    Scenario {
        name: "sockets",
        what: "datagrams between 512 sockets on half a million flows, counted at the sockets",
        weight: 1,
        cost: 25.0,
        run: sockets::run,
    },
    Scenario {
        name: "minimum_maps",
        what: "tables, ring and queues as small as they can be set, each packet another flow",
        weight: 1,
        cost: 10.0,
        run: flows::minimum,
    },
    Scenario {
        name: "short_connections",
        what: "10 000 TCP connections a second that end as soon as they are open",
        weight: 1,
        cost: 30.0,
        run: connections::run,
    },
    Scenario {
        name: "stalled_subscribers",
        what: "as many subscribers as there may be, of which one reads",
        weight: 1,
        cost: 30.0,
        run: subscribers::run,
    },
    Scenario {
        name: "api_churn",
        what: "pods that come, go and change addresses; an API that hangs up, fails and forgets",
        weight: 1,
        cost: 4.0,
        run: cluster::churn,
    },
    Scenario {
        name: "starved",
        what: "the agent's only CPU is wanted by six processes of higher priority",
        weight: 1,
        cost: 10.0,
        run: starved::run,
    },
    Scenario {
        name: "steady",
        what: "100 000 live flows with the names of 500 pods",
        weight: 2,
        cost: 16.0,
        run: cluster::steady,
    },
];

/// Names of all scenarios, and what each is.
pub fn scenarios() -> impl Iterator<Item = (&'static str, &'static str)> {
    SCENARIOS.iter().map(|scenario| (scenario.name, scenario.what))
}

/// Runs what was asked for, prints a table and writes the figures; whether all promises were kept.
///
/// # Errors
/// If no scenario has such a name, or the figures cannot be written.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    let wanted = |scenario: &&Scenario| {
        options.only.is_empty() || options.only.iter().any(|part| scenario.name.contains(part))
    };
    let mut left: Vec<&Scenario> = SCENARIOS.iter().filter(wanted).collect();
    anyhow::ensure!(
        !left.is_empty(),
        "no scenario is called {}, see --list",
        options.only.join(", ")
    );
    left.reverse();
    let end = Instant::now() + options.time;
    let (mut all, mut short) = (Vec::new(), Vec::new());
    while let Some(scenario) = left.pop() {
        let weights: u32 = left.iter().map(|other| other.weight).sum();
        let share = end.saturating_duration_since(Instant::now()) * scenario.weight
            / (scenario.weight + weights);
        let load = if options.quick { QUICK_LOAD } else { share.saturating_sub(BESIDES) };
        let turn = Turn { options, load: load.max(QUICK_LOAD) };
        if turn.load < SHORT {
            short.push(scenario.name);
        }
        println!("{}: {}", scenario.name, scenario.what);
        let start = Instant::now();
        let figures = turn.figures(scenario);
        let wrong = judge::judge(&figures);
        let verdict = if wrong.is_empty() { "ok" } else { "FAILED" };
        println!("    {verdict} after {:.1} s", start.elapsed().as_secs_f64());
        wrong.iter().for_each(|wrong| println!("    WRONG: {wrong}"));
        all.push(figures);
    }
    println!("\n{}", table::table(&all));
    if let Some(left_out) = left_out(&short) {
        println!("{left_out}");
    }
    let text = serde_json::to_string_pretty(&table::json(&all))?;
    let file = &options.json;
    std::fs::write(file, text).with_context(|| format!("write {}", file.display()))?;
    println!("written to {}", file.display());
    Ok(all.iter().all(|figures| judge::judge(figures).is_empty()))
}

/// What was not held in scenarios with so short a load.
fn left_out(short: &[&str]) -> Option<String> {
    let (seconds, names) = (SHORT.as_secs(), short.join(", "));
    (!short.is_empty()).then(|| {
        format!(
            "A load of less than {seconds} s shows neither what programs cost nor whether memory \
             grows, so neither was checked: {names}"
        )
    })
}

impl Turn<'_> {
    /// Runs a scenario; what keeps it from its end is told as a fault, and the next ones run all the
    /// same.
    fn figures(&self, scenario: &Scenario) -> Figures {
        let name = scenario.name.to_owned();
        let found = catch_unwind(AssertUnwindSafe(|| (scenario.run)(self)))
            .unwrap_or_else(|_told| Err(anyhow::anyhow!("it panicked, see above")));
        match found {
            Ok(mut figures) => {
                figures.cost.limit = (self.load >= SHORT).then_some(scenario.cost);
                Figures { name, ..figures }
            }
            Err(error) => {
                let faults = vec![format!("it did not come to its end: {error:#}")];
                Figures { name, faults, ..Figures::default() }
            }
        }
    }

    /// Puts a load on an agent, waits until it is normal again, and takes its ledgers at rest.
    fn overload(
        &self,
        bed: Bed,
        load: impl FnOnce(&Bed) -> anyhow::Result<Load>,
    ) -> anyhow::Result<Figures> {
        let ((mut load, from, to, recovered), watched) =
            watch::watch(&bed, self.options.release, || {
                let begun = Instant::now();
                let load = load(&bed)?;
                let (from, to) = load.span(begun, Instant::now());
                let recovered = bed.recovery(to, PATIENCE)?;
                Ok((load, from, to, recovered))
            })?;
        let (account, events, mut subscribers) = bed.rest()?;
        let total = bed.carried();
        load.faults.extend(bed.stop());
        subscribers.append(&mut load.subscribers);
        Ok(Figures {
            name: String::new(),
            seconds: to.duration_since(from).as_secs_f64(),
            offered: Offered { total, flows: load.flows, connections: load.connections },
            account,
            events,
            subscribers,
            memory: Memory { limit: MEMORY_LIMIT, ..watched.memory(from, to) },
            cost: watched.cost(from, to),
            answers: watched.answers(),
            recovery: Recovery {
                seconds: recovered.map(|time| time.as_secs_f64()),
                limit: RECOVERY_LIMIT.as_secs_f64(),
            },
            pace: load.pace,
            faults: load.faults,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(only: &[&str]) -> Options {
        Options {
            agent: PathBuf::from("/nowhere/orb8-agent"),
            release: false,
            time: Duration::ZERO,
            quick: true,
            only: only.iter().map(|&part| part.to_owned()).collect(),
            json: PathBuf::from("/nowhere/soak.json"),
        }
    }

    #[test]
    fn what_has_to_recover_after_a_load_is_no_part_of_it() {
        let begun = Instant::now();
        let at = |second| begun + Duration::from_secs(second);
        let load = Load { from: Some(at(2)), to: Some(at(60)), ..Load::default() };
        assert_eq!(load.span(begun, at(100)), (at(2), at(60)));
        assert_eq!(Load::default().span(begun, at(100)), (begun, at(100)));
    }

    #[test]
    fn the_documentation_has_a_line_for_each_scenario_in_their_order() {
        let text = include_str!("../../../docs/soak.md");
        let (_, table) = text.split_once("| scenario | what it does |").expect("a table");
        let lines = table.lines().skip(2).take_while(|line| line.starts_with('|'));
        let told: Vec<&str> = lines.filter_map(|line| line.split('`').nth(1)).collect();
        assert_eq!(told, scenarios().map(|(name, _)| name).collect::<Vec<_>>());
    }

    #[test]
    fn scenarios_whose_loads_were_too_short_for_every_check_are_named() {
        assert_eq!(left_out(&[]), None);
        let told = left_out(&["steady", "starved"]).expect("two were short");
        assert!(told.starts_with("A load of less than 10 s shows neither"), "{told}");
        assert!(told.ends_with(": steady, starved"), "{told}");
    }

    #[test]
    fn a_name_that_no_scenario_has_is_refused_instead_of_passing() {
        let error = run(&options(&["nothing"])).expect_err("nothing ran");
        assert_eq!(error.to_string(), "no scenario is called nothing, see --list");
    }

    #[test]
    fn a_scenario_that_panics_or_fails_is_not_passed() {
        for run in [(|_| panic!("no agent")) as fn(&Turn<'_>) -> _, |_| anyhow::bail!("no agent")] {
            let scenario = Scenario { name: "x", what: "y", weight: 1, cost: 1.0, run };
            let options = options(&[]);
            let figures = Turn { options: &options, load: Duration::ZERO }.figures(&scenario);
            let wrong = judge::judge(&figures);
            assert!(
                wrong.iter().any(|wrong| wrong.contains("did not come to its end")),
                "{wrong:?}"
            );
        }
    }
}
