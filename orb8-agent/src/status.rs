//! What the agent says about itself: health with its reasons, interfaces, ledgers, memory.
//!
//! Health is a set of reasons; the agent is healthy when there is none. Nothing here decides what
//! is wrong: those who notice say so.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use orb8_proto::v1::{AgentStatus, AttributionShare};
use tokio::sync::watch;

use crate::cgroup;
use crate::clock::Clock;
use crate::conntrack;
use crate::datapath::{AttachState, Datapath, InterfaceStatus, PacketViewCounts};
use crate::event::{Notice, Told};
use crate::export::feed::StatusPage;
use crate::export::hub::{Hub, SubscriberSummary};
use crate::export::wire;
use crate::governor;
use crate::k8s;
use crate::k8s::identity::Knowledge;
use crate::pipeline::exporter::EventExporter;
use crate::pipeline::ledger::{Balance, EventSummary, PacketSummary};
use crate::pipeline::runner::{SharedLedger, lock};
use crate::preflight::Check;

/// Notices that status repeats.
const NOTICES: usize = 32;

/// Reasons for not being healthy, by who noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// Preflight found a need missing.
    Preflight,
    /// The kernel side did not start.
    Start,
    /// No interface is attached.
    Interfaces,
    /// A source cannot be read.
    Source(&'static str),
    /// A ledger does not add up.
    PacketLedger,
    /// The event ledger does not add up.
    EventLedger,
}

/// Facts that do not change while the agent runs.
#[derive(Clone, Debug)]
pub struct Identity {
    /// NODE_NAME.
    pub node_name: Arc<str>,
    /// `uname -r`.
    pub kernel_release: String,
    /// ORB8_MAX_FLOWS.
    pub max_flows_set: u32,
    /// Of these, what ORB8_MEMORY_BUDGET has room for.
    pub max_flows: u32,
    /// The capture plane in use.
    pub capture: &'static str,
    /// Why that one.
    pub capture_reason: String,
    /// CLOCK_MONOTONIC nanoseconds of the start.
    pub started_ns: u64,
    /// ORB8_PROC_ROOT.
    pub proc_root: PathBuf,
}

