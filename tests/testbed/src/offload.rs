//! Segmentation and checksum offloads of an interface, and whether it works, through the ethtool ioctl (so that no
//! test needs the tool).

use std::io;

use crate::netns::Netns;

const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_GLINK: u32 = 0x0a;
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

/// Whether an interface of the thread's namespace has its carrier.
pub(crate) fn has_carrier(ifname: &str) -> io::Result<bool> {
    ethtool(ifname, Value { command: ETHTOOL_GLINK, data: 0 }).map(|value| value.data != 0)
}

/// Whether an interface of the thread's namespace is up and works, as far as the kernel noticed.
pub(crate) fn is_running(ifname: &str) -> io::Result<bool> {
    // SAFETY: an interface request is plain data.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name = name(ifname);
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
    // SAFETY: `request` outlives the call.
    if unsafe { libc::ioctl(fd, libc::SIOCGIFFLAGS, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has written the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok(libc::c_int::from(flags) & libc::IFF_RUNNING != 0)
}

fn ioctl(ifname: &str, command: u32, on: bool) -> io::Result<()> {
    ethtool(ifname, Value { command, data: on.into() }).map(drop)
}

fn name(ifname: &str) -> [libc::c_char; libc::IFNAMSIZ] {
    let mut name = [0; libc::IFNAMSIZ];
    for (to, from) in name.iter_mut().zip(ifname.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from.cast_signed();
    }
    name
}

fn ethtool(ifname: &str, mut value: Value) -> io::Result<Value> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    let mut request = Request { name: name(ifname), data: &raw mut value, _rest: [0; 16] };
    let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
    // SAFETY: `request` is laid out as `struct ifreq`, its data points to a live `ethtool_value`.
    let result = unsafe { libc::ioctl(fd, SIOCETHTOOL, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}
