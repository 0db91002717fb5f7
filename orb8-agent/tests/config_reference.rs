//! Holds `docs/config.md` to the settings that the agent really reads. `make generate` writes it.

use std::fmt::Write as _;
use std::path::Path;

use orb8_agent::config::{Setting, reference};

const HEAD: &str = "\
# Settings of the agent

Each setting is a flag and an environment variable; the flag wins. A bad value ends the agent with exit
code 2 before it does anything. `orb8-agent --print-config` shows the values in force and where each comes
from.

<!-- Written by `make generate` from orb8-agent/src/config.rs; do not edit. -->

| variable | flag | default | values | what it does |
|---|---|---|---|---|
";

fn page(settings: &[Setting]) -> String {
    let mut page = HEAD.to_owned();
    for Setting { flag, env, default, range, doc } in settings {
        let doc = doc.replace('\n', " ").replace('|', "\\|");
        // A default that is found out is told in words.
        let default = if default.contains(' ') { default.clone() } else { format!("`{default}`") };
        writeln!(page, "| `{env}` | `{flag}` | {default} | {range} | {doc} |")
            .expect("a String takes every text");
    }
    page
}

#[test]
#[expect(clippy::disallowed_methods, reason = "how `make generate` asks to write the page")]
fn the_reference_lists_the_settings_that_are_read() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/config.md");
    let page = page(&reference());
    if std::env::var_os("ORB8_GENERATE").is_some() {
        std::fs::write(&path, &page).expect("write the page");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "docs/config.md is stale: run `make generate`\n{page}");
}
