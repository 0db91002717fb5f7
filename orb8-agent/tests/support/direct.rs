//! The kernel side alone, in this process: programs, interfaces, draining, without pipeline,
//! table or gRPC. For what only shows from inside: faults made on purpose, panics, chains.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use globset::{Glob, GlobSet, GlobSetBuilder};
use orb8_agent::capture::Planes;
use orb8_agent::datapath::AttachState;
use orb8_agent::ebpf::chain::ChainPolicy;
use orb8_agent::ebpf::kernel::{self, Kernel, KernelOptions};
use orb8_agent::ebpf::lines::{LINES, LineTimes};
use orb8_agent::event::{
    Counters, DrainReport, Event, FlowCount, FlowFacts, FlowId, FlowSignal, Notice, SignalKind,
};
use orb8_agent::host::{Facts, HostFacts};
use orb8_agent::pipeline::source::EventSource;
use orb8_common::counter::{self, Filtered, Lost, Reject};
use orb8_common::network::{FlowEvent, event_kind, flag};
use orb8_testbed::flow::{self, Flow, L4, Total, Traffic};
use orb8_testbed::link::ifindex;
use orb8_testbed::netns::Netns;
use orb8_testbed::wait::wait_until;

use super::{DEADLINE, Direction, Egress, Ingress};

/// The kernel side in a namespace.
pub struct Direct {
    kernel: Kernel,
    sources: Vec<Box<dyn EventSource>>,
    netns: Netns,
    facts: Arc<HostFacts>,
    /// A clock of our own: each drain is due at once.
    now: Instant,
    observed: DirectObserved,
}

/// What has been drained so far.
#[derive(Clone, Default)]
pub struct DirectObserved {
    flows: HashMap<FlowId, Total>,
    /// What the kernel told of each flow.
    pub flow_facts: HashMap<FlowId, FlowFacts>,
    pub new_lines: u64,
    pub released: u64,
    pub signals: u64,
    pub notices: Vec<Notice>,
    pub report: DrainReport,
    names: HashMap<String, u64>,
}

/// Globs that select interfaces.
pub fn globs(text: &str) -> GlobSet {
    let mut set = GlobSetBuilder::new();
    for glob in text.split(',') {
        set.add(Glob::new(glob).expect("a glob"));
    }
    set.build().expect("few globs")
}

/// Options that suit tests.
pub fn options(interfaces: &str) -> KernelOptions {
    KernelOptions {
        planes: Planes::Tc,
        max_flows: 100_000,
        memory_budget: 96 << 20,
        ring_bytes: 1 << 20,
        route: None,
        interfaces: globs(interfaces),
        times: LineTimes {
            drain_interval: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(30),
            linger: Duration::from_secs(2),
        },
        chain: ChainPolicy::default(),
        fault_bytes: 0,
        decode_event: event,
        decode_packet: |_record| None,
    }
}

/// A record of the lifecycle ring; only that it came and what kind it is matters here.
fn event(record: &[u8]) -> Option<Event> {
    let raw = FlowEvent::from_bytes(record)?;
    Some(Event::Flow(FlowSignal {
        id: FlowId { key: raw.key, owner: raw.owner },
        kind: match raw.kind {
            event_kind::START => SignalKind::Start,
            event_kind::TCP_STATE => SignalKind::TcpState,
            _ => SignalKind::End,
        },
        time_ns: raw.time_ns,
        tcp_flags: raw.tcp_flags,
        facts: FlowFacts::default(),
    }))
}

impl Direct {
    /// Watches `count` interfaces that match; they are attached when this returns.
    pub fn start(netns: &Netns, interfaces: &str, count: usize) -> Self {
        Self::with(&options(interfaces), netns, count)
    }

    /// The same with other options.
    pub fn with(options: &KernelOptions, netns: &Netns, count: usize) -> Self {
        Self::when(options, netns, |attached| attached == count)
    }

    /// The same, when at least `count` interfaces are attached.
    pub fn at_least(options: &KernelOptions, netns: &Netns, count: usize) -> Self {
        Self::when(options, netns, |attached| attached >= count)
    }

