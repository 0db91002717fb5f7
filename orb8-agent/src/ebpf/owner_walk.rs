//! How the programs at sockets read the cgroup of a socket without calling for it: from the
//! kernel's own structs, at offsets that its type information tells.
//!
//! A call costs as much as all the rest of counting a packet. Where the kernel has not what is
//! needed (a cast of the context to its own type, kernel 6.2), the programs call.

use orb8_common::setting;

use super::btf::Btf;
use super::patch::{self, PatchError, Settings};

/// Offsets in bytes, and the number of the function that casts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct OwnerWalk {
    /// BTF number of `bpf_cast_to_kern_ctx`.
    cast: u32,
    /// `sk_buff.sk`.
    sk: u32,
    /// `sock.sk_cgrp_data.cgroup`.
    cgroup: u32,
    /// `cgroup.kn`.
    kn: u32,
    /// `kernfs_node.id`.
    id: u32,
    /// 1: these are to be used.
    on: u32,
}

impl OwnerWalk {
    /// As the running kernel has it; `None` if anything is missing.
    #[must_use]
    pub(super) fn of_kernel() -> Option<Self> {
        let btf = Btf::of_kernel()?;
        let in_data = btf.member("sock_cgroup_data", "cgroup")?;
        Some(Self {
            cast: btf.function("bpf_cast_to_kern_ctx")?,
            sk: btf.member("sk_buff", "sk")?,
            cgroup: btf.member("sock", "sk_cgrp_data")?.checked_add(in_data)?,
            kn: btf.member("cgroup", "kn")?,
            id: btf.member("kernfs_node", "id")?,
            on: 1,
        })
    }

    /// Whether there is one.
    pub(super) fn is_on(&self) -> bool {
        self.on != 0
    }

    /// Puts the cast into the programs, if there is one.
    ///
    /// # Errors
    /// If the object is no ELF file.
    pub(super) fn patch(&self, object: &mut [u8]) -> Result<(), PatchError> {
        if self.on != 0 {
            patch::set_cast(object, self.cast)?;
        }
        Ok(())
    }

    /// Tells the programs. Without a walk all is zero, and they call.
    pub(super) fn set(&self, settings: &mut Settings) {
        settings[setting::OWNER_WALK] = self.on.into();
        settings[setting::OFFSET_SK] = self.sk.into();
        settings[setting::OFFSET_CGROUP] = self.cgroup.into();
        settings[setting::OFFSET_KN] = self.kn.into();
        settings[setting::OFFSET_ID] = self.id.into();
    }
}

#[cfg(test)]
mod tests {
    use orb8_testbed::need::{Need, met};

    use super::*;
    use crate::capture::{Planes, SocketRoot};
    use crate::ebpf::load::{self, LoadOptions};

    #[test]
    fn programs_read_the_owner_where_the_kernel_tells_how() {
        let name = "programs_read_the_owner_where_the_kernel_tells_how";
        if !met(name, &[Need::Root, Need::Bpf]) {
            return;
        }
        let root = SocketRoot { path: "/".into(), id: 1, level: 0 };
        let options = LoadOptions {
            planes: Planes::Socket(root),
            max_flows: 16,
            memory_budget: 32 << 20,
            ring_bytes: 64 << 10,
            packet_ring_bytes: 64 << 10,
            fault_bytes: 0,
        };
        let loaded = load::load(&options).expect("programs that the kernel takes");
        assert_eq!(loaded.reads_owner, OwnerWalk::of_kernel().is_some());
    }

    #[test]
    fn without_a_walk_the_object_stays_as_it_is() {
        let mut bytes = crate::ebpf::object::bytes().to_vec();
        OwnerWalk::default().patch(&mut bytes).expect("an object");
        assert_eq!(bytes, crate::ebpf::object::bytes());
    }
}
