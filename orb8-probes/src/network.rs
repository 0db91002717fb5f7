//! Counts a packet on its flow's line.
//!
//! Per packet: parse, one set of this CPU's cache, one line of it. Whatever costs a helper call
//! happens once a flow, or for packets of a rare form.

use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_skb_cgroup_id};
use aya_ebpf::programs::TcContext;
use core::arch::asm;
use core::mem::MaybeUninit;
use orb8_common::cache;
use orb8_common::counter::{self, Filtered, Reject};
use orb8_common::index;
use orb8_common::network::{FlowKey, flag};
use orb8_common::parse::{self, Family, Frame, Parsed};

use crate::cpu::Cpu;
use crate::hook::{self, flags_of};
use crate::ledger::Counters;
use crate::lifecycle::{RARE_TCP_FLAGS, tcp_flags_seen};
use crate::maps::{fault_bytes, offset_cgroup, offset_id, offset_kn, offset_sk, owner_walk, seed};
use crate::skb::{Anywhere, Linear, frame};
use crate::{sockets, supplement, table};

/// A packet that is to be counted.
pub struct Packet {
    /// What its headers say; the key is whole but for the tag.
    pub parsed: Parsed,
    /// The cgroup of the socket, or the interface.
    pub owner: u64,
    /// Of key and owner.
    pub hash: u64,
    /// IP bytes on the wire.
    pub bytes: u64,
    /// Wire packets.
    pub packets: u32,
    /// Low 32 bits of `jiffies64`.
    pub now: u32,
}

/// What takes a call to know, which is made before the headers are read: a call costs the
/// registers, and what is in them then has to be kept elsewhere.
#[derive(Clone, Copy)]
struct Called {
    owner: u64,
    now: u32,
}

impl Called {
    #[inline(always)]
    fn of<const HOOK: u32>(ctx: &TcContext) -> Self {
        // SAFETY: a helper that every program may call.
        Self { owner: owner::<HOOK>(ctx), now: unsafe { bpf_jiffies64() } as u32 }
    }

    /// Where the packet that it belongs to will be, of which the rest is not known yet.
    #[inline(always)]
    fn hand_over(self, packet: &mut MaybeUninit<Packet>) {
        let packet = packet.as_mut_ptr();
        // SAFETY: within the packet.
        unsafe {
            (&raw mut (*packet).owner).write(self.owner);
            (&raw mut (*packet).now).write(self.now);
        }
    }

    #[inline(always)]
    fn handed_over(packet: &MaybeUninit<Packet>) -> Self {
        let packet = packet.as_ptr();
        // SAFETY: both were handed over.
        unsafe { Self { owner: (*packet).owner, now: (*packet).now } }
    }
}

impl Packet {
    /// A packet of which only the headers are known.
    #[inline(always)]
    const fn of(parsed: Parsed, Called { owner, now }: Called) -> Self {
        Self { parsed, owner, hash: 0, bytes: 0, packets: 0, now }
    }

    /// Makes the kernel's verifier forget what it has learnt of the values on the way to here.
    /// Otherwise it goes through all that comes after once for each of these ways.
    #[inline(always)]
    fn forget(&mut self, frame: &Frame) {
        // Nobody knows it before the program runs.
        let any = frame.length as u64;
        let key = (&raw mut self.parsed.key).cast::<u64>();
        for word in 0..size_of::<FlowKey>() / 8 {
            // SAFETY: within the key, which any bytes may be.
            unsafe { *key.add(word) = forget(*key.add(word), any) };
        }
        self.packets = forget(self.packets as u64, any) as u32;
        self.parsed.datagram_bytes = forget(self.parsed.datagram_bytes as u64, any) as u32;
        self.parsed.header_bytes = forget(self.parsed.header_bytes as u64, any) as u32;
        self.parsed.tcp_flags = forget(self.parsed.tcp_flags as u64, any) as u8;
        self.bytes = forget(self.bytes, any);
    }

    /// Works out what follows from the headers.
    #[inline(always)]
    fn complete<const HOOK: u32>(&mut self, frame: &Frame) {
        self.packets = self.parsed.packets(frame);
        let repeated = self.parsed.gso_header_bytes(self.packets);
        self.bytes = self.parsed.datagram_bytes as u64 + repeated;
        self.parsed.key.flags |= flags_of(HOOK);
        if HOOK & hook::SUPPLEMENT != 0 && !supplement::is_told_at_sockets() {
            // Nobody else counts: these are the totals, as of a node with this plane alone.
            self.parsed.key.flags &= !flag::SUPPLEMENT;
        }
        self.hash = index::hash(&self.parsed.key, self.owner, &seed());
    }

    /// The flow, without its tag.
    #[inline(always)]
    pub const fn key(&self) -> &FlowKey {
        &self.parsed.key
    }
}

