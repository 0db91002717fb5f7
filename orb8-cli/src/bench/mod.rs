//! `orb8 bench`: what does orb8 cost on this host?
//!
//! Runs the same loads with an agent and without, in rounds, and compares. The agent is started for a run
//! and stopped after it; loads run on a thread, so that this one hears Ctrl-C.

pub mod agent;
pub mod args;
pub mod cpu;
pub mod far;
pub mod judge;
pub mod load;
pub mod page;

use std::future::Future;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use orb8_proto::v1::AgentStatus;
use orb8_query::{AgentError, Client, ErrorKind};
use orb8_util::duration;
use orb8_util::net::HostPort;
use orb8_util::stats::median;

use crate::args::GlobalArgs;
use crate::error::{CliError, Exit};
use crate::terminal::Terminal;
use agent::{Agent, Options};
use args::BenchArgs;
use judge::{Figures, Round};
use load::{Loads, Plan};
use page::{AgentFigures, Report};

/// Where loads go unless told otherwise.
pub const LOOPBACK: &str = "loopback";
/// What starting and stopping an agent takes, about.
const AGENT: Duration = Duration::from_secs(2);
/// Before the first round everything runs for so long at most, so that nobody is the first.
const WARM_UP: Duration = Duration::from_secs(1);

/// Runs the verb.
///
/// # Errors
/// The words do not fit, another agent counts here, the agent cannot be started or cannot see the load,
/// or a load fails.
pub async fn run(
    global: &GlobalArgs,
    args: &BenchArgs,
    terminal: &mut Terminal<'_>,
) -> Result<Exit, CliError> {
    if !global.fields.is_empty() {
        let text = "bench has fixed columns, leave --fields out; -o json has all there is";
        return Err(CliError::Usage(text.to_owned()));
    }
    if let Some(address) = args.listen {
        return listen(address, terminal).await;
    }
    refuse_if_counted(global, terminal).await?;
    let options = Options::of(args, global.timeout)?;
    let target = match &args.target {
        Some(target) => Some(find(target).await?),
        None => None,
    };
    let stop = Arc::new(AtomicBool::new(false));
    let plan = Plan { target, duration: args.duration, stop: Arc::clone(&stop) };
    let mut bench = Bench { plan, options, stop, figures: Sums::default() };
    let length = duration::short(bench.length(args.pairs));
    let rounds =
        if args.pairs == 1 { "1 round".to_owned() } else { format!("{} rounds", args.pairs) };
    terminal.note(format!(
        "{rounds} of a run with an agent and two without, about {length}; Ctrl-C ends it with \
         what there is"
    ));
    let rounds = bench.rounds(args.pairs, terminal).await?;
    let report = Report {
        target: args.target.as_ref().map_or_else(|| LOOPBACK.to_owned(), ToString::to_string),
        rounds: rounds.len(),
        rounds_asked: args.pairs,
        duration_seconds: args.duration.as_secs_f64(),
        rows: judge::rows(&rounds),
        agent: bench.figures.finish(),
    };
    page::write(&report, global, terminal)?;
    terminal.out.flush()?;
    page::conclude(&report, terminal);
    let whole = report.is_whole() || global.allow_partial;
    Ok(if whole { Exit::Done } else { Exit::Partial })
}

/// Is the far end until somebody ends it.
async fn listen(address: SocketAddr, terminal: &mut Terminal<'_>) -> Result<Exit, CliError> {
    let far = far::Far::listen(address)
        .map_err(|error| CliError::Usage(format!("cannot listen at {address}: {error}")))?;
    terminal.note(format!(
        "the far end of `orb8 bench --target` at {}; whoever reaches it may send to it; Ctrl-C ends it",
        far.address
    ));
    terminal.interrupt.as_mut().await;
    Ok(Exit::Done)
}

/// A baseline is none while another agent counts.
async fn refuse_if_counted(
    global: &GlobalArgs,
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    let client = Client::new(&global.agents, global.timeout);
    let own = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    for agent in client.agents() {
        let totals = match client.totals(agent, Duration::from_secs(1)).await {
            Ok(totals) => totals,
            Err(error) => {
                if is_none(&error, global.timeout).await {
                    continue;
                }
                return Err(CliError::Usage(format!(
                    "{error}; whether it counts on this host is not known, and without one it is to be \
                     compared: stop it, or name another address with --agent, then run bench again"
                )));
            }
        };
        // That of another machine does not matter.
        if totals.boot_id.is_empty() || totals.boot_id == own.trim() {
            return Err(CliError::Usage(format!(
                "the agent at {agent} counts on this host, and without one it is to be compared: stop \
                 it, or take its pod off this node, then run bench again"
            )));
        }
    }
    let others = others(Path::new("/proc"));
    if !others.is_empty() {
        let others: Vec<String> = others.iter().map(u32::to_string).collect();
        terminal.warn(format!(
            "an orb8-agent runs here as process {}: if it counts this load, there is no baseline",
            others.join(", ")
        ));
    }
    Ok(())
}

