//! Archives as the kernel unpacks them into its first root folder ("newc" cpio), written to a
//! stream. Several of them one after the other are one root folder.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;

/// An archive under construction. Folders are made as they are needed; of two files with one
/// name the first counts.
pub(super) struct Archive<W: Write> {
    out: W,
    names: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    /// An empty archive.
    pub(super) const fn new(out: W) -> Self {
        Self { out, names: BTreeSet::new() }
    }

    /// Whether there is something of this name.
    pub(super) fn has(&self, path: &str) -> bool {
        self.names.contains(path.trim_start_matches('/'))
    }

    /// A folder and those above it.
    pub(super) fn folder(&mut self, path: &str) -> io::Result<()> {
        let path = path.trim_matches('/');
        if path.is_empty() || self.names.contains(path) {
            return Ok(());
        }
        self.parents(path)?;
        self.entry(path, FOLDER, &[])
    }

    /// A file that may be executed.
    pub(super) fn file(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.leaf(path, PROGRAM, bytes)
    }

    /// A symbolic link.
    pub(super) fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.leaf(path, LINK, target.as_bytes())
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn leaf(&mut self, path: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
        let path = path.trim_start_matches('/');
        if self.names.contains(path) {
            return Ok(());
        }
        self.parents(path)?;
        self.entry(path, mode, bytes)
    }

    fn parents(&mut self, path: &str) -> io::Result<()> {
        match Path::new(path).parent().and_then(Path::to_str) {
            Some(parent) => self.folder(parent),
            None => Ok(()),
        }
    }

    fn entry(&mut self, name: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
        self.names.insert(name.to_owned());
        let too_long = || io::Error::other(format!("{name} does not fit into an archive"));
        let inode = u32::try_from(self.names.len()).ok().ok_or_else(too_long)?;
        let size = u32::try_from(bytes.len()).ok().ok_or_else(too_long)?;
        let name_size = u32::try_from(name.len() + 1).ok().ok_or_else(too_long)?;
        // inode, mode, uid, gid, links, time, size, two devices, name's size, no checksum.
        let fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.out.write_all(b"070701")?;
        for field in fields {
            write!(self.out, "{field:08X}")?;
        }
        self.out.write_all(name.as_bytes())?;
        self.out.write_all(&[0])?;
        self.pad(6 + fields.len() * 8 + name.len() + 1)?;
        self.out.write_all(bytes)?;
        self.pad(bytes.len())
    }

    /// Zeros up to the next multiple of 4.
    fn pad(&mut self, written: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..written.next_multiple_of(4) - written])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode and contents of each entry, read by the rules of the format.
    fn entries(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut found = vec![];
        while !bytes.is_empty() {
            assert_eq!(&bytes[..6], b"070701");
            let field = |number: usize| {
                let text = &bytes[6 + number * 8..14 + number * 8];
                u32::from_str_radix(std::str::from_utf8(text).expect("digits"), 16).expect("hex")
            };
            let (mode, size, name) = (field(1), field(6) as usize, field(11) as usize);
            let start = (110 + name).next_multiple_of(4);
            let text = String::from_utf8(bytes[110..110 + name - 1].to_vec()).expect("a name");
            found.push((text, mode, bytes[start..start + size].to_vec()));
            bytes = &bytes[(start + size).next_multiple_of(4)..];
        }
        found
    }

    #[test]
    fn what_is_written_is_read_by_the_rules_of_the_format() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/usr/bin/a", b"12345").expect("written");
        archive.file("/usr/bin/a", b"the first counts").expect("left out");
        archive.link("/bin", "usr/bin").expect("written");
        assert!(archive.has("/usr/bin") && !archive.has("/usr/lib"));
        let bytes = archive.finish().expect("finished");
        let entry = |name: &str, mode, bytes: &[u8]| (name.to_owned(), mode, bytes.to_vec());
        assert_eq!(
            entries(&bytes),
            [
                entry("usr", FOLDER, b""),
                entry("usr/bin", FOLDER, b""),
                entry("usr/bin/a", PROGRAM, b"12345"),
                entry("bin", LINK, b"usr/bin"),
                entry("TRAILER!!!", 0, b""),
            ]
        );
    }
}
