//! Foreign BPF programs, as another tool on the same machine would load them, written as raw
//! instructions through `bpf(2)`; and questions about which programs are attached where.
//!
//! Independent of the loader that the agent uses, so that it can bear witness about it.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use crate::fdinfo::{self, Runs};
use crate::netns::Netns;

const BPF_MAP_CREATE: u32 = 0;
const BPF_MAP_LOOKUP_ELEM: u32 = 1;
const BPF_PROG_LOAD: u32 = 5;
const BPF_PROG_GET_FD_BY_ID: u32 = 13;
const BPF_MAP_GET_FD_BY_ID: u32 = 14;
const BPF_OBJ_GET_INFO_BY_FD: u32 = 15;
const BPF_PROG_QUERY: u32 = 16;
const BPF_MAP_FREEZE: u32 = 22;
const BPF_LINK_CREATE: u32 = 28;
const BPF_ENABLE_STATS: u32 = 32;
const BPF_LINK_DETACH: u32 = 34;

const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;

/// Most programs that one hook is expected to have.
const MAX_ATTACHED: usize = 64;
/// Most maps that one program is expected to use.
const MAX_MAPS: usize = 64;

/// Which tcx hook of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Hook {
    /// Packets that arrive.
    Ingress = 46,
    /// Packets that leave.
    Egress = 47,
}

/// Where in the chain of a hook a program goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Place {
    /// Before all others.
    First = 1 << 3,
    /// After all others.
    Last = 1 << 4,
}

/// A program as the kernel lists it on a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Its number, unique while it exists.
    pub id: u32,
    /// Its name, at most 15 bytes.
    pub name: String,
    /// The numbers of the maps it uses.
    pub maps: Vec<u32>,
}

/// A program of somebody else on a tcx hook, which counts its runs and returns a fixed verdict;
/// gone when dropped.
#[derive(Debug)]
pub struct Foreign {
    map: OwnedFd,
    program: OwnedFd,
    link: OwnedFd,
}

impl Drop for Foreign {
    fn drop(&mut self) {
        // Closing is not enough while a child of another test is between fork and exec.
        // SAFETY: the attributes hold no pointers.
        drop(unsafe { bpf(BPF_LINK_DETACH, &raw(&self.link)) });
    }
}

impl Foreign {
    /// Attaches to `ifname` inside `netns`; `verdict` is the return value (0 `TCX_PASS`, -1
    /// `TCX_NEXT`, 2 `TCX_DROP`).
    ///
    /// # Panics
    /// If the kernel refuses.
    #[must_use]
    pub fn attach(netns: &Netns, ifname: &str, hook: Hook, place: Place, verdict: i32) -> Self {
        let ifindex = crate::link::ifindex(netns, ifname);
        let map = map_create().unwrap_or_else(|error| panic!("counter map: {error}"));
        let program = counting_program(&map, verdict)
            .unwrap_or_else(|error| panic!("foreign program: {error}"));
        let link = netns
            .enter(|| link_create(&program, ifindex, hook, place))
            .unwrap_or_else(|error| panic!("tcx link on {ifname}: {error}"));
        Self { map, program, link }
    }

    /// How often it ran.
    ///
    /// # Panics
    /// If its map cannot be read.
    #[must_use]
    pub fn runs(&self) -> u64 {
        let key = 0_u32;
        let mut value = 0_u64;
        let attr = MapElement {
            map_fd: raw(&self.map),
            _pad: 0,
            key: &raw const key as u64,
            value: &raw mut value as u64,
            flags: 0,
        };
        // SAFETY: key and value have the sizes that the map was made with and outlive the call.
        unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &attr) }
            .unwrap_or_else(|error| panic!("reading the run counter: {error}"));
        value
    }

    /// Its runs while the kernel kept statistics, and how long they took.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn run_time(&self) -> io::Result<Runs> {
        fdinfo::runs_of(self.program.as_raw_fd())
    }
}

