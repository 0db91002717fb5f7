//! Rules: unsafe code lives in few places; the crates that need none say so to the compiler;
//! every queue has a bound.

use super::{Source, assert_found, assert_none, source};

/// Where unsafe code may be: the kernel's side of the agent, the programs, the layouts and
/// accessors that they share, and the tests' system calls.
const UNSAFE_HOMES: [&str; 4] =
    ["orb8-agent/src/ebpf/", "orb8-common/src/", "orb8-probes/src/", "tests/testbed/src/"];

/// Roots that must forbid it outright.
const FORBIDDING: [&str; 5] = [
    "orb8/src/main.rs",
    "orb8-cli/src/lib.rs",
    "orb8-proto/src/lib.rs",
    "orb8-query/src/lib.rs",
    "orb8-util/src/lib.rs",
];

/// Makers of queues without a bound.
const UNBOUNDED: [&str; 3] = ["unbounded_channel", "mpsc::unbounded", "UnboundedSender"];

fn unsafe_violations(sources: &[Source]) -> Vec<String> {
    sources
        .iter()
        .filter(|source| !UNSAFE_HOMES.iter().any(|home| source.path.starts_with(home)))
        .filter(|source| !source.path.starts_with("orb8-agent/tests/"))
        .flat_map(|source| {
            source
                .lines_with("unsafe")
                .into_iter()
                .map(|line| format!("{}:{line}: unsafe", source.path))
        })
        .collect()
}

fn forbid_violations(sources: &[Source]) -> Vec<String> {
    FORBIDDING
        .iter()
        .filter(|root| {
            !sources.iter().any(|source| {
                source.path == **root && source.code.contains("#![forbid(unsafe_code)]")
            })
        })
        .map(|root| format!("{root} lacks #![forbid(unsafe_code)]"))
        .collect()
}

fn queue_violations(sources: &[Source]) -> Vec<String> {
    sources
        .iter()
        .filter(|source| !source.is_test())
        .flat_map(|source| {
            UNBOUNDED
                .iter()
                .filter(|maker| source.code.contains(*maker))
                .copied()
                .chain(has_channel_without_size(&source.code).then_some("channel()"))
                .map(|maker| format!("{}: {maker} makes a queue without a bound", source.path))
        })
        .collect()
}

/// Whether some `channel()` is made without a size, whatever path it is called by and whether its
/// items' type is named. One that carries one item is no queue.
fn has_channel_without_size(code: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices("channel").any(|(at, word)| {
        let after = without_turbofish(&code[at + word.len()..]);
        let empty = after.strip_prefix('(').is_some_and(|rest| rest.trim_start().starts_with(')'));
        let before = &code[..at];
        let declared = before.trim_end().ends_with("fn");
        empty && !before.ends_with(part) && !before.ends_with("oneshot::") && !declared
    })
}

/// The code behind `::<…>`, if it begins with that.
fn without_turbofish(code: &str) -> &str {
    let Some(inside) = code.trim_start().strip_prefix("::<") else { return code.trim_start() };
    let mut depth = 1_u32;
    for (at, c) in inside.char_indices() {
        match c {
            '<' => depth += 1,
            // The arrow of a function's type closes nothing.
            '>' if inside[..at].ends_with('-') => {}
            '>' if depth == 1 => return inside[at + 1..].trim_start(),
            '>' => depth -= 1,
            _ => {}
        }
    }
    ""
}

#[test]
fn unsafe_code_is_only_where_it_may_be() {
    assert_none(&unsafe_violations(&source::repository()));
}

#[test]
fn crates_without_unsafe_code_forbid_it() {
    assert_none(&forbid_violations(&source::repository()));
}

#[test]
fn every_queue_has_a_bound() {
    assert_none(&queue_violations(&source::repository()));
}

#[test]
fn violations_are_found() {
    let sources = [
        Source::new("orb8-agent/src/network/table.rs", "fn a() { unsafe { b() } } // unsafe"),
        Source::new("orb8-agent/src/ebpf/ring.rs", "fn a() { unsafe { b() } }"),
        Source::new("orb8-util/src/lib.rs", "let (a, b) = mpsc::channel();"),
    ];
    assert_found(&unsafe_violations(&sources), &["orb8-agent/src/network/table.rs:1"]);
    assert_found(&forbid_violations(&sources), &FORBIDDING);
    assert_found(&queue_violations(&sources), &["orb8-util/src/lib.rs: channel()"]);
}

#[test]
fn queues_without_a_size_are_found_in_every_form() {
    for (code, expected) in [
        ("let (a, b) = mpsc::channel();", true),
        ("let (a, b) = mpsc::channel::<Event>();", true),
        ("let (a, b) = std::sync::mpsc::channel::<Vec<Box<dyn Fn() -> u8>>>(\n);", true),
        ("use std::sync::mpsc::channel; let (a, b) = channel();", true),
        ("let (a, b) = tokio::sync::mpsc::unbounded_channel::<u8>();", true),
        ("let (a, b) = mpsc::sync_channel::<u8>(4);", false),
        ("let (a, b) = tokio::sync::mpsc::channel::<u8>(4);", false),
        ("let (a, b) = channel(terms.queue.max(1));", false),
        ("let (a, b) = oneshot::channel::<()>();", false),
        ("let (a, b) = watch::channel(false);", false),
        ("fn channel() -> u8 { 0 }", false),
    ] {
        let found = queue_violations(&[Source::new("orb8-util/src/lib.rs", code)]);
        assert_eq!(!found.is_empty(), expected, "{code}: {found:?}");
    }
}
