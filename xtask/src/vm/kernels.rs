//! Which kernels are tried, and where Debian has them.

/// A kernel to boot.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Kernel {
    /// What it is called here.
    pub(super) name: &'static str,
    /// Debian's suite that has it.
    pub(super) suite: &'static str,
    /// It must have run in CI: the oldest, the newest, and one between them whose verifier follows less than
    /// the newest, and whose programs do more than the oldest's.
    pub(super) in_ci: bool,
}

/// The oldest kernel that is supported, those of Debian's supported releases, and the newest.
pub(super) const KERNELS: [Kernel; 4] = [
    Kernel { name: "5.10", suite: "bullseye", in_ci: true },
    Kernel { name: "6.1", suite: "bookworm", in_ci: true },
    Kernel { name: "6.12", suite: "trixie", in_ci: false },
    Kernel { name: "newest", suite: "sid", in_ci: true },
];

/// The package that depends on a suite's newest kernel. The flavour for clouds has every module
/// that the tests need and a third of the size.
pub(super) const METAPACKAGE: &str = "linux-image-cloud-amd64";
