//! An initramfs: turns files, links and directories into a cpio archive as the kernel unpacks it ("newc").

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Component, Path};

const DIRECTORY: u32 = 0o04_0755;
const FILE: u32 = 0o10_0755;
const LINK: u32 = 0o12_0777;

/// An archive under way.
pub(crate) struct Archive<W> {
    to: W,
    entries: u32,
    directories: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    /// An empty archive that is written to `to`.
    pub(crate) fn new(to: W) -> Self {
        Self { to, entries: 0, directories: BTreeSet::new() }
    }

    /// Adds a file that everybody may read and run, and the directories it is in.
    pub(crate) fn file(&mut self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.parents(path)?;
        self.entry(FILE, &inside(path), content)
    }

    /// Adds a symbolic link, and the directories it is in.
    pub(crate) fn link(&mut self, path: &Path, to: &str) -> io::Result<()> {
        self.parents(path)?;
        self.entry(LINK, &inside(path), to.as_bytes())
    }

    /// Adds a directory, and those it is in.
    pub(crate) fn directory(&mut self, path: &Path) -> io::Result<()> {
        self.parents(path)?;
        let name = inside(path);
        if !name.is_empty() && self.directories.insert(name.clone()) {
            self.entry(DIRECTORY, &name, b"")?;
        }
        Ok(())
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.entry(0, "TRAILER!!!", b"")?;
        self.to.flush()
    }

    fn parents(&mut self, path: &Path) -> io::Result<()> {
        path.parent().map_or(Ok(()), |parent| self.directory(parent))
    }

    /// One entry: a header of hexadecimal numbers, the name, the content, both filled up to four bytes.
    fn entry(&mut self, mode: u32, name: &str, content: &[u8]) -> io::Result<()> {
        self.entries += 1;
        let size = u32::try_from(content.len()).map_err(io::Error::other)?;
        let name_size = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
        // Inode, mode, owner, group, links, time, size, four device numbers, length of the name, no checksum.
        let numbers = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        let mut head = String::from("070701");
        numbers.iter().for_each(|number| head += &format!("{number:08X}"));
        head += name;
        head.push('\0');
        for part in [head.as_bytes(), content] {
            self.to.write_all(part)?;
            self.to.write_all(&[0; 3][..part.len().wrapping_neg() % 4])?;
        }
        Ok(())
    }
}

/// The path as the archive has it: from the root, without the leading slash.
fn inside(path: &Path) -> String {
    let names = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_string_lossy()),
        _ => None,
    });
    names.collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_directories_come_once_and_first() {
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        archive.file(Path::new("/usr/bin/a"), b"12345").expect("file");
        archive.link(Path::new("/usr/bin/b"), "a").expect("link");
        archive.finish().expect("end");
        assert_eq!(bytes.len() % 4, 0);
        let mut names = Vec::new();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            assert!(rest.starts_with(b"070701"), "{rest:?}");
            let number = |index: usize| {
                let digits = std::str::from_utf8(&rest[6 + 8 * index..14 + 8 * index]).expect("digits");
                usize::from_str_radix(digits, 16).expect("a number")
            };
            let (size, name_size) = (number(6), number(11));
            names.push(String::from_utf8(rest[110..109 + name_size].to_vec()).expect("a name"));
            let content = (110 + name_size).next_multiple_of(4);
            rest = &rest[(content + size).next_multiple_of(4)..];
        }
        assert_eq!(names, ["usr", "usr/bin", "usr/bin/a", "usr/bin/b", "TRAILER!!!"]);
    }
}
