//! The kernel's messages about connections, from bytes to tuples.
//!
//! A pure parser: it reads the few attributes that are needed, passes over the rest, allocates
//! nothing, and takes any bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Translation, Tuple};

/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct nfgenmsg`.
const GENERIC: usize = 4;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Subsystem `NFNL_SUBSYS_CTNETLINK`, messages `IPCTNL_MSG_CT_*`.
const CT_NEW: u16 = 1 << 8;
const CT_GET: u16 = CT_NEW | 1;
const CT_DELETE: u16 = CT_NEW | 2;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const REQUEST_DUMP: u16 = 1 | 0x300;
/// The bits of an attribute's type that are flags.
const TYPE_FLAGS: u16 = 0xc000;

/// A connection of the kernel's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Connection {
    /// The first packet's direction, before translation.
    pub(super) original: Tuple,
    /// The answers', before they are translated back.
    pub(super) reply: Tuple,
    /// Tells apart what has the same tuples at different times.
    pub(super) id: u32,
    /// Tables of their own, of virtual switches; else 0.
    pub(super) zone: u16,
}

impl Connection {
    /// Whether some address or port is rewritten.
    pub(super) fn is_translated(&self) -> bool {
        self.reply != self.original.reversed()
    }

    pub(super) const fn translation(&self, from_ns: u64) -> Translation {
        let mut made = Translation::new(self.original, self.reply, from_ns);
        made.id = self.id;
        made.zone = self.zone;
        made
    }
}

/// A message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Message {
    /// It began, or in a dump: it is there.
    New(Connection),
    /// It ended.
    Destroy(Connection),
    /// The dump is complete.
    Done,
    /// The kernel refuses, with an errno.
    Refused(i32),
    /// Nothing for us.
    Other,
}

/// Bytes that are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// The request for the whole table, of both address families.
pub(super) fn dump_request() -> [u8; HEADER + GENERIC] {
    let mut bytes = [0; HEADER + GENERIC];
    bytes[..4].copy_from_slice(&20_u32.to_ne_bytes());
    bytes[4..6].copy_from_slice(&CT_GET.to_ne_bytes());
    bytes[6..8].copy_from_slice(&REQUEST_DUMP.to_ne_bytes());
    bytes
}

/// The messages of a datagram; it ends where a header makes no sense.
pub(super) fn messages(datagram: &[u8]) -> impl Iterator<Item = Result<Message, Malformed>> {
    let mut rest = Some(datagram);
    std::iter::from_fn(move || {
        let bytes = rest.take().filter(|bytes| !bytes.is_empty())?;
        let Some((kind, body, after)) = split_message(bytes) else { return Some(Err(Malformed)) };
        rest = Some(after);
        Some(message(kind, body).ok_or(Malformed))
    })
}

/// Type, body and what follows.
fn split_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let body = bytes.get(HEADER..length)?;
    Some((kind, body, bytes.get(aligned(length)..).unwrap_or_default()))
}

fn message(kind: u16, body: &[u8]) -> Option<Message> {
    Some(match kind {
        CT_NEW => Message::New(connection(body.get(GENERIC..)?)?),
        CT_DELETE => Message::Destroy(connection(body.get(GENERIC..)?)?),
        NLMSG_DONE => match i32::from_ne_bytes(*body.first_chunk()?) {
            0.. => Message::Done,
            error => Message::Refused(error.saturating_neg()),
        },
        NLMSG_ERROR => Message::Refused(i32::from_ne_bytes(*body.first_chunk()?).saturating_neg()),
        _ => Message::Other,
    })
}

fn connection(bytes: &[u8]) -> Option<Connection> {
    const ORIGINAL: u16 = 1;
    const REPLY: u16 = 2;
    const ID: u16 = 12;
    const ZONE: u16 = 18;
    let (mut original, mut reply, mut id, mut zone) = (None, None, 0, 0);
    for attribute in attributes(bytes) {
        match attribute? {
            (ORIGINAL, value) => original = Some(tuple(value)?),
            (REPLY, value) => reply = Some(tuple(value)?),
            (ID, value) => id = u32::from_be_bytes(value.try_into().ok()?),
            (ZONE, value) => zone = u16::from_be_bytes(value.try_into().ok()?),
            _ => {}
        }
    }
    Some(Connection { original: original?, reply: reply?, id, zone })
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    const IP: u16 = 1;
    const PROTOCOL: u16 = 2;
    let (mut addresses, mut protocol) = (None, None);
    for attribute in attributes(bytes) {
        match attribute? {
            (IP, value) => addresses = Some(ends(value)?),
            (PROTOCOL, value) => protocol = Some(ports(value)?),
            _ => {}
        }
    }
    let ((src, dst), (protocol, from, to)) = (addresses?, protocol?);
    let (src, dst) = (SocketAddr::new(src, from), SocketAddr::new(dst, to));
    Some(Tuple { protocol, src, dst })
}

fn ends(bytes: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let (mut src, mut dst) = (None, None);
    for attribute in attributes(bytes) {
        let (kind, value) = attribute?;
        match kind {
            1 => src = Some(v4(value)?),
            2 => dst = Some(v4(value)?),
            3 => src = Some(v6(value)?),
            4 => dst = Some(v6(value)?),
            _ => {}
        }
    }
    Some((src?, dst?))
}

fn v4(value: &[u8]) -> Option<IpAddr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into())
}

fn v6(value: &[u8]) -> Option<IpAddr> {
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into())
}

/// Protocol and both ports; what has none has 0.
fn ports(bytes: &[u8]) -> Option<(u8, u16, u16)> {
    let (mut protocol, mut src, mut dst) = (None, 0, 0);
    for attribute in attributes(bytes) {
        let (kind, value) = attribute?;
        match kind {
            1 => protocol = Some(*value.first()?),
            2 => src = u16::from_be_bytes(value.try_into().ok()?),
            3 => dst = u16::from_be_bytes(value.try_into().ok()?),
            _ => {}
        }
    }
    Some((protocol?, src, dst))
}

/// Types and values; a `None` is an attribute that does not fit, and the last.
fn attributes(bytes: &[u8]) -> impl Iterator<Item = Option<(u16, &[u8])>> {
    let mut rest = Some(bytes);
    std::iter::from_fn(move || {
        let bytes = rest.take().filter(|bytes| !bytes.is_empty())?;
        let split = split_attribute(bytes);
        rest = split.map(|(_, _, after)| after);
        Some(split.map(|(kind, value, _)| (kind, value)))
    })
}

fn split_attribute(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
    let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?) & !TYPE_FLAGS;
    let value = bytes.get(4..length)?;
    Some((kind, value, bytes.get(aligned(length)..).unwrap_or_default()))
}

/// Lengths are filled up to 4.
const fn aligned(length: usize) -> usize {
    length.saturating_add(3) & !3
}

#[cfg(test)]
mod tests;
