//! Reads the kernel's counters and who is in which network namespace, below a `/proc`.
//!
//! Reads files and nothing else: no namespace is entered, and whoever may not look at a process does
//! not see its namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use super::counters::{self, Device, Stack};

/// Processes through which a namespace may be read: some may end within the window.
const READERS: usize = 8;

/// A `/proc`.
#[derive(Clone, Debug)]
pub struct Proc {
    root: PathBuf,
}

/// Network namespaces by inode number, each with some of the processes in it.
pub type Namespaces = BTreeMap<u64, Vec<u32>>;

/// Everything that the kernel had counted at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Interfaces of this process's network namespace.
    pub devices: BTreeMap<String, Device>,
    /// Protocol counters by network namespace.
    pub stacks: BTreeMap<u64, Stack>,
}

/// Where the processes of a cgroup are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// All in this network namespace.
    In(u64),
    /// In several.
    Several,
    /// It has none, or none that may be looked at.
    Unknown,
}

impl Proc {
    /// The `/proc` at this directory.
    #[must_use]
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    fn file(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    /// Of this machine since it was started.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn boot_id(&self) -> io::Result<String> {
        Ok(fs::read_to_string(self.file("sys/kernel/random/boot_id"))?.trim().to_owned())
    }

    /// The network namespace of a process; `self` is this one.
    #[must_use]
    pub fn namespace(&self, process: &str) -> Option<u64> {
        let link = fs::read_link(self.file(process).join("ns/net")).ok()?;
        link.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
    }

    /// Every network namespace that a process is in.
    ///
    /// # Errors
    /// There is no such directory.
    pub fn namespaces(&self) -> io::Result<Namespaces> {
        let mut found = Namespaces::new();
        for entry in fs::read_dir(&self.root)? {
            let name = entry?.file_name();
            let process = name.to_str().and_then(|name| Some((name, name.parse().ok()?)));
            let Some((name, number)) = process else { continue };
            if let Some(namespace) = self.namespace(name) {
                let processes = found.entry(namespace).or_default();
                if processes.len() < READERS {
                    processes.push(number);
                }
            }
        }
        Ok(found)
    }

    /// Reads all counters once: those of interfaces, which most passes, next to what comes after.
    ///
    /// # Errors
    /// The interfaces cannot be read.
    pub fn read_before(&self, own: u64, namespaces: &Namespaces) -> io::Result<Reading> {
        let stacks = self.stacks(own, namespaces);
        Ok(Reading { devices: self.devices()?, stacks })
    }

    /// The same next to what came before.
    ///
    /// # Errors
    /// The interfaces cannot be read.
    pub fn read_after(&self, own: u64, namespaces: &Namespaces) -> io::Result<Reading> {
        let devices = self.devices()?;
        Ok(Reading { devices, stacks: self.stacks(own, namespaces) })
    }

    fn devices(&self) -> io::Result<BTreeMap<String, Device>> {
        Ok(counters::devices(&fs::read_to_string(self.file("self/net/dev"))?))
    }

    fn stacks(&self, own: u64, namespaces: &Namespaces) -> BTreeMap<u64, Stack> {
        let read = |(namespace, processes): (&u64, &Vec<u32>)| {
            let through = |process: &u32| self.stack(&process.to_string(), *namespace);
            let own = (*namespace == own).then(|| self.stack("self", own)).flatten();
            let stack = own.or_else(|| processes.iter().find_map(through))?;
            Some((*namespace, stack))
        };
        namespaces.iter().filter_map(read).collect()
    }

    /// Protocol counters through a process; none if it is not in that namespace any more.
    fn stack(&self, process: &str, namespace: u64) -> Option<Stack> {
        let net = self.file(process).join("net");
        let mut stack = Stack::new();
        counters::add_pairs(&fs::read_to_string(net.join("snmp")).ok()?, &mut stack);
        counters::add_pairs(&fs::read_to_string(net.join("netstat")).ok()?, &mut stack);
        // Away where IPv6 is.
        let v6 = fs::read_to_string(net.join("snmp6")).unwrap_or_default();
        counters::add_lines(&v6, &mut stack);
        (self.namespace(process) == Some(namespace)).then_some(stack)
    }

    /// The addresses of a namespace, through any of these processes in it.
    #[must_use]
    pub fn addresses(&self, processes: &[u32]) -> BTreeSet<IpAddr> {
        let of = |process: &u32| {
            let net = self.file(process.to_string()).join("net");
            let v4 = fs::read_to_string(net.join("fib_trie")).ok()?;
            let v6 = fs::read_to_string(net.join("if_inet6")).unwrap_or_default();
            Some(local_v4(&v4).chain(local_v6(&v6)).collect())
        };
        processes.iter().find_map(of).unwrap_or_default()
    }

    /// Where the processes of a cgroup are, by its directory; `id` is its inode number.
    #[must_use]
    pub fn home(&self, directory: &Path, id: u64) -> Home {
        if inode(directory) != Some(id) {
            return Home::Unknown;
        }
        // Of a threaded cgroup only the threads can be read.
        let read = |file: &str| fs::read_to_string(directory.join(file));
        let Ok(members) = read("cgroup.procs").or_else(|_| read("cgroup.threads")) else {
            return Home::Unknown;
        };
        let found: BTreeSet<_> = members.lines().map(|process| self.namespace(process)).collect();
        let known: Vec<u64> = found.into_iter().flatten().collect();
        match known[..] {
            [] => Home::Unknown,
            [namespace] => Home::In(namespace),
            _ => Home::Several,
        }
    }

