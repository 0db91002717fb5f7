//! Builds the kernel programs: finds a compiler that can, runs cargo on `orb8-probes`, strips the
//! object.
//!
//! Called by the agent's build script and, by path, by `cargo xtask build-probes`, so that there
//! is one build only. Uses the standard library alone and never touches the caller's target
//! folder, whose lock the calling cargo holds.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The target whose `core` the compiler must have.
const TARGET: &str = "bpfel-unknown-none";

/// Programs of `orb8-probes`; the first one always exists, the others where they were written.
const PROGRAMS: [&str; 3] = ["orb8-probes", "bench-probes", "nest-probes"];

/// Newest and oldest LLVM that the pinned bpf-linker can be built for.
pub(crate) const LLVM_VERSIONS: std::ops::RangeInclusive<u32> = 21..=23;

/// Oldest Rust for the programs: the workspace's, because they share `orb8-common` with it.
pub(crate) const OLDEST_RUST: (u32, u32) = (1, 95);

/// Why the programs could not be built, with the next step.
#[derive(Debug)]
pub(crate) struct Failed(String);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failed {}

/// A compiler that has, or can build, `core` for the BPF target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Compiler {
    /// A distribution's rustc with its precompiled `core` for BPF.
    Distribution {
        /// The compiler.
        rustc: PathBuf,
        /// Its LLVM's major version.
        llvm: u32,
    },
    /// rustup's nightly with `rust-src`, which builds `core` itself.
    Nightly {
        /// Its LLVM's major version.
        llvm: u32,
    },
}

impl Compiler {
    /// Major version of the LLVM inside the compiler; the linker's must be the same.
    pub(crate) const fn llvm(&self) -> u32 {
        match self {
            Self::Distribution { llvm, .. } | Self::Nightly { llvm } => *llvm,
        }
    }

    /// A cargo command that uses this compiler for the BPF target.
    fn cargo(&self) -> Command {
        let mut cargo = match self {
            Self::Distribution { rustc, .. } => {
                let mut cargo =
                    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
                cargo.arg("build").env("RUSTC", rustc);
                cargo
            }
            Self::Nightly { .. } => {
                let mut cargo = Command::new("rustup");
                cargo.args(["run", "nightly", "cargo", "build", "-Zbuild-std=core"]);
                cargo.env_remove("RUSTC");
                cargo
            }
        };
        // A precompiled compiler of a stable channel refuses the features that the target needs.
        cargo.env("RUSTC_BOOTSTRAP", "1");
        // What a calling cargo set for its own build (clippy's wrapper, flags, folders) is not
        // meant for this one.
        for name in [
            "CARGO_BUILD_RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "CARGO_TARGET_DIR",
            "CARGO_BUILD_TARGET_DIR",
            "CARGO_MAKEFLAGS",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTFLAGS",
        ] {
            cargo.env_remove(name);
        }
        cargo
    }
}

/// Finds a compiler for the BPF target; an error names what to install.
pub(crate) fn compiler() -> Result<Compiler, Failed> {
    distribution_compiler().or_else(nightly_compiler).ok_or_else(|| {
        let (major, minor) = OLDEST_RUST;
        Failed(format!(
            "no Rust compiler here has a `core` for {TARGET}; run `make setup`, or install one of: \
             a distribution's rustc of version {major}.{minor} or newer with its BPF library \
             (apt-get install rustc-web libstd-rust-web-dev-bpf, or rustc libstd-rust-dev-bpf), \
             rustup's nightly with its source \
             (rustup toolchain install nightly --profile minimal --component rust-src)"
        ))
    })
}

fn distribution_compiler() -> Option<Compiler> {
    let rustc = PathBuf::from("/usr/bin/rustc");
    let libdir =
        output(Command::new(&rustc).args(["--print", "target-libdir", "--target", TARGET]))?;
    let has_core = std::fs::read_dir(libdir.trim())
        .ok()?
        .filter_map(Result::ok)
        .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"));
    let llvm = fitting_llvm(&output(Command::new(&rustc).arg("-vV"))?)?;
    has_core.then_some(Compiler::Distribution { rustc, llvm })
}

fn nightly_compiler() -> Option<Compiler> {
    let rustc = |args: &[&str]| {
        output(
            Command::new("rustup")
                .env("RUSTUP_AUTO_INSTALL", "0")
                .args(["run", "nightly", "rustc"])
                .args(args),
        )
    };
    let sysroot = rustc(&["--print", "sysroot"])?;
    let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml");
    let llvm = fitting_llvm(&rustc(&["-vV"])?)?;
    source.exists().then_some(Compiler::Nightly { llvm })
}

/// The major LLVM version of the compiler that says so, if the compiler is new enough and the
/// linker can be built for that LLVM.
fn fitting_llvm(verbose_version: &str) -> Option<u32> {
    let llvm = llvm_of(verbose_version)?;
    (rust_of(verbose_version)? >= OLDEST_RUST && LLVM_VERSIONS.contains(&llvm)).then_some(llvm)
}