/// True if what was asked is no agent. One of an older version knows no totals, but has a status.
async fn is_none(error: &AgentError, timeout: Duration) -> bool {
    match error.kind {
        ErrorKind::Unreachable => true,
        ErrorKind::NotOrb8 => {
            let client = Client::new(std::slice::from_ref(&error.address), timeout);
            client.status().await.agents.is_empty()
        }
        _ => false,
    }
}

/// Processes of this host that bear the agent's name.
fn others(proc: &Path) -> Vec<u32> {
    let processes = std::fs::read_dir(proc).into_iter().flatten().flatten();
    let mut found: Vec<u32> = processes
        .filter_map(|process| {
            let pid = process.file_name().to_str()?.parse().ok()?;
            let name = std::fs::read_to_string(process.path().join("comm")).ok()?;
            (name.trim_end() == "orb8-agent").then_some(pid)
        })
        .collect();
    found.sort_unstable();
    found
}

/// The address of a far end that takes connections, if its name has several.
async fn find(target: &HostPort) -> Result<SocketAddr, CliError> {
    let (host, port) = (target.host.clone(), target.port);
    let look = move || {
        let found: Vec<SocketAddr> = (host.as_str(), port).to_socket_addrs()?.collect();
        Ok(first_that_answers(&found))
    };
    let unknown = |why: String| CliError::Usage(format!("--target {target} is not found: {why}"));
    let found = blocking(look).await.map_err(|error| unknown(error.to_string()))?;
    found.ok_or_else(|| unknown("it has no address".to_owned()))
}

/// The only one, or the first that can be connected to; if there is none, the load says why not.
fn first_that_answers(found: &[SocketAddr]) -> Option<SocketAddr> {
    let answers = |address: &SocketAddr| TcpStream::connect_timeout(address, far::SILENCE).is_ok();
    let several = found.len() > 1;
    found.iter().find(|address| several && answers(address)).or(found.first()).copied()
}

/// Runs what waits on a thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.into()))
}

/// What all runs share.
struct Bench {
    plan: Plan,
    options: Options,
    stop: Arc<AtomicBool>,
    figures: Sums,
}

/// What a run with an agent gave.
struct Traced {
    loads: Loads,
    cpu_percent: Option<f64>,
    counted: u64,
    status: AgentStatus,
}

impl Bench {
    /// How long so many rounds take, about.
    fn length(&self, rounds: u32) -> Duration {
        let run = 3 * self.plan.duration;
        let all = 3 * self.plan.duration.min(WARM_UP) + rounds * (3 * run + AGENT);
        Duration::from_secs(all.as_secs().max(1))
    }

    /// All rounds, or those that were complete when somebody ended it.
    async fn rounds(
        &mut self,
        asked: u32,
        terminal: &mut Terminal<'_>,
    ) -> Result<Vec<Round>, CliError> {
        let mut rounds = Vec::new();
        let warm_up = Plan { duration: self.plan.duration.min(WARM_UP), ..self.plan.clone() };
        if self.untraced(warm_up, terminal).await?.is_none() {
            return Ok(rounds);
        }
        for number in 1..=asked {
            // The traced run is first and last in turns, so that drift is nobody's advantage.
            let Some(round) = self.round(number % 2 == 1, terminal).await? else { break };
            terminal.note(format!("round {number} of {asked}: {}", told(&round)));
            rounds.push(round);
        }
        Ok(rounds)
    }

    /// One round, with the traced run at its beginning or at its end; `None` if it was ended.
    async fn round(
        &mut self,
        traced_first: bool,
        terminal: &mut Terminal<'_>,
    ) -> Result<Option<Round>, CliError> {
        let with_agent = if traced_first { 0 } else { 2 };
        let (mut traced, mut alone) = (None, Vec::new());
        for run in 0..3 {
            if run == with_agent {
                let Some(found) = self.traced(terminal).await? else { return Ok(None) };
                let figures = judge::figures(&found.loads);
                traced = Some((figures, found));
            } else {
                let Some(figures) = self.untraced(self.plan.clone(), terminal).await? else {
                    return Ok(None);
                };
                alone.push(figures);
            }
        }
        // The middle run is next to both others.
        if traced_first {
            alone.reverse();
        }
        let (Some((traced, found)), [again, baseline]) = (traced, alone.as_slice()) else {
            return Ok(None);
        };
        self.figures.add(&found);
        Ok(Some(Round { traced, baseline: *baseline, again: *again }))
    }

    /// A run without an agent; `None` if it was ended.
    async fn untraced(
        &self,
        plan: Plan,
        terminal: &mut Terminal<'_>,
    ) -> Result<Option<Figures>, CliError> {
        let loads = self.heed(terminal, self.load(plan)).await?;
        Ok(self.is_going_on().then(|| judge::figures(&loads)))
    }

