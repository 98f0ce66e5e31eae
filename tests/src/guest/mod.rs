//! Guests: turns a kernel, programs and a command into what the command did on a machine that runs that kernel.
//!
//! The machine is emulated (QEMU without KVM), boots from memory, and has no disk and no network but what the command
//! makes. It ends with the command; it and its files are gone when [`Guest::run`] returns, or when the process that
//! called it ends in any way.

mod cpio;
mod image;
mod kernel;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

pub use kernel::GuestKernel;

use crate::guard::Guard;
use crate::process::Daemon;
use image::{Image, program_path};

/// Where a command in a guest finds the name of the file that it writes its results to, one a line.
pub const GUEST_RESULTS: &str = "SLUICE_GUEST_RESULTS";

const QEMU: &str = "qemu-system-x86_64";
/// Its first serial port carries the kernel's log and the command's output, the second one the results.
const MACHINE: &str =
    "-accel tcg,thread=multi -cpu max -smp 2 -m 1G -nodefaults -no-user-config -display none -no-reboot";
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet panic=-1";
const RESULTS: &str = "/dev/ttyS1";
/// The last result: the command's exit status.
const STATUS: &str = "exit status ";

/// A machine to be started.
#[derive(Clone, Debug)]
pub struct Guest {
    kernel: GuestKernel,
    programs: Vec<PathBuf>,
    files: Vec<PathBuf>,
    modules: Vec<&'static str>,
    variables: String,
    timeout: Duration,
}

/// What a command did in a guest.
#[derive(Clone, Debug)]
pub struct GuestReport {
    /// Its exit status.
    pub status: i32,
    /// The lines it wrote to the file that [`GUEST_RESULTS`] names.
    pub results: Vec<String>,
    /// The kernel's log and the command's output.
    pub console: String,
    /// How long the machine ran, emulated and real time being the same.
    pub took: Duration,
}

impl Guest {
    /// A machine with this kernel and busybox.
    pub fn new(kernel: GuestKernel) -> Self {
        let (programs, files, modules) = (Vec::new(), Vec::new(), Vec::new());
        let timeout = Duration::from_secs(120);
        Self { kernel, programs, files, modules, variables: String::new(), timeout }
    }

    /// Adds a program by name or path, with the shared libraries it is linked with, at the path it has here.
    pub fn program(mut self, program: &str) -> Result<Self> {
        self.programs.push(program_path(program)?);
        Ok(self)
    }

    /// Adds a file of this machine, at the path it has here.
    #[must_use]
    pub fn file(mut self, path: &Path) -> Self {
        self.files.push(path.to_owned());
        self
    }

    /// Loads a kernel module, after those that it needs.
    #[must_use]
    pub fn module(mut self, name: &'static str) -> Self {
        self.modules.push(name);
        self
    }

    /// Sets an environment variable of the command.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables += &format!("export {name}={}\n", quoted(value));
        self
    }

    /// How long the machine may run.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Boots the machine and runs a command as root; an error if the machine ends otherwise than by the command's end.
    pub fn run(&self, command: &[&str]) -> Result<GuestReport> {
        let guard = Guard::new()?;
        let [initramfs, console, results] =
            ["initramfs", "console", "results"].map(|name| guard.directory().join(name));
        let modules = self.kernel.modules(&self.modules)?;
        let init = self.init(command);
        Image { programs: &self.programs, files: &self.files, modules: &modules, init: &init }
            .write(&initramfs)?;

        let mut qemu = Command::new(program_path(QEMU)?);
        qemu.args(MACHINE.split(' ')).arg("-kernel").arg(self.kernel.image());
        qemu.arg("-initrd").arg(&initramfs).args(["-append", KERNEL_ARGUMENTS]);
        for file in [&console, &results] {
            qemu.arg("-serial").arg(format!("file:{}", file.display()));
        }
        let name = format!("a guest with kernel {}", self.kernel.series());
        let start = Instant::now();
        let mut machine = Daemon::spawn(qemu, &name, &guard.directory().join("qemu.log"))?;
        let ended = machine.wait(self.timeout);
        let took = start.elapsed();
        drop(machine);
        let read =
            |file: &Path| fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).replace('\r', ""));
        let console = read(&console).unwrap_or_default();
        ended.with_context(|| format!("{name} did not end; its console:\n{console}"))?;
        let results = read(&results).unwrap_or_default();
        match parse(&results) {
            Some((status, results)) => Ok(GuestReport { status, results, console, took }),
            None => bail!("{name} ended before the command did; its console:\n{console}"),
        }
    }

    /// The guest's first program: mounts, loads modules, runs the command, tells its status and ends the machine.
    fn init(&self, command: &[&str]) -> String {
        let words: Vec<_> = command.iter().map(|word| quoted(word)).collect();
        format!(
            "#!/bin/busybox sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
busybox ip link set lo up
for module in /modules/*.ko; do
    [ ! -e $module ] || insmod $module || echo \"$module was not loaded\"
done
export HOME=/root TMPDIR=/tmp
export {GUEST_RESULTS}={RESULTS}
{variables}cd /
{words}
echo \"{STATUS}$?\" >{RESULTS}
poweroff -f
",
            variables = self.variables,
            words = words.join(" "),
        )
    }
}

/// A word as the shell reads it, whatever is in it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// The command's exit status and the results before it, if the guest came that far.
fn parse(results: &str) -> Option<(i32, Vec<String>)> {
    let mut lines: Vec<_> = results.lines().map(str::to_owned).collect();
    let status = lines.pop()?.strip_prefix(STATUS)?.parse().ok()?;
    Some((status, lines))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_command_as_they_are() {
        let odd = "it's $HOME \"quoted\"";
        let echo = Command::new("sh").args(["-c", &format!("printf %s {}", quoted(odd))]).output();
        assert_eq!(String::from_utf8(echo.expect("sh").stdout).expect("text"), odd);
    }

    #[test]
    fn results_end_with_the_status() {
        assert_eq!(parse("a\nb\nexit status 3\n"), Some((3, vec!["a".to_owned(), "b".to_owned()])));
        assert_eq!(parse("a\n"), None);
        assert_eq!(parse(""), None);
    }
}
