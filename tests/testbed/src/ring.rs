//! A transmit ring (`PACKET_TX_RING`): the kernel builds each packet from the ring's own pages, so
//! that only the link header is linear and the IP header starts in a fragment. What a driver with
//! header split or a bare `sendfile` makes rarely, every frame is here.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;

use crate::flow::Traffic;
use crate::link::Port;
use crate::packet::Packet;
use crate::raw;

/// Bytes of one ring slot; a frame must fit behind the slot's header.
const SLOT: usize = 16 * 1024;
/// Slots in the ring.
const SLOTS: usize = 64;
/// Bytes of `struct tpacket2_hdr`, aligned: where a frame starts in its slot.
const HEADER: usize = 32;

const TPACKET_V2: i32 = 1;
const SEND_REQUEST: u32 = 1;
const AVAILABLE: u32 = 0;

#[repr(C)]
struct Request {
    block_size: u32,
    block_nr: u32,
    frame_size: u32,
    frame_nr: u32,
}

/// A packet socket that sends from a ring.
#[derive(Debug)]
pub struct Ring {
    fd: OwnedFd,
    memory: NonNull<u8>,
    next: usize,
    from: [u8; 6],
    to: [u8; 6],
}

impl Ring {
    /// A ring that sends on `port`.
    ///
    /// # Panics
    /// If the kernel refuses.
    #[must_use]
    pub fn open(port: &Port, to: [u8; 6]) -> Self {
        let (fd, memory) = port
            .netns
            .enter(|| map(port.ifindex).map(|(fd, memory)| (fd, memory.as_ptr() as usize)))
            .unwrap_or_else(|error| panic!("transmit ring on {}: {error}", port.ifname));
        let memory = NonNull::new(memory as *mut u8).expect("a mapping is not at zero");
        Self { fd, memory, next: 0, from: port.mac, to }
    }

    /// Sends packets in frames with VLAN tags and returns what was sent.
    ///
    /// # Panics
    /// If one does not fit into a slot or is refused.
    pub fn send(&mut self, packets: &[Packet], tags: &[(u16, u16)]) -> Traffic {
        for packet in packets {
            self.send_frame(&packet.frame(self.from, self.to, tags));
        }
        raw::count(packets)
    }

    /// Sends a frame as it is.
    ///
    /// # Panics
    /// If it does not fit into a slot or is refused.
    pub fn send_frame(&mut self, frame: &[u8]) {
        assert!(frame.len() <= SLOT - HEADER, "a frame of {} bytes is too long", frame.len());
        // SAFETY: `next` is below SLOTS, so the slot lies within the mapping.
        let slot = unsafe { self.memory.add(self.next * SLOT) };
        let len = u32::try_from(frame.len()).expect("fits into a slot");
        // SAFETY: status and length are the first words of the slot, which is aligned to a page;
        // the kernel does not touch a slot until its status asks to send.
        unsafe {
            slot.add(HEADER).copy_from_nonoverlapping(NonNull::from(frame).cast(), frame.len());
            slot.cast::<u32>().add(1).write_volatile(len);
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
            slot.cast::<u32>().write_volatile(SEND_REQUEST);
        }
        // SAFETY: no buffer; the call sends what the ring asks for and waits until it has.
        let result = unsafe { libc::send(self.fd.as_raw_fd(), std::ptr::null(), 0, 0) };
        assert!(result >= 0, "sending from the ring: {}", io::Error::last_os_error());
        crate::wait::wait_until(std::time::Duration::from_secs(5), "a free ring slot", || {
            // SAFETY: as above.
            unsafe { slot.cast::<u32>().read_volatile() == AVAILABLE }
        });
        self.next = (self.next + 1) % SLOTS;
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone and is not used after this.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), SLOT * SLOTS) };
    }
}

fn map(ifindex: u32) -> io::Result<(OwnedFd, NonNull<u8>)> {
    let fd = raw::open(ifindex, 0)?;
    raw::set_option(&fd, libc::PACKET_VERSION, &TPACKET_V2)?;
    let slot = u32::try_from(SLOT).expect("small");
    let slots = u32::try_from(SLOTS).expect("small");
    let request = Request { block_size: slot, block_nr: slots, frame_size: slot, frame_nr: slots };
    raw::set_option(&fd, libc::PACKET_TX_RING, &request)?;
    // SAFETY: a new mapping of the whole ring; the kernel chooses the place.
    let memory = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            SLOT * SLOTS,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            fd.as_raw_fd(),
            0,
        )
    };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let memory = NonNull::new(memory.cast()).ok_or(io::ErrorKind::InvalidData)?;
    Ok((fd, memory))
}