/// Health, notices and interfaces, shared by all who notice or show something.
#[derive(Debug)]
pub struct Status {
    node_name: Arc<str>,
    causes: Mutex<BTreeMap<Cause, String>>,
    healthy: watch::Sender<bool>,
    notices: Mutex<VecDeque<Notice>>,
    datapath: Mutex<Option<Arc<dyn Datapath>>>,
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Status {
    /// Healthy, with nothing attached yet.
    #[must_use]
    pub fn new(node_name: Arc<str>) -> Arc<Self> {
        Arc::new(Self {
            node_name,
            causes: Mutex::default(),
            healthy: watch::Sender::new(true),
            notices: Mutex::default(),
            datapath: Mutex::default(),
        })
    }

    /// This node.
    #[must_use]
    pub fn node_name(&self) -> Arc<str> {
        Arc::clone(&self.node_name)
    }

    /// Sets or clears a reason for not being healthy.
    pub fn set(&self, cause: Cause, reason: Option<String>) {
        let mut causes = held(&self.causes);
        match reason {
            Some(reason) => causes.insert(cause, reason),
            None => causes.remove(&cause),
        };
        let healthy = causes.is_empty();
        self.healthy.send_if_modified(|known| std::mem::replace(known, healthy) != healthy);
    }

    fn has(&self, cause: Cause) -> bool {
        held(&self.causes).contains_key(&cause)
    }

    /// The reasons for not being healthy in one text; empty if healthy.
    #[must_use]
    pub fn health_message(&self) -> String {
        // What is not attached may be by now, before the notice of it has come through.
        if self.has(Cause::Interfaces) {
            self.check_interfaces();
        }
        held(&self.causes).values().cloned().collect::<Vec<_>>().join("; ")
    }

    /// Follows whether the agent is healthy.
    #[must_use]
    pub fn follow_health(&self) -> watch::Receiver<bool> {
        self.healthy.subscribe()
    }

    /// Notes the running kernel side.
    pub fn set_datapath(&self, datapath: Arc<dyn Datapath>) {
        *held(&self.datapath) = Some(datapath);
        self.check_interfaces();
    }

    /// Interfaces and how we are attached to them.
    #[must_use]
    pub fn interfaces(&self) -> Vec<InterfaceStatus> {
        let datapath = held(&self.datapath).clone();
        datapath.map_or_else(Vec::new, |datapath| datapath.interfaces())
    }

    /// How many interfaces are in a state.
    #[must_use]
    pub fn interfaces_in(&self, state: AttachState) -> u32 {
        let interfaces = self.interfaces();
        let found = interfaces.iter().filter(|found| found.state == state);
        u32::try_from(found.count()).unwrap_or(u32::MAX)
    }

    /// The state of the programs at sockets; none where nothing is counted there.
    #[must_use]
    pub fn socket_plane(&self) -> Option<AttachState> {
        let datapath = held(&self.datapath).clone();
        Some(datapath?.socket_plane()?.state)
    }

    fn map_bytes(&self) -> u64 {
        let datapath = held(&self.datapath).clone();
        datapath.map_or(0, |datapath| datapath.map_bytes())
    }

    fn packet_view(&self) -> PacketViewCounts {
        let datapath = held(&self.datapath).clone();
        datapath.map_or_else(PacketViewCounts::default, |datapath| datapath.packet_view())
    }

    /// Judges the interfaces anew; called when something was told that may have changed them.
    fn check_interfaces(&self) {
        if held(&self.datapath).is_none() {
            return;
        }
        let interfaces = self.interfaces();
        let socket_plane = held(&self.datapath).as_ref().and_then(|found| found.socket_plane());
        let attached = interfaces.iter().any(|found| found.state == AttachState::Attached)
            || socket_plane.as_ref().is_some_and(|found| found.state == AttachState::Attached);
        let is_attaching = interfaces.iter().any(|found| found.state == AttachState::Attaching)
            || socket_plane.as_ref().is_some_and(|found| found.state == AttachState::Attaching);
        let failed: Vec<_> = interfaces
            .iter()
            .filter(|found| found.state == AttachState::Failed)
            .map(|found| format!("{} ({})", found.name, found.reason))
            .chain(
                socket_plane
                    .filter(|found| found.state == AttachState::Failed)
                    .map(|found| format!("sockets ({})", found.reason)),
            )
            .collect();
        let reason = match (attached, failed.is_empty()) {
            (true, true) => None,
            (false, true) if is_attaching => {
                Some("no interface is attached yet: the first is being attached".to_owned())
            }
            (false, true) => Some(
                "no interface is attached: none has a default route or a global address, name \
                 some with ORB8_INTERFACES"
                    .to_owned(),
            ),
            (true, false) => Some(format!("not attached to {}", failed.join(", "))),
            (false, false) => {
                Some(format!("no interface could be attached: {}", failed.join(", ")))
            }
        };
        self.set(Cause::Interfaces, reason);
    }

    fn keep(&self, notice: &Notice) {
        let mut notices = held(&self.notices);
        if notices.len() == NOTICES {
            notices.pop_front();
        }
        notices.push_back(notice.clone());
    }
}

/// The exporter that keeps notices and judges health when something changes.
#[derive(Debug)]
pub struct StatusExporter {
    /// Where it is kept.
    pub status: Arc<Status>,
    /// The ledgers to judge.
    pub ledger: SharedLedger,
}

impl EventExporter for StatusExporter {
    fn export(&mut self, told: &[Told]) {
        for told in told {
            match told {
                Told::Notice(notice) => {
                    self.status.keep(notice);
                    self.judge_sources();
                    self.status.check_interfaces();
                }
                Told::Drained(_) => {
                    self.judge_ledgers();
                    // Attaching is told by notices, but not that there was nothing to attach to.
                    if self.status.has(Cause::Interfaces) {
                        self.status.check_interfaces();
                    }
                }
                Told::FlowStart(_) | Told::FlowEnd(_) | Told::Packet(_) | Told::Loss(_) => {}
            }
        }
    }

    fn finish(&mut self, _deadline: Instant) {}
}

impl StatusExporter {
    fn judge_sources(&self) {
        let ledger = lock(&self.ledger);
        for (name, failures) in ledger.failures() {
            self.status.set(Cause::Source(name), failures.current.clone());
        }
    }