    /// A run with an agent; `None` if it was ended.
    async fn traced(&self, terminal: &mut Terminal<'_>) -> Result<Option<Traced>, CliError> {
        self.heed(terminal, async {
            let Some(mut agent) = Agent::start(&self.options, &self.stop).await? else {
                return Ok(None);
            };
            let (cpu, start) = (cpu::of_process(agent.pid()), Instant::now());
            let loads = self.load(self.plan.clone()).await?;
            let seconds = start.elapsed().as_secs_f64();
            let cpu = cpu::of_process(agent.pid()).zip(cpu).map(|(now, then)| now.since(&then));
            if !self.is_going_on() {
                agent.stop().await?;
                return Ok(None);
            }
            let counted = agent.counted(&loads.datagrams).await?;
            let status = agent.status().await?;
            agent.stop().await?;
            if counted == 0 {
                return Err(unseen(&status));
            }
            let cpu_percent = cpu.map(|cpu| cpu / seconds * 100.0);
            Ok(Some(Traced { loads, cpu_percent, counted, status }))
        })
        .await
    }

    async fn load(&self, plan: Plan) -> Result<Loads, CliError> {
        let far = plan.target;
        blocking(move || plan.run()).await.map_err(|error| {
            CliError::Measure(match far {
                Some(far) => format!(
                    "the far end at {far} failed ({error}); is `orb8 bench --listen` running there?"
                ),
                None => format!("the load over loopback failed: {error}"),
            })
        })
    }

    fn is_going_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Works on; if somebody wants to end it, the work is told and still comes to its end.
    async fn heed<T>(&self, terminal: &mut Terminal<'_>, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        // A future that is complete must not be asked again.
        if self.is_going_on() {
            tokio::select! {
                done = &mut work => return done,
                () = &mut terminal.interrupt => self.stop.store(true, Ordering::Relaxed),
            }
        }
        work.await
    }
}

/// The agent counted nothing of the load.
fn unseen(status: &AgentStatus) -> CliError {
    let why = if status.health_message.is_empty() {
        format!("it counts at {} ({})", page::place(&status.capture), status.capture_reason)
    } else {
        status.health_message.clone()
    };
    CliError::Usage(format!(
        "the agent sees nothing of this load, so there is nothing to compare: {why}; over loopback use \
         --capture socket or `sudo ORB8_INTERFACES=lo orb8 bench`, or measure over a link with --target"
    ))
}

/// A round in a few words.
fn told(round: &Round) -> String {
    let words = judge::MEASURES.iter().enumerate().filter_map(|(at, measure)| {
        let ratio = round.traced[at]? / round.baseline[at]?;
        let word = match measure {
            judge::Measure::TcpRate => "TCP",
            judge::Measure::UdpRate => "UDP",
            judge::Measure::LatencyP50 => "time to answer",
            _ => return None,
        };
        Some(format!("{word} {ratio:.3}"))
    });
    let words: Vec<String> = words.collect();
    format!("traced to baseline {}", words.join(", "))
}

/// What agents said and took, run by run.
#[derive(Debug, Default)]
struct Sums {
    cpu_percent: Vec<f64>,
    sums: AgentFigures,
}

impl Sums {
    fn add(&mut self, run: &Traced) {
        let (status, sums) = (&run.status, &mut self.sums);
        self.cpu_percent.extend(run.cpu_percent);
        sums.version.clone_from(&status.version);
        sums.capture.clone_from(&status.capture);
        let memory = status.memory.unwrap_or_default();
        sums.resident_bytes = sums.resident_bytes.max(memory.resident_bytes);
        sums.map_bytes = sums.map_bytes.max(memory.map_bytes);
        sums.datagrams += run.loads.datagrams.ends();
        sums.datagrams_counted += run.counted;
        let packets = status.packet_ledger.iter().flat_map(|ledger| &ledger.lost);
        // What passed before the agent counted is not of the load.
        let packets = packets.filter(|loss| loss.stage != "unattached");
        sums.lost_packets += packets.map(|loss| loss.packets).sum::<u64>();
        let events = status.event_ledger.iter().flat_map(|ledger| &ledger.lost);
        sums.lost_events += events.map(|loss| loss.events).sum::<u64>();
        let ledger = status.packet_ledger.as_ref().map_or("", |ledger| ledger.state.as_str());
        if sums.ledger != "unbalanced" {
            ledger.clone_into(&mut sums.ledger);
        }
        let governor = status.governor.clone().unwrap_or_default();
        sums.governor_steps += governor.steps;
        for given_up in governor.given_up {
            if !sums.given_up.contains(&given_up) {
                sums.given_up.push(given_up);
            }
        }
        if sums.health_message.is_empty() {
            sums.health_message.clone_from(&status.health_message);
        }
    }

    fn finish(self) -> AgentFigures {
        let cpu_percent = (!self.cpu_percent.is_empty()).then(|| median(&self.cpu_percent));
        AgentFigures { cpu_percent, ..self.sums }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn of_several_addresses_the_first_that_answers_is_taken() {
        let listening = TcpListener::bind("127.0.0.1:0").unwrap();
        let answers = listening.local_addr().unwrap();
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(first_that_answers(&[gone, answers]), Some(answers));
        assert_eq!(first_that_answers(&[answers, gone]), Some(answers));
        // Who reports it says why.
        assert_eq!(first_that_answers(&[gone, gone]), Some(gone));
        assert_eq!(first_that_answers(&[]), None);
    }
}
