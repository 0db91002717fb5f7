//! The guest's root folder as an archive: busybox, the tools and programs that the tests call,
//! each where this machine has it, and the shared libraries that those need.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use super::cpio::Archive;
use super::packages::{files_below, run};
use super::suites::Suite;

/// The guest's first program.
const INIT: &str = include_str!("guest.sh");

/// How long, in seconds, a suite may run: an emulated machine is slow, and this one may be busy.
pub(super) const SUITE_LIMIT: u64 = 900;
/// How long, in seconds, the agent may take to load its programs and to attach them.
pub(super) const AGENT_LIMIT: u64 = 420;

/// What the tests call, as far as this machine has it.
const TOOLS: [&str; 7] =
    ["ip", "tc", "iptables", "iptables-restore", "iptables-save", "ip6tables", "ip6tables-restore"];

/// Prints, line by line, the files behind everything that a test's Python imports.
const PYTHON_FILES: &str = "
import encodings.idna, json, sys
import scapy.all
print(sys.executable)
for module in list(sys.modules.values()):
    if getattr(module, '__file__', None):
        print(module.__file__)
";

/// Where the test's Python is, from the repository's root.
const PYTHON: &str = ".tools/venv/bin/python3";

/// A root folder as it is filled.
struct Root {
    archive: Archive<BufWriter<File>>,
    /// For stripped copies.
    scratch: PathBuf,
}

/// Writes the archive that all kernels share; gives its path.
pub(super) fn base(root: &Path, suites: &[Suite]) -> anyhow::Result<PathBuf> {
    let scratch = root.join("target/vm");
    fs::create_dir_all(&scratch).with_context(|| format!("make {}", scratch.display()))?;
    let path = scratch.join("base.cpio");
    let out = File::create(&path).with_context(|| format!("make {}", path.display()))?;
    let archive = Archive::new(BufWriter::new(out));
    let mut image = Root { archive, scratch };
    image.folders()?;
    image.busybox()?;
    for tool in TOOLS {
        if let Some(file) = on_path(tool) {
            image.program(&file, false)?;
        }
    }
    image.python(root)?;
    image.programs(root, suites)?;
    image.archive.file("init", INIT.as_bytes())?;
    image.archive.finish()?;
    println!("ready    {} ({} MiB)", path.display(), fs::metadata(&path)?.len() >> 20);
    Ok(path)
}

fn on_path(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(tool))
        .find(|file| file.is_file())
}

/// Whatever lies below `/bin` and the like lies below `/usr` in the guest.
fn merged(path: &Path) -> String {
    let path = path.display().to_string();
    let is_split = ["/bin/", "/sbin/", "/lib/", "/lib64/"].iter().any(|top| path.starts_with(top));
    if is_split { format!("/usr{path}") } else { path }
}

/// Paths of libraries in what `ldd` says.
fn libraries(said: &str) -> Vec<PathBuf> {
    let of_line =
        |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    said.lines().filter(|line| line.contains("(0x")).filter_map(of_line).collect()
}

