//! The loads: bytes over TCP, small datagrams, requests and answers. They run for a time and tell what
//! they moved.
//!
//! Blocking, on a thread of their own. Over loopback both ends are in this process; datagrams are sent
//! and read by one thread, so that nothing but the kernel is between.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::cpu;
use super::far::{self, LARGE, SILENCE, SMALL, Service};

/// Datagrams on their way at once; few enough for any socket's buffer.
const WINDOW: u64 = 32;
/// A datagram that has not come back over a link after this is lost.
const LOST_AFTER: Duration = Duration::from_millis(200);

/// Answers that take longer count as this.
const SLOWEST_NS: u64 = SILENCE.as_secs() * 1_000_000_000;
/// Times are kept to a thousandth, which is finer than any difference that is told.
const DIGITS: u8 = 3;

/// Where loads go, and for how long.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The far end; none: loopback.
    pub target: Option<SocketAddr>,
    /// Of each load.
    pub duration: Duration,
    /// Ends them early.
    pub stop: Arc<AtomicBool>,
}

/// What TCP moved.
#[derive(Clone, Copy, Debug)]
pub struct Bytes {
    /// As the far end counted them.
    pub bytes: u64,
    /// Until the far end had them all.
    pub seconds: f64,
    /// CPU seconds of this process.
    pub cpu: Option<f64>,
}

/// What became of datagrams.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Datagrams {
    /// By this process.
    pub sent: u64,
    /// Over loopback by the other socket, over a link those that came back.
    pub received: u64,
    /// That came when the time was over; in no rate, but on a wire and in an agent like the others.
    pub late: u64,
    /// In all.
    pub seconds: f64,
    /// CPU seconds of this process.
    pub cpu: Option<f64>,
    /// The ports of both ends.
    pub ports: [u16; 2],
}

impl Datagrams {
    /// Both ends of each: as many as an agent counts that sees all of them.
    #[must_use]
    pub const fn ends(&self) -> u64 {
        self.sent + self.received + self.late
    }
}

/// What a run of all loads gave.
#[derive(Clone, Debug)]
pub struct Loads {
    /// Over TCP.
    pub bytes: Bytes,
    /// Over UDP.
    pub datagrams: Datagrams,
    /// Nanoseconds from requests to their answers.
    pub answers: Histogram<u64>,
}

/// Time and CPU from a moment on.
struct Watch {
    start: Instant,
    cpu: Option<f64>,
}

impl Watch {
    fn start() -> Self {
        Self { start: Instant::now(), cpu: cpu::own() }
    }

    fn read(&self) -> (f64, Option<f64>) {
        let cpu = cpu::own().zip(self.cpu).map(|(now, then)| now - then);
        (self.start.elapsed().as_secs_f64(), cpu)
    }
}

impl Plan {
    /// All loads, one after the other. Datagrams are last: an agent is asked for their flow, and forgets
    /// flows that have been idle for long.
    ///
    /// # Errors
    /// The far end cannot be reached, is none, or is gone.
    pub fn run(&self) -> io::Result<Loads> {
        let (bytes, answers) = (self.bytes()?, self.answers()?);
        Ok(Loads { bytes, answers, datagrams: self.datagrams()? })
    }

    /// As many bytes over one TCP connection as go.
    ///
    /// # Errors
    /// As for [`Plan::run`].
    pub fn bytes(&self) -> io::Result<Bytes> {
        self.with_far(Service::Sink, |mut stream| {
            let (data, watch) = (vec![0x5a; LARGE], Watch::start());
            while self.goes_on(&watch) {
                stream.write_all(&data)?;
            }
            stream.shutdown(Shutdown::Write)?;
            let mut told = [0; 8];
            stream.read_exact(&mut told)?;
            let (seconds, cpu) = watch.read();
            Ok(Bytes { bytes: u64::from_be_bytes(told), seconds, cpu })
        })
    }

