//! Values → what a command prints: JSON, or columns for people; and what it says beside.

use std::fmt::Display;
use std::io::{ErrorKind, Write, stderr, stdout};

use serde::Serialize;

use super::Failure;

/// Prints a value as JSON.
pub(super) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(Failure::failed)?;
    print(&text)
}

/// Prints a text and a line end. A reader that has seen enough (`| head`) is no failure.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    print_if_read(text).map(drop)
}

/// Prints a text and a line end; says whether somebody reads it.
pub(super) fn print_if_read(text: &str) -> Result<bool, Failure> {
    match writeln!(stdout().lock(), "{text}") {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::Failed(format!("standard output: {error}"))),
    }
}

/// Says a line on stderr, at once: who reads it while it is written sees it whole. Where nobody can hear it the exit status still tells.
pub(super) fn say(line: impl Display) {
    let _ = stderr().write_all(format!("{line}\n").as_bytes());
}

/// The same in the command's name.
pub(super) fn note(line: impl Display) {
    say(format_args!("sluice: {line}"));
}

/// Lines of cells → lines of aligned columns.
#[derive(Debug, Default)]
pub(super) struct Columns {
    lines: Vec<Vec<String>>,
}

impl Columns {
    pub(super) fn with_header(header: &[&str]) -> Self {
        Self { lines: vec![header.iter().map(ToString::to_string).collect()] }
    }

    pub(super) fn line(&mut self, cells: Vec<String>) {
        self.lines.push(cells);
    }

    /// The lines, each behind `indent` and without blanks at its end.
    pub(super) fn render(&self, indent: &str) -> String {
        let width = |column: usize| {
            let cells = self.lines.iter().filter_map(|line| line.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        // Once for all lines: there may be ten thousand.
        let columns = self.lines.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let lines = self.lines.iter().map(|line| {
            let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            format!("{indent}{}", cells.collect::<Vec<_>>().join("  ")).trim_end().to_owned()
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// A share as a percentage.
pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_end_without_blanks() {
        let mut columns = Columns::with_header(&["name", "state"]);
        columns.line(vec!["web-server-1".into(), "up".into()]);
        columns.line(vec!["b".into(), String::new()]);
        assert_eq!(columns.render("  "), "  name          state\n  web-server-1  up\n  b");
    }
}