    /// Whether this process's sockets are below a cgroup directory; unknown without cgroup2.
    #[must_use]
    pub fn is_below(&self, directory: &Path) -> Option<bool> {
        let mounts = fs::read_to_string(self.file("self/mountinfo")).ok()?;
        let own = fs::read_to_string(self.file("self/cgroup")).ok()?;
        is_below(&mounts, &own, directory)
    }
}

fn is_below(mounts: &str, own: &str, directory: &Path) -> Option<bool> {
    let mount = mounts
        .lines()
        .filter(|line| line.contains(" - cgroup2 "))
        .filter_map(|line| line.split(' ').nth(4))
        .filter_map(|at| directory.strip_prefix(at).ok())
        .min_by_key(|below| below.components().count())?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new(own).starts_with(mount))
}

#[cfg(unix)]
fn inode(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt as _;
    Some(fs::metadata(path).ok()?.ino())
}

#[cfg(not(unix))]
fn inode(_path: &Path) -> Option<u64> {
    None
}

/// `/proc/PID/net/fib_trie`: an address stands on the line before those that say what it is.
fn local_v4(text: &str) -> impl Iterator<Item = IpAddr> {
    let mut latest: Option<Ipv4Addr> = None;
    text.lines().filter_map(move |line| {
        let line = line.trim();
        if let Some(leaf) = line.strip_prefix("|-- ") {
            latest = leaf.parse().ok();
        }
        line.starts_with("/32 host LOCAL").then_some(())?;
        latest.filter(|address| !address.is_loopback()).map(IpAddr::V4)
    })
}

/// `/proc/PID/net/if_inet6`: 32 hex digits begin a line.
fn local_v6(text: &str) -> impl Iterator<Item = IpAddr> {
    text.lines().filter_map(|line| {
        let digits = line.split_ascii_whitespace().next()?;
        let address = Ipv6Addr::from(u128::from_str_radix(digits, 16).ok()?);
        // Every link has one of those, and many may have the same.
        let is_everybodys = address.is_loopback() || address.is_unicast_link_local();
        (digits.len() == 32 && !is_everybodys).then_some(IpAddr::V6(address))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_that_the_kernel_calls_local() {
        let trie = "\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 10.244.1.0
        /24 link UNICAST
Local:
  +-- 0.0.0.0/0 3 0 5
     |-- 10.244.1.5
        /32 host LOCAL
     |-- 10.244.1.255
        /32 link BROADCAST
     |-- 127.0.0.1
        /32 host LOCAL
";
        let found: Vec<IpAddr> = local_v4(trie).collect();
        assert_eq!(found, [IpAddr::from([10, 244, 1, 5])]);
        let v6 = "fd000010024400010000000000000005 02 40 00 80 eth0\n\
                  fe800000000000000000000000000001 02 40 20 80 eth0\n\
                  00000000000000000000000000000001 01 80 10 80 lo\nodd\n";
        let found: Vec<String> = local_v6(v6).map(|address| address.to_string()).collect();
        assert_eq!(found, ["fd00:10:244:1::5"]);
    }

    #[test]
    fn who_is_below_a_cgroup_is_told_by_its_path_from_the_mount() {
        let mounts = "30 25 0:26 / /sys/fs/cgroup rw - tmpfs t rw\n\
                      31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 c rw\n";
        for (own, directory, expected) in [
            ("0::/a/b", "/sys/fs/cgroup/unified", Some(true)),
            ("0::/a/b", "/sys/fs/cgroup/unified/a", Some(true)),
            ("0::/ab", "/sys/fs/cgroup/unified/a", Some(false)),
            ("0::/", "/sys/fs/cgroup/unified/a", Some(false)),
            ("0::/a", "/elsewhere", None),
            ("1:cpu:/a", "/sys/fs/cgroup/unified", None),
        ] {
            assert_eq!(is_below(mounts, own, Path::new(directory)), expected, "{own} {directory}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_namespace_is_read_through_a_process_that_is_still_in_it() {
        let root = std::env::temp_dir().join(format!("orb8-verify-{}", std::process::id()));
        let made = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for (process, namespace) in [("self", 1), ("7", 2), ("8", 2), ("9", 1)] {
            made(&format!("{process}/net/snmp"), "Ip: InReceives\nIp: 5\n");
            made(&format!("{process}/net/netstat"), "");
            made(&format!("{process}/net/dev"), "");
            fs::create_dir_all(root.join(process).join("ns")).unwrap();
            let link = root.join(process).join("ns/net");
            std::os::unix::fs::symlink(format!("net:[{namespace}]"), link).unwrap();
        }
        let proc = Proc::at(&root);
        let found = proc.namespaces().unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), [&1, &2]);
        fs::remove_dir_all(root.join("7")).unwrap();
        let reading = proc.read_before(1, &found).unwrap();
        assert_eq!(proc.read_after(1, &found).unwrap(), reading);
        assert_eq!(reading.stacks[&2]["Ip.InReceives"], 5);
        fs::remove_dir_all(root.join("8")).unwrap();
        assert!(!proc.read_after(1, &found).unwrap().stacks.contains_key(&2));
        fs::remove_dir_all(&root).unwrap();
    }
}
