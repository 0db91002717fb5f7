//! Kernels from Debian's packages, kept in `.tools/vm/<name>/`: one each, the older one goes when
//! a newer one comes.
//!
//! The mirror and its key are those of the machine's own apt; only the suite differs. apt works
//! in a folder of its own, so the machine's lists and sources stay as they are.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::cpio::Archive;
use super::kernels::{KERNELS, Kernel, METAPACKAGE};

/// A kernel that is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// `uname -r` there.
    pub(super) release: String,
    /// The packages it came from, with their versions.
    pub(super) packages: String,
    /// The kernel itself.
    pub(super) image: PathBuf,
    /// The archive of its modules.
    pub(super) modules: PathBuf,
}

/// A package in exactly one version.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Exact {
    name: String,
    version: String,
}

/// For so long a kernel that is here is not looked for again.
const FRESH: Duration = Duration::from_hours(7 * 24);

/// Debian's keys, where Debian's package has them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Folders of modules that the tests may need; drivers of real network cards are not among them.
const MODULE_FOLDERS: [&str; 5] = ["net", "lib", "crypto", "arch", "drivers/net"];
const UNWANTED: [&str; 4] =
    ["drivers/net/ethernet", "drivers/net/wireless", "drivers/net/usb", "drivers/net/wwan"];

/// The kernel, from `.tools/vm` or from the mirror.
pub(super) fn provide(root: &Path, kernel: &Kernel) -> anyhow::Result<Found> {
    let store = root.join(".tools/vm");
    remove_strangers(&store)?;
    let folder = store.join(kernel.name);
    if let Some(found) = kept(&folder) {
        return Ok(found);
    }
    // In a folder beside it, so that what is there is always whole.
    let work = store.join(format!("{}.new", kernel.name));
    fs::create_dir_all(&work).with_context(|| format!("make {}", work.display()))?;
    let made = fetch(kernel, &work).and_then(|()| {
        drop(fs::remove_dir_all(&folder));
        fs::rename(work.join("kernel"), &folder).context("keep the kernel")
    });
    drop(fs::remove_dir_all(&work));
    made?;
    kept(&folder).context("what was fetched just now is not whole")
}

