//! Every map and every setting of the programs: size, writer, reader.
//!
//! Sizes here are those of the smallest table; the agent sets the real ones before it loads.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, RingBuf, Stack};
use orb8_common::cache::CpuBlock;
use orb8_common::index::Group;
use orb8_common::network::{ClockPair, FlowLine, FlowMeta, PacketFilter, Sparing};

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

/// Settings: read-only before the programs load, so that the verifier sees constants.
#[unsafe(no_mangle)]
static SEED: u64 = 0;
#[unsafe(no_mangle)]
static GROUP_MASK: u32 = 1;
/// See `orb8_common::cache::mask`; 0: no cache.
#[unsafe(no_mangle)]
static CACHE_MASK: u32 = 0;
/// 1 where bottom halves are preempted (PREEMPT_RT).
#[unsafe(no_mangle)]
static REALTIME: u32 = 0;
/// 1: the owner of a socket's packet is read from the kernel's structs, at the offsets below.
#[unsafe(no_mangle)]
static OWNER_WALK: u32 = 0;
/// `sk_buff.sk`, in bytes.
#[unsafe(no_mangle)]
static OFFSET_SK: u32 = 0;
/// `sock.sk_cgrp_data.cgroup`.
#[unsafe(no_mangle)]
static OFFSET_CGROUP: u32 = 0;
/// `cgroup.kn`.
#[unsafe(no_mangle)]
static OFFSET_KN: u32 = 0;
/// `kernfs_node.id`.
#[unsafe(no_mangle)]
static OFFSET_ID: u32 = 0;
/// Datagrams of this many bytes are seen, but neither counted nor lost: a fault for the test that
/// proves that the ledger notices. 0 in every other use, and the code is then pruned.
#[unsafe(no_mangle)]
static FAULT_BYTES: u32 = 0;
/// Id of the cgroup whose sockets the socket plane sees, with all below it.
#[unsafe(no_mangle)]
static ROOT_CGROUP: u64 = 0;
/// How many cgroups lie above that one; 0: it is the hierarchy's root, which holds every socket.
#[unsafe(no_mangle)]
static ROOT_LEVEL: u32 = 0;

macro_rules! setting {
    ($name:ident, $global:ident, $type:ty) => {
        #[inline(always)]
        pub fn $name() -> $type {
            // SAFETY: a static; volatile because the loader overwrites it in the object.
            unsafe { core::ptr::read_volatile(&raw const $global) }
        }
    };
}
setting!(seed, SEED, u64);
setting!(group_mask, GROUP_MASK, u32);
setting!(cache_mask, CACHE_MASK, u32);
setting!(realtime, REALTIME, u32);
setting!(owner_walk, OWNER_WALK, u32);
setting!(offset_sk, OFFSET_SK, u32);
setting!(offset_cgroup, OFFSET_CGROUP, u32);
setting!(offset_kn, OFFSET_KN, u32);
setting!(offset_id, OFFSET_ID, u32);
setting!(fault_bytes, FAULT_BYTES, u32);
setting!(root_cgroup, ROOT_CGROUP, u64);
setting!(root_level, ROOT_LEVEL, u32);

/// Whether a program may be interrupted by what elsewhere waits for its end.
#[inline(always)]
pub fn is_realtime() -> bool {
    realtime() != 0
}
