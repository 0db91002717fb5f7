//! CPU time, as far as the system tells it.

#[cfg(target_os = "linux")]
use std::fs;

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

/// Seconds on a CPU of all threads that a process has now, to the nanosecond.
#[cfg(target_os = "linux")]
#[must_use]
pub fn of_process(pid: u32) -> Option<f64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let nanoseconds = tasks.flatten().filter_map(|task| {
        // A thread may end meanwhile.
        let told = fs::read_to_string(task.path().join("schedstat")).ok()?;
        told.split(' ').next()?.trim().parse::<u64>().ok()
    });
    let total: u64 = nanoseconds.sum();
    // Kernels without scheduler statistics tell zeros.
    (total > 0).then(|| total as f64 / 1e9)
}

/// Seconds on a CPU of a process.
#[cfg(not(target_os = "linux"))]
#[must_use]
pub fn of_process(_pid: u32) -> Option<f64> {
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn work_is_seen_by_both_clocks() {
        let both =
            || [own(), of_process(std::process::id())].map(|told| told.expect("Linux tells"));
        let (before, end) = (both(), Instant::now() + Duration::from_secs(30));
        while both().iter().zip(before).any(|(now, before)| now - before < 0.02) {
            assert!(Instant::now() < end, "{before:?} became {:?}", both());
        }
    }
}
