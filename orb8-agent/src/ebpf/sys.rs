//! System calls that no crate of ours wraps: `bpf(2)` for links and chain queries, `membarrier(2)`,
//! and the mapping of an array. One call a function; nothing here decides anything.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// `bpf(2)` commands (include/uapi/linux/bpf.h).
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_LINK_CREATE: libc::c_int = 28;

/// tcx attach types (include/uapi/linux/bpf.h, kernel 6.6).
pub const BPF_TCX_INGRESS: u32 = 46;
/// See [`BPF_TCX_INGRESS`].
pub const BPF_TCX_EGRESS: u32 = 47;
/// Before the program named, or before all (kernel 6.6).
const BPF_F_BEFORE: u32 = 1 << 3;

/// `union bpf_attr` for BPF_LINK_CREATE on tcx.
#[repr(C)]
#[derive(Default)]
struct LinkCreateTcx {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    pad: u32,
    expected_revision: u64,
}

/// `union bpf_attr` for BPF_PROG_QUERY.
#[repr(C)]
#[derive(Default)]
struct ProgQuery {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    pad: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: `attr` is a whole, zero-padded `union bpf_attr` variant of its size, and the kernel
    // writes within it only.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(libc::c_int::try_from(result).unwrap_or(libc::c_int::MAX))
}

/// Attaches a classifier to the head of a tcx chain. The kernel detaches it when the descriptor
/// is closed, also by a kill.
///
/// # Errors
/// EINVAL before kernel 6.6, ENODEV if the interface has gone, EPERM without CAP_NET_ADMIN.
pub fn tcx_attach_first(
    program: BorrowedFd<'_>,
    ifindex: u32,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateTcx {
        prog_fd: program.as_raw_fd().unsigned_abs(),
        target_ifindex: ifindex,
        attach_type,
        flags: BPF_F_BEFORE,
        ..Default::default()
    };
    let fd = bpf(BPF_LINK_CREATE, &mut attr)?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Ids of the programs on a tcx hook, in the order in which they run.
///
/// # Errors
/// EINVAL before kernel 6.6, ENODEV if the interface has gone, EPERM without CAP_NET_ADMIN.
pub fn tcx_chain(ifindex: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    // The kernel allows 64 programs on a hook (BPF_MPROG_MAX).
    let mut ids = [0u32; 64];
    let mut attr = ProgQuery {
        target_ifindex: ifindex,
        attach_type,
        prog_ids: ids.as_mut_ptr() as u64,
        count: 64,
        ..Default::default()
    };
    match bpf(BPF_PROG_QUERY, &mut attr) {
        Ok(_) => Ok(ids[..(attr.count as usize).min(64)].to_vec()),
        // Nothing has ever been attached.
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// Waits until every BPF program that now runs has ended.
///
/// MEMBARRIER_CMD_GLOBAL waits for an RCU grace period, and classifiers run inside RCU read-side
/// sections. Takes some ten milliseconds.
///
/// # Errors
/// EINVAL on kernels booted with `nohz_full`, ENOSYS without CONFIG_MEMBARRIER.
pub fn wait_for_programs() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: no memory is passed.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
