//! A whole agent in a namespace, and what can be asked of it from outside: status, ledger, CPU,
//! memory, and which of its programs the kernel runs where.
//!
//! Knows nothing of the agent's maps, so that any design of its tables is measured alike.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use aya::programs::{ProgramFd, ProgramInfo};
use orb8_agent::ebpf::sys;
use orb8_proto::v1::orbit_agent_service_client::OrbitAgentServiceClient;
use orb8_proto::v1::{
    AgentStatus, GetStatusRequest, PacketLedger, QueryFlowsRequest, QueryFlowsResponse,
};
use orb8_testbed::agent::{AgentOptions, AgentProcess, LISTEN};
use orb8_testbed::fdinfo;
use orb8_testbed::link::{Port, Veth, VethOptions};
use orb8_testbed::raw::RawSocket;
pub(crate) use orb8_testbed::wait::wait;
use orb8_util::cpu::Threads;
use tonic::transport::{Channel, Endpoint};

use crate::report::Amount;

pub(crate) type Client = OrbitAgentServiceClient<Channel>;

/// How long anything may take that is waited for.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// Two drains of an agent.
const DRAINS: Duration = Duration::from_millis(2_200);
/// What has not come after this without a change is missing.
const GIVEN_UP: Duration = Duration::from_secs(15);
const MIB: f64 = 1024.0 * 1024.0;

/// An agent on the near end of a link.
pub(crate) struct Bed {
    pub(crate) link: Veth,
    pub(crate) agent: AgentProcess,
}

/// Besides these and those of [`AgentOptions::of`] the agent has its defaults.
pub(crate) type Settings<'a> = &'a [(&'a str, String)];

/// At interfaces, whatever else the machine has.
pub(crate) fn at_interfaces() -> Vec<(&'static str, String)> {
    vec![("ORB8_CAPTURE", "tc".to_owned())]
}

/// At the sockets of a cgroup and below.
pub(crate) fn at_sockets(root: &Path) -> Vec<(&'static str, String)> {
    vec![("ORB8_CAPTURE", "socket".to_owned()), ("ORB8_CGROUP_ROOT", root.display().to_string())]
}

impl Bed {
    /// An agent on a quiet link, at interfaces.
    pub(crate) fn quiet(more: Settings<'_>) -> anyhow::Result<Self> {
        let mut settings = at_interfaces();
        settings.extend_from_slice(more);
        Self::start(Veth::quiet(VethOptions::default()), &settings)
    }

    /// An agent on a link; its programs are attached when this returns.
    pub(crate) fn start(link: Veth, settings: Settings<'_>) -> anyhow::Result<Self> {
        let mut options = AgentOptions::of(env!("CARGO_BIN_EXE_orb8-agent"))
            .env("ORB8_INTERFACES", &link.near.ifname)
            .env("ORB8_FLOW_TIMEOUT_SECS", 600)
            .env("ORB8_KUBERNETES", "off")
            .env("RUST_LOG", "warn");
        for (name, value) in settings {
            options = options.env(name, value);
        }
        let agent = options.start(&link.near.netns);
        let bed = Self { link, agent };
        wait("the agent's programs", || {
            let answer = bed.query(&QueryFlowsRequest { limit: 1, ..Default::default() })?;
            let context = answer.context.context("a context")?;
            let sockets = context.socket_plane.as_str();
            ensure!(sockets != "failed", "{}", context.health_message);
            let counted = context.interfaces_attached > 0 || sockets == "attached";
            Ok(counted && context.interfaces_attaching == 0 && sockets != "attaching")
        })?;
        Ok(bed)
    }

    /// Frames that arrive at the agent's interface.
    pub(crate) fn sender(&self) -> RawSocket {
        RawSocket::open(&self.link.far, self.link.near.mac)
    }

    pub(crate) fn ask<T: Send>(
        &self,
        call: impl AsyncFnOnce(Client) -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        self.link.near.netns.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let channel = Endpoint::from_shared(format!("http://{LISTEN}"))?.connect().await?;
                let client = OrbitAgentServiceClient::new(channel);
                call(client.max_decoding_message_size(usize::MAX)).await
            })
        })
    }

    pub(crate) fn status(&self) -> anyhow::Result<AgentStatus> {
        self.ask(async |mut client| Ok(client.get_status(GetStatusRequest {}).await?.into_inner()))
    }

    pub(crate) fn query(&self, request: &QueryFlowsRequest) -> anyhow::Result<QueryFlowsResponse> {
        self.ask(async |mut client| Ok(client.query_flows(request.clone()).await?.into_inner()))
    }

    /// Waits until so many flows are active.
    pub(crate) fn wait_flows(&self, flows: u64) -> anyhow::Result<()> {
        wait(&format!("{flows} flows"), || Ok(self.status()?.active_flows >= flows))
    }

    /// What the agent has accounted for (reported, filtered, rejected or lost with a reason) when that
    /// is no less than `sent`, or will not become so; and the status that says so.
    pub(crate) fn accounted(&self, sent: Amount) -> anyhow::Result<(Amount, AgentStatus)> {
        let mut rest = Rest { since: Instant::now(), found: Amount::default() };
        let mut last = None;
        wait("an empty pipeline", || {
            let status = self.status()?;
            let ledger = status.packet_ledger.as_ref().context("a ledger")?;
            let found = total(ledger);
            if found != rest.found {
                rest = Rest { since: Instant::now(), found };
            }
            last = Some((found, status));
            let enough = found.packets >= sent.packets && found.bytes >= sent.bytes;
            // Drains apart, so that nothing doubled is still to come.
            Ok(rest.since.elapsed() > if enough { DRAINS } else { GIVEN_UP })
        })?;
        last.context("a ledger")
    }

    /// Ids of the programs on both hooks of an interface of this agent's namespace.
    pub(crate) fn at_interface(port: &Port) -> anyhow::Result<[u32; 2]> {
        let chain = |hook| port.netns.enter(|| sys::tcx_chain(port.ifindex, hook));
        only_ones(chain(sys::BPF_TCX_INGRESS)?, chain(sys::BPF_TCX_EGRESS)?)
            .with_context(|| format!("the programs on {}", port.ifname))
    }

    /// Ids of the programs at sockets of a cgroup: receiving, sending.
    pub(crate) fn at_cgroup(directory: &Path) -> anyhow::Result<[u32; 2]> {
        let cgroup = File::open(directory)?;
        let programs = |hook| sys::cgroup_programs(cgroup.as_fd(), hook);
        only_ones(programs(sys::BPF_CGROUP_INET_INGRESS)?, programs(sys::BPF_CGROUP_INET_EGRESS)?)
            .with_context(|| format!("the programs at {}", directory.display()))
    }

    /// RSS and kernel maps in MiB.
    pub(crate) fn memory(&self) -> anyhow::Result<(f64, f64)> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.agent.pid()))?;
        let kib = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("VmRSS")?;
        let kib: f64 = kib.trim().trim_end_matches(" kB").trim().parse()?;
        let maps = fdinfo::map_bytes(self.agent.pid())? as f64;
        let told = self.status()?.memory.context("memory in status")?.map_bytes as f64;
        // Maps that are only mapped have no descriptor, so the agent's own sum is the larger one.
        Ok((kib * 1024.0 / MIB, maps.max(told) / MIB))
    }

    /// The agent's threads with their time on a CPU, in user space and kernel.
    pub(crate) fn cpu(&self) -> anyhow::Result<Threads> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.agent.pid()))?;
        let told = tasks.flatten().filter_map(|task| {
            let thread = task.file_name().to_str()?.parse().ok()?;
            // It may end meanwhile.
            Some((thread, std::fs::read_to_string(task.path().join("schedstat")).ok()?))
        });
        Threads::read(told).context("/proc/PID/task/TID/schedstat says nothing (CONFIG_SCHED_INFO)")
    }

    /// Percent of a core over some time in which nobody asks it anything.
    pub(crate) fn cpu_percent(&self, over: Duration) -> anyhow::Result<f64> {
        let (before, start) = (self.cpu()?, Instant::now());
        std::thread::sleep(over);
        Ok(self.cpu()?.since(&before) / start.elapsed().as_secs_f64() * 100.0)
    }
}

