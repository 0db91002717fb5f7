//! From cgroup id to path and, where it is certain, to the one process in it.
//!
//! The pipeline only asks ([`Memberships`]); a thread of its own reads the file systems
//! ([`start`]). Answers arrive in records that already hold the question. Who the owner of a
//! cgroup is in Kubernetes is not decided here.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crate::clock::Clock;

/// Questions that may wait; one that finds no room is asked again with the flow's next event.
const QUEUE: usize = 256;
/// cgroups that are remembered.
const MAX_CGROUPS: usize = 16_384;
/// Directories that a walk of the tree looks at.
const MAX_DIRECTORIES: usize = 65_536;
/// A walk may take this part of a core: after one, as many times its own duration pass.
const WALK_REST: u32 = 20;
/// After a round of answers the resolver rests, so that a storm of flows costs it little.
const ROUND_REST: Duration = Duration::from_millis(20);
/// A process counts as a flow's only if it was looked up this soon after the flow's first packet.
const FRESH_NS: u64 = 1_000_000_000;
/// Ticks of `/proc/*/stat` a second: fixed by the kernel's ABI on every architecture we build for.
const USER_HZ: u64 = 100;

/// A cgroup as a flow's sender was in it; answered later, for all flows that hold it.
#[derive(Debug)]
pub struct Membership {
    /// cgroup2 id.
    pub id: u64,
    answer: OnceLock<Answer>,
}

/// What was found for a cgroup id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Path below the cgroup2 mount, none if the cgroup is gone.
    pub path: Option<Arc<str>>,
    /// The process, if the cgroup held exactly one.
    pub process: Option<Process>,
    /// CLOCK_MONOTONIC nanoseconds of the look.
    pub checked_ns: u64,
}

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

impl Membership {
    /// A question without an answer yet.
    #[must_use]
    pub fn asked(id: u64) -> Self {
        Self { id, answer: OnceLock::new() }
    }

    /// A question that is answered already.
    #[must_use]
    pub fn answered(id: u64, answer: Answer) -> Self {
        Self { id, answer: OnceLock::from(answer) }
    }

    /// The path, if it is known.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        self.answer.get()?.path.as_deref()
    }

    /// The process that sent a flow which began then.
    ///
    /// Only where it is certain: it was alone in the cgroup, was there before the flow, and the
    /// look came soon enough that a short-lived sibling would have been seen.
    #[must_use]
    pub fn process_at(&self, first_seen_ns: u64) -> Option<&Process> {
        let answer = self.answer.get()?;
        let age = answer.checked_ns.checked_sub(first_seen_ns)?;
        answer.process.as_ref().filter(|found| age <= FRESH_NS && found.started_ns <= first_seen_ns)
    }
}

/// The asking side; belongs to the pipeline thread.
#[derive(Debug)]
pub struct Memberships {
    known: HashMap<u64, Known>,
    queue: Option<SyncSender<Arc<Membership>>>,
}

#[derive(Debug)]
struct Known {
    latest: Arc<Membership>,
    sent: bool,
}

impl Memberships {
    /// One that asks nobody: ids stay without a path.
    #[must_use]
    pub fn unanswered() -> Self {
        Self { known: HashMap::new(), queue: None }
    }

    /// The membership of a flow that began at `since_ns`, answered now or later.
    pub fn find(&mut self, id: u64, since_ns: u64) -> Option<Arc<Membership>> {
        if !self.known.contains_key(&id) && self.known.len() >= MAX_CGROUPS {
            // Which one goes does not matter: whoever still needs it asks again.
            let victim = self.known.keys().next().copied();
            victim.and_then(|id| self.known.remove(&id));
        }
        let known = self
            .known
            .entry(id)
            .or_insert_with(|| Known { latest: Arc::new(Membership::asked(id)), sent: false });
        if known.latest.answer.get().is_some_and(|answer| answer.checked_ns < since_ns) {
            *known = Known { latest: Arc::new(Membership::asked(id)), sent: false };
        }
        if !known.sent
            && let Some(queue) = &self.queue
        {
            known.sent = queue.try_send(Arc::clone(&known.latest)).is_ok();
        }
        Some(Arc::clone(&known.latest))
    }
}

/// Where the resolver reads.
#[derive(Debug, Clone)]
pub struct Roots {
    /// Usually `/proc`.
    pub proc: PathBuf,
    /// The cgroup2 mount; none: found from `mountinfo`.
    pub cgroup: Option<PathBuf>,
}

