//! Asks the kernel for sockets: which one a packet comes from, which one would take it.

use aya_ebpf::bindings::{bpf_fib_lookup as FibLookup, bpf_sock, bpf_sock_tuple};
use aya_ebpf::helpers::generated::{
    bpf_fib_lookup, bpf_get_socket_cookie, bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release,
    bpf_skb_ancestor_cgroup_id, bpf_skb_cgroup_id,
};
use aya_ebpf::programs::TcContext;
use orb8_common::network::{FlowKey, flag, scope};
use orb8_common::parse::protocol;

use crate::hook;
use crate::maps::{POD_LINKS, TUNNELS, root_cgroup, root_level};

/// Address families of sockets that send IP packets (include/linux/socket.h).
const AF_INET: u32 = 2;
/// See [`AF_INET`].
const AF_INET6: u32 = 10;
/// The namespace of the device (BPF_F_CURRENT_NETNS).
const OWN_NETNS: u64 = -1i64 as u64;

/// Whether the socket plane has counted the packet when its socket sent it.
///
/// That is so if the packet still bears the socket, and the socket is a whole one (the stand-in
/// of a connection that is closed has no cgroup) of an IP family (packet sockets send past the
/// hook) in or below the plane's cgroup. At a pod's link a socket of that very cgroup is the
/// kernel's own, which answers pings and refused ports in every namespace: its packets are left
/// to us.
#[inline(always)]
pub fn sender_is_counted<const HOOK: u32>(ctx: &TcContext) -> bool {
    let skb = ctx.skb.skb;
    // SAFETY: context fields that a classifier may read, a pointer that is checked, and helpers
    // that it may call.
    unsafe {
        let sk = (*skb).__bindgen_anon_2.sk;
        if sk.is_null() {
            return false;
        }
        let family = core::ptr::read_volatile(&raw const (*sk).family);
        if family != AF_INET && family != AF_INET6 {
            return false;
        }
        let level = root_level();
        if level != 0 && bpf_skb_ancestor_cgroup_id(skb, level as i32) != root_cgroup() {
            return false;
        }
        if level != 0 && HOOK & hook::POD == 0 {
            return true;
        }
        let cgroup = bpf_skb_cgroup_id(skb);
        cgroup != 0 && (HOOK & hook::POD == 0 || cgroup != root_cgroup())
    }
}

/// Whether the packet is the outside of one of the host's tunnels. The kernel's socket of the
/// tunnel takes it past the socket plane, and what leaves bears the socket of what is inside.
#[inline(always)]
pub fn is_tunnel<const HOOK: u32>(key: &FlowKey) -> bool {
    if HOOK & hook::POD != 0 || key.protocol != protocol::UDP || key.flags & flag::FRAGMENT != 0 {
        return false;
    }
    let port = u16::from_ne_bytes(key.dst_port);
    let Some(ports) = TUNNELS.get(0) else { return false };
    port != 0 && ports.contains(&port)
}

/// Whether the kernel can be asked who would take such a packet.
#[inline(always)]
pub fn can_be_asked_for(key: &FlowKey) -> bool {
    (key.protocol == protocol::TCP || key.protocol == protocol::UDP)
        && key.flags & flag::FRAGMENT == 0
}

/// Whether the packet is one that the socket plane does not see.
#[inline(always)]
pub fn is_supplement<const HOOK: u32>(key: &FlowKey) -> bool {
    HOOK & hook::SUPPLEMENT != 0 && key.flags & flag::SUPPLEMENT != 0
}

/// cgroup, cookie and scope of a packet's owner at an interface.
#[inline(always)]
pub fn owner_facts<const HOOK: u32>(ctx: &TcContext, key: &FlowKey) -> (u64, u64, u8) {
    // A packet that comes over a veth still carries the sender's socket, which says nothing of
    // who receives it.
    if is_tunnel::<HOOK>(key) {
        (0, 0, scope::TUNNEL)
    } else if HOOK & hook::EGRESS != 0 {
        sender_facts(ctx, is_supplement::<HOOK>(key))
    } else if is_supplement::<HOOK>(key) {
        // Asked before it came here.
        let asked = can_be_asked_for(key);
        (0, 0, if asked { scope::NO_SOCKET } else { scope::UNKNOWN })
    } else {
        (0, 0, receiver::<HOOK>(ctx, key))
    }
}

/// cgroup, cookie and scope of the socket that a packet comes from.
#[inline(always)]
fn sender_facts(ctx: &TcContext, supplement: bool) -> (u64, u64, u8) {
    let skb = ctx.skb.skb;
    // SAFETY: helpers that a classifier may call.
    let (cgroup_id, cookie) =
        unsafe { (bpf_skb_cgroup_id(skb), bpf_get_socket_cookie(skb.cast())) };
    // What is left to the supplement has a socket of the kernel's at most.
    let socket = cookie != 0 && !supplement;
    (cgroup_id, cookie, if socket { scope::SOCKET } else { scope::NO_SOCKET })
}

/// The state of a connection whose socket is a stand-in (include/net/tcp_states.h).
const TCP_TIME_WAIT: u32 = 6;

/// Whether a socket of the owner's namespace would take the packet. Apart, so that its stack is not
/// on that of who asks.
#[inline(never)]
fn ask_receiver<const HOOK: u32>(ctx: &TcContext, key: &FlowKey) -> u64 {
    receiver_of::<HOOK>(ctx, key) as u64
}

/// Whether a socket of the owner's namespace would take the packet, as a [`scope`].
#[inline(always)]
pub fn receiver<const HOOK: u32>(ctx: &TcContext, key: &FlowKey) -> u8 {
    ask_receiver::<HOOK>(ctx, key) as u8
}

