//! The demo's page: turns headings, lines and checks into text, with colour on a terminal only, and counts what failed.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Result;

/// Where the story is told.
pub(crate) struct Screen {
    colour: bool,
    pause: Duration,
    chapters: u32,
    checks: u32,
    failures: u32,
}

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "31";
const GREEN: &str = "32";
/// How wide a full bar is.
const BAR: u64 = 30;
/// How long a reader gets for a chapter.
const READING: Duration = Duration::from_millis(1_500);

impl Screen {
    /// `paced` leaves time to read before each chapter, if somebody is looking.
    pub(crate) fn new(paced: bool) -> Self {
        let terminal = std::io::stdout().is_terminal();
        let colour = terminal && std::env::var_os("NO_COLOR").is_none();
        let pause = if paced && terminal { READING } else { Duration::ZERO };
        Self { colour, pause, chapters: 0, checks: 0, failures: 0 }
    }

    /// How many checks there were, and how many of them failed.
    pub(crate) fn result(&self) -> (u32, u32) {
        (self.checks, self.failures)
    }

    /// Begins a numbered chapter.
    pub(crate) fn chapter(&mut self, title: &str) {
        std::thread::sleep(self.pause);
        self.chapters += 1;
        println!("\n{}", self.paint(BOLD, &format!("{}  {title}", self.chapters)));
    }

    /// A line of the story.
    pub(crate) fn say(&self, line: &str) {
        println!("   {line}");
    }

    /// Text that is to be looked at as it is: a drawing, a program's output.
    pub(crate) fn show(&self, text: &str) {
        text.lines().for_each(|line| println!("   {}", self.paint(DIM, line)));
    }

    /// A claim that holds, or does not.
    pub(crate) fn check(&mut self, holds: bool, claim: &str, otherwise: &str) {
        self.checks += 1;
        if holds {
            println!("   {} {claim}", self.paint(GREEN, "✔"));
        } else {
            self.failures += 1;
            println!("   {} {claim}\n     {otherwise}", self.paint(RED, "✘"));
        }
    }

    /// A claim that holds if there is no error.
    pub(crate) fn check_result<T>(&mut self, claim: &str, result: Result<T>) -> Option<T> {
        let error = result.as_ref().err().map(|error| format!("{error:#}"));
        self.check(error.is_none(), claim, &error.unwrap_or_default());
        result.ok()
    }

    /// One row of a bar chart.
    pub(crate) fn bar(&self, name: &str, value: u64, of: u64) {
        let filled = (value * BAR).checked_div(of).unwrap_or(0);
        let bar: String = (0..BAR).map(|at| if at < filled { '█' } else { '·' }).collect();
        println!("   {name:<6} {} {value}", self.paint(GREEN, &bar));
    }

    fn paint(&self, style: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{style}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted() {
        let mut screen = Screen::new(false);
        screen.check(true, "water is wet", "");
        screen.check_result("sky falls", Err::<(), _>(anyhow::anyhow!("it does not")));
        assert_eq!(screen.result(), (2, 1));
    }
}
