//! A simulated cluster with an agent on every node, and what the agents answer, as lines that a
//! person would say: who talked to whom, how much, and how that is known.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses another part")]

pub mod ask;
pub mod rows;

use std::path::Path;
use std::time::{Duration, Instant};

use orb8_proto::v1::{AgentStatus, NetworkFlow, QueryFlowsRequest, QueryFlowsResponse};
use orb8_testbed::agent::AgentProcess;
use orb8_testbed::api::object::wall_second;
use orb8_testbed::cluster::Cluster;
use orb8_testbed::cluster::node::Node;
use orb8_testbed::cluster::plan::Plan;
use orb8_testbed::wait::{wait_for, wait_until};

use ask::{Trace, ask};
use rows::{Row, line};

/// How long what happened may take to be answered, with every core busy with other tests.
pub const DEADLINE: Duration = Duration::from_secs(40);
/// The most that an agent answers, and more flows than any test makes.
pub const ALL: u32 = 100_000;

/// Time between two questions to an agent, which are connections of their own.
const PAUSE: Duration = Duration::from_millis(50);

/// `ORB8_CAPTURE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capture {
    Auto,
    Socket,
    Tc,
}
pub use Capture::{Auto, Socket, Tc};

impl Capture {
    pub const ALL: [Self; 3] = [Auto, Socket, Tc];

    pub fn word(self) -> &'static str {
        match self {
            Auto => "auto",
            Socket => "socket",
            Tc => "tc",
        }
    }

    /// The plane that a pod's totals come from.
    pub fn plane(self) -> &'static str {
        match self {
            Auto | Socket => "socket",
            Tc => "tc",
        }
    }
}

/// A cluster with an agent on every node.
pub struct Scene {
    // Before the cluster, so that agents end while their nodes are there.
    agents: Vec<Option<AgentProcess>>,
    traces: Vec<Trace>,
    pub cluster: Cluster,
    pub capture: Capture,
    settings: Vec<(String, String)>,
}

impl Scene {
    /// Agents that are ready: attached, and in step with the API.
    pub fn start(plan: Plan, capture: Capture) -> Self {
        let mut scene = Self::without_agents(plan, capture);
        scene.start_agents();
        scene
    }

    /// The cluster alone, for what is to be there before the agents.
    pub fn without_agents(plan: Plan, capture: Capture) -> Self {
        let cluster = Cluster::new(plan);
        Self { agents: Vec::new(), traces: Vec::new(), cluster, capture, settings: Vec::new() }
    }

    /// A setting of the agents that are yet to start.
    pub fn env(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.settings.push((name.to_owned(), value.to_string()));
        self
    }

    /// Starts an agent on every node and waits until each is ready.
    pub fn start_agents(&mut self) {
        self.start_agents_unready();
        for node in self.cluster.nodes() {
            self.wait_ready(node.number);
            self.traces.push(Trace::follow(&node.netns, self.cluster.plan.cni));
        }
    }

    /// Starts an agent on every node and waits for their ports only.
    pub fn start_agents_unready(&mut self) {
        for node in self.cluster.nodes() {
            let program = Path::new(env!("CARGO_BIN_EXE_orb8-agent"));
            let mut options = self
                .cluster
                .agent(node.number, program)
                .env("ORB8_CAPTURE", self.capture.word())
                .env("ORB8_MAX_QUERY_LIMIT", ALL);
            for (name, value) in &self.settings {
                options = options.env(name, value);
            }
            self.agents.push(Some(options.start(&node.netns)));
        }
    }

    pub fn node(&self, number: u8) -> &Node {
        self.cluster.node(number)
    }

    /// The agent of a node.
    pub fn agent(&self, node: u8) -> &AgentProcess {
        self.agents[usize::from(node) - 1].as_ref().expect("an agent that was not stopped")
    }

    /// Stops the agent of a node; its log.
    pub fn stop(&mut self, node: u8) -> String {
        let agent = self.agents[usize::from(node) - 1].take().expect("stopped once");
        let (status, log) = agent.stop();
        assert!(status.success(), "the agent of node{node} ended with {status}:\n{log}");
        log
    }

    /// Waits until an agent is attached to everything, knows the cluster and has drained once: who
    /// began a talk that was there before, it does not know.
    #[track_caller]
    pub fn wait_ready(&self, node: u8) {
        self.wait_status(node, "an agent in step with the API", |status| {
            let attached = status.interfaces.iter().all(|one| one.state == "attached");
            let known = status.kubernetes.as_ref().is_some_and(|k| k.state == "synced");
            status.healthy && attached && known && status.uptime_seconds >= 2
        });
    }

    /// Waits until a pod's link is attached where links matter.
    #[track_caller]
    pub fn wait_links(&self, node: u8, links: usize) {
        if self.capture == Socket {
            return;
        }
        self.wait_status(node, &format!("{links} attached pod links"), |status| {
            let links_now = status
                .interfaces
                .iter()
                .filter(|one| one.chosen_by == "pod_link" && one.state == "attached");
            links_now.count() == links
        });
    }

    /// Waits until agents know this many Services and have their backends.
    #[track_caller]
    pub fn wait_services(&self, nodes: &[u8], count: u64) {
        for &node in nodes {
            self.wait_status(node, &format!("{count} Services"), |status| {
                let known = |name: &str| {
                    let resources = status.kubernetes.iter().flat_map(|k| &k.resources);
                    resources.filter(|one| one.name == name).map(|one| one.objects).sum::<u64>()
                };
                known("services") >= count && known("endpointslices") >= count
            });
        }
    }

    pub fn status(&self, node: u8) -> AgentStatus {
        ask::status(&self.node(node).netns)
    }

