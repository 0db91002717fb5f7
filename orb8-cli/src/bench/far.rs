//! The far end of the loads: takes bytes, answers requests, sends datagrams back.
//!
//! Behind loopback a thread of this process serves one connection; `orb8 bench --listen` serves sixteen
//! at once for others. It sends nothing to anybody who did not connect.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

/// The first that a far end says, so that nothing else is taken for one.
const HELLO: [u8; 16] = *b"orb8 bench far 1";
/// Bytes of a request, an answer and a datagram.
pub const SMALL: usize = 64;
/// Bytes that are written and read at once where throughput is measured.
pub const LARGE: usize = 128 << 10;
/// A peer that is silent for so long is gone.
pub const SILENCE: Duration = Duration::from_secs(10);
/// How often datagrams that do not come are interrupted, to see whether their sender is still there.
const LOOK: Duration = Duration::from_millis(100);
/// Connections that are served at once; more are closed.
const MOST: usize = 16;

/// What a connection is for: the first byte that the near end writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Bytes until the near end closes its side; their number is told back.
    Sink,
    /// Requests of [`SMALL`] bytes, each answered with as many.
    Answers,
    /// Datagrams from the port that the next two bytes name are sent back, for as long as the
    /// connection is open; the port to send them to is told. It is that of the connection, if no
    /// other one has it for its datagrams.
    Datagrams,
}

impl Service {
    const fn byte(self) -> u8 {
        match self {
            Self::Sink => b's',
            Self::Answers => b'a',
            Self::Datagrams => b'd',
        }
    }

    fn of(byte: u8) -> io::Result<Self> {
        let all = [Self::Sink, Self::Answers, Self::Datagrams];
        all.into_iter().find(|service| service.byte() == byte).ok_or_else(|| {
            io::Error::new(ErrorKind::InvalidData, format!("no service is called {byte:#x}"))
        })
    }
}

/// The near end's first words on a connection: sees that it is a far end, and asks for a service.
///
/// # Errors
/// It is none, or it is gone.
pub fn ask(stream: &mut TcpStream, service: Service) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let mut hello = [0; HELLO.len()];
    stream.read_exact(&mut hello)?;
    if hello != HELLO {
        let text = "what listens there is no `orb8 bench --listen` of this version";
        return Err(io::Error::new(ErrorKind::InvalidData, text));
    }
    stream.write_all(&[service.byte()])
}

/// Serves one connection until the near end has what it asked for, or is silent for [`SILENCE`].
///
/// # Errors
/// It broke, or was asked for something that there is not.
pub fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    stream.write_all(&HELLO)?;
    let mut service = [0];
    stream.read_exact(&mut service)?;
    match Service::of(service[0])? {
        Service::Sink => sink(&mut stream),
        Service::Answers => answer(&mut stream),
        Service::Datagrams => send_back(&mut stream, SILENCE),
    }
}

fn sink(stream: &mut TcpStream) -> io::Result<()> {
    let (mut buffer, mut total) = (vec![0; LARGE], 0_u64);
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.write_all(&total.to_be_bytes()),
            count => total += count as u64,
        }
    }
}

