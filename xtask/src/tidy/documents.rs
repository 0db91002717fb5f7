//! Rules about the documents: what they name exists, and the way through the code that
//! ARCHITECTURE.md shows is there.

use std::path::Path;

use super::{assert_found, assert_none, source};

const ARCHITECTURE: &str = "docs/ARCHITECTURE.md";
const MAX_ARCHITECTURE_LINES: usize = 400;

/// The heading whose table leads from station to file.
const LINE_HEADING: &str = "## The straight line";

/// Files named in backticks in the last column of the table under the heading.
fn stations(text: &str) -> Vec<String> {
    let section = text.split_once(LINE_HEADING).map_or("", |(_, section)| section);
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
    section
        .lines()
        .filter(|line| line.starts_with('|'))
        .filter_map(|line| line.trim_end_matches('|').rsplit('|').next())
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .map(str::to_owned)
        .collect()
}

/// Relative targets of the links in a Markdown text.
fn links(text: &str) -> Vec<String> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target.split('#').next().unwrap_or_default().to_owned())
        .filter(|target| !target.is_empty() && !target.contains("://"))
        .collect()
}

/// What stands before a fenced block that repeats lines of a golden file.
const GOLDEN: &str = "<!-- golden: ";

/// Lines of the document's examples that the golden files they come from do not have, in order.
fn invented(document: &str, text: &str, read: impl Fn(&str) -> String) -> Vec<String> {
    let mut found = vec![];
    for example in text.split(GOLDEN).skip(1) {
        let (path, rest) = example.split_once(" -->").unwrap_or_default();
        let block = rest.split("```").nth(1).unwrap_or_default();
        let golden = read(path);
        let mut lines = golden.lines();
        // The first line of a block is its language.
        for line in block.lines().skip(1) {
            if !lines.any(|golden| golden == line) {
                found.push(format!("{document}: not in {path}: {line}"));
            }
        }
    }
    found
}

fn absent(document: &str, named: Vec<String>, exists: impl Fn(&str) -> bool) -> Vec<String> {
    named
        .into_iter()
        .filter(|path| !exists(path))
        .map(|path| format!("{document} names {path}, which does not exist"))
        .collect()
}

fn read(document: &str) -> String {
    std::fs::read_to_string(crate::root().join(document)).expect("read a document")
}

#[test]
fn every_station_of_the_straight_line_is_a_file() {
    let text = read(ARCHITECTURE);
    let stations = stations(&text);
    assert!(stations.len() >= 10, "the table was not found: {stations:?}");
    assert_none(&absent(ARCHITECTURE, stations, |path| crate::root().join(path).is_file()));
    let lines = text.lines().count();
    assert!(lines <= MAX_ARCHITECTURE_LINES, "{ARCHITECTURE} has {lines} lines");
}

#[test]
fn links_between_documents_lead_somewhere() {
    for document in source::files(".md") {
        let folder = Path::new(&document).parent().unwrap_or(Path::new(""));
        let exists = |target: &str| crate::root().join(folder).join(target).exists();
        assert_none(&absent(&document, links(&read(&document)), exists));
    }
}

#[test]
fn examples_are_what_is_really_printed() {
    let mut examples = 0;
    for document in source::files(".md") {
        let text = read(&document);
        examples += text.matches(GOLDEN).count();
        assert_none(&invented(&document, &text, read));
    }
    assert!(examples >= 2, "only {examples} examples");
}

#[test]
fn every_target_of_the_makefile_says_what_it_does() {
    let silent: Vec<String> = read("Makefile")
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
        .filter(|line| line.contains(':') && !line.contains("## "))
        .map(str::to_owned)
        .collect();
    assert_none(&silent);
}

#[test]
fn invented_examples_are_found() {
    let text = format!("{GOLDEN}x.snap -->\n\n```text\na\nc\n```\n{GOLDEN}y -->\n```text\nd\n```");
    let found =
        invented("doc", &text, |path| if path == "y" { "e" } else { "a\nb\nc\n" }.to_owned());
    assert_found(&found, &["not in y: d"]);
    let swapped = text.replace("a\nc", "c\na");
    assert_found(&invented("doc", &swapped, |_| "a\nb\nc\nd".to_owned()), &["not in x.snap: a"]);
}

#[test]
fn absent_files_are_found() {
    let text =
        format!("{LINE_HEADING}\n| a `x` | `here.rs`, `gone.rs` |\n## Next\n| | `no.rs` |\n");
    let found = absent("doc", stations(&text), |path| path == "here.rs");
    assert_found(&found, &["gone.rs"]);
    let found = absent("doc", links("[a](b.md#c) [d](https://e) [f](#g)"), |_| false);
    assert_found(&found, &["b.md"]);
}
