//! What the agent needs from this host, checked before anything is loaded, each with its remedy.
//!
//! The judgements are pure functions over texts; [`run`] alone reads files.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cgroup;

/// The oldest kernel that the programs load on.
const MIN_KERNEL: (u32, u32) = (5, 10);
/// Kernels from here on do not charge maps to the memlock limit.
const NO_MEMLOCK: (u32, u32) = (5, 11);
/// Less than this does not hold the maps on kernels that charge them.
const MIN_MEMLOCK: u64 = 64 << 20;

/// The name of the check of the memlock limit.
const MEMLOCK: &str = "memlock";

const CAP_NET_ADMIN: u8 = 12;
const CAP_SYS_ADMIN: u8 = 21;
const CAP_PERFMON: u8 = 38;
const CAP_BPF: u8 = 39;

/// One verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// A stable word.
    pub name: &'static str,
    /// How it stands.
    pub verdict: Verdict,
    /// What was found.
    pub reason: String,
    /// The next step for a person, empty if all is well.
    pub remedy: String,
}

/// How a check stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Something will be missing.
    Warning,
    /// Nothing can be seen.
    Failed,
}

impl Check {
    fn ok(name: &'static str, reason: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, reason: reason.into(), remedy: String::new() }
    }

    fn warning(name: &'static str, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (reason, remedy) = (reason.into(), remedy.into());
        Self { name, verdict: Verdict::Warning, reason, remedy }
    }

    fn failed(name: &'static str, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (reason, remedy) = (reason.into(), remedy.into());
        Self { name, verdict: Verdict::Failed, reason, remedy }
    }
}

/// Where [`run`] looks.
#[derive(Clone, Debug)]
pub struct Roots {
    /// Usually `/proc`.
    pub proc: PathBuf,
    /// The cgroup2 mount, if it is set; else it is looked for.
    pub cgroup: Option<PathBuf>,
    /// The BTF of the running kernel.
    pub btf: PathBuf,
}

impl Roots {
    /// The usual places below these roots.
    #[must_use]
    pub fn new(proc: &Path, cgroup: Option<&Path>) -> Self {
        Self {
            proc: proc.to_path_buf(),
            cgroup: cgroup.map(Path::to_path_buf),
            btf: PathBuf::from("/sys/kernel/btf/vmlinux"),
        }
    }
}

/// Reads what is needed and judges it. `bpf` tells whether the syscall answers.
#[must_use]
pub fn run(
    roots: &Roots,
    kernel_release: &str,
    bpf: impl FnOnce() -> Result<(), String>,
) -> Vec<Check> {
    let status = fs::read_to_string(roots.proc.join("self/status")).unwrap_or_default();
    let limits = fs::read_to_string(roots.proc.join("self/limits")).unwrap_or_default();
    let mounts = fs::read_to_string(roots.proc.join("self/mountinfo")).unwrap_or_default();
    let mut checks = vec![kernel(kernel_release), btf(roots.btf.exists())];
    checks.extend(capabilities(&status));
    checks.push(memlock(kernel_release, &limits));
    checks.push(cgroup2(roots.cgroup.as_deref(), &mounts));
    // Without the capabilities the syscall only repeats what they say.
    let able = checks.iter().all(|check| check.verdict != Verdict::Failed);
    if able {
        let answer = bpf().map_err(|error| explained(&checks, error));
        checks.push(bpf_syscall(answer));
    }
    checks
}

/// What the kernel refused, with the memlock limit beside it where that may be the cause: then the
/// kernel says no more than that it is not permitted.
#[must_use]
pub fn explained(checks: &[Check], refused: String) -> String {
    let is_small = |check: &&Check| check.name == MEMLOCK && check.verdict == Verdict::Warning;
    match checks.iter().find(is_small) {
        Some(check) if refused.contains("Operation not permitted") => {
            format!("{refused}; {}: {}", check.reason, check.remedy)
        }
        _ => refused,
    }
}

/// The failed checks in one text, with their remedies; empty if none failed.
#[must_use]
pub fn failures(checks: &[Check]) -> String {
    let failed = checks.iter().filter(|check| check.verdict == Verdict::Failed);
    failed.map(|check| format!("{}: {}", check.reason, check.remedy)).collect::<Vec<_>>().join("; ")
}

/// Major and minor number of a kernel release such as `6.8.0-45-generic`.
#[must_use]
pub fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Judges the kernel's version.
#[must_use]
pub fn kernel(release: &str) -> Check {
    let (major, minor) = MIN_KERNEL;
    match kernel_version(release) {
        Some(version) if version >= MIN_KERNEL => Check::ok("kernel", format!("kernel {release}")),
        Some(_) => Check::failed(
            "kernel",
            format!("kernel {release} is older than {major}.{minor}"),
            format!("boot a kernel from {major}.{minor} on"),
        ),
        None => Check::warning(
            "kernel",
            format!("kernel release {release:?} has no version that can be read"),
            format!("make sure that it is {major}.{minor} or newer"),
        ),
    }
}

