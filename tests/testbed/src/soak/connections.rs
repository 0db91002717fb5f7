//! TCP connections that are closed as soon as they are open, half of them by a reset.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_linger, set_socket_timeout};
use rustix::net::{AddressFamily, SocketType};

use super::bed::{Bed, options};
use super::figures::Figures;
use super::{Load, Turn};
use crate::link::{Veth, VethOptions, mac_text};

/// Connections a second, if the machine is fast enough.
const RATE: f64 = 10_000.0;
/// A machine that opens fewer than one in so many shows nothing.
const SLOWEST: f64 = 10.0;
/// Who opens them; each asks a listener of its own.
const CLIENTS: u16 = 4;
/// Addresses of each client: a port that rests after a connection is not free for a minute.
const ADDRESSES: u8 = 16;
/// Connections that one address opens before the next one's turn.
const STRIDE: u64 = 64;
const FIRST_PORT: u16 = 8_000;
const BACKLOG: i32 = 4_096;
/// How long a connection may take, and how long a listener waits before it looks whether all is over.
const PATIENCE: Duration = Duration::from_secs(2);
const GLANCE: Duration = Duration::from_millis(100);

pub(super) fn run(turn: &Turn<'_>) -> anyhow::Result<Figures> {
    let link = Veth::addressed(VethOptions::default());
    prepare(&link);
    let options = options(&turn.options.agent, &link);
    let bed = Bed::start(link, &options)?;
    turn.overload(bed, |bed| load(bed, turn.load))
}

/// The `n`th address of a client.
fn address(client: u16, n: u64) -> Ipv4Addr {
    let n = u8::try_from(n % u64::from(ADDRESSES)).unwrap_or(0);
    Ipv4Addr::new(10, 77, 0, 20 + u8::try_from(client).unwrap_or(0) * ADDRESSES + n)
}

fn prepare(link: &Veth) {
    let (near, far) = (&link.near, &link.far);
    let all =
        (0..CLIENTS).flat_map(|client| (0..ADDRESSES).map(move |n| address(client, u64::from(n))));
    let (own, others): (Vec<String>, Vec<String>) = all
        .map(|ip| {
            let (dev, mac) = (&near.ifname, mac_text(far.mac));
            let neighbour = format!("neigh replace {ip} lladdr {mac} dev {dev} nud permanent");
            (format!("addr add {ip}/24 dev {}", far.ifname), neighbour)
        })
        .unzip();
    far.netns.ip_batch(&own);
    near.netns.ip_batch(&others);
    far.netns.sysctl("ipv4/ip_local_port_range", "1024 65535");
}

fn load(bed: &Bed, time: Duration) -> anyhow::Result<Load> {
    let server = IpAddr::V4(bed.link.near.v4);
    let listeners: Vec<OwnedFd> = bed.link.near.netns.enter(|| {
        let listen = |client| listen(SocketAddr::new(server, FIRST_PORT + client));
        (0..CLIENTS).map(listen).collect::<io::Result<_>>()
    })?;
    let over = AtomicBool::new(false);
    let (opened, failed, to) = std::thread::scope(|scope| {
        for listener in &listeners {
            scope.spawn(|| accept_until(listener, &over));
        }
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let to = SocketAddr::new(server, FIRST_PORT + client);
                let netns = &bed.link.far.netns;
                scope.spawn(move || netns.enter(|| open_and_close(client, to, time)))
            })
            .collect();
        let (mut opened, mut failed) = (0, Vec::new());
        for client in clients {
            match client.join() {
                Ok((count, errors)) => {
                    opened += count;
                    failed.extend(errors);
                }
                Err(_told) => failed.push("a client panicked".to_owned()),
            }
        }
        let to = Instant::now();
        over.store(true, Ordering::Relaxed);
        (opened, failed, to)
    });
    let mut faults = Vec::new();
    // A machine that is too busy drops one now and then; more than that is a fault.
    if failed.len() as u64 > opened / 100 {
        faults.push(format!("{} of {opened} connections failed: {}", failed.len(), failed[0]));
    }
    let least = RATE * time.as_secs_f64() / SLOWEST;
    if (opened as f64) < least {
        faults.push(format!("{opened} connections were opened, of which {least:.0} are the least"));
    }
    Ok(Load { to: Some(to), connections: Some(opened), faults, ..Load::default() })
}

fn listen(at: SocketAddr) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    rustix::net::bind(&socket, &at)?;
    rustix::net::listen(&socket, BACKLOG)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(GLANCE))?;
    Ok(socket)
}

/// Takes and closes connections until it is over and none has come for a while.
fn accept_until(listener: &OwnedFd, over: &AtomicBool) {
    loop {
        let came = rustix::net::accept(listener).is_ok();
        if !came && over.load(Ordering::Relaxed) {
            return;
        }
    }
}

/// Opens connections and closes them, at a client's share of the rate; how many, and what failed.
fn open_and_close(client: u16, to: SocketAddr, time: Duration) -> (u64, Vec<String>) {
    let pause = Duration::from_secs_f64(f64::from(CLIENTS) / RATE);
    let (mut opened, mut failed) = (0, Vec::new());
    let start = Instant::now();
    let mut due = start;
    for number in 0_u64.. {
        if start.elapsed() >= time {
            break;
        }
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        // Who is late does not make up for all of it at once.
        due = (due + pause).max(Instant::now().checked_sub(GLANCE).unwrap_or(due));
        let reset = number & 1 == 1;
        match connect(address(client, number / STRIDE), to, reset) {
            Ok(()) => opened += 1,
            Err(error) => failed.push(error.to_string()),
        }
    }
    (opened, failed)
}

fn connect(from: Ipv4Addr, to: SocketAddr, reset: bool) -> io::Result<()> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    choose_port_late(&socket)?;
    rustix::net::bind(&socket, &SocketAddr::new(from.into(), 0))?;
    set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    rustix::net::connect(&socket, &to)?;
    if reset {
        set_socket_linger(&socket, Some(Duration::ZERO))?;
    }
    Ok(())
}

/// Lets a bound address take its port when it connects, when it may be one that rests after a
/// connection to somebody else.
fn choose_port_late(socket: &OwnedFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: an int that outlives the call, of the size that is told.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            4,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
