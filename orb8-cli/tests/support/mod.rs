//! Runs whole command lines in this process, on buffers and a fixed clock in UTC.

#[allow(dead_code, reason = "shared with tests that use more of it")]
pub(crate) mod cluster;
#[allow(dead_code, reason = "shared with tests that use more of it")]
#[path = "../../../orb8-query/tests/support/fake_agent.rs"]
pub(crate) mod fake_agent;
#[allow(dead_code, reason = "shared with tests that use more of it")]
pub(crate) mod sample;

use std::fmt::Write as _;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fake_agent::FakeAgent;
use jiff::tz::TimeZone;
use orb8_cli::error::Exit;
use orb8_cli::terminal::Terminal;

/// 2026-01-31T12:00:00Z.
pub(crate) const NOW: i64 = 1_769_860_800_000_000_000;

/// What a command line left behind.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) exit: Exit,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Run {
    /// All of it as one text.
    #[allow(dead_code, reason = "properties look at the parts")]
    pub(crate) fn page(&self) -> String {
        let Self { exit, out, err } = self;
        let mut page = out.clone();
        if !err.is_empty() {
            write!(page, "--- stderr ---\n{err}").expect("writing to a String cannot fail");
        }
        write!(page, "--- exit {} ({exit:?}) ---", *exit as u8)
            .expect("writing to a String cannot fail");
        page
    }
}

/// A buffer that outlives the terminal that writes to it.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Shared {
    fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        String::from_utf8(bytes).expect("output is UTF-8")
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Runs `orb8` with these words, asking these agents, with this on stdin.
pub(crate) fn orb8(words: &[&str], agents: &[&FakeAgent], input: &[u8]) -> Run {
    run(words, agents, input, None)
}

#[allow(dead_code, reason = "only traces run until something is said")]
/// Runs `orb8` until it has said this, then interrupts it as Ctrl-C does.
pub(crate) fn orb8_until(words: &[&str], agents: &[&FakeAgent], said: &str) -> Run {
    run(words, agents, b"", Some(said))
}

/// Completes when one of the buffers holds the text; fails the test if none does in time.
async fn holds(buffers: [Shared; 2], said: String) {
    let wait = async {
        while !buffers.iter().any(|buffer| buffer.text().contains(&said)) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let [out, err] = &buffers;
    if tokio::time::timeout(Duration::from_secs(60), wait).await.is_err() {
        panic!("{said:?} was never said, but: {}{}", out.text(), err.text());
    }
}

fn run(words: &[&str], agents: &[&FakeAgent], input: &[u8], said: Option<&str>) -> Run {
    let (out, err) = (Shared::default(), Shared::default());
    let buffers = [out.clone(), err.clone()];
    let addresses: Vec<String> = agents.iter().map(|agent| agent.address()).collect();
    let mut args = vec!["orb8"];
    for address in &addresses {
        args.extend(["--agent", address]);
    }
    args.extend(words);
    let mut terminal = Terminal {
        input: Box::new(input),
        out: Box::new(out.clone()),
        err: Box::new(err.clone()),
        out_color: false,
        err_color: false,
        clock: Box::new(|| NOW),
        zone: TimeZone::UTC,
        interrupt: match said {
            Some(said) => Box::pin(holds(buffers, said.to_owned())),
            None => Box::pin(std::future::pending()),
        },
        unread: Box::pin(std::future::pending()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime for the command line");
    let exit = runtime.block_on(orb8_cli::run(args, &mut terminal));
    drop(terminal);
    // Ports differ from run to run.
    let hide = |mut text: String| {
        for (index, address) in addresses.iter().enumerate() {
            text = text.replace(address, &format!("AGENT-{}", index + 1));
        }
        text
    };
    Run { exit, out: hide(out.text()), err: hide(err.text()) }
}
