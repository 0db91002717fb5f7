//! Tun devices: interfaces without a link header.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt as _;

use crate::flow::Traffic;
use crate::netns::Netns;
use crate::packet::Packet;
use crate::raw;

const TUNSETIFF: libc::Ioctl = 0x4004_54ca;

#[repr(C)]
struct Request {
    name: [libc::c_char; libc::IFNAMSIZ],
    flags: libc::c_short,
    _rest: [u8; 22],
}

/// The far side of a tun device: what is written here arrives on the interface, what the
/// interface sends is read here. The device ends with it.
#[derive(Debug)]
pub struct Tun {
    file: File,
    /// The interface's name.
    pub ifname: String,
    /// Its number.
    pub ifindex: u32,
    /// Where it is.
    pub netns: Netns,
}

impl Tun {
    /// A device inside `netns`, up, without addresses.
    ///
    /// # Panics
    /// If the kernel refuses.
    #[must_use]
    pub fn open(netns: &Netns, ifname: &str) -> Self {
        let file = netns
            .enter(|| open(ifname))
            .unwrap_or_else(|error| panic!("tun device {ifname}: {error}"));
        netns.run(&format!("ip link set {ifname} up"));
        crate::link::wait_operational(netns, ifname);
        let ifindex = crate::link::ifindex(netns, ifname);
        Self { file, ifname: ifname.to_owned(), ifindex, netns: netns.clone() }
    }

    /// Lets packets arrive on the interface and returns what they come to.
    ///
    /// # Panics
    /// If one is refused.
    pub fn deliver(&mut self, packets: &[Packet]) -> Traffic {
        for packet in packets {
            self.deliver_bytes(&packet.bytes);
        }
        raw::count(packets)
    }

    /// Lets any bytes arrive on the interface; the first nibble must say 4 or 6.
    ///
    /// # Panics
    /// If they are refused.
    pub fn deliver_bytes(&mut self, bytes: &[u8]) {
        self.file.write_all(bytes).unwrap_or_else(|error| panic!("writing to a tun: {error}"));
    }

    /// Takes the next packet that the interface sent, waiting for it.
    ///
    /// # Panics
    /// If none comes or the device cannot be read.
    #[must_use]
    pub fn take(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; 65_536];
        let deadline = std::time::Duration::from_secs(5);
        let len = crate::wait::wait_for(deadline, "a packet from the tun device", || {
            match self.file.read(&mut bytes) {
                Ok(len) => Some(len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
                Err(error) => panic!("reading from a tun: {error}"),
            }
        });
        bytes.truncate(len);
        bytes
    }
}

fn open(ifname: &str) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    let flags = libc::IFF_TUN | libc::IFF_NO_PI;
    let mut request = Request {
        name: [0; libc::IFNAMSIZ],
        flags: libc::c_short::try_from(flags).expect("a 16-bit set of flags"),
        _rest: [0; 22],
    };
    for (to, from) in request.name.iter_mut().zip(ifname.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from.cast_signed();
    }
    // SAFETY: `request` is laid out as `struct ifreq` and outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(file) }
}
