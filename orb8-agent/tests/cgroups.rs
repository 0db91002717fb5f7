//! The cgroup index on the real cgroup2, in a subtree of the test's own, and on directories that
//! stand for other hosts.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::HashMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use orb8_agent::cgroup::{
    self, Cgroup, Cgroups, Driver, Memberships, Mode, Mounts, PodOf, Roots, Runtime, no_pods,
};
use orb8_agent::clock::SystemClock;
use orb8_agent::k8s::model::Pod;
use orb8_testbed::need;
use orb8_testbed::need::Need;
use orb8_testbed::wait::{wait_for, wait_until};

const DEADLINE: Duration = Duration::from_secs(60);
const UID: &str = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";

/// A subtree of the real cgroup2. Its processes go to the parent and it goes when dropped.
struct Subtree {
    top: PathBuf,
}

impl Subtree {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mount = Mounts::read(Path::new("/proc")).outermost();
        let mount = mount.expect("cgroup2 is not mounted: mount it for this test");
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let top = mount.join(format!("orb8-cgroups-{}-{n}", std::process::id()));
        fs::create_dir(&top).unwrap();
        Self { top }
    }

    fn make(&self, path: &str) -> u64 {
        let directory = self.top.join(path);
        fs::create_dir_all(&directory).unwrap();
        fs::metadata(directory).unwrap().ino()
    }

    fn remove(&self, path: &str) {
        fs::remove_dir(self.top.join(path)).unwrap();
    }

    fn put(&self, path: &str, pid: u32) {
        fs::write(self.top.join(path).join("cgroup.procs"), pid.to_string()).unwrap();
    }

    fn start(&self, pods: PodOf) -> Memberships {
        let roots = Roots { proc: "/proc".into(), cgroup: Some(self.top.clone()) };
        cgroup::start(&roots, SystemClock::shared(), pods).unwrap()
    }
}

impl Drop for Subtree {
    fn drop(&mut self) {
        clear(&self.top);
    }
}

/// Removes a cgroup and those below it; a killed process may take a moment to leave.
fn clear(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            clear(&entry.path());
        }
    }
    if fs::remove_dir(directory).is_err() {
        fs::write(directory.join("cgroup.kill"), "1").ok();
        let end = std::time::Instant::now() + Duration::from_secs(5);
        while fs::remove_dir(directory).is_err() && std::time::Instant::now() < end {
            std::thread::yield_now();
        }
    }
}

/// A process that waits until it is dropped.
struct Waiter(Child);

