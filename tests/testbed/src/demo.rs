//! The story that `make demo` tells: a shop in a cluster of two nodes, from the first packet to
//! the names on the screen, each number compared with what was sent.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a demo is there to be read")]

mod check;

use std::io::{BufRead as _, BufReader, IsTerminal as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::agent::{AgentProcess, Captured, Cli};
use crate::api::object::{self, Owner};
use crate::bpf::{Hook, attached};
use crate::cluster::actor::Actor;
use crate::cluster::node::Node;
use crate::cluster::plan::{Plan, PodPlan};
use crate::cluster::pod::Pod;
use crate::cluster::proxy::Service;
use crate::cluster::talk::{self, Talk};
use crate::cluster::{Cluster, port};
use crate::link::Family::V4;
use crate::wait::wait_until;

/// How long the live trace runs.
const TRACE_SECONDS: u64 = 5;
/// Pause after a round of traffic, so that a person can follow the trace.
const PACE: Duration = Duration::from_millis(1500);
/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// The pods behind the Service, as `check` has them.
const WEB: [&str; 2] = ["pod shop/web-7d4b9c-x2k8q", "pod shop/web-7d4b9c-m5p7t"];

/// The two programs that the demo shows.
#[derive(Debug)]
pub struct Programs {
    /// `orb8-agent`.
    pub agent: PathBuf,
    /// `orb8`.
    pub cli: PathBuf,
}

/// What is on the stage.
struct Shop {
    cluster: Cluster,
    client: Pod,
    web: [Pod; 2],
    exporter: Pod,
    backup: Actor,
    service: Service,
}

/// A talk, and who its ends are to be.
struct Told {
    what: &'static str,
    client: &'static str,
    dialled: &'static str,
    /// Who answers, where that is another than the one that was dialled.
    answers: &'static str,
    talk: Talk,
}

/// Tells the story.
///
/// # Errors
/// What was not as it should be.
pub fn run(programs: &Programs) -> anyhow::Result<()> {
    heading("A cluster of two nodes: network namespaces, cgroups, iptables, and an API server");
    let shop = Shop::open();
    shop.introduce();
    heading("orb8-agent starts on each node, with three capabilities");
    let agents: Vec<AgentProcess> = shop
        .cluster
        .nodes()
        .iter()
        .map(|node| {
            shop.cluster
                .agent(node.number, &programs.agent)
                .env("ORB8_GRPC_LISTEN", "0.0.0.0")
                .env("RUST_LOG", "warn")
                .start(&node.netns)
        })
        .collect();
    let cli = Asker { cli: Cli::of(&programs.cli, &shop.cluster.switch), agents: shop.addresses() };
    wait_until(DEADLINE, "both agents to be ready", || cli.is_ready());
    println!("  Both are attached and in step with the API, and nothing of their own is told.");

    let events = Events::start(&cli)?;
    heading(&format!("A live trace of {TRACE_SECONDS} s, while the shop is busy"));
    let told = trace(&cli, &shop)?;

    heading("The flows that the two agents hold, with names at both ends");
    settle(&cli, &told, &events)?;
    cli.show("flows -n shop --sort bytes --limit 16")?;
    heading("The same as conversations: both directions and both ends in one line");
    cli.show("flows --conversations")?;
    heading("What the client asked the Service, line by line as JSON");
    cli.show(
        "flows --pod shop/client --service shop/web --direction egress -o jsonl \
         --fields pod_name,dst_ip,packets,bytes",
    )?;
    heading("How the agents know, and whether it adds up");
    cli.show("status")?;

    heading("Is it right?");
    println!("{}", check::all(&cli, &told, &events.text())?);
    drop(events);
    finish(&shop, agents)
}

/// Stops the agents; nothing of them stays.
fn finish(shop: &Shop, agents: Vec<AgentProcess>) -> anyhow::Result<()> {
    for agent in agents {
        let (status, log) = agent.stop();
        ensure!(status.success(), "an agent ended with {status}:\n{log}");
    }
    for node in shop.cluster.nodes() {
        for hook in [Hook::Ingress, Hook::Egress] {
            let left = attached(&node.netns, "eth0", hook);
            ensure!(left.is_empty(), "the agents have stopped, but left programs: {left:?}");
        }
    }
    println!("  The agents have stopped; nothing of them is left in the kernel.\n");
    Ok(())
}

impl Shop {
    fn open() -> Self {
        let cluster = Cluster::new(Plan::default());
        for namespace in ["shop", "monitoring"] {
            cluster.api.put(object::namespace(namespace));
        }
        let deployment = Owner::new("Deployment", "web");
        let set = Owner::new("ReplicaSet", "web-7d4b9c");
        cluster.api.put(object::owned(
            "ReplicaSet",
            "shop",
            &set.name,
            &set.uid,
            Some(&deployment),
        ));
        let web = [("shop/web-7d4b9c-x2k8q", 1), ("shop/web-7d4b9c-m5p7t", 2)]
            .map(|(name, node)| cluster.pod(PodPlan::new(name, node).owner(&set)));
        let client = cluster.simple("shop/client", 1);
        let exporter = cluster.pod(PodPlan::new("monitoring/node-exporter", 2).host_network());
        let backup = cluster.host_process(1, "backup.service");
        let ports = [port("TCP", 80, 8080, 0)];
        let service = cluster.service("shop/web", &ports, &[&web[0], &web[1]]);
        Self { cluster, client, web, exporter, backup, service }
    }

    fn introduce(&self) {
        for node in self.cluster.nodes() {
            println!("  {:<42} {}", node.name, node.addresses()[0]);
            for pod in self.pods().filter(|pod| pod.node == node.number) {
                let (namespace, name) = pod.key();
                let host = if pod.object.host_network { "  hostNetwork" } else { "" };
                println!("    {:<40} {}{host}", format!("{namespace}/{name}"), pod.address(V4));
            }
        }
        let dial = self.dial();
        println!("  {:<42} {dial}, two pods behind it", "Service shop/web");
    }

    fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.web.iter().chain([&self.client, &self.exporter])
    }

    /// Where the agents are reached.
    fn addresses(&self) -> Vec<SocketAddr> {
        let of = |node: &Node| SocketAddr::new(node.addresses()[0], 9090);
        self.cluster.nodes().iter().map(of).collect()
    }

    fn dial(&self) -> SocketAddr {
        SocketAddr::new(self.service.ips[0], 80)
    }

    /// One round of traffic.
    fn trade(&self, told: &mut Vec<Told>) {
        let mut add = |what, client, dialled, answers, talk| {
            told.push(Told { what, client, dialled, answers, talk });
        };
        let [near, far] = &self.web;
        for _ in 0..3 {
            let backends = [&near.app, &far.app];
            let (number, talk) =
                talk::tcp_any(&self.client.app, &backends, self.dial(), 8080, 2_000, 400_000);
            let what = "a pod asks the Service";
            add(what, "pod shop/client", "service shop/web", WEB[number], talk);
        }
        let mut say = |what, client, dialled, talk| add(what, client, dialled, dialled, talk);
        let talk = talk::udp(&self.client.app, &far.app, far.at(V4, 5353), 20, 500);
        say("a pod asks a pod", "pod shop/client", WEB[1], talk);
        let outside = &self.cluster.outside;
        let dial = SocketAddr::new(outside.address(V4), 443);
        let talk = talk::tcp(&near.app, outside, dial, 900, 30_000);
        say("a pod asks the world", WEB[0], "external", talk);
        let talk = talk::tcp(&self.exporter.app, &near.app, near.at(V4, 9100), 500, 7_000);
        let exporter = "pod monitoring/node-exporter";
        say("a hostNetwork pod asks a pod", exporter, WEB[0], talk);
        let talk = talk::udp(&self.backup, &far.app, far.at(V4, 7000), 5, 1_200);
        say("a host process asks a pod", "process", WEB[1], talk);
    }
}