impl Root {
    fn folders(&mut self) -> anyhow::Result<()> {
        for (link, target) in
            [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")]
        {
            self.archive.link(link, target)?;
        }
        for folder in ["dev", "proc", "sys", "run", "tmp", "root"] {
            self.archive.folder(folder)?;
        }
        self.archive.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")?;
        self.archive.file("etc/group", b"root:x:0:\n")?;
        Ok(())
    }

    fn busybox(&mut self) -> anyhow::Result<()> {
        let busybox = on_path("busybox").context("busybox is not there")?;
        self.copy(&busybox, "/usr/bin/busybox")?;
        let listed = Command::new(&busybox).arg("--list").output().context("start busybox")?;
        self.archive.link("/usr/sbin/modprobe", "/usr/bin/busybox")?;
        for applet in String::from_utf8_lossy(&listed.stdout).lines() {
            if !TOOLS.contains(&applet) {
                self.archive.link(&format!("/usr/bin/{applet}"), "/usr/bin/busybox")?;
            }
        }
        Ok(())
    }

    fn copy(&mut self, from: &Path, to: &str) -> anyhow::Result<()> {
        let bytes = fs::read(from).with_context(|| format!("read {}", from.display()))?;
        self.archive.file(to, &bytes).context("write the image")
    }

    /// A program and its libraries, where this machine has them; a link stays a link.
    fn program(&mut self, path: &Path, strip: bool) -> anyhow::Result<()> {
        let real = fs::canonicalize(path).with_context(|| format!("find {}", path.display()))?;
        let (name, place) = (merged(path), merged(&real));
        if self.archive.has(&place) && (name == place || self.archive.has(&name)) {
            return Ok(());
        }
        let said = Command::new("ldd").arg(&real).output().context("start ldd")?;
        for library in libraries(&String::from_utf8_lossy(&said.stdout)) {
            self.copy(&library, &merged(&library))?;
            if library.to_string_lossy().contains("/libxtables.so") {
                self.extensions(&library)?;
            }
        }
        if strip {
            let bare = self.scratch.join("stripped");
            run(Command::new("strip").arg("-s").arg("-o").arg(&bare).arg(&real))?;
            self.copy(&bare, &place)?;
        } else {
            self.copy(&real, &place)?;
        }
        if name != place {
            self.archive.link(&name, &place)?;
        }
        Ok(())
    }

    /// What iptables loads at run time lies beside its library.
    fn extensions(&mut self, library: &Path) -> anyhow::Result<()> {
        let library = PathBuf::from(merged(library));
        let folder = library.parent().unwrap_or(&library).join("xtables");
        for file in files_below(&folder).unwrap_or_default() {
            self.copy(&file, &merged(&file))?;
        }
        Ok(())
    }

    /// The Python of the tests, with the modules that they import and no others.
    fn python(&mut self, root: &Path) -> anyhow::Result<()> {
        let python = root.join(PYTHON);
        let mut ask = Command::new(&python);
        ask.args(["-c", PYTHON_FILES]);
        let said = ask.output().with_context(|| format!("start {}", python.display()))?;
        if !said.status.success() {
            bail!("{PYTHON} has no scapy: run `make setup`");
        }
        let said = String::from_utf8_lossy(&said.stdout);
        let mut files = said.lines().map(PathBuf::from);
        let interpreter = files.next().context("Python has no path")?;
        self.program(&interpreter, false)?;
        // Where the tests look, which may be behind a link; and where Python then looks.
        let venv = fs::canonicalize(root.join(".tools/venv")).context("find .tools/venv")?;
        if venv != root.join(".tools/venv") {
            self.archive.link(&merged(&root.join(".tools/venv")), &merged(&venv))?;
        }
        let real = fs::canonicalize(&interpreter).context("find Python")?;
        self.archive.link(&merged(&venv.join("bin/python3")), &merged(&real))?;
        self.copy(&venv.join("pyvenv.cfg"), &merged(&venv.join("pyvenv.cfg")))?;
        for file in files {
            let file = fs::canonicalize(&file).unwrap_or(file);
            if file.extension().is_some_and(|ending| ending == "so") {
                self.program(&file, false)?;
            } else {
                self.copy(&file, &merged(&file))?;
            }
        }
        Ok(())
    }

    /// The tests and our own programs, and the list of what to run.
    fn programs(&mut self, root: &Path, suites: &[Suite]) -> anyhow::Result<()> {
        for program in ["orb8", "orb8-agent"] {
            let path = root.join("target/debug").join(program);
            self.program(&path, true)?;
            self.archive.link(&format!("vm/{program}"), &merged(&path))?;
        }
        // Paths that start from a crate's folder lead through it.
        self.archive.folder(&merged(&root.join("tests/testbed")))?;
        self.archive.folder(&merged(&root.join("orb8-agent")))?;
        let mut list = String::new();
        for suite in suites {
            self.program(&suite.program, true)?;
            let tests = suite.tests.iter().fold(String::new(), |all, test| all + " " + test);
            let exact = if tests.is_empty() { "" } else { " --exact" };
            let program = merged(&suite.program);
            list += &format!("{} {SUITE_LIMIT} {program}{exact}{tests}\n", suite.name);
        }
        self.archive.file("vm/suites", list.as_bytes())?;
        self.archive.file("vm/agent-limit", AGENT_LIMIT.to_string().as_bytes())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_what_ldd_says() {
        let said = "\tlinux-vdso.so.1 (0x00007f)\n\tlibm.so.6 => /lib/x/libm.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\tlibabsent.so => not found\n";
        let expected = ["/lib/x/libm.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(libraries(said), expected);
        assert!(libraries("\tstatically linked\n").is_empty());
    }

    #[test]
    fn what_lies_below_the_old_folders_lies_below_usr() {
        assert_eq!(merged(Path::new("/lib/x/libm.so.6")), "/usr/lib/x/libm.so.6");
        assert_eq!(merged(Path::new("/usr/lib/x")), "/usr/lib/x");
        assert_eq!(merged(Path::new("/libraries/x")), "/libraries/x");
    }
}
