//! Rule: which crate of ours may depend on which. Tests (dev-dependencies) may reach further,
//! but no crate outside the agent may reach the agent. What is named by path is named by version
//! too.

use cargo_metadata::semver::VersionReq;
use cargo_metadata::{DependencyKind, MetadataCommand, Package};

use super::{assert_found, assert_none};

/// Crates of the house and the crates of the house that each may name.
const ALLOWED: [(&str, &[&str]); 10] = [
    ("orb8", &["orb8-cli"]),
    ("orb8-agent", &["orb8-common", "orb8-filter", "orb8-proto", "orb8-util"]),
    ("orb8-cli", &["orb8-proto", "orb8-query", "orb8-util"]),
    ("orb8-common", &[]),
    ("orb8-filter", &["orb8-proto", "orb8-util"]),
    ("orb8-probes", &["orb8-common"]),
    ("orb8-proto", &[]),
    ("orb8-query", &["orb8-filter", "orb8-proto", "orb8-util"]),
    ("orb8-util", &[]),
    ("xtask", &[]),
];

/// Crates that only tests see.
const TESTS_ONLY: [&str; 1] = ["orb8-testbed"];

/// The one crate that needs root and the kernel; clients are tested against doubles.
const AGENT: &str = "orb8-agent";

fn violations(edges: &[(String, String, DependencyKind)]) -> Vec<String> {
    edges
        .iter()
        .filter(|(from, to, kind)| {
            let test_reaches_agent = to == AGENT && !TESTS_ONLY.contains(&from.as_str());
            match kind {
                DependencyKind::Development => test_reaches_agent,
                _ => !TESTS_ONLY.contains(&from.as_str()) && !may(from, to),
            }
        })
        .map(|(from, to, kind)| format!("{from} must not depend on {to} ({kind:?})"))
        .collect()
}

fn may(from: &str, to: &str) -> bool {
    ALLOWED.iter().any(|(name, allowed)| *name == from && allowed.contains(&to))
}

/// Edges between crates that live in this repository: dependencies by path.
fn edges(packages: &[Package]) -> Vec<(String, String, DependencyKind)> {
    packages
        .iter()
        .flat_map(|package| {
            package
                .dependencies
                .iter()
                .filter(|dependency| dependency.path.is_some())
                .map(|to| (package.name.to_string(), to.name.clone(), to.kind))
        })
        .collect()
}

/// Dependencies by path that have no version: a crate that has one cannot be packaged.
fn without_version<'a>(
    dependencies: impl IntoIterator<Item = (&'a str, &'a str, &'a VersionReq)>,
) -> Vec<String> {
    dependencies
        .into_iter()
        .filter(|(_, _, version)| version.comparators.is_empty())
        .map(|(from, to, _)| format!("{from} depends on {to} by path alone, add its version"))
        .collect()
}

fn packages(manifest: &str) -> Vec<Package> {
    MetadataCommand::new()
        .manifest_path(crate::root().join(manifest))
        .no_deps()
        .exec()
        .expect("cargo metadata")
        .packages
}

#[test]
fn crates_depend_only_on_what_is_allowed() {
    let mut found = edges(&packages("Cargo.toml"));
    found.extend(edges(&packages("orb8-probes/Cargo.toml")));
    assert!(found.len() >= 5, "too few edges to be true: {found:?}");
    assert_none(&violations(&found));
}

#[test]
fn every_crate_of_the_workspace_has_a_rule() {
    let unknown: Vec<String> = packages("Cargo.toml")
        .iter()
        .map(|package| package.name.to_string())
        .filter(|name| !ALLOWED.iter().any(|(known, _)| known == name))
        .filter(|name| !TESTS_ONLY.contains(&name.as_str()))
        .collect();
    assert_none(&unknown);
}

#[test]
fn dependencies_by_path_have_a_version() {
    let packages = packages("Cargo.toml");
    let by_path = packages.iter().flat_map(|package| {
        let ours = package.dependencies.iter().filter(|dependency| dependency.path.is_some());
        ours.map(|to| (package.name.as_str(), to.name.as_str(), &to.req))
    });
    assert_none(&without_version(by_path));
    let (any, some) = (VersionReq::STAR, VersionReq::parse("0.1.0").expect("a version"));
    assert_found(
        &without_version([("orb8", "orb8-cli", &any), ("orb8-cli", "orb8-util", &some)]),
        &["orb8 depends on orb8-cli by path alone"],
    );
}

#[test]
fn forbidden_edges_are_found() {
    let edge = |from: &str, to: &str, kind| (from.to_owned(), to.to_owned(), kind);
    let edges = [
        edge("orb8-cli", "orb8-agent", DependencyKind::Normal),
        edge("orb8-cli", "orb8-query", DependencyKind::Normal),
        edge("orb8-proto", "orb8-util", DependencyKind::Build),
        edge("orb8-probes", "orb8-util", DependencyKind::Normal),
        edge("orb8-query", "orb8-testbed", DependencyKind::Normal),
        edge("orb8-query", "orb8-testbed", DependencyKind::Development),
        edge("orb8-query", "orb8-agent", DependencyKind::Development),
    ];
    assert_found(
        &violations(&edges),
        &[
            "orb8-cli must not depend on orb8-agent",
            "orb8-proto must not depend on orb8-util",
            "orb8-probes must not depend on orb8-util",
            "orb8-query must not depend on orb8-testbed",
            "orb8-query must not depend on orb8-agent",
        ],
    );
}
