//! What the programs cost with real packets over a real veth: the kernel's own run-time statistics of
//! the agent's programs, less those of empty programs that see like traffic in the same run.
//!
//! The empty programs are not on the same hooks (the second of two programs on one hook runs some
//! nanoseconds cheaper than the first), but on a second link, or at a second cgroup, and both take
//! turns.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use aya::sys::{Stats, enable_stats};
use orb8_testbed::link::{Port, Veth, VethOptions};
use orb8_util::stats::median;

use crate::bed::{self, Bed, Cost};
use crate::cgroup::Cgroup;
use crate::counted::Counted;
use crate::programs::Empty;
use crate::report::{Amount, Goal, Report, Row};

/// Data bytes of a small datagram.
const SMALL: usize = 64;
/// Headers of IPv4 and UDP.
const UDP_HEADERS: usize = 28;
/// Datagrams on their way at once.
const WINDOW: usize = 32;
/// Bytes a second of 10 Gbit/s.
const TEN_GBIT: f64 = 10e9 / 8.0;

/// Which plane the agent counts at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plane {
    Tc,
    Socket,
}

/// Where one kind of program is, and the traffic that it sees.
struct Side {
    programs: [u32; 2],
    /// The cgroup whose sockets carry the traffic, if that matters.
    cgroup: Option<Cgroup>,
    near: Port,
    far: Port,
}

impl Side {
    /// Runs `work` where its sockets are seen.
    fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.cgroup {
            Some(cgroup) => cgroup.enter(work),
            None => work(),
        }
    }
}

/// The agent's side and the empty one.
struct Scene {
    bed: Bed,
    watched: Side,
    empty: Side,
    _empty: Empty,
    // Behind its cgroups: those are removed first.
    _tree: Option<Cgroup>,
}

impl Scene {
    fn new(plane: Plane, segmentation: bool) -> anyhow::Result<Self> {
        let options = VethOptions { segmentation, ..VethOptions::default() };
        let link = Veth::addressed(options);
        let (near, far) = (link.near.clone(), link.far.clone());
        if plane == Plane::Tc {
            // In namespaces of its own: the agent watches every uplink of its own.
            let other = Veth::addressed(VethOptions { number: 1, ..options });
            let bed = Bed::start(link, &bed::at_interfaces())?;
            let empty = Empty::at_interface(&other.near)?;
            let watched = Side { programs: Bed::at_interface(&near)?, cgroup: None, near, far };
            let beside = Side {
                programs: empty.ids,
                cgroup: None,
                near: other.near.clone(),
                far: other.far.clone(),
            };
            return Ok(Self { bed, watched, empty: beside, _empty: empty, _tree: None });
        }
        let tree = Cgroup::tree();
        let [root, other] = ["watched", "empty"].map(|name| tree.child(name));
        let bed = Bed::start(link, &bed::at_sockets(root.path()))?;
        let empty = Empty::at_cgroup(other.path())?;
        let programs = Bed::at_cgroup(root.path())?;
        let ends = (near.clone(), far.clone());
        let watched = Side { programs, cgroup: Some(root), near, far };
        let beside = Side { programs: empty.ids, cgroup: Some(other), near: ends.0, far: ends.1 };
        Ok(Self { bed, watched, empty: beside, _empty: empty, _tree: Some(tree) })
    }
}

/// All rows of this file.
pub(crate) fn run(report: &mut Report) {
    for (name, plane, goal) in
        [("veth_udp_ns", Plane::Tc, 20.0), ("veth_udp_socket_ns", Plane::Socket, 25.0)]
    {
        report.measure(&[name], |report| {
            let (net, empty) = udp(report, name, plane)?;
            Ok(vec![Row::new(name, net, "ns", Goal::AtMost(goal)).against(empty)])
        });
    }
    for (name, plane) in
        [("gso_core_share_10gbit", Plane::Tc), ("gso_core_share_10gbit_socket", Plane::Socket)]
    {
        report.measure(&[name], |report| {
            let (share, empty) = gso(report, name, plane)?;
            Ok(vec![Row::new(name, share, "% of a core", Goal::AtMost(0.5)).against(empty)])
        });
    }
}

/// Sockets of both ends, each one's packets for the other.
struct Pair([UdpSocket; 2]);

impl Pair {
    fn open(side: &Side) -> anyhow::Result<Self> {
        let bind = |port: &Port| -> anyhow::Result<UdpSocket> {
            let socket = port.netns.enter(|| UdpSocket::bind((port.v4, 0)))?;
            socket.set_read_timeout(Some(Duration::from_secs(10)))?;
            Ok(socket)
        };
        let (near, far) = side.enter(|| (bind(&side.near), bind(&side.far)));
        let (near, far) = (near?, far?);
        near.connect(far.local_addr()?)?;
        far.connect(near.local_addr()?)?;
        Ok(Self([near, far]))
    }

