//! `bpf(2)` calls that aya does not offer as we need them: tcx links by ifindex, chain queries, a
//! map update that waits, test runs. One call a function; nothing here decides anything.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// `bpf(2)` commands (include/uapi/linux/bpf.h).
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_DETACH: libc::c_int = 34;

/// tcx attach types (include/uapi/linux/bpf.h, kernel 6.6).
pub const BPF_TCX_INGRESS: u32 = 46;
/// See [`BPF_TCX_INGRESS`].
pub const BPF_TCX_EGRESS: u32 = 47;
/// Before the program named, or before all (kernel 6.6).
const BPF_F_BEFORE: u32 = 1 << 3;
/// After the program named (kernel 6.6).
const BPF_F_AFTER: u32 = 1 << 4;
/// The program is named by its id (kernel 6.6).
const BPF_F_ID: u32 = 1 << 5;

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

/// Attaches a classifier to a tcx chain: at its head, or right behind the program with the id
/// `after`. The kernel detaches it when the descriptor is closed, also by a kill.
///
/// # Errors
/// EINVAL before kernel 6.6, ENODEV if the interface has gone, EPERM without CAP_NET_ADMIN.
pub fn tcx_attach(
    program: BorrowedFd<'_>,
    ifindex: u32,
    attach_type: u32,
    after: Option<u32>,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateTcx {
        prog_fd: program.as_raw_fd().unsigned_abs(),
        target_ifindex: ifindex,
        attach_type,
        flags: if after.is_some() { BPF_F_AFTER | BPF_F_ID } else { BPF_F_BEFORE },
        relative_fd: after.unwrap_or(0),
        ..Default::default()
    };
    let fd = bpf(BPF_LINK_CREATE, &mut attr)?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attach types of cgroup_skb (include/uapi/linux/bpf.h).
pub const BPF_CGROUP_INET_INGRESS: u32 = 0;
/// See [`BPF_CGROUP_INET_INGRESS`].
pub const BPF_CGROUP_INET_EGRESS: u32 = 1;

/// Attaches a program to a cgroup and all below it, beside whatever else is there (kernel 5.7).
/// The kernel detaches it when the descriptor is closed, also by a kill.
///
/// # Errors
/// EBADF if the directory is no cgroup2, EPERM without CAP_NET_ADMIN or where a program above
/// allows none beside it.
pub fn cgroup_attach(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    /// `union bpf_attr` for BPF_LINK_CREATE on a cgroup.
    #[repr(C)]
    struct LinkCreateCgroup {
        prog_fd: u32,
        target_fd: u32,
        attach_type: u32,
        flags: u32,
    }
    let mut attr = LinkCreateCgroup {
        prog_fd: program.as_raw_fd().unsigned_abs(),
        target_fd: cgroup.as_raw_fd().unsigned_abs(),
        attach_type,
        flags: 0,
    };
    let fd = bpf(BPF_LINK_CREATE, &mut attr)?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Ids of the programs attached to this cgroup itself.
///
/// # Errors
/// EPERM without CAP_NET_ADMIN.
pub fn cgroup_programs(cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<Vec<u32>> {
    // The kernel allows 64 programs on a hook (BPF_CGROUP_MAX_PROGS).
    let mut ids = [0u32; 64];
    let mut attr = ProgQuery {
        // `target_fd` shares the place.
        target_ifindex: cgroup.as_raw_fd().unsigned_abs(),
        attach_type,
        prog_ids: ids.as_mut_ptr() as u64,
        count: 64,
        ..Default::default()
    };
    bpf(BPF_PROG_QUERY, &mut attr)?;
    Ok(ids[..(attr.count as usize).min(64)].to_vec())
}

/// Detaches a link at once. Closing its descriptor does so only when nobody else holds a copy,
/// such as a child process between fork and exec.
///
/// # Errors
/// What the kernel says, for instance that the interface has gone.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    /// `union bpf_attr` for BPF_LINK_DETACH (kernel 5.9).
    #[repr(C)]
    struct LinkDetach {
        link_fd: u32,
    }
    let mut attr = LinkDetach { link_fd: link.as_raw_fd().unsigned_abs() };
    bpf(BPF_LINK_DETACH, &mut attr).map(drop)
}

/// Name of a loaded program of anybody.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN, ENOENT if it has gone.
pub fn program_name(id: u32) -> io::Result<String> {
    const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
    /// Offset and size of `name` in `struct bpf_prog_info`.
    const NAME: std::ops::Range<usize> = 64..80;
    let mut by_id = [id, 0, 0];
    let fd = bpf(BPF_PROG_GET_FD_BY_ID, &mut by_id)?;
    // SAFETY: the kernel has just given us this descriptor.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let info = program_info::<{ NAME.end }>(fd.as_fd())?;
    let name = info[NAME].split(|b| *b == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

/// The first bytes of `struct bpf_prog_info` (include/uapi/linux/bpf.h).
fn program_info<const N: usize>(program: BorrowedFd<'_>) -> io::Result<[u8; N]> {
    #[repr(C)]
    struct GetInfo {
        fd: u32,
        len: u32,
        info: u64,
    }
    let mut info = [0u8; N];
    let (fd, len) = (program.as_raw_fd().unsigned_abs(), u32::try_from(N).unwrap_or(u32::MAX));
    let mut attr = GetInfo { fd, len, info: info.as_mut_ptr() as u64 };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

/// Whether the kernel runs a program as the machine's own code, not by interpreting it.
///
/// # Errors
/// What the kernel says.
pub fn is_compiled(program: BorrowedFd<'_>) -> io::Result<bool> {
    /// `jited_prog_len`.
    const LENGTH: std::ops::Range<usize> = 16..20;
    Ok(program_info::<{ LENGTH.end }>(program)?[LENGTH] != [0; 4])
}

/// `struct bpf_insn`: code, registers, offset, operand.
pub type Instruction = (u8, u8, i16, i32);

/// Loads a program that nobody attaches, to see whether the kernel takes it.
///
/// # Errors
/// What the kernel says: EINVAL if it does not know an instruction, ENOTSUPP if it cannot compile
/// one and must.
pub fn load_instructions(program: &[Instruction]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;
    /// `union bpf_attr` for BPF_PROG_LOAD, as far as it is needed.
    #[repr(C)]
    #[derive(Default)]
    struct ProgLoad {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
    }
    let mut bytes = Vec::with_capacity(program.len() * 8);
    for (code, registers, offset, operand) in program {
        bytes.extend([*code, *registers]);
        bytes.extend(offset.to_ne_bytes());
        bytes.extend(operand.to_ne_bytes());
    }
    let mut attr = ProgLoad {
        prog_type: BPF_PROG_TYPE_SOCKET_FILTER,
        insn_cnt: u32::try_from(program.len()).unwrap_or(u32::MAX),
        insns: bytes.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: the kernel has just given us this descriptor.
    bpf(BPF_PROG_LOAD, &mut attr).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Nanoseconds that a program has run while the kernel kept statistics (kernel 5.1).
///
/// # Errors
/// What the kernel says; none is expected for a program of our own.
pub fn program_run_ns(program: BorrowedFd<'_>) -> io::Result<u64> {
    /// Where `run_time_ns` is in `struct bpf_prog_info`.
    const RUN_TIME: std::ops::Range<usize> = 192..200;
    let info = program_info::<{ RUN_TIME.end }>(program)?;
    let mut ns = [0; 8];
    ns.copy_from_slice(&info[RUN_TIME]);
    Ok(u64::from_ne_bytes(ns))
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

/// `union bpf_attr` for BPF_MAP_CREATE, as far as it is needed.
#[repr(C)]
#[derive(Default)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
}

/// `union bpf_attr` for BPF_MAP_UPDATE_ELEM.
#[repr(C)]
#[derive(Default)]
struct MapUpdate {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Creates an array map of one 4-byte value; with `inner` an array of maps like it.
///
/// # Errors
/// EPERM without CAP_BPF.
pub fn create_array(inner: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    const BPF_MAP_CREATE: libc::c_int = 0;
    const BPF_MAP_TYPE_ARRAY: u32 = 2;
    const BPF_MAP_TYPE_ARRAY_OF_MAPS: u32 = 12;
    let mut attr = MapCreate {
        map_type: if inner.is_some() { BPF_MAP_TYPE_ARRAY_OF_MAPS } else { BPF_MAP_TYPE_ARRAY },
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        map_flags: 0,
        inner_map_fd: inner.map_or(0, |fd| fd.as_raw_fd().unsigned_abs()),
    };
    let fd = bpf(BPF_MAP_CREATE, &mut attr)?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts `inner` into an array of maps. Returns when every program that may have used the map that
/// stood there before has ended: `maybe_wait_bpf_programs` in kernel/bpf/syscall.c waits for an
/// RCU grace period since kernel 4.20.
///
/// # Errors
/// What the kernel says; none is expected for maps of our own.
pub fn replace_inner_map(outer: BorrowedFd<'_>, inner: BorrowedFd<'_>) -> io::Result<()> {
    const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
    let (key, value) = (0u32, inner.as_raw_fd());
    let mut attr = MapUpdate {
        map_fd: outer.as_raw_fd().unsigned_abs(),
        key: std::ptr::from_ref(&key) as u64,
        value: std::ptr::from_ref(&value) as u64,
        ..Default::default()
    };
    bpf(BPF_MAP_UPDATE_ELEM, &mut attr).map(|_| ())
}

/// `union bpf_attr` for BPF_PROG_TEST_RUN.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

/// Runs a classifier `repeat` times on a packet of our own; returns its verdict and the kernel's
/// measure of one run in nanoseconds.
///
/// # Errors
/// EINVAL if the packet is shorter than an Ethernet header, EPERM without CAP_BPF.
pub fn test_run(program: BorrowedFd<'_>, packet: &[u8], repeat: u32) -> io::Result<(u32, u32)> {
    const BPF_PROG_TEST_RUN: libc::c_int = 10;
    let mut attr = TestRun {
        prog_fd: program.as_raw_fd().unsigned_abs(),
        data_size_in: u32::try_from(packet.len()).unwrap_or(u32::MAX),
        data_in: packet.as_ptr() as u64,
        repeat,
        ..Default::default()
    };
    bpf(BPF_PROG_TEST_RUN, &mut attr)?;
    Ok((attr.retval, attr.duration))
}