/// Makes the kernel keep statistics of all programs' runs until the descriptor is closed.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN.
pub fn keep_statistics() -> io::Result<OwnedFd> {
    const RUN_TIME: u32 = 0;
    // SAFETY: the attributes hold no pointers.
    let fd = unsafe { bpf(BPF_ENABLE_STATS, &RUN_TIME) }?;
    // SAFETY: just made, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The programs on a tcx hook, in the order in which they run.
///
/// # Panics
/// If the kernel cannot be asked.
#[must_use]
pub fn attached(netns: &Netns, ifname: &str, hook: Hook) -> Vec<Attached> {
    let ifindex = crate::link::ifindex(netns, ifname);
    let ids = netns
        .enter(|| query(ifindex, hook))
        .unwrap_or_else(|error| panic!("asking for programs on {ifname}: {error}"));
    ids.into_iter().filter_map(program_info).collect()
}

/// True if a program of this number exists in the kernel.
#[must_use]
pub fn program_exists(id: u32) -> bool {
    by_id(BPF_PROG_GET_FD_BY_ID, id).is_ok()
}

/// True if a map of this number exists in the kernel.
#[must_use]
pub fn map_exists(id: u32) -> bool {
    by_id(BPF_MAP_GET_FD_BY_ID, id).is_ok()
}

/// Forbids user space to write to a map from now on, also by mapping it; programs still may.
///
/// # Panics
/// If the kernel refuses, as it does where somebody has mapped it to be written.
pub fn freeze(map: impl AsFd) {
    let map_fd = u32::try_from(map.as_fd().as_raw_fd()).expect("an open descriptor");
    // SAFETY: the attributes hold no pointers.
    unsafe { bpf(BPF_MAP_FREEZE, &map_fd) }
        .unwrap_or_else(|error| panic!("freezing a map: {error}"));
}

/// Whether this process may load programs of the type that the probes have.
///
/// # Errors
/// A sentence with the cause and the next step.
pub fn permission() -> Result<(), String> {
    raise_memlock_limit();
    let load = map_create().and_then(|map| counting_program(&map, -1));
    load.map(drop).map_err(|error| {
        format!(
            "BPF programs cannot be loaded ({error}): needs a kernel with BPF and the \
             capabilities BPF, PERFMON and NET_ADMIN (run as root)"
        )
    })
}

/// Before 5.11 the maps of all processes of a user are charged to one limit: a running agent's use
/// up what a test has by default. Where that is not allowed, what needs it fails by itself.
fn raise_memlock_limit() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None }).ok();
}

/// Whether programs attach by tcx links (kernel 6.6 and newer).
///
/// # Errors
/// A sentence with the cause.
pub fn tcx_support() -> Result<(), String> {
    // Loopback is number 1 in every namespace.
    query(1, Hook::Ingress).map(drop).map_err(|error| {
        format!("the kernel has no tcx hooks ({error}): needs kernel 6.6 or newer")
    })
}

#[repr(C)]
#[derive(Default)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

#[repr(C)]
struct MapElement {
    map_fd: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

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
    prog_name: [u8; 16],
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    _pad: u32,
    expected_revision: u64,
}

