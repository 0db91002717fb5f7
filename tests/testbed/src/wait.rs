//! Waiting for a condition with a deadline; the only place of the testbed that sleeps.

use std::time::{Duration, Instant};

use anyhow::ensure;

/// Time between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(5);

/// How long is waited for what may fail.
const DEADLINE: Duration = Duration::from_mins(1);
/// Time between two looks where a look is dear.
const LONG_PAUSE: Duration = Duration::from_millis(50);

/// Waits a minute until `condition` holds, asking twenty times a second.
///
/// # Errors
/// What the condition says, or that it never held; the message names `what`.
pub fn wait(what: &str, mut condition: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let end = Instant::now() + DEADLINE;
    while !condition()? {
        ensure!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(LONG_PAUSE);
    }
    Ok(())
}

/// Waits until `condition` holds.
///
/// # Panics
/// If it does not within `deadline`; the message names `what`.
#[track_caller]
pub fn wait_until(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(deadline, what, || condition().then_some(()));
}

/// Waits until `probe` has an answer and returns it.
///
/// # Panics
/// If it has none within `deadline`; the message names `what`.
#[track_caller]
pub fn wait_for<T>(deadline: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < end, "waited {deadline:?} for: {what}");
        std::thread::sleep(PAUSE);
    }
}
