//! `orb8-agent` and `orb8` as processes inside a namespace.
//!
//! Each namespace has its own loopback, so the default ports are free in every one of them.

use std::ffi::{CStr, CString};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::netns::Netns;
use crate::wait::{wait_for, wait_until};

/// Where the agent listens unless a test says otherwise.
pub const LISTEN: &str = "127.0.0.1:9090";
/// How long an agent may take to answer or to stop.
const DEADLINE: Duration = Duration::from_secs(30);

/// How an agent is started.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    program: PathBuf,
    environment: Vec<(String, String)>,
    arguments: Vec<String>,
    listen: String,
    capabilities: Option<u64>,
    memlock: Option<u64>,
    cgroup: Option<PathBuf>,
    service_account: Option<PathBuf>,
}

impl AgentOptions {
    /// The agent of this build (`target/<profile>/orb8-agent`) with short intervals.
    ///
    /// # Panics
    /// If it is not built; tests ask with [`crate::need::Need::Binary`] first.
    #[must_use]
    pub fn new() -> Self {
        let program = crate::need::binary("orb8-agent").expect("orb8-agent is built");
        Self::of(program)
    }

    /// An agent from a file. It may take all the CPU time that it needs: what it gives up else would
    /// depend on how busy the machine is.
    #[must_use]
    pub fn of(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            environment: vec![("ORB8_CPU_BUDGET".to_owned(), "100%".to_owned())],
            arguments: Vec::new(),
            listen: LISTEN.to_owned(),
            capabilities: None,
            memlock: None,
            cgroup: None,
            service_account: None,
        }
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.environment.push((name.to_owned(), value.to_string()));
        self
    }

    /// Takes an environment variable out again.
    #[must_use]
    pub fn unset(mut self, name: &str) -> Self {
        self.environment.retain(|(known, _)| known != name);
        self
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Says where the agent will listen, if its settings change that.
    #[must_use]
    pub fn listen(mut self, address: &str) -> Self {
        address.clone_into(&mut self.listen);
        self
    }

    /// Lets it have these capabilities (by number) and no others, and no way to get more.
    #[must_use]
    pub fn capabilities(mut self, numbers: &[u32]) -> Self {
        self.capabilities = Some(numbers.iter().fold(0, |set, number| set | 1 << number));
        self
    }

    /// Lets it lock so many bytes of memory and no more.
    #[must_use]
    pub const fn memlock(mut self, bytes: u64) -> Self {
        self.memlock = Some(bytes);
        self
    }

    /// Starts it in a cgroup, given by its directory.
    #[must_use]
    pub fn cgroup(mut self, directory: &Path) -> Self {
        self.cgroup = Some(directory.to_owned());
        self
    }

    /// Gives it a ServiceAccount's folder where pods have theirs, in a mount namespace of its own.
    #[must_use]
    pub fn service_account(mut self, folder: &Path) -> Self {
        self.service_account = Some(folder.to_owned());
        self
    }

    /// Starts it and waits until its port accepts.
    ///
    /// # Panics
    /// If it ends or does not listen in time; the message has its stderr.
    #[must_use]
    pub fn start(&self, netns: &Netns) -> AgentProcess {
        let mut agent = self.spawn(netns);
        let address: SocketAddr = self.listen.parse().expect("an address with a port");
        wait_until(DEADLINE, "the agent to listen", || {
            if let Some(status) = agent.try_wait() {
                let log = agent.stderr.finish();
                panic!("the agent ended with {status} before it listened:\n{log}");
            }
            netns.enter(|| TcpStream::connect(address)).is_ok()
        });
        agent
    }

    /// Starts it without waiting for anything.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn spawn(&self, netns: &Netns) -> AgentProcess {
        let mut command = netns.command(&self.program);
        command
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if let Some(directory) = &self.cgroup {
            join_cgroup(&mut command, directory);
        }
        if let Some(folder) = &self.service_account {
            mount_service_account(&mut command, folder);
        }
        if let Some(bytes) = self.memlock {
            limit_memlock(&mut command, bytes);
        }
        if let Some(kept) = self.capabilities {
            confine(&mut command, kept);
        }
        let mut child =
            command.spawn().unwrap_or_else(|error| panic!("{}: {error}", self.program.display()));
        let stderr = Captured::follow(child.stderr.take().expect("stderr is piped"));
        AgentProcess { child, stderr, netns: netns.clone() }
    }
}

