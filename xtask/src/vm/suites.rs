//! Which test suites run in the guests, and where cargo has built them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

/// Built test programs of one file in `orb8-agent/tests`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Suite {
    /// Name of the file, without its ending.
    pub(super) name: String,
    /// The program.
    pub(super) program: PathBuf,
}

/// In CI two kernels share four minutes, and an emulated machine is some twenty times slower than
/// this one: the suites that load and attach every plane, count exactly, and clean up.
const IN_CI: [&str; 2] = ["kernel_capture", "kernel_exact"];

/// The suites asked for; in CI a part, else all of the kernel side.
pub(super) fn names_of(root: &Path, asked: &[String], is_ci: bool) -> anyhow::Result<Vec<String>> {
    let known = known(root)?;
    if let Some(unknown) = asked.iter().find(|name| !known.contains(name)) {
        bail!("no suite is called {unknown}; there are {}", known.join(", "));
    }
    Ok(match (asked, is_ci) {
        ([], true) => IN_CI.map(str::to_owned).to_vec(),
        ([], false) => known,
        (asked, _) => asked.to_vec(),
    })
}

/// The suites of the kernel side.
fn known(root: &Path) -> anyhow::Result<Vec<String>> {
    let folder = root.join("orb8-agent/tests");
    let entries =
        std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| Some(name.strip_suffix(".rs")?.to_owned()))
        .filter(|name| name.starts_with("kernel_"))
        .collect();
    names.sort_unstable();
    Ok(names)
}

/// Builds the suites, the agent and the command line, with the features that the tests of the
/// whole workspace have, so that nothing is built a second time.
pub(super) fn build(root: &Path, names: &[String]) -> anyhow::Result<Vec<Suite>> {
    println!("build    {}", names.join(" "));
    // One build of everything: tests bring features of their own into what they share with
    // programs.
    let mut cargo = Command::new(crate::setup::cargo());
    cargo.args(["build", "--workspace", "--quiet", "--bin", "orb8", "--bin", "orb8-agent"]);
    cargo.args(names.iter().flat_map(|name| ["--test", name]));
    cargo.arg("--message-format=json-render-diagnostics");
    let output =
        cargo.current_dir(root).stderr(Stdio::inherit()).output().context("start cargo")?;
    if !output.status.success() {
        bail!("the tests do not build: {}", output.status);
    }
    let suites = built(&String::from_utf8_lossy(&output.stdout), names);
    match names.iter().find(|name| !suites.iter().any(|suite| suite.name == **name)) {
        Some(name) => bail!("cargo has built no program for {name}"),
        None => Ok(suites),
    }
}

/// Finds the programs of suites in cargo's messages, in the order of the names.
fn built(messages: &str, names: &[String]) -> Vec<Suite> {
    let programs: Vec<(String, PathBuf)> = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["kind"] == serde_json::json!(["test"]))
        .filter_map(|message| {
            let name = message["target"]["name"].as_str()?.to_owned();
            Some((name, PathBuf::from(message["executable"].as_str()?)))
        })
        .collect();
    let find = |name: &String| {
        let (name, program) = programs.iter().find(|(its, _)| its == name)?;
        Some(Suite { name: name.clone(), program: program.clone() })
    };
    names.iter().filter_map(find).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn programs_are_found_among_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"b"},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"a"},"executable":"/t/a-bin"}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"a"},"executable":"/t/a-1"}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"c"},"executable":"/t/c-1"}
not json
{"reason":"build-finished","success":true}
"#;
        let found = built(messages, &names(&["c", "a", "b"]));
        let found: Vec<_> =
            found.iter().map(|suite| (suite.name.as_str(), suite.program.display())).collect();
        assert_eq!(format!("{found:?}"), r#"[("c", "/t/c-1"), ("a", "/t/a-1")]"#);
    }

    #[test]
    fn a_suite_must_exist_and_ci_runs_a_part() {
        let root = crate::root();
        let all = names_of(&root, &[], false).expect("suites");
        let in_ci = names_of(&root, &[], true).expect("suites");
        assert!(in_ci.iter().all(|name| all.contains(name)), "{in_ci:?} of {all:?}");
        assert!(in_ci.len() < all.len());
        let asked = names(&["kernel_exact"]);
        assert_eq!(names_of(&root, &asked, true).expect("it exists"), asked);
        let error = names_of(&root, &names(&["kernel_no"]), false).expect_err("none").to_string();
        assert!(error.contains("kernel_no") && error.contains("kernel_exact"), "{error}");
    }
}