#[repr(C)]
#[derive(Default)]
struct ProgQuery {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    _pad: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

#[repr(C)]
struct GetInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

#[repr(C)]
#[derive(Default)]
struct GetById {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// The first fields of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct ProgInfo {
    prog_type: u32,
    id: u32,
    tag: [u8; 8],
    jited_prog_len: u32,
    xlated_prog_len: u32,
    jited_prog_insns: u64,
    xlated_prog_insns: u64,
    load_time: u64,
    created_by_uid: u32,
    nr_map_ids: u32,
    map_ids: u64,
    name: [u8; 16],
}

/// One instruction (`struct bpf_insn`).
#[repr(C)]
#[derive(Clone, Copy)]
struct Insn {
    code: u8,
    registers: u8,
    off: i16,
    imm: i32,
}

const fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Insn {
    Insn { code, registers: src << 4 | dst, off, imm }
}

/// `map[0] += 1; return verdict;`
fn counting_program(map: &OwnedFd, verdict: i32) -> io::Result<OwnedFd> {
    let program = [
        insn(0x62, 10, 0, -4, 0),             // *(u32 *)(r10 - 4) = 0
        insn(0xbf, 2, 10, 0, 0),              // r2 = r10
        insn(0x07, 2, 0, 0, -4),              // r2 += -4
        insn(0x18, 1, 1, 0, map.as_raw_fd()), // r1 = map
        insn(0x00, 0, 0, 0, 0),               // (second half)
        insn(0x85, 0, 0, 0, 1),               // r0 = map_lookup_elem(r1, r2)
        insn(0x15, 0, 0, 2, 0),               // if r0 == 0 skip 2
        insn(0xb7, 1, 0, 0, 1),               // r1 = 1
        insn(0xdb, 0, 1, 0, 0),               // lock *(u64 *)r0 += r1
        insn(0xb7, 0, 0, 0, verdict),         // r0 = verdict
        insn(0x95, 0, 0, 0, 0),               // exit
    ];
    let mut prog_name = [0; 16];
    prog_name[..7].copy_from_slice(b"foreign");
    let attr = ProgLoad {
        prog_type: BPF_PROG_TYPE_SCHED_CLS,
        insn_cnt: u32::try_from(program.len()).expect("a dozen"),
        insns: program.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        prog_name,
        ..ProgLoad::default()
    };
    // SAFETY: instructions and licence outlive the call.
    let fd = unsafe { bpf(BPF_PROG_LOAD, &attr) }?;
    Ok(owned(fd))
}

fn map_create() -> io::Result<OwnedFd> {
    let attr = MapCreate {
        map_type: BPF_MAP_TYPE_ARRAY,
        key_size: 4,
        value_size: 8,
        max_entries: 1,
        map_flags: 0,
    };
    // SAFETY: the attributes hold no pointers.
    let fd = unsafe { bpf(BPF_MAP_CREATE, &attr) }?;
    Ok(owned(fd))
}

fn link_create(program: &OwnedFd, ifindex: u32, hook: Hook, place: Place) -> io::Result<OwnedFd> {
    let attr = LinkCreate {
        prog_fd: raw(program),
        target_ifindex: ifindex,
        attach_type: hook as u32,
        flags: place as u32,
        ..LinkCreate::default()
    };
    // SAFETY: the attributes hold no pointers.
    let fd = unsafe { bpf(BPF_LINK_CREATE, &attr) }?;
    Ok(owned(fd))
}

fn query(ifindex: u32, hook: Hook) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; MAX_ATTACHED];
    let mut attr = ProgQuery {
        target_ifindex: ifindex,
        attach_type: hook as u32,
        prog_ids: ids.as_mut_ptr() as u64,
        count: u32::try_from(ids.len()).expect("small"),
        ..ProgQuery::default()
    };
    // SAFETY: `prog_ids` has room for `count` numbers; the kernel writes back the count.
    unsafe { bpf_mut(BPF_PROG_QUERY, &mut attr) }?;
    ids.truncate(attr.count as usize);
    Ok(ids)
}

/// `None` if the program ended meanwhile.
fn program_info(id: u32) -> Option<Attached> {
    let fd = by_id(BPF_PROG_GET_FD_BY_ID, id).ok()?;
    let mut maps = vec![0_u32; MAX_MAPS];
    let mut info = ProgInfo {
        nr_map_ids: u32::try_from(maps.len()).expect("small"),
        map_ids: maps.as_mut_ptr() as u64,
        ..ProgInfo::default()
    };
    let mut attr = GetInfo {
        bpf_fd: raw(&fd),
        info_len: u32::try_from(size_of::<ProgInfo>()).expect("small"),
        info: &raw mut info as u64,
    };
    // SAFETY: `info` has `info_len` bytes, and room for `nr_map_ids` numbers behind `map_ids`.
    unsafe { bpf_mut(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }
        .unwrap_or_else(|error| panic!("program {id}: {error}"));
    maps.truncate(info.nr_map_ids as usize);
    let name = info.name.split(|&byte| byte == 0).next().unwrap_or_default();
    Some(Attached { id, name: String::from_utf8_lossy(name).into_owned(), maps })
}

fn by_id(command: u32, id: u32) -> io::Result<OwnedFd> {
    // SAFETY: the attributes hold no pointers.
    unsafe { bpf(command, &GetById { id, ..GetById::default() }) }.map(owned)
}

fn raw(fd: &OwnedFd) -> u32 {
    u32::try_from(fd.as_raw_fd()).expect("an open descriptor is not negative")
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the call that returned it made it, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// # Safety
/// `attr` must be the attributes of `command`; pointers in it must be valid for the call.
unsafe fn bpf<T>(command: u32, attr: &T) -> io::Result<i32> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes; the rest is promised by the caller.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(fd_of(result)) }
}

/// # Safety
/// As [`bpf`]; the kernel may also write to `attr`.
unsafe fn bpf_mut<T>(command: u32, attr: &mut T) -> io::Result<i32> {
    // SAFETY: the kernel reads and writes `size_of::<T>()` bytes; the rest is the caller's.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(fd_of(result)) }
}

fn fd_of(result: libc::c_long) -> i32 {
    i32::try_from(result).expect("bpf(2) returns an int")
}
