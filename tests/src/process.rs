//! Processes that cannot outlive the lab: turns a `Command` into a child that the kernel kills when its parent ends,
//! and into a daemon that is killed when its handle is dropped.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

type Job = Box<dyn FnOnce() + Send>;

/// Has the kernel kill the child with SIGKILL when the thread that starts it ends.
pub(crate) fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    // SAFETY: the closure runs between fork and exec and makes system calls only; it neither allocates nor locks.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            // The parent may have ended before prctl: then no signal will ever come.
            if libc::getppid().unsigned_abs() != parent {
                return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}

/// Starts `command` from a thread that lives as long as this process. The parent-death signal is tied to the starting
/// *thread*, so a daemon started by a test's helper thread would die with that thread.
fn spawn_from_lasting_thread(mut command: Command) -> Result<Child> {
    static SPAWNER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, queue) = channel::<Job>();
        std::thread::spawn(move || queue.into_iter().for_each(|job| job()));
        Mutex::new(jobs)
    });
    let (answer, child) = channel();
    let job: Job = Box::new(move || {
        let _ = answer.send(command.spawn());
    });
    spawner
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send(job)
        .ok()
        .context("the spawner thread has ended")?;
    child.recv().context("the spawner thread has ended")?.context("starting a process")
}

/// A background process with its output in a log file; killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command` with stdout and stderr going to `log`.
    pub fn spawn(command: Command, name: &str, log: &Path) -> Result<Self> {
        let errors = create(log)?;
        Self::spawn_into(command, name, log, errors.try_clone()?, errors)
    }

    /// Starts `command` with stderr going to `log` and stdout to `output`.
    pub(crate) fn spawn_with_output(command: Command, name: &str, log: &Path, output: &Path) -> Result<Self> {
        Self::spawn_into(command, name, log, create(output)?, create(log)?)
    }

    fn spawn_into(mut command: Command, name: &str, log: &Path, output: File, errors: File) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        die_with_parent(&mut command);
        let child = spawn_from_lasting_thread(command).with_context(|| format!("starting {name}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_else(|error| format!("(no log: {error})"))
    }

    /// Its exit status, if it has ended.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("waiting for {}", self.name))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid())?);
        kill(pid, signal).with_context(|| format!("sending {signal} to {}", self.name))
    }

    /// Waits for it to end by itself; an error after `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.exited()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{} still runs after {timeout:?}; its log:\n{}", self.name, self.log());
            }
            std::thread::sleep(POLL);
        }
    }
}

fn create(file: &Path) -> Result<File> {
    File::create(file).with_context(|| format!("creating {}", file.display()))
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only if it has ended already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const POLL: Duration = Duration::from_millis(10);

/// Polls `condition` until it holds; an error naming `what` after `timeout`.
pub fn wait_until(what: &str, timeout: Duration, mut condition: impl FnMut() -> bool) -> Result<Duration> {
    let start = Instant::now();
    loop {
        if condition() {
            return Ok(start.elapsed());
        }
        if start.elapsed() > timeout {
            bail!("waited {timeout:?} in vain until {what}");
        }
        std::thread::sleep(POLL);
    }
}

/// Runs a command to its end; an error with its stderr if it fails.
pub fn run_checked(command: &mut Command) -> Result<Output> {
    let shown = format!("{command:?}");
    let output = command.output().with_context(|| format!("running {shown}"))?;
    if !output.status.success() {
        bail!("{shown}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output)
}

/// Whether `program` is found on the path, with the directories of system tools added.
pub(crate) fn on_path(program: &str) -> bool {
    let path = search_path();
    path.split(':').any(|directory| Path::new(directory).join(program).is_file())
}

/// `PATH` with the directories of system tools, which an ordinary user's path lacks.
pub(crate) fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/sbin:/sbin")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_when_the_condition_holds_and_when_time_is_up() {
        let mut polls = 0;
        let reached = wait_until("third poll", Duration::from_secs(5), || {
            polls += 1;
            polls == 3
        });
        assert!(reached.is_ok());
        let error = wait_until("never", Duration::from_millis(20), || false).expect_err("in vain");
        assert!(error.to_string().contains("until never"), "{error}");
    }

    #[test]
    fn a_daemon_outlives_the_thread_that_asked_for_it_and_not_its_handle() {
        let log = std::env::temp_dir().join(format!("sluice-lab-test-{}", std::process::id()));
        let log_path = log.clone();
        let mut daemon = std::thread::spawn(move || {
            let mut sleep = Command::new("sleep");
            sleep.arg("60");
            Daemon::spawn(sleep, "sleep", &log_path).expect("a daemon")
        })
        .join()
        .expect("thread");
        std::thread::sleep(Duration::from_millis(50));
        assert!(daemon.exited().expect("status").is_none(), "killed with the thread that asked");
        let process = PathBuf::from(format!("/proc/{}", daemon.pid()));
        drop(daemon);
        assert!(!process.exists());
        std::fs::remove_file(log).expect("log removed");
    }

    #[test]
    fn a_failing_command_is_reported_with_its_words() {
        let error =
            run_checked(Command::new("sh").args(["-c", "echo no luck >&2; exit 3"])).expect_err("it fails");
        assert!(error.to_string().contains("no luck"), "{error}");
    }
}