    fn judge_ledgers(&self) {
        let (packets, events) = lock(&self.ledger).balances();
        let reason = |ledger: &str, what: &str, balance: Balance| match balance {
            Balance::Balanced => None,
            Balance::Unbalanced { count, .. } => Some(format!(
                "the {ledger} ledger does not add up: {count} {what} are unexplained, please report this"
            )),
        };
        self.status.set(Cause::PacketLedger, reason("packet", "packets", packets));
        self.status.set(Cause::EventLedger, reason("event", "events", events));
    }
}

/// Everything that `GetStatus` shows, before it becomes a message.
#[derive(Clone, Debug)]
pub struct Report {
    /// Unchanging facts.
    pub identity: Identity,
    /// The agent's version.
    pub version: &'static str,
    /// Why not healthy, empty if healthy.
    pub health_message: String,
    /// Time since the start.
    pub uptime_seconds: u64,
    /// CLOCK_REALTIME minus CLOCK_MONOTONIC.
    pub unix_offset_ns: i64,
    /// Preflight.
    pub checks: Vec<Check>,
    /// Interfaces.
    pub interfaces: Vec<InterfaceStatus>,
    /// The packet ledger.
    pub packets: PacketSummary,
    /// The event ledger.
    pub events: EventSummary,
    /// Flows that may still be counted on, and those kept after their end.
    pub flows: FlowCounts,
    /// Subscribers.
    pub subscribers: Vec<SubscriberSummary>,
    /// Events lost by all subscribers, also those that are gone.
    pub subscribers_lost: u64,
    /// The latest notices, oldest first.
    pub notices: Vec<Notice>,
    /// What was counted, by how owners were identified.
    pub shares: Vec<AttributionShare>,
    /// The Kubernetes API.
    pub kubernetes: k8s::status::Status,
    /// The pods of this node, and whether each has the node's network.
    pub local_pods: Vec<LocalPod>,
    /// cgroups.
    pub cgroups: cgroup::Status,
    /// Connection tracking.
    pub tracking: conntrack::Status,
    /// Resident memory of the process in bytes.
    pub resident_bytes: u64,
    /// Memory of the kernel maps in bytes.
    pub map_bytes: u64,
    /// Budgets, and what is given up for them.
    pub governor: governor::State,
    /// The packets of the packet views.
    pub packet_view: PacketViewCounts,
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Box<str>,
    /// It has the node's network.
    pub host_network: bool,
}

/// How many flows a table holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowCounts {
    /// May still be counted on.
    pub active: u32,
    /// Kept after their end.
    pub ended: u32,
}

