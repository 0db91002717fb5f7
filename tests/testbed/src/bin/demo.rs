//! `make demo`: two hosts made of network namespaces, real traffic between them, an agent on one
//! of them, and what `orb8` says. Checks the answers and ends with 1 if one is wrong.
//!
//! Leaves nothing behind, however it ends: namespaces live as long as this process, and the agent
//! dies with it.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a demo is there to be read")]

use std::io::{BufRead as _, BufReader, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use orb8_testbed::agent::{AgentOptions, Cli};
use orb8_testbed::bpf::{Hook, attached};
use orb8_testbed::flow::{self, L4, Total, Traffic};
use orb8_testbed::link::{Family, Port, Veth, VethOptions};
use orb8_testbed::need::KERNEL;
use orb8_testbed::traffic;
use orb8_testbed::wait::wait_until;
use serde_json::Value;

const USAGE: &str = "\
Usage: demo [--bin-dir DIR]

Two hosts made of network namespaces, an agent on one of them, real traffic, and what orb8 shows.

  --bin-dir DIR  where orb8 and orb8-agent are (default: target/release)
";

/// How long the live trace runs.
const TRACE_SECONDS: u64 = 5;
/// Pause after a round of traffic, so that a person can follow the trace.
const PACE: Duration = Duration::from_millis(1500);
/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let dir = match folder() {
        Ok(Some(dir)) => dir,
        Ok(None) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("demo: {error:#}");
            return ExitCode::from(2);
        }
    };
    let missing: Vec<String> = KERNEL.iter().filter_map(|need| need.missing()).collect();
    if !missing.is_empty() {
        eprintln!("The demo puts programs into the kernel, and something for that is missing:");
        for why in missing {
            eprintln!("  - {why}");
        }
        return ExitCode::FAILURE;
    }
    end_on_signals();
    match std::panic::catch_unwind(|| run(&Programs::in_folder(&dir)?)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("\nThe demo failed: {error:#}");
            ExitCode::FAILURE
        }
        Err(_told_by_the_panic_hook) => ExitCode::FAILURE,
    }
}

/// The two programs that the demo shows.
struct Programs {
    agent: PathBuf,
    cli: PathBuf,
}

impl Programs {
    fn in_folder(dir: &Path) -> anyhow::Result<Self> {
        let program = |name: &str| -> anyhow::Result<PathBuf> {
            let file = dir.join(name);
            ensure!(file.is_file(), "{} does not exist: run `make build`", file.display());
            Ok(file)
        };
        Ok(Self { agent: program("orb8-agent")?, cli: program("orb8")? })
    }
}

/// Where the programs are; `None` if help was asked for.
fn folder() -> anyhow::Result<Option<PathBuf>> {
    let mut dir = None;
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--help" | "-h") => return Ok(None),
            Some("--bin-dir") => {
                dir = Some(PathBuf::from(arguments.next().context("--bin-dir needs a folder")?));
            }
            _ => bail!("unknown argument {}, see --help", argument.display()),
        }
    }
    dir.map_or_else(default_dir, Ok).map(Some)
}

/// `target/release`, seen from `target/<profile>/demo`.
fn default_dir() -> anyhow::Result<PathBuf> {
    let exe = std::env::current_exe().context("the demo's own path")?;
    let target = exe.parent().and_then(Path::parent).context("the demo's own folder")?;
    Ok(target.join("release"))
}

/// Ends the process on Ctrl-C and SIGTERM; the kernel does the rest.
fn end_on_signals() {
    // SAFETY: a signal set is plain data that the next call fills.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is ours. Threads started from here on inherit the mask; programs do not, since
    // the testbed starts them with an empty one.
    unsafe {
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGINT);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
    }
    std::thread::spawn(move || {
        let mut signal = 0;
        // SAFETY: both are ours and outlive the call.
        unsafe { libc::sigwait(&raw const set, &raw mut signal) };
        eprintln!("\nStopped. Agent, namespaces and links are gone.");
        std::process::exit(128 + signal);
    });
}

