//! The attach points: one program for each plane, direction and kind of link header.
//!
//! Classifiers return TC_ACT_UNSPEC (-1, TCX_NEXT), so that every program behind them still runs;
//! cgroup programs return 1, because 0 drops the packet.

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_ns};
use aya_ebpf::macros::{cgroup_skb, classifier};
use aya_ebpf::programs::{SkBuffContext, TcContext};

use crate::hook::{EGRESS, POD, SOCKET, SUPPLEMENT};
use crate::maps::CLOCK;
use crate::network::observe;
use crate::packets::watch;
use crate::skb::{ETHERNET, OTHER, RAW};

macro_rules! hook {
    ($name:ident, $function:ident, $link:expr, $hook:expr) => {
        #[classifier]
        pub fn $name(ctx: TcContext) -> i32 {
            $function::<{ $link }, { $hook }>(&ctx);
            TC_ACT_UNSPEC
        }
    };
}

hook!(orb8_in_eth, observe, ETHERNET, 0);
hook!(orb8_out_eth, observe, ETHERNET, EGRESS);
hook!(orb8_in_raw, observe, RAW, 0);
hook!(orb8_out_raw, observe, RAW, EGRESS);
hook!(orb8_in_any, observe, OTHER, 0);
hook!(orb8_out_any, observe, OTHER, EGRESS);
hook!(orb8_in_pod, observe, ETHERNET, EGRESS | POD);
hook!(orb8_out_pod, observe, ETHERNET, POD);

hook!(orb8_sup_in_eth, observe, ETHERNET, SUPPLEMENT);
hook!(orb8_sup_out_eth, observe, ETHERNET, SUPPLEMENT | EGRESS);
hook!(orb8_sup_in_raw, observe, RAW, SUPPLEMENT);
hook!(orb8_sup_out_raw, observe, RAW, SUPPLEMENT | EGRESS);
hook!(orb8_sup_in_any, observe, OTHER, SUPPLEMENT);
hook!(orb8_sup_out_any, observe, OTHER, SUPPLEMENT | EGRESS);
hook!(orb8_sup_in_pod, observe, ETHERNET, SUPPLEMENT | EGRESS | POD);
hook!(orb8_sup_out_pod, observe, ETHERNET, SUPPLEMENT | POD);

hook!(orb8_pkt_in_eth, watch, ETHERNET, 0);
hook!(orb8_pkt_out_eth, watch, ETHERNET, EGRESS);
hook!(orb8_pkt_in_raw, watch, RAW, 0);
hook!(orb8_pkt_out_raw, watch, RAW, EGRESS);
hook!(orb8_pkt_in_any, watch, OTHER, 0);
hook!(orb8_pkt_out_any, watch, OTHER, EGRESS);
hook!(orb8_pkt_in_pod, watch, ETHERNET, EGRESS | POD);
hook!(orb8_pkt_out_pod, watch, ETHERNET, POD);

/// A socket receives.
#[cgroup_skb(ingress)]
pub fn orb8_sock_in(ctx: SkBuffContext) -> i32 {
    // Data begins at the IP header there, whatever the device.
    observe::<RAW, SOCKET>(&TcContext::new(ctx.skb.skb));
    1
}

/// A socket sends.
#[cgroup_skb(egress)]
pub fn orb8_sock_out(ctx: SkBuffContext) -> i32 {
    observe::<RAW, { SOCKET | EGRESS }>(&TcContext::new(ctx.skb.skb));
    1
}

/// Reads both clocks at one moment; user space runs it, it is attached nowhere.
#[classifier]
pub fn orb8_clock(_ctx: TcContext) -> i32 {
    if let Some(pair) = CLOCK.get_ptr_mut(0) {
        // SAFETY: a value in the map, and helpers that a classifier may call.
        unsafe {
            (*pair).jiffies = bpf_jiffies64();
            (*pair).monotonic_ns = bpf_ktime_get_ns();
        }
    }
    TC_ACT_UNSPEC
}