/// Counts one packet. Never fails: what cannot be counted is counted as rejected or lost.
///
/// The families are apart up to the end, because the compiler then knows what is zero in a key. The
/// slow parts are functions that are called one after the other, never by each other: programs
/// have 512 bytes of stack for a whole chain of calls.
#[inline(always)]
pub fn observe<const LINK: u32, const HOOK: u32>(ctx: &TcContext) {
    let Some(cpu) = Cpu::this() else { return };
    let counters = Counters::<HOOK>::of(cpu);
    let called = Called::of::<HOOK>(ctx);
    let frame = frame::<LINK>(ctx);
    counters.see(frame.packets_estimate() as u64, frame.bytes(), frame.gso_size != 0);
    let bytes = Linear::of(ctx);
    let mut rest = MaybeUninit::uninit();
    // A super-packet is rare and pays once for many.
    let family = if frame.gso_size == 0 { parse::common_family(&bytes, &frame) } else { None };
    let counted = match family {
        Some(Family::V4) => parse::common_ipv4(&bytes, &frame)
            .map(|parsed| common::<HOOK>(ctx, cpu, &frame, Packet::of(parsed, called), &mut rest)),
        Some(Family::V6) => parse::common_ipv6(&bytes, &frame)
            .map(|parsed| common::<HOOK>(ctx, cpu, &frame, Packet::of(parsed, called), &mut rest)),
        None => None,
    };
    let done = match counted {
        Some(done) => done,
        None => {
            called.hand_over(&mut rest);
            cold::<LINK, HOOK>(ctx, &mut rest) != 0 || {
                // SAFETY: read without an error, so written.
                let packet = unsafe { rest.assume_init_ref() };
                is_left_out::<HOOK>(ctx, counters, packet)
            }
        }
    };
    if !done {
        // SAFETY: written by whoever has not counted it.
        count_slowly::<HOOK>(ctx, unsafe { rest.assume_init_ref() });
    }
}

/// Counts a packet of the common form if its flow has a line in the cache, or leaves it in `rest`.
#[inline(always)]
fn common<const HOOK: u32>(
    ctx: &TcContext,
    cpu: Cpu,
    frame: &Frame,
    mut packet: Packet,
    rest: &mut MaybeUninit<Packet>,
) -> bool {
    let counters = Counters::<HOOK>::of(cpu);
    packet.complete::<HOOK>(frame);
    settle(counters, frame, &packet);
    if HOOK & hook::SUPPLEMENT != 0 {
        // Looked at in memory, of which there is one place.
        let packet = rest.write(packet);
        return is_left_out::<HOOK>(ctx, counters, packet) || is_in_cache::<HOOK>(cpu, packet);
    }
    if is_left_out::<HOOK>(ctx, counters, &packet) || is_in_cache::<HOOK>(cpu, &packet) {
        return true;
    }
    packet.forget(frame);
    rest.write(packet);
    false
}

/// A value that is the same, and of which the verifier knows nothing.
#[inline(always)]
pub fn forget(value: u64, any: u64) -> u64 {
    let mut mixed = value ^ any;
    // SAFETY: it takes away what was put to it, and the compiler cannot look through it. An
    // instruction, because the kernel refuses two source lines at one.
    unsafe { asm!("{0} ^= {1}", inout(reg) mixed, in(reg) any, options(nomem, nostack)) };
    mixed
}

#[inline(always)]
fn is_in_cache<const HOOK: u32>(cpu: Cpu, packet: &Packet) -> bool {
    packet.parsed.tcp_flags & RARE_TCP_FLAGS == 0
        && cache::fits(packet.packets, packet.bytes)
        && crate::cache::add::<HOOK>(cpu, packet)
}

/// Reads a packet of another form, of which `out` has what was called for; 0 if it is still to be counted.
#[inline(never)]
fn cold<const LINK: u32, const HOOK: u32>(ctx: &TcContext, out: &mut MaybeUninit<Packet>) -> u64 {
    let Some(cpu) = Cpu::this() else { return 1 };
    let counters = Counters::<HOOK>::of(cpu);
    let frame = frame::<LINK>(ctx);
    let called = Called::handed_over(out);
    let packet = match parse::common_form(&Linear::of(ctx), &frame) {
        Some(parsed) => out.write(Packet::of(parsed, called)),
        None => {
            let estimate = frame.packets_estimate() as u64;
            counters.add(counter::COLD_PATH_PACKETS, estimate);
            let packet = out.write(Packet::of(Parsed::EMPTY, called));
            let why = parse_slowly::<LINK>(ctx, &mut packet.parsed);
            if why != 0 {
                reject(counters, why, estimate, frame.bytes());
                return 1;
            }
            packet
        }
    };
    packet.forget(&frame);
    packet.complete::<HOOK>(&frame);
    settle(counters, &frame, packet);
    if HOOK & hook::SUPPLEMENT != 0 || packet.packets == 1 {
        return 0;
    }
    // Most super-packets are of flows that the cache has.
    if is_left_out::<HOOK>(ctx, counters, packet) || is_in_cache::<HOOK>(cpu, packet) {
        return 1;
    }
    packet.forget(&frame);
    0
}

