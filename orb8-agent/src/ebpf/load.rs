//! Loads the probe object: sizes, settings, programs; hands out maps and programs by name.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use aya::maps::{Array, HashMap as BpfHashMap, MapData, PerCpuArray, RingBuf, Stack};
use aya::programs::{Program, ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfLoader};
use orb8_common::cache;
use orb8_common::index::{self, Group, Seed};
use orb8_common::network::{FlowLine, FlowMeta, PacketFilter, TUNNEL_PORTS};
use orb8_common::setting;

use super::cpus::{self, Cpus};
use super::mapping::Mapping;
use super::owner_walk::OwnerWalk;
use super::patch::{self, PatchError, Settings};
use super::{exchange, object};
use crate::capture::Planes;

/// Beginning of the names of the programs at sockets.
const AT_SOCKETS: &str = "orb8_sock_";

/// Sizes and settings that the programs are loaded with.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Which programs are needed.
    pub planes: Planes,
    /// Lines of the flow table.
    pub max_flows: u32,
    /// Bytes that the agent may take as a whole, of which the CPUs' caches take their part.
    pub memory_budget: u64,
    /// Bytes of the ring of lifecycle events, a power of two.
    pub ring_bytes: u32,
    /// Bytes of the ring of the packet view, a power of two.
    pub packet_ring_bytes: u32,
    /// Datagrams of this many bytes are seen and then forgotten: a fault that tests use to prove
    /// that the ledger notices. 0 otherwise.
    pub fault_bytes: u32,
}

/// The probes could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The kernel or the object refuses.
    #[error("load the probes: {0}")]
    Load(#[from] aya::EbpfError),
    /// The object is not what the build makes.
    #[error(transparent)]
    Object(#[from] PatchError),
    /// The CPUs cannot be counted.
    #[error("read {path}: {source}")]
    Cpus {
        /// The file.
        path: &'static str,
        /// What the kernel says.
        source: std::io::Error,
    },
    /// The object lacks a map.
    #[error("the probe object has no usable map `{name}`: {message}; rebuild it")]
    Map {
        /// Name of the map.
        name: &'static str,
        /// What aya says.
        message: String,
    },
    /// The verifier or the kernel refuses a program.
    #[error("load the program `{name}`: {message}")]
    Program {
        /// Name of the program.
        name: String,
        /// First and last lines of what the kernel says.
        message: String,
    },
    /// A map cannot be shared with us.
    #[error("map `{name}` into memory: {source}")]
    Mmap {
        /// Name of the map.
        name: &'static str,
        /// What the kernel says.
        source: std::io::Error,
    },
    /// The kernel takes no program.
    #[error("ask the kernel whether it knows compare-and-exchange: {0}")]
    Exchange(std::io::Error),
    /// No random seed.
    #[error("read a random seed from the kernel: {0}")]
    Seed(std::io::Error),
}

/// All programs and maps, loaded and not yet attached.
pub struct Loaded {
    /// Programs by name.
    pub programs: Programs,
    /// The flow table.
    pub table: Table,
    /// The network namespace behind each link to a pod, by ifindex.
    pub pod_links: PodLinks,
    /// UDP ports of the host's tunnels, network byte order.
    pub tunnels: Tunnels,
    /// Whether the socket plane runs.
    pub socket_switch: SocketSwitch,
    /// Ring of lifecycle events.
    pub events: RingBuf<MapData>,
    /// Ring of the packet view.
    pub packets: RingBuf<MapData>,
    /// Filter of the packet view.
    pub packet_filter: Array<MapData, PodBytes<{ size_of::<PacketFilter>() }>>,
    /// Counters of the packet view.
    pub packet_counters: PerCpuArray<MapData, [u64; 8]>,
    /// What programs tell less of.
    pub sparing: SparingMap,
    /// Both clocks, as the program `orb8_clock` reads them.
    pub clock: Array<MapData, [u64; 2]>,
    /// Whether the programs at sockets read the owner without calling for it.
    pub reads_owner: bool,
    /// Bytes of kernel memory of all maps, as the kernel accounts them (fdinfo memlock).
    pub map_bytes: u64,
}

/// ifindex of a link to a pod, and the id of the namespace behind it.
pub type PodLinks = BpfHashMap<MapData, u32, u32>;

/// One value: the UDP ports of tunnels, network byte order.
pub type Tunnels = Array<MapData, [u16; TUNNEL_PORTS]>;

/// One value: 1 while the programs at interfaces may leave packets to the socket plane.
pub type SocketSwitch = Array<MapData, u32>;

/// One value: the two words of `orb8_common::network::Sparing`.
pub type SparingMap = Array<MapData, [u32; 2]>;

/// Plain bytes as a map value.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct PodBytes<const N: usize>(pub [u8; N]);

// SAFETY: bytes, without padding.
unsafe impl<const N: usize> aya::Pod for PodBytes<N> {}

/// The flow table as user space holds it.
pub struct Table {
    /// Counters of each flow.
    pub lines: Mapping<FlowLine>,
    /// Facts of each flow, at the same number.
    pub meta: Mapping<FlowMeta>,
    /// Cells that lead to lines.
    pub index: Mapping<Group>,
    /// Numbers of free lines.
    pub free: Stack<MapData, u32>,
    /// Ledger counters and cache of each CPU.
    pub cpus: Cpus,
    /// Of the hash.
    pub seed: Seed,
}

/// Programs by name. Kept open for as long as anything is attached.
pub struct Programs {
    loaded: HashMap<String, LoadedProgram>,
    /// What aya knows of the object: some megabytes, needed for clsact alone.
    ebpf: Option<Ebpf>,
}

/// A program in the kernel.
struct LoadedProgram {
    fd: OwnedFd,
    id: u32,
}

impl Programs {
    /// The descriptor of a program.
    ///
    /// # Panics
    /// If the object has no program of this name.
    #[must_use]
    pub fn fd(&self, name: &str) -> BorrowedFd<'_> {
        self.loaded.get(name).expect("the names are those of the object").fd.as_fd()
    }

    /// The program as aya knows it, `None` after [`Self::forget_object`].
    pub fn classifier(&mut self, name: &str) -> Option<&mut SchedClassifier> {
        self.ebpf.as_mut()?.program_mut(name)?.try_into().ok()
    }

    /// The object as aya knows it, with the maps that [`Loaded`] has not; `None` after
    /// [`Self::forget_object`].
    pub fn object(&mut self) -> Option<&mut Ebpf> {
        self.ebpf.as_mut()
    }

    /// Drops what only clsact needs.
    pub fn forget_object(&mut self) {
        self.ebpf = None;
    }

    /// Another descriptor of a program, for running it.
    ///
    /// # Errors
    /// If no more descriptors can be had.
    pub fn duplicate(&self, name: &str) -> Result<OwnedFd, LoadError> {
        let fail = |message: String| LoadError::Program { name: name.to_owned(), message };
        self.fd(name).try_clone_to_owned().map_err(|e| fail(e.to_string()))
    }

    /// Other descriptors of all programs.
    ///
    /// # Errors
    /// If no more descriptors can be had.
    pub fn duplicates(&self) -> std::io::Result<Vec<OwnedFd>> {
        self.loaded.values().map(|program| program.fd.try_clone()).collect()
    }

    /// The kernel's id of a program.
    #[must_use]
    pub fn id(&self, name: &str) -> Option<u32> {
        self.loaded.get(name).map(|program| program.id)
    }

    /// Whether a kernel program id is one of ours.
    #[must_use]
    pub fn is_ours(&self, id: u32) -> bool {
        self.loaded.values().any(|program| program.id == id)
    }
}

