//! Counts a packet on its flow's line.
//!
//! Per packet: parse, one set of this CPU's cache, one line of it. Whatever costs a helper call
//! happens once a flow, or for packets of a rare form.

use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_skb_cgroup_id};
use aya_ebpf::programs::TcContext;
use core::mem::MaybeUninit;
use orb8_common::cache;
use orb8_common::counter::{self, Filtered, Reject};
use orb8_common::index;
use orb8_common::network::{FlowKey, flag};
use orb8_common::parse::{self, Family, Frame, Parsed};

use crate::cpu::Cpu;
use crate::hooks::{flags_of, hook};
use crate::ledger::Counters;
use crate::lifecycle::{RARE_TCP_FLAGS, tcp_flags_seen};
use crate::maps::{fault_bytes, seed};
use crate::skb::{Anywhere, Linear, frame};
use crate::{sockets, supplement, table};

/// What the slow paths need to know of a packet; on the stack of the program.
pub struct Packet {
    pub key: FlowKey,
    /// The cgroup of the socket, or the interface.
    pub owner: u64,
    /// Of key and owner.
    pub hash: u64,
    /// Wire packets.
    pub packets: u32,
    /// IP bytes on the wire.
    pub bytes: u64,
    /// Low 32 bits of `jiffies64`.
    pub now: u32,
    pub tcp_flags: u8,
}

/// Counts one packet. Never fails: what cannot be counted is counted as rejected or lost.
///
/// The families are apart up to the end, because the compiler then knows what is zero in a key.
#[inline(always)]
pub fn observe<const LINK: u32, const HOOK: u32>(ctx: &TcContext) {
    let Some(cpu) = Cpu::this() else { return };
    let counters = Counters::<HOOK>::of(cpu);
    let frame = frame::<LINK>(ctx);
    counters.add(counter::SEEN_PACKETS, frame.packets_estimate() as u64);
    counters.add(counter::SEEN_BYTES, frame.bytes());
    let mut rest = MaybeUninit::uninit();
    let bytes = Linear::of(ctx);
    // A super-packet is rare and pays once for many.
    let family = if frame.gso_size == 0 { parse::common_family(&bytes, &frame) } else { None };
    let left = match family {
        Some(Family::V4) => match parse::common_ipv4(&bytes, &frame) {
            Some(parsed) => common::<HOOK>(ctx, cpu, &frame, &parsed, &mut rest),
            None => cold::<LINK, HOOK>(ctx, &mut rest),
        },
        Some(Family::V6) => match parse::common_ipv6(&bytes, &frame) {
            Some(parsed) => common::<HOOK>(ctx, cpu, &frame, &parsed, &mut rest),
            None => cold::<LINK, HOOK>(ctx, &mut rest),
        },
        None => cold::<LINK, HOOK>(ctx, &mut rest),
    };
    if left == REST {
        // SAFETY: whoever leaves the rest has written the packet.
        not_in_cache::<HOOK>(ctx, unsafe { rest.assume_init_ref() });
    }
}

/// Nothing is left to do for a packet.
const DONE: u64 = 0;
/// The packet is to be counted in the table.
const REST: u64 = 1;

/// A packet of the common form: counted in the cache if its flow has a line there.
#[inline(always)]
fn common<const HOOK: u32>(
    ctx: &TcContext,
    cpu: Cpu,
    frame: &Frame,
    parsed: &Parsed,
    rest: &mut MaybeUninit<Packet>,
) -> u64 {
    let counters = Counters::<HOOK>::of(cpu);
    let packets = parsed.packets(frame);
    settle(counters, frame, parsed, packets);
    let Some(packet) = packet::<HOOK>(ctx, counters, parsed, packets) else { return DONE };
    if packet.tcp_flags & RARE_TCP_FLAGS == 0
        && cache::fits(packet.packets, packet.bytes)
        && crate::cache::add::<HOOK>(cpu, &packet)
    {
        return DONE;
    }
    rest.write(packet);
    REST
}

/// A packet of another form. Apart, so that its stack is not on that of every packet.
#[inline(never)]
fn cold<const LINK: u32, const HOOK: u32>(ctx: &TcContext, rest: &mut MaybeUninit<Packet>) -> u64 {
    let Some(cpu) = Cpu::this() else { return DONE };
    let counters = Counters::<HOOK>::of(cpu);
    let frame = frame::<LINK>(ctx);
    if let Some(parsed) = parse::common_form(&Linear::of(ctx), &frame) {
        return common::<HOOK>(ctx, cpu, &frame, &parsed, rest);
    }
    let estimate = frame.packets_estimate() as u64;
    counters.add(counter::COLD_PATH_PACKETS, estimate);
    let mut parsed = Parsed::EMPTY;
    let why = parse_slowly::<LINK>(ctx, &mut parsed);
    if why != 0 {
        reject(counters, why, estimate, frame.bytes());
        return DONE;
    }
    common::<HOOK>(ctx, cpu, &frame, &parsed, rest)
}

