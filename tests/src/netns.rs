//! Network namespaces without names: turns "a new namespace" into a file descriptor, and a closure or a command into
//! one that runs inside it.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace that lives exactly as long as somebody holds its descriptor or runs in it.
#[derive(Clone, Debug)]
pub struct Netns {
    fd: Arc<File>,
}

impl Netns {
    /// Makes a namespace with its loopback interface down, as the kernel does.
    pub fn new() -> Result<Self> {
        // The thread moves into the new namespace, takes a handle to it and ends: the caller never leaves its own.
        let made = std::thread::spawn(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET).context("creating a network namespace (needs root)")?;
            File::open("/proc/thread-self/ns/net").context("opening the new namespace")
        });
        let fd = made.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(Self { fd: Arc::new(fd) })
    }

    /// Runs `work` on a thread inside the namespace and hands back its value. Sockets made there stay there, so they
    /// may be returned and used from anywhere.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| -> Result<T> {
                self.enter()?;
                Ok(work())
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread into the namespace, for threads that live there.
    pub fn enter(&self) -> Result<()> {
        setns(self.fd.as_fd(), CloneFlags::CLONE_NEWNET).context("entering a network namespace")
    }

    /// Makes `command` start inside the namespace.
    pub fn apply_to(&self, command: &mut Command) {
        let fd = Arc::clone(&self.fd);
        // SAFETY: the closure runs between fork and exec and makes one system call; it neither allocates nor locks.
        unsafe {
            command
                .pre_exec(move || setns(fd.as_fd(), CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from));
        }
    }

    /// A path by which other programs (`ip`, `nsenter`) find the namespace while this process runs.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_only_its_own_loopback() {
        let netns = Netns::new().expect("a namespace");
        let mut show = Command::new("ip");
        show.args(["-o", "link"]);
        netns.apply_to(&mut show);
        let links = String::from_utf8(show.output().expect("ip").stdout).expect("text");
        assert_eq!(links.lines().count(), 1, "{links}");
        assert!(links.contains("lo:"), "{links}");
    }

    #[test]
    fn the_caller_stays_where_it_is() {
        let before = std::fs::read_link("/proc/thread-self/ns/net").expect("own namespace");
        let netns = Netns::new().expect("a namespace");
        let inside = netns
            .run(|| std::fs::read_link("/proc/thread-self/ns/net").expect("namespace inside"))
            .expect("run");
        let after = std::fs::read_link("/proc/thread-self/ns/net").expect("own namespace");
        assert_ne!(before, inside);
        assert_eq!(before, after);
    }
}
