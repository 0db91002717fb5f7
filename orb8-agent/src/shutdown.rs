//! When to stop: SIGINT and SIGTERM ask for an orderly end, a second one ends at once.

use std::io;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

/// A signal that comes this soon after another is the same wish: a terminal and a wrapper such as
/// `timeout` or `sudo` both pass it on.
const SAME_WISH: Duration = Duration::from_millis(200);
/// The exit code after a second signal: what it could not hand over is lost.
const EXIT_FAILED: i32 = 1;

/// Listens for the signals.
#[derive(Debug)]
pub struct Shutdown {
    interrupt: Signal,
    terminate: Signal,
}

impl Shutdown {
    /// Starts listening; from here on the signals no longer end the process by themselves.
    ///
    /// # Errors
    /// The handlers could not be installed.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Resolves at the first signal; a second one ends the process at once.
    pub async fn asked(mut self) {
        let name = self.next().await;
        info!(signal = name, "Stopping; a second signal stops at once.");
        tokio::spawn(async move {
            let first = Instant::now();
            let mut name = self.next().await;
            while first.elapsed() < SAME_WISH {
                name = self.next().await;
            }
            warn!(signal = name, "Stopped at once; events that were queued are lost.");
            std::process::exit(EXIT_FAILED);
        });
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}
