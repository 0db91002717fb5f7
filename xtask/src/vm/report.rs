//! What a guest said: marks at the start of a line, the agent's status as JSON between two of
//! them, and the tests' own words between two others.

use serde_json::Value;

/// What came of one boot.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Report {
    /// The kernel booted and the guest's first program ran.
    pub(super) booted: bool,
    /// What the agent said about itself; none if it said nothing that can be read.
    pub(super) status: Option<Value>,
    /// The suites that began, in their order.
    pub(super) suites: Vec<Ran>,
    /// The guest came to its end by itself.
    pub(super) is_complete: bool,
    /// Why it did not, with its last lines.
    pub(super) end: String,
}

/// A suite that began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ran {
    /// Its name.
    pub(super) name: String,
    /// What its program ended with; none if it never ended.
    pub(super) code: Option<i32>,
    /// For how many seconds.
    pub(super) seconds: u64,
    /// Tests that passed, the skipped ones among them.
    pub(super) passed: usize,
    /// Names of the tests that failed.
    pub(super) failed: Vec<String>,
    /// Tests that were skipped.
    pub(super) skipped: Vec<Skip>,
}

/// A skipped test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Skip {
    /// Its name.
    pub(super) test: String,
    /// Why.
    pub(super) why: String,
}

/// A word at the start of a line that is meant for the host.
const MARK: &str = "@@";

/// Reads everything that a guest said.
pub(super) fn parse(said: &str) -> Report {
    let mut report = Report::default();
    let mut status: Option<String> = None;
    let mut began = 0;
    for line in said.lines().map(|line| line.trim_end_matches('\r')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["@@boot", ..] => report.booted = true,
            ["@@status", ..] => status = Some(String::new()),
            ["@@status-end", ..] => {
                let text = status.take().unwrap_or_default();
                report.status = serde_json::from_str(&text).ok();
            }
            ["@@suite", name, time] => {
                began = seconds(time);
                report.suites.push(Ran { name: (*name).to_owned(), ..Ran::default() });
            }
            ["@@suite-end", _, code, time] => {
                if let Some(ran) = report.suites.last_mut() {
                    ran.code = code.parse().ok();
                    ran.seconds = seconds(time).saturating_sub(began);
                }
            }
            ["@@end", ..] => report.is_complete = true,
            _ => match (&mut status, report.suites.last_mut()) {
                (Some(text), _) => *text += line,
                (None, Some(ran)) => ran.read(line),
                (None, None) => {}
            },
        }
    }
    report
}

/// Whole seconds of a number that may have a fraction.
fn seconds(text: &str) -> u64 {
    text.split('.').next().and_then(|whole| whole.parse().ok()).unwrap_or_default()
}

impl Ran {
    /// A line of the test harness, or of a test that skips.
    fn read(&mut self, line: &str) {
        if let Some((_, skip)) = line.split_once("SKIP ")
            && let Some((test, why)) = skip.split_once(": ")
        {
            self.skipped.push(Skip { test: test.to_owned(), why: why.to_owned() });
        } else if line.starts_with("test ") && line.ends_with(" ... ok") {
            self.passed += 1;
        } else if let Some(test) = line.strip_prefix("test ")
            && let Some(test) = test.strip_suffix(" ... FAILED")
        {
            self.failed.push(test.to_owned());
        }
    }
}

/// Lines to show while a guest runs: one for each mark that is complete.
pub(super) fn progress(said: &str) -> Vec<String> {
    let whole = said.rfind('\n').map_or("", |end| &said[..end]);
    let shown = |line: &str| line.strip_prefix(MARK).map(|line| line.trim_end().to_owned());
    whole.lines().filter_map(shown).collect()
}

/// Why a guest did not come to its end, with the last lines of what was heard of it.
pub(super) fn last_lines(why: &str, said: &str, console: &str) -> String {
    let panic = console.lines().find(|line| line.contains("Kernel panic"));
    let tail = |text: &str| {
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        lines[lines.len().saturating_sub(8)..].join("\n    ")
    };
    let why = panic.map_or(why, str::trim);
    format!("{why}; its last lines:\n    {}\n    {}", tail(said), tail(console))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\
modprobe: a warning\r
@@boot 12.50 5.10.0-1-cloud-amd64\r
@@status 20.00\r
{\r
  \"healthy\": true\r
}\r
@@status-end 0 21.00\r
@@suite kernel_a 21.50\r
\r
running 4 tests\r
test one has been running for over 60 seconds\r
test one ... ok\r
SKIP kernel_a::two: the kernel has no tcx hooks (x): needs kernel 6.6 or newer\r
test two ... ok\r
test three ... FAILED\r
test result: FAILED. 2 passed; 1 failed; 0 ignored\r
@@suite-end kernel_a 101 95.75\r
@@suite kernel_b 96.00\r
test four ... ok\r
";

    #[test]
    fn a_guests_words_are_read() {
        let report = parse(SAID);
        assert!(report.booted && !report.is_complete);
        assert_eq!(report.status.expect("a status")["healthy"], true);
        let [first, second] = report.suites.as_slice() else { panic!("{:?}", report.suites) };
        assert_eq!((first.code, first.seconds, first.passed), (Some(101), 74, 2));
        assert_eq!(first.failed, ["three"]);
        let why = "the kernel has no tcx hooks (x): needs kernel 6.6 or newer".to_owned();
        assert_eq!(first.skipped, [Skip { test: "kernel_a::two".to_owned(), why }]);
        assert_eq!((second.name.as_str(), second.code, second.passed), ("kernel_b", None, 1));
        assert!(parse(&format!("{SAID}@@end 120\n")).is_complete);
    }

    #[test]
    fn a_guest_that_says_nothing_or_nonsense_has_not_booted() {
        for said in ["", "@@", "@@suite", "@@suite-end x 0 1", "{", "test x ... ok"] {
            let report = parse(said);
            assert!(!report.booted && report.status.is_none(), "{said}");
            assert!(report.suites.is_empty(), "{said}");
        }
    }

    #[test]
    fn progress_shows_marks_whose_line_is_complete() {
        assert_eq!(progress("x\n@@boot 1 r\r\n@@suite a"), ["boot 1 r"]);
        assert!(progress("@@boot 1").is_empty());
    }

    #[test]
    fn a_panic_is_the_reason_and_the_last_lines_are_kept() {
        let console = "one\n[ 1.0] Kernel panic - not syncing: x\ntwo\n";
        let text = last_lines("the guest stopped", "said\n", console);
        assert!(text.starts_with("[ 1.0] Kernel panic - not syncing: x; "), "{text}");
        assert!(text.contains("said") && text.ends_with("two"), "{text}");
        assert!(last_lines("the guest hung", "", "").starts_with("the guest hung"));
    }
}
