//! CPU time, as far as the system tells it.

use orb8_util::cpu::Threads;

/// Why this process's CPU time is not known.
pub const UNTOLD: &str = "this system does not tell the CPU time of a process";

/// Seconds that this process has been on a CPU, in user space and kernel, all threads together.
#[cfg(unix)]
#[must_use]
pub fn own() -> Option<f64> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Some(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
}

/// Seconds that this process has been on a CPU.
#[cfg(not(unix))]
#[must_use]
pub fn own() -> Option<f64> {
    None
}

/// The threads that a process has now, with their time on a CPU; none where there is no `/proc` of Linux.
#[must_use]
pub fn of_process(pid: u32) -> Option<Threads> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    Threads::read(tasks.flatten().filter_map(|task| {
        let thread = task.file_name().to_str()?.parse().ok()?;
        // It may end meanwhile.
        Some((thread, std::fs::read_to_string(task.path().join("schedstat")).ok()?))
    }))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn work_is_seen_by_both_clocks() {
        let both = || own().zip(of_process(std::process::id())).expect("Linux tells");
        let (before, end) = (both(), Instant::now() + Duration::from_secs(30));
        loop {
            let now = both();
            if now.0 - before.0 >= 0.02 && now.1.since(&before.1) >= 0.02 {
                return;
            }
            assert!(Instant::now() < end, "{before:?} became {now:?}");
        }
    }
}
