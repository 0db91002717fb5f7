//! Rules inside the agent: features never import features, layers never import features; the
//! composition root alone knows them all.

use super::{Source, assert_found, assert_none, source};

const FEATURES: [&str; 5] = ["network", "dns", "syscall", "process", "gpu"];
const LAYERS: [&str; 4] = ["pipeline", "ebpf", "k8s", "export"];
const ROOT: &str = "orb8-agent/src/";

fn violations(sources: &[Source]) -> Vec<String> {
    sources
        .iter()
        .filter(|source| !source.is_test())
        .flat_map(|source| {
            let inside = source.path.strip_prefix(ROOT).unwrap_or_default();
            let home = inside.split(['/', '.']).next().unwrap_or_default();
            let bound = FEATURES.contains(&home) || LAYERS.contains(&home);
            modules_named(source, inside)
                .into_iter()
                .filter(move |used| bound && used != home && FEATURES.contains(&used.as_str()))
                .map(|used| format!("{}: `{home}` must not use `{used}`", source.path))
                .collect::<Vec<_>>()
        })
        .collect()
}

/// First segments of the paths that start at the crate's root.
fn modules_named(source: &Source, inside: &str) -> Vec<String> {
    let depth = inside.split('/').count() - usize::from(inside.ends_with("/mod.rs"));
    let to_root = "super::".repeat(depth);
    ["crate::", to_root.as_str()]
        .into_iter()
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

/// The first segment of a path, or of each path of a braced group.
fn first_segments(path: &str) -> Vec<String> {
    let segment = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
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
fn features_and_layers_do_not_import_features() {
    assert_none(&violations(&source::repository()));
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
    ];
    assert_found(
        &violations(&sources),
        &[
            "dns/table.rs: `dns` must not use `network`",
            "export/grpc.rs: `export` must not use `network`",
            "pipeline/mod.rs: `pipeline` must not use `gpu`",
            "ebpf/ring.rs: `ebpf` must not use `syscall`",
        ],
    );
}