/// Loads all programs and fills the list of free lines.
///
/// # Errors
/// What the kernel refuses, with the first and last lines of the verifier's log.
pub fn load(options: &LoadOptions) -> Result<Loaded, LoadError> {
    load_object(object::bytes(), options, |name| is_needed(&options.planes, name))
}

/// The same of an object with the maps of the probes and other programs, of which those are loaded
/// that are needed. For tests.
///
/// # Errors
/// As of [`load`].
pub fn load_object(
    object: &[u8],
    options: &LoadOptions,
    is_needed: impl Fn(&str) -> bool,
) -> Result<Loaded, LoadError> {
    super::memory::bound_heaps();
    let walk = options.planes.socket_root().and_then(|_| OwnerWalk::of_kernel());
    match load_with(object, options, walk.unwrap_or_default(), &is_needed) {
        Err(LoadError::Program { name, message })
            if walk.is_some() && name.starts_with(AT_SOCKETS) =>
        {
            tracing::warn!(
                program = name,
                reason = message,
                "the kernel does not let programs read the owner of a socket; they call for it"
            );
            load_with(object, options, OwnerWalk::default(), &is_needed)
        }
        result => result,
    }
}

fn load_with(
    object: &[u8],
    options: &LoadOptions,
    walk: OwnerWalk,
    is_needed: &impl Fn(&str) -> bool,
) -> Result<Loaded, LoadError> {
    let seed = Seed::new(secret()?);
    let groups = index::groups(options.max_flows);
    let cache = Cache::of_host(options.memory_budget)?;
    let mut object = object.to_vec();
    cache.patch(&mut object)?;
    walk.patch(&mut object)?;
    patch::set_settings(&mut object, &settings(options, cache, walk, &seed))?;
    let mut ebpf = open(&object, options, cache)?;
    drop(object);
    let map_bytes = super::memory::map_bytes(&ebpf);
    // Programs first: they refer to maps by descriptors, which taking a map may close.
    let loaded = load_programs(&mut ebpf, is_needed)?;
    let mut take = |name: &'static str| {
        ebpf.take_map(name).ok_or(LoadError::Map { name, message: "missing".to_owned() })
    };
    let mut table = Table {
        lines: mapped("LINES", take("LINES")?, options.max_flows)?,
        meta: mapped("META", take("META")?, options.max_flows)?,
        index: mapped("INDEX", take("INDEX")?, groups)?,
        free: typed("FREE", take("FREE")?)?,
        cpus: cache.map(take("CPUS")?)?,
        seed,
    };
    let pod_links = typed("POD_LINKS", take("POD_LINKS")?)?;
    let tunnels = typed("TUNNELS", take("TUNNELS")?)?;
    let socket_switch = typed("SOCKET_PLANE", take("SOCKET_PLANE")?)?;
    let events = typed("EVENTS", take("EVENTS")?)?;
    let packets = typed("PACKETS", take("PACKETS")?)?;
    let packet_filter = typed("PACKET_FILTER", take("PACKET_FILTER")?)?;
    let packet_counters = typed("PACKET_COUNTERS", take("PACKET_COUNTERS")?)?;
    let sparing = typed("SPARING", take("SPARING")?)?;
    let clock = typed("CLOCK", take("CLOCK")?)?;
    fill_free_list(&mut table.free, options.max_flows)?;
    Ok(Loaded {
        programs: Programs { loaded, ebpf: Some(ebpf) },
        table,
        pod_links,
        tunnels,
        socket_switch,
        events,
        packets,
        packet_filter,
        packet_counters,
        sparing,
        clock,
        reads_owner: walk.is_on(),
        map_bytes,
    })
}

