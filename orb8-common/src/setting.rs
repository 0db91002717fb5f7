//! Settings of the programs: constants in their instructions, which the loader fills in.
//!
//! Where a setting is needed the object has a load of a 64-bit constant, [`MARK`] with the
//! setting's number in its low half, and the loader puts the value in its place. So a setting costs
//! no load from memory with each packet, and the kernel's verifier removes what a value rules out.

/// High half of the constants that stand for settings. The hash has no such constant.
pub const MARK: u64 = 0x0b8c_5e77 << 32;

/// [`crate::index::Seed::src`].
pub const SEED_SRC: usize = 0;
/// [`crate::index::Seed::src_factor`].
pub const SEED_SRC_FACTOR: usize = 1;
/// [`crate::index::Seed::dst`].
pub const SEED_DST: usize = 2;
/// [`crate::index::Seed::dst_factor`].
pub const SEED_DST_FACTOR: usize = 3;
/// Number of groups of the index, a power of two, less one.
pub const GROUP_MASK: usize = 4;
/// See [`crate::cache::mask`]; 0: no cache.
pub const CACHE_MASK: usize = 5;
/// 1 where bottom halves are preempted (PREEMPT_RT).
pub const REALTIME: usize = 6;
/// 1: the owner of a socket's packet is read from the kernel's structs, at the offsets below.
pub const OWNER_WALK: usize = 7;
/// `sk_buff.sk`, in bytes.
pub const OFFSET_SK: usize = 8;
/// `sock.sk_cgrp_data.cgroup`.
pub const OFFSET_CGROUP: usize = 9;
/// `cgroup.kn`.
pub const OFFSET_KN: usize = 10;
/// `kernfs_node.id`.
pub const OFFSET_ID: usize = 11;
/// Datagrams of this many bytes are seen, but neither counted nor lost: a fault for the test that
/// proves that the ledger notices. 0 in every other use, and the code is then removed.
pub const FAULT_BYTES: usize = 12;
/// Id of the cgroup whose sockets the socket plane sees, with all below it.
pub const ROOT_CGROUP: usize = 13;
/// How many cgroups lie above that one; 0: it is the hierarchy's root, which holds every socket.
pub const ROOT_LEVEL: usize = 14;
/// How many there are.
pub const COUNT: usize = 15;

/// What stands in the object for a setting.
#[must_use]
pub const fn mark(setting: usize) -> u64 {
    MARK | setting as u64
}