/// Judges whether the kernel describes its types.
#[must_use]
pub fn btf(present: bool) -> Check {
    if present {
        return Check::ok("btf", "the kernel describes its types");
    }
    Check::failed(
        "btf",
        "the kernel has no BTF at /sys/kernel/btf/vmlinux",
        "use a kernel built with CONFIG_DEBUG_INFO_BTF=y, or mount /sys into the container",
    )
}

/// Judges the effective capabilities in the text of `/proc/self/status`.
#[must_use]
pub fn capabilities(status: &str) -> Vec<Check> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    let Some(effective) = effective else {
        return vec![Check::warning(
            "capabilities",
            "the effective capabilities could not be read",
            "make /proc readable for the agent, or set ORB8_PROC_ROOT to where it is mounted",
        )];
    };
    let has = |capability: u8| effective & (1 << capability) != 0;
    let needs = [
        ("cap_bpf", "CAP_BPF", has(CAP_BPF) || has(CAP_SYS_ADMIN)),
        ("cap_perfmon", "CAP_PERFMON", has(CAP_PERFMON) || has(CAP_SYS_ADMIN)),
        ("cap_net_admin", "CAP_NET_ADMIN", has(CAP_NET_ADMIN)),
    ];
    let judge = |(name, capability, held): (&'static str, &str, bool)| {
        if held {
            return Check::ok(name, format!("{capability} is effective"));
        }
        Check::failed(
            name,
            format!("{capability} is not effective"),
            format!(
                "run as root, or add {capability} (systemd AmbientCapabilities, Kubernetes securityContext.capabilities)"
            ),
        )
    };
    needs.map(judge).to_vec()
}

/// Whether a kernel charges maps to the memlock limit; unknown kernels are taken for such.
#[must_use]
pub fn charges_memlock(release: &str) -> bool {
    kernel_version(release).is_none_or(|version| version < NO_MEMLOCK)
}

/// Judges the memlock limit in the text of `/proc/self/limits`, where the kernel charges maps to it.
#[must_use]
pub fn memlock(release: &str, limits: &str) -> Check {
    if !charges_memlock(release) {
        return Check::ok(MEMLOCK, "this kernel does not charge maps to the memlock limit");
    }
    let limit = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max locked memory"))
        .and_then(|fields| fields.split_ascii_whitespace().next());
    let in_force = match limit {
        Some("unlimited") => return Check::ok(MEMLOCK, "the memlock limit is unlimited"),
        Some(limit) => match limit.parse::<u64>() {
            Ok(bytes) if bytes >= MIN_MEMLOCK => {
                return Check::ok(MEMLOCK, format!("the memlock limit is {bytes} bytes"));
            }
            _ => format!("is {limit} bytes"),
        },
        None => "could not be read".to_owned(),
    };
    let (major, minor) = NO_MEMLOCK;
    Check::warning(
        MEMLOCK,
        format!(
            "kernel {release} is older than {major}.{minor} and charges maps to the memlock limit, \
             which {in_force}: the maps may need {MIN_MEMLOCK} bytes"
        ),
        "raise it (systemd LimitMEMLOCK=infinity, ulimit -l unlimited), add CAP_SYS_RESOURCE, or \
         boot a newer kernel",
    )
}

/// Judges whether cgroup2 is mounted, from the setting or the text of `/proc/self/mountinfo`.
#[must_use]
pub fn cgroup2(set: Option<&Path>, mountinfo: &str) -> Check {
    if let Some(path) = set {
        return Check::ok("cgroup2", format!("cgroup2 is set to {}", path.display()));
    }
    match cgroup::Mounts::parse(mountinfo).outermost() {
        Some(path) => Check::ok("cgroup2", format!("cgroup2 is mounted at {}", path.display())),
        None => Check::warning(
            "cgroup2",
            "cgroup2 is not mounted, so flows carry no cgroup and no process",
            "mount it (mount -t cgroup2 none /sys/fs/cgroup/unified), or set ORB8_CGROUP_ROOT",
        ),
    }
}