/// Removes what no kernel of today's list needs.
fn remove_strangers(store: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(store).into_iter().flatten().filter_map(Result::ok) {
        if !KERNELS.iter().any(|kernel| entry.file_name() == kernel.name) {
            fs::remove_dir_all(entry.path())
                .with_context(|| format!("remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// A kernel that was fetched before, is fresh and whole.
fn kept(folder: &Path) -> Option<Found> {
    let sums = folder.join("SHA256SUMS");
    let age = fs::metadata(&sums).ok()?.modified().ok()?.elapsed().unwrap_or_default();
    let is_whole = || {
        let mut check = Command::new("sha256sum");
        check.args(["--check", "--quiet", "--strict", "SHA256SUMS"]).current_dir(folder);
        check.output().is_ok_and(|output| output.status.success())
    };
    if age > FRESH || !is_whole() {
        return None;
    }
    let about = fs::read_to_string(folder.join("about")).ok()?;
    let (release, packages) = about.trim().split_once('\n')?;
    Some(Found {
        release: release.to_owned(),
        packages: packages.to_owned(),
        image: folder.join("vmlinuz"),
        modules: folder.join("modules.cpio"),
    })
}

/// Downloads, unpacks and arranges a kernel in `work/kernel`.
fn fetch(kernel: &Kernel, work: &Path) -> anyhow::Result<()> {
    let source = source_of(&mirror()?, kernel.suite, Path::new(KEYRING).exists())?;
    fs::write(work.join("sources.list"), source).context("write the list of sources")?;
    let apt = Apt { work };
    println!("fetch    the index of Debian's {}", kernel.suite);
    apt.run("apt-get", &["update", "-qq"])?;
    let packages = closure(METAPACKAGE, |name| apt.run("apt-cache", &["show", name]).ok())?;
    let exact: Vec<String> =
        packages.iter().map(|package| format!("{}={}", package.name, package.version)).collect();
    println!("fetch    {}", exact.join(" "));
    let names: Vec<&str> = exact.iter().map(String::as_str).collect();
    apt.run("apt-get", &[&["download", "-qq"], names.as_slice()].concat())?;
    let tree = work.join("tree");
    for package in with_ending(work, "deb")? {
        run(Command::new("dpkg").arg("-x").arg(&package).arg(&tree))?;
    }
    arrange(&tree, &work.join("kernel"), &exact.join(" "))
}

/// apt with a folder of its own.
struct Apt<'a> {
    work: &'a Path,
}

impl Apt<'_> {
    /// Standard output of an apt command.
    fn run(&self, program: &str, args: &[&str]) -> anyhow::Result<String> {
        let place = |key: &str, file: &str| format!("{key}={}", self.work.join(file).display());
        let user = std::env::var("USER").unwrap_or_else(|_| "root".to_owned());
        let mut options = vec![
            place("Dir::State::Lists", "lists"),
            place("Dir::Etc::SourceList", "sources.list"),
            place("Dir::Cache", "cache"),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            "Dir::State::status=/dev/null".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=3".to_owned(),
        ];
        // apt's own user may not be able to enter the folder.
        options.push(format!("APT::Sandbox::User={user}"));
        fs::create_dir_all(self.work.join("lists/partial")).context("make apt's folder")?;
        let mut command = Command::new(program);
        command.args(options.iter().flat_map(|option| ["-o", option])).args(args);
        command.current_dir(self.work).stdin(std::process::Stdio::null());
        let output = command.output().with_context(|| format!("start {program}"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{program} {}: {}", args.join(" "), last_line(&said));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn last_line(text: &str) -> &str {
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it failed without a word")
}

/// What this machine's apt knows of its mirrors: address, origin, label, component.
fn mirror() -> anyhow::Result<String> {
    let format = "$(REPO_URI)|$(ORIGIN)|$(LABEL)|$(COMPONENT)";
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", format, "Created-By: Packages"]);
    let output = command.output().context("start apt-get; the kernels are Debian's packages")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A line of sources for a suite at the machine's own mirror of Debian.
fn source_of(targets: &str, suite: &str, has_keyring: bool) -> anyhow::Result<String> {
    let uri = targets
        .lines()
        .find_map(|line| line.strip_suffix("|Debian|Debian|main"))
        .context("this machine's apt knows no mirror of Debian (run: apt-get update)")?;
    // Without the keyring's own file: the keys that the machine trusts for every source.
    let key = if has_keyring { format!(" signed-by={KEYRING}") } else { String::new() };
    Ok(format!("deb [arch=amd64 target=Packages{key}] {uri} {suite} main\n"))
}

/// The packages that a metapackage stands for: whatever it needs in one exact version, and what
/// those need so, as far as they hold a kernel. `show` gives the index's text about a name.
fn closure(
    metapackage: &str,
    mut show: impl FnMut(&str) -> Option<String>,
) -> anyhow::Result<Vec<Exact>> {
    let mut found: Vec<Exact> = vec![];
    let mut open = vec![(metapackage.to_owned(), None)];
    while let Some((name, version)) = open.pop() {
        let text = show(&name).with_context(|| format!("the index has no package {name}"))?;
        let stanza = stanza_of(&text, version.as_deref())
            .with_context(|| format!("the index has {name} in no fitting version"))?;
        for exact in exact_needs(stanza) {
            if !found.contains(&exact) {
                open.push((exact.name.clone(), Some(exact.version.clone())));
                found.push(exact);
            }
        }
    }
    if found.is_empty() {
        bail!("{metapackage} names no kernel");
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// The description of a version; without one, the first, which apt prefers.
fn stanza_of<'a>(text: &'a str, version: Option<&str>) -> Option<&'a str> {
    text.split("\n\n").find(|stanza| {
        let its = field(stanza, "Version");
        its.is_some() && version.is_none_or(|version| its == Some(version))
    })
}

fn field<'a>(stanza: &'a str, name: &str) -> Option<&'a str> {
    stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
}

/// Parts of the kernel that a package depends on as `name (= version)`.
fn exact_needs(stanza: &str) -> Vec<Exact> {
    let depends = field(stanza, "Depends").unwrap_or_default();
    let exact = |need: &str| {
        let (name, version) = need.trim().split_once(" (= ")?;
        let version = version.strip_suffix(')')?;
        name.starts_with("linux-")
            .then(|| Exact { name: name.to_owned(), version: version.to_owned() })
    };
    depends.split(',').filter_map(exact).collect()
}

/// Puts the kernel, an archive of its modules and a word about both into a folder.
fn arrange(tree: &Path, folder: &Path, packages: &str) -> anyhow::Result<()> {
    let modules = ["usr/lib/modules", "lib/modules"]
        .map(|path| tree.join(path))
        .into_iter()
        .find_map(|path| fs::read_dir(path).ok()?.find_map(Result::ok))
        .context("the packages have no modules")?;
    let release = modules.file_name().to_string_lossy().into_owned();
    let image = [tree.join(format!("boot/vmlinuz-{release}")), modules.path().join("vmlinuz")]
        .into_iter()
        .find(|path| path.is_file())
        .context("the packages have no kernel")?;
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    fs::copy(&image, folder.join("vmlinuz")).context("copy the kernel")?;
    pack_modules(&modules.path(), &release, &tree.join("pruned"), &folder.join("modules.cpio"))?;
    fs::write(folder.join("about"), format!("{release}\n{packages}\n")).context("write about")?;
    let sums = Command::new("sha256sum")
        .args(["vmlinuz", "modules.cpio", "about"])
        .current_dir(folder)
        .output()
        .context("start sha256sum")?;
    fs::write(folder.join("SHA256SUMS"), sums.stdout).context("write SHA256SUMS")
}

/// Writes the archive of the modules that the tests may need, with their index.
fn pack_modules(modules: &Path, release: &str, base: &Path, archive: &Path) -> anyhow::Result<()> {
    let place = format!("lib/modules/{release}");
    let pruned = base.join(&place);
    for file in files_below(modules)? {
        let inside = file.strip_prefix(modules).unwrap_or(&file);
        if is_wanted(inside) {
            let copy = pruned.join(inside);
            fs::create_dir_all(copy.parent().unwrap_or(&pruned)).context("make a folder")?;
            fs::copy(&file, &copy).with_context(|| format!("copy {}", file.display()))?;
        }
    }
    let packed = with_ending(&pruned, "xz")?;
    if !packed.is_empty() {
        run(Command::new("xz").arg("--decompress").args(&packed))?;
    }
    run(Command::new("busybox").arg("depmod").arg("-b").arg(base).arg(release))?;
    let out = fs::File::create(archive).with_context(|| format!("make {}", archive.display()))?;
    let mut out = Archive::new(std::io::BufWriter::new(out));
    for file in files_below(&pruned)? {
        let inside = file.strip_prefix(&pruned).unwrap_or(&file).display().to_string();
        let bytes = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        // `lib` itself is a link in the guest.
        out.file(&format!("usr/{place}/{inside}"), &bytes).context("write the archive")?;
    }
    out.finish().context("write the archive")?;
    Ok(())
}

fn is_wanted(inside: &Path) -> bool {
    if inside.components().count() == 1 {
        return inside.to_string_lossy().starts_with("modules.");
    }
    inside.strip_prefix("kernel").is_ok_and(|inside| {
        MODULE_FOLDERS.iter().any(|folder| inside.starts_with(folder))
            && !UNWANTED.iter().any(|folder| inside.starts_with(folder))
    })
}

/// Files with an ending, in a folder and below it.
fn with_ending(folder: &Path, ending: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = files_below(folder)?;
    files.retain(|path| path.extension().is_some_and(|its| its == ending));
    Ok(files)
}

/// All files below a folder; links are not followed.
pub(super) fn files_below(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = vec![];
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        let entries =
            fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?;
        for entry in entries.filter_map(Result::ok) {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => open.push(entry.path()),
                Ok(kind) if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Runs a command whose output nobody needs unless it fails.
pub(super) fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    if !output.status.success() {
        let program = command.get_program().display();
        bail!("{program}: {}", last_line(&String::from_utf8_lossy(&output.stderr)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stanza(package: &str, version: &str, depends: &str) -> String {
        format!("Package: {package}\nVersion: {version}\nDepends: {depends}\nSize: 1\n\n")
    }

    /// An index in which the metapackage was built twice, and the kernel comes in parts.
    fn index(name: &str) -> Option<String> {
        let text = match name {
            "meta" => {
                stanza("meta", "7.2", "linux-image-7.2 (= 7.2-1), dracut | tools (>= 2)")
                    + &stanza("meta", "7.1", "linux-image-7.1 (= 7.1-1)")
            }
            "linux-image-7.2" => stanza(
                "linux-image-7.2",
                "7.2-1",
                "linux-binary-7.2 (= 7.2-1), linux-modules-7.2 (= 7.2-1), other (= 1)",
            ),
            "linux-modules-7.2" => {
                stanza("linux-modules-7.2", "7.2-1", "kmod, linux-base-7.2 (= 7.2-1)")
            }
            "linux-binary-7.2" => stanza("linux-binary-7.2", "7.2-1", "linux-base-7.2 (= 7.2-1)"),
            "linux-base-7.2" => "Package: linux-base-7.2\nVersion: 7.2-1\n".to_owned(),
            "wrong" => stanza("wrong", "1", "linux-image-7.2 (= 7.2-2)"),
            "bare" => stanza("bare", "1", "kmod"),
            _ => return None,
        };
        Some(text)
    }

    #[test]
    fn a_metapackage_stands_for_every_part_in_its_exact_version() {
        let found = closure("meta", index).expect("a kernel");
        let names: Vec<_> =
            found.iter().map(|exact| format!("{}={}", exact.name, exact.version)).collect();
        assert_eq!(
            names,
            [
                "linux-base-7.2=7.2-1",
                "linux-binary-7.2=7.2-1",
                "linux-image-7.2=7.2-1",
                "linux-modules-7.2=7.2-1"
            ]
        );
    }

    #[test]
    fn what_an_index_lacks_is_named() {
        for (name, said) in [
            ("absent", "no package absent"),
            ("wrong", "linux-image-7.2 in no fitting version"),
            ("bare", "bare names no kernel"),
        ] {
            let error = closure(name, index).expect_err(name).to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn the_mirror_is_the_machines_own_and_only_the_suite_differs() {
        let targets = "http://s.example/|Debian|Debian-Security|main\n\
                       http://o.example/|Other|Other|main\n\
                       http://d.example/debian/|Debian|Debian|main\n";
        assert_eq!(
            source_of(targets, "sid", false).expect("a mirror"),
            "deb [arch=amd64 target=Packages] http://d.example/debian/ sid main\n"
        );
        let signed = source_of(targets, "sid", true).expect("a mirror");
        assert!(signed.contains(&format!("signed-by={KEYRING}]")), "{signed}");
        assert!(source_of("http://o.example/|Other|Other|main\n", "sid", true).is_err());
        assert!(source_of("", "sid", true).is_err());
    }

    #[test]
    fn only_modules_that_the_tests_may_need_are_taken() {
        for (path, wanted) in [
            ("kernel/net/sched/cls_bpf.ko", true),
            ("kernel/drivers/net/veth.ko.xz", true),
            ("kernel/drivers/net/ethernet/x/y.ko", false),
            ("kernel/drivers/block/virtio_blk.ko", false),
            ("modules.builtin", true),
            ("vmlinuz", false),
        ] {
            assert_eq!(is_wanted(Path::new(path)), wanted, "{path}");
        }
    }
}