/// The cgroup of the socket, or the interface.
#[inline(always)]
fn owner<const HOOK: u32>(ctx: &TcContext) -> u64 {
    if HOOK & hook::SOCKET == 0 {
        // SAFETY: a context field that the program may use.
        return unsafe { (*ctx.skb.skb).ifindex } as u64;
    }
    if owner_walk() != 0 {
        return cgroup_by_walk(ctx);
    }
    // SAFETY: a helper that the program may call.
    unsafe { bpf_skb_cgroup_id(ctx.skb.skb) }
}

/// The cgroup of the socket, from the kernel's structs: what `bpf_skb_cgroup_id` reads too.
///
/// The verifier knows the types of these pointers and checks every load against them; a load from
/// an address that is not there gives 0.
#[inline(always)]
fn cgroup_by_walk(ctx: &TcContext) -> u64 {
    let skb: *const u8;
    // SAFETY: the loader puts the kernel's cast of a context there, which returns its argument; a
    // call changes the first six registers.
    unsafe {
        asm!(
            "call {cast}",
            cast = const CAST_TO_KERNEL_CONTEXT,
            out("r0") skb,
            inout("r1") ctx.skb.skb => _,
            out("r2") _, out("r3") _, out("r4") _, out("r5") _,
            options(nostack, readonly),
        );
    }
    // SAFETY: as said above. The first may be null as far as the verifier knows.
    unsafe {
        let socket = pointer_at(skb, offset_sk());
        if socket.is_null() {
            return 0;
        }
        let cgroup = pointer_at(socket, offset_cgroup());
        if cgroup.is_null() {
            return 0;
        }
        let node = pointer_at(cgroup, offset_kn());
        if node.is_null() {
            return 0;
        }
        core::ptr::read_volatile(node.add(offset_id() as usize).cast())
    }
}

/// # Safety
/// The verifier checks the load.
#[inline(always)]
unsafe fn pointer_at(of: *const u8, offset: u64) -> *const u8 {
    // SAFETY: as the caller says.
    unsafe { core::ptr::read_volatile(of.add(offset as usize).cast()) }
}

/// What the loader looks for. No helper has such a number.
const CAST_TO_KERNEL_CONTEXT: i32 = 0x0b8c_a570;

/// Books the differences between what the skb weighs and what its datagrams weigh on the wire.
#[inline(always)]
fn settle<const HOOK: u32>(counters: Counters<HOOK>, frame: &Frame, packet: &Packet) {
    let padding = frame.bytes() - packet.parsed.datagram_bytes as u64;
    if padding != 0 {
        counters.add(counter::PADDING_BYTES, padding);
    }
    if frame.gso_size != 0 {
        let repeated = packet.parsed.gso_header_bytes(packet.packets);
        counters.add(counter::GSO_HEADER_BYTES, repeated);
        let excess = (frame.packets_estimate() as u64).wrapping_sub(packet.packets as u64);
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

/// Whether a packet is not to be counted here; it is booked then.
#[inline(always)]
fn is_left_out<const HOOK: u32>(
    ctx: &TcContext,
    counters: Counters<HOOK>,
    packet: &Packet,
) -> bool {
    let (packets, bytes) = (packet.packets as u64, packet.bytes);
    if sockets::is_supplement::<HOOK>(packet.key()) {
        match supplement::left_out::<HOOK>(ctx, packet) {
            supplement::OURS => {}
            supplement::LATER_FRAGMENT => {
                counters.filter(Filtered::LaterFragment, packets, bytes);
                return true;
            }
            _ => {
                counters.filter(Filtered::CountedAtSocket, packets, bytes);
                return true;
            }
        }
    }
    let fault = fault_bytes();
    fault != 0 && bytes == fault
}

/// A packet of a flow that is not in the cache, or with rare flags.
#[inline(never)]
fn count_slowly<const HOOK: u32>(ctx: &TcContext, packet: &Packet) -> u64 {
    let Some(cpu) = Cpu::this() else { return 1 };
    if count_known::<HOOK>(cpu, packet) {
        return 0;
    }
    table::start::<HOOK>(ctx, cpu, packet)
}

/// Counts a packet of a flow that the table has; false if it has not. The second packet of a flow
/// puts it into the cache, so that flows of one packet drive none out.
#[inline(always)]
pub fn count_known<const HOOK: u32>(cpu: Cpu, packet: &Packet) -> bool {
    let Some(slot) = table::find(packet.key(), packet.owner, packet.hash) else { return false };
    let rare = packet.parsed.tcp_flags & RARE_TCP_FLAGS != 0;
    if rare || !crate::cache::place(cpu, packet, slot) {
        table::add(slot, packet.packets, packet.bytes, packet.now);
    }
    if rare {
        tcp_flags_seen::<HOOK>(packet, slot);
    }
    true
}
