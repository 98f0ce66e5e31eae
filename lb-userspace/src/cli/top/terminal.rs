//! The terminal: keys and sizes come from it, and it is left as it was, however the command ends.

use std::io::{self, Stdout, Write, stdout};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{self, Event};
use ratatui::crossterm::{cursor, execute, terminal};
use tokio::sync::mpsc;

/// How often the thread that waits for keys looks whether anybody still wants them.
const LOOK: Duration = Duration::from_millis(200);

/// Whether the terminal is ours: whoever gives it back does so once.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The terminal while it is ours.
pub(super) struct Screen {
    pub(super) terminal: Terminal<CrosstermBackend<Stdout>>,
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
        let taken = terminal::enable_raw_mode()
            .and_then(|()| execute!(stdout(), terminal::EnterAlternateScreen, cursor::Hide))
            .and_then(|()| Terminal::new(CrosstermBackend::new(stdout())));
        match taken {
            Ok(terminal) => Ok(Self { terminal }),
            Err(error) => {
                give_back();
                Err(error)
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
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
    #[test]
    #[ignore = "takes the terminal, and panics"]
    fn panics_with_the_terminal() {
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
