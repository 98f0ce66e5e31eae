//! Running other programs: turns a command into something that is announced, watched and, if it fails, explained.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, IsTerminal, Write, stderr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How many lines of a failed program's output are shown.
const TAIL: usize = 30;
/// How often the live line is redrawn on a terminal, and how often a sign of life is given elsewhere.
const REDRAW: Duration = Duration::from_millis(200);
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

/// The workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// The cargo that runs us.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Whether a program is on the path or where system tools are.
pub(crate) fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).any(|directory| directory.join(name).is_file())
}

/// Runs a program whose own output is its progress.
pub(crate) fn stream(command: &mut Command) -> Result<()> {
    let shown = show(command);
    let status = command.status().with_context(|| format!("running `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status})");
    }
    Ok(())
}

/// What a program prints, or nothing if it cannot be run or fails.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Says `what` is about to happen, runs `command` with one live line of progress, and shows the end of its output if it
/// fails.
pub(crate) fn announced(what: &str, command: &mut Command) -> Result<()> {
    eprintln!("→ {what}\n  $ {}", show(command));
    let start = Instant::now();
    let (reader, writer) = std::io::pipe().context("making a pipe")?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("running `{}`", show(command)))?;
    // Our copies of the pipe's writing end must go, or reading it never ends.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let tail = Arc::new(Mutex::new(VecDeque::new()));
    let collected = Arc::clone(&tail);
    let collector = std::thread::spawn(move || {
        for line in BufReader::new(reader).lines().map_while(Result::ok) {
            let mut tail = collected.lock().unwrap_or_else(PoisonError::into_inner);
            tail.push_back(line);
            if tail.len() > TAIL {
                tail.pop_front();
            }
        }
    });
    let mut progress = Progress::new(start);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        std::thread::sleep(REDRAW);
        let last = tail.lock().unwrap_or_else(PoisonError::into_inner).back().cloned();
        progress.show(&last.unwrap_or_default());
    };
    let _ = collector.join();
    progress.clear();
    if !status.success() {
        let tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.iter().for_each(|line| eprintln!("  | {line}"));
        bail!("`{}` failed ({status})", show(command));
    }
    eprintln!("  done in {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// The live line.
struct Progress {
    start: Instant,
    terminal: bool,
    shown: Instant,
}

impl Progress {
    fn new(start: Instant) -> Self {
        Self { start, terminal: stderr().is_terminal(), shown: start }
    }

    fn show(&mut self, last_line: &str) {
        let seconds = self.start.elapsed().as_secs();
        let last: String = last_line.trim().chars().take(90).collect();
        if self.terminal {
            eprint!("\r\x1b[2K  {seconds:>3} s  {last}");
            let _ = stderr().flush();
        } else if self.shown.elapsed() > SIGN_OF_LIFE {
            self.shown = Instant::now();
            eprintln!("  {seconds:>3} s  {last}");
        }
    }

    fn clear(&self) {
        if self.terminal {
            eprint!("\r\x1b[2K");
        }
    }
}

/// A command as one would type it.
pub(crate) fn show(command: &Command) -> String {
    let set = command
        .get_envs()
        .filter_map(|(name, value)| Some(format!("{}={}", name.to_string_lossy(), value?.to_string_lossy())));
    let program = Path::new(command.get_program());
    let program = if program.ends_with("cargo") { Path::new("cargo") } else { program };
    let words = command.get_args().map(|word| word.to_string_lossy().into_owned());
    let all: Vec<_> = set.chain([program.display().to_string()]).chain(words).collect();
    all.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_typed() {
        let mut command = Command::new("/somewhere/bin/cargo");
        command.args(["build", "--release"]).env("LLVM_PREFIX", "/usr/lib/llvm-22");
        assert_eq!(show(&command), "LLVM_PREFIX=/usr/lib/llvm-22 cargo build --release");
    }

    #[test]
    fn a_failing_command_is_named() {
        let error = announced("trying", Command::new("sh").args(["-c", "exit 3"])).expect_err("it fails");
        assert!(error.to_string().contains("sh -c exit 3"), "{error}");
    }
}
