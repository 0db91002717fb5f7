//! Every map and every setting of the programs: size, writer, reader.
//!
//! Sizes here are those of the smallest table; the agent sets the real ones before it loads.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, RingBuf, Stack};
use core::arch::asm;
use orb8_common::cache::CpuBlock;
use orb8_common::index::{Group, Seed};
use orb8_common::network::{ClockPair, FlowLine, FlowMeta, PacketFilter, Sparing};
use orb8_common::{sample, setting};

use crate::hook;

/// User space may map the array (kernel 5.5).
const BPF_F_MMAPABLE: u32 = 1 << 10;
/// Entries take memory as they come.
const BPF_F_NO_PREALLOC: u32 = 1;

/// Flow counters, one line a flow. Programs add, user space reads through a mapping and zeroes a
/// line when no program can hold it any more.
#[map]
pub static LINES: Array<FlowLine> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// What is known of each flow, at the same number as its line.
#[map]
pub static META: Array<FlowMeta> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Cells that lead to lines. Programs fill cells, user space empties them.
#[map]
pub static INDEX: Array<Group> = Array::with_max_entries(2, BPF_F_MMAPABLE);

/// Numbers of free lines. User space pushes, programs pop.
#[map]
pub static FREE: Stack<u32> = Stack::with_max_entries(1, 0);

/// What each CPU has for itself: ledger counters, see `orb8_common::counter`, and the lines in front
/// of the table. Programs add; user space reads, and takes away lines to which no program adds any
/// more. The loader makes the value longer than it is here.
#[map]
pub static CPUS: Array<CpuBlock> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Flow start, TCP state change and end. Nothing else goes in here.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(64 * 1024, 0);

/// Packets, while somebody watches packets.
#[map]
pub static PACKETS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

/// What the watcher of packets wants. User space writes, programs read.
#[map]
pub static PACKET_FILTER: Array<PacketFilter> = Array::with_max_entries(1, 0);

/// What became of the packets of the view, see `orb8_common::network::packet_counter`. Programs add,
/// user space reads.
#[map]
pub static PACKET_COUNTERS: PerCpuArray<[u64; 8]> = PerCpuArray::with_max_entries(1, 0);

/// The flows that the view has met while packets are sampled. Programs only.
#[map]
pub static PACKET_FLOWS: PerCpuArray<sample::Told> = PerCpuArray::with_max_entries(1, 0);

/// What is told less of while the agent is over a budget. User space writes, programs read.
#[map]
pub static SPARING: Array<Sparing> = Array::with_max_entries(1, 0);

/// Both clocks, read at one moment by the `orb8_clock` program.
#[map]
pub static CLOCK: Array<ClockPair> = Array::with_max_entries(1, 0);

/// The network namespace behind each link to a pod: ifindex to the id that the node's namespace
/// has for it. User space writes, programs read.
#[map]
pub static POD_LINKS: HashMap<u32, u32> = HashMap::with_max_entries(16_384, BPF_F_NO_PREALLOC);

/// UDP ports of the host's tunnels (VXLAN, Geneve) as they stand in packets, 0 where there is none.
/// User space writes, programs read.
#[map]
pub static TUNNELS: Array<[u16; orb8_common::network::TUNNEL_PORTS]> =
    Array::with_max_entries(1, 0);

/// 1 while the socket plane's programs are attached: only then may anything be left to them. User
/// space writes, programs read.
#[map]
pub static SOCKET_PLANE: Array<u32> = Array::with_max_entries(1, 0);

/// Which flows have a socket, remembered for a while; see `supplement`. Programs only.
#[map]
pub static SOCKETS: Array<u64> = Array::with_max_entries(1 << crate::supplement::CELLS_SHIFT, 0);

macro_rules! setting {
    ($name:ident, $setting:ident, $($option:ident),*) => {
        #[inline(always)]
        pub fn $name() -> u64 {
            let value: u64;
            // SAFETY: a constant, which the loader puts in.
            unsafe {
                asm!(
                    "{value} = {mark} ll",
                    value = out(reg) value,
                    mark = const setting::mark(setting::$setting),
                    options($($option),*),
                );
            }
            value
        }
    };
}
// Left out where nobody uses them.
setting!(seed_src, SEED_SRC, pure, nomem, nostack);
setting!(seed_src_factor, SEED_SRC_FACTOR, pure, nomem, nostack);
setting!(seed_dst, SEED_DST, pure, nomem, nostack);
setting!(seed_dst_factor, SEED_DST_FACTOR, pure, nomem, nostack);
// Put where they are used, each time anew: kept, they would take a register.
setting!(group_mask, GROUP_MASK, nomem, nostack);
setting!(cache_mask, CACHE_MASK, nomem, nostack);
setting!(realtime, REALTIME, nomem, nostack);
setting!(owner_walk, OWNER_WALK, nomem, nostack);
setting!(offset_sk, OFFSET_SK, nomem, nostack);
setting!(offset_cgroup, OFFSET_CGROUP, nomem, nostack);
setting!(offset_kn, OFFSET_KN, nomem, nostack);
setting!(offset_id, OFFSET_ID, nomem, nostack);
setting!(fault_bytes, FAULT_BYTES, nomem, nostack);
setting!(root_cgroup, ROOT_CGROUP, nomem, nostack);
setting!(root_level, ROOT_LEVEL, nomem, nostack);

/// The secret of the hash.
#[inline(always)]
pub fn seed() -> Seed {
    Seed {
        src: seed_src(),
        src_factor: seed_src_factor(),
        dst: seed_dst(),
        dst_factor: seed_dst_factor(),
    }
}

/// Whether something else may count in the middle of a program: at sockets, and everywhere where
/// bottom halves are threads that others preempt.
#[inline(always)]
pub fn is_interrupted<const HOOK: u32>() -> bool {
    HOOK & hook::SOCKET != 0 || realtime() != 0
}