/// Gathers the report.
pub struct Board {
    /// Unchanging facts.
    pub identity: Identity,
    /// Preflight, as it was at the start.
    pub checks: Vec<Check>,
    /// Health, notices, interfaces.
    pub status: Arc<Status>,
    /// The ledgers.
    pub ledger: SharedLedger,
    /// The subscribers.
    pub hub: Arc<Hub>,
    /// Counts the flows.
    pub flows: Box<dyn Fn() -> FlowCounts + Send + Sync>,
    /// Tells what was counted, by how owners were identified.
    pub shares: Box<dyn Fn() -> Vec<AttributionShare> + Send + Sync>,
    /// What identities are made of.
    pub known: Knowledge,
    /// What the governor last measured and gave up.
    pub governor: Arc<governor::Board>,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for Board {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Board").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl Board {
    /// The report of this moment.
    #[must_use]
    pub fn report(&self) -> Report {
        let (packets, events) = {
            let ledger = lock(&self.ledger);
            (ledger.packets(), ledger.events())
        };
        let up_ns = self.clock.monotonic_ns().saturating_sub(self.identity.started_ns);
        Report {
            identity: self.identity.clone(),
            version: env!("CARGO_PKG_VERSION"),
            health_message: self.status.health_message(),
            uptime_seconds: up_ns / 1_000_000_000,
            unix_offset_ns: self.clock.unix_offset_ns(),
            checks: self.checks.clone(),
            interfaces: self.status.interfaces(),
            packets,
            events,
            flows: (self.flows)(),
            subscribers: self.hub.summaries(),
            subscribers_lost: self.hub.lost(),
            notices: held(&self.status.notices).iter().cloned().collect(),
            shares: (self.shares)(),
            kubernetes: self.known.registry.status(),
            local_pods: self.local_pods(),
            cgroups: self.known.cgroups.status(),
            tracking: self.known.translations.status(),
            resident_bytes: resident_bytes(&self.identity.proc_root),
            map_bytes: self.status.map_bytes(),
            governor: self.governor.state(),
            packet_view: self.status.packet_view(),
        }
    }

    fn local_pods(&self) -> Vec<LocalPod> {
        let pods = self.known.registry.local_pods();
        let named = pods.iter().filter_map(|pod| pod.identity());
        let mut pods: Vec<_> = named
            .map(|identity| LocalPod {
                namespace: Arc::clone(&identity.namespace),
                name: identity.name.clone(),
                host_network: identity.host_network,
            })
            .collect();
        pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        pods
    }
}

/// Resident memory of this process in bytes; 0 if it cannot be read.
#[must_use]
pub fn resident_bytes(proc_root: &Path) -> u64 {
    let statm = fs::read_to_string(proc_root.join("self/statm"));
    let pages = statm.ok().and_then(|text| resident_pages(&text)).unwrap_or(0);
    pages.saturating_mul(u64::try_from(rustix::param::page_size()).unwrap_or(0))
}

/// The second field of the text of `/proc/self/statm`.
fn resident_pages(statm: &str) -> Option<u64> {
    statm.split_ascii_whitespace().nth(1)?.parse().ok()
}

impl StatusPage for Board {
    fn status(&self) -> AgentStatus {
        // So that health and interfaces on one page are of one moment.
        self.status.check_interfaces();
        wire::status(&self.report())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_is_healthy_when_no_reason_is_left() {
        let status = Status::new("n1".into());
        let mut healthy = status.follow_health();
        assert_eq!(status.health_message(), "");
        status.set(Cause::Start, Some("it did not load".to_owned()));
        status.set(Cause::Source("ring"), Some("it cannot be read".to_owned()));
        assert!(!*healthy.borrow_and_update());
        assert_eq!(status.health_message(), "it did not load; it cannot be read");
        status.set(Cause::Start, None);
        assert!(!healthy.has_changed().unwrap());
        status.set(Cause::Source("ring"), None);
        assert!(*healthy.borrow_and_update());
    }

    #[test]
    fn health_is_of_the_moment_in_which_it_is_asked_for() {
        #[derive(Debug)]
        struct Attaching(Mutex<Option<AttachState>>);

        impl Datapath for Attaching {
            fn interfaces(&self) -> Vec<InterfaceStatus> {
                Vec::new()
            }

            fn socket_plane(&self) -> Option<crate::datapath::SocketPlaneStatus> {
                let state = (*held(&self.0))?;
                let (root, reason) = ("/sys/fs/cgroup".into(), String::new());
                Some(crate::datapath::SocketPlaneStatus { root, state, reason })
            }

            fn map_bytes(&self) -> u64 {
                0
            }

            fn watch_packets(
                &self,
                _filter: &orb8_common::network::PacketFilter,
                _rate: u32,
            ) -> Result<Box<dyn crate::datapath::PacketWatch>, crate::datapath::StartError>
            {
                Err(crate::datapath::StartError { message: "no packets here".to_owned() })
            }

            fn stop(&self, _deadline: Instant) -> bool {
                true
            }
        }

        let status = Status::new("n1".into());
        let datapath = Arc::new(Attaching(Mutex::new(None)));
        status.set_datapath(Arc::clone(&datapath) as Arc<dyn Datapath>);
        assert!(status.health_message().contains("name some with ORB8_INTERFACES"));
        *held(&datapath.0) = Some(AttachState::Attaching);
        let yet = "no interface is attached yet: the first is being attached";
        assert_eq!(status.health_message(), yet);
        *held(&datapath.0) = Some(AttachState::Attached);
        assert_eq!(status.health_message(), "");
    }

    #[test]
    fn status_repeats_the_latest_notices() {
        let status = Status::new("n1".into());
        for number in 0..NOTICES + 3 {
            let message = number.to_string();
            let severity = crate::event::Severity::Info;
            status.keep(&Notice { severity, code: "test", message });
        }
        let notices = held(&status.notices);
        assert_eq!(notices.len(), NOTICES);
        assert_eq!(notices[0].message, "3");
    }

    #[test]
    fn resident_memory_is_the_second_field() {
        assert_eq!(resident_pages("1000 250 30 1 0 50 0"), Some(250));
        assert_eq!(resident_pages("1000"), None);
    }
}
