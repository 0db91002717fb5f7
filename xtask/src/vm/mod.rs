//! `cargo xtask vm-test`: the kernel tests as guests of other kernels, without hardware
//! virtualisation, and a table of what works, what degrades and how the agent says so.
//!
//! Fetches Debian's kernel packages with apt, never changes this machine's own sources, and boots
//! each kernel in QEMU from an image of the tests that cargo has built.

mod boot;
mod cpio;
mod image;
mod kernels;
mod packages;
mod report;
mod suites;
mod table;

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, bail};
use clap::Args;

use crate::setup;
use kernels::{KERNELS, Kernel};
use packages::Found;
use suites::Suite;

/// What to run; all of it unless told otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub(crate) struct Options {
    /// Kernels to boot, comma separated: 5.10, 6.1, 6.12, newest
    #[arg(long, value_delimiter = ',', value_name = "KERNELS")]
    kernel: Vec<String>,
    /// Test suites of orb8-agent to run there, comma separated, such as `kernel_exact`
    #[arg(long, value_delimiter = ',', value_name = "SUITES")]
    suite: Vec<String>,
}

/// Commands that this task calls, the package that has them, and what for.
const COMMANDS: [(&str, &str, &str); 4] = [
    ("qemu-system-x86_64", "qemu-system-x86", "boots other kernels, without hardware help"),
    ("busybox", "busybox-static", "mounts, loads modules and starts the tests in the guest"),
    ("strip", "binutils", "makes the tests small enough for the guest's memory"),
    ("xz", "xz-utils", "unpacks modules of newer kernels"),
];

/// Boots every kernel asked for, and fails unless each ran and every test passed or was expected
/// to be skipped.
pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("vm-test boots Debian's amd64 kernels; this machine is {}", std::env::consts::ARCH);
    }
    let must_run = std::env::var_os("ORB8_REQUIRE").is_some_and(|required| required == "all");
    let kernels = kernels_of(options, must_run)?;
    setup::provide(&COMMANDS)?;
    let suites = suites::build(root, &suites::wanted(root, &options.suite, must_run)?)?;
    let base = image::base(root, &suites).context("make the guest's image")?;
    let rows = rows(root, &kernels, &base, &suites);
    let text = table::render(&rows);
    let file = root.join("target/vm-test.txt");
    std::fs::write(&file, &text).with_context(|| format!("write {}", file.display()))?;
    println!("\n{text}");
    table::verdict(&rows, must_run)
}

/// The kernels asked for; in CI those that must run there, else all.
fn kernels_of(options: &Options, is_ci: bool) -> anyhow::Result<Vec<&'static Kernel>> {
    if options.kernel.is_empty() {
        return Ok(KERNELS.iter().filter(|kernel| !is_ci || kernel.in_ci).collect());
    }
    let find = |name: &String| {
        KERNELS.iter().find(|kernel| kernel.name == *name).with_context(|| {
            let known: Vec<_> = KERNELS.iter().map(|kernel| kernel.name).collect();
            format!("no kernel is called {name}; there are {}", known.join(", "))
        })
    };
    options.kernel.iter().map(find).collect()
}

/// How many guests run at the same time: what takes long there keeps one processor busy.
const AT_ONCE: usize = 2;

/// What came of each kernel. Whatever hinders one is said in its row; the others still run.
fn rows(root: &Path, kernels: &[&Kernel], base: &Path, suites: &[Suite]) -> Vec<table::Row> {
    let found: Vec<_> = kernels.iter().map(|kernel| (*kernel, provide(root, kernel))).collect();
    let row = |kernel: &Kernel, found: &anyhow::Result<Found>| match found {
        Err(why) => table::Row::not_run(kernel, format!("{why:#}")),
        Ok(found) => match boot::run(root, kernel.name, found, base, suites) {
            Ok(report) => table::Row::of(kernel, found, report, suites),
            Err(why) => table::Row::not_run(kernel, format!("{why:#}")),
        },
    };
    let waiting = Mutex::new(found.iter().enumerate());
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
    let guest = || {
        let each = std::iter::from_fn(next);
        each.map(|(number, (kernel, found))| (number, row(kernel, found))).collect::<Vec<_>>()
    };
    let mut rows: Vec<_> = std::thread::scope(|scope| {
        let guests = [(); AT_ONCE].map(|()| scope.spawn(guest));
        let end = |guest: std::thread::ScopedJoinHandle<'_, Vec<_>>| {
            guest.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        guests.into_iter().flat_map(end).collect()
    });
    rows.sort_unstable_by_key(|(number, _)| *number);
    rows.into_iter().map(|(_, row)| row).collect()
}

fn provide(root: &Path, kernel: &Kernel) -> anyhow::Result<Found> {
    let found = packages::provide(root, kernel)?;
    println!("ready    {} is {} ({})", kernel.name, found.release, found.packages);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(kernels: &[&str], is_ci: bool) -> Vec<&'static str> {
        let kernel = kernels.iter().map(|&name| name.to_owned()).collect();
        let chosen = kernels_of(&Options { kernel, ..Options::default() }, is_ci);
        chosen.expect("known kernels").iter().map(|kernel| kernel.name).collect()
    }

    #[test]
    fn all_kernels_run_unless_some_are_named_and_ci_runs_three_of_them() {
        assert_eq!(named(&[], false), ["5.10", "6.1", "6.12", "newest"]);
        assert_eq!(named(&[], true), ["5.10", "6.1", "newest"]);
        assert_eq!(named(&["6.1"], true), ["6.1"]);
        let options = Options { kernel: vec!["4.19".to_owned()], ..Options::default() };
        let error = kernels_of(&options, false).expect_err("too old").to_string();
        assert!(error.contains("4.19") && error.contains("5.10, 6.1"), "{error}");
    }
}
