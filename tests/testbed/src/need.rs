//! What a test needs from the machine. A missing need skips the test aloud; where skipping is
//! forbidden (`ORB8_REQUIRE=all`, set in CI) it fails the test instead.

use std::io::Write as _;
use std::path::PathBuf;

use crate::{bpf, cgroup, netns, python, scapy};

/// Something that not every machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// uid 0 and permission to make network namespaces.
    Root,
    /// Permission to load BPF programs of the type that the probes have.
    Bpf,
    /// Kernel 6.6 or newer: programs attach by tcx links.
    Tcx,
    /// Kernel 5.12 or newer, on arm64 5.18: programs may compare and exchange.
    CompareExchange,
    /// Kernel 6.2 or newer: packet sockets send UDP super-packets (VIRTIO_NET_HDR_GSO_UDP_L4).
    UdpSuperFrames,
    /// Kernel 6.6 or newer: packet sockets send frames above 64 KiB.
    LargeFrames,
    /// Kernel 6.11 or newer: UDP_SEGMENT through devices that make no checksums.
    SegmentsWithoutChecksums,
    /// A program in `PATH`.
    Tool(&'static str),
    /// The Python environment with scapy that `make setup` makes.
    Scapy,
    /// The same environment with a gRPC client.
    Grpc,
    /// A program of this repository, already built.
    Binary(&'static str),
    /// `/dev/net/tun`.
    Tun,
    /// A cgroup2 mount in which cgroups can be made.
    Cgroup2,
}

impl Need {
    /// Why the need is not met, with the next step; `None` if it is met.
    #[must_use]
    pub fn missing(self) -> Option<String> {
        match self {
            Self::Root => netns::permission().err(),
            Self::Bpf => bpf::permission().err(),
            Self::Cgroup2 => cgroup::permission().err(),
            Self::Tcx => bpf::tcx_support().err(),
            Self::CompareExchange => without(EXCHANGE_SINCE, "compare-and-exchange"),
            Self::UdpSuperFrames => without((6, 2), "UDP super-packets of packet sockets"),
            Self::LargeFrames => without((6, 6), "frames above 64 KiB of packet sockets"),
            Self::SegmentsWithoutChecksums => {
                without((6, 11), "UDP_SEGMENT where the device makes no checksums")
            }
            Self::Tool(name) => tool(name).is_none().then(|| {
                format!("{name} is not in PATH: install the package that has it (`make setup`)")
            }),
            Self::Scapy => scapy::python().err(),
            Self::Grpc => python::interpreter(GRPC).err(),
            Self::Binary(name) => binary(name).is_none().then(|| {
                format!("{name} is not built: run `cargo build -p {name}` (or `make build`)")
            }),
            Self::Tun => (!std::path::Path::new("/dev/net/tun").exists())
                .then(|| "/dev/net/tun does not exist: the kernel has no tun driver".to_owned()),
        }
    }
}

/// The first kernel that compiles programs which compare and exchange.
const EXCHANGE_SINCE: (u32, u32) = if cfg!(target_arch = "aarch64") { (5, 18) } else { (5, 12) };

/// That the kernel is older than the first that has something.
fn without(since: (u32, u32), what: &str) -> Option<String> {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse().ok());
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let (major, minor) = since;
    (version < since).then(|| {
        format!("the kernel has no {what} ({release}): needs kernel {major}.{minor} or newer")
    })
}

/// What a Python client of gRPC imports.
pub const GRPC: &[&str] = &["grpc", "grpc_tools", "grpc_reflection"];

/// The needs of every test that puts probes into the kernel.
pub const KERNEL: &[Need] = &[Need::Root, Need::Bpf, Need::Tool("ip")];

/// True if all `needs` are met; otherwise says so on stderr as `SKIP <test>: <why>`.
///
/// # Panics
/// If a need is missing and `ORB8_REQUIRE=all` forbids to skip.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "tests have no settings; CI alone sets this one")]
pub fn met(test: &str, needs: &[Need]) -> bool {
    let Some(why) = needs.iter().find_map(|need| need.missing()) else {
        return true;
    };
    assert!(
        std::env::var_os("ORB8_REQUIRE").is_none_or(|require| require != "all"),
        "SKIP is forbidden by ORB8_REQUIRE=all, and {test} would skip: {why}"
    );
    // Not by a macro: the test harness swallows what those print in a test that passes.
    drop(writeln!(std::io::stderr(), "SKIP {test}: {why}"));
    false
}

/// Returns from the calling test, aloud, unless the needs are met: `need!(Need::Root, Need::Bpf)`,
/// or `need!()` for what every kernel test needs.
#[macro_export]
macro_rules! need {
    () => {
        $crate::need!(@check $crate::need::KERNEL)
    };
    (@check $needs:expr) => {{
        fn here() {}
        let name = std::any::type_name_of_val(&here).trim_end_matches("::here");
        if !$crate::need::met(name, $needs) {
            return;
        }
    }};
    ($($need:expr),+ $(,)?) => {
        $crate::need!(@check &[$($need),+])
    };
}

/// Where `PATH` has a program.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "not a setting of ours")]
pub fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// A program of this repository beside the running one: `target/<profile>/<name>`.
#[must_use]
pub fn binary(name: &str) -> Option<PathBuf> {
    let exe = std::env::current_exe().ok()?;
    exe.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|file| file.is_file())
}