/// The cgroup of the socket, or the interface.
#[inline(always)]
fn owner<const HOOK: u32>(ctx: &TcContext) -> u64 {
    // SAFETY: a helper and a context field that the program may use.
    unsafe {
        if HOOK & hook::SOCKET != 0 {
            bpf_skb_cgroup_id(ctx.skb.skb)
        } else {
            (*ctx.skb.skb).ifindex as u64
        }
    }
}

/// Books the differences between what the skb weighs and what its datagrams weigh on the wire.
#[inline(always)]
fn settle<const HOOK: u32>(
    counters: Counters<HOOK>,
    frame: &Frame,
    parsed: &Parsed,
    packets: u32,
) {
    let padding = frame.bytes() - parsed.datagram_bytes as u64;
    if padding != 0 {
        counters.add(counter::PADDING_BYTES, padding);
    }
    if frame.gso_size != 0 {
        counters.add(counter::GSO_HEADER_BYTES, parsed.gso_header_bytes(packets));
        let excess = (frame.packets_estimate() as u64).wrapping_sub(packets as u64);
        counters.add(counter::SEGMENT_EXCESS, excess);
    }
}

/// 0, or one more than the number of the reason.
#[inline(never)]
pub fn parse_slowly<const LINK: u32>(ctx: &TcContext, out: &mut Parsed) -> u64 {
    match parse::any_form(&Anywhere::<LINK>(ctx), &frame::<LINK>(ctx), out) {
        Ok(()) => 0,
        Err(why) => 1 + why as u64,
    }
}

#[inline(always)]
fn reject<const HOOK: u32>(counters: Counters<HOOK>, why: u64, packets: u64, bytes: u64) {
    let why = match why {
        1 => Reject::NotIp,
        2 => Reject::Truncated,
        3 => Reject::BadHeader,
        _ => Reject::TooManyHeaders,
    };
    counters.reject(why, packets, bytes);
}

/// The packet as it is to be counted, or `None` if it is left out.
#[inline(always)]
fn packet<const HOOK: u32>(
    ctx: &TcContext,
    counters: Counters<HOOK>,
    parsed: &Parsed,
    packets: u32,
) -> Option<Packet> {
    let owner = owner::<HOOK>(ctx);
    let mut key = parsed.key;
    key.flags |= flags_of(HOOK);
    if HOOK & hook::SUPPLEMENT != 0 && !supplement::is_told_at_sockets() {
        // Nobody else counts: these are the totals, as of a node with this plane alone.
        key.flags &= !flag::SUPPLEMENT;
    }
    let bytes = parsed.datagram_bytes as u64 + parsed.gso_header_bytes(packets);
    if sockets::is_supplement::<HOOK>(&key)
        && let Some(why) = supplement::left_out::<HOOK>(ctx, &key, parsed.tcp_flags, owner)
    {
        // Apart, so that the places are constants.
        match why {
            Filtered::CountedAtSocket => {
                counters.filter(Filtered::CountedAtSocket, packets as u64, bytes);
            }
            Filtered::LaterFragment => {
                counters.filter(Filtered::LaterFragment, packets as u64, bytes);
            }
        }
        return None;
    }
    // No datagram has 0 bytes.
    if bytes == fault_bytes() as u64 {
        return None;
    }
    Some(Packet {
        hash: index::hash(&key, owner, seed()),
        key,
        owner,
        packets,
        bytes,
        // SAFETY: a helper that every program may call.
        now: unsafe { bpf_jiffies64() } as u32,
        tcp_flags: parsed.tcp_flags,
    })
}

/// The flow's line in the table, or a new one. The second packet of a flow puts it into the cache,
/// so that flows of one packet drive none out.
#[inline(never)]
fn not_in_cache<const HOOK: u32>(ctx: &TcContext, packet: &Packet) -> u64 {
    let Some(cpu) = Cpu::this() else { return 1 };
    let Some(slot) = table::find(&packet.key, packet.owner, packet.hash) else {
        return table::start::<HOOK>(ctx, cpu, packet);
    };
    let rare = packet.tcp_flags & RARE_TCP_FLAGS != 0;
    if rare || !crate::cache::place(cpu, packet, slot) {
        table::add(slot, packet.packets, packet.bytes, packet.now);
    }
    if rare {
        tcp_flags_seen::<HOOK>(packet, slot);
    }
    0
}