    /// Waits until the status says so; the last one is shown if it never does.
    #[track_caller]
    pub fn wait_status(
        &self,
        node: u8,
        what: &str,
        condition: impl Fn(&AgentStatus) -> bool,
    ) -> AgentStatus {
        let end = Instant::now() + DEADLINE;
        loop {
            let status = self.status(node);
            if condition(&status) {
                return status;
            }
            assert!(Instant::now() < end, "waited for {what} on node{node}: {status:#?}");
            std::thread::park_timeout(PAUSE);
        }
    }

    pub fn flows(&self, node: u8) -> Vec<NetworkFlow> {
        self.query(node, &QueryFlowsRequest { limit: ALL, ..Default::default() })
    }

    pub fn query(&self, node: u8, request: &QueryFlowsRequest) -> Vec<NetworkFlow> {
        self.answer(node, request).flows
    }

    pub fn answer(&self, node: u8, request: &QueryFlowsRequest) -> QueryFlowsResponse {
        ask(&self.node(node).netns, async |mut client| {
            client.query_flows(request.clone()).await.expect("an answer").into_inner()
        })
    }

    /// Waits until the agents answer exactly these rows for these flows, whoever owns them, and
    /// the live trace says the same of each.
    #[track_caller]
    pub fn expect(&self, rows: &[Row]) {
        self.expect_among(rows, |_| true);
    }

    /// As [`Self::expect`], but only rows of the owners that are expected count: the other end has
    /// rows of its own.
    #[track_caller]
    pub fn expect_own(&self, rows: &[Row]) {
        let cni = self.cluster.plan.cni;
        self.expect_among(rows, |flow| {
            let owner = rows::owner(flow, cni);
            rows.iter().any(|row| row.owner(cni) == owner)
        });
    }

    #[track_caller]
    fn expect_among(&self, rows: &[Row], counts: impl Fn(&NetworkFlow) -> bool) {
        let cni = self.cluster.plan.cni;
        let about: Vec<_> = rows.iter().map(|row| row.flow).collect();
        for node in self.cluster.nodes() {
            let number = node.number;
            let mut wanted: Vec<String> =
                rows.iter().filter(|row| row.node == number).map(|row| row.line(cni)).collect();
            wanted.sort_unstable();
            let end = Instant::now() + DEADLINE;
            loop {
                let flows = self.flows(number);
                let about = flows.iter().filter(|flow| about.contains(&rows::key(flow)));
                let owned = about.filter(|flow| rows::is_owned(flow) && counts(flow));
                let mut lines: Vec<String> = owned.map(|flow| line(flow, cni)).collect();
                lines.sort_unstable();
                if lines == wanted {
                    break;
                }
                let wrong = difference(&lines, &wanted);
                assert!(Instant::now() < end, "node{number}, {:?}:\n{wrong}", self.capture);
                std::thread::park_timeout(PAUSE);
            }
            self.expect_traced(number, &wanted);
        }
    }

    /// The live trace of a node.
    pub fn trace(&self, node: u8) -> &Trace {
        &self.traces[usize::from(node) - 1]
    }

    /// The live trace of a node comes to say each of these lines.
    #[track_caller]
    fn expect_traced(&self, node: u8, wanted: &[String]) {
        let Some(trace) = self.traces.get(usize::from(node) - 1) else { return };
        let end = Instant::now() + DEADLINE;
        loop {
            let traced = trace.lines();
            let missing: Vec<&String> =
                wanted.iter().filter(|line| !traced.contains(*line)).collect();
            if missing.is_empty() {
                return;
            }
            if Instant::now() > end {
                panic!("the trace of node{node} does not say\n{missing:#?}\nbut\n{traced:#?}");
            }
            std::thread::park_timeout(PAUSE);
        }
    }

    /// Nothing was lost on any node, and every ledger is balanced, once traffic has paused.
    #[track_caller]
    pub fn assert_complete(&self) {
        for node in self.cluster.nodes() {
            let status = self.wait_status(node.number, "a paused ledger", |status| {
                let ledger = status.packet_ledger.as_ref();
                ledger.is_some_and(|l| l.in_flight.unwrap_or_default().packets == 0)
            });
            let ledger = status.packet_ledger.expect("a ledger");
            assert_eq!(ledger.state, "balanced", "node{}: {ledger:#?}", node.number);
            let lost = ledger.lost.iter().filter(|loss| loss.stage != "unattached");
            let lost: Vec<_> = lost.filter(|loss| loss.packets > 0).collect();
            assert!(lost.is_empty(), "node{}: {lost:#?}", node.number);
        }
    }
}

/// The API writes times in whole seconds: packets of the second in which an address changes hands
/// may be either holder's, and are told as nobody's.
#[track_caller]
pub fn in_a_later_second() {
    let now = wall_second();
    wait_until(DEADLINE, "the next second but one", || wall_second() > now + 1);
}

/// Waits for a row that fits.
#[track_caller]
pub fn wait_flow(
    scene: &Scene,
    node: u8,
    what: &str,
    fits: impl Fn(&NetworkFlow) -> bool,
) -> NetworkFlow {
    wait_for(DEADLINE, what, || scene.flows(node).into_iter().find(&fits))
}

/// What is too much and what is missing.
pub fn difference(found: &[String], wanted: &[String]) -> String {
    let extra = found.iter().filter(|line| !wanted.contains(line)).map(|line| format!("+ {line}"));
    let less = wanted.iter().filter(|line| !found.contains(line)).map(|line| format!("- {line}"));
    let both = found.iter().filter(|line| wanted.contains(line)).map(|line| format!("  {line}"));
    extra.chain(less).chain(both).collect::<Vec<_>>().join("\n")
}