/// A pipeline in which nothing moves.
struct Rest {
    since: Instant,
    found: Amount,
}

/// One program on each of two hooks.
fn only_ones(receiving: Vec<u32>, sending: Vec<u32>) -> anyhow::Result<[u32; 2]> {
    match (receiving.as_slice(), sending.as_slice()) {
        ([one], [other]) => Ok([*one, *other]),
        _ => anyhow::bail!("not one on each hook: {receiving:?}, {sending:?}"),
    }
}

/// All that a ledger accounts for.
fn total(ledger: &PacketLedger) -> Amount {
    let mut total = Amount::default();
    let reported = ledger.reported.map(|count| (count.packets, count.bytes));
    let lost = ledger.lost.iter().filter(|loss| loss.stage != "unattached");
    let parts = ledger.filtered.iter().chain(&ledger.rejected).map(|c| (c.packets, c.bytes));
    for (packets, bytes) in
        reported.into_iter().chain(parts).chain(lost.map(|l| (l.packets, l.bytes)))
    {
        total.add(Amount { packets, bytes });
    }
    total
}

/// What the kernel knows of a program.
pub(crate) fn program(id: u32) -> anyhow::Result<ProgramInfo> {
    let all = aya::programs::loaded_programs();
    all.filter_map(Result::ok).find(|info| info.id() == id).with_context(|| format!("program {id}"))
}

/// Descriptors of programs, to run them.
pub(crate) fn descriptors(ids: [u32; 2]) -> anyhow::Result<[ProgramFd; 2]> {
    Ok([program(ids[0])?.fd()?, program(ids[1])?.fd()?])
}

/// The kernel's statistics of some programs so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    pub(crate) ns: f64,
    pub(crate) runs: f64,
}

impl Cost {
    /// Of each program once, also where it is on both hooks.
    pub(crate) fn of(ids: &[u32]) -> anyhow::Result<Self> {
        let mut cost = Self::default();
        for id in ids.iter().collect::<BTreeSet<_>>() {
            let info = program(*id)?;
            cost.ns += info.run_time().as_nanos() as f64;
            cost.runs += info.run_count() as f64;
        }
        Ok(cost)
    }

    pub(crate) fn since(self, earlier: Self) -> Self {
        Self { ns: self.ns - earlier.ns, runs: self.runs - earlier.runs }
    }

    pub(crate) fn per_run(self) -> f64 {
        self.ns / self.runs
    }
}
