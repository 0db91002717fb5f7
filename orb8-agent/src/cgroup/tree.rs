//! The keeper's copy of the cgroup2 tree: a walk at the start, then what inotify tells.
//!
//! A directory is watched before it is read, so that nothing made meanwhile is missed, and `mkdir`
//! tells before anybody can have a socket in the new cgroup: while every directory is watched, an
//! id that is not here after all events were read belongs to no cgroup below the root.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use super::PodOf;
use super::index::{Cgroup, Cgroups};

/// A removed cgroup stays known for this long: counts and events of its sockets arrive late.
const KEPT_NS: u64 = 60_000_000_000;
/// Bytes of events that are read at once.
const EVENTS: usize = 16 * 1024;
const WATCHED: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::ONLYDIR)
    .union(WatchFlags::DONT_FOLLOW);

/// How much of the tree is held.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Directories.
    pub(super) directories: usize,
    /// Removed cgroups that are still known.
    pub(super) removed: usize,
}

impl Bounds {
    /// The agent's.
    pub(super) const AGENT: Self = Self { directories: 65_536, removed: 16_384 };
}

/// The tree below one directory.
pub(super) struct Tree {
    root: PathBuf,
    cgroups: Cgroups,
    pods: PodOf,
    bounds: Bounds,
    nodes: HashMap<Arc<str>, Node>,
    removed: VecDeque<(u64, Arc<Cgroup>)>,
    inotify: Option<Arc<OwnedFd>>,
    watched: HashMap<i32, Arc<str>>,
    /// Why inotify does not tell everything, if so.
    blind: Option<Errno>,
    /// Events were lost since the last walk.
    behind: bool,
    full: bool,
    /// Directories for which there was no room since the last walk began.
    rejected: u64,
    /// Number of the last walk.
    walk: u32,
}

struct Node {
    cgroup: Arc<Cgroup>,
    watch: Option<i32>,
    /// The walk that saw it last; none if it was not read yet.
    walk: Option<u32>,
}

