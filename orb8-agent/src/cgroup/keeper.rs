//! The thread that keeps the index current and answers questions: sleeps until a cgroup is made or
//! removed, or until somebody asks.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::index::Cgroups;
use super::membership::{Answer, Bell, Line, Membership, Memberships, QUEUE};
use super::mounts::{Mode, Mounts};
use super::process::only_process;
use super::tree::{Bounds, Tree};
use super::{PodOf, Roots};
use crate::clock::Clock;

/// Walks and rounds of answers may take this part of a core: afterwards, as many times their own
/// duration pass.
const REST: u32 = 20;
/// After a round of answers at least this passes, so that a storm of flows costs little.
const ROUND_REST: Duration = Duration::from_millis(20);

/// Starts the thread; see [`super::start`].
pub(super) fn start(roots: &Roots, clock: Arc<dyn Clock>, pods: PodOf) -> io::Result<Memberships> {
    let mounts = Mounts::read(&roots.proc);
    let mode = mounts.mode(roots.cgroup.is_some());
    let mount = roots.cgroup.clone().or_else(|| mounts.outermost());
    let cgroups = Cgroups::empty(mode, mount.clone());
    let Some(mount) = mount else {
        cgroups.set_reason(match mode {
            Mode::V1 => "cgroup2 is not mounted: pods are told apart by interface and address",
            _ => "no cgroups are mounted: pods are told apart by interface and address",
        });
        return Ok(Memberships::unanswered(cgroups));
    };
    let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let (line, questions, bell) = Line::new(wake);
    let asking = Memberships::asking(cgroups.clone(), line);
    let proc = roots.proc.clone();
    let work = move || {
        let tree = Tree::new(mount, cgroups.clone(), pods, Bounds::AGENT);
        Keeper {
            proc,
            clock,
            cgroups,
            tree,
            questions,
            bell,
            waiting: Vec::new(),
            pause: None,
            walk: None,
        }
        .run();
    };
    thread::Builder::new().name("cgroup".to_owned()).stack_size(256 * 1024).spawn(work)?;
    Ok(asking)
}

struct Keeper {
    proc: PathBuf,
    clock: Arc<dyn Clock>,
    cgroups: Cgroups,
    tree: Tree,
    questions: Receiver<Arc<Membership>>,
    bell: Arc<Bell>,
    waiting: Vec<Arc<Membership>>,
    /// No questions are taken before.
    pause: Option<Instant>,
    /// No walk begins before.
    walk: Option<Instant>,
}

impl Keeper {
    fn run(mut self) {
        loop {
            let now = self.clock.instant();
            let now_ns = self.clock.monotonic_ns();
            self.tree.read_changes(now_ns);
            self.tree.forget(now_ns);
            if self.tree.is_behind() {
                self.read_all(now);
            }
            if self.pause.is_none_or(|until| until <= now) {
                self.pause = None;
                if !self.take_questions() {
                    return;
                }
                self.answer_all(now);
            }
            self.sleep(now, now_ns);
        }
    }

    /// False if nobody can ask any more.
    fn take_questions(&mut self) -> bool {
        self.bell.rearm();
        while self.waiting.len() < QUEUE {
            match self.questions.try_recv() {
                Ok(question) => self.waiting.push(question),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
        true
    }

    fn answer_all(&mut self, start: Instant) {
        if self.waiting.is_empty() {
            return;
        }
        // Changes made before these questions were asked.
        self.tree.read_changes(self.clock.monotonic_ns());
        for question in std::mem::take(&mut self.waiting) {
            if !self.answer(&question) {
                self.waiting.push(question);
            }
        }
        let end = self.clock.instant();
        self.pause = Some(end + ROUND_REST.max((end - start) * REST));
    }

    /// Answers a question; false if the tree has to be walked for it and may not be yet.
    fn answer(&mut self, question: &Membership) -> bool {
        let mut cgroup = self.cgroups.find(question.id);
        if cgroup.is_none() && !self.tree.is_current() {
            if !self.read_all(self.clock.instant()) {
                return false;
            }
            cgroup = self.cgroups.find(question.id);
        }
        let checked_ns = self.clock.monotonic_ns();
        let process = cgroup.as_ref().and_then(|cgroup| {
            self.tree.find_pod(cgroup);
            only_process(&self.tree.directory(&cgroup.path), &self.proc, checked_ns)
        });
        question.set(Answer { cgroup, process, checked_ns });
        true
    }

    /// Walks the tree; false if the last walk was too recent for that.
    fn read_all(&mut self, now: Instant) -> bool {
        if self.walk.is_some_and(|next| now < next) {
            return false;
        }
        self.tree.read_all(self.clock.monotonic_ns());
        let end = self.clock.instant();
        self.walk = Some(end + (end - now) * REST);
        true
    }

    /// Until something changes, somebody asks, or it is time for what had to wait.
    fn sleep(&self, now: Instant, now_ns: u64) {
        let forget = self.tree.forget_at().map(|at| {
            now + Duration::from_nanos(at.saturating_sub(now_ns)) + Duration::from_millis(1)
        });
        let owed = self.tree.is_behind() || !self.waiting.is_empty();
        let wake = [self.pause, self.walk.filter(|_| owed), forget];
        let left = wake.into_iter().flatten().min().map(|at| at.saturating_duration_since(now));
        let left = left.map(|left| Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        let changes = self.tree.changes();
        let bell = self.pause.is_none().then_some(&self.bell.wake);
        let ready = [changes.as_deref(), bell].into_iter().flatten();
        let mut ready: Vec<_> = ready.map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        // Interrupted is as good as woken: everything is looked at again.
        poll(&mut ready, left.as_ref()).ok();
    }
}