    fn when(options: &KernelOptions, netns: &Netns, ready: impl Fn(usize) -> bool) -> Self {
        let facts = HostFacts::shared();
        let started = netns
            .enter(|| kernel::start(options, Arc::clone(&facts)))
            .unwrap_or_else(|error| panic!("the kernel side does not start: {error}"));
        let mut direct = Self {
            kernel: started.kernel,
            sources: started.sources,
            netns: netns.clone(),
            facts,
            now: Instant::now(),
            observed: DirectObserved::default(),
        };
        wait_until(DEADLINE, "programs to be attached", || {
            let wanted = match direct.kernel.state().socket_plane.as_ref() {
                None => options.planes.socket_root().is_none(),
                Some(plane) => plane.state != AttachState::Attaching,
            };
            wanted && ready(direct.attached().len())
        });
        for name in direct.attached() {
            let index = ifindex(netns, &name);
            direct.observed.names.insert(name, index.into());
        }
        direct
    }

    /// Whether the programs at sockets are attached.
    pub fn has_sockets(&self) -> bool {
        let state = self.kernel.state();
        state.socket_plane.as_ref().is_some_and(|plane| plane.state == AttachState::Attached)
    }

    /// Names of the attached interfaces.
    pub fn attached(&self) -> Vec<String> {
        let state = self.kernel.state();
        let attached =
            state.interfaces.iter().filter(|interface| interface.state == AttachState::Attached);
        attached.map(|interface| interface.name.clone()).collect()
    }

    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// What is known of the host.
    pub fn facts(&self) -> Arc<Facts> {
        self.facts.snapshot()
    }

    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Drains every source once.
    pub fn drain(&mut self) {
        self.now += Duration::from_secs(10);
        let mut events = Vec::new();
        for source in &mut self.sources {
            // The lines are read in parts, up to a report; a ring has no end.
            let lines = source.name() == LINES;
            loop {
                source.collect(self.now, &mut events).expect("a source that can be read");
                let through = events.iter().any(|event| matches!(event, Event::Drained(_)));
                if !lines || through {
                    break;
                }
            }
        }
        for event in events {
            self.observed.take(event);
        }
    }

    /// Wakes the lines so much later than they ask for; says when, after the last time, that was.
    pub fn wake_lines(&mut self, late: Duration) -> Duration {
        let lines = self.sources.iter_mut().find(|source| source.name() == LINES);
        let lines = lines.expect("there is always one");
        let now = lines.wakeup().due.expect("drains have a time") + late;
        let mut events = Vec::new();
        lines.collect(now, &mut events).expect("a source that can be read");
        for event in events {
            self.observed.take(event);
        }
        now.saturating_duration_since(std::mem::replace(&mut self.now, now))
    }

    /// Drains until at least `packets` were seen and nothing more comes.
    #[track_caller]
    pub fn settled(&mut self, packets: u64) -> DirectObserved {
        wait_until(DEADLINE, &format!("{packets} packets to be seen"), || {
            self.drain();
            let report = &self.observed.report;
            report.before == report.after && self.observed.seen().packets >= packets
        });
        self.observed.clone()
    }

    pub fn observed(&self) -> &DirectObserved {
        &self.observed
    }

    /// The source that reads the lines.
    pub fn lines(&mut self) -> &mut dyn EventSource {
        let lines = self.sources.iter_mut().find(|source| source.name() == LINES);
        &mut **lines.expect("the lines are a source")
    }

    /// Detaches, then reads the rest.
    pub fn stop(mut self) -> DirectObserved {
        assert!(self.kernel.stop(Instant::now() + DEADLINE), "the programs end in time");
        let mut events = Vec::new();
        for source in &mut self.sources {
            source.finish(&mut events).expect("a source that can be read");
        }
        for event in events {
            self.observed.take(event);
        }
        self.observed
    }
}

impl DirectObserved {
    fn take(&mut self, event: Event) {
        match event {
            Event::Count(FlowCount { id, new_line, packets, bytes, facts, .. }) => {
                self.flow_facts.insert(id, facts);
                self.flows.entry(id).or_default().add(packets, bytes);
                self.new_lines += u64::from(new_line);
            }
            Event::Released(_) => self.released += 1,
            Event::Drained(report) => self.report = *report,
            Event::Flow(_) => self.signals += 1,
            Event::Packet(_) => {}
            Event::Notice(notice) => self.notices.push(notice),
        }
    }

    /// Flows of the socket plane: of a cgroup and direction.
    pub fn at_sockets(&self, cgroup: u64, direction: Direction) -> Traffic {
        self.of(cgroup, direction, flag::SOCKET_PLANE)
    }

    /// Flows of an interface and direction that the socket plane does not see.
    pub fn supplement(&self, ifindex: u32, direction: Direction) -> Traffic {
        self.of(ifindex.into(), direction, flag::SUPPLEMENT)
    }

