//! A pipeline with the agent's stages, fed with whole drains of flows that have names at both ends.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use orb8_common::network::{FlowKey, flag, scope};

use super::World;
use super::world::cgroup_of;
use crate::cgroup::Memberships;
use crate::clock::Clock;
use crate::event::{DrainReport, Event, FlowCount, FlowFacts, FlowId};
use crate::k8s::identity::{OwnerEnricher, Resolver};
use crate::network::filter::{RootCgroup, SelfTraffic};
use crate::network::keys;
use crate::network::query::NetworkQueries;
use crate::network::table::{FlowProcessor, FlowTable, Limits, SharedTable};
use crate::pipeline::runner::{Mover, SharedLedger, Stages};
use crate::status::Status;

const SECOND_NS: u64 = 1_000_000_000;
const LOCAL_PODS: u32 = 100;
const PEERS: u32 = 200;

/// A pipeline that is drained by hand: from sockets of this node's pods to another node's pods.
#[derive(Debug)]
pub struct Drains {
    pub world: World,
    pub table: SharedTable,
    ledger: SharedLedger,
    flows: u32,
}

/// The side of a [`Drains`] that counts.
#[derive(Debug)]
pub struct Drainer {
    mover: Mover,
    batch: Vec<Event>,
    flows: u32,
    /// Drains begun.
    pub drain: u64,
}

impl Drains {
    /// A pipeline for so many flows, and the side that counts on them.
    #[must_use]
    pub fn of(flows: u32) -> (Self, Drainer) {
        let mut world = World::synced();
        for n in 0..LOCAL_PODS {
            let name = format!("shop/own{n}");
            world.pod(&name, "n1", &format!("10.244.1.{}", n + 10), 1);
            world.cgroup(u64::from(n) + 100, &cgroup_of(&name));
        }
        for n in 0..PEERS {
            world.pod(&format!("shop/peer{n}"), "n2", &format!("10.244.2.{}", n + 10), 1);
        }
        let limits = Limits {
            max_flows: flows,
            history: Duration::from_secs(300),
            idle: Duration::from_secs(120),
            drain_interval: Duration::from_secs(1),
        };
        let (table, ledger) = (FlowTable::shared(limits, 0), SharedLedger::default());
        let drains = Self { world, table, ledger, flows };
        let mover = Mover::new(drains.stages(), Arc::clone(&drains.ledger));
        (drains, Drainer { mover, batch: Vec::new(), flows, drain: 0 })
    }

    fn stages(&self) -> Stages {
        let known = &self.world.known;
        let facts = || Arc::clone(&known.facts);
        let memberships = Memberships::unanswered(known.cgroups.clone());
        let processor = FlowProcessor::new(Arc::clone(&self.table), Resolver::new(known.clone()));
        Stages {
            filters: vec![
                Box::new(SelfTraffic::new(facts(), known.cgroups.clone())),
                Box::new(RootCgroup::new(facts(), None)),
            ],
            enrichers: vec![Box::new(OwnerEnricher::new(facts(), memberships, keys::of_event))],
            processors: vec![Box::new(processor)],
            exporters: Vec::new(),
        }
    }

    /// Answers over the table.
    #[must_use]
    pub fn queries(&self, clock: Arc<dyn Clock>) -> NetworkQueries {
        NetworkQueries {
            table: Arc::clone(&self.table),
            ledger: Arc::clone(&self.ledger),
            status: Status::new("n1".into()),
            known: self.world.known.clone(),
            clock,
            max_limit: self.flows,
        }
    }
}

impl Drainer {
    /// The next drain, a call's worth of events at a time: makes them, and moves them.
    pub fn drain(&mut self, a_call: u32) {
        self.begin();
        let mut first = 0;
        while first < self.flows {
            first = self.make(first, a_call);
            self.move_all();
        }
    }

    /// Begins the next drain.
    pub const fn begin(&mut self) {
        self.drain += 1;
    }

    /// Makes the counts of the flows from `first` on, one packet and 100 bytes each, and after the
    /// last of them the end of the drain. Gives the first flow that is left.
    pub fn make(&mut self, first: u32, a_call: u32) -> u32 {
        let last = self.flows.min(first + a_call);
        self.batch.extend((first..last).map(|n| counted(n, self.drain)));
        if last == self.flows {
            let time_ns = (self.drain + 1) * SECOND_NS;
            let report = DrainReport { time_ns, ..DrainReport::default() };
            self.batch.push(Event::Drained(Box::new(report)));
        }
        last
    }

    /// Moves what was made through the stages.
    pub fn move_all(&mut self) {
        self.mover.move_all(&mut self.batch);
    }
}

fn low(n: u32) -> u8 {
    n.to_le_bytes()[0]
}

fn port(n: u32) -> [u8; 2] {
    let [low, high, ..] = n.to_le_bytes();
    [high, low]
}

fn id(n: u32) -> FlowId {
    let (own, peer) = (n % LOCAL_PODS, n / LOCAL_PODS % PEERS);
    let key = FlowKey {
        src: keys::words(IpAddr::from([10, 244, 1, low(own + 10)])),
        dst: keys::words(IpAddr::from([10, 244, 2, low(peer + 10)])),
        src_port: port(1024 + n % 60_000),
        dst_port: port(80 + n / 60_000),
        protocol: keys::UDP,
        flags: flag::EGRESS | flag::SOCKET_PLANE,
        tag: 0,
    };
    FlowId { key, owner: u64::from(own) + 100 }
}

fn counted(n: u32, drain: u64) -> Event {
    Event::Count(FlowCount {
        id: id(n),
        line: n,
        new_line: drain == 1,
        packets: 1,
        bytes: 100,
        first_seen_ns: SECOND_NS + u64::from(n),
        last_seen_ns: drain * SECOND_NS + u64::from(n),
        facts: FlowFacts { cookie: 5, scope: scope::SOCKET, ..FlowFacts::default() },
    })
}
