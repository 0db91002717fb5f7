//! Which packets at an interface the socket plane has counted or will count.
//!
//! What the owner sends still bears its socket. What it receives has to be looked up, which is
//! dear, so the answer is kept for a window of ticks in a small table of cells that all CPUs
//! share. A cell is one word, written whole; who loses a cell to another flow asks again.
//!
//! Translation on the way (a host's connection to a Service) changes the packet after the hook,
//! so the look-up fails at an uplink where a socket does take it. But then that socket has sent the
//! opposite flow through this interface: sending leaves a note in the cell of the opposite flow. The
//! same note answers for protocols that cannot be looked up. It holds for a few windows, because
//! nothing tells that the socket was closed, and only who sends renews it. At a pod's link the
//! look-up alone answers for TCP and UDP: a node translates what comes from a pod behind this hook
//! and what goes to it before, so here it has the addresses that the pod's socket knows. Where
//! something inside of the pod redirects (a sidecar's proxy), the look-up fails there.

use aya_ebpf::helpers::generated::bpf_jiffies64;
use aya_ebpf::programs::TcContext;
use orb8_common::index;
use orb8_common::network::{FlowKey, flag, scope};
use orb8_common::parse::{protocol, tcp_flag};

use crate::hook;
use crate::lifecycle::RARE_TCP_FLAGS;
use crate::maps::{SOCKET_PLANE, SOCKETS, seed};
use crate::network::Packet;
use crate::sockets;

/// Cells, as a power of two.
pub const CELLS_SHIFT: u32 = 14;
/// A window is this power of two of ticks: 0.25 to 2.6 s, by the kernel's rate of ticks.
const WINDOW_SHIFT: u32 = 8;
/// Windows for which a note of the sender holds after the one it was made in: 0.8 to 1 s at 1000
/// ticks a second, 3 to 4 s at 250, 7.7 to 10.2 s at 100.
const SENDER_HOLDS: u64 = 3;

/// The layout of a cell: the high bits of the flow's hash, what is known, the window.
const WINDOW_BITS: u32 = 18;
const WINDOW_MASK: u64 = (1 << WINDOW_BITS) - 1;
const HASH_MASK: u64 = !((1 << (WINDOW_BITS + 2)) - 1);

/// What a cell knows of a flow that the owner receives.
const NOBODY: u64 = 0;
/// A socket was found that takes it.
const FOUND: u64 = 1;
/// A socket sends the opposite flow; nobody has looked for one that takes this.
const SENDS: u64 = 2;
/// A socket sends the opposite flow, and none was found that takes this as it stands here.
const TRANSLATED: u64 = 3;

/// Whether the socket plane runs, so that it counts what is left to it.
#[inline(always)]
pub fn is_told_at_sockets() -> bool {
    // SAFETY: a value in the map; user space writes it whole.
    SOCKET_PLANE.get_ptr(0).is_some_and(|on| unsafe { core::ptr::read_volatile(on) } != 0)
}

/// A packet of the supplement's.
pub const OURS: u64 = 0;
/// [`orb8_common::counter::Filtered::CountedAtSocket`].
pub const COUNTED_AT_SOCKET: u64 = 1;
/// [`orb8_common::counter::Filtered::LaterFragment`].
pub const LATER_FRAGMENT: u64 = 2;

/// Whether a packet is the supplement's, and why it is not. Apart, so that its stack is not on that
/// of what comes after it.
#[inline(never)]
pub fn left_out<const HOOK: u32>(ctx: &TcContext, packet: &Packet) -> u64 {
    let (key, owner) = (packet.key(), packet.owner);
    if sockets::is_tunnel::<HOOK>(key) {
        return OURS;
    }
    let counted = if HOOK & hook::EGRESS != 0 {
        let counted = sockets::sender_is_counted::<HOOK>(ctx);
        // Who resets takes no answer; it may be the kernel, for a port that nobody has.
        if counted
            && packet.parsed.tcp_flags & tcp_flag::RST == 0
            && notes_vouch::<HOOK>(key)
            && let Some(opposite) = opposite(key)
        {
            note_sender(&opposite, owner);
        }
        counted
    } else if key.flags & flag::FRAGMENT != 0 {
        // The rest of a datagram, whose ports only the first fragment tells.
        return LATER_FRAGMENT;
    } else {
        receiver_is_counted::<HOOK>(ctx, packet)
    };
    if counted { COUNTED_AT_SOCKET } else { OURS }
}

/// Whether what a socket sends tells that it takes the opposite flow, which a look-up cannot tell.
#[inline(always)]
fn notes_vouch<const HOOK: u32>(key: &FlowKey) -> bool {
    HOOK & hook::POD == 0 || !sockets::can_be_asked_for(key)
}

