//! Source files for the structure checks: turns Rust text into its code, without comments, strings and test modules.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Where our code is.
const DIRECTORIES: [&str; 8] = [
    "fuzz/fuzz_targets",
    "lb-common/src",
    "lb-ebpf/src",
    "lb-userspace/src",
    "lb-userspace/build",
    "tests/src",
    "tests/tests",
    "xtask/src",
];

/// A Rust file.
#[derive(Debug)]
pub(crate) struct Source {
    /// From the workspace's root.
    pub(crate) path: String,
    pub(crate) text: String,
    /// The lines outside test modules, with comments and the insides of literals blanked.
    pub(crate) code: Vec<String>,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let blanked = blank(text);
        // Unit tests stand at the end of a file, or in one of their own.
        let lines = if path.ends_with("/tests.rs") { "" } else { &blanked }.lines();
        let code = lines.take_while(|line| line.trim() != "#[cfg(test)]").map(str::to_owned);
        Self { path: path.to_owned(), code: code.collect(), text: text.to_owned() }
    }

    /// Whether it is nothing but the unit tests of the module beside it.
    pub(crate) fn is_tests(&self) -> bool {
        self.path.ends_with("/tests.rs")
    }
}

/// Reads every Rust file of ours under `root`.
pub(crate) fn read_all(root: &Path) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for directory in DIRECTORIES {
        read_directory(root, directory, &mut sources).with_context(|| format!("reading {directory}"))?;
    }
    Ok(sources)
}

fn read_directory(root: &Path, directory: &str, sources: &mut Vec<Source>) -> Result<()> {
    for entry in fs::read_dir(root.join(directory))? {
        let entry = entry?;
        let path = format!("{directory}/{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            read_directory(root, &path, sources)?;
        } else if path.ends_with(".rs") {
            sources.push(Source::new(&path, &fs::read_to_string(entry.path())?));
        }
    }
    Ok(())
}

/// Replaces comments and what is inside literals by spaces; lines keep their numbers.
fn blank(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '"' => quoted(rest, 1),
            'r' if !ends_in_word(&code) => raw_string(rest),
            '\'' => character(rest),
            _ => 0,
        };
        if length == 0 {
            code.push(first);
            rest = rest.get(first.len_utf8()..).unwrap_or_default();
        } else {
            let (skipped, after) = rest.split_at(length);
            code.extend(skipped.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = after;
        }
    }
    code
}

fn ends_in_word(code: &str) -> bool {
    code.chars().next_back().is_some_and(is_word)
}

/// Whether a character can be part of an identifier.
pub(crate) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The length of a block comment, which may have others inside.
fn block_comment(text: &str) -> usize {
    let mut depth = 0_usize;
    for (at, _) in text.char_indices() {
        let here = text.get(at..).unwrap_or_default();
        if here.starts_with("/*") {
            depth += 1;
        } else if here.starts_with("*/") {
            depth = depth.saturating_sub(1);
            if depth == 0 {
                return at + 2;
            }
        }
    }
    text.len()
}

/// The length of a literal that begins with `opening` bytes and ends at the next quote of the same kind.
fn quoted(text: &str, opening: usize) -> usize {
    let quote = text.chars().next();
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(opening) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if Some(c) == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of a raw string, or 0 if the `r` begins something else.
fn raw_string(text: &str) -> usize {
    let after = text.get(1..).unwrap_or_default();
    let hashes = after.chars().take_while(|c| *c == '#').count();
    if !after.get(hashes..).is_some_and(|rest| rest.starts_with('"')) {
        return 0;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    let start = 2 + hashes;
    let inside = text.get(start..).unwrap_or_default();
    inside.find(&end).map_or(text.len(), |at| start + at + end.len())
}

/// The length of a character literal, or 0 for a lifetime.
fn character(text: &str) -> usize {
    let mut inside = text.chars().skip(1);
    match (inside.next(), inside.next()) {
        (Some('\\'), _) => quoted(text, 1),
        (Some(c), Some('\'')) => 2 + c.len_utf8(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_no_code() {
        let text =
            "let a = \"data() // \\\" x\"; // data()\n/* data() /* */\n data() */ let b = r#\"data()\"#;";
        let code = blank(text);
        assert!(!code.contains("data"), "{code}");
        assert_eq!(code.lines().count(), 2 + 1);
        assert!(code.contains("let b ="), "{code}");
    }

    #[test]
    fn lifetimes_and_characters_are_told_apart() {
        let code = blank("fn f<'a>(x: &'a str) { x.find('\"'); x.find('\\''); data() } // '");
        assert!(code.contains("<'a>") && code.contains("data()"), "{code}");
        assert!(!code.contains('"'), "{code}");
    }

    #[test]
    fn test_modules_are_left_out() {
        let source = Source::new("a.rs", "fn a() {}\n#[cfg(test)]\nmod tests { fn b() {} }\n");
        assert_eq!(source.code, ["fn a() {}"]);
        assert!(Source::new("a/tests.rs", "fn a() {}\n").code.is_empty());
    }
}