    fn of(&self, owner: u64, direction: Direction, flags: u8) -> Traffic {
        let flags = match direction {
            Ingress => flags,
            Egress => flags | flag::EGRESS,
        };
        let all = flag::EGRESS | flag::SOCKET_PLANE | flag::SUPPLEMENT;
        self.flows
            .iter()
            .filter(|(id, _)| id.owner == owner && id.key.flags & all == flags)
            .map(|(id, &total)| (key(id), total))
            .collect()
    }

    /// What was left to the socket plane.
    pub fn counted_at_socket(&self) -> Total {
        self.pair(counter::FILTERED, Filtered::CountedAtSocket as usize)
    }

    /// Later fragments that were left out.
    pub fn later_fragments(&self) -> Total {
        self.pair(counter::FILTERED, Filtered::LaterFragment as usize)
    }

    /// Flows of one interface and direction.
    pub fn traffic(&self, ifname: &str, direction: Direction) -> Traffic {
        self.of(self.names[ifname], direction, 0)
    }

    pub fn total(&self) -> Total {
        let mut sum = Total::default();
        for total in self.flows.values() {
            sum.add(total.packets, total.bytes);
        }
        sum
    }

    /// What the hooks saw, in wire packets and IP bytes.
    pub fn seen(&self) -> Total {
        let Counters(c) = self.report.after;
        Total {
            packets: c[counter::SEEN_PACKETS].wrapping_sub(c[counter::SEGMENT_EXCESS]),
            bytes: (c[counter::SEEN_BYTES] + c[counter::GSO_HEADER_BYTES])
                .wrapping_sub(c[counter::PADDING_BYTES]),
        }
    }

    pub fn rejected(&self) -> BTreeMap<String, u64> {
        Reject::ALL
            .iter()
            .map(|&why| (why.name().to_owned(), self.pair(counter::REJECTED, why as usize).packets))
            .filter(|&(_, packets)| packets > 0)
            .collect()
    }

    pub fn lost(&self) -> BTreeMap<String, u64> {
        Lost::ALL
            .iter()
            .map(|&why| (why.name().to_owned(), self.pair(counter::LOST, why as usize).packets))
            .filter(|&(_, packets)| packets > 0)
            .collect()
    }

    fn pair(&self, base: usize, at: usize) -> Total {
        let Counters(c) = &self.report.after;
        Total { packets: c[base + 2 * at], bytes: c[base + 2 * at + 1] }
    }

    /// What is missing of seen = counted + filtered + rejected + lost.
    pub fn unexplained(&self) -> (i128, i128) {
        let mut sum = self.total();
        for why in Reject::ALL {
            let part = self.pair(counter::REJECTED, why as usize);
            sum.add(part.packets, part.bytes);
        }
        for why in Lost::ALL {
            let part = self.pair(counter::LOST, why as usize);
            sum.add(part.packets, part.bytes);
        }
        for why in Filtered::ALL {
            let part = self.pair(counter::FILTERED, why as usize);
            sum.add(part.packets, part.bytes);
        }
        let seen = self.seen();
        let minus = |a: u64, b: u64| i128::from(a) - i128::from(b);
        (minus(seen.packets, sum.packets), minus(seen.bytes, sum.bytes))
    }

    #[track_caller]
    pub fn assert_complete(&self) {
        assert_eq!(self.unexplained(), (0, 0), "{:?}", self.report);
        assert_eq!(self.lost(), BTreeMap::new());
    }
}

/// A flow in the testbed's own words.
fn key(id: &FlowId) -> Flow {
    let key = &id.key;
    let address = |words: [u32; 4]| -> IpAddr {
        if key.flags & flag::IPV6 == 0 {
            Ipv4Addr::from(words[3].to_ne_bytes()).into()
        } else {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            Ipv6Addr::from(<[u8; 16]>::try_from(bytes).expect("four words")).into()
        }
    };
    let l4 = if key.flags & flag::FRAGMENT != 0 {
        L4::Fragment
    } else if matches!(key.protocol, flow::ICMP | flow::ICMPV6) {
        L4::Icmp { kind: key.src_port[0], code: key.src_port[1] }
    } else if matches!(key.protocol, flow::TCP | flow::UDP | flow::SCTP | 136) {
        let port = u16::from_be_bytes;
        L4::Ports { src: port(key.src_port), dst: port(key.dst_port) }
    } else {
        L4::Plain
    };
    Flow { src: address(key.src), dst: address(key.dst), protocol: key.protocol, l4 }
}
