//! Rule inside the agent: a feature is named by itself and by the composition root, by nobody
//! else, be it a layer, another feature or a file beside them.

use super::{Source, assert_found, assert_none, source};

const FEATURES: [&str; 5] = ["network", "dns", "syscall", "process", "gpu"];
const ROOT: &str = "orb8-agent/src/";

/// Files that may name any feature, and why.
const FREE: [(&str, &str); 3] = [
    ("agent.rs", "the composition root puts the parts together"),
    ("testing.rs", "makes the keys of invented flows; only tests and benches run it"),
    ("testing/drains.rs", "puts the stages together around invented flows, for the same"),
];

fn violations(sources: &[Source]) -> Vec<String> {
    sources
        .iter()
        .filter(|source| !source.is_test())
        .filter_map(|source| Some((source, source.path.strip_prefix(ROOT)?)))
        .filter(|(_, inside)| !FREE.iter().any(|(free, _)| free == inside))
        .flat_map(|(source, inside)| {
            let home = inside.split(['/', '.']).next().unwrap_or_default();
            modules_named(source, inside)
                .into_iter()
                // Behind a `*` the features could be named without a path.
                .filter(move |used| used != home && (FEATURES.contains(&&**used) || used == "*"))
                .map(|used| format!("{}: `{home}` must not use `{used}`", source.path))
                .collect::<Vec<_>>()
        })
        .collect()
}

/// First segments of the paths that start at the crate's root, under whatever name.
fn modules_named(source: &Source, inside: &str) -> Vec<String> {
    let depth = inside.split('/').count() - usize::from(inside.ends_with("/mod.rs"));
    let to_root = "super::".repeat(depth);
    // In the root itself a path needs no prefix; `main.rs` is a crate beside it.
    let at_root: &[&str] = if inside == "lib.rs" { &["self::", "use "] } else { &[] };
    ["crate::", "orb8_agent::", to_root.as_str()]
        .into_iter()
        .chain(at_root.iter().copied())
        .flat_map(|start| after(&source.code, start))
        .flat_map(first_segments)
        .collect()
}

/// What follows each occurrence of `start` that is a path's beginning.
fn after<'a>(code: &'a str, start: &'a str) -> impl Iterator<Item = &'a str> {
    code.match_indices(start).filter_map(move |(at, _)| {
        let before = code[..at].chars().next_back();
        let begins = !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':');
        begins.then(|| &code[at + start.len()..])
    })
}

/// The first segment of a path, or of each path of a braced group; `*` is a segment too.
pub(super) fn first_segments(path: &str) -> Vec<String> {
    let segment = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || "_*".contains(*c)).collect()
    };
    let Some(group) = path.strip_prefix('{') else { return vec![segment(path)] };
    let mut depth = 0_u32;
    let mut starts = vec![0];
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => starts.push(at + 1),
            _ => {}
        }
    }
    starts.into_iter().map(|at| segment(&group[at..])).collect()
}

#[test]
fn only_the_composition_root_names_features() {
    let sources = source::repository();
    assert_none(&violations(&sources));
    for (free, why) in FREE {
        let path = format!("{ROOT}{free}");
        assert!(sources.iter().any(|source| source.path == path), "{path} is gone: {why}");
    }
}

#[test]
fn imports_of_features_are_found_in_every_form() {
    let file = |path: &str, code: &str| Source::new(&format!("{ROOT}{path}"), code);
    let sources = [
        file("agent.rs", "use crate::network::table;"),
        file("dns/table.rs", "use crate::network::table;"),
        file("export/grpc.rs", "use crate::{event::Event, pipeline::{a, b}, network};"),
        file("pipeline/mod.rs", "fn a() { super::gpu::poll() }"),
        file("ebpf/ring.rs", "use super::super::syscall;"),
        file(
            "network/wire.rs",
            "use crate::network::table; use crate::pipeline::source; // crate::dns",
        ),
        file("network/mod.rs", "use super::event;\nuse self::dns_names;"),
        file("status.rs", "use crate::network::table;"),
        file("clock.rs", "use crate::*;"),
        file("host.rs", "fn a() { crate::gpu::poll() }"),
        file("lib.rs", "pub mod network;\npub use network::table;"),
        file("main.rs", "use orb8_agent::{agent, dns};"),
        file("testing.rs", "use crate::network::keys;"),
        file("testing/more.rs", "use crate::network::keys;"),
        file("export/hub/tests.rs", "use crate::network::keys;"),
        Source::new("orb8-cli/src/lib.rs", "use crate::network::table;"),
    ];
    assert_found(
        &violations(&sources),
        &[
            "dns/table.rs: `dns` must not use `network`",
            "export/grpc.rs: `export` must not use `network`",
            "pipeline/mod.rs: `pipeline` must not use `gpu`",
            "ebpf/ring.rs: `ebpf` must not use `syscall`",
            "status.rs: `status` must not use `network`",
            "clock.rs: `clock` must not use `*`",
            "host.rs: `host` must not use `gpu`",
            "lib.rs: `lib` must not use `network`",
            "main.rs: `main` must not use `dns`",
            "testing/more.rs: `testing` must not use `network`",
        ],
    );
}
