//! Debian's and Ubuntu's packages: which are there, which could be, and installing them.
//!
//! Never changes the machine's sources, and asks for no password: without root it says what to
//! type.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use anyhow::{Context as _, bail};

use super::output;

/// A package and the reason that it is needed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) why: &'static str,
}

impl Package {
    pub(super) fn new(name: impl Into<String>, why: &'static str) -> Self {
        Self { name: name.into(), why }
    }
}

/// Whether the machine has apt at all.
pub(super) fn present() -> bool {
    super::on_path("apt-get")
}

/// Whether this process may install packages.
pub(super) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// Those of `packages` that are not installed.
pub(super) fn missing(packages: Vec<Package>) -> Vec<Package> {
    if packages.is_empty() {
        return packages;
    }
    // dpkg-query fails when it does not know one of the names, and still lists the others.
    let mut query = Command::new("dpkg-query");
    query.args(["-W", "-f", "${Package} ${db:Status-Status}\n"]);
    query.args(packages.iter().map(|package| &package.name));
    let listed = query.output().map(|output| output.stdout).unwrap_or_default();
    let installed = installed_of(&String::from_utf8_lossy(&listed));
    packages.into_iter().filter(|package| !installed.contains(&package.name)).collect()
}

fn installed_of(listed: &str) -> BTreeSet<String> {
    listed.lines().filter_map(|line| line.strip_suffix(" installed")).map(str::to_owned).collect()
}

/// The version that apt would install, without its epoch; none if it knows no such package.
pub(super) fn candidate(package: &str) -> Option<String> {
    candidate_of(&output(Command::new("apt-cache").args(["policy", package]))?)
}

fn candidate_of(policy: &str) -> Option<String> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    let version = version.split_once(':').map_or(version, |(_epoch, rest)| rest);
    (version != "(none)").then(|| version.to_owned())
}

/// The LLVM that the candidate of `package` is linked with, from its dependencies.
pub(super) fn llvm_behind(package: &str) -> Option<u32> {
    llvm_behind_of(&output(Command::new("apt-cache").args([
        "depends",
        "--recurse",
        "--important",
        package,
    ]))?)
}

fn llvm_behind_of(depends: &str) -> Option<u32> {
    depends.lines().find_map(|line| {
        let (_, version) = line.split_once("libllvm")?;
        version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    })
}

/// Asks the mirrors for their newest lists.
pub(super) fn update() -> anyhow::Result<()> {
    if !is_root() {
        bail!("apt-get's lists are old or empty and this is not root; run: sudo apt-get update");
    }
    println!("update   apt-get's lists of packages");
    run_apt(&["update", "-qq"])
}

/// Installs `packages`, each with a line that says why.
pub(super) fn install(packages: &[Package]) -> anyhow::Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    for Package { name, why } in packages {
        println!("install  {name}: {why}");
    }
    if !present() {
        bail!("this machine has no apt-get; install what is named above by hand");
    }
    if !is_root() {
        bail!(
            "installing needs root; run this and then the same target of make again:\n    \
             sudo apt-get update && sudo apt-get install --no-install-recommends {}",
            names.join(" ")
        );
    }
    let args = [&["install", "-qq", "--no-install-recommends"], names.as_slice()].concat();
    // Lists that are older than the mirror name files that are gone.
    run_apt(&args).or_else(|_| update().and_then(|()| run_apt(&args)))
}

fn run_apt(args: &[&str]) -> anyhow::Result<()> {
    let mut apt = Command::new("apt-get");
    apt.args(["-y", "-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0"]).args(args);
    apt.env("DEBIAN_FRONTEND", "noninteractive").stdin(std::process::Stdio::null());
    // The chatter of dpkg says nothing that the lines above do not; errors go to stderr.
    apt.stdout(std::process::Stdio::null());
    let status = apt.status().context("start apt-get")?;
    if !status.success() {
        bail!("apt-get {} failed: {status}", args.join(" "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_fully_installed_packages_count() {
        let listed = "gcc installed\nethtool config-files\nllvm-22 installed\n";
        assert_eq!(installed_of(listed), BTreeSet::from(["gcc".to_owned(), "llvm-22".to_owned()]));
    }

    #[test]
    fn candidate_is_read_without_epoch_and_none_is_none() {
        let policy = "llvm-22:\n  Installed: (none)\n  Candidate: 1:22.1.8-1~deb12u1\n";
        assert_eq!(candidate_of(policy).as_deref(), Some("22.1.8-1~deb12u1"));
        assert_eq!(candidate_of("x:\n  Installed: (none)\n  Candidate: (none)\n"), None);
        assert_eq!(candidate_of(""), None);
    }

    #[test]
    fn llvm_is_found_among_the_dependencies() {
        let depends = "rustc-web\n  Depends: libstd-rust-web-1.96\nlibstd-rust-web-1.96\n  \
                       Depends: libllvm22\n";
        assert_eq!(llvm_behind_of(depends), Some(22));
        assert_eq!(llvm_behind_of("rustc\n  Depends: gcc\n"), None);
    }
}
