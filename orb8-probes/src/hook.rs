//! What a hook is, as bits of a constant of its program.

use orb8_common::network::flag;

/// The owner sends there; without it the owner receives.
pub const EGRESS: u32 = 1;
/// At a socket: the owner is its cgroup. Without it at an interface, which is the owner.
pub const SOCKET: u32 = 1 << 1;
/// At the node's end of a link to a pod: what the interface receives, the pod sends.
pub const POD: u32 = 1 << 2;
/// Counts only what the socket plane does not see.
pub const SUPPLEMENT: u32 = 1 << 3;
/// The bits of a key that the hook knows.
pub const fn flags_of(of: u32) -> u8 {
    let mut flags = 0;
    if of & EGRESS != 0 {
        flags |= flag::EGRESS;
    }
    if of & SOCKET != 0 {
        flags |= flag::SOCKET_PLANE;
    }
    if of & SUPPLEMENT != 0 {
        flags |= flag::SUPPLEMENT;
    }
    flags
}