/// `orb8`, asking both agents from where both are reached.
struct Asker {
    cli: Cli,
    agents: Vec<SocketAddr>,
}

impl Asker {
    fn line(&self, line: &str) -> String {
        let agents = self.agents.iter().map(|agent| format!("--agent {agent} "));
        agents.chain([line.to_owned()]).collect()
    }

    /// Runs it for the reader.
    fn show(&self, line: &str) -> anyhow::Result<()> {
        let line = self.line(line);
        println!("$ orb8 {line}");
        let status = self.cli.command(&line).status().context("starting orb8")?;
        ensure!(status.success(), "orb8 {line} ended with {status}");
        Ok(())
    }

    fn json(&self, line: &str) -> anyhow::Result<Value> {
        let answer = self.cli.run(&self.line(&format!("{line} -o json")));
        ensure!(answer.code == Some(0), "orb8 {line}: {:?}\n{}", answer.code, answer.stderr);
        serde_json::from_str(&answer.stdout).context("the answer is not JSON")
    }

    /// The status of each agent.
    fn statuses(&self) -> anyhow::Result<Vec<Value>> {
        self.agents
            .iter()
            .map(|agent| {
                let answer = self.cli.run(&format!("--agent {agent} status -o json"));
                ensure!(answer.code == Some(0), "orb8 status: {}", answer.stderr);
                serde_json::from_str(&answer.stdout).context("a status is not JSON")
            })
            .collect()
    }

