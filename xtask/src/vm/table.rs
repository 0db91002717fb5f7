//! What came of every kernel, as a table; and whether that is good enough.
//!
//! How the product stands on a kernel is told in the product's words, from its status.

use std::fmt::Write as _;

use anyhow::bail;
use serde_json::Value;

use super::kernels::Kernel;
use super::packages::Found;
use super::report::{Ran, Report, Skip};
use super::suites::Suite;

/// Skips that are as they should be. Whatever else is skipped is a failure.
const EXPECTED_SKIPS: [Expected; 6] = [
    Expected {
        before: (6, 6),
        says: "the kernel has no tcx hooks",
        why: "it tests the chain of tcx programs, which kernels before 6.6 do not have",
    },
    Expected {
        before: (5, 12),
        says: "the kernel has no compare-and-exchange",
        why: "it tests the caches of flow lines, which kernels before 5.12 cannot have",
    },
    Expected {
        before: (6, 2),
        says: "the kernel has no UDP super-packets of packet sockets",
        why: "it sends UDP super-packets as frames, which kernels before 6.2 refuse",
    },
    Expected {
        before: (6, 6),
        says: "the kernel has no frames above 64 KiB of packet sockets",
        why: "it sends frames above 64 KiB, which kernels before 6.6 refuse",
    },
    Expected {
        before: (6, 11),
        says: "the kernel has no UDP_SEGMENT where the device makes no checksums",
        why: "it sends UDP_SEGMENT where the device makes no checksums, which kernels before 6.11 refuse",
    },
    Expected {
        before: (u32::MAX, 0),
        says: "no scapy.all in",
        why: "it needs Python, which guests do not have",
    },
];

/// A reason for which a test may be skipped on older kernels.
struct Expected {
    /// The first kernel that has what the test needs.
    before: (u32, u32),
    /// What the test says when it skips.
    says: &'static str,
    /// Why that is right.
    why: &'static str,
}

/// One kernel.
#[derive(Clone, Debug)]
pub(super) struct Row {
    name: &'static str,
    outcome: Outcome,
}

#[derive(Clone, Debug)]
enum Outcome {
    NotRun(String),
    Ran { kernel: Found, report: Box<Report>, asked: Vec<String> },
}

impl Row {
    pub(super) const fn not_run(kernel: &Kernel, why: String) -> Self {
        Self { name: kernel.name, outcome: Outcome::NotRun(why) }
    }

    pub(super) fn of(kernel: &Kernel, found: &Found, report: Report, suites: &[Suite]) -> Self {
        let asked = suites.iter().map(|suite| suite.name.clone()).collect();
        let outcome = Outcome::Ran { kernel: found.clone(), report: Box::new(report), asked };
        Self { name: kernel.name, outcome }
    }

    /// Everything that makes this kernel a failure.
    fn failures(&self) -> Vec<String> {
        let Outcome::Ran { kernel, report, asked } = &self.outcome else { return vec![] };
        let mut found = vec![];
        if !report.is_complete {
            found.push(report.end.clone());
        }
        match &report.status {
            None => found.push("the agent said nothing about itself".to_owned()),
            Some(status) if status["healthy"] != true => {
                found.push(format!("the agent: {}", one_line(&status["health_message"])));
            }
            Some(_) => {}
        }
        for name in asked {
            match report.suites.iter().find(|ran| ran.name == *name) {
                None => found.push(format!("{name} did not begin")),
                Some(ran) => found.extend(failures_of(ran, &kernel.release)),
            }
        }
        found
    }
}

fn failures_of(ran: &Ran, release: &str) -> Vec<String> {
    let mut found: Vec<String> =
        ran.failed.iter().map(|test| format!("{}::{test} failed", ran.name)).collect();
    match ran.code {
        Some(0) if !ran.failed.is_empty() || ran.passed > 0 => {}
        Some(0) => found.push(format!("{} has run no test", ran.name)),
        Some(code) if ran.failed.is_empty() => {
            found.push(format!("{} ended with {code} after {} s", ran.name, ran.seconds));
        }
        Some(_) => {}
        None => found.push(format!("{} did not end", ran.name)),
    }
    let unexpected = ran.skipped.iter().filter(|skip| expected(skip, release).is_none());
    found.extend(unexpected.map(|skip| format!("{} was skipped: {}", skip.test, skip.why)));
    found
}