#[inline(always)]
fn receiver_is_counted<const HOOK: u32>(ctx: &TcContext, packet: &Packet) -> bool {
    let (key, hash) = (packet.key(), packet.hash);
    let now = window();
    let Some(cell) = Cell::of(hash) else { return false };
    let known = cell.read(hash, now);
    let sends = notes_vouch::<HOOK>(key)
        && (known.what == SENDS || known.what == TRANSLATED)
        && known.age <= SENDER_HOLDS;
    if !sockets::can_be_asked_for(key) {
        return sends;
    }
    let answered = match known.what {
        SENDS => false,
        // Whatever a look-up says, the note holds.
        TRANSLATED => sends,
        _ => known.age == 0,
    };
    // A socket comes or goes with these, so they are asked for each time.
    let rare = packet.parsed.tcp_flags & RARE_TCP_FLAGS != 0;
    if answered && !rare {
        return known.what != NOBODY;
    }
    let found = sockets::receiver::<HOOK>(ctx, key) == scope::SOCKET;
    let (what, made) = match (found, sends) {
        (true, _) => (FOUND, now),
        // As old as the note is: what arrives does not tell that anybody still sends.
        (false, true) => (TRANSLATED, now.wrapping_sub(known.age) & WINDOW_MASK),
        (false, false) => (NOBODY, now),
    };
    cell.write(hash, what, made);
    found || sends
}

/// Notes that a socket sends the opposite of a flow.
#[inline(always)]
fn note_sender(received: &FlowKey, owner: u64) {
    let hash = index::hash(received, owner, &seed());
    let now = window();
    let Some(cell) = Cell::of(hash) else { return };
    let known = cell.read(hash, now);
    let what = match known.what {
        // Answered by a look-up that will be made again.
        FOUND if known.age <= SENDER_HOLDS => return,
        TRANSLATED if known.age <= SENDER_HOLDS => TRANSLATED,
        _ => SENDS,
    };
    if known.what != what || known.age != 0 {
        cell.write(hash, what, now);
    }
}

/// The flow that answers one that is sent, if it can be told.
#[inline(always)]
fn opposite(sent: &FlowKey) -> Option<FlowKey> {
    if sent.flags & flag::FRAGMENT != 0 {
        return None;
    }
    let (src_port, dst_port) = match (sent.protocol, sent.src_port[0]) {
        (protocol::ICMP, ECHO_REQUEST) => ([ECHO_REPLY, 0], [0, 0]),
        (protocol::ICMPV6, ECHO_REQUEST_V6) => ([ECHO_REPLY_V6, 0], [0, 0]),
        (protocol::ICMP | protocol::ICMPV6, _) => return None,
        _ => (sent.dst_port, sent.src_port),
    };
    Some(FlowKey {
        src: sent.dst,
        dst: sent.src,
        src_port,
        dst_port,
        protocol: sent.protocol,
        flags: sent.flags & !flag::EGRESS,
        tag: 0,
    })
}

/// ICMP types (RFC 792, RFC 4443).
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;

/// The window of now.
#[inline(always)]
fn window() -> u64 {
    // SAFETY: a helper that a classifier may call.
    (unsafe { bpf_jiffies64() } >> WINDOW_SHIFT) & WINDOW_MASK
}

/// The place of a flow in the table.
struct Cell(*mut u64);

/// What stands there of the flow.
struct Known {
    what: u64,
    /// Windows ago; the most there can be if nothing stands there.
    age: u64,
}

impl Cell {
    #[inline(always)]
    fn of(hash: u64) -> Option<Self> {
        SOCKETS.get_ptr_mut(hash as u32 & ((1 << CELLS_SHIFT) - 1)).map(Self)
    }

    #[inline(always)]
    fn read(&self, hash: u64, now: u64) -> Known {
        // SAFETY: a value in the map; other CPUs write it whole.
        let cell = unsafe { core::ptr::read_volatile(self.0) };
        if (cell ^ hash) & HASH_MASK != 0 {
            return Known { what: NOBODY, age: WINDOW_MASK };
        }
        Known { what: cell >> WINDOW_BITS & 3, age: now.wrapping_sub(cell) & WINDOW_MASK }
    }

    #[inline(always)]
    fn write(&self, hash: u64, what: u64, window: u64) {
        // SAFETY: as above.
        unsafe {
            core::ptr::write_volatile(self.0, hash & HASH_MASK | what << WINDOW_BITS | window);
        }
    }
}