    /// So many small datagrams each way, every one received.
    fn exchange(&self, each_way: usize) -> anyhow::Result<()> {
        let mut buffer = [0; SMALL + 1];
        let [near, far] = &self.0;
        for (from, to) in [(near, far), (far, near)] {
            let mut left = each_way;
            while left > 0 {
                let batch = left.min(WINDOW);
                for _ in 0..batch {
                    from.send(&[0x5a; SMALL])?;
                }
                for _ in 0..batch {
                    ensure!(to.recv(&mut buffer).context("a datagram")? == SMALL, "it is cut");
                }
                left -= batch;
            }
        }
        Ok(())
    }
}

/// Median nanoseconds of a run: net of the empty program, the empty program.
fn udp(report: &mut Report, name: &str, plane: Plane) -> anyhow::Result<(f64, f64)> {
    let (rounds, each_way) = if report.quick { (3, 2_000) } else { (15, 20_000) };
    let scene = Scene::new(plane, false)?;
    let sides = [&scene.empty, &scene.watched];
    let pairs = [Pair::open(sides[0])?, Pair::open(sides[1])?];
    let _enabled = enable_stats(Stats::RunTime).context("enable the kernel's statistics")?;
    let (mut nets, mut empties) = (Vec::new(), Vec::new());
    // The first round begins the flows.
    for round in 0..=rounds {
        let mut costs = [Cost::default(); 2];
        for ((side, pair), cost) in sides.iter().zip(&pairs).zip(&mut costs) {
            let before = Cost::of(&side.programs)?;
            pair.exchange(each_way)?;
            *cost = Cost::of(&side.programs)?.since(before);
        }
        // At sockets each packet is seen twice: as it is sent and as it is received.
        let expected = 2 * each_way * if plane == Plane::Socket { 2 } else { 1 };
        let runs = costs.map(|cost| cost.runs);
        ensure!(runs == [expected as f64; 2], "{expected} packets made {runs:?} runs");
        if round > 0 {
            nets.push(costs[1].per_run() - costs[0].per_run());
            empties.push(costs[0].per_run());
        }
    }
    let seen = 2 * each_way * (rounds + 1) * if plane == Plane::Socket { 2 } else { 1 };
    let sent = Amount { packets: seen as u64, bytes: (seen * (SMALL + UDP_HEADERS)) as u64 };
    report.compare(name, sent, &scene.bed)?;
    Ok((median(&nets), median(&empties)))
}

/// Sends bytes over one TCP connection and waits until the other end has them all.
fn bulk(side: &Side, bytes: usize) -> anyhow::Result<()> {
    const CHUNK: usize = 1 << 16;
    side.enter(|| {
        let listener = side.far.netns.enter(|| TcpListener::bind((side.far.v4, 0)))?;
        let address = listener.local_addr()?;
        let mut near = side.near.netns.enter(|| TcpStream::connect(address))?;
        let mut far = listener.accept()?.0;
        std::thread::scope(|scope| {
            let reader = scope.spawn(move || -> anyhow::Result<usize> {
                let (mut buffer, mut received) = (vec![0; 4 * CHUNK], 0);
                loop {
                    match far.read(&mut buffer)? {
                        0 => return Ok(received),
                        count => received += count,
                    }
                }
            });
            let data = vec![0x5a; CHUNK];
            for _ in 0..bytes / CHUNK {
                near.write_all(&data)?;
            }
            near.shutdown(std::net::Shutdown::Write)?;
            let received = reader.join().map_err(|_panic| anyhow::anyhow!("the reader"))??;
            ensure!(received == bytes, "{received} bytes of {bytes}");
            // The far end closes first, so that no end of this is still on its way later.
            ensure!(near.read(&mut [0])? == 0, "the far end sends nothing");
            Ok(())
        })
    })
}

/// Median percent of a core for 10 Gbit/s of TCP: net of the empty program, the empty program.
fn gso(report: &mut Report, name: &str, plane: Plane) -> anyhow::Result<(f64, f64)> {
    let (rounds, bytes) = if report.quick { (3, 16 << 20) } else { (15, 256 << 20) };
    let scene = Scene::new(plane, true)?;
    let _enabled = enable_stats(Stats::RunTime).context("enable the kernel's statistics")?;
    let (mut nets, mut empties, mut sent) = (Vec::new(), Vec::new(), Amount::default());
    let share = |ns: f64| ns / 1e9 / (bytes as f64 / TEN_GBIT) * 100.0;
    for round in 0..=rounds {
        let before = Cost::of(&scene.empty.programs)?;
        bulk(&scene.empty, bytes)?;
        let without = Cost::of(&scene.empty.programs)?.since(before);
        let counted = Counted::at_rest(&scene.watched.near.netns)?;
        let before = Cost::of(&scene.watched.programs)?;
        bulk(&scene.watched, bytes)?;
        let with = Cost::of(&scene.watched.programs)?.since(before);
        sent.add(Counted::at_rest(&scene.watched.near.netns)?.since(&counted));
        if round > 0 {
            nets.push(share(with.ns - with.runs * without.per_run()));
            empties.push(share(without.ns));
        }
    }
    if plane == Plane::Socket {
        // The far end's sockets see the same packets once more.
        sent.add(sent);
    }
    report.compare(name, sent, &scene.bed)?;
    Ok((median(&nets), median(&empties)))
}
