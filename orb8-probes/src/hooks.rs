//! The attach points: one program for each direction and kind of link header.
//!
//! All return TC_ACT_UNSPEC (-1, TCX_NEXT), so that every program behind them still runs.

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_ns};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

use crate::maps::CLOCK;
use crate::network::observe;
use crate::packets::watch;
use crate::skb::{ETHERNET, OTHER, RAW};

macro_rules! hook {
    ($name:ident, $function:ident, $link:expr, $egress:expr) => {
        #[classifier]
        pub fn $name(ctx: TcContext) -> i32 {
            $function::<{ $link }, { $egress }>(&ctx);
            TC_ACT_UNSPEC
        }
    };
}

hook!(orb8_in_eth, observe, ETHERNET, false);
hook!(orb8_out_eth, observe, ETHERNET, true);
hook!(orb8_in_raw, observe, RAW, false);
hook!(orb8_out_raw, observe, RAW, true);
hook!(orb8_in_any, observe, OTHER, false);
hook!(orb8_out_any, observe, OTHER, true);

hook!(orb8_pkt_in_eth, watch, ETHERNET, false);
hook!(orb8_pkt_out_eth, watch, ETHERNET, true);
hook!(orb8_pkt_in_raw, watch, RAW, false);
hook!(orb8_pkt_out_raw, watch, RAW, true);
hook!(orb8_pkt_in_any, watch, OTHER, false);
hook!(orb8_pkt_out_any, watch, OTHER, true);

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
