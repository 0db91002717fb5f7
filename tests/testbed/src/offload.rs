//! Segmentation and checksum offloads of an interface, through the ethtool ioctl (so that no
//! test needs the tool).

use std::io;

use crate::netns::Netns;

const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_SRXCSUM: u32 = 0x15;
const ETHTOOL_STXCSUM: u32 = 0x17;
const ETHTOOL_SSG: u32 = 0x19;
const ETHTOOL_STSO: u32 = 0x1f;
const ETHTOOL_SGSO: u32 = 0x24;
const ETHTOOL_SGRO: u32 = 0x2c;

#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

#[repr(C)]
struct Request {
    name: [libc::c_char; libc::IFNAMSIZ],
    data: *mut Value,
    _rest: [u8; 16],
}

/// Lets the interface carry super-packets (TSO, GSO, GRO, scatter-gather), or only packets as
/// they are on a wire.
///
/// # Panics
/// If the kernel refuses.
pub fn segmentation(netns: &Netns, ifname: &str, on: bool) {
    // Switching scatter-gather off takes TSO and GSO with it; on, it must come first.
    let order = if on {
        [ETHTOOL_SSG, ETHTOOL_SGSO, ETHTOOL_STSO, ETHTOOL_SGRO]
    } else {
        [ETHTOOL_SGRO, ETHTOOL_STSO, ETHTOOL_SGSO, ETHTOOL_SSG]
    };
    for command in order {
        set(netns, ifname, command, on);
    }
}

/// Lets the interface leave checksums to the other side, or not.
///
/// # Panics
/// If the kernel refuses.
pub fn checksums(netns: &Netns, ifname: &str, on: bool) {
    set(netns, ifname, ETHTOOL_STXCSUM, on);
    set(netns, ifname, ETHTOOL_SRXCSUM, on);
}

fn set(netns: &Netns, ifname: &str, command: u32, on: bool) {
    netns.enter(|| ioctl(ifname, command, on)).unwrap_or_else(|error| {
        panic!("ethtool command {command:#x} on {ifname} in {}: {error}", netns.label())
    });
}

fn ioctl(ifname: &str, command: u32, on: bool) -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    let mut value = Value { command, data: on.into() };
    let mut request = Request { name: [0; libc::IFNAMSIZ], data: &raw mut value, _rest: [0; 16] };
    for (to, from) in request.name.iter_mut().zip(ifname.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from.cast_signed();
    }
    let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
    // SAFETY: `request` is laid out as `struct ifreq`, its data points to a live `ethtool_value`.
    let result = unsafe { libc::ioctl(fd, SIOCETHTOOL, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
