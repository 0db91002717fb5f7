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
fn absent_files_are_found() {
    let text =
        format!("{LINE_HEADING}\n| a `x` | `here.rs`, `gone.rs` |\n## Next\n| | `no.rs` |\n");
    let found = absent("doc", stations(&text), |path| path == "here.rs");
    assert_found(&found, &["gone.rs"]);
    let found = absent("doc", links("[a](b.md#c) [d](https://e) [f](#g)"), |_| false);
    assert_found(&found, &["b.md"]);
}
