//! A simulated cluster with an agent on every node, and what the agents answer, as lines that a
//! person would say: who talked to whom, how much, and how that is known.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses another part")]

pub mod ask;
pub mod rows;
mod shares;
pub mod truth;

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use orb8_proto::v1::{AgentStatus, NetworkFlow, QueryFlowsRequest, QueryFlowsResponse};
use orb8_testbed::agent::{AgentProcess, LISTEN};
use orb8_testbed::api::object::wall_second;
use orb8_testbed::cluster::Cluster;
use orb8_testbed::cluster::node::Node;
use orb8_testbed::cluster::plan::{API, Cni, Plan};
use orb8_testbed::cluster::pod::Pod;
use orb8_testbed::cluster::talk::{Talk, UdpTalk};
use orb8_testbed::flow::{Flow, ICMPV6, L4, Total};
use orb8_testbed::link::Family::V4;
use orb8_testbed::wait::{wait_for, wait_until};

use ask::{Trace, ask};
use rows::{Row, ends, key};
use truth::checked_line;

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
    /// Settings of the agents beside those that a cluster gives them; none: not set.
    settings: Vec<(String, Option<String>)>,
    /// What was expected and found, and is to stay so until the scene is over.
    expected: RefCell<Vec<Expected>>,
    /// Flows that a test looks at by itself.
    mentioned: RefCell<Vec<Flow>>,
}

/// Rows that agents are to answer.
struct Expected {
    rows: Vec<Row>,
    /// Only rows of the owners that are expected count.
    own: bool,
}

impl Expected {
    /// Whether a row is about what is expected.
    fn counts(&self, flow: &NetworkFlow, cni: Cni) -> bool {
        let key = key(flow);
        let about = self.rows.iter().any(|row| row.flow == key) && rows::is_owned(flow);
        about && (!self.own || self.rows.iter().any(|row| row.owner(cni) == rows::owner(flow, cni)))
    }

    /// The lines of a node.
    fn lines(&self, node: u8, cni: Cni) -> Vec<String> {
        let here = self.rows.iter().filter(|row| row.node == node);
        let mut lines: Vec<String> = here.map(|row| row.line(cni)).collect();
        lines.sort_unstable();
        lines
    }

