//! Removing files whatever happens: turns a lab's life into a temporary directory and a pin directory that are gone
//! when it ends, even if its process is killed.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

const BPFFS: &str = "/sys/fs/bpf";

/// Waits for its stdin to close (the lab ended, or died) and removes what it was given. Dying processes may still be
/// writing, hence the second tries.
const GUARDIAN: &str = "trap '' INT TERM HUP; cat >/dev/null; \
     for try in 1 2 3 4 5; do rm -rf -- \"$@\" && exit 0; sleep 0.2; done";

/// The lab's files, and the child process that outlives the lab to remove them.
#[derive(Debug)]
pub(crate) struct Guard {
    directory: PathBuf,
    pins: PathBuf,
    guardian: Child,
}

impl Guard {
    /// Makes the temporary directory, chooses the pin directory (which the agent makes) and starts the guardian.
    pub(crate) fn new() -> Result<Self> {
        mount_bpffs()?;
        let (directory, name) = make_directory()?;
        let pins = Path::new(BPFFS).join(name);
        let mut guardian = Command::new("sh");
        guardian
            .args(["-c", GUARDIAN, "guardian"])
            .args([&directory, &pins])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // SAFETY: the closure runs between fork and exec and makes one system call.
        unsafe {
            // A session of its own keeps it from the terminal's Ctrl-C.
            guardian.pre_exec(|| nix::unistd::setsid().map(drop).map_err(std::io::Error::from));
        }
        let guardian = guardian.spawn().context("starting the guardian (sh)")?;
        Ok(Self { directory, pins, guardian })
    }

    /// Where the lab keeps its files.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where its agents pin.
    pub(crate) fn pins(&self) -> &Path {
        &self.pins
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // The orderly end and the violent one take the same way: the pipe closes, the guardian cleans up.
        drop(self.guardian.stdin.take());
        let _ = self.guardian.wait();
    }
}

fn make_directory() -> Result<(PathBuf, String)> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let name = format!("sluice-lab-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(&name);
        match fs::create_dir(&directory) {
            Ok(()) => return Ok((directory, name)),
            // Another container with the same process id and a shared /tmp.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("creating {}", directory.display())),
        }
    }
}

/// Mounts the BPF file system where it is looked for, unless it is there.
fn mount_bpffs() -> Result<()> {
    static MOUNTING: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one_at_a_time = MOUNTING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let found = statfs(BPFFS).with_context(|| format!("looking at {BPFFS}"))?;
    if found.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .with_context(|| format!("mounting bpf on {BPFFS} (needs root)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_pins_are_gone_after_an_orderly_end() {
        let guard = Guard::new().expect("a guard");
        let (directory, pins) = (guard.directory().to_owned(), guard.pins().to_owned());
        fs::write(directory.join("file"), "content").expect("a file");
        fs::create_dir_all(pins.join("maps")).expect("pins");
        drop(guard);
        assert!(!directory.exists());
        assert!(!pins.exists());
    }
}
