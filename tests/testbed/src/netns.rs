//! Network namespaces without names: each lives as long as a clone of its handle or a process in
//! it. Nothing has to be cleaned up, whichever way a test ends.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// A network namespace; clones are the same one.
#[derive(Clone, Debug)]
pub struct Netns {
    file: Arc<File>,
    label: String,
}

impl Netns {
    /// A new namespace with loopback up and no IPv6 chatter; `label` appears in messages only.
    ///
    /// # Panics
    /// If the kernel refuses.
    #[must_use]
    pub fn new(label: &str) -> Self {
        let file = on_own_thread(|| {
            unshare_net()?;
            File::open("/proc/thread-self/ns/net")
        })
        .unwrap_or_else(|error| panic!("network namespace {label}: {error}"));
        let netns = Self { file: Arc::new(file), label: label.to_owned() };
        netns.silence();
        netns.run("ip link set lo up");
        netns
    }

    /// What it is called in messages.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// A path that names it to `ip link set .. netns <path>` while this process lives.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Runs `work` on a thread of its own inside; threads and sockets made there stay inside.
    ///
    /// # Panics
    /// If `work` panics, with its message, or if the namespace cannot be entered.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        on_own_thread(|| {
            join(self.file.as_fd())
                .unwrap_or_else(|error| panic!("entering namespace {}: {error}", self.label));
            work()
        })
    }

    /// A command that will run inside, without the remounted `/sys` of `ip netns exec`, that dies
    /// with the thread that starts it, and that gets every signal, whatever this process blocks.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let file = Arc::clone(&self.file);
        let parent = rustix::process::getpid();
        let enter = move || {
            join(file.as_fd())?;
            unblock_signals()?;
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            // The parent may have died before the signal was asked for.
            if rustix::process::getppid() == Some(parent) {
                Ok(())
            } else {
                Err(io::Error::from_raw_os_error(libc::ESRCH))
            }
        };
        // SAFETY: between fork and exec the closure makes system calls only; it takes no lock and
        // allocates nothing.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs a command line (split at blanks) inside and returns its stdout.
    ///
    /// # Panics
    /// If it cannot be started or fails; the message has its stderr.
    #[track_caller]
    pub fn run(&self, line: &str) -> String {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().unwrap_or("true"));
        command.args(words).stdin(Stdio::null());
        let output = command
            .output()
            .unwrap_or_else(|error| panic!("{line} in namespace {}: {error}", self.label));
        assert!(
            output.status.success(),
            "{line} in namespace {}: {}\n{}",
            self.label,
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs many `ip` commands in one process (`ip -batch`).
    ///
    /// # Panics
    /// If one fails.
    #[track_caller]
    pub fn ip_batch(&self, lines: &[String]) {
        use std::io::Write as _;
        let mut command = self.command("ip");
        command.args(["-batch", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("ip -batch: {error}"));
        let text = lines.join("\n") + "\n";
        let mut stdin = child.stdin.take().expect("stdin is piped");
        stdin.write_all(text.as_bytes()).unwrap_or_else(|error| panic!("ip -batch: {error}"));
        drop(stdin);
        let output = child.wait_with_output().expect("a started child can be waited for");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ip -batch in {}: {stderr}", self.label);
    }

    /// Sets a sysctl below `/proc/sys/net`, such as `ipv4/tcp_timestamps`.
    ///
    /// # Panics
    /// If it cannot be written.
    #[track_caller]
    pub fn sysctl(&self, key: &str, value: impl std::fmt::Display) {
        self.sysctls(&[(key, value.to_string())]);
    }

    /// Sets several sysctls below `/proc/sys/net`.
    ///
    /// # Panics
    /// If one cannot be written.
    #[track_caller]
    pub fn sysctls<K, V>(&self, settings: &[(K, V)])
    where
        K: AsRef<str> + Sync,
        V: std::fmt::Display + Sync,
    {
        let result = self.enter(|| {
            settings.iter().try_for_each(|(key, value)| {
                let path = format!("/proc/sys/net/{}", key.as_ref());
                std::fs::write(&path, value.to_string()).map_err(|error| format!("{path}: {error}"))
            })
        });
        result.unwrap_or_else(|error| panic!("in namespace {}: {error}", self.label));
    }

    /// The descriptor, for a forked process that joins.
    #[must_use]
    pub fn raw(&self) -> std::os::fd::RawFd {
        self.file.as_raw_fd()
    }

    /// No duplicate address detection, no router solicitations, no link-local addresses, late
    /// multicast reports: exact counts want quiet links.
    fn silence(&self) {
        let settings: Vec<(String, u32)> = [
            ("accept_dad", 0),
            ("dad_transmits", 0),
            ("router_solicitations", 0),
            ("accept_ra", 0),
            ("addr_gen_mode", 1),
            ("mldv1_unsolicited_report_interval", 2_000_000_000),
            ("mldv2_unsolicited_report_interval", 2_000_000_000),
        ]
        .into_iter()
        .flat_map(|(key, value)| {
            ["all", "default"].map(|scope| (format!("ipv6/conf/{scope}/{key}"), value))
        })
        .collect();
        self.sysctls(&settings);
    }
}

/// Whether this process may make network namespaces.
///
/// # Errors
/// A sentence with the cause and the next step.
pub fn permission() -> Result<(), String> {
    on_own_thread(unshare_net).map_err(|error| {
        format!("network namespaces cannot be made ({error}): run as root (CAP_SYS_ADMIN)")
    })
}

/// Runs `work` on a thread that ends with it, so that what it changes on the thread is undone.
fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

fn unshare_net() -> io::Result<()> {
    // SAFETY: NEWNET alone touches no memory or descriptors that other threads share.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.map_err(io::Error::from)
}

fn unblock_signals() -> io::Result<()> {
    // SAFETY: a signal set is plain data, filled by the next call.
    let mut none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `none` outlives both calls, which only change this thread's mask.
    let result = unsafe {
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn join(netns: std::os::fd::BorrowedFd<'_>) -> io::Result<()> {
    move_into_link_name_space(netns, Some(LinkNameSpaceType::Network)).map_err(io::Error::from)
}