fn answer(stream: &mut TcpStream) -> io::Result<()> {
    let mut request = [0; SMALL];
    loop {
        match stream.read_exact(&mut request) {
            Ok(()) => stream.write_all(&request)?,
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// The same address with another port. It keeps its scope, without which a link-local one leads nowhere.
#[must_use]
pub fn with_port(mut address: SocketAddr, port: u16) -> SocketAddr {
    address.set_port(port);
    address
}

/// Until the connection is closed, or no datagram came for so long: a peer that vanished closes nothing.
fn send_back(stream: &mut TcpStream, patience: Duration) -> io::Result<()> {
    let mut port = [0; 2];
    stream.read_exact(&mut port)?;
    let near = with_port(stream.peer_addr()?, u16::from_be_bytes(port));
    let own = stream.local_addr()?;
    let socket = UdpSocket::bind(own).or_else(|_taken| UdpSocket::bind(with_port(own, 0)))?;
    // From now on it takes nothing from anybody else.
    socket.connect(near)?;
    socket.set_read_timeout(Some(LOOK))?;
    stream.write_all(&socket.local_addr()?.port().to_be_bytes())?;
    stream.set_nonblocking(true)?;
    let (mut buffer, mut silence) = ([0; SMALL], Duration::ZERO);
    loop {
        match socket.recv(&mut buffer) {
            Ok(count) => {
                // A datagram that cannot be sent is one that is lost, as on the way.
                socket.send(&buffer[..count]).ok();
                silence = Duration::ZERO;
            }
            Err(error) if is_silence(&error) => {
                silence += LOOK;
                if silence >= patience || !is_open(stream) {
                    return Ok(());
                }
            }
            // The near end's socket was closed before its connection.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error),
        }
    }
}

/// True if nothing came in time, which systems call one or the other.
pub fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// True if the other end has not closed a connection, whose reads do not wait.
pub fn is_open(stream: &TcpStream) -> bool {
    match stream.peek(&mut [0]) {
        Ok(count) => count > 0,
        Err(error) => is_silence(&error),
    }
}

/// A far end for others. Its threads end with the process.
#[derive(Debug)]
pub struct Far {
    /// Where it listens.
    pub address: SocketAddr,
}

impl Far {
    /// Begins to listen.
    ///
    /// # Errors
    /// The address cannot be had.
    pub fn listen(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        std::thread::Builder::new().name("far".to_owned()).spawn(move || accept(&listener))?;
        Ok(Self { address })
    }
}

fn accept(listener: &TcpListener) {
    let served = Arc::new(());
    loop {
        let Ok((stream, _)) = listener.accept() else {
            // Out of descriptors, until a connection ends.
            std::thread::sleep(LOOK);
            continue;
        };
        if Arc::strong_count(&served) > MOST {
            continue;
        }
        let one = Arc::clone(&served);
        let work = move || {
            // The near end sees that its connection is gone, and says so.
            serve(stream).ok();
            drop(one);
        };
        // Without a thread the connection is closed.
        drop(std::thread::Builder::new().name("far-one".to_owned()).spawn(work));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn something_else_is_not_taken_for_a_far_end() {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(other.local_addr().unwrap()).unwrap();
        other.accept().unwrap().0.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        let error = ask(&mut near, Service::Sink).unwrap_err();
        assert!(error.to_string().contains("orb8 bench --listen"), "{error}");
    }

    #[test]
    fn a_far_end_takes_bytes_and_tells_their_number() {
        let far = Far::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let mut near = TcpStream::connect(far.address).unwrap();
        ask(&mut near, Service::Sink).unwrap();
        near.write_all(&[7; 100_000]).unwrap();
        near.shutdown(std::net::Shutdown::Write).unwrap();
        let mut told = [0; 8];
        near.read_exact(&mut told).unwrap();
        assert_eq!(u64::from_be_bytes(told), 100_000);
    }

    /// Asks for datagrams; the connection, and the port that is told.
    fn ask_for_datagrams(far: SocketAddr) -> (TcpStream, UdpSocket, u16) {
        let mut near = TcpStream::connect(far).unwrap();
        ask(&mut near, Service::Datagrams).unwrap();
        let socket = UdpSocket::bind(with_port(near.local_addr().unwrap(), 0)).unwrap();
        near.write_all(&socket.local_addr().unwrap().port().to_be_bytes()).unwrap();
        let mut told = [0; 2];
        near.read_exact(&mut told).unwrap();
        (near, socket, u16::from_be_bytes(told))
    }

    #[test]
    fn datagrams_go_to_the_port_that_is_listened_at_and_a_second_one_s_to_another() {
        for loopback in ["127.0.0.1:0", "[::1]:0"] {
            // Another process may have the port for its datagrams: then it is another's turn.
            let listening = (0..50).find_map(|_| {
                let far = Far::listen(loopback.parse().unwrap()).ok()?;
                let first = ask_for_datagrams(far.address);
                (first.2 == far.address.port()).then_some((far, first))
            });
            let Some((far, (_open, first, port))) = listening else {
                assert!(UdpSocket::bind(loopback).is_err(), "{loopback}: never the same port");
                continue;
            };
            let (_open_too, second, other) = ask_for_datagrams(far.address);
            assert_ne!(port, other);
            for (near, port) in [(first, port), (second, other)] {
                near.set_read_timeout(Some(SILENCE)).unwrap();
                near.connect(with_port(far.address, port)).unwrap();
                near.send(&[7; SMALL]).unwrap();
                assert_eq!(near.recv(&mut [0; SMALL]).unwrap(), SMALL);
            }
        }
    }

    #[test]
    fn a_near_end_that_vanishes_does_not_keep_its_place() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        let (ended, end) = std::sync::mpsc::sync_channel(1);
        std::thread::spawn(move || ended.send(send_back(&mut far, 2 * LOOK).is_ok()));
        near.write_all(&[0, 9]).unwrap();
        // It closes nothing and says nothing.
        assert_eq!(end.recv_timeout(Duration::from_secs(60)), Ok(true));
        assert_eq!(near.read(&mut [0; 3]).unwrap(), 2, "the port was told first");
    }

    #[test]
    fn a_word_that_is_no_service_ends_the_connection() {
        let far = Far::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let mut near = TcpStream::connect(far.address).unwrap();
        let mut hello = [0; HELLO.len()];
        near.read_exact(&mut hello).unwrap();
        near.write_all(b"x").unwrap();
        assert_eq!(near.read(&mut [0]).unwrap_or(0), 0);
    }
}