impl Waiter {
    fn new() -> Self {
        let child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        Self(child.expect("cat can be started"))
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A registry of pods: one for each uid, and no room while it is told so.
#[derive(Default)]
struct Pods {
    pods: Mutex<HashMap<String, Arc<Pod>>>,
    full: std::sync::atomic::AtomicBool,
}

impl Pods {
    fn source(self: &Arc<Self>) -> PodOf {
        let pods = Arc::clone(self);
        Arc::new(move |uid| {
            if pods.full.load(Ordering::SeqCst) {
                return None;
            }
            let mut held = pods.pods.lock().unwrap();
            let pod = held.entry(uid.to_owned()).or_insert_with(|| Arc::new(Pod::unnamed(uid)));
            Some(Arc::clone(pod))
        })
    }
}

fn id(fill: u8) -> String {
    format!("{fill:02x}").repeat(32)
}

fn known(cgroups: &Cgroups, id: u64) -> Arc<Cgroup> {
    wait_for(DEADLINE, "the cgroup is known", || cgroups.find(id))
}

#[test]
fn containers_that_were_there_and_those_that_come_lead_to_one_pod() {
    need!(Need::Root);
    let tree = Subtree::new();
    let slice = format!(
        "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice",
        UID.replace('-', "_")
    );
    let pod_id = tree.make(&slice);
    let early = tree.make(&format!("{slice}/cri-containerd-{}.scope", id(1)));
    let pods = Arc::new(Pods::default());
    let memberships = tree.start(pods.source());
    let cgroups = memberships.cgroups();
    let found = known(cgroups, early);
    let placement = found.placement.as_ref().unwrap();
    let container = placement.container.as_ref().unwrap();
    assert_eq!((&*container.id, container.runtime), (id(1).as_str(), Some(Runtime::Containerd)));
    let late = tree.make(&format!("{slice}/cri-containerd-{}.scope", id(2)));
    let found = [known(cgroups, pod_id), found, known(cgroups, late)];
    let held = pods.pods.lock().unwrap();
    assert_eq!(held.len(), 1);
    for cgroup in &found {
        assert!(Arc::ptr_eq(cgroup.pod().unwrap(), &held[UID]), "{}", cgroup.path);
    }
    let status = cgroups.status();
    assert_eq!(status.runtimes, [Runtime::Containerd]);
    assert_eq!(status.driver, Some(Driver::Systemd));
    assert_eq!((status.reason.as_str(), status.rejected), ("", 0));
    assert_eq!(status.known, 6, "the root, three slices, two containers");
}

#[test]
fn a_process_put_into_a_nested_cgroup_belongs_to_the_container_above() {
    need!(Need::Root);
    let tree = Subtree::new();
    let clock = SystemClock::shared();
    let container = format!("kubepods/besteffort/pod{UID}/{}", id(3));
    tree.make(&container);
    let mut memberships = tree.start(Arc::new(Pods::default()).source());
    let nested = tree.make(&format!("{container}/init/session"));
    let process = Waiter::new();
    tree.put(&format!("{container}/init/session"), process.pid());
    let began = clock.monotonic_ns();
    let membership = memberships.find(nested, began).unwrap();
    wait_until(DEADLINE, "the cgroup is found", || {
        memberships.find(nested, began).is_some_and(|it| it.process_at(began).is_some())
            || membership.process_at(began).is_some()
    });
    let membership = memberships.find(nested, began).unwrap();
    let cgroup = membership.cgroup().unwrap();
    let placement = cgroup.placement.as_ref().unwrap();
    assert_eq!(placement.container.as_ref().unwrap().id.as_ref(), id(3));
    assert_eq!(&*placement.nested, "init/session");
    assert_eq!(&*cgroup.pod().unwrap().uid, UID);
    let found = membership.process_at(began).unwrap();
    assert_eq!((found.pid, &*found.comm), (process.pid(), "cat"));
}

#[test]
fn a_moved_process_is_not_named_for_its_old_cgroup_and_its_sockets_keep_it() {
    need!(Need::Root, Need::Tool("python3"), Need::Tool("ss"));
    let tree = Subtree::new();
    let (old, new) = (tree.make("system.slice/old.service"), tree.make("system.slice/new.service"));
    let script = "import os,socket,sys\n\
        sys.stdin.readline()\n\
        s=socket.socket(); s.bind(('127.0.0.1',0)); s.listen()\n\
        print(s.getsockname()[1],flush=True)\n\
        sys.stdin.readline()";
    let mut server = Waiter(
        Command::new("python3")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    tree.put("system.slice/old.service", server.pid());
    server.0.stdin.as_mut().unwrap().write_all(b"listen\n").unwrap();
    let mut port = String::new();
    let mut output = std::io::BufReader::new(server.0.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut output, &mut port).unwrap();
    tree.put("system.slice/new.service", server.pid());
    let mut memberships = tree.start(no_pods());
    let began = SystemClock::shared().monotonic_ns();
    let mut named = |id| {
        let membership = wait_for(DEADLINE, "the cgroup is answered", || {
            let membership = memberships.find(id, began)?;
            // A second question is another object only once the first is answered.
            let again = memberships.find(id, u64::MAX)?;
            (!Arc::ptr_eq(&membership, &again)).then_some(membership)
        });
        (membership.path().map(str::to_owned), membership.process_at(began).map(|it| it.pid))
    };
    assert_eq!(named(old), (Some("/system.slice/old.service".to_owned()), None));
    assert_eq!(named(new), (Some("/system.slice/new.service".to_owned()), Some(server.pid())));
    let filter = format!("sport = :{}", port.trim());
    let shown = Command::new("ss").args(["-Htln", "--cgroup", &filter]).output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("/system.slice/old.service"), "the socket's cgroup: {shown}");
}

#[test]
fn an_id_that_was_gone_before_it_was_looked_at_is_answered_as_gone() {
    need!(Need::Root);
    let tree = Subtree::new();
    let gone = tree.make("short");
    tree.remove("short");
    let mut memberships = tree.start(no_pods());
    let membership = memberships.find(gone, 1).unwrap();
    wait_until(DEADLINE, "the question is answered", || membership.is_gone());
    assert_eq!(membership.path(), None);
    assert_eq!(memberships.cgroups().status().reason, "");
}

#[test]
fn a_cgroup_stays_known_after_rmdir() {
    need!(Need::Root);
    let tree = Subtree::new();
    let memberships = tree.start(no_pods());
    let cgroups = memberships.cgroups();
    let id = tree.make("docker/short");
    known(cgroups, id);
    tree.remove("docker/short");
    // What is made afterwards is told afterwards.
    let next = tree.make("docker/next");
    known(cgroups, next);
    assert_eq!(cgroups.find(id).map(|it| it.path.to_string()).as_deref(), Some("/docker/short"));
    let again = tree.make("docker/short");
    known(cgroups, again);
    assert_ne!(id, again, "cgroup2 gives no id out twice");
    assert!(cgroups.find(id).is_some());
}

#[test]
fn ten_thousand_cgroups_are_known_as_they_are_made() {
    need!(Need::Root);
    let tree = Subtree::new();
    let memberships = tree.start(Arc::new(Pods::default()).source());
    let cgroups = memberships.cgroups();
    let pod = |n: u32| format!("kubepods/besteffort/pod{n:08x}{}", &UID[8..]);
    let start = std::time::Instant::now();
    let ids: Vec<u64> = (0..5_000)
        .map(|n| tree.make(&format!("{}/{}", pod(n), id(u8::try_from(n % 256).unwrap()))))
        .collect();
    let made = start.elapsed();
    wait_until(DEADLINE, "all are known", || ids.iter().all(|id| cgroups.find(*id).is_some()));
    println!("10 000 cgroups made in {made:?}, known after {:?}", start.elapsed());
    for (n, id) in ids.iter().enumerate() {
        let found = cgroups.find(*id).unwrap();
        let uid = format!("{n:08x}{}", &UID[8..]);
        assert_eq!(found.pod().map(|pod| &*pod.uid), Some(uid.as_str()));
    }
    assert_eq!(cgroups.status().known, 10_003);
    assert_eq!(cgroups.status().rejected, 0);
}

#[test]
fn a_pod_refused_for_want_of_room_is_found_when_there_is_room() {
    need!(Need::Root);
    let tree = Subtree::new();
    let pods = Arc::new(Pods::default());
    pods.full.store(true, Ordering::SeqCst);
    let mut memberships = tree.start(pods.source());
    let id = tree.make(&format!("kubepods/pod{UID}"));
    assert!(known(memberships.cgroups(), id).pod().is_none());
    pods.full.store(false, Ordering::SeqCst);
    let clock = SystemClock::shared();
    wait_until(DEADLINE, "the pod is found", || {
        let membership = memberships.find(id, clock.monotonic_ns()).unwrap();
        membership.cgroup().is_some_and(|cgroup| cgroup.pod().is_some())
    });
}

#[test]
fn a_host_without_cgroup2_says_so_and_answers_nothing() {
    let top = std::env::temp_dir().join(format!("orb8-no-cgroup2-{}", std::process::id()));
    fs::create_dir_all(top.join("self")).unwrap();
    for (mounts, mode, reason) in [
        (
            "31 25 0:28 / /nowhere/cpu rw - cgroup cgroup rw,cpu\n",
            Mode::V1,
            "cgroup2 is not mounted: pods are told apart by interface and address",
        ),
        ("", Mode::None, "no cgroups are mounted: pods are told apart by interface and address"),
    ] {
        fs::write(top.join("self/mountinfo"), mounts).unwrap();
        let roots = Roots { proc: top.clone(), cgroup: None };
        let mut memberships = cgroup::start(&roots, SystemClock::shared(), no_pods()).unwrap();
        let status = memberships.cgroups().status();
        assert_eq!((status.mode, status.mount), (mode, None));
        assert_eq!(status.reason, reason);
        let membership = memberships.find(1, 0).unwrap();
        assert_eq!((membership.path(), membership.is_gone()), (None, false));
    }
    fs::remove_dir_all(&top).unwrap();
}

#[test]
fn a_hybrid_host_is_read_below_its_cgroup2_mount() {
    let top = std::env::temp_dir().join(format!("orb8-hybrid-{}", std::process::id()));
    let container = format!("kubepods/burstable/pod{UID}/{}", id(4));
    let unified = top.join("cgroup/unified");
    for hierarchy in [top.join("cgroup/cpu"), unified.clone()] {
        fs::create_dir_all(hierarchy.join(&container)).unwrap();
    }
    fs::create_dir_all(top.join("self")).unwrap();
    let line = |kind: &str, at: &str, options: &str| {
        format!("30 25 0:27 / {} rw - {kind} {kind} {options}\n", top.join(at).display())
    };
    let mounts = line("cgroup", "cgroup/cpu", "rw,cpu") + &line("cgroup2", "cgroup/unified", "rw");
    fs::write(top.join("self/mountinfo"), mounts).unwrap();
    let roots = Roots { proc: top.clone(), cgroup: None };
    let pods = Arc::new(Pods::default());
    let memberships = cgroup::start(&roots, SystemClock::shared(), pods.source()).unwrap();
    let inode = fs::metadata(unified.join(&container)).unwrap().ino();
    let found = known(memberships.cgroups(), inode);
    assert_eq!((&*found.path, &*found.pod().unwrap().uid), (&*format!("/{container}"), UID));
    let status = memberships.cgroups().status();
    assert_eq!((status.mode, status.mount), (Mode::Hybrid, Some(unified)));
    assert_eq!((status.driver, status.runtimes), (Some(Driver::Cgroupfs), vec![]));
    fs::remove_dir_all(&top).unwrap();
}