/// Judges the answer of the bpf syscall.
#[must_use]
pub fn bpf_syscall(answer: Result<(), String>) -> Check {
    match answer {
        Ok(()) => Check::ok("bpf", "the bpf syscall answers"),
        Err(error) => Check::failed(
            "bpf",
            format!("the bpf syscall is refused: {error}"),
            "allow bpf(2) in the seccomp profile, and check the kernel's lockdown mode",
        ),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn verdict(check: &Check, expected: Verdict) {
        assert_eq!(check.verdict, expected, "{check:?}");
        assert_eq!(check.remedy.is_empty(), expected == Verdict::Ok, "{check:?}");
    }

    #[test]
    fn kernels_are_judged_by_their_version() {
        for (release, expected) in [
            ("5.10.0", Verdict::Ok),
            ("6.8.0-45-generic", Verdict::Ok),
            ("10.1", Verdict::Ok),
            ("5.9.16", Verdict::Failed),
            ("4.19.0-6-amd64", Verdict::Failed),
            ("custom", Verdict::Warning),
            ("", Verdict::Warning),
        ] {
            verdict(&kernel(release), expected);
        }
    }

    #[test]
    fn each_missing_capability_is_named() {
        let check = |mask: &str, expected: [Verdict; 3]| {
            let status = format!("Name:\torb8-agent\nCapInh:\t0\nCapEff:\t{mask}\nCapBnd:\t0\n");
            let verdicts: Vec<_> =
                capabilities(&status).iter().map(|check| check.verdict).collect();
            assert_eq!(verdicts, expected, "{mask}");
        };
        use Verdict::{Failed, Ok};
        check("000001ffffffffff", [Ok, Ok, Ok]);
        check("0000000000000000", [Failed, Failed, Failed]);
        check("000000c000001000", [Ok, Ok, Ok]);
        check("0000008000001000", [Ok, Failed, Ok]);
        check("0000004000001000", [Failed, Ok, Ok]);
        check("000000c000000000", [Ok, Ok, Failed]);
        check("0000000000200000", [Ok, Ok, Failed]);
        assert_eq!(capabilities("nothing")[0].verdict, Verdict::Warning);
    }

    #[test]
    fn memlock_matters_only_where_maps_are_charged_to_it() {
        let limits = |limit: &str| {
            format!("Limit  Soft Limit\nMax locked memory         {limit}   {limit}   bytes\n")
        };
        verdict(&memlock("6.1.0", ""), Verdict::Ok);
        verdict(&memlock("5.10.3", &limits("unlimited")), Verdict::Ok);
        verdict(&memlock("5.10.3", &limits("67108864")), Verdict::Ok);
        verdict(&memlock("5.10.3", &limits("65536")), Verdict::Warning);
        verdict(&memlock("5.10.3", ""), Verdict::Warning);
        let said = memlock("5.10.3", &limits("65536"));
        for part in ["kernel 5.10.3 is older than 5.11", "is 65536 bytes", "need 67108864 bytes"] {
            assert!(said.reason.contains(part), "{part}: {said:?}");
        }
        for remedy in ["LimitMEMLOCK=infinity", "CAP_SYS_RESOURCE", "newer kernel"] {
            assert!(said.remedy.contains(remedy), "{remedy}: {said:?}");
        }
    }

    #[test]
    fn what_is_not_permitted_is_explained_by_a_memlock_limit_that_is_too_small() {
        let refused = || "map X: Operation not permitted (os error 1)".to_owned();
        let limits = "Max locked memory         65536   65536   bytes\n";
        let small = [btf(true), memlock("5.10.3", limits)];
        assert!(explained(&small, refused()).contains("which is 65536 bytes"));
        assert_eq!(explained(&small, "no memory".to_owned()), "no memory");
        assert_eq!(explained(&[memlock("6.1.0", limits)], refused()), refused());
    }

    #[test]
    fn the_rest_is_judged_with_a_remedy() {
        verdict(&btf(true), Verdict::Ok);
        verdict(&btf(false), Verdict::Failed);
        verdict(&cgroup2(None, ""), Verdict::Warning);
        verdict(&cgroup2(Some(Path::new("/x")), ""), Verdict::Ok);
        verdict(&cgroup2(None, "1 1 0:1 / /c rw - cgroup2 c rw"), Verdict::Ok);
        verdict(&bpf_syscall(Ok(())), Verdict::Ok);
        verdict(&bpf_syscall(Err("EPERM".to_owned())), Verdict::Failed);
    }

    #[test]
    fn failures_name_what_failed_and_what_to_do() {
        let checks = [kernel("4.4.0"), btf(true), btf(false)];
        insta::assert_snapshot!(failures(&checks), @"kernel 4.4.0 is older than 5.10: boot a kernel from 5.10 on; the kernel has no BTF at /sys/kernel/btf/vmlinux: use a kernel built with CONFIG_DEBUG_INFO_BTF=y, or mount /sys into the container");
        assert_eq!(failures(&[btf(true)]), "");
    }

    #[test]
    fn this_host_is_judged_without_failing_to_read() {
        let roots = Roots::new(Path::new("/proc"), None);
        let checks = run(&roots, "6.1.0", || Ok(()));
        assert!(checks.len() >= 7, "{checks:?}");
        assert!(checks.iter().all(|check| check.name != "capabilities"), "{checks:?}");
    }

    proptest! {
        #[test]
        fn any_text_is_judged(text in "\\PC*") {
            prop_assert_eq!(kernel(&text).name, "kernel");
            prop_assert!(!capabilities(&text).is_empty());
            prop_assert_eq!(memlock(&text, &text).name, "memlock");
            prop_assert_eq!(cgroup2(None, &text).name, "cgroup2");
        }
    }
}
