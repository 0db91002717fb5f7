//! `cargo xtask setup`: installs what a build and the tests need, and says what and why.
//!
//! A survey that starts a handful of processes comes first, so that a machine with everything
//! waits for nothing. Never changes the machine beyond packages, a toolchain and `.tools/`.

mod apt;
mod bpf;
mod python;

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use crate::probes::build;
use apt::Package;

/// One thing that a build or a test needs.
#[derive(Debug)]
struct Need {
    name: &'static str,
    why: &'static str,
    state: State,
}

#[derive(Debug)]
enum State {
    /// It is there; what exactly.
    Ready(String),
    /// It is not there; the packages that bring it or that its own installation starts from.
    Missing { what: String, packages: Vec<Package> },
}

/// Commands that are called, the package that has them, and what for.
const COMMANDS: [(&str, &str, &str); 7] = [
    ("cc", "gcc", "links every Rust program"),
    ("c++", "g++", "bpf-linker links LLVM's C++ libraries"),
    ("ip", "iproute2", "the tests and the demo make links and addresses"),
    ("iptables-restore", "iptables", "the simulated cluster makes Services and masquerading"),
    ("ip6tables-restore", "iptables", "the same for IPv6"),
    ("tc", "iproute2", "the tests look at attached filters and make foreign ones"),
    ("iperf3", "iperf3", "the benchmark measures throughput with it"),
];

const COMPONENTS_WHY: &str = "`make lint` runs them";

/// Installs whatever is missing.
pub(crate) fn install(root: &Path) -> anyhow::Result<()> {
    let needs = survey(root);
    print(&needs);
    if needs.iter().all(Need::is_ready) {
        return Ok(());
    }
    if packages_of(&needs).next().is_some() && apt::present() && apt::is_root() {
        // What there is to choose from depends on the lists, which may be old or empty.
        apt::update()?;
    }
    install_packages(&survey(root))?;
    let compiler = match build::compiler() {
        Ok(compiler) => compiler,
        Err(_) => bpf::install_nightly()?,
    };
    // For a nightly, the LLVM to link with is known only now.
    install_packages(&[bpf::survey_linker(root, Some(&compiler))])?;
    bpf::install_linker(root, compiler.llvm())?;
    if !survey_components().is_ready() {
        install_components()?;
    }
    if !python::survey(root).is_ready() {
        python::install(root)?;
    }
    let needs = survey(root);
    print(&needs);
    complete(&needs)
}

/// Only says what is there and what is missing; fails if anything is.
pub(crate) fn verify(root: &Path) -> anyhow::Result<()> {
    let needs = survey(root);
    print(&needs);
    complete(&needs)
}

/// Installs the packages of those commands that are not there: (command, package, why).
pub(crate) fn provide(commands: &[(&str, &str, &'static str)]) -> anyhow::Result<()> {
    let packages: Vec<Package> = commands
        .iter()
        .filter(|(command, ..)| !on_path(command))
        .map(|(_, package, why)| Package::new(*package, why))
        .collect();
    apt::install(&packages)
}

fn complete(needs: &[Need]) -> anyhow::Result<()> {
    let missing: Vec<&str> =
        needs.iter().filter(|need| !need.is_ready()).map(|need| need.name).collect();
    if !missing.is_empty() {
        bail!("missing: {}; `make setup` installs what it can", missing.join(", "));
    }
    Ok(())
}

impl Need {
    const fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready(_))
    }
}

fn survey(root: &Path) -> Vec<Need> {
    let compiler = build::compiler().ok();
    vec![
        survey_commands(),
        survey_components(),
        bpf::survey_compiler(compiler.as_ref()),
        bpf::survey_linker(root, compiler.as_ref()),
        python::survey(root),
    ]
}

fn survey_commands() -> Need {
    let absent: Vec<_> = COMMANDS.iter().filter(|(command, ..)| !on_path(command)).collect();
    let state = if absent.is_empty() {
        State::Ready(COMMANDS.map(|(command, ..)| command).join(" "))
    } else {
        let mut packages: Vec<_> =
            absent.iter().map(|(_, package, why)| Package::new(*package, why)).collect();
        packages.dedup_by(|one, other| one.name == other.name);
        let commands: Vec<&str> = absent.iter().map(|(command, ..)| *command).collect();
        State::Missing { what: commands.join(" "), packages }
    };
    Need { name: "commands", why: "the build and the tests call them", state }
}

fn survey_components() -> Need {
    let ready = ["fmt", "clippy"]
        .iter()
        .all(|component| output(Command::new(cargo()).args([component, "--version"])).is_some());
    let state = if ready {
        State::Ready("rustfmt clippy".to_owned())
    } else {
        State::Missing { what: "rustfmt clippy".to_owned(), packages: vec![] }
    };
    Need { name: "components", why: COMPONENTS_WHY, state }
}

fn install_components() -> anyhow::Result<()> {
    println!("install  rustfmt clippy: {COMPONENTS_WHY}");
    let status = Command::new("rustup")
        .args(["component", "add", "rustfmt", "clippy"])
        .status()
        .context("rustfmt or clippy is missing; install them beside cargo: start rustup")?;
    if !status.success() {
        bail!("rustup component add rustfmt clippy: {status}");
    }
    Ok(())
}

fn packages_of(needs: &[Need]) -> impl Iterator<Item = &Package> {
    needs.iter().flat_map(|need| match &need.state {
        State::Ready(_) => [].as_slice(),
        State::Missing { packages, .. } => packages.as_slice(),
    })
}

fn install_packages(needs: &[Need]) -> anyhow::Result<()> {
    let packages: Vec<Package> = packages_of(needs).cloned().collect();
    apt::install(&packages)
}

fn print(needs: &[Need]) {
    for Need { name, why, state } in needs {
        match state {
            State::Ready(what) => println!("ready    {name}: {what}"),
            State::Missing { what, .. } => println!("missing  {name}: {what}; {why}"),
        }
    }
}

/// The cargo that runs this task.
pub(crate) fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Whether a command is in the search path, or where only root's path leads.
pub(crate) fn on_path(command: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| folder.join(command).is_file())
}

/// Standard output of a command that succeeded.
fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need(state: State) -> Need {
        Need { name: "thing", why: "to test", state }
    }

    #[test]
    fn a_missing_need_fails_the_verification_and_is_named() {
        let missing = State::Missing { what: "x".to_owned(), packages: vec![] };
        let error = complete(&[need(missing)]).expect_err("it is missing");
        assert!(error.to_string().contains("thing"), "{error}");
        assert!(complete(&[need(State::Ready(String::new()))]).is_ok());
    }

    #[test]
    fn packages_of_what_is_ready_are_not_installed() {
        let package = Package::new("p", "w");
        let needs = [
            need(State::Ready("there".to_owned())),
            need(State::Missing { what: "x".to_owned(), packages: vec![package.clone()] }),
        ];
        assert_eq!(packages_of(&needs).collect::<Vec<_>>(), [&package]);
    }

    #[test]
    fn a_command_that_does_not_exist_is_not_on_the_path() {
        assert!(on_path("sh"));
        assert!(!on_path("no-such-command-anywhere"));
    }
}