fn run(programs: &Programs) -> anyhow::Result<()> {
    heading("Two hosts, alpha and beta, each a network namespace, joined by a veth pair");
    let veth = Veth::addressed(VethOptions { segmentation: true, ..VethOptions::default() });
    let (alpha, beta) = (&veth.near, &veth.far);
    traffic::plain_tcp([alpha, beta]);
    for (name, port) in [("alpha", alpha), ("beta", beta)] {
        println!("  {name:<6} {}  {}", port.v4, port.v6);
    }
    heading("orb8-agent starts on alpha");
    let agent = AgentOptions::of(&programs.agent)
        .env("NODE_NAME", "alpha")
        .env("ORB8_INTERFACES", &alpha.ifname)
        .env("ORB8_EXPIRATION_INTERVAL_SECS", 1)
        .env("RUST_LOG", "warn")
        .start(&alpha.netns);
    let cli = Cli::of(&programs.cli, &alpha.netns);
    wait_until(DEADLINE, "the agent to be ready", || ready(&cli, &alpha.ifname));
    show(&cli, "status")?;

    heading(&format!("A live trace of {TRACE_SECONDS} s, while both hosts talk"));
    let sent = trace(&cli, alpha, beta)?;

    heading("The flows that the agent holds");
    wait_until(DEADLINE, "all packets to be answered", || {
        answered(&cli).is_ok_and(|traffic| traffic.total().packets >= sent.total().packets)
    });
    show(&cli, "flows --sort bytes --limit 24")?;
    heading("Only what beta sends over IPv6 and TCP, as JSON");
    show(&cli, "flows -6 --from-ip fd77::2 --protocol tcp -o json --fields src_ip,dst_ip,bytes")?;

    heading("Is it right?");
    check(&cli, &sent)?;
    let (status, log) = agent.stop();
    ensure!(status.success(), "the agent ended with {status}:\n{log}");
    for hook in [Hook::Ingress, Hook::Egress] {
        let left = attached(&alpha.netns, &alpha.ifname, hook);
        ensure!(left.is_empty(), "the agent has stopped, but left programs: {left:?}");
    }
    println!("  The agent has stopped; nothing of it is left in the kernel.\n");
    Ok(())
}

fn heading(text: &str) {
    println!("\n== {text}");
}

/// Runs the CLI for the reader.
fn show(cli: &Cli, line: &str) -> anyhow::Result<()> {
    println!("$ orb8 {line}");
    let status = cli.command(line).status().context("starting orb8")?;
    ensure!(status.success(), "orb8 {line} ended with {status}");
    Ok(())
}

fn ready(cli: &Cli, ifname: &str) -> bool {
    let answer = cli.run("status -o json");
    if answer.code != Some(0) {
        return false;
    }
    let status = answer.json();
    let interfaces = status["interfaces"].as_array().cloned().unwrap_or_default();
    let interface = interfaces.iter().any(|i| i["name"] == ifname && i["state"] == "attached");
    interface && status["healthy"] == true
}

