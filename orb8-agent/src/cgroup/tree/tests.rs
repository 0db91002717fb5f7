//! Tests of the tree, on plain directories: inotify tells of them as of cgroups.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::cgroup::no_pods;

const SMALL: Bounds = Bounds { directories: 64, removed: 16 };

/// A directory of the test's own, removed with it; inotify and inodes are as on cgroupfs.
struct Place {
    top: PathBuf,
}

impl Place {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let top = std::env::temp_dir().join(format!("orb8-tree-{}-{n}", std::process::id()));
        fs::create_dir_all(&top).unwrap();
        Self { top }
    }

    fn make(&self, path: &str) -> u64 {
        fs::create_dir_all(self.top.join(path)).unwrap();
        self.id(path)
    }

    fn id(&self, path: &str) -> u64 {
        fs::metadata(self.top.join(path)).unwrap().ino()
    }

    fn remove(&self, path: &str) {
        fs::remove_dir(self.top.join(path)).unwrap();
    }

    fn tree(&self, bounds: Bounds) -> (Tree, Cgroups) {
        let cgroups = Cgroups::default();
        let mut tree = Tree::new(self.top.clone(), cgroups.clone(), no_pods(), bounds);
        tree.read_all(0);
        (tree, cgroups)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.top).ok();
    }
}

fn path(cgroups: &Cgroups, id: u64) -> Option<String> {
    cgroups.find(id).map(|cgroup| cgroup.path.to_string())
}

/// Watches that the kernel holds for the tree.
fn kernel_watches(tree: &Tree) -> usize {
    let fd = std::os::fd::AsRawFd::as_raw_fd(&*tree.changes().unwrap());
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
    text.lines().filter(|line| line.starts_with("inotify ")).count()
}

#[test]
fn a_tree_that_was_there_is_read_and_the_root_is_known_as_such() {
    let place = Place::new();
    let leaf = place.make("a/b/c");
    fs::write(place.top.join("a/cgroup.procs"), "").unwrap();
    let (tree, cgroups) = place.tree(SMALL);
    assert!(tree.is_current());
    assert_eq!(path(&cgroups, leaf).as_deref(), Some("/a/b/c"));
    let root = cgroups.find(place.id("")).unwrap();
    assert!(root.is_root() && &*root.path == "/");
    assert_eq!(cgroups.status().known, 4);
    assert_eq!(cgroups.status().reason, "");
}

#[test]
fn what_is_made_and_removed_later_is_told_by_inotify() {
    let place = Place::new();
    let (mut tree, cgroups) = place.tree(SMALL);
    let generation = cgroups.generation();
    let deep = place.make("x/y/z");
    tree.read_changes(5);
    assert_eq!(path(&cgroups, deep).as_deref(), Some("/x/y/z"), "made before anybody watched x");
    assert!(cgroups.generation() > generation);
    let inner = place.make("x/y/z/w");
    tree.read_changes(6);
    assert_eq!(path(&cgroups, inner).as_deref(), Some("/x/y/z/w"));
    place.remove("x/y/z/w");
    place.remove("x/y/z");
    tree.read_changes(7);
    assert_eq!(tree.nodes.len(), 3);
    assert_eq!(tree.watched.len(), 3, "watches go with their directories");
    assert_eq!(kernel_watches(&tree), 3);
    assert_eq!(path(&cgroups, inner).as_deref(), Some("/x/y/z/w"), "late records may come");
}

#[test]
fn a_removed_cgroup_is_known_for_a_minute_and_its_name_may_come_again() {
    let place = Place::new();
    let first = place.make("a");
    let (mut tree, cgroups) = place.tree(SMALL);
    place.remove("a");
    // Holds the inode's number while the first one is gone.
    let other = place.make("b");
    let second = place.make("a");
    tree.read_changes(1_000);
    let live = [other, second];
    if !live.contains(&first) {
        tree.forget(1_000 + KEPT_NS - 1);
        assert!(cgroups.find(first).is_some());
        assert_eq!(tree.forget_at(), Some(1_000 + KEPT_NS));
        tree.forget(1_000 + KEPT_NS);
        assert!(cgroups.find(first).is_none());
    }
    tree.forget(u64::MAX);
    assert_eq!(path(&cgroups, second).as_deref(), Some("/a"));
    assert_eq!(path(&cgroups, other).as_deref(), Some("/b"));
    assert_eq!(tree.forget_at(), None, "nothing wakes the keeper any more");
}

