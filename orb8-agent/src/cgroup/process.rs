//! The one process of a cgroup, read from `cgroup.procs` and `/proc`.
//!
//! A cgroup with several processes, or with one that this pid namespace cannot see, names none.

use std::fs;
use std::path::Path;

/// Ticks of `/proc/*/stat` a second: fixed by the kernel's ABI on every architecture we build for.
const USER_HZ: u64 = 100;

/// A local process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id in the agent's pid namespace.
    pub pid: u32,
    /// Its name as the kernel keeps it, at most 15 bytes.
    pub comm: Box<str>,
    /// CLOCK_MONOTONIC nanoseconds of its start, to one tick (rounded down).
    pub started_ns: u64,
}

/// The process of a cgroup's directory, if it is alone there; `now_ns` is CLOCK_MONOTONIC.
pub(super) fn only_process(directory: &Path, proc: &Path, now_ns: u64) -> Option<Process> {
    let pid = only_pid(&fs::read_to_string(directory.join("cgroup.procs")).ok()?)?;
    let stat = fs::read_to_string(proc.join(pid.to_string()).join("stat")).ok()?;
    let (comm, start_ticks) = parse_stat(&stat)?;
    // The start is counted from boot with the time asleep, the rest of the agent without it.
    let since_boot = start_ticks.saturating_mul(1_000_000_000 / USER_HZ);
    let started_ns = since_boot.saturating_sub(asleep_ns(now_ns));
    Some(Process { pid, comm: comm.into(), started_ns })
}

fn asleep_ns(now_ns: u64) -> u64 {
    let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let boot = boot.tv_sec.saturating_mul(1_000_000_000).saturating_add(boot.tv_nsec);
    u64::try_from(boot).unwrap_or(0).saturating_sub(now_ns)
}

/// The pid in the text of `cgroup.procs`, if there is exactly one and it is visible.
fn only_pid(procs: &str) -> Option<u32> {
    let mut lines = procs.lines();
    let pid = lines.next()?.parse().ok()?;
    (pid != 0 && lines.next().is_none()).then_some(pid)
}

/// Name and start in ticks since boot from the text of `/proc/<pid>/stat`.
fn parse_stat(stat: &str) -> Option<(&str, u64)> {
    // The name stands in parentheses and may hold any character, parentheses too.
    let (_, rest) = stat.split_once('(')?;
    let (comm, fields) = rest.rsplit_once(')')?;
    // starttime is the 22nd field; the first after the name is the third.
    let start = fields.split_ascii_whitespace().nth(19)?.parse().ok()?;
    Some((comm, start))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn stat_is_read_with_any_name() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20";
        for name in ["nginx", "a b", "evil) (x", ""] {
            let stat = format!("12 ({name}) {tail}");
            assert_eq!(parse_stat(&stat), Some((name, 4242)));
        }
        assert_eq!(parse_stat("12 (short) S 1"), None);
    }

    #[test]
    fn a_process_is_only_named_when_it_is_alone_and_visible() {
        for (procs, expected) in
            [("17\n", Some(17)), ("", None), ("17\n18\n", None), ("0\n", None), ("x\n", None)]
        {
            assert_eq!(only_pid(procs), expected, "{procs:?}");
        }
    }

    proptest! {
        #[test]
        fn parsers_take_any_text(text in "\\PC*") {
            let _pid = only_pid(&text);
            let _stat = parse_stat(&text);
        }
    }
}