/// Traces while traffic flows; returns what was sent.
fn trace(cli: &Cli, alpha: &Port, beta: &Port) -> anyhow::Result<Traffic> {
    let color = if std::io::stdout().is_terminal() { "always" } else { "never" };
    let line = format!("trace network --duration {TRACE_SECONDS}s");
    println!("$ orb8 {line}");
    let mut command = cli.command(&line);
    let mut child = command
        .args(["--color", color])
        .stdout(Stdio::piped())
        .spawn()
        .context("starting orb8 trace")?;
    let pipe = child.stdout.take().context("stdout is piped")?;
    let reader = std::thread::spawn(move || {
        let lines = BufReader::new(pipe).lines().map_while(Result::ok);
        lines.inspect(|line| println!("{line}")).collect::<Vec<_>>()
    });
    wait_until(DEADLINE, "the trace to begin", || {
        let answer = cli.run("status -o json");
        answer.code == Some(0)
            && answer.json()["subscribers"].as_array().is_some_and(|s| !s.is_empty())
    });
    let mut sent = Traffic::new();
    for family in Family::ALL {
        talk(alpha, beta, family, &mut sent);
        std::thread::sleep(PACE);
    }
    let status = child.wait().context("waiting for orb8 trace")?;
    let Ok(lines) = reader.join() else { bail!("the trace could not be read") };
    ensure!(status.success(), "orb8 trace ended with {status}");
    for word in ["tcp", "udp", "icmp", "icmpv6"] {
        let shown = lines.iter().any(|line| line.to_lowercase().contains(word));
        ensure!(shown, "the trace shows no {word}");
    }
    Ok(sent)
}

/// One round of traffic in both directions.
fn talk(alpha: &Port, beta: &Port, family: Family, sent: &mut Traffic) {
    for part in [
        traffic::echo(alpha, beta, family, 3, 56),
        traffic::udp(alpha, beta, family, 20, 500),
        traffic::udp(beta, alpha, family, 5, 1200),
        traffic::tcp(alpha, beta, family, 2_000, 3_000_000).traffic,
    ] {
        for (&flow, total) in part.iter() {
            sent.add(flow, total.packets, total.bytes);
        }
    }
}

/// What the agent answers, in the testbed's words.
fn answered(cli: &Cli) -> anyhow::Result<Traffic> {
    let answer = cli.run("flows -o json --limit 1000");
    ensure!(answer.code == Some(0), "orb8 flows ended with {:?}:\n{}", answer.code, answer.stderr);
    let document = answer.json();
    let flows = document["flows"].as_array().context("no list of flows in the answer")?;
    flows.iter().map(row).collect()
}

fn row(row: &Value) -> anyhow::Result<(flow::Flow, Total)> {
    let text = |key: &str| row[key].as_str().with_context(|| format!("no {key} in {row}"));
    let number = |key: &str| row[key].as_u64().with_context(|| format!("no {key} in {row}"));
    let (src, dst) = (text("src_ip")?.parse()?, text("dst_ip")?.parse()?);
    let protocol = match text("protocol")? {
        "tcp" => flow::TCP,
        "udp" => flow::UDP,
        "icmp" => flow::ICMP,
        "icmpv6" => flow::ICMPV6,
        other => bail!("nobody sent protocol {other}"),
    };
    let l4 = if matches!(protocol, flow::ICMP | flow::ICMPV6) {
        let part = |key: &str| row["icmp"][key].as_u64().context("no ICMP type and code");
        L4::Icmp { kind: u8::try_from(part("type")?)?, code: u8::try_from(part("code")?)? }
    } else {
        L4::Ports {
            src: u16::try_from(number("src_port")?)?,
            dst: u16::try_from(number("dst_port")?)?,
        }
    };
    let total = Total { packets: number("packets")?, bytes: number("bytes")? };
    Ok((flow::Flow { src, dst, protocol, l4 }, total))
}

/// Every flow has exactly the packets and bytes that were sent, and nothing was lost.
fn check(cli: &Cli, sent: &Traffic) -> anyhow::Result<()> {
    let found = answered(cli)?;
    let wrong = found.difference(sent);
    ensure!(wrong.is_empty(), "orb8 and the senders do not agree:\n{wrong}");
    println!("  {} flows, {}: exactly what was sent.", found.len(), found.total());
    let status = cli.run("status -o json").json();
    ensure!(status["healthy"] == true, "the agent is not healthy: {}", status["health_message"]);
    let ledger = &status["packet_ledger"];
    ensure!(ledger["state"] == "balanced", "the packet ledger is not balanced: {ledger}");
    println!("  Packets seen by the probes: {}, all accounted for.", ledger["seen"]["packets"]);
    Ok(())
}