/// The Rust version in the output of `rustc -vV`.
fn rust_of(verbose_version: &str) -> Option<(u32, u32)> {
    let release = verbose_version.lines().find_map(|line| line.strip_prefix("release: "))?;
    let mut numbers = release.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The major LLVM version in the output of `rustc -vV`.
pub(crate) fn llvm_of(verbose_version: &str) -> Option<u32> {
    let version = verbose_version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

/// Standard output of a command that succeeded.
fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The linker that `make setup` installs, in the repository at `root`.
pub(crate) fn linker(root: &Path) -> PathBuf {
    root.join(".tools/bin/bpf-linker")
}

/// Builds every program of the repository at `root` and returns the stripped objects, the agent's
/// first.
pub(crate) fn build(root: &Path) -> Result<Vec<PathBuf>, Failed> {
    let manifest = root.join("orb8-probes/Cargo.toml");
    if !manifest.exists() {
        return Err(Failed(format!("{} is missing: no kernel programs here", manifest.display())));
    }
    let compiler = compiler()?;
    let linker = linker(root);
    if !linker.exists() {
        return Err(Failed(format!("{} is missing: run `make setup`", linker.display())));
    }
    let out = root.join("target/bpf");
    let mut cargo = compiler.cargo();
    cargo
        .args(["--release", "--bins", "--target", TARGET])
        .arg("--manifest-path")
        .arg(&manifest)
        .arg("--target-dir")
        .arg(out.join("cargo"))
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &linker)
        // Debug information is what the linker makes BTF of; without it the kernel refuses the
        // maps, and no structure of the object could be compared with Rust's.
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            ["-Cdebuginfo=2", "-Clink-arg=--btf", "-Ctarget-cpu=v3"].join("\x1f"),
        )
        .stdin(Stdio::null());
    run(&mut cargo, "build orb8-probes")?;
    let strip = strip_tool(compiler.llvm())?;
    let mut objects = Vec::new();
    for program in PROGRAMS {
        let built = out.join("cargo").join(TARGET).join("release").join(program);
        if built.exists() {
            objects.push(strip_into(&strip, &built, &out.join(format!("{program}.o")))?);
        }
    }
    match objects.first() {
        Some(first) if first.ends_with(format!("{}.o", PROGRAMS[0])) => Ok(objects),
        _ => Err(Failed(format!("orb8-probes has no program named `{}`", PROGRAMS[0]))),
    }
}

/// llvm-strip of the compiler's LLVM, else of any.
pub(crate) fn strip_tool(llvm: u32) -> Result<PathBuf, Failed> {
    let candidates = [
        format!("/usr/lib/llvm-{llvm}/bin/llvm-strip"),
        format!("llvm-strip-{llvm}"),
        "llvm-strip".to_owned(),
    ];
    candidates
        .iter()
        .find(|tool| output(Command::new(tool).arg("--version")).is_some())
        .map(PathBuf::from)
        .ok_or_else(|| {
            Failed(format!("llvm-strip is missing: run `make setup` or install llvm-{llvm}"))
        })
}

/// Strips `built` into `object`; an object that would not change keeps its time, so that nothing
/// that watches it is built again.
fn strip_into(strip: &Path, built: &Path, object: &Path) -> Result<PathBuf, Failed> {
    let fresh = object.with_extension(format!("o.{}", std::process::id()));
    run(Command::new(strip).arg("-g").arg("-o").arg(&fresh).arg(built), "strip the object")?;
    let replace = || -> std::io::Result<()> {
        if std::fs::read(object).ok() == Some(std::fs::read(&fresh)?) {
            std::fs::remove_file(&fresh)
        } else {
            std::fs::rename(&fresh, object)
        }
    };
    replace().map_err(|error| Failed(format!("write {}: {error}", object.display())))?;
    Ok(object.to_path_buf())
}

fn run(command: &mut Command, what: &str) -> Result<(), Failed> {
    let status =
        command.status().map_err(|error| Failed(format!("{what}: start {command:?}: {error}")))?;
    if status.success() { Ok(()) } else { Err(Failed(format!("{what}: {command:?}: {status}"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_version_is_the_major_number() {
        let text = "rustc 1.96.0\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(llvm_of(text), Some(22));
        assert_eq!(llvm_of("rustc 1.96.0\n"), None);
        assert_eq!(llvm_of("LLVM version: unknown\n"), None);
    }

    #[test]
    fn a_compiler_that_is_too_old_or_has_another_llvm_does_not_fit() {
        let says = |rust: &str, llvm: &str| format!("release: {rust}\nLLVM version: {llvm}\n");
        for (rust, llvm, expected) in [
            ("1.95.0", "22.1.2", Some(22)),
            ("1.97.0-nightly", "23.0.0", Some(23)),
            ("2.0.0", "21.1.0", Some(21)),
            ("1.94.1", "21.1.8", None),
            ("1.95.0", "20.1.0", None),
            ("1.95.0", "24.0.0", None),
        ] {
            assert_eq!(fitting_llvm(&says(rust, llvm)), expected, "{rust} {llvm}");
        }
        assert_eq!(fitting_llvm("LLVM version: 22.1.2\n"), None);
    }

    #[test]
    fn a_folder_without_probes_is_named_in_the_error() {
        let error = build(Path::new("/nonexistent")).expect_err("there is nothing to build");
        assert!(error.to_string().contains("/nonexistent/orb8-probes/Cargo.toml"), "{error}");
    }
}