#[inline(always)]
fn receiver_of<const HOOK: u32>(ctx: &TcContext, key: &FlowKey) -> u8 {
    if !can_be_asked_for(key) {
        return scope::UNKNOWN;
    }
    let netns = if HOOK & hook::POD != 0 {
        // SAFETY: a context field that a classifier may read.
        let ifindex = unsafe { (*ctx.skb.skb).ifindex };
        // SAFETY: only user space writes, and whole values.
        match unsafe { POD_LINKS.get(ifindex) } {
            Some(id) => *id as u64,
            None => return scope::UNKNOWN,
        }
    } else {
        OWN_NETNS
    };
    match look_up(ctx, key, netns) {
        Found::None => scope::NO_SOCKET,
        Found::OfAddress => scope::SOCKET,
        // One that listens at every address of the host takes nothing that only passes through.
        Found::OfAnyAddress if HOOK & hook::POD == 0 && is_forwarded(ctx, key) != 0 => {
            scope::NO_SOCKET
        }
        Found::OfAnyAddress => scope::SOCKET,
    }
}

/// What a look-up finds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    None,
    OfAddress,
    OfAnyAddress,
}

#[inline(always)]
fn look_up(ctx: &TcContext, key: &FlowKey, netns: u64) -> Found {
    let mut tuple = [0u32; 9];
    let size = if key.flags & flag::IPV6 != 0 {
        tuple = [
            key.src[0],
            key.src[1],
            key.src[2],
            key.src[3],
            key.dst[0],
            key.dst[1],
            key.dst[2],
            key.dst[3],
            ports(key),
        ];
        36
    } else {
        tuple[0] = key.src[3];
        tuple[1] = key.dst[3];
        tuple[2] = ports(key);
        12
    };
    let skb = ctx.skb.skb.cast();
    let tuple = (&raw mut tuple).cast::<bpf_sock_tuple>();
    // SAFETY: the tuple has `size` bytes; the reference is given back.
    unsafe {
        let sk = if key.protocol == protocol::TCP {
            bpf_sk_lookup_tcp(skb, tuple, size, netns, 0)
        } else {
            bpf_sk_lookup_udp(skb, tuple, size, netns, 0)
        };
        if sk.is_null() {
            return Found::None;
        }
        let any = is_of_any_address(sk, key.flags & flag::IPV6 != 0);
        // What stands in for a closed connection takes packets past the socket plane's hook.
        let stand_in = key.protocol == protocol::TCP
            && core::ptr::read_volatile(&raw const (*sk).state) == TCP_TIME_WAIT;
        bpf_sk_release(sk.cast());
        if stand_in {
            return Found::None;
        }
        if any { Found::OfAnyAddress } else { Found::OfAddress }
    }
}

/// # Safety
/// The socket was found and not given back yet.
#[inline(always)]
unsafe fn is_of_any_address(sk: *const bpf_sock, ipv6: bool) -> bool {
    // All are read, and volatile: the verifier knows loads of whole fields at constant offsets only,
    // and the compiler would choose between offsets.
    // SAFETY: as the caller says.
    let (v4, v6) = unsafe {
        let bound = &raw const (*sk).src_ip6;
        let word = |at: usize| core::ptr::read_volatile(bound.cast::<u32>().add(at));
        let v4 = core::ptr::read_volatile(&raw const (*sk).src_ip4);
        (v4, word(0) | word(1) | word(2) | word(3))
    };
    (if ipv6 { v6 } else { v4 }) == 0
}

/// Whether the host would send the packet on. Apart, so that its stack is not on that of the
/// look-up: programs have 512 bytes in all.
#[inline(never)]
fn is_forwarded(ctx: &TcContext, key: &FlowKey) -> u64 {
    /// Results of a look-up for packets that go on (include/uapi/linux/bpf.h): at once; by a
    /// tunnel; once the neighbour is known; in fragments.
    const GOES_ON: [i64; 4] = [0, 6, 7, 8];
    const SIZE: i32 = core::mem::size_of::<FibLookup>() as i32;
    let mut ask = [0u32; 16];
    ask[0] = if key.flags & flag::IPV6 != 0 { AF_INET6 } else { AF_INET };
    // SAFETY: a context field that a classifier may read.
    ask[2] = unsafe { (*ctx.skb.skb).ifindex };
    if key.flags & flag::IPV6 != 0 {
        [ask[4], ask[5], ask[6], ask[7]] = key.src;
        [ask[8], ask[9], ask[10], ask[11]] = key.dst;
    } else {
        ask[4] = key.src[3];
        ask[8] = key.dst[3];
    }
    // SAFETY: the struct has 64 bytes, as asserted below.
    let result =
        unsafe { bpf_fib_lookup(ctx.skb.skb.cast(), (&raw mut ask).cast::<FibLookup>(), SIZE, 0) };
    u64::from(GOES_ON[0] == result || GOES_ON[1..].contains(&result))
}

const _: () = {
    use core::mem::offset_of;
    assert!(core::mem::size_of::<FibLookup>() == 64);
    assert!(offset_of!(FibLookup, ifindex) == 8);
    assert!(offset_of!(FibLookup, __bindgen_anon_3) == 16);
    assert!(offset_of!(FibLookup, __bindgen_anon_4) == 32);
};

/// Both ports as they stand in the packet.
#[inline(always)]
fn ports(key: &FlowKey) -> u32 {
    let (s, d) = (key.src_port, key.dst_port);
    u32::from_ne_bytes([s[0], s[1], d[0], d[1]])
}
