//! The checks behind `make test`, `make lint` and their like: which commands, in which order.
//!
//! Each command is shown before it runs; the first that fails ends the task.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::needs;

/// Folders with a `Cargo.toml` outside the workspace.
const OUTSIDE: [&str; 2] = ["orb8-probes", "fuzz"];

/// One package by its name is built with other features of what it shares with the rest, and with
/// it everything once more.
const WHOLE: &str = "--workspace";

/// Tests of the kernel side that need neither Kubernetes nor minutes.
const SMOKE_TESTS: [&str; 6] = [
    "kernel_exact",
    "kernel_nesting",
    "kernel_lifecycle",
    "kernel_capture",
    "kernel_socket",
    "kernel_supplement",
];

/// Tests of the simulated cluster: nodes, pods, Services and an API server, an agent a node.
const CLUSTER_TESTS: [&str; 12] = [
    "cluster_api",
    "cluster_churn",
    "cluster_hosts",
    "cluster_identity",
    "cluster_node_ports",
    "cluster_outages",
    "cluster_packets",
    "cluster_pods",
    "cluster_reuse",
    "cluster_scale",
    "cluster_services",
    "cluster_verify",
];

/// Every test of the workspace, after saying which of them this machine cannot run.
pub(crate) fn test(root: &Path) -> anyhow::Result<()> {
    say_needs()?;
    cargo(root, &["test", "--workspace", "--no-fail-fast"], &[])
}

/// Probes, traffic and command line on the running kernel.
pub(crate) fn smoke_test(root: &Path) -> anyhow::Result<()> {
    say_needs()?;
    let tests: Vec<&str> = SMOKE_TESTS.iter().flat_map(|test| ["--test", *test]).collect();
    // The tests start the command line as a program of its own.
    cargo(root, &[&["build", WHOLE, "--bin", "orb8"], tests.as_slice()].concat(), &[])?;
    cargo(root, &[&["test", WHOLE], tests.as_slice()].concat(), &[])
}

/// The simulated cluster, end to end.
pub(crate) fn e2e_test(root: &Path) -> anyhow::Result<()> {
    say_needs()?;
    let tests: Vec<&str> = CLUSTER_TESTS.iter().flat_map(|test| ["--test", *test]).collect();
    // Some start the command line as a program of its own.
    cargo(root, &["build", WHOLE], &[])?;
    let all = [&["test", WHOLE, "--no-fail-fast"], tests.as_slice()].concat();
    cargo(root, &all, &[])
}

/// Says what is missing for the kernel tests; fails if nothing may be skipped.
fn say_needs() -> anyhow::Result<()> {
    let missing = needs::missing();
    if missing.is_empty() {
        return Ok(());
    }
    println!(
        "tests that need the kernel will say SKIP; missing here:\n    {}",
        missing.join("\n    ")
    );
    if std::env::var_os("ORB8_REQUIRE").is_some_and(|required| required == "all") {
        bail!("ORB8_REQUIRE=all lets no test be skipped");
    }
    Ok(())
}

/// Formatting, clippy and documentation; where cargo-deny is installed, also what it checks.
pub(crate) fn lint(root: &Path) -> anyhow::Result<()> {
    cargo(root, &["fmt", "--all", "--check"], &[])?;
    for folder in OUTSIDE {
        cargo(&root.join(folder), &["fmt", "--check"], &[])?;
    }
    cargo(root, &["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"], &[])?;
    let deny_warnings = [("RUSTDOCFLAGS", "--deny warnings")];
    cargo(root, &["doc", "--workspace", "--no-deps", "--quiet"], &deny_warnings)?;
    deny(root)
}

/// What is said instead of cargo-deny. `ORB8_REQUIRE=all` does not make it a failure: the tool
/// takes minutes to build and its advisories a network that not every machine has.
const DENY_SKIPPED: &str = "\
SKIP cargo-deny: not installed, so no advisory (known vulnerability, yanked crate) was looked up.
    Licences, sources, banned crates and second copies are checked without it, by `make test`.
    Next step: cargo install --locked cargo-deny, where github.com can be reached; then make lint.";

/// cargo-deny, where it is installed; a SKIP that says what was not checked, where it is not.
fn deny(root: &Path) -> anyhow::Result<()> {
    match deny_command(crate::setup::on_path("cargo-deny")) {
        Ok(command) => cargo(root, &command, &[]),
        Err(skipped) => {
            println!("{skipped}");
            Ok(())
        }
    }
}

/// The arguments for cargo, or what to say where there is no cargo-deny.
const fn deny_command(installed: bool) -> Result<[&'static str; 2], &'static str> {
    if installed { Ok(["deny", "check"]) } else { Err(DENY_SKIPPED) }
}

/// Formats every file.
pub(crate) fn fmt(root: &Path) -> anyhow::Result<()> {
    cargo(root, &["fmt", "--all"], &[])?;
    OUTSIDE.iter().try_for_each(|folder| cargo(&root.join(folder), &["fmt"], &[]))
}

/// Writes the references that the agent's own tests hold fresh. They cannot be written from here:
/// this program must build where the kernel programs cannot be built yet.
pub(crate) fn write_references(root: &Path) -> anyhow::Result<()> {
    let test = ["test", "--quiet", WHOLE, "--test", "config_reference"];
    cargo(root, &test, &[("ORB8_GENERATE", "1")])
}

/// Fuzzes the header parser for a minute.
pub(crate) fn fuzz(root: &Path) -> anyhow::Result<()> {
    if !crate::setup::on_path("cargo-fuzz") {
        bail!("cargo-fuzz is missing: cargo install --locked cargo-fuzz, and rustup's nightly");
    }
    let found = root.join("fuzz/corpus/parse");
    std::fs::create_dir_all(&found).with_context(|| format!("make {}", found.display()))?;
    let mut fuzz = Command::new("cargo");
    fuzz.args(["+nightly", "fuzz", "run", "parse", "corpus/parse", "seeds/parse", "--"]);
    fuzz.arg("-max_total_time=60").current_dir(root.join("fuzz"));
    run(fuzz)
}

fn cargo(folder: &Path, args: &[&str], env: &[(&str, &str)]) -> anyhow::Result<()> {
    println!("cargo {}", args.join(" "));
    let mut cargo = Command::new(crate::setup::cargo());
    cargo.args(args).envs(env.iter().copied()).current_dir(folder);
    run(cargo)
}

fn run(mut command: Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_test_of_the_cluster_is_run_by_e2e_test() {
        let folder = crate::root().join("orb8-agent/tests");
        let mut found: Vec<String> = std::fs::read_dir(folder)
            .expect("the agent has tests")
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter_map(|name| Some(name.strip_suffix(".rs")?.to_owned()))
            .filter(|name| name.starts_with("cluster_"))
            .collect();
        found.sort_unstable();
        assert_eq!(found, CLUSTER_TESTS);
    }

    #[test]
    fn cargo_deny_runs_where_it_is_and_is_told_as_skipped_where_it_is_not() {
        assert_eq!(deny_command(true), Ok(["deny", "check"]));
        let skipped = deny_command(false).expect_err("it is not installed");
        for part in ["SKIP cargo-deny: ", "advisory", "cargo install --locked cargo-deny"] {
            assert!(skipped.contains(part), "{part}: {skipped}");
        }
    }
}