impl Tree {
    /// A tree of which nothing is known yet; [`Self::read_all`] comes first.
    pub(super) fn new(root: PathBuf, cgroups: Cgroups, pods: PodOf, bounds: Bounds) -> Self {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK);
        Self {
            root,
            cgroups,
            pods,
            bounds,
            nodes: HashMap::new(),
            removed: VecDeque::new(),
            blind: inotify.as_ref().err().copied(),
            inotify: inotify.ok().map(Arc::new),
            watched: HashMap::new(),
            behind: true,
            full: false,
            rejected: 0,
            walk: 0,
        }
    }

    /// What becomes readable when something changed; none without inotify.
    pub(super) fn changes(&self) -> Option<Arc<OwnedFd>> {
        self.inotify.clone()
    }

    /// Whether an id that is not in the index is in no directory either.
    pub(super) fn is_current(&self) -> bool {
        self.blind.is_none() && !self.behind && !self.full && self.nodes.contains_key("/")
    }

    /// Whether events were lost, so that the tree has to be walked whoever asks.
    pub(super) const fn is_behind(&self) -> bool {
        self.behind
    }

    /// The directory of a cgroup.
    pub(super) fn directory(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Looks a cgroup's pod up again, if there was no room for it.
    pub(super) fn find_pod(&self, cgroup: &Cgroup) {
        cgroup.find_pod(&self.pods);
    }

    /// Reads the whole tree; what is not there any more is removed at `now_ns`.
    pub(super) fn read_all(&mut self, now_ns: u64) {
        self.walk = self.walk.wrapping_add(1);
        self.behind = false;
        self.full = false;
        self.rejected = 0;
        self.blind = self.inotify.is_none().then_some(self.blind).flatten();
        self.read("/".to_owned(), now_ns);
        let unseen = |node: &Node| node.walk != Some(self.walk);
        let gone = self.nodes.iter().filter(|(_, node)| unseen(node));
        let gone: Vec<Arc<str>> = gone.map(|(path, _)| Arc::clone(path)).collect();
        for path in gone {
            self.remove(&path, now_ns);
        }
        self.tell();
    }

    /// Takes in what changed since the last call.
    pub(super) fn read_changes(&mut self, now_ns: u64) {
        let Some(inotify) = self.inotify.clone() else { return };
        let mut buffer = [MaybeUninit::uninit(); EVENTS];
        let mut reader = inotify::Reader::new(&*inotify, &mut buffer);
        // Ends with `WOULDBLOCK`; whatever else ends it shows again with the next call.
        while let Ok(event) = reader.next() {
            let name = event.file_name().map(|name| name.to_string_lossy().into_owned());
            self.change(event.wd(), event.events(), name.as_deref(), now_ns);
        }
    }

    /// Forgets removed cgroups whose time is over.
    pub(super) fn forget(&mut self, now_ns: u64) {
        while let Some((at, cgroup)) = self.removed.front()
            && (now_ns.saturating_sub(*at) >= KEPT_NS || self.removed.len() > self.bounds.removed)
        {
            self.cgroups.remove(cgroup);
            self.removed.pop_front();
        }
    }

    /// When the next removed cgroup is to be forgotten, in the same clock.
    pub(super) fn forget_at(&self) -> Option<u64> {
        self.removed.front().map(|(at, _)| at.saturating_add(KEPT_NS))
    }

    fn change(&mut self, watch: i32, what: ReadFlags, name: Option<&str>, now_ns: u64) {
        if what.contains(ReadFlags::QUEUE_OVERFLOW) {
            self.behind = true;
            self.tell();
            return;
        }
        let Some(at) = self.watched.get(&watch).cloned() else { return };
        if what.contains(ReadFlags::IGNORED) {
            // Not by us, so the directory is gone, or the file system is.
            self.watched.remove(&watch);
            self.remove(&at, now_ns);
            return;
        }
        let Some(name) = name.filter(|_| what.contains(ReadFlags::ISDIR)) else { return };
        let path = below(&at, name);
        if what.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
            self.read(path, now_ns);
            self.tell();
        } else if what.contains(ReadFlags::MOVED_FROM) {
            self.remove_tree(&path, now_ns);
        } else if what.contains(ReadFlags::DELETE) {
            self.remove(&path, now_ns);
        }
    }

    /// Reads a directory and all below it.
    fn read(&mut self, path: String, now_ns: u64) {
        let mut open = vec![path];
        while let Some(path) = open.pop() {
            let directory = self.directory(&path);
            // What vanishes meanwhile is no error.
            let Ok(found) = fs::symlink_metadata(&directory) else { continue };
            if !found.is_dir() || !self.take(&path, found.ino(), now_ns) {
                continue;
            }
            let Ok(entries) = fs::read_dir(&directory) else { continue };
            let directories =
                entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            open.extend(
                directories.map(|entry| below(&path, &entry.file_name().to_string_lossy())),
            );
        }
    }

    /// Takes a directory in and watches it; false if it has not to be read, because it was in this
    /// walk, is gone or finds no room.
    fn take(&mut self, path: &str, id: u64, now_ns: u64) -> bool {
        if self.nodes.get(path).is_some_and(|node| node.cgroup.id != id) {
            self.remove(path, now_ns);
        }
        if !self.nodes.contains_key(path) {
            if self.nodes.len() >= self.bounds.directories {
                self.full = true;
                self.rejected += 1;
                return false;
            }
            let cgroup = Arc::new(Cgroup::new(id, path, &self.pods));
            let node = Node { cgroup: Arc::clone(&cgroup), watch: None, walk: None };
            self.nodes.insert(Arc::clone(&cgroup.path), node);
            self.cgroups.insert(cgroup);
        }
        self.watch(path);
        let walk = Some(self.walk);
        self.nodes.get_mut(path).is_some_and(|node| std::mem::replace(&mut node.walk, walk) != walk)
    }

    fn watch(&mut self, path: &str) {
        let directory = self.directory(path);
        let (Some(inotify), Some(node)) = (&self.inotify, self.nodes.get_mut(path)) else { return };
        if node.watch.is_some() {
            return;
        }
        match inotify::add_watch(inotify, directory, WATCHED) {
            Ok(watch) => {
                node.watch = Some(watch);
                self.watched.insert(watch, Arc::clone(&node.cgroup.path));
            }
            // Gone already; its parent's watch tells.
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(error) => self.blind = Some(error),
        }
    }

    fn remove_tree(&mut self, top: &str, now_ns: u64) {
        let inside = |path: &str| path.strip_prefix(top).is_some_and(|it| it.starts_with('/'));
        let below = self.nodes.keys().filter(|path| inside(path)).cloned().collect::<Vec<_>>();
        for path in below {
            self.remove(&path, now_ns);
        }
        self.remove(top, now_ns);
    }

    fn remove(&mut self, path: &str, now_ns: u64) {
        let Some(node) = self.nodes.remove(path) else { return };
        if let (Some(inotify), Some(watch)) = (&self.inotify, node.watch)
            && self.watched.remove(&watch).is_some()
        {
            // On cgroupfs a watch outlives its directory, and keeps it in memory.
            inotify::remove_watch(inotify, watch).ok();
        }
        self.removed.push_back((now_ns, node.cgroup));
        self.forget(now_ns);
    }

    fn tell(&self) {
        let root = self.root.display();
        let reason = if !self.nodes.contains_key("/") {
            format!("{root} cannot be read: set ORB8_CGROUP_ROOT to the cgroup2 mount")
        } else if self.full {
            let bound = self.bounds.directories;
            format!("{root} holds more than {bound} cgroups: the others are not resolved")
        } else if self.blind == Some(Errno::NOSPC) {
            "there are more cgroups than inotify watches, so new ones are looked for by walking: \
             raise fs.inotify.max_user_watches"
                .to_owned()
        } else if let Some(error) = self.blind {
            format!("inotify is refused ({error}), so new cgroups are looked for by walking")
        } else if self.behind {
            "changes came faster than they were read: the cgroups are read again".to_owned()
        } else {
            String::new()
        };
        self.cgroups.set_reason(&reason);
        self.cgroups.set_rejected(self.rejected);
    }
}

fn below(path: &str, name: &str) -> String {
    if path == "/" { format!("/{name}") } else { format!("{path}/{name}") }
}

#[cfg(test)]
mod tests;
