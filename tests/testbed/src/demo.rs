//! The story that `make demo` tells: a shop in a cluster of two nodes, from the first packet to
//! the names on the screen, each number compared with what was sent.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a demo is there to be read")]

use std::io::{BufRead as _, BufReader, IsTerminal as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::agent::{AgentProcess, Cli};
use crate::api::object::{self, Owner};
use crate::bpf::{Hook, attached};
use crate::cluster::actor::Actor;
use crate::cluster::node::Node;
use crate::cluster::plan::{Plan, PodPlan};
use crate::cluster::pod::Pod;
use crate::cluster::proxy::Service;
use crate::cluster::talk::{self, Talk};
use crate::cluster::{Cluster, port};
use crate::flow::{Flow, TCP, UDP};
use crate::link::Family::V4;
use crate::wait::wait_until;

/// How long the live trace runs.
const TRACE_SECONDS: u64 = 5;
/// Pause after a round of traffic, so that a person can follow the trace.
const PACE: Duration = Duration::from_millis(1500);
/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(30);

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

    heading(&format!("A live trace of {TRACE_SECONDS} s, while the shop is busy"));
    let told = trace(&cli, &shop)?;

    heading("The flows that the two agents hold, with names at both ends");
    wait_until(DEADLINE, "all packets to be answered", || check(&cli, &told).is_ok());
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
    println!("{}", check(&cli, &told)?);
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
        let mut say = |what, client, dialled, talk| told.push(Told { what, client, dialled, talk });
        let [near, far] = &self.web;
        for _ in 0..3 {
            let backends = [&near.app, &far.app];
            let (_, talk) =
                talk::tcp_any(&self.client.app, &backends, self.dial(), 8080, 2_000, 400_000);
            say("a pod asks the Service", "pod shop/client", "service shop/web", talk);
        }
        let talk = talk::udp(&self.client.app, &far.app, far.at(V4, 5353), 20, 500);
        say("a pod asks a pod", "pod shop/client", "pod shop/web-7d4b9c-m5p7t", talk);
        let outside = &self.cluster.outside;
        let dial = SocketAddr::new(outside.address(V4), 443);
        let talk = talk::tcp(&near.app, outside, dial, 900, 30_000);
        say("a pod asks the world", "pod shop/web-7d4b9c-x2k8q", "external", talk);
        let talk = talk::tcp(&self.exporter.app, &near.app, near.at(V4, 9100), 500, 7_000);
        let exporter = "pod monitoring/node-exporter";
        say("a hostNetwork pod asks a pod", exporter, "pod shop/web-7d4b9c-x2k8q", talk);
        let talk = talk::udp(&self.backup, &far.app, far.at(V4, 7000), 5, 1_200);
        say("a host process asks a pod", "process", "pod shop/web-7d4b9c-m5p7t", talk);
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
    wait_until(DEADLINE, "the trace to begin", || {
        cli.statuses().is_ok_and(|all| {
            let watched = |status: &Value| {
                status["subscribers"].as_array().is_some_and(|one| !one.is_empty())
            };
            all.iter().all(watched)
        })
    });
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

/// The client's own row of each talk has exactly the packets and bytes that were sent, and the
/// right names at both ends.
fn check(cli: &Asker, told: &[Told]) -> anyhow::Result<String> {
    let document = cli.json("flows --no-supplement --limit 1000")?;
    let rows = document["flows"].as_array().context("no list of flows in the answer")?;
    let (mut packets, mut bytes) = (0, 0);
    for Told { what, client, dialled, talk } in told {
        let own: Vec<&Value> = rows
            .iter()
            .filter(|row| row["direction"] == "egress" && is(row, &talk.client))
            .filter(|row| end(&row["source"]) == *client)
            .collect();
        let [row] = own.as_slice() else {
            bail!("{what}: {} rows of {client} for {}", own.len(), talk.client);
        };
        ensure!(end(&row["destination"]) == *dialled, "{what}: not {dialled}, but {row}");
        ensure!(
            row["packets"] == talk.there.packets && row["bytes"] == talk.there.bytes,
            "{what}: {} were sent, not {row}",
            talk.there
        );
        packets += talk.there.packets;
        bytes += talk.there.bytes;
    }
    for status in cli.statuses()? {
        ensure!(status["healthy"] == true, "an agent is not healthy: {}", status["health_message"]);
        let ledger = &status["packet_ledger"];
        ensure!(ledger["state"] == "balanced", "a packet ledger is not balanced: {ledger}");
    }
    Ok(format!(
        "  {} conversations, {packets} packets and {bytes} bytes from their clients: \
         exactly what was sent,\n  by the right names. \
         Packets seen by the probes of both nodes: all accounted for.",
        told.len()
    ))
}

/// An end of a row in the demo's words.
fn end(end: &Value) -> String {
    let word = |key: &str| end[key].as_str().unwrap_or_default();
    match word("kind") {
        "pod" => format!("pod {}/{}", word("namespace"), word("pod")),
        "service" => format!("service {}/{}", word("namespace"), word("service")),
        kind => kind.to_owned(),
    }
}

fn is(row: &Value, flow: &Flow) -> bool {
    let protocol = match flow.protocol {
        TCP => "tcp",
        UDP => "udp",
        _ => return false,
    };
    let crate::flow::L4::Ports { src, dst } = flow.l4 else { return false };
    row["protocol"] == protocol
        && row["src_ip"] == flow.src.to_string()
        && row["dst_ip"] == flow.dst.to_string()
        && row["src_port"] == src
        && row["dst_port"] == dst
}