/// Why a skip is as it should be on a kernel.
fn expected(skip: &Skip, release: &str) -> Option<&'static str> {
    let version = version(release)?;
    EXPECTED_SKIPS
        .iter()
        .find(|expected| version < expected.before && skip.why.starts_with(expected.says))
        .map(|expected| expected.why)
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// An error unless every kernel that ran is without failures, one at least ran, and in CI all.
pub(super) fn verdict(rows: &[Row], must_run: bool) -> anyhow::Result<()> {
    let mut failures: Vec<String> = vec![];
    for row in rows {
        if let Outcome::NotRun(why) = &row.outcome
            && must_run
        {
            failures.push(format!("{}: not run: {why}", row.name));
        }
        failures.extend(row.failures().into_iter().map(|why| format!("{}: {why}", row.name)));
    }
    if !rows.iter().any(|row| matches!(row.outcome, Outcome::Ran { .. })) {
        failures.push("no kernel could be booted".to_owned());
    }
    if !failures.is_empty() {
        bail!("{} failures\n  {}", failures.len(), failures.join("\n  "));
    }
    Ok(())
}

/// Codes of what the agent says of a kernel on which packets cost more.
const COSTLIER: [&str; 2] = ["no_line_cache", "owner_by_call"];

/// The table, for a person.
pub(super) fn render(rows: &[Row]) -> String {
    let mut out = String::new();
    for row in rows {
        match &row.outcome {
            Outcome::NotRun(why) => line(&mut out, row.name, &format!("not run: {why}")),
            Outcome::Ran { kernel, report, .. } => {
                line(&mut out, row.name, &kernel.release);
                let boots = if report.booted { "yes" } else { "no" };
                line(&mut out, "  boots", boots);
                for (what, said) in facts(report.status.as_ref()) {
                    line(&mut out, &format!("  {what}"), &said);
                }
                for ran in &report.suites {
                    line(&mut out, &format!("  {}", ran.name), &said_of(ran, &kernel.release));
                }
                for failure in row.failures() {
                    line(&mut out, "  FAILURE", &failure);
                }
            }
        }
    }
    out
}

fn line(out: &mut String, what: &str, said: &str) {
    writeln!(out, "{what:<22} {said}").ok();
}

/// How the agent stands, in its own words.
fn facts(status: Option<&Value>) -> Vec<(&'static str, String)> {
    let Some(status) = status else { return vec![("agent", "said nothing".to_owned())] };
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut found = vec![];
    let healthy = match one_line(&status["health_message"]) {
        why if why.is_empty() => "yes".to_owned(),
        why => format!("no: {why}"),
    };
    found.push(("programs load", healthy));
    let capture = [text(&status["capture"]), text(&status["capture_reason"])].join(", ");
    found.push(("planes", capture));
    let routes = list(&status["interfaces"]).iter().map(route).collect::<Vec<_>>();
    found.push(("tc route", or_none(routes)));
    let socket = list(&status["notices"])
        .iter()
        .filter(|notice| text(&notice["code"]).starts_with("socket_plane"))
        .map(|notice| text(&notice["message"]).to_owned())
        .collect();
    found.push(("socket plane", or_none(socket)));
    let (checks, notices) = (list(&status["checks"]), list(&status["notices"]));
    let not_ok = checks.iter().filter(|check| check["verdict"] != "ok");
    let costlier = notices.iter().filter(|notice| COSTLIER.contains(&text(&notice["code"])));
    let degraded = not_ok
        .map(|check| format!("{}: {}", text(&check["name"]), text(&check["reason"])))
        .chain(costlier.map(|notice| text(&notice["message"]).to_owned()))
        .collect();
    found.push(("degraded", or_none(degraded)));
    found
}

fn route(interface: &Value) -> String {
    format!("{} ({})", text(&interface["attach"]), text(&interface["state"]))
}

