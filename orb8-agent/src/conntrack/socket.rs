//! Netlink sockets to the kernel's connection tracking, of the network namespace of the thread
//! that opens them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::sockopt::{
    Timeout, set_socket_recv_buffer_size, set_socket_recv_buffer_size_force, set_socket_timeout,
};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

use super::message::{Malformed, Message, dump_request, messages};

/// `NFNLGRP_CONNTRACK_NEW` and `_DESTROY`, as bits.
const GROUPS: u32 = 1 | 1 << 2;
/// Messages of about 20 000 connections; memory is taken as they come.
const QUEUE: usize = 8 << 20;
/// What the kernel writes into one datagram at most.
pub(super) const DATAGRAM: usize = 32 * 1024;
/// A dump that is silent for so long has failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a look at the events' socket gave.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// A datagram of so many bytes.
    Bytes(usize),
    /// All was read.
    Nothing,
    /// Messages were lost.
    Overrun,
}

/// The socket on which the kernel tells of connections as they begin and end.
#[derive(Debug)]
pub(super) struct Events {
    socket: OwnedFd,
}

impl Events {
    /// Joins the groups; needs `CAP_NET_ADMIN`.
    pub(super) fn open(queue: Option<usize>) -> io::Result<Self> {
        let socket = open(SocketFlags::NONBLOCK)?;
        let queue = queue.unwrap_or(QUEUE);
        if set_socket_recv_buffer_size_force(&socket, queue).is_err() {
            set_socket_recv_buffer_size(&socket, queue)?;
        }
        bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
        Ok(Self { socket })
    }

    /// Reads one datagram, if there is one.
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<Heard> {
        match retry_on_intr(|| recv(&self.socket, &mut *buffer, RecvFlags::empty())) {
            Ok((read, _)) => Ok(Heard::Bytes(read)),
            Err(Errno::WOULDBLOCK) => Ok(Heard::Nothing),
            Err(Errno::NOBUFS) => Ok(Heard::Overrun),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Has the kernel tell its whole table.
pub(super) fn dump(
    buffer: &mut [u8],
    mut take: impl FnMut(Result<Message, Malformed>),
) -> io::Result<()> {
    let socket = open(SocketFlags::empty())?;
    set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    send(&socket, &dump_request(), SendFlags::empty())?;
    loop {
        let (read, _) = retry_on_intr(|| recv(&socket, &mut *buffer, RecvFlags::empty()))?;
        for message in messages(&buffer[..read]) {
            match message {
                Ok(Message::Done) => return Ok(()),
                Ok(Message::Refused(error)) => return Err(io::Error::from_raw_os_error(error)),
                message => take(message),
            }
        }
    }
}

fn open(flags: SocketFlags) -> io::Result<OwnedFd> {
    let flags = flags | SocketFlags::CLOEXEC;
    Ok(socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(NETFILTER))?)
}
