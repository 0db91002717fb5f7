//! Boots a kernel in QEMU, shows how far it is, and ends it when it ends, panics or hangs.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::image::{AGENT_LIMIT, SUITE_LIMIT};
use super::packages::Found;
use super::report::{self, Report};
use super::suites::Suite;

/// How long the kernel may take until the guest's first word.
const BOOT_LIMIT: Duration = Duration::from_mins(3);
/// Guards against spying between processes cost an emulated processor half its speed; what the
/// verifier asks of programs does not depend on those that are off here.
const COMMAND_LINE: &str =
    "console=ttyS0 panic=-1 quiet loglevel=4 nokaslr nopti spectre_v2=off retbleed=off";
/// Between looks at the guest.
const LOOK: Duration = Duration::from_millis(250);

/// Memory in MiB: the archive and what is unpacked from it are there at the same time.
const MEMORY: &str = "2560";

/// Boots the kernel with the tests and reads what the guest says. An error: no guest could be
/// started at all. The guest's logs stay in `target/vm`.
pub(super) fn run(
    root: &Path,
    name: &'static str,
    kernel: &Found,
    base: &Path,
    suites: &[Suite],
) -> anyhow::Result<Report> {
    let file = |what: &str| root.join(format!("target/vm/{name}-{what}"));
    let (archive, console, said) = (file("image.cpio"), file("console.log"), file("guest.log"));
    join(base, &kernel.modules, &archive).context("join the guest's archives")?;
    File::create(&said).context("make the guest's log")?;
    let qemu = command(kernel, &archive, &console, &said).spawn();
    let qemu = qemu.context("start qemu-system-x86_64")?;
    let mut guest = Guest { name, qemu, said: said.clone() };
    let why = guest.wait(suites.len());
    drop(guest);
    fs::remove_file(&archive).with_context(|| format!("remove {}", archive.display()))?;
    let said = text(&said);
    let mut report = report::parse(&said);
    if !report.is_complete {
        report.end = report::last_lines(why, &said, &text(&console));
    }
    Ok(report)
}

/// What is in a log so far.
fn text(log: &Path) -> String {
    fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// The kernel unpacks archives that follow one another.
fn join(base: &Path, modules: &Path, archive: &Path) -> io::Result<()> {
    fs::copy(base, archive)?;
    let mut out = OpenOptions::new().append(true).open(archive)?;
    io::copy(&mut File::open(modules)?, &mut out)?;
    Ok(())
}

fn command(kernel: &Found, archive: &Path, console: &Path, said: &Path) -> Command {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    qemu.args(["-accel", "tcg,thread=multi", "-smp", "2", "-m", MEMORY]);
    // The emulation of cmpxchg16b in QEMU 7.2 crashes kernels from 6.12 on.
    qemu.args(["-cpu", "max,cx16=off"]);
    qemu.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(archive);
    qemu.args(["-append", COMMAND_LINE]);
    for port in [console, said] {
        qemu.arg("-serial").arg(format!("file:{}", port.display()));
    }
    qemu.stdin(Stdio::null());
    qemu
}

/// A running guest; gone when dropped.
struct Guest {
    name: &'static str,
    qemu: Child,
    said: PathBuf,
}

impl Drop for Guest {
    fn drop(&mut self) {
        drop(self.qemu.kill());
        drop(self.qemu.wait());
    }
}

impl Guest {
    /// Waits for the guest's end; says why it is over.
    fn wait(&mut self, suites: usize) -> &'static str {
        let limit = limit(suites);
        let start = Instant::now();
        let mut shown = 0;
        loop {
            let said = text(&self.said);
            let lines = report::progress(&said);
            for line in lines.iter().skip(shown) {
                println!("{:>5} s  {:<6}  {line}", start.elapsed().as_secs(), self.name);
            }
            shown = shown.max(lines.len());
            match self.qemu.try_wait() {
                Ok(None) => {}
                Ok(Some(_)) | Err(_) => return "the guest stopped",
            }
            if said.is_empty() && start.elapsed() > BOOT_LIMIT {
                return "the kernel did not boot in time";
            }
            if start.elapsed() > limit {
                return "the guest hung";
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// The guest ends its own programs at their limits; this is for a guest that cannot.
fn limit(suites: usize) -> Duration {
    let suites = u64::try_from(suites).unwrap_or(u64::MAX);
    let seconds = SUITE_LIMIT.saturating_mul(suites).saturating_add(AGENT_LIMIT + 120);
    BOOT_LIMIT + Duration::from_secs(seconds)
}