    /// Whether it is about rows that another one is about, too.
    fn meets(&self, other: &Self) -> bool {
        let place = |row: &Row| (row.node, row.egress, row.supplement, row.flow);
        self.rows.iter().any(|row| other.rows.iter().any(|one| place(one) == place(row)))
    }
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
        Self {
            agents: Vec::new(),
            traces: Vec::new(),
            cluster,
            capture,
            settings: Vec::new(),
            expected: RefCell::default(),
            mentioned: RefCell::default(),
        }
    }

    /// A setting of the agents that are yet to start.
    pub fn env(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.settings.push((name.to_owned(), Some(value.to_string())));
        self
    }

    /// A setting that the agents that are yet to start do without.
    pub fn unset(mut self, name: &str) -> Self {
        self.settings.push((name.to_owned(), None));
        self
    }

    /// Starts an agent on every node and waits until each is ready.
    pub fn start_agents(&mut self) {
        self.start_agents_unready();
        for node in self.cluster.nodes() {
            self.wait_ready(node.number);
        }
    }

    /// Starts an agent on every node, waits for their ports only, and follows what they tell.
    pub fn start_agents_unready(&mut self) {
        for node in self.cluster.nodes() {
            let program = Path::new(env!("CARGO_BIN_EXE_orb8-agent"));
            let mut options = self
                .cluster
                .agent(node.number, program)
                .env("ORB8_CAPTURE", self.capture.word())
                .env("ORB8_MAX_QUERY_LIMIT", ALL);
            for (name, value) in &self.settings {
                options = match value {
                    Some(value) => options.env(name, value),
                    None => options.unset(name),
                };
            }
            self.agents.push(Some(options.start(&node.netns)));
            self.traces.push(Trace::follow(&node.netns));
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

    /// Waits until the link of one pod is attached where links matter.
    #[track_caller]
    pub fn wait_link(&self, pod: &Pod) {
        if self.capture == Socket {
            return;
        }
        self.wait_status(pod.node, "the pod's attached link", |status| {
            let link = status.interfaces.iter().find(|one| one.name == pod.host_ifname());
            link.is_some_and(|one| one.state == "attached")
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
    /// the live trace says the same of each. Both are to stay so; [`Self::assert_complete`] looks.
    #[track_caller]
    pub fn expect(&self, rows: &[Row]) {
        self.expect_all(Expected { rows: rows.to_vec(), own: false });
    }

    /// As [`Self::expect`], but only rows of the owners that are expected count: the other end has
    /// rows of its own.
    #[track_caller]
    pub fn expect_own(&self, rows: &[Row]) {
        self.expect_all(Expected { rows: rows.to_vec(), own: true });
    }

    /// What was expected so far is over: the same flows are about to change.
    pub fn begin_anew(&self) {
        for old in self.expected.take() {
            self.mention(&old.rows.iter().map(|row| row.flow).collect::<Vec<_>>());
        }
    }

    /// Flows that the test looks at by itself.
    pub fn mention(&self, flows: &[Flow]) {
        self.mentioned.borrow_mut().extend_from_slice(flows);
    }

    #[track_caller]
    fn expect_all(&self, expected: Expected) {
        for node in self.cluster.nodes() {
            let number = node.number;
            let end = Instant::now() + DEADLINE;
            while let Some(wrong) = self.wrong(number, &expected) {
                assert!(Instant::now() < end, "node{number}, {:?}:\n{wrong}", self.capture);
                std::thread::park_timeout(PAUSE);
            }
            self.check_said(number, &expected);
        }
        let mut all = self.expected.borrow_mut();
        all.retain(|old| !old.meets(&expected));
        all.push(expected);
    }

    /// How what a node answers and traces differs from what is expected.
    fn wrong(&self, node: u8, expected: &Expected) -> Option<String> {
        let answered = self.differs("answered", node, &self.flows(node), expected);
        answered.or_else(|| self.differs("traced", node, &self.trace(node).flows(), expected))
    }

    fn differs(
        &self,
        how: &str,
        node: u8,
        flows: &[NetworkFlow],
        expected: &Expected,
    ) -> Option<String> {
        let (cni, store) = (self.cluster.plan.cni, self.cluster.api.store());
        // That an address has passed on since changes how a flow that has ended is known, not whose
        // it was: that is no news for the trace.
        let told = |line: String| match how {
            "traced" => line.replace("address_reused", "address"),
            _ => line,
        };
        let mut wanted: Vec<String> = expected.lines(node, cni).into_iter().map(told).collect();
        let about = flows.iter().filter(|flow| expected.counts(flow, cni));
        let lines = about.map(|flow| told(checked_line(store, flow, cni)));
        let mut lines: Vec<String> = lines.collect();
        wanted.sort_unstable();
        lines.sort_unstable();
        (lines != wanted).then(|| format!("{how}:\n{}", difference(&lines, &wanted)))
    }

    /// No word of the trace on an expected flow names another pod than the last one, or calls a pod
    /// somebody outside of the cluster.
    #[track_caller]
    fn check_said(&self, node: u8, expected: &Expected) {
        let cni = self.cluster.plan.cni;
        for (said, last) in self.trace(node).replaced() {
            if !expected.counts(&last, cni) {
                continue;
            }
            let ends = ends(&last);
            for (word, end) in [(rows::ends(&said).0, ends.0), (rows::ends(&said).1, ends.1)] {
                let other = !word.pod.is_empty() && word.pod_uid != end.pod_uid;
                let outside = word.kind == "external" && word.kind != end.kind;
                let masqueraded = end.attribution == "masqueraded";
                assert!(
                    !other && (!outside || masqueraded),
                    "node{node} said {word:?} before {end:?}"
                );
            }
        }
    }

    /// The live trace of a node.
    pub fn trace(&self, node: u8) -> &Trace {
        &self.traces[usize::from(node) - 1]
    }

    /// Once traffic has paused: nothing was lost on any node, every ledger is balanced, all that was
    /// expected is still so, and nothing of what was said was counted a second time.
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
            for expected in self.expected.borrow().iter() {
                let wrong = self.differs("later", node.number, &self.flows(node.number), expected);
                assert_eq!(wrong, None, "node{}, {:?}", node.number, self.capture);
                self.check_said(node.number, expected);
            }
            // Other interfaces may still have counts to hand over.
            let end = Instant::now() + DEADLINE;
            while let Some(wrong) = self.wrong_rest(node.number) {
                assert!(Instant::now() < end, "{}, {:?}: {wrong}", node.name, self.capture);
                std::thread::park_timeout(PAUSE);
            }
            let end = Instant::now() + DEADLINE;
            while let Some(wrong) = shares::wrong(self, node.number) {
                assert!(Instant::now() < end, "{}, {:?}: {wrong}", node.name, self.capture);
                std::thread::park_timeout(PAUSE);
            }
        }
    }

    /// What is wrong with the rows beside those that were looked at: pods and processes own nothing
    /// that nobody said, and what passes through is what was said, once.
    fn wrong_rest(&self, node: u8) -> Option<String> {
        let (expected, mentioned) = (self.expected.borrow(), self.mentioned.borrow());
        let rows: Vec<&Row> = expected.iter().flat_map(|expected| &expected.rows).collect();
        let known = |flow: Flow| {
            let either = [flow, flow.reply()];
            rows.iter().any(|row| either.contains(&row.flow))
                || mentioned.iter().any(|one| either.contains(one))
        };
        let flows = self.flows(node);
        let mut others = flows.iter().filter(|flow| !is_of_the_agents(flow));
        others.find_map(|flow| {
            let total = Total { packets: flow.packets, bytes: flow.bytes };
            if rows::is_owned(flow) {
                return (!known(key(flow))).then(|| format!("nobody said {flow:#?}"));
            }
            let row = rows.iter().find(|row| row.flow == key(flow))?;
            (total != row.total).then(|| format!("{total} instead of {}: {flow:#?}", row.total))
        })
    }
}

/// Whether it is the talk of agents with the API and with the test, or of kernels that look for
/// their neighbours.
fn is_of_the_agents(flow: &NetworkFlow) -> bool {
    let flow = key(flow);
    let listen: SocketAddr = LISTEN.parse().expect("an address");
    match flow.l4 {
        // Refusals of a port that was closed for a while, too.
        _ if [flow.src, flow.dst].contains(&IpAddr::from(API)) => true,
        L4::Ports { src, dst } => {
            let ends = [(flow.src, src), (flow.dst, dst)];
            ends.contains(&(listen.ip(), listen.port()))
        }
        // Multicast listeners and neighbour discovery.
        L4::Icmp { kind, .. } => flow.protocol == ICMPV6 && (130..=143).contains(&kind),
        L4::Fragment | L4::Plain => false,
    }
}

/// A port that pods send from.
pub const PORT: u16 = 40_000;

pub fn one_node() -> Plan {
    Plan { nodes: 1, ..Plan::default() }
}

/// Datagrams from a certain port of a pod.
pub fn from_port(client: &Pod, server: &Pod, port: u16, count: u64) -> Talk {
    let socket = client.app.udp(client.at(V4, port));
    let (_, mut talk) = UdpTalk::open_with(socket, &[&server.app], server.at(V4, 8080), 8080);
    talk.say(count, 100);
    talk.talk()
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