/// What the programs know before they run.
fn settings(options: &LoadOptions, cache: Cache, walk: OwnerWalk, seed: &Seed) -> Settings {
    let (root, level) = options.planes.socket_root().map_or((0, 0), |root| (root.id, root.level));
    let mut settings = [0; setting::COUNT];
    settings[setting::SEED_SRC] = seed.src;
    settings[setting::SEED_SRC_FACTOR] = seed.src_factor;
    settings[setting::SEED_DST] = seed.dst;
    settings[setting::SEED_DST_FACTOR] = seed.dst_factor;
    settings[setting::GROUP_MASK] = u64::from(index::groups(options.max_flows) - 1);
    settings[setting::CACHE_MASK] = cache.mask().into();
    settings[setting::REALTIME] = is_realtime().into();
    settings[setting::FAULT_BYTES] = options.fault_bytes.into();
    settings[setting::ROOT_CGROUP] = root;
    settings[setting::ROOT_LEVEL] = level.into();
    walk.set(&mut settings);
    settings
}

/// The object with its sizes; the maps are made, no program is loaded yet.
fn open(object: &[u8], options: &LoadOptions, cache: Cache) -> Result<Ebpf, LoadError> {
    let ebpf = EbpfLoader::new()
        // Nothing is relocated against the kernel's types, and parsing them costs megabytes.
        .btf(None)
        .map_max_entries("LINES", options.max_flows)
        .map_max_entries("META", options.max_flows)
        .map_max_entries("FREE", options.max_flows)
        .map_max_entries("INDEX", index::groups(options.max_flows))
        .map_max_entries("CPUS", cache.cpus)
        .map_max_entries("EVENTS", options.ring_bytes)
        .map_max_entries("PACKETS", options.packet_ring_bytes)
        .load(object)?;
    Ok(ebpf)
}

/// The caches of the CPUs: how many, how large, whether the kernel can.
#[derive(Clone, Copy, Debug)]
struct Cache {
    cpus: u32,
    sets: u32,
    usable: bool,
}

impl Cache {
    fn of_host(memory_budget: u64) -> Result<Self, LoadError> {
        let fail = |source| LoadError::Cpus { path: cpus::POSSIBLE, source };
        let possible = std::fs::read_to_string(cpus::POSSIBLE).map_err(fail)?;
        let no_number = || fail(std::io::Error::other(format!("no number in {possible:?}")));
        let cpus = cpus::highest(&possible).ok_or_else(no_number)?;
        let usable = exchange::is_known().map_err(LoadError::Exchange)?;
        let sets = if usable { cpus::sets(cpus, memory_budget) } else { cache::MIN_SETS };
        Ok(Self { cpus, sets, usable })
    }

    fn mask(self) -> u32 {
        if self.usable { cache::mask(self.sets) } else { 0 }
    }

    fn patch(self, object: &mut [u8]) -> Result<(), PatchError> {
        if !self.usable {
            patch::without_exchanges(object)?;
        }
        patch::set_value_size(object, "CPUS", cpus::block_bytes(self.sets))
    }

