//! The terminal: keys and sizes come from it, frames go to it, and it is left as it was, however the command ends.
//!
//! A line may be slow. So a frame is made only when the one before has gone, and nobody waits for that: what happens meanwhile goes into
//! the next one, and keys are heeded.

use std::cell::{Cell, RefCell};
use std::fs::{File, OpenOptions};
use std::io::{self, Write, stdout};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{self, Event};
use ratatui::crossterm::{cursor, execute, terminal};
use ratatui::{Frame, Terminal};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

/// How often the thread that waits for keys looks whether anybody still wants them.
const LOOK: Duration = Duration::from_millis(200);
/// The terminal that this process writes to.
const OWN: &str = "/proc/self/fd/1";

/// Whether the terminal is ours: whoever gives it back does so once.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The terminal while it is ours.
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<Unsent>>,
    unsent: Unsent,
    line: AsyncFd<File>,
    /// Whether the line has ever had to be waited for.
    is_slow: Cell<bool>,
}

/// What of a frame has not gone to the terminal yet.
#[derive(Clone, Default)]
struct Unsent(Rc<RefCell<Vec<u8>>>);

impl Write for Unsent {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Screen {
    /// Takes the terminal. A panic gives it back before it is told.
    pub(super) fn take() -> io::Result<Self> {
        let told = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            give_back();
            told(panic);
        }));
        TAKEN.store(true, Ordering::SeqCst);
        let unsent = Unsent::default();
        let taken = terminal::enable_raw_mode()
            .and_then(|()| execute!(stdout(), terminal::EnterAlternateScreen, cursor::Hide))
            .and_then(|()| Terminal::new(CrosstermBackend::new(unsent.clone())))
            .and_then(|terminal| Ok(Self { terminal, unsent, line: line()?, is_slow: Cell::new(false) }));
        if taken.is_err() {
            give_back();
        }
        taken
    }

    /// Whether there is room for another frame.
    pub(super) fn is_free(&self) -> bool {
        self.unsent.0.borrow().is_empty()
    }

    /// Makes a frame.
    pub(super) fn draw(&mut self, render: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        self.terminal.draw(render).map(drop)
    }

    /// The next frame is to be whole. (`Terminal::clear` would ask the terminal where its cursor is, and fail if it takes long to say so.)
    pub(super) fn forget(&mut self) -> io::Result<()> {
        let size = self.terminal.size()?;
        self.terminal.resize(size.into())
    }

    /// Has the terminal take some more of the frame, as soon as it can.
    pub(super) async fn send(&self) -> io::Result<()> {
        loop {
            let mut ready = self.line.writable().await?;
            let sent = ready.try_io(|line| line.get_ref().write(&self.unsent.0.borrow()));
            if let Ok(sent) = sent {
                let sent = sent?;
                self.unsent.0.borrow_mut().drain(..sent);
                return Ok(());
            }
            self.is_slow.set(true);
        }
    }
}

/// A way to the terminal that does not block, of our own: the shell has the same terminal, and would not know what to make of
/// one that does not block. Where it cannot be opened it is as it is, and a slow line is waited for.
fn line() -> io::Result<AsyncFd<File>> {
    let own = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(OWN);
    let line = own.or_else(|_| io::stdout().as_fd().try_clone_to_owned().map(File::from))?;
    // SAFETY: the file keeps one descriptor for as long as it lives, and the registration owns the file.
    Ok(unsafe { AsyncFd::register(line) }?)
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.is_slow.get() {
            // What the line has not fetched yet, nobody wants to see any more.
            // SAFETY: only the terminal's queue is concerned; on what is no terminal it does nothing.
            unsafe { libc::tcflush(libc::STDOUT_FILENO, libc::TCOFLUSH) };
        }
        give_back();
    }
}

/// Leaves the terminal as it was. What fails cannot be helped: the terminal may be gone.
fn give_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        let _ = execute!(stdout(), terminal::LeaveAlternateScreen, cursor::Show);
        let _ = terminal::disable_raw_mode();
        let _ = stdout().flush();
    }
}

/// Keys and sizes, from a thread that waits for them. It ends when nobody listens or the terminal is gone.
pub(super) fn inputs() -> io::Result<mpsc::Receiver<Event>> {
    let (sender, receiver) = mpsc::channel(64);
    std::thread::Builder::new().name("keys".to_owned()).spawn(move || {
        while !sender.is_closed() {
            match event::poll(LOOK) {
                Ok(false) => {}
                Ok(true) => {
                    let sent = event::read().is_ok_and(|event| sender.blocking_send(event).is_ok());
                    if !sent {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    })?;
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// What the test below runs in a terminal of its own.
    #[tokio::test]
    #[ignore = "takes the terminal, and panics"]
    async fn panics_with_the_terminal() {
        let _screen = Screen::take().expect("a terminal");
        panic!("on purpose");
    }

    /// Within a terminal that `script` makes and records: what is told is told on the user's own screen, and all is as it was.
    #[test]
    fn a_panic_gives_the_terminal_back_before_it_is_told() {
        let test = std::env::current_exe().expect("a test");
        let run = format!(
            "echo before $(stty -g); {} --exact cli::top::terminal::tests::panics_with_the_terminal --ignored --nocapture; \
             echo after $(stty -g)",
            test.display()
        );
        let mut script = Command::new("script");
        script.args(["--quiet", "--command", &run, "/dev/null"]).env("TERM", "xterm").env("SHELL", "/bin/sh");
        let output = script.stdin(std::process::Stdio::null()).output().expect("script");
        let seen = String::from_utf8_lossy(&output.stdout);
        let at = |what: &str| seen.rfind(what).unwrap_or_else(|| panic!("{what:?}: {seen}"));
        let settings =
            |what: &str| seen[at(what) + what.len()..].lines().next().unwrap_or_default().trim().to_owned();
        assert!(settings("before ").contains(':'), "{seen}");
        assert_eq!(settings("before "), settings("after "));
        let [taken, left] = ["\u{1b}[?1049h", "\u{1b}[?1049l"].map(at);
        assert!(taken < left && left < at("on purpose"), "{seen}");
        assert!(at("\u{1b}[?25l") < at("\u{1b}[?25h") && at("\u{1b}[?25h") < at("on purpose"), "{seen}");
    }
}
