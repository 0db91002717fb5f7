//! The packet of a classifier: direct bytes, slow reads, lengths.

use aya_ebpf::helpers::generated::{bpf_skb_load_bytes, bpf_skb_load_bytes_relative};
use aya_ebpf::programs::TcContext;
use core::mem::MaybeUninit;
use orb8_common::parse::{Direct, Frame, Link, Read};

/// `bpf_skb_load_bytes_relative` counts from the network header.
const BPF_HDR_START_NET: u32 = 1;

/// How the link header of a device is stripped, known when a program is attached.
pub const ETHERNET: u32 = 0;
/// See [`Link::Raw`].
pub const RAW: u32 = 1;
/// See [`Link::Other`].
pub const OTHER: u32 = 2;

/// Directly addressable bytes of a packet.
pub struct Linear {
    data: usize,
    end: usize,
}

impl Linear {
    #[inline(always)]
    pub fn of(ctx: &TcContext) -> Self {
        Self { data: ctx.data(), end: ctx.data_end() }
    }
}

// Loads are plain, not "unaligned" ones, which the compiler would split into bytes: where
// alignment matters to the CPU the kernel aligns the IP header to 4 bytes (NET_IP_ALIGN).
impl Direct for Linear {
    #[inline(always)]
    fn has(&self, length: u32) -> bool {
        self.data + length as usize <= self.end
    }

    #[inline(always)]
    unsafe fn byte(&self, offset: u32) -> u8 {
        // SAFETY: the caller has asked `has`.
        unsafe { *((self.data + offset as usize) as *const u8) }
    }

    #[inline(always)]
    unsafe fn half(&self, offset: u32) -> [u8; 2] {
        // SAFETY: as above.
        unsafe { *((self.data + offset as usize) as *const u16) }.to_ne_bytes()
    }

    #[inline(always)]
    unsafe fn word(&self, offset: u32) -> u32 {
        // SAFETY: as above.
        unsafe { *((self.data + offset as usize) as *const u32) }
    }

    #[inline(always)]
    unsafe fn double(&self, offset: u32) -> u64 {
        // SAFETY: as above.
        unsafe { *((self.data + offset as usize) as *const u64) }
    }
}

/// Any bytes of a packet, by a helper call each.
pub struct Anywhere<'a, const LINK: u32>(pub &'a TcContext);

impl<const LINK: u32> Read for Anywhere<'_, LINK> {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        let (skb, to, len) = (self.0.skb.skb.cast(), bytes.as_mut_ptr().cast(), N as u32);
        // SAFETY: the helper writes N bytes or fails.
        let result = unsafe {
            if LINK == OTHER {
                bpf_skb_load_bytes_relative(skb, offset, to, len, BPF_HDR_START_NET)
            } else {
                bpf_skb_load_bytes(skb, offset, to, len)
            }
        };
        // SAFETY: the helper has written all bytes.
        if result == 0 { Some(unsafe { bytes.assume_init() }) } else { None }
    }
}

/// What is known before a header is read.
#[inline(always)]
pub fn frame<const LINK: u32>(ctx: &TcContext) -> Frame {
    let skb = ctx.skb.skb;
    // SAFETY: context fields that a classifier may read.
    let (gso_segs, gso_size) = unsafe { ((*skb).gso_segs, (*skb).gso_size) };
    let link = match LINK {
        ETHERNET => Link::Ethernet,
        RAW => Link::Raw,
        // SAFETY: as above.
        _ => Link::Other { ethertype: u16::from_be(unsafe { (*skb).protocol } as u16) },
    };
    Frame { link, length: ctx.len(), gso_segs, gso_size }
}
