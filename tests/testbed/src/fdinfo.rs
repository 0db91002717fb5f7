//! What the kernel says in `/proc/PID/fdinfo` of the maps and programs that a process has descriptors of.
//!
//! Reads files and nothing else.

use std::collections::BTreeMap;

/// How often programs ran while the kernel kept statistics, and how long in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// Nanoseconds, those of the statistics included.
    pub ns: u64,
    /// Runs.
    pub count: u64,
}

impl Runs {
    /// What was added since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            ns: self.ns.saturating_sub(earlier.ns),
            count: self.count.saturating_sub(earlier.count),
        }
    }

    /// Nanoseconds of a run; none of none.
    #[must_use]
    pub fn each(self) -> Option<f64> {
        (self.count > 0).then(|| self.ns as f64 / self.count as f64)
    }
}

/// Bytes of the maps of a process.
///
/// # Errors
/// There is no such process, or it may not be looked at.
pub fn map_bytes(pid: u32) -> std::io::Result<u64> {
    let all = texts(pid)?;
    let maps = all.iter().filter(|text| field(text, "map_id").is_some());
    Ok(maps.filter_map(|text| field(text, "memlock")).sum())
}

/// The runs of all programs of a process that see packets, at interfaces (`BPF_PROG_TYPE_SCHED_CLS`) or
/// at sockets (`BPF_PROG_TYPE_CGROUP_SKB`), each program once, however many descriptors it has.
///
/// # Errors
/// There is no such process, or it may not be looked at.
pub fn runs_on_packets(pid: u32) -> std::io::Result<Runs> {
    Ok(on_packets(&texts(pid)?))
}

fn on_packets(texts: &[String]) -> Runs {
    const SCHED_CLS: u64 = 3;
    const CGROUP_SKB: u64 = 8;
    let sees_packets =
        |text: &&String| matches!(field(text, "prog_type"), Some(SCHED_CLS | CGROUP_SKB));
    let all = texts.iter().filter(sees_packets);
    let each: BTreeMap<u64, Runs> =
        all.filter_map(|text| Some((field(text, "prog_id")?, runs(text)?))).collect();
    let mut sum = Runs::default();
    for Runs { ns, count } in each.into_values() {
        sum.ns += ns;
        sum.count += count;
    }
    sum
}

/// The runs of the program behind a descriptor of this process.
///
/// # Errors
/// It is none of a program.
pub fn runs_of(descriptor: i32) -> std::io::Result<Runs> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}"))?;
    runs(&text).ok_or_else(|| std::io::Error::other(format!("no program, but {text:?}")))
}

fn runs(text: &str) -> Option<Runs> {
    Some(Runs { ns: field(text, "run_time_ns")?, count: field(text, "run_cnt")? })
}

/// What is said of each descriptor of a process; it may be closed meanwhile.
fn texts(pid: u32) -> std::io::Result<Vec<String>> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fdinfo"))?;
    Ok(entries.flatten().filter_map(|entry| std::fs::read_to_string(entry.path()).ok()).collect())
}

fn field(text: &str, name: &str) -> Option<u64> {
    let of = |line: &str| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok();
    text.lines().find_map(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: &str = "pos:\t0\nprog_type:\t3\nmemlock:\t4096\nprog_id:\t7\n\
        run_time_ns:\t900\nrun_cnt:\t30\nrecursion_misses:\t0\n";

    #[test]
    fn fields_are_found_by_their_whole_names() {
        assert_eq!(field(PROGRAM, "prog_id"), Some(7));
        assert_eq!(field(PROGRAM, "prog"), None);
        assert_eq!(field(PROGRAM, "map_id"), None);
        let runs = runs(PROGRAM).expect("a program");
        assert_eq!((runs, runs.each()), (Runs { ns: 900, count: 30 }, Some(30.0)));
        assert_eq!(runs.since(runs).each(), None);
    }

    #[test]
    fn programs_at_interfaces_and_at_sockets_are_counted_once_each_and_others_are_not() {
        let program = |kind: u64, id: u64| {
            PROGRAM
                .replace("prog_type:\t3", &format!("prog_type:\t{kind}"))
                .replace("prog_id:\t7", &format!("prog_id:\t{id}"))
        };
        let all = [program(3, 1), program(3, 1), program(8, 2), program(13, 3)];
        assert_eq!(on_packets(&all), Runs { ns: 1_800, count: 60 });
    }

    #[test]
    fn a_process_without_maps_and_programs_has_neither() {
        let own = std::process::id();
        assert_eq!(map_bytes(own).expect("our own"), 0);
        assert_eq!(runs_on_packets(own).expect("our own"), Runs::default());
        let nobody = std::fs::File::open("/dev/null").expect("a file");
        runs_of(std::os::fd::AsRawFd::as_raw_fd(&nobody)).expect_err("no program");
    }
}