#[test]
fn an_id_given_out_again_is_not_forgotten_with_its_former_owner() {
    let cgroups = Cgroups::default();
    let old = Arc::new(Cgroup::new(9, "/old", &no_pods()));
    let new = Arc::new(Cgroup::new(9, "/new", &no_pods()));
    cgroups.insert(Arc::clone(&old));
    cgroups.insert(new);
    cgroups.remove(&old);
    assert_eq!(path(&cgroups, 9).as_deref(), Some("/new"));
    assert_eq!(cgroups.status().known, 1);
}

#[test]
fn a_moved_directory_takes_what_is_below_it_along() {
    let place = Place::new();
    let leaf = place.make("a/b/c");
    place.make("ab");
    let (mut tree, cgroups) = place.tree(SMALL);
    fs::rename(place.top.join("a"), place.top.join("z")).unwrap();
    tree.read_changes(1);
    assert_eq!(path(&cgroups, leaf).as_deref(), Some("/z/b/c"));
    assert_eq!(path(&cgroups, place.id("ab")).as_deref(), Some("/ab"));
    let later = place.make("z/b/c/d");
    tree.read_changes(2);
    assert_eq!(path(&cgroups, later).as_deref(), Some("/z/b/c/d"));
    assert_eq!(tree.watched.len(), tree.nodes.len());
    assert_eq!(kernel_watches(&tree), tree.nodes.len());
}

#[test]
fn a_name_that_was_given_again_unseen_is_another_cgroup() {
    let place = Place::new();
    let first = place.make("a");
    let (mut tree, cgroups) = place.tree(SMALL);
    place.remove("a");
    let second = [place.make("b"), place.make("a")][1];
    // The walk comes before the events are read.
    tree.read_all(1);
    tree.read_changes(2);
    tree.forget(u64::MAX);
    assert_eq!(path(&cgroups, second).as_deref(), Some("/a"));
    assert_ne!(path(&cgroups, first).as_deref(), Some(if first == second { "/b" } else { "/a" }));
    let inside = place.make("a/c");
    tree.read_changes(3);
    assert_eq!(path(&cgroups, inside).as_deref(), Some("/a/c"), "it is watched");
    assert_eq!(kernel_watches(&tree), tree.nodes.len());
}

#[test]
fn directories_beyond_the_bound_are_counted_and_said() {
    let place = Place::new();
    for n in 0..10 {
        place.make(&format!("d{n}"));
    }
    let (mut tree, cgroups) = place.tree(Bounds { directories: 8, removed: 4 });
    assert_eq!(tree.nodes.len(), 8);
    assert!(!tree.is_current(), "an id that is not known may be one of the others");
    let status = cgroups.status();
    assert_eq!((status.known, status.rejected), (8, 3));
    tree.read_all(1);
    assert_eq!(cgroups.status().rejected, 3, "the same ones");
    assert!(status.reason.contains("more than 8 cgroups"), "{}", status.reason);
    assert_eq!(kernel_watches(&tree), 8, "no watch without an entry");
    for n in 0..5 {
        place.remove(&format!("d{n}"));
    }
    tree.read_changes(1);
    tree.read_all(2);
    assert!(tree.is_current());
    assert_eq!(cgroups.status().rejected, 0);
    assert!((5..10).all(|n| cgroups.find(place.id(&format!("d{n}"))).is_some()));
}