    fn map(self, map: aya::maps::Map) -> Result<Cpus, LoadError> {
        let name = "CPUS";
        let aya::maps::Map::Array(data) = map else {
            return Err(LoadError::Map { name, message: "it is not an array".to_owned() });
        };
        Cpus::new(data.fd(), self.cpus, self.sets, self.usable)
            .map_err(|source| LoadError::Mmap { name, source })
    }
}

/// Whether bottom halves can be preempted, so that what runs in them is not alone on its CPU. The
/// kernel says so in its version; the file is of kernels with the patches from before 6.12.
fn is_realtime() -> bool {
    let file = std::fs::read_to_string("/sys/kernel/realtime");
    says_realtime(&rustix::system::uname().version().to_string_lossy())
        || file.is_ok_and(|text| text.trim() == "1")
}

fn says_realtime(version: &str) -> bool {
    version.contains("PREEMPT_RT") || version.contains("PREEMPT RT")
}

/// Eight random bytes.
///
/// # Errors
/// What the kernel says.
pub fn secret() -> Result<u64, LoadError> {
    let mut bytes = [0u8; 8];
    // SAFETY: the kernel writes 8 bytes.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got == 8 {
        Ok(u64::from_ne_bytes(bytes))
    } else {
        Err(LoadError::Seed(std::io::Error::last_os_error()))
    }
}

fn typed<T>(name: &'static str, map: aya::maps::Map) -> Result<T, LoadError>
where
    T: TryFrom<aya::maps::Map, Error = aya::maps::MapError>,
{
    T::try_from(map).map_err(|e| LoadError::Map { name, message: e.to_string() })
}

fn mapped<T: Copy>(
    name: &'static str,
    map: aya::maps::Map,
    len: u32,
) -> Result<Mapping<T>, LoadError> {
    let aya::maps::Map::Array(data) = map else {
        return Err(LoadError::Map { name, message: "it is not an array".to_owned() });
    };
    Mapping::new(data.fd(), len).map_err(|source| LoadError::Mmap { name, source })
}

/// Low numbers end on top, so that a small number of flows stays in a small part of the table.
fn fill_free_list(free: &mut Stack<MapData, u32>, lines: u32) -> Result<(), LoadError> {
    for line in (0..lines).rev() {
        free.push(line, 0).map_err(|e| LoadError::Map { name: "FREE", message: e.to_string() })?;
    }
    Ok(())
}

/// Whether the planes need a program. What is not needed is not loaded, which saves the kernel's
/// checks and memory.
fn is_needed(planes: &Planes, name: &str) -> bool {
    let supplement = matches!(planes, Planes::Both(_));
    if name.starts_with(AT_SOCKETS) {
        planes.socket_root().is_some()
    } else if name.starts_with("orb8_sup_") {
        supplement
    } else if name.starts_with("orb8_pkt_") {
        planes.has_interfaces()
    } else {
        name == "orb8_clock" || *planes == Planes::Tc
    }
}

fn load_programs(
    ebpf: &mut Ebpf,
    is_needed: &impl Fn(&str) -> bool,
) -> Result<HashMap<String, LoadedProgram>, LoadError> {
    let mut loaded = HashMap::new();
    for (name, program) in ebpf.programs_mut().filter(|(name, _)| is_needed(name)) {
        let fail = |message: String| LoadError::Program { name: name.to_owned(), message };
        load_program(program).map_err(|e| {
            tracing::debug!(program = name, error = %e, "the kernel refused a program");
            fail(ends_of(&e.to_string()))
        })?;
        let id = program.info().map_err(|e| fail(e.to_string()))?.id();
        let fd = program.fd().map_err(|e| fail(e.to_string()))?.as_fd().try_clone_to_owned();
        let fd = fd.map_err(|e| fail(e.to_string()))?;
        loaded.insert(name.to_owned(), LoadedProgram { fd, id });
    }
    Ok(loaded)
}

fn load_program(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSkb(program) => program.load(),
        Program::PerfEvent(program) => program.load(),
        other => <&mut SchedClassifier>::try_from(other)?.load(),
    }
}

/// The first and the last lines of a text that may hold a whole verifier log.
fn ends_of(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    if lines.len() <= 8 {
        return lines.join("\n");
    }
    let (head, tail) = (&lines[..3], &lines[lines.len() - 5..]);
    format!(
        "{}\n[{} lines left out, see the debug log]\n{}",
        head.join("\n"),
        lines.len() - 8,
        tail.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::says_realtime;

    #[test]
    fn a_realtime_kernel_is_known_by_its_version() {
        assert!(says_realtime("#1 SMP PREEMPT_RT Debian 6.12.9-1 (2025-01-10)"));
        assert!(says_realtime("#1 SMP PREEMPT RT Fri Nov 4 2016"));
        assert!(!says_realtime("#1 SMP PREEMPT_DYNAMIC Debian 6.12.9-1 (2025-01-10)"));
    }
}
