//! Starts the kernel side, or says why nothing can be seen.

use std::sync::Arc;

use tracing::error;

use super::{AgentError, Shared};
use crate::capture::{Choice, NoSocketPlane};
use crate::config::Settings;
use crate::datapath::{Datapath, Start, StartError, Started};
use crate::pipeline::source::EventSource;
use crate::preflight::{self, Check};
use crate::status::Cause;

/// What came of starting the kernel side.
pub(super) struct Kernel {
    pub(super) sources: Vec<Box<dyn EventSource>>,
    pub(super) datapath: Option<Arc<dyn Datapath>>,
}

/// Starts the kernel side; without `--strict` a failure is a reason in status.
pub(super) async fn start_kernel(
    settings: &Settings,
    start: Start,
    checks: &[Check],
    choice: &Result<Choice, NoSocketPlane>,
    shared: &Shared,
) -> Result<Kernel, AgentError> {
    let missing = match choice {
        Ok(_) => preflight::failures(checks),
        Err(error) => error.to_string(),
    };
    let (cause, reason) = if let (Ok(choice), true) = (choice, missing.is_empty()) {
        let (datapath, facts) =
            (settings.datapath(choice.planes.clone()), Arc::clone(&shared.known.facts));
        let started = tokio::task::spawn_blocking(move || start(&datapath, facts)).await;
        let started = started.unwrap_or_else(|error| {
            Err(StartError { message: format!("loading the programs ended early: {error}") })
        });
        match started {
            Ok(Started { sources, handle }) => {
                shared.status.set_datapath(Arc::clone(&handle));
                return Ok(Kernel { sources, datapath: Some(handle) });
            }
            Err(error) => (Cause::Start, preflight::explained(checks, error.to_string())),
        }
    } else {
        (Cause::Preflight, missing)
    };
    if settings.strict {
        return Err(AgentError::Need(reason));
    }
    error!(reason, "Nothing can be seen; the agent stays up and says so.");
    shared.status.set(cause, Some(reason));
    Ok(Kernel { sources: Vec::new(), datapath: None })
}
