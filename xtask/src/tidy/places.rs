//! Rules of one place per idea: the environment, errors without a type, and the middle of the
//! pipeline, which knows neither the world nor the time.

use super::{Source, assert_none, source};

/// A rule about who may write certain words.
struct Place {
    /// Files that it speaks of, by the start of their path.
    within: &'static [&'static str],
    /// Files that may, by the end of their path or a folder in it.
    homes: &'static [&'static str],
    words: &'static [&'static str],
    why: &'static str,
}

const PLACES: [Place; 3] = [
    Place {
        within: &["orb8", "tests/testbed/src/lib.rs"],
        homes: &["/config.rs", "/args.rs", "/build.rs", "/build/probes.rs", "/need.rs"],
        words: &[
            "env::var",
            "env::var_os",
            "env::vars",
            "env::vars_os",
            "env::set_var",
            "from_default_env",
            "try_from_default_env",
        ],
        why: "the environment is read in config.rs or args.rs",
    },
    Place {
        within: &["orb8"],
        homes: &["/main.rs"],
        words: &["anyhow"],
        why: "an error has a type of its own everywhere but in main.rs, xtask and tests",
    },
    Place {
        within: &[
            "orb8-agent/src/pipeline/filter.rs",
            "orb8-agent/src/pipeline/enricher.rs",
            "orb8-agent/src/pipeline/processor.rs",
            "orb8-agent/src/pipeline/ledger.rs",
            "orb8-agent/src/network/",
        ],
        homes: &[],
        words: &[
            "Instant::now",
            "SystemTime",
            "elapsed",
            "clock_gettime",
            "fs",
            "io",
            "os::fd",
            "os::unix",
            "File",
            "OpenOptions",
            "stdin",
            "stdout",
            "stderr",
            "print",
            "println",
            "eprint",
            "eprintln",
            "Command",
            "std::process",
            "thread",
            "TcpListener",
            "TcpStream",
            "ToSocketAddrs",
            "UdpSocket",
            "UnixDatagram",
            "UnixListener",
            "UnixStream",
            "libc",
            "rustix",
            "tokio",
        ],
        why: "the middle of the pipeline does no I/O and is told the time",
    },
];

fn violations(sources: &[Source], places: &[Place]) -> Vec<String> {
    let mut found = vec![];
    for place in places {
        for source in sources.iter().filter(|source| place.binds(source)) {
            for word in place.words {
                for line in source.lines_with(word) {
                    found.push(format!("{}:{line}: `{word}`: {}", source.path, place.why));
                }
            }
        }
    }
    found
}

impl Place {
    fn binds(&self, source: &Source) -> bool {
        self.within.iter().any(|start| source.path.starts_with(start))
            && !self.homes.iter().any(|home| source.path.ends_with(home))
            && !source.is_test()
    }
}

#[test]
fn every_idea_has_one_place() {
    assert_none(&violations(&source::repository(), &PLACES));
}

#[test]
fn words_out_of_place_are_found() {
    let sources = [
        Source::new("orb8-agent/src/agent.rs", "let a = std::env::var(\"A\");"),
        Source::new("orb8-agent/src/config.rs", "let a = std::env::var(\"A\");"),
        Source::new("orb8-agent/src/network/table.rs", "let now = Instant::now();"),
        Source::new("orb8-agent/src/network/filter.rs", "use std::{fs, net::IpAddr};"),
        Source::new("orb8-agent/src/network/keys.rs", "let a = std::io::stdin().lines();"),
        Source::new("orb8-agent/src/pipeline/ledger.rs", "TcpListener::bind(a)?;"),
        Source::new("orb8-agent/src/pipeline/processor.rs", "use std::net::{IpAddr, UdpSocket};"),
        Source::new("orb8-agent/src/pipeline/enricher.rs", "File::open(a)?"),
        Source::new("orb8-agent/src/pipeline/filter.rs", "profile.ratio(process)"),
        Source::new("orb8-agent/src/pipeline/runner.rs", "use std::fs;"),
        Source::new("orb8-agent/src/host.rs", "fn a() -> anyhow::Result<()> { b() }"),
        Source::new("orb8-agent/src/main.rs", "fn a() -> anyhow::Result<()> { b() }"),
        Source::new("xtask/src/main.rs", "let a = std::env::var(\"A\");"),
    ];
    assert_eq!(
        violations(&sources, &PLACES)
            .iter()
            .filter_map(|found| Some(found.split_once(": `")?.1.split_once('`')?.0))
            .collect::<Vec<_>>(),
        [
            "env::var",
            "anyhow",
            "Instant::now",
            "fs",
            "io",
            "stdin",
            "TcpListener",
            "UdpSocket",
            "File",
        ],
    );
}