/// Starts the resolver's thread; it ends when the asking side is dropped.
///
/// # Errors
/// The thread could not be started.
pub fn start(roots: &Roots, clock: Arc<dyn Clock>) -> io::Result<Memberships> {
    let mount = roots.cgroup.clone().or_else(|| {
        let mounts = fs::read_to_string(roots.proc.join("self/mountinfo")).ok()?;
        cgroup2_mount(&mounts)
    });
    let (sender, receiver) = sync_channel(QUEUE);
    let resolver =
        Resolver { proc: roots.proc.clone(), mount, clock, paths: HashMap::new(), next_walk: None };
    thread::Builder::new()
        .name("cgroup".to_owned())
        .stack_size(256 * 1024)
        .spawn(move || resolver.run(&receiver))?;
    Ok(Memberships { known: HashMap::new(), queue: Some(sender) })
}

/// The mount point of cgroup2 in the text of `/proc/self/mountinfo`, the outermost if several.
#[must_use]
pub fn cgroup2_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (mount, kind) = line.split_once(" - ")?;
            if kind.split(' ').next()? != "cgroup2" {
                return None;
            }
            Some(PathBuf::from(unescape(mount.split(' ').nth(4)?)))
        })
        .min_by_key(|path| path.components().count())
}

/// Undoes the octal escapes that the kernel writes for spaces, tabs, newlines and backslashes.
fn unescape(field: &str) -> String {
    let mut text = String::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        text.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(code) = code {
            text.push(char::from(code));
            rest = &rest[at + 4..];
        } else {
            text.push('\\');
            rest = &rest[at + 1..];
        }
    }
    text.push_str(rest);
    text
}

struct Resolver {
    proc: PathBuf,
    mount: Option<PathBuf>,
    clock: Arc<dyn Clock>,
    paths: HashMap<u64, Arc<str>>,
    next_walk: Option<Instant>,
}

impl Resolver {
    fn run(mut self, queue: &Receiver<Arc<Membership>>) {
        let mut waiting: Vec<Arc<Membership>> = Vec::new();
        loop {
            let first = if waiting.is_empty() {
                queue.recv().map_err(RecvTimeoutError::from)
            } else {
                queue.recv_timeout(ROUND_REST)
            };
            match first {
                Ok(question) => waiting.push(question),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while waiting.len() < QUEUE {
                match queue.try_recv() {
                    Ok(question) => waiting.push(question),
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                }
            }
            waiting.retain(|question| !self.answer(question));
            thread::sleep(ROUND_REST);
        }
    }

    /// Answers a question; false if the tree has to be walked for it and may not be yet.
    fn answer(&mut self, question: &Membership) -> bool {
        if !self.paths.contains_key(&question.id) && !self.walk() {
            return false;
        }
        let path = self.paths.get(&question.id).cloned();
        let process = path.as_deref().and_then(|path| self.only_process(path));
        let checked_ns = self.clock.monotonic_ns();
        // Nobody else answers, so the cell is empty.
        question.answer.get_or_init(|| Answer { path, process, checked_ns });
        true
    }

    /// Reads the tree again; false if the last walk was too recent for that.
    fn walk(&mut self) -> bool {
        let Some(mount) = &self.mount else { return true };
        let start = self.clock.instant();
        if self.next_walk.is_some_and(|next| start < next) {
            return false;
        }
        self.paths = walk(mount);
        let end = self.clock.instant();
        self.next_walk = Some(end + (end - start) * WALK_REST);
        true
    }

    fn only_process(&self, path: &str) -> Option<Process> {
        let directory = self.mount.as_ref()?.join(path.trim_start_matches('/'));
        let pid = only_pid(&fs::read_to_string(directory.join("cgroup.procs")).ok()?)?;
        let stat = fs::read_to_string(self.proc.join(pid.to_string()).join("stat")).ok()?;
        let (comm, start_ticks) = parse_stat(&stat)?;
        // The start is counted from boot with the time asleep, the rest of the agent without it.
        let since_boot = start_ticks.saturating_mul(1_000_000_000 / USER_HZ);
        let started_ns = since_boot.saturating_sub(self.asleep_ns());
        Some(Process { pid, comm: comm.into(), started_ns })
    }

    fn asleep_ns(&self) -> u64 {
        let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let boot = boot.tv_sec.saturating_mul(1_000_000_000).saturating_add(boot.tv_nsec);
        u64::try_from(boot).unwrap_or(0).saturating_sub(self.clock.monotonic_ns())
    }
}

/// Every directory below a cgroup2 mount: inode, which is the cgroup id, and path.
fn walk(mount: &Path) -> HashMap<u64, Arc<str>> {
    let mut found = HashMap::new();
    if let Ok(root) = fs::metadata(mount) {
        found.insert(root.ino(), Arc::from("/"));
    }
    let mut open = vec![(mount.to_path_buf(), String::new())];
    while let Some((directory, path)) = open.pop() {
        // A directory that vanishes during the walk is not an error.
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if found.len() >= MAX_DIRECTORIES {
                return found;
            }
            let below = format!("{path}/{}", entry.file_name().to_string_lossy());
            found.insert(entry.ino(), Arc::from(below.as_str()));
            open.push((entry.path(), below));
        }
    }
    found
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
    use crate::clock::SystemClock;