    /// Whether so many watch each agent.
    fn is_watched_by(&self, watchers: usize) -> bool {
        let watched = |status: &Value| {
            status["subscribers"].as_array().is_some_and(|all| all.len() >= watchers)
        };
        self.statuses().is_ok_and(|all| all.iter().all(watched))
    }

    fn is_ready(&self) -> bool {
        self.statuses().is_ok_and(|all| {
            all.iter().all(|status| {
                let interfaces = status["interfaces"].as_array().cloned().unwrap_or_default();
                status["healthy"] == true
                    && status["kubernetes"]["state"] == "synced"
                    && interfaces.len() > 1
                    && interfaces.iter().all(|one| one["state"] == "attached")
            })
        })
    }
}

/// A trace beside the one that is shown, as programs read it, until it is dropped.
struct Events {
    child: Child,
    lines: Captured,
}

impl Events {
    fn start(cli: &Asker) -> anyhow::Result<Self> {
        let mut command = cli.cli.command(&cli.line("trace network -o json"));
        let mut child =
            command.stdout(Stdio::piped()).spawn().context("starting orb8 trace -o json")?;
        let lines = Captured::follow(child.stdout.take().context("stdout is piped")?);
        let events = Self { child, lines };
        wait_until(DEADLINE, "the trace of events to begin", || cli.is_watched_by(1));
        Ok(events)
    }

    /// The lines that have come.
    fn text(&self) -> String {
        self.lines.text()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Waits until everything that was sent has been counted and told.
fn settle(cli: &Asker, told: &[Told], events: &Events) -> anyhow::Result<()> {
    let end = Instant::now() + DEADLINE;
    while let Err(why) = check::all(cli, told, &events.text()) {
        ensure!(Instant::now() < end, "after {} s: {why:#}", DEADLINE.as_secs());
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

fn heading(text: &str) {
    println!("\n== {text}");
}

/// Traces while traffic flows; returns what was said.
fn trace(cli: &Asker, shop: &Shop) -> anyhow::Result<Vec<Told>> {
    let color = if std::io::stdout().is_terminal() { "always" } else { "never" };
    let line = cli.line(&format!("trace network --pod shop/client --duration {TRACE_SECONDS}s"));
    println!("$ orb8 {line}");
    let mut command = cli.cli.command(&line);
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
    wait_until(DEADLINE, "the trace to begin", || cli.is_watched_by(2));
    let mut told = Vec::new();
    for _ in 0..2 {
        shop.trade(&mut told);
        std::thread::sleep(PACE);
    }
    let status = child.wait().context("waiting for orb8 trace")?;
    let Ok(lines) = reader.join() else { bail!("the trace could not be read") };
    ensure!(status.success(), "orb8 trace ended with {status}");
    for word in ["shop/client", "shop/web", "svc shop/web"] {
        ensure!(lines.iter().any(|line| line.contains(word)), "the trace shows no {word}");
    }
    Ok(told)
}
