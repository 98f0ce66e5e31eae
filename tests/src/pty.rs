//! A pseudo-terminal whose far end is a test: it sees what a command draws, as slowly as it likes, and presses keys.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

/// Bytes that a slow line brings at once.
const AT_ONCE: usize = 64;

/// The far end of a terminal.
#[derive(Debug)]
pub struct Pty {
    keys: File,
    seen: Arc<Mutex<Vec<u8>>>,
    stopping: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl Pty {
    /// Gives a command a terminal of this size, of which `bytes_per_second` at most are read, and starts to read.
    pub fn new(command: &mut Command, columns: u16, rows: u16, bytes_per_second: u32) -> Result<Self> {
        let (far, near) = open(columns, rows).context("opening a pseudo-terminal")?;
        command.stdin(near.try_clone()?).stdout(near.try_clone()?).stderr(Stdio::from(near));
        take_for_oneself(command);
        let (keys, mut screen) = (far.try_clone()?, far);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let stopping = Arc::new(AtomicBool::new(false));
        let (to, stop) = (Arc::clone(&seen), Arc::clone(&stopping));
        let pause = Duration::from_secs(1) * AT_ONCE as u32 / bytes_per_second;
        let reader = std::thread::spawn(move || {
            let mut bytes = [0; AT_ONCE];
            while !stop.load(Ordering::SeqCst) {
                match screen.read(&mut bytes) {
                    Ok(count) => {
                        to.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&bytes[..count]);
                    }
                    // Nobody has the near end: not yet, or not any more.
                    Err(error) if error.raw_os_error() == Some(libc::EIO) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(_) => return,
                }
                std::thread::sleep(pause);
            }
        });
        Ok(Self { keys, seen, stopping, reader: Some(reader) })
    }

    /// Presses keys.
    pub fn press(&mut self, keys: &str) -> Result<()> {
        self.keys.write_all(keys.as_bytes()).context("pressing keys")
    }

    /// Everything read so far, escape sequences included.
    pub fn seen(&self) -> Vec<u8> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// The far end, which does not block, and the near one.
fn open(columns: u16, rows: u16) -> std::io::Result<(File, OwnedFd)> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let (mut far, mut near) = (-1, -1);
    // SAFETY: both descriptors and the size live; no name and no settings are asked for or given.
    let opened =
        unsafe { libc::openpty(&raw mut far, &raw mut near, std::ptr::null_mut(), std::ptr::null(), &size) };
    if opened != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: openpty has made them, and nobody else has them.
    let (far, near) = unsafe { (OwnedFd::from_raw_fd(far), OwnedFd::from_raw_fd(near)) };
    for (descriptor, command, flags) in [
        (&far, libc::F_SETFL, libc::O_RDWR | libc::O_NONBLOCK),
        (&far, libc::F_SETFD, libc::FD_CLOEXEC),
        (&near, libc::F_SETFD, libc::FD_CLOEXEC),
    ] {
        // SAFETY: flags of descriptors that live.
        if unsafe { libc::fcntl(descriptor.as_raw_fd(), command, flags) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok((far.into(), near))
}

/// Has the command lead a session of its own whose terminal is its standard input.
fn take_for_oneself(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec and makes system calls only.
    unsafe {
        command.pre_exec(|| {
            if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
}
