//! Rule: the command line builds where there is no Linux. Neither the crates that it uses on
//! macOS nor those that it uses on Linux may be of Linux or of the kernel side only.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

use super::{assert_found, assert_none};

const CLIENTS: [&str; 2] = ["orb8", "orb8-query"];

const PLATFORMS: [&str; 3] =
    ["x86_64-apple-darwin", "aarch64-apple-darwin", "x86_64-unknown-linux-gnu"];

/// Crates of Linux or of the agent, whatever the platform; a trailing `*` stands for any rest.
const BANNED: [&str; 18] = [
    "aya*",
    "caps",
    "capctl",
    "cgroups-rs",
    "genetlink",
    "inotify*",
    "io-uring",
    "libbpf*",
    "libseccomp*",
    "netlink-*",
    "neli*",
    "network-interface",
    "orb8-agent",
    "orb8-common",
    "pcap*",
    "procfs*",
    "rtnetlink",
    "systemd*",
];

fn is_banned(name: &str) -> bool {
    BANNED.iter().any(|banned| match banned.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == *banned,
    })
}

fn violations(platform: &str, tree: &BTreeSet<String>) -> Vec<String> {
    tree.iter()
        .filter(|name| is_banned(name))
        .map(|name| format!("the command line's tree on {platform} has {name}"))
        .collect()
}

/// Names of all crates that the clients need to run on `platform`.
fn tree(metadata: &Metadata) -> BTreeSet<String> {
    let names: BTreeMap<_, _> =
        metadata.packages.iter().map(|package| (&package.id, package.name.as_str())).collect();
    let nodes: BTreeMap<_, _> = metadata
        .resolve
        .iter()
        .flat_map(|resolve| &resolve.nodes)
        .map(|node| (&node.id, node))
        .collect();
    let mut open: Vec<_> =
        names.iter().filter(|(_, name)| CLIENTS.contains(name)).map(|(id, _)| *id).collect();
    let mut seen = BTreeSet::new();
    while let Some(id) = open.pop() {
        if seen.insert(id) {
            let needed = |kind: &DependencyKind| *kind == DependencyKind::Normal;
            open.extend(nodes[id].deps.iter().filter_map(|edge| {
                edge.dep_kinds.iter().any(|info| needed(&info.kind)).then_some(&edge.pkg)
            }));
        }
    }
    seen.into_iter().map(|id| names[id].to_owned()).collect()
}

#[test]
fn the_command_line_has_no_linux_only_crate() {
    for platform in PLATFORMS {
        let metadata = MetadataCommand::new()
            .manifest_path(crate::root().join("Cargo.toml"))
            .other_options(["--filter-platform".to_owned(), platform.to_owned()])
            .exec()
            .expect("cargo metadata");
        let tree = tree(&metadata);
        assert!(tree.contains("orb8-query"), "the tree was not followed: {tree:?}");
        assert_none(&violations(platform, &tree));
    }
}

#[test]
fn linux_only_crates_are_found() {
    let tree = ["aya-obj", "libc", "netlink-sys", "orb8-cli", "rtnetlink"];
    assert_found(
        &violations("x", &tree.into_iter().map(str::to_owned).collect()),
        &["aya-obj", "netlink-sys", "rtnetlink"],
    );
}
