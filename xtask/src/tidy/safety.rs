//! Rules: unsafe code lives in few places; the crates that need none say so to the compiler;
//! every queue has a bound.

use super::{Source, assert_found, assert_none, source};

/// Where unsafe code may be: the kernel's side of the agent, the programs, the layouts and
/// accessors that they share, and the tests' system calls.
const UNSAFE_HOMES: [&str; 4] =
    ["orb8-agent/src/ebpf/", "orb8-common/src/", "orb8-probes/src/", "tests/testbed/src/"];

/// Roots that must forbid it outright.
const FORBIDDING: [&str; 4] =
    ["orb8/src/main.rs", "orb8-cli/src/lib.rs", "orb8-query/src/lib.rs", "orb8-util/src/lib.rs"];

/// Makers of queues without a bound.
const UNBOUNDED: [&str; 4] =
    ["unbounded_channel", "mpsc::channel()", "mpsc::unbounded", "UnboundedSender"];

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
                .map(|maker| format!("{}: {maker} makes a queue without a bound", source.path))
        })
        .collect()
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
    assert_found(&queue_violations(&sources), &["orb8-util/src/lib.rs: mpsc::channel()"]);
}
