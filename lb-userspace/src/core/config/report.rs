//! Findings at byte offsets or lines of a text → a sorted list of [`ConfigError`].

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;

/// One thing that is wrong with a configuration, where, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// Line of the file, counted from 1.
    pub line: usize,
    /// Place in the document, such as `service[0].backend[2].weight`; empty for a syntax error.
    pub path: String,
    /// What is wrong and what to do.
    pub message: String,
}

/// How the message about a key that nobody asks for begins.
pub(super) const UNKNOWN_KEY: &str = "unknown key; ";

impl ConfigError {
    /// Whether it is about a key that nobody knows.
    pub fn is_unknown_key(&self) -> bool {
        self.message.starts_with(UNKNOWN_KEY)
    }

    /// This error as `file:line: path: message`.
    pub fn at(&self, file: &str) -> impl fmt::Display {
        InFile { file: file.to_owned(), error: self.clone() }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, path, message } = self;
        if path.is_empty() { write!(f, "{line}: {message}") } else { write!(f, "{line}: {path}: {message}") }
    }
}

/// A [`ConfigError`] with its file's name in front.
struct InFile {
    file: String,
    error: ConfigError,
}

impl fmt::Display for InFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.error)
    }
}

/// A place in the document.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) path: String,
}

/// Collects errors while a document is read.
///
/// Once a syntax error is known, what it spoilt stays quiet: its own line has been complained about, and
/// beyond a place whose structure is lost the document says something its author did not write.
pub(super) struct Report {
    newlines: Vec<usize>,
    errors: RefCell<Vec<ConfigError>>,
    spoilt_lines: RefCell<BTreeSet<usize>>,
    /// First line whose structure is lost; `usize::MAX` in a well-formed document.
    lost_from_line: RefCell<usize>,
}

impl Report {
    pub(super) fn new(text: &str) -> Self {
        Self {
            newlines: text.bytes().enumerate().filter(|&(_, b)| b == b'\n').map(|(at, _)| at).collect(),
            errors: RefCell::default(),
            spoilt_lines: RefCell::default(),
            lost_from_line: RefCell::new(usize::MAX),
        }
    }

    /// The line, from 1, that holds the byte at `offset`.
    pub(super) fn line_of(&self, offset: usize) -> usize {
        1 + self.newlines.partition_point(|&newline| newline < offset)
    }

    /// Records a syntax error; of several on one line only the first, for the rest follow from it.
    pub(super) fn syntax(&self, offset: usize, path: String, message: String) {
        let line = self.line_of(offset);
        if self.spoilt_lines.borrow_mut().insert(line) {
            self.errors.borrow_mut().push(ConfigError { line, path, message });
        }
    }

    /// Says that the document's structure is lost from `offset` on.
    pub(super) fn lost(&self, offset: usize) {
        let line = self.line_of(offset);
        let mut lost = self.lost_from_line.borrow_mut();
        *lost = line.min(*lost);
    }

    /// Whether what stands at `line` is what its author wrote.
    pub(super) fn is_readable(&self, line: usize) -> bool {
        line < *self.lost_from_line.borrow() && !self.spoilt_lines.borrow().contains(&line)
    }

    /// Records that something written is wrong.
    pub(super) fn wrong(&self, place: Place, message: String) {
        if self.is_readable(place.line) {
            self.errors.borrow_mut().push(ConfigError { line: place.line, path: place.path, message });
        }
    }

    /// Records that something is not there. Nothing is known to be absent from a document read in part.
    pub(super) fn missing(&self, place: Place, message: String) {
        if *self.lost_from_line.borrow() == usize::MAX {
            self.wrong(place, message);
        }
    }

    /// Everything recorded, sorted by line.
    pub(super) fn into_errors(self) -> Vec<ConfigError> {
        let mut errors = self.errors.into_inner();
        errors.sort_by_key(|error| error.line);
        errors
    }
}