    #[test]
    fn the_outermost_cgroup2_mount_is_found() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(cgroup2_mount(text), expected.map(PathBuf::from), "{text}");
        };
        check(
            "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw",
            Some("/sys/fs/cgroup"),
        );
        check(
            "30 25 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
             31 25 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu",
            Some("/sys/fs/cgroup/unified"),
        );
        check(
            "9 1 0:5 / /run/a/b/cgroup rw - cgroup2 cgroup2 rw\n\
             8 1 0:5 / /with\\040space rw - cgroup2 none rw",
            Some("/with space"),
        );
        check("31 25 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu", None);
        check("", None);
        check("garbage - cgroup2", None);
    }

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

    #[test]
    fn a_process_is_only_credited_with_flows_it_can_have_sent() {
        let process = Process { pid: 7, comm: "curl".into(), started_ns: 1_000 };
        let answer = Answer { path: None, process: Some(process), checked_ns: 5_000 };
        let membership = Membership::answered(1, answer);
        assert!(membership.process_at(999).is_none(), "began before the process did");
        assert!(membership.process_at(1_000).is_some());
        assert!(membership.process_at(5_001).is_none(), "began after the look");
        let late = Answer {
            path: None,
            process: Some(Process { pid: 7, comm: "curl".into(), started_ns: 0 }),
            checked_ns: FRESH_NS + 11,
        };
        let membership = Membership::answered(1, late);
        assert!(membership.process_at(10).is_none(), "looked too late");
        assert!(membership.process_at(11).is_some());
    }

    #[test]
    fn a_flow_that_began_after_the_last_look_asks_again() {
        let (sender, receiver) = sync_channel(4);
        let mut asking = Memberships { known: HashMap::new(), queue: Some(sender) };
        let first = asking.find(9, 100).unwrap();
        let second = asking.find(9, 120).unwrap();
        assert!(Arc::ptr_eq(&first, &second), "still unanswered, so shared");
        first.answer.set(Answer { path: None, process: None, checked_ns: 150 }).unwrap();
        assert!(Arc::ptr_eq(&first, &asking.find(9, 150).unwrap()));
        assert!(!Arc::ptr_eq(&first, &asking.find(9, 151).unwrap()));
        assert_eq!(receiver.try_iter().count(), 2);
    }

    #[test]
    fn a_question_that_found_the_queue_full_is_asked_again() {
        let (sender, receiver) = sync_channel(1);
        let mut asking = Memberships { known: HashMap::new(), queue: Some(sender) };
        asking.find(1, 0);
        asking.find(2, 0);
        assert_eq!(receiver.try_iter().map(|asked| asked.id).collect::<Vec<_>>(), [1]);
        asking.find(1, 0);
        asking.find(2, 0);
        assert_eq!(receiver.try_iter().map(|asked| asked.id).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn the_number_of_known_cgroups_is_bounded() {
        let mut asking = Memberships::unanswered();
        for id in 0..(MAX_CGROUPS as u64 + 50) {
            asking.find(id, 0);
        }
        assert_eq!(asking.known.len(), MAX_CGROUPS);
    }

    #[test]
    fn the_resolver_answers_from_a_tree() {
        let tree = std::env::temp_dir().join(format!("orb8-cgroup-{}", std::process::id()));
        let leaf = tree.join("cgroup/kubepods.slice/pod1");
        fs::create_dir_all(&leaf).unwrap();
        fs::write(leaf.join("cgroup.procs"), "4711\n").unwrap();
        fs::create_dir_all(tree.join("proc/4711")).unwrap();
        let stat = "4711 (web) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 0 20";
        fs::write(tree.join("proc/4711/stat"), stat).unwrap();
        let id = fs::metadata(&leaf).unwrap().ino();
        let roots = Roots { proc: tree.join("proc"), cgroup: Some(tree.join("cgroup")) };
        let clock = SystemClock::shared();
        let began = clock.monotonic_ns();
        let mut asking = start(&roots, clock).unwrap();
        let membership = asking.find(id, began).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while membership.answer.get().is_none() {
            assert!(Instant::now() < deadline, "no answer");
            thread::yield_now();
        }
        assert_eq!(membership.path(), Some("/kubepods.slice/pod1"));
        let process = membership.process_at(began).unwrap();
        assert_eq!((process.pid, &*process.comm), (4711, "web"));
        fs::remove_dir_all(&tree).unwrap();
    }

    proptest! {
        #[test]
        fn parsers_take_any_text(text in "\\PC*") {
            let _path = cgroup2_mount(&text);
            let _pid = only_pid(&text);
            let _stat = parse_stat(&text);
            let _plain = unescape(&text);
        }
    }
}