/// Lets a command begin in a cgroup.
fn join_cgroup(command: &mut Command, directory: &Path) {
    let file = directory.join("cgroup.procs");
    let procs = std::fs::OpenOptions::new().write(true).open(&file);
    let procs = procs.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let join = move || rustix::io::write(&procs, b"0").map(drop).map_err(std::io::Error::from);
    // SAFETY: one system call between fork and exec.
    unsafe { command.pre_exec(join) };
}

/// Lets a command lock so many bytes of memory.
fn limit_memlock(command: &mut Command, bytes: u64) {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
    let lower = move || setrlimit(Resource::Memlock, limit).map_err(io::Error::from);
    // SAFETY: one system call between fork and exec.
    unsafe { command.pre_exec(lower) };
}

/// Lets a command have a folder as its ServiceAccount's; all else of `/run` is empty for it.
fn mount_service_account(command: &mut Command, folder: &Path) {
    let folder = CString::new(folder.as_os_str().as_bytes()).expect("a path has no NUL");
    let mount = move || {
        let at = c"/run/secrets/kubernetes.io/serviceaccount";
        let levels = [c"/run/secrets", c"/run/secrets/kubernetes.io", at];
        check(
            // SAFETY: a flag; the command has one thread.
            unsafe { libc::unshare(libc::CLONE_NEWNS) },
        )?;
        mounted(c"none", c"/", c"", libc::MS_REC | libc::MS_PRIVATE)?;
        mounted(c"none", c"/run", c"tmpfs", 0)?;
        for level in levels {
            check(
                // SAFETY: a text that ends with NUL.
                unsafe { libc::mkdir(level.as_ptr(), 0o755) },
            )?;
        }
        mounted(&folder, at, c"", libc::MS_BIND)
    };
    // SAFETY: system calls only between fork and exec.
    unsafe { command.pre_exec(mount) };
}

