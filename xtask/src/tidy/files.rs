//! Rules of form: a file says what it is for, and is short enough to be read at once.

use super::{Source, assert_found, assert_none, source};

const MAX_LINES: usize = 500;
const MAX_MAIN_LINES: usize = 60;

fn violations(sources: &[Source]) -> Vec<String> {
    sources
        .iter()
        .flat_map(|source| {
            let lines = source.lines_without_tests();
            let main = source.path.ends_with("src/main.rs");
            let limit = if main { MAX_MAIN_LINES } else { MAX_LINES };
            let silent = !source.text.starts_with("//!");
            let long = !source.is_test() && lines > limit;
            [
                silent.then(|| format!("{} does not begin with //!", source.path)),
                long.then(|| format!("{} has {lines} lines, more than {limit}", source.path)),
            ]
        })
        .flatten()
        .collect()
}

#[test]
fn files_say_what_they_are_for_and_are_short() {
    let sources = source::repository();
    assert!(sources.len() > 20, "too few files to be true: {}", sources.len());
    assert_none(&violations(&sources));
}

#[test]
fn long_and_silent_files_are_found() {
    let long = |lines: usize| format!("//! a\n{}", "b();\n".repeat(lines));
    let tests = format!("//! a\n#[cfg(test)]\nmod tests {{\n{}}}\n", "b();\n".repeat(600));
    let sources = [
        Source::new("a/src/silent.rs", "fn a() {}\n"),
        Source::new("a/src/long.rs", &long(500)),
        Source::new("a/src/main.rs", &long(60)),
        Source::new("a/src/right.rs", &long(499)),
        Source::new("a/src/tested.rs", &tests),
        Source::new("a/tests/long.rs", &long(800)),
    ];
    assert_found(&violations(&sources), &["silent.rs", "long.rs has 501", "main.rs has 61"]);
}
