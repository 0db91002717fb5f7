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
    /// The tests to run, all if there are none.
    pub(super) tests: &'static [&'static str],
}

/// A suite to build, and the tests to run of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    name: String,
    tests: &'static [&'static str],
}

/// In CI three kernels share five minutes. An emulated machine is some twenty times slower than this
/// one, most of all in the verifier, and an agent is made of hundreds of thousands of instructions:
/// three loads of it, one by the agent with its own settings, one of both planes, one of the
/// interfaces' alone. Everything else is for whoever has the time.
const IN_CI: [(&str, &[&str]); 2] = [
    (
        "kernel_capture",
        &[
            "a_hybrid_node_with_pods_in_cgroup2_gets_both_planes_and_each_packet_counts_once",
            "a_small_memlock_limit_is_named_where_maps_are_charged_to_it_and_means_nothing_elsewhere",
        ],
    ),
    ("kernel_exact", &["every_protocol_is_counted_once_in_each_direction"]),
];

/// The suites asked for; in CI a part, else all of the kernel side.
pub(super) fn wanted(root: &Path, asked: &[String], is_ci: bool) -> anyhow::Result<Vec<Wanted>> {
    let known = known(root)?;
    if let Some(unknown) = asked.iter().find(|name| !known.contains(name)) {
        bail!("no suite is called {unknown}; there are {}", known.join(", "));
    }
    let whole = |names: &[String]| {
        names.iter().map(|name| Wanted { name: name.clone(), tests: &[] }).collect()
    };
    Ok(match (asked, is_ci) {
        ([], true) => IN_CI.map(|(name, tests)| Wanted { name: name.to_owned(), tests }).to_vec(),
        ([], false) => whole(&known),
        (asked, _) => whole(asked),
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
pub(super) fn build(root: &Path, wanted: &[Wanted]) -> anyhow::Result<Vec<Suite>> {
    let names: Vec<&str> = wanted.iter().map(|wanted| wanted.name.as_str()).collect();
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
    let suites = built(&String::from_utf8_lossy(&output.stdout), wanted);
    match names.iter().find(|name| !suites.iter().any(|suite| suite.name == **name)) {
        Some(name) => bail!("cargo has built no program for {name}"),
        None => Ok(suites),
    }
}

/// Finds the programs of suites in cargo's messages, in the order in which they are wanted.
fn built(messages: &str, wanted: &[Wanted]) -> Vec<Suite> {
    let programs: Vec<(String, PathBuf)> = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["kind"] == serde_json::json!(["test"]))
        .filter_map(|message| {
            let name = message["target"]["name"].as_str()?.to_owned();
            Some((name, PathBuf::from(message["executable"].as_str()?)))
        })
        .collect();
    let find = |wanted: &Wanted| {
        let (name, program) = programs.iter().find(|(its, _)| *its == wanted.name)?;
        Some(Suite { name: name.clone(), program: program.clone(), tests: wanted.tests })
    };
    wanted.iter().filter_map(find).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str) -> Wanted {
        Wanted { name: name.to_owned(), tests: &[] }
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
        let found = built(messages, &["c", "a", "b"].map(of));
        let found: Vec<_> =
            found.iter().map(|suite| (suite.name.as_str(), suite.program.display())).collect();
        assert_eq!(format!("{found:?}"), r#"[("c", "/t/c-1"), ("a", "/t/a-1")]"#);
    }

    #[test]
    fn a_suite_must_exist_and_without_ci_all_of_them_run() {
        let root = crate::root();
        assert!(wanted(&root, &[], false).expect("suites").contains(&of("kernel_exact")));
        let ask = |name: &str| wanted(&root, &[name.to_owned()], true);
        assert_eq!(ask("kernel_exact").expect("it exists"), [of("kernel_exact")]);
        let error = ask("kernel_no").expect_err("none").to_string();
        assert!(error.contains("kernel_no") && error.contains("kernel_exact"), "{error}");
    }

    #[test]
    fn ci_runs_a_part_that_exists() {
        let root = crate::root();
        for Wanted { name, tests } in wanted(&root, &[], true).expect("suites") {
            let file = root.join(format!("orb8-agent/tests/{name}.rs"));
            let text = std::fs::read_to_string(file).expect("a suite is a file");
            assert!(!tests.is_empty());
            for test in tests {
                assert!(text.contains(&format!("fn {test}()")), "{name}::{test}");
            }
        }
    }
}
