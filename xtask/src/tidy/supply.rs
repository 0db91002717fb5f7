//! Rules about other people's crates, also where cargo-deny is not installed: licences from the
//! list in `deny.toml`, one registry, none of its banned crates and no second copy of the big ones.

use std::collections::BTreeMap;

use cargo_metadata::{MetadataCommand, Source};

use super::{assert_found, assert_none};

/// What `deny.toml` says.
struct Rules {
    licences: Vec<String>,
    /// Crates of which two versions would mean two runtimes, two wire codecs or two TLS stacks.
    single: Vec<String>,
    /// Crates of which there may be none.
    banned: Vec<String>,
}

/// A dependency: name, version, licence, source; no source means a path.
struct Crate {
    name: String,
    version: String,
    licence: String,
    source: Option<Source>,
}

fn violations(crates: &[Crate], rules: &Rules) -> Vec<String> {
    let mut found = vec![];
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for Crate { name, version, licence, source } in crates {
        versions.entry(name).or_default().push(version);
        if rules.banned.contains(name) {
            found.push(format!("{name} {version}: banned"));
        }
        if !licence_is_allowed(licence, &rules.licences) {
            found.push(format!("{name} {version}: licence `{licence}` is not allowed"));
        }
        if source.as_ref().is_some_and(|source| !source.is_crates_io()) {
            found.push(format!("{name} {version}: not from the public registry"));
        }
    }
    let twice = versions
        .iter()
        .filter(|(name, all)| rules.single.iter().any(|single| single == *name) && all.len() > 1);
    found.extend(twice.map(|(name, all)| format!("{name}: {} at once", all.join(" and "))));
    found
}

/// Whether an SPDX expression can be met with the allowed licences alone. `AND` binds stronger
/// than `OR`; old manifests write `/` for `OR`.
fn licence_is_allowed(expression: &str, allowed: &[String]) -> bool {
    let text = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = text.split_whitespace().collect();
    let (met, rest) = any_of(&words, allowed);
    met && rest.is_empty()
}

fn any_of<'a>(words: &'a [&'a str], allowed: &[String]) -> (bool, &'a [&'a str]) {
    let (mut met, mut rest) = all_of(words, allowed);
    while let ["OR", more @ ..] = rest {
        let (also, behind) = all_of(more, allowed);
        (met, rest) = (met || also, behind);
    }
    (met, rest)
}

fn all_of<'a>(words: &'a [&'a str], allowed: &[String]) -> (bool, &'a [&'a str]) {
    let (mut met, mut rest) = one(words, allowed);
    while let ["AND", more @ ..] = rest {
        let (also, behind) = one(more, allowed);
        (met, rest) = (met && also, behind);
    }
    (met, rest)
}

fn one<'a>(words: &'a [&'a str], allowed: &[String]) -> (bool, &'a [&'a str]) {
    let known = |name: &str| allowed.iter().any(|allowed| allowed == name);
    match words {
        ["(", inner @ ..] => match any_of(inner, allowed) {
            (met, [")", rest @ ..]) => (met, rest),
            (_, rest) => (false, rest),
        },
        [name, "WITH", exception, rest @ ..] => (known(&format!("{name} WITH {exception}")), rest),
        [name, rest @ ..] => (known(name), rest),
        [] => (false, words),
    }
}

/// The rules in the text of `deny.toml`: the quoted words of its list of licences, and its entries
/// of crates, one a line.
fn rules_of(deny: &str) -> Rules {
    let list = deny.split_once("\nallow = [").map_or("", |(_, list)| list);
    let list = list.split_once(']').map_or("", |(list, _)| list);
    let licences = list.split('"').skip(1).step_by(2).map(str::to_owned).collect();
    let entries = deny.lines().filter_map(|line| {
        let (name, rest) = line.trim_start().strip_prefix("{ crate = \"")?.split_once('"')?;
        Some((name.to_owned(), rest.contains("deny-multiple-versions = true")))
    });
    let (single, banned): (Vec<_>, Vec<_>) = entries.partition(|(_, single)| *single);
    let names = |entries: Vec<(String, bool)>| entries.into_iter().map(|(name, _)| name).collect();
    Rules { licences, single: names(single), banned: names(banned) }
}

#[test]
fn crates_come_from_one_place_with_known_licences_and_the_big_ones_once() {
    let deny = std::fs::read_to_string(crate::root().join("deny.toml")).expect("read deny.toml");
    let rules = rules_of(&deny);
    assert!(!rules.licences.is_empty(), "deny.toml has no list of licences");
    assert!(!rules.single.is_empty(), "deny.toml names no crate of which there must be one copy");
    assert!(!rules.banned.is_empty(), "deny.toml bans no crate");
    for manifest in ["Cargo.toml", "orb8-probes/Cargo.toml"] {
        let metadata = MetadataCommand::new()
            .manifest_path(crate::root().join(manifest))
            .other_options(["--filter-platform".to_owned(), "x86_64-unknown-linux-gnu".to_owned()])
            .exec()
            .expect("cargo metadata");
        let crates: Vec<Crate> = metadata
            .packages
            .into_iter()
            .map(|package| Crate {
                name: package.name.to_string(),
                version: package.version.to_string(),
                licence: package.license.unwrap_or_default(),
                source: package.source,
            })
            .collect();
        assert_none(&violations(&crates, &rules));
    }
}

#[test]
fn strange_licences_sources_and_second_copies_are_found() {
    let dependency = |name: &str, version: &str, licence: &str, source: Option<&str>| Crate {
        name: name.to_owned(),
        version: version.to_owned(),
        licence: licence.to_owned(),
        source: source.map(|repr| Source { repr: repr.to_owned() }),
    };
    let crates = [
        dependency("odd", "1.0.0", "GPL-3.0-only", None),
        dependency("far", "1.0.0", "MIT", Some("git+https://example.org/far")),
        dependency("openssl-sys", "1.0.0", "MIT", None),
        dependency("hyper", "0.14.0", "MIT", None),
        dependency("hyper", "1.0.0", "MIT", None),
    ];
    let rules = rules_of(
        r#"[licenses]
allow = ["MIT"]
[bans]
deny = [
    { crate = "hyper", deny-multiple-versions = true, reason = "one" },
    { crate = "openssl-sys", reason = "none" },
]"#,
    );
    assert_found(
        &violations(&crates, &rules),
        &[
            "odd 1.0.0: licence",
            "far 1.0.0: not from",
            "openssl-sys 1.0.0: banned",
            "hyper: 0.14.0 and 1.0.0",
        ],
    );
}

#[test]
fn licence_expressions_are_read() {
    let allowed: Vec<String> =
        ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned).to_vec();
    for (expression, expected) in [
        ("MIT", true),
        ("MIT OR GPL-2.0", true),
        ("GPL-2.0/MIT", true),
        ("MIT AND GPL-2.0", false),
        ("(MIT OR GPL-2.0) AND Apache-2.0", true),
        ("(GPL-2.0 OR MPL-2.0) AND MIT", false),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("MIT WITH strange-exception", false),
        ("(MIT", false),
        ("", false),
    ] {
        assert_eq!(licence_is_allowed(expression, &allowed), expected, "{expression}");
    }
}
