//! An agent of our own: started, asked, stopped. It never outlives the run, unless that is killed.
//!
//! The agent is a program like any other here; nothing of its code is.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use orb8_proto::v1::condition::{Field, Side};
use orb8_proto::v1::{
    AgentStatus, Condition, FlowFilter, PortRange, Ports, QueryFlowsRequest, Strings,
};
use orb8_query::Client;
use orb8_query::rows::FlowRecord;
use orb8_util::duration;
use orb8_util::net::HostPort;

use super::args::BenchArgs;
use super::load::Datagrams;
use crate::error::CliError;

/// The agent's program.
const NAME: &str = "orb8-agent";
/// How long it may take to load its programs, and how long to detach them.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long counts may take from an answer of totals, which has them read, to one of flows.
const COUNTED: Duration = Duration::from_secs(2);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// Lines of its log that are kept.
const LINES: usize = 5;
/// Totals are asked for to have the lines read; kept for longer than [`COUNTED`], they are not begun anew
/// each time.
const KEEP: Duration = Duration::from_secs(60);

/// How agents are started.
#[derive(Clone, Debug)]
pub struct Options {
    program: PathBuf,
    arguments: Vec<&'static str>,
    timeout: Duration,
    /// How long one may take to answer, and to end.
    patience: Duration,
}

impl Options {
    /// As the words say.
    ///
    /// # Errors
    /// The file that is named is none.
    pub fn of(args: &BenchArgs, timeout: Duration) -> Result<Self, CliError> {
        let program = match &args.agent_binary {
            Some(file) if !file.is_file() => {
                let text = format!("--agent-binary {} is no file", file.display());
                return Err(CliError::Usage(text));
            }
            Some(file) => file.clone(),
            None => found(),
        };
        let mut arguments = vec!["--strict", "--rust-log", "warn", "--grpc-listen", "127.0.0.1"];
        if !args.kubernetes {
            arguments.extend(["--kubernetes", "off"]);
        }
        if let Some(capture) = args.capture {
            arguments.extend(["--capture", capture.word()]);
        }
        Ok(Self { program, arguments, timeout, patience: PATIENCE })
    }
}

/// The agent beside this program; else its name, which the system looks up in PATH.
fn found() -> PathBuf {
    let own = std::env::current_exe().and_then(std::fs::canonicalize);
    let beside = own.ok().map(|own| own.with_file_name(NAME));
    beside.filter(|file| file.is_file()).unwrap_or_else(|| PathBuf::from(NAME))
}

/// The last lines that a program says.
#[derive(Debug)]
struct Tail {
    lines: Arc<Mutex<VecDeque<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Tail {
    fn follow(pipe: impl Read + Send + 'static) -> Self {
        let lines = Arc::new(Mutex::new(VecDeque::new()));
        let kept = Arc::clone(&lines);
        let reader = std::thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while let Ok(1..) = pipe.read_until(b'\n', &mut line) {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.push_back(String::from_utf8_lossy(&line).trim_end().to_owned());
                if kept.len() > LINES {
                    kept.pop_front();
                }
                line.clear();
            }
        });
        Self { lines, reader: Some(reader) }
    }

    /// The last lines in one, once the program has ended.
    fn finish(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            // A reader that panicked has kept what came before.
            reader.join().ok();
        }
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(String::as_str).collect::<Vec<_>>().join("; ")
    }
}

/// A running agent. Dropping it stops it and waits until it has ended.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    log: Tail,
    address: HostPort,
    client: Client,
    patience: Duration,
}

impl Agent {
    /// Starts one. It answers, and counts, when this returns; `None` if `stop` was set meanwhile.
    ///
    /// # Errors
    /// There is no such program, or it ends, or it does not answer in time.
    pub async fn start(options: &Options, stop: &AtomicBool) -> Result<Option<Self>, CliError> {
        let mut agent = Self::spawn(options)?;
        let end = Instant::now() + agent.patience;
        while !stop.load(Ordering::Relaxed) {
            if let Some(status) = agent.child.try_wait().map_err(CliError::Runtime)? {
                let said = agent.log.finish();
                let text = format!("the agent ended with {status} before it answered: {said}");
                return Err(CliError::Measure(text));
            }
            if !agent.client.status().await.agents.is_empty() {
                return Ok(Some(agent));
            }
            if Instant::now() > end {
                let (address, time) = (&agent.address, duration::short(agent.patience));
                let text = format!("the agent did not answer at {address} in {time}");
                return Err(CliError::Measure(text));
            }
            tokio::time::sleep(LOOK).await;
        }
        agent.stop().await?;
        Ok(None)
    }