fn mounted(what: &CStr, at: &CStr, kind: &CStr, flags: libc::c_ulong) -> io::Result<()> {
    // SAFETY: three texts that end with NUL, and no data.
    let result =
        unsafe { libc::mount(what.as_ptr(), at.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) };
    check(result)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets a command have these capabilities at most: root's program gets what the bounding set
/// leaves.
fn confine(command: &mut Command, kept: u64) {
    let confine = move || {
        for capability in (0..64).filter(|capability| kept & (1 << capability) == 0) {
            // SAFETY: changes this process's own bounding set; an unknown number is refused.
            let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
            let error = std::io::Error::last_os_error();
            if result != 0 && error.raw_os_error() != Some(libc::EINVAL) {
                return Err(error);
            }
        }
        // SAFETY: a flag of this process's own.
        match unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: system calls only between fork and exec.
    unsafe { command.pre_exec(confine) };
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// A running agent; killed when dropped.
#[derive(Debug)]
pub struct AgentProcess {
    child: Child,
    stderr: Captured,
    netns: Netns,
}

impl AgentProcess {
    /// Where it runs.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to stderr so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Its exit status, if it has ended.
    ///
    /// # Panics
    /// If the kernel cannot tell.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Waits for its end by itself.
    ///
    /// # Panics
    /// If it does not end in time.
    pub fn wait(&mut self) -> ExitStatus {
        wait_for(DEADLINE, "the agent to end", || self.try_wait())
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// If it cannot be sent.
    pub fn signal(&self, signal: Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let signal = match signal {
            Signal::Terminate => rustix::process::Signal::TERM,
            Signal::Interrupt => rustix::process::Signal::INT,
            Signal::Kill => rustix::process::Signal::KILL,
            Signal::Stop => rustix::process::Signal::STOP,
            Signal::Continue => rustix::process::Signal::CONT,
        };
        rustix::process::kill_process(pid, signal).expect("our own child takes signals");
    }

    /// Asks it to stop and waits until it has.
    ///
    /// # Panics
    /// If it does not end in time.
    pub fn stop(self) -> (ExitStatus, String) {
        self.signal(Signal::Terminate);
        self.finish()
    }

    /// Waits until it has ended by itself; its exit status and log.
    ///
    /// # Panics
    /// If it does not end in time.
    pub fn finish(mut self) -> (ExitStatus, String) {
        let status = self.wait();
        (status, self.stderr.finish())
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        let ended = self.child.try_wait().ok().flatten();
        // It may have ended already; then there is nothing to kill.
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            // Shown by the test harness beside the failed assertion.
            report(ended, &self.stderr.finish());
        }
    }
}

#[expect(clippy::print_stderr, reason = "the log of the agent explains a failed test")]
fn report(ended: Option<ExitStatus>, stderr: &str) {
    let state =
        ended.map_or("it was running".to_owned(), |status| format!("it had ended: {status}"));
    eprintln!("--- the agent's stderr ({state}) ---\n{stderr}--- end ---");
}

/// Signals that tests send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM.
    Terminate,
    /// SIGINT.
    Interrupt,
    /// SIGKILL.
    Kill,
    /// SIGSTOP.
    Stop,
    /// SIGCONT.
    Continue,
}

/// What a program has written to a pipe, read as it comes.
#[derive(Debug)]
pub struct Captured {
    text: Arc<Mutex<String>>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Captured {
    /// Reads a pipe on a thread until its end.
    ///
    /// # Panics
    /// If no thread can be started.
    #[must_use]
    pub fn follow(mut pipe: impl std::io::Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let sink = Arc::clone(&text);
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                let part = String::from_utf8_lossy(&buffer[..count]);
                sink.lock().unwrap_or_else(PoisonError::into_inner).push_str(&part);
            }
        });
        Self { text, reader: Some(reader) }
    }

    /// What has come so far.
    #[must_use]
    pub fn text(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a text has come, without a copy of everything that has.
    #[must_use]
    pub fn contains(&self, text: &str) -> bool {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).contains(text)
    }

    /// Everything, once the writer has ended.
    pub fn finish(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            drop(reader.join());
        }
        self.text()
    }
}

/// What a run of the CLI gave.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Data.
    pub stdout: String,
    /// Everything else.
    pub stderr: String,
    /// The exit code; `None` if a signal ended it.
    pub code: Option<i32>,
}

impl Answer {
    /// The data as one JSON document.
    ///
    /// # Panics
    /// If it is not JSON.
    #[must_use]
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("not JSON ({error}):\n{}\n{}", self.stdout, self.stderr))
    }

    /// The data as JSON lines.
    ///
    /// # Panics
    /// If a line is not JSON.
    #[must_use]
    #[track_caller]
    pub fn json_lines(&self) -> Vec<serde_json::Value> {
        self.stdout
            .lines()
            .map(|line| {
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
            })
            .collect()
    }
}

/// The CLI inside a namespace.
#[derive(Clone, Debug)]
pub struct Cli {
    program: PathBuf,
    netns: Netns,
}

impl Cli {
    /// The CLI of this build (`target/<profile>/orb8`).
    ///
    /// # Panics
    /// If it is not built; tests ask with [`crate::need::Need::Binary`] first.
    #[must_use]
    pub fn new(netns: &Netns) -> Self {
        Self::of(&crate::need::binary("orb8").expect("orb8 is built"), netns)
    }

    /// A CLI from a file.
    #[must_use]
    pub fn of(program: &Path, netns: &Netns) -> Self {
        Self { program: program.to_owned(), netns: netns.clone() }
    }

    /// A command to add to.
    #[must_use]
    pub fn command(&self, line: &str) -> std::process::Command {
        let mut command = self.netns.command(&self.program);
        command.args(line.split_whitespace()).stdin(Stdio::null());
        command
    }

    /// Runs it to its end; the line is split at blanks.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn run(&self, line: &str) -> Answer {
        let output = self
            .command(line)
            .output()
            .unwrap_or_else(|error| panic!("{}: {error}", self.program.display()));
        Answer {
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: output.status.code(),
        }
    }
}