    /// Requests, each sent when the one before is answered.
    ///
    /// # Errors
    /// As for [`Plan::run`].
    pub fn answers(&self) -> io::Result<Histogram<u64>> {
        self.with_far(Service::Answers, |mut stream| {
            let histogram = Histogram::new_with_bounds(1, SLOWEST_NS, DIGITS);
            let (mut histogram, watch) = (histogram.map_err(io::Error::other)?, Watch::start());
            let mut buffer = [0x5a; SMALL];
            while self.goes_on(&watch) {
                let start = Instant::now();
                stream.write_all(&buffer)?;
                stream.read_exact(&mut buffer)?;
                let nanoseconds = start.elapsed().as_nanos();
                histogram.saturating_record(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
            }
            Ok(histogram)
        })
    }

    /// Small datagrams, 32 at a time.
    ///
    /// # Errors
    /// As for [`Plan::run`].
    pub fn datagrams(&self) -> io::Result<Datagrams> {
        let Some(target) = self.target else {
            let local = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
            let [near, far] = [local()?, local()?];
            near.connect(far.local_addr()?)?;
            far.connect(near.local_addr()?)?;
            far.set_read_timeout(Some(SILENCE))?;
            return self.exchange(&near, &far, far.local_addr()?.port(), || Ok(()));
        };
        self.with_far(Service::Datagrams, |mut stream| {
            let near = UdpSocket::bind(far::with_port(stream.local_addr()?, 0))?;
            stream.write_all(&near.local_addr()?.port().to_be_bytes())?;
            let mut port = [0; 2];
            stream.read_exact(&mut port)?;
            let port = u16::from_be_bytes(port);
            near.connect(far::with_port(target, port))?;
            near.set_read_timeout(Some(LOST_AFTER))?;
            stream.set_nonblocking(true)?;
            let there = || if far::is_open(&stream) { Ok(()) } else { Err(far_gone()) };
            self.exchange(&near, &near, port, there).map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("its datagrams over UDP, port {port}: {error}"),
                )
            })
        })
    }

    /// Sends at one socket and receives at another, or the same; if nothing comes, `there` says whether
    /// something still can.
    fn exchange(
        &self,
        from: &UdpSocket,
        to: &UdpSocket,
        far_port: u16,
        there: impl Fn() -> io::Result<()>,
    ) -> io::Result<Datagrams> {
        let (mut sent, mut received, watch) = (0, 0, Watch::start());
        let mut buffer = [0x5a; SMALL];
        while self.goes_on(&watch) {
            for _ in 0..WINDOW {
                from.send(&buffer)?;
            }
            sent += WINDOW;
            for _ in 0..WINDOW {
                match to.recv(&mut buffer) {
                    Ok(_) => received += 1,
                    Err(error) if far::is_silence(&error) => {
                        there()?;
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        let (seconds, cpu) = watch.read();
        let mut late = 0;
        while received + late < sent {
            match to.recv(&mut buffer) {
                Ok(_) => late += 1,
                Err(error) if far::is_silence(&error) => break,
                Err(error) => return Err(error),
            }
        }
        let ports = [from.local_addr()?.port(), far_port];
        Ok(Datagrams { sent, received, late, seconds, cpu, ports })
    }

    fn goes_on(&self, watch: &Watch) -> bool {
        watch.start.elapsed() < self.duration && !self.stop.load(Ordering::Relaxed)
    }

    /// Works with a connection to a far end, which over loopback is a thread.
    fn with_far<T>(
        &self,
        service: Service,
        work: impl FnOnce(TcpStream) -> io::Result<T>,
    ) -> io::Result<T> {
        let asked = |mut stream| {
            far::ask(&mut stream, service)?;
            work(stream)
        };
        if let Some(target) = self.target {
            return asked(TcpStream::connect_timeout(&target, SILENCE)?);
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let near = TcpStream::connect(listener.local_addr()?)?;
        let (far, from) = listener.accept()?;
        if from != near.local_addr()? {
            let text = "somebody else connected to the port of the measurement";
            return Err(io::Error::new(ErrorKind::AddrInUse, text));
        }
        std::thread::scope(|scope| {
            let served = scope.spawn(|| far::serve(far));
            let done = asked(near)?;
            served.join().map_err(|_panic| io::Error::other("the far end panicked"))??;
            Ok(done)
        })
    }
}

fn far_gone() -> io::Error {
    io::Error::new(ErrorKind::ConnectionAborted, "the far end closed its connection meanwhile")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::far::Far;

    fn plan(target: Option<SocketAddr>) -> Plan {
        let duration = Duration::from_millis(50);
        Plan { target, duration, stop: Arc::default() }
    }

    fn assert_moved(loads: &Loads) {
        assert!(loads.bytes.bytes > 0 && loads.bytes.seconds >= 0.05, "{:?}", loads.bytes);
        let datagrams = loads.datagrams;
        assert!(datagrams.sent > 0 && datagrams.received > 0, "{datagrams:?}");
        assert!(datagrams.received <= datagrams.sent, "{datagrams:?}");
        assert!(datagrams.ports[0] != datagrams.ports[1], "{datagrams:?}");
        let [p50, p99] = [0.5, 0.99].map(|share| loads.answers.value_at_quantile(share));
        assert!(!loads.answers.is_empty() && p50 <= p99, "{p50:?} {p99:?}");
    }

    #[test]
    fn over_loopback_everything_moves_and_no_datagram_is_lost() {
        let loads = plan(None).run().unwrap();
        assert_moved(&loads);
        assert_eq!(loads.datagrams.sent, loads.datagrams.received);
        #[cfg(unix)]
        assert!(
            loads.bytes.cpu > Some(0.0) && loads.datagrams.cpu > Some(0.0),
            "{:?}",
            loads.bytes
        );
    }

    #[test]
    fn a_far_end_of_another_process_serves_the_same_loads() {
        let far = Far::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        assert_moved(&plan(Some(far.address)).run().unwrap());
    }

    /// Between a near end and a far end, tells what service each connection asks for.
    fn between(told: impl Fn(u8) + Send + 'static) -> SocketAddr {
        let far = Far::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let (mut near, mut far) = (near.unwrap(), TcpStream::connect(far.address).unwrap());
                let (mut back, mut to) = (far.try_clone().unwrap(), near.try_clone().unwrap());
                std::thread::spawn(move || {
                    io::copy(&mut back, &mut to).ok();
                    to.shutdown(Shutdown::Write).ok();
                });
                let mut service = [0];
                near.read_exact(&mut service).unwrap();
                told(service[0]);
                far.write_all(&service).unwrap();
                std::thread::spawn(move || {
                    io::copy(&mut near, &mut far).ok();
                    far.shutdown(Shutdown::Write).ok();
                });
            }
        });
        address
    }

    #[test]
    fn datagrams_are_the_last_load_so_that_an_agent_has_not_forgotten_them() {
        let (tell, told) = std::sync::mpsc::sync_channel(8);
        let address = between(move |service| tell.send(service).unwrap());
        assert_moved(&plan(Some(address)).run().unwrap());
        assert_eq!(told.try_iter().collect::<Vec<u8>>(), *b"sad");
    }

    #[test]
    fn stopping_ends_loads_that_go_on_long_before_their_time() {
        let stop: Arc<AtomicBool> = Arc::default();
        let stopper = Arc::clone(&stop);
        let address = between(move |_service| stopper.store(true, Ordering::Relaxed));
        let duration = Duration::from_secs(3600);
        let start = Instant::now();
        let loads = Plan { target: Some(address), duration, stop }.run().unwrap();
        assert!(start.elapsed() < Duration::from_secs(60));
        assert!(loads.answers.is_empty(), "it was stopped before");
    }

    #[test]
    fn a_far_end_that_takes_no_datagrams_is_told_as_one_by_udp() {
        // Tells a port at which nobody takes datagrams.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        let gone = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"orb8 bench far 1").unwrap();
            stream.read_exact(&mut [0; 3]).unwrap();
            stream.write_all(&gone.to_be_bytes()).unwrap();
            stream.read_to_end(&mut Vec::new()).ok();
        });
        let error = plan(Some(target)).datagrams().unwrap_err();
        let told = format!("its datagrams over UDP, port {gone}: ");
        assert!(error.to_string().starts_with(&told), "{error}");
    }

    /// A far end that says hello, does so much of one service, and is gone.
    fn gone_after(work: impl FnOnce(&mut TcpStream) + Send + 'static) -> Plan {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = Some(listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"orb8 bench far 1").unwrap();
            stream.read_exact(&mut [0]).unwrap();
            work(&mut stream);
        });
        Plan { duration: Duration::from_secs(20), ..plan(target) }
    }

    #[test]
    fn a_far_end_that_goes_away_in_the_middle_ends_its_load_with_an_error() {
        let sink = gone_after(|stream| stream.read_exact(&mut vec![0; 2 * LARGE]).unwrap());
        let error = sink.bytes().unwrap_err();
        let kinds = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
        assert!(kinds.contains(&error.kind()), "{error}");
        let answers = gone_after(|stream| {
            for _ in 0..3 {
                let mut request = [0; SMALL];
                stream.read_exact(&mut request).unwrap();
                stream.write_all(&request).unwrap();
            }
        });
        let error = answers.answers().unwrap_err();
        let kinds = [ErrorKind::UnexpectedEof, ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
        assert!(kinds.contains(&error.kind()), "{error}");
    }

    #[test]
    fn a_far_end_that_goes_away_among_datagrams_is_noticed_although_they_bring_no_error() {
        // Nobody reads there, and nobody refuses.
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = silent.local_addr().unwrap().port();
        let datagrams = gone_after(move |stream| {
            stream.read_exact(&mut [0; 2]).unwrap();
            stream.write_all(&port.to_be_bytes()).unwrap();
        });
        let error = datagrams.datagrams().unwrap_err().to_string();
        let told =
            format!("its datagrams over UDP, port {port}: the far end closed its connection");
        assert!(error.starts_with(&told), "{error}");
        drop(silent);
    }

    /// Sends each datagram back but the first ones, which wait until the second ones come; then ends it.
    fn send_back_late(far: &UdpSocket, stop: &AtomicBool) {
        let mut buffer = [0; SMALL];
        for number in 0..8 * WINDOW {
            let (_, near) = far.recv_from(&mut buffer).unwrap();
            let back = match number {
                0..WINDOW => 0,
                WINDOW => 1 + WINDOW,
                _ => 1,
            };
            for _ in 0..back {
                far.send_to(&buffer, near).unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
        // Until the other end has seen it.
        while let Ok((1.., near)) = far.recv_from(&mut buffer) {
            far.send_to(&buffer, near).ok();
        }
    }

    #[test]
    fn datagrams_that_come_back_late_are_no_loss() {
        let local = || UdpSocket::bind("127.0.0.1:0").unwrap();
        let (near, far) = (local(), local());
        near.connect(far.local_addr().unwrap()).unwrap();
        // Longer than a busy machine keeps the other end waiting.
        near.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        far.set_read_timeout(Some(SILENCE)).unwrap();
        let plan = Plan { duration: Duration::from_secs(3600), ..plan(None) };
        let stop = Arc::clone(&plan.stop);
        let found = std::thread::scope(|scope| {
            scope.spawn(|| send_back_late(&far, &stop));
            let found = plan.exchange(&near, &near, 0, || Ok(())).unwrap();
            // The other end waits no longer.
            near.send(&[]).ok();
            found
        });
        assert_eq!(found.sent, found.received + found.late, "{found:?}");
        assert!(found.late >= WINDOW, "a window stays behind: {found:?}");
    }
}