fn or_none(words: Vec<String>) -> String {
    if words.is_empty() { "none".to_owned() } else { words.join("; ") }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A text that may have several lines, such as what the verifier says.
fn one_line(value: &Value) -> String {
    text(value).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A suite in a line.
fn said_of(ran: &Ran, release: &str) -> String {
    let really = ran.passed.saturating_sub(ran.skipped.len());
    let mut said = format!("{really} passed, {} failed", ran.failed.len());
    if !ran.skipped.is_empty() {
        let mut reasons: Vec<&str> =
            ran.skipped.iter().map(|skip| expected(skip, release).unwrap_or(&skip.why)).collect();
        reasons.sort_unstable();
        reasons.dedup();
        said += &format!(", {} skipped ({})", ran.skipped.len(), reasons.join("; "));
    }
    format!("{said}, {} s", ran.seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::kernels::KERNELS;
    use crate::vm::report;

    const STATUS: &str = r#"{"healthy": true, "health_message": "", "capture": "both",
        "capture_reason": "because", "interfaces": [{"attach": "clsact", "state": "attached"}],
        "notices": [
            {"code": "socket_plane_attached", "message": "attached to the sockets"},
            {"code": "no_line_cache", "message": "all CPUs count in one table"}
        ],
        "checks": [{"name": "btf", "verdict": "ok"},
            {"name": "memlock", "verdict": "warning", "reason": "it is small"}]}"#;

    fn row(release: &str, said: &str) -> Row {
        let kernel = Found {
            release: release.to_owned(),
            packages: String::new(),
            image: "/vmlinuz".into(),
            modules: "/modules".into(),
        };
        let suites = [Suite { name: "kernel_a".to_owned(), program: "/a".into(), tests: &[] }];
        let said = format!("@@boot 1 {release}\n@@status 1\n{STATUS}\n@@status-end 0 2\n{said}");
        Row::of(&KERNELS[0], &kernel, report::parse(&said), &suites)
    }

    const GOOD: &str = "@@suite kernel_a 2\ntest one ... ok\n@@suite-end kernel_a 0 3\n@@end 3\n";
    const SKIPPED: &str = "@@suite kernel_a 2\nSKIP kernel_a::x: the kernel has no tcx hooks (e)\n\
                           test x ... ok\n@@suite-end kernel_a 0 3\n@@end 3\n";

    #[test]
    fn a_row_says_what_the_agent_says() {
        let text = render(&[row("5.10.0-1", SKIPPED)]);
        for part in [
            "5.10.0-1",
            "programs load        yes",
            "clsact (attached)",
            "both, because",
            "attached to the sockets",
            "memlock: it is small; all CPUs count in one table",
            "0 passed, 0 failed, 1 skipped (it tests the chain of tcx programs",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn a_skip_is_expected_only_where_the_kernel_lacks_what_it_names() {
        assert!(verdict(&[row("5.10.0-1", SKIPPED)], true).is_ok());
        assert!(verdict(&[row("6.5.1", SKIPPED)], true).is_ok());
        let error = verdict(&[row("6.6.1", SKIPPED)], false).expect_err("6.6 has it").to_string();
        assert!(error.contains("kernel_a::x was skipped"), "{error}");
        let other = SKIPPED.replace("the kernel has no tcx hooks", "ip is not in PATH");
        assert!(verdict(&[row("5.10.0-1", &other)], false).is_err());
    }

    #[test]
    fn whatever_did_not_pass_is_a_failure_and_is_named() {
        assert!(verdict(&[row("6.12.1", GOOD)], true).is_ok());
        for (said, named) in [
            ("@@end 3\n", "kernel_a did not begin"),
            ("@@suite kernel_a 2\n@@end 3\n", "kernel_a did not end"),
            ("@@suite kernel_a 2\n@@suite-end kernel_a 124 9\n@@end 9\n", "ended with 124 after 7"),
            ("@@suite kernel_a 2\n@@suite-end kernel_a 0 9\n@@end 9\n", "has run no test"),
            (&GOOD.replace("... ok", "... FAILED"), "kernel_a::one failed"),
            (&GOOD.replace("@@end 3\n", ""), "1 failures"),
        ] {
            let error = verdict(&[row("6.12.1", said)], false).expect_err(named).to_string();
            assert!(error.contains(named), "{named}: {error}");
        }
    }

    #[test]
    fn a_kernel_that_was_not_run_is_a_failure_where_it_must_run() {
        let absent = |index: usize| Row::not_run(&KERNELS[index], "no mirror".to_owned());
        let rows = [row("6.12.1", GOOD), absent(0)];
        assert!(verdict(&rows, false).is_ok());
        let error = verdict(&rows, true).expect_err("5.10 must run").to_string();
        assert!(error.contains("5.10: not run: no mirror"), "{error}");
        assert!(verdict(&[absent(1)], false).is_err(), "nothing ran at all");
        assert!(render(&rows).contains("not run: no mirror"));
    }
}
