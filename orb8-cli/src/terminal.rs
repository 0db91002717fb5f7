//! What the process touches: its streams, the clock, the time zone and the interrupt.
//!
//! Handed in, so that a test can run the whole command line with buffers and a fixed clock. Nothing
//! else in this crate asks for the time or writes to stdout or stderr.

use std::fmt::Display;
use std::future::Future;
use std::io::{self, Read, Write};
use std::pin::Pin;

use anstream::ColorChoice;
use anstyle::{AnsiColor, Style};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use orb8_util::text::printable;

use crate::args::Color;
use crate::error::{CliError, Exit};

/// The surroundings of one run.
pub struct Terminal<'a> {
    /// For `--file -`.
    pub input: Box<dyn Read + 'a>,
    /// Data.
    pub out: Box<dyn Write + 'a>,
    /// Everything else.
    pub err: Box<dyn Write + 'a>,
    /// Whether data is coloured.
    pub out_color: bool,
    /// Whether the rest is coloured.
    pub err_color: bool,
    /// The present in Unix nanoseconds.
    pub clock: Box<dyn Fn() -> i64 + 'a>,
    /// The zone in which times are shown.
    pub zone: TimeZone,
    /// Completes when the person wants to stop.
    pub interrupt: Pin<Box<dyn Future<Output = ()> + 'a>>,
    /// Completes when nobody reads the data any more.
    pub unread: Pin<Box<dyn Future<Output = ()> + 'a>>,
}

impl std::fmt::Debug for Terminal<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Terminal")
            .field("out_color", &self.out_color)
            .field("err_color", &self.err_color)
            .finish_non_exhaustive()
    }
}

impl Terminal<'static> {
    /// The real one. Colours as the streams and NO_COLOR say, until [`Terminal::set_color`].
    #[must_use]
    pub fn process() -> Self {
        Self {
            input: Box::new(io::stdin()),
            out: Box::new(io::BufWriter::new(io::stdout())),
            err: Box::new(io::stderr()),
            out_color: anstream::AutoStream::choice(&io::stdout()) != ColorChoice::Never,
            err_color: anstream::AutoStream::choice(&io::stderr()) != ColorChoice::Never,
            clock: Box::new(|| i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)),
            zone: TimeZone::system(),
            interrupt: Box::pin(interrupted()),
            unread: Box::pin(stdout_closed()),
        }
    }
}

impl Terminal<'_> {
    /// Applies `--color`, which outweighs what the streams say.
    pub fn set_color(&mut self, color: Color) {
        match color {
            Color::Auto => {}
            Color::Always => (self.out_color, self.err_color) = (true, true),
            Color::Never => (self.out_color, self.err_color) = (false, false),
        }
    }

    /// A line for the person, on stderr.
    pub fn note(&mut self, message: impl Display) {
        self.say("note", AnsiColor::Cyan, &message);
    }

    /// A line about something missing or lost, on stderr.
    pub fn warn(&mut self, message: impl Display) {
        self.say("warning", AnsiColor::Yellow, &message);
    }

    /// A line about a failure, on stderr.
    pub fn error(&mut self, message: impl Display) {
        self.say("error", AnsiColor::Red, &message);
    }

    /// Says why there is no answer; gives the exit code.
    pub fn fail(&mut self, error: &CliError) -> Exit {
        if !error.is_silent() {
            // One line per agent that failed.
            for line in error.to_string().split("\nerror: ") {
                self.error(line);
            }
        }
        error.exit()
    }

    /// Prints clap's help to stdout or its complaint to stderr; gives the exit code.
    pub fn usage(&mut self, error: &clap::Error) -> Exit {
        let (stream, color, exit) = if error.use_stderr() {
            (&mut self.err, self.err_color, Exit::Usage)
        } else {
            (&mut self.out, self.out_color, Exit::Done)
        };
        let text = error.render();
        let written =
            if color { write!(stream, "{}", text.ansi()) } else { write!(stream, "{text}") };
        match written.and_then(|()| stream.flush()) {
            Ok(()) => exit,
            Err(error) => self.fail(&CliError::Output(error)),
        }
    }

    fn say(&mut self, word: &str, color: AnsiColor, message: &dyn Display) {
        let style = if self.err_color {
            Style::new().bold().fg_color(Some(color.into()))
        } else {
            Style::new()
        };
        let message = message.to_string();
        let text = printable(&message);
        // Where stderr is closed there is nobody left to tell.
        drop(writeln!(self.err, "{style}{word}{style:#}: {text}"));
    }
}

/// Ctrl-C or, on Unix, SIGTERM, or that the terminal was closed.
async fn interrupted() {
    let ctrl_c = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    let terminated = async {
        let terminate = heard(tokio::signal::unix::SignalKind::terminate());
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        // Who listens to a signal that was ignored undoes what `nohup` has set.
        if ignores_hangup(&status) {
            terminate.await;
        } else {
            tokio::select! {
                () = terminate => {}
                () = heard(tokio::signal::unix::SignalKind::hangup()) => {}
            }
        }
    };
    #[cfg(not(unix))]
    let terminated = std::future::pending::<()>();
    tokio::select! {
        () = ctrl_c => {}
        () = terminated => {}
    }
}

#[cfg(unix)]
async fn heard(kind: tokio::signal::unix::SignalKind) {
    match tokio::signal::unix::signal(kind) {
        Ok(mut signal) => {
            signal.recv().await;
        }
        Err(_) => std::future::pending().await,
    }
}

/// Whether a process ignores SIGHUP, by its `/proc/PID/status`; where that tells nothing it may.
#[cfg(unix)]
fn ignores_hangup(status: &str) -> bool {
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // SIGHUP is the first signal.
    ignored.is_none_or(|mask| mask & 1 != 0)
}

/// Completes when the reader of stdout has closed its end. A stream that is quiet would otherwise
/// stay until its next event, long after `head` has what it wants.
#[cfg(unix)]
async fn stdout_closed() {
    let (gone, told) = tokio::sync::oneshot::channel();
    // A thread, because a pipe, a file and a terminal may all be stdout and only poll(2) takes all;
    // it asks for no event, so that only the loss of the reader wakes it.
    std::thread::spawn(move || {
        let stdout = io::stdout();
        let mut fds = [rustix::event::PollFd::new(&stdout, rustix::event::PollFlags::empty())];
        while rustix::event::poll(&mut fds, None) == Err(rustix::io::Errno::INTR) {}
        if !fds[0].revents().is_empty() {
            // The stream may have ended by itself meanwhile.
            gone.send(()).ok();
        }
    });
    if told.await.is_err() {
        std::future::pending().await
    }
}

#[cfg(not(unix))]
async fn stdout_closed() {
    std::future::pending().await
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_hangup_is_left_alone_where_it_is_ignored_or_may_be() {
        let status = |ignored: &str| {
            format!("Name:\torb8\nSigBlk:\t0000000000000001\nSigIgn:\t{ignored}\nSigCgt:\t01\n")
        };
        assert!(ignores_hangup(&status("0000000000000001")));
        assert!(ignores_hangup(&status("0000000000001003")));
        assert!(!ignores_hangup(&status("0000000000001000")), "a broken pipe is another signal");
        assert!(ignores_hangup("") && ignores_hangup("SigIgn:\tx\n"));
    }
}
