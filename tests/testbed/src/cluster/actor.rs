//! A process in a cgroup and a network namespace that makes sockets for the test.
//!
//! A socket belongs to the cgroup and the namespace of the process that made it, whoever uses it
//! later; an accepted one belongs to its listener's. So all that has to be there is a process that
//! makes sockets and hands them over; the test then sends and receives with them. The process is a
//! fork that only makes system calls, holds no descriptor but its control socket, and ends with it.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::link::Family;
use crate::netns::Netns;
use crate::wait::wait_for;

/// How long a connection or an answer may take.
pub const DEADLINE: Duration = Duration::from_secs(20);
/// Connections that may wait to be accepted.
const BACKLOG: libc::c_int = 128;

/// A process that makes sockets in its place.
#[derive(Debug)]
pub struct Actor {
    pid: libc::pid_t,
    control: Mutex<OwnedFd>,
    netns: Netns,
    cgroup: PathBuf,
    addresses: Vec<IpAddr>,
}

impl Actor {
    /// A process named `comm` in a cgroup's directory and a namespace, which has these addresses.
    ///
    /// # Panics
    /// If the kernel refuses.
    #[must_use]
    pub fn start(comm: &str, cgroup: &Path, netns: &Netns, addresses: &[IpAddr]) -> Self {
        let file = cgroup.join("cgroup.procs");
        let procs = OpenOptions::new().write(true).open(&file);
        let procs = procs.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let comm = CString::new(comm).expect("a name without a zero byte");
        let mut ends: [RawFd; 2] = [0; 2];
        // SAFETY: `ends` takes the two descriptors.
        let result = unsafe {
            libc::socketpair(
                libc::AF_UNIX,
                libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC,
                0,
                ends.as_mut_ptr(),
            )
        };
        assert_eq!(result, 0, "socketpair: {}", io::Error::last_os_error());
        // SAFETY: two descriptors that nobody else owns.
        let (ours, theirs) =
            unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
        // SAFETY: the copy makes system calls only, and ends without returning from here.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: descriptors that are open in the copy, too.
            unsafe { child(theirs.as_raw_fd(), procs.as_raw_fd(), netns.raw(), &comm) };
        }
        assert!(pid > 0, "fork: {}", io::Error::last_os_error());
        let actor = Self {
            pid,
            control: Mutex::new(ours),
            netns: netns.clone(),
            cgroup: cgroup.to_owned(),
            addresses: addresses.to_vec(),
        };
        drop(theirs);
        let ready = actor.receive();
        ready.unwrap_or_else(|error| panic!("a process in {}: {error}", cgroup.display()));
        actor
    }

    /// Its process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.cast_unsigned()
    }

    /// The cgroup that it was started in.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Its network namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its address of a family.
    ///
    /// # Panics
    /// If it has none.
    #[must_use]
    pub fn address(&self, family: Family) -> IpAddr {
        let of = |address: &&IpAddr| address.is_ipv4() == (family == Family::V4);
        *self.addresses.iter().find(of).unwrap_or_else(|| panic!("no address of {family:?}"))
    }

    /// Moves it into another cgroup; sockets that it has made stay with the old one.
    pub fn move_to(&mut self, cgroup: &Path) {
        crate::cgroup::place(cgroup, self.pid());
        cgroup.clone_into(&mut self.cgroup);
    }

    /// A UDP socket bound to an address; port 0 takes a free one.
    ///
    /// # Panics
    /// If the kernel refuses.
    #[must_use]
    #[track_caller]
    pub fn udp(&self, address: SocketAddr) -> UdpSocket {
        let socket = self.socket(domain(address), libc::SOCK_DGRAM, 0);
        bind(&socket, address);
        let socket = UdpSocket::from(socket);
        socket.set_read_timeout(Some(DEADLINE)).expect("a timeout is accepted");
        socket
    }

    /// A listening TCP socket; port 0 takes a free one.
    ///
    /// # Panics
    /// If the kernel refuses.
    #[must_use]
    #[track_caller]
    pub fn listen(&self, address: SocketAddr) -> TcpListener {
        let socket = self.socket(domain(address), libc::SOCK_STREAM, 0);
        rustix::net::sockopt::set_socket_reuseaddr(&socket, true).expect("an option");
        bind(&socket, address);
        rustix::net::listen(&socket, BACKLOG).expect("a bound socket listens");
        TcpListener::from(socket)
    }

    /// A TCP connection, from a port of the kernel's choice.
    ///
    /// # Errors
    /// What the kernel says: refused, unreachable, timed out.
    pub fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.socket(domain(to), libc::SOCK_STREAM, 0);
        Self::connect_by(socket, to)
    }

    /// A TCP connection from a certain port of its address, 0 for a free one, and where it comes
    /// from, also if it fails.
    pub fn connect_from(&self, port: u16, to: SocketAddr) -> (SocketAddr, io::Result<TcpStream>) {
        let socket = self.socket(domain(to), libc::SOCK_STREAM, 0);
        rustix::net::sockopt::set_socket_reuseaddr(&socket, true).expect("an option");
        let own = if to.is_ipv4() { Family::V4 } else { Family::V6 };
        bind(&socket, SocketAddr::new(self.address(own), port));
        let local = rustix::net::getsockname(&socket).expect("a bound socket has an address");
        let local = SocketAddr::try_from(local).expect("an IP address");
        (local, Self::connect_by(socket, to))
    }

    /// A TCP connection that is on its way, from a port of the kernel's choice, and where it comes
    /// from: what becomes of it is to be asked of the socket, which keeps count of what it sent.
    ///
    /// # Panics
    /// If there is no route.
    #[must_use]
    pub fn dial(&self, to: SocketAddr) -> (SocketAddr, TcpStream) {
        let socket = self.socket(domain(to), libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0);
        let own = if to.is_ipv4() { Family::V4 } else { Family::V6 };
        bind(&socket, SocketAddr::new(self.address(own), 0));
        let local = rustix::net::getsockname(&socket).expect("a bound socket has an address");
        let local = SocketAddr::try_from(local).expect("an IP address");
        let begun = rustix::net::connect(&socket, &to);
        assert_eq!(begun, Err(rustix::io::Errno::INPROGRESS), "dialling {to}");
        (local, TcpStream::from(socket))
    }

    fn connect_by(socket: OwnedFd, to: SocketAddr) -> io::Result<TcpStream> {
        let timeout = rustix::net::sockopt::Timeout::Send;
        rustix::net::sockopt::set_socket_timeout(&socket, timeout, Some(DEADLINE))?;
        rustix::net::connect(&socket, &to)?;
        Ok(TcpStream::from(socket))
    }

    /// A raw ICMP or ICMPv6 socket connected to an address.
    ///
    /// # Panics
    /// If the kernel refuses.
    #[must_use]
    pub fn icmp(&self, to: IpAddr) -> UdpSocket {
        let address = SocketAddr::new(to, 0);
        let protocol = if to.is_ipv4() { libc::IPPROTO_ICMP } else { libc::IPPROTO_ICMPV6 };
        let socket = UdpSocket::from(self.socket(domain(address), libc::SOCK_RAW, protocol));
        socket.connect(address).unwrap_or_else(|error| panic!("no route to {to}: {error}"));
        socket.set_read_timeout(Some(DEADLINE)).expect("a timeout is accepted");
        socket
    }

    /// Any socket.
    ///
    /// # Panics
    /// If the kernel refuses.
    #[must_use]
    #[track_caller]
    pub fn socket(&self, domain: i32, kind: i32, protocol: i32) -> OwnedFd {
        let control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let request = [domain, kind | libc::SOCK_CLOEXEC, protocol];
        // SAFETY: twelve bytes of our own.
        let sent = unsafe {
            libc::send(control.as_raw_fd(), request.as_ptr().cast(), 12, libc::MSG_NOSIGNAL)
        };
        assert_eq!(sent, 12, "asking process {}: {}", self.pid, io::Error::last_os_error());
        drop(control);
        let answer = self.receive();
        let socket = answer.unwrap_or_else(|error| panic!("a socket of {request:?}: {error}"));
        socket.expect("a socket comes with the answer")
    }

    /// The next answer: an error number, and a descriptor where one was asked for.
    fn receive(&self) -> io::Result<Option<OwnedFd>> {
        let control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let mut answer = 0_i32;
        let mut data =
            libc::iovec { iov_base: (&raw mut answer).cast(), iov_len: size_of_val(&answer) };
        let mut room = Ancillary::default();
        let mut message = room.message(&mut data);
        // SAFETY: the message points to buffers that outlive the call.
        let got =
            unsafe { libc::recvmsg(control.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        if got != 4 {
            return Err(io::Error::other(format!("process {} is gone", self.pid)));
        }
        if answer != 0 {
            return Err(io::Error::from_raw_os_error(answer));
        }
        // SAFETY: the kernel filled the message.
        let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        if header.is_null() {
            return Ok(None);
        }
        // SAFETY: the only ancillary message is one descriptor, which is now ours.
        Ok(Some(unsafe {
            OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned())
        }))
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        // SAFETY: our own child, which nobody else waits for.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}

fn domain(address: SocketAddr) -> i32 {
    if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
}

#[track_caller]
fn bind(socket: &OwnedFd, address: SocketAddr) {
    // A process that another test is starting has copies of all sockets for a moment, and so the
    // ports of those that are closed here.
    let bound = wait_for(DEADLINE, &format!("{address} to be free"), || {
        let bound = rustix::net::bind(socket, &address);
        (bound != Err(rustix::io::Errno::ADDRINUSE)).then_some(bound)
    });
    bound.unwrap_or_else(|error| panic!("binding to {address}: {error}"));
}

/// Room for one descriptor beside a message.
#[repr(C, align(8))]
#[derive(Default)]
struct Ancillary([u8; 32]);

impl Ancillary {
    fn message(&mut self, data: &mut libc::iovec) -> libc::msghdr {
        // SAFETY: a message header is plain data; null pointers mean that there is nothing.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = data;
        message.msg_iovlen = 1;
        message.msg_control = self.0.as_mut_ptr().cast();
        message.msg_controllen = self.0.len() as _;
        message
    }
}

/// What the forked process does, until its control socket ends.
///
/// # Safety
/// Runs in a fork of a process with threads: only system calls, no lock, no allocation. The
/// descriptors are open.
unsafe fn child(control: RawFd, procs: RawFd, netns: RawFd, comm: &CString) -> ! {
    // SAFETY: as the function's.
    unsafe {
        let placed = libc::write(procs, c"0".as_ptr().cast(), 1) == 1
            && libc::setns(netns, libc::CLONE_NEWNET) == 0
            && libc::prctl(libc::PR_SET_NAME, comm.as_ptr()) == 0;
        let error = if placed { 0 } else { *libc::__errno_location() };
        // What this copy holds open would keep the test's connections open.
        let (low, high) = (control.cast_unsigned(), control.cast_unsigned() + 1);
        if low > 0 {
            libc::syscall(libc::SYS_close_range, 0_u32, low - 1, 0_u32);
        }
        libc::syscall(libc::SYS_close_range, high, u32::MAX, 0_u32);
        answer(control, error, -1);
        let mut request = [0_i32; 3];
        while libc::recv(control, request.as_mut_ptr().cast(), 12, 0) == 12 {
            let socket = libc::socket(request[0], request[1], request[2]);
            let error = if socket < 0 { *libc::__errno_location() } else { 0 };
            answer(control, error, socket);
            libc::close(socket);
        }
        libc::_exit(0)
    }
}

/// Sends an error number and, if there is one, a descriptor.
///
/// # Safety
/// As [`child`].
unsafe fn answer(control: RawFd, mut error: i32, socket: RawFd) {
    let mut data = libc::iovec { iov_base: (&raw mut error).cast(), iov_len: 4 };
    let mut room = Ancillary([0; 32]);
    let mut message = room.message(&mut data);
    // SAFETY: the message has room for one header and one descriptor.
    unsafe {
        if socket < 0 {
            message.msg_controllen = 0;
        } else {
            message.msg_controllen = libc::CMSG_SPACE(4) as _;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(4) as _;
            libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(socket);
        }
        libc::sendmsg(control, &raw const message, libc::MSG_NOSIGNAL);
    }
}