    fn spawn(options: &Options) -> Result<Self, CliError> {
        let port = free_port().map_err(CliError::Runtime)?;
        let mut command = Command::new(&options.program);
        command.args(&options.arguments).args(["--grpc-port", &port.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // Ctrl-C is for this process, which stops the agent in order.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().map_err(|error| no_agent(&options.program, &error))?;
        let log = match child.stderr.take() {
            Some(pipe) => Tail::follow(pipe),
            None => Tail::follow(std::io::empty()),
        };
        let address = HostPort { host: Ipv4Addr::LOCALHOST.to_string(), port };
        let client = Client::new(std::slice::from_ref(&address), options.timeout);
        Ok(Self { child, log, address, client, patience: options.patience })
    }

    /// Its process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it says of itself.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn status(&mut self) -> Result<AgentStatus, CliError> {
        let mut answer = self.client.status().await;
        if let Some(status) = answer.agents.pop() {
            return Ok(status);
        }
        Err(self.gone(answer.errors.first().map_or_else(String::new, ToString::to_string)))
    }

    /// How many of these datagrams it has counted, each end once: as many as there were, or what it has after a while.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn counted(&mut self, datagrams: &Datagrams) -> Result<u64, CliError> {
        let (request, end) = (of_ports(datagrams.ports), Instant::now() + COUNTED);
        loop {
            // Has what was counted until now read from the kernel.
            if let Err(error) = self.client.totals(&self.address, KEEP).await {
                return Err(self.gone(error.to_string()));
            }
            let answer = self.client.query_flows(&request).await;
            if let Some(error) = answer.errors.first() {
                return Err(self.gone(error.to_string()));
            }
            let records = answer.flows.iter().map(FlowRecord::from);
            let counted: u64 = records.map(|record| record.packets).sum();
            if counted >= datagrams.ends() || Instant::now() > end {
                return Ok(counted);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Stops it and waits until it has ended.
    ///
    /// # Errors
    /// It had ended before, or had to be killed.
    pub async fn stop(mut self) -> Result<(), CliError> {
        if self.child.try_wait().map_err(CliError::Runtime)?.is_some() {
            return Err(self.gone(String::new()));
        }
        terminate(&mut self.child);
        let end = Instant::now() + self.patience;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().map_err(CliError::Runtime)? {
                let said = self.log.finish();
                let text = || format!("the agent ended with {status} when asked to stop: {said}");
                return if ended_well(status) { Ok(()) } else { Err(CliError::Measure(text())) };
            }
            tokio::time::sleep(LOOK).await;
        }
        // Asked once more, it would be waited for once more.
        self.child.kill().ok();
        let time = duration::short(self.patience);
        Err(CliError::Measure(format!(
            "the agent did not stop in {time} and was killed, see `orb8-agent --cleanup`"
        )))
    }

    /// It does not answer any more: with its last words if it has ended.
    fn gone(&mut self, error: String) -> CliError {
        CliError::Measure(match self.child.try_wait() {
            Ok(Some(status)) => {
                format!("the agent ended with {status} while it was needed: {}", self.log.finish())
            }
            _ => error,
        })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let has_ended = |child: &mut Child| !matches!(child.try_wait(), Ok(None));
        if has_ended(&mut self.child) {
            return;
        }
        terminate(&mut self.child);
        let end = Instant::now() + self.patience;
        while !has_ended(&mut self.child) && Instant::now() < end {
            std::thread::sleep(LOOK);
        }
        // If it has ended meanwhile, both do nothing.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// True if it did as it was asked. One that had only just been started, and does not heed signals yet,
/// is ended by the signal itself.
fn ended_well(status: ExitStatus) -> bool {
    #[cfg(unix)]
    let asked = std::os::unix::process::ExitStatusExt::signal(&status)
        == Some(rustix::process::Signal::TERM.as_raw());
    #[cfg(not(unix))]
    let asked = true;
    status.success() || asked
}

/// Asks it to end in order.
#[cfg(unix)]
fn terminate(child: &mut Child) {
    use rustix::process::{Pid, Signal, kill_process};
    // It may have ended by itself.
    kill_process(Pid::from_child(child), Signal::TERM).ok();
}

#[cfg(not(unix))]
fn terminate(child: &mut Child) {
    child.kill().ok();
}

/// A port that nobody has now. Whoever takes it in between makes the agent end with that reason.
fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn no_agent(program: &Path, error: &std::io::Error) -> CliError {
    CliError::Usage(format!(
        "{} cannot be started ({error}): bench runs on the host that is measured and starts an agent \
         there; name it with --agent-binary FILE",
        program.display()
    ))
}

/// The flows between two ports, as totals have them.
fn of_ports(ports: [u16; 2]) -> QueryFlowsRequest {
    let either = |field| Condition { side: Side::Either.into(), negate: false, field: Some(field) };
    let port = |port: u16| {
        let range = PortRange { first: port.into(), last: port.into() };
        either(Field::Port(Ports { ranges: vec![range] }))
    };
    let udp = either(Field::Protocol(Strings { values: vec!["udp".to_owned()] }));
    let totals = either(Field::Supplement(false));
    let all = vec![port(ports[0]), port(ports[1]), udp, totals];
    QueryFlowsRequest { filter: Some(FlowFilter { all }), limit: 100, ..Default::default() }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use rustix::process::{Pid, test_kill_process};

    use super::*;

    /// A shell in the place of an agent.
    fn shell(script: &'static str, patience: Duration) -> Options {
        Options {
            program: PathBuf::from("/bin/sh"),
            arguments: vec!["-c", script, "agent"],
            timeout: Duration::from_secs(1),
            patience,
        }
    }

    /// One that has said `ready`.
    fn ready(script: &'static str, patience: Duration) -> Agent {
        let agent = Agent::spawn(&shell(script, patience)).unwrap();
        let end = Instant::now() + PATIENCE;
        while !agent.log.lines.lock().unwrap().contains(&"ready".to_owned()) {
            assert!(Instant::now() < end, "it is never ready");
            std::thread::yield_now();
        }
        agent
    }

    fn is_there(pid: u32) -> bool {
        let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        test_kill_process(pid).is_ok()
    }

    /// Heeds no request to end; what it says comes when it no longer does.
    const DEAF: &str = "trap '' TERM; echo ready >&2; exec sleep 600";

    #[tokio::test]
    async fn an_agent_that_does_not_stop_is_killed_and_told() {
        let agent = ready(DEAF, Duration::from_millis(100));
        let pid = agent.pid();
        let error = agent.stop().await.unwrap_err().to_string();
        assert!(error.contains("the agent did not stop in 100ms and was killed"), "{error}");
        assert!(!is_there(pid));
    }

    #[test]
    fn an_agent_that_is_let_go_and_does_not_stop_is_killed_too() {
        let agent = ready(DEAF, Duration::from_millis(100));
        let pid = agent.pid();
        assert!(is_there(pid));
        drop(agent);
        assert!(!is_there(pid));
    }

    #[tokio::test]
    async fn an_agent_that_never_answers_is_given_up() {
        let silent = shell("exec sleep 600", Duration::from_millis(100));
        let error = Agent::start(&silent, &AtomicBool::new(false)).await.unwrap_err().to_string();
        let said = error.contains("the agent did not answer at 127.0.0.1:");
        assert!(said && error.ends_with(" in 100ms"), "{error}");
    }

    #[tokio::test]
    async fn an_agent_that_is_gone_while_it_is_needed_is_told_with_its_last_words() {
        let mut agent = Agent::spawn(&shell("echo out of luck >&2; exit 3", PATIENCE)).unwrap();
        agent.child.wait().unwrap();
        let datagrams =
            Datagrams { sent: 1, received: 1, late: 0, seconds: 1.0, cpu: None, ports: [7, 8] };
        let errors = [
            agent.counted(&datagrams).await.unwrap_err().to_string(),
            agent.status().await.unwrap_err().to_string(),
            agent.stop().await.unwrap_err().to_string(),
        ];
        let told = "the agent ended with exit status: 3 while it was needed: out of luck";
        for error in errors {
            assert!(error.contains(told), "{error}");
        }
    }

    #[tokio::test]
    async fn an_agent_that_fails_while_it_stops_is_told_with_its_last_words() {
        const TORN: &str =
            "trap 'echo torn >&2; exit 5' TERM; echo ready >&2; while :; do sleep 0.01; done";
        let error = ready(TORN, PATIENCE).stop().await.unwrap_err().to_string();
        let told = "the agent ended with exit status: 5 when asked to stop: ready; torn";
        assert!(error.contains(told), "{error}");
    }

    #[tokio::test]
    async fn somebody_who_ends_it_waits_for_no_answer() {
        let silent = shell("echo ready >&2; exec sleep 600", PATIENCE);
        let found = Agent::start(&silent, &AtomicBool::new(true)).await.unwrap();
        assert!(found.is_none());
    }
}