#[test]
fn removed_cgroups_are_bounded() {
    let place = Place::new();
    let ids: Vec<u64> = (0..8).map(|n| place.make(&format!("d{n}"))).collect();
    let (mut tree, cgroups) = place.tree(Bounds { directories: 64, removed: 4 });
    for n in 0..8 {
        place.remove(&format!("d{n}"));
    }
    tree.read_changes(1);
    let known = ids.iter().filter(|id| cgroups.find(**id).is_some()).count();
    assert_eq!((known, tree.removed.len()), (4, 4));
}

#[test]
fn after_an_overflow_the_tree_is_read_again() {
    let place = Place::new();
    let stays = place.make("stays");
    let goes = place.make("goes");
    let (mut tree, cgroups) = place.tree(SMALL);
    // As if these had been lost. In this order, because a folder gives its number to the next one,
    // which cgroups do not.
    let comes = place.make("new/below");
    place.remove("goes");
    let mut lost = [MaybeUninit::uninit(); EVENTS];
    let inotify = tree.changes().unwrap();
    let mut reader = inotify::Reader::new(&*inotify, &mut lost);
    while reader.next().is_ok() {}
    tree.change(-1, ReadFlags::QUEUE_OVERFLOW, None, 1);
    assert!(tree.is_behind() && !tree.is_current());
    assert!(cgroups.status().reason.contains("read again"));
    assert_eq!(path(&cgroups, comes), None);
    tree.read_all(2);
    assert!(tree.is_current());
    assert_eq!(cgroups.status().reason, "");
    assert_eq!(path(&cgroups, stays).as_deref(), Some("/stays"));
    assert_eq!(path(&cgroups, comes).as_deref(), Some("/new/below"));
    assert!(!tree.nodes.contains_key("/goes"));
    tree.forget(u64::MAX);
    assert_ne!(path(&cgroups, goes).as_deref(), Some("/goes"));
}

#[test]
fn without_inotify_the_tree_says_so_and_is_walked() {
    let place = Place::new();
    let cgroups = Cgroups::default();
    let mut tree = Tree::new(place.top.clone(), cgroups.clone(), no_pods(), SMALL);
    (tree.inotify, tree.blind) = (None, Some(Errno::MFILE));
    tree.read_all(0);
    assert!(!tree.is_current() && !tree.is_behind());
    insta::assert_snapshot!(
        cgroups.status().reason,
        @"inotify is refused (Too many open files (os error 24)), so new cgroups are looked for by walking"
    );
    let later = place.make("later");
    tree.read_changes(1);
    assert_eq!(path(&cgroups, later), None);
    tree.read_all(2);
    assert_eq!(path(&cgroups, later).as_deref(), Some("/later"));
    assert!(!tree.is_current(), "still walked");
}

#[test]
fn where_watches_run_out_that_is_said_until_there_are_enough() {
    let place = Place::new();
    let (mut tree, cgroups) = place.tree(SMALL);
    tree.blind = Some(Errno::NOSPC);
    let later = place.make("later");
    tree.read_changes(1);
    assert!(!tree.is_current());
    assert!(cgroups.find(later).is_some(), "what is watched is told all the same");
    insta::assert_snapshot!(
        cgroups.status().reason,
        @"there are more cgroups than inotify watches, so new ones are looked for by walking: raise fs.inotify.max_user_watches"
    );
    tree.read_all(2);
    assert!(tree.is_current());
    assert_eq!(cgroups.status().reason, "");
}

#[test]
fn a_root_that_cannot_be_read_is_said_and_found_when_it_comes() {
    let place = Place::new();
    let cgroups = Cgroups::default();
    let root = place.top.join("later");
    let mut tree = Tree::new(root, cgroups.clone(), no_pods(), SMALL);
    tree.read_all(0);
    assert!(!tree.is_current());
    assert!(cgroups.status().reason.contains("cannot be read"));
    let inside = place.make("later/a");
    tree.read_all(1);
    assert!(tree.is_current());
    assert_eq!(path(&cgroups, inside).as_deref(), Some("/a"));
}
