//! What a guest has in its memory: turns programs, files and modules into the initramfs it boots from.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::cpio::Archive;
use crate::process::search_path;

/// Files that programs look for and that need not be those of this machine.
const SYSTEM_FILES: [(&str, &str); 3] = [
    ("/etc/passwd", "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"),
    ("/etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    ("/etc/hosts", "127.0.0.1 localhost\n"),
];

/// What busybox is called for by name: by the first program, and by the lab's guardian. No more, so that it does not
/// pass for the real `ip` or `ping`.
const APPLETS: [&str; 7] = ["sh", "cat", "rm", "sleep", "mount", "insmod", "poweroff"];

/// Directories that the guest's file systems are mounted on, or that programs expect.
const DIRECTORIES: [&str; 6] = ["/proc", "/sys", "/dev", "/tmp", "/run", "/root"];

/// Files and what the guest does with them.
pub(super) struct Image<'a> {
    /// Programs by path; each comes with the shared libraries it is linked with, to the same paths.
    pub(super) programs: &'a [PathBuf],
    /// Other files, which keep their paths too.
    pub(super) files: &'a [PathBuf],
    /// Modules in the order in which they are loaded.
    pub(super) modules: &'a [Vec<u8>],
    /// The first program, a script for busybox's shell.
    pub(super) init: &'a str,
}

impl Image<'_> {
    /// Writes the initramfs.
    pub(super) fn write(&self, to: &Path) -> Result<()> {
        let file = File::create(to).with_context(|| format!("creating {}", to.display()))?;
        let mut archive = Archive::new(BufWriter::new(file));
        DIRECTORIES.iter().try_for_each(|directory| archive.directory(Path::new(directory)))?;
        for (path, content) in SYSTEM_FILES {
            archive.file(Path::new(path), content.as_bytes())?;
        }
        archive.file(Path::new("/init"), self.init.as_bytes())?;
        for applet in APPLETS {
            archive.link(&Path::new("/bin").join(applet), "busybox")?;
        }
        let busybox = program_path("busybox")?;
        let mut paths: BTreeSet<_> = libraries(&busybox)?.into_iter().collect();
        for program in self.programs {
            paths.insert(program.clone());
            paths.extend(libraries(program)?);
        }
        let mut files = vec![(busybox, PathBuf::from("/bin/busybox"))];
        files.extend(paths.iter().chain(self.files).map(|path| (path.clone(), path.clone())));
        for (from, to) in files {
            let content = fs::read(&from).with_context(|| format!("reading {}", from.display()))?;
            archive.file(&to, &content)?;
        }
        for (number, module) in self.modules.iter().enumerate() {
            archive.file(&Path::new("/modules").join(format!("{number:03}.ko")), module)?;
        }
        archive.finish().with_context(|| format!("writing {}", to.display()))
    }
}

/// Where a program is that is given by name or by path.
pub(super) fn program_path(program: &str) -> Result<PathBuf> {
    let path = search_path();
    let mut candidates = path.split(':').map(|directory| Path::new(directory).join(program));
    let found = candidates.find(|candidate| candidate.is_file());
    found.with_context(|| format!("there is no {program}: run `cargo xtask setup`"))
}

/// The shared libraries a program is linked with, as the dynamic linker finds them, and that linker.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).env("LC_ALL", "C").output().context("running ldd")?;
    let words = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() && !words.contains("not a dynamic executable") {
        bail!("ldd {}: {}", program.display(), words.trim());
    }
    Ok(library_paths(&String::from_utf8_lossy(&output.stdout)))
}

fn library_paths(ldd: &str) -> Vec<PathBuf> {
    let words = ldd.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    words.map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_ldd() {
        let text = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x2)\n\t/lib64/ld-linux-x86-64.so.2 (0x3)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(library_paths(text), expected.map(PathBuf::from));
    }
}
