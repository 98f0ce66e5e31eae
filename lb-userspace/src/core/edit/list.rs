//! A list in the document and what is to be in it → the same list, in which every element has kept its comments.
//!
//! The library counts what stands behind a comma to the next element. A comment on the line of an element is about that one, and so
//! it is taken apart here, and put together again when the elements have found their places.

use std::mem::take;

use toml_edit::{Array, Decor, RawString, Value};

/// An element with what is around it.
pub(super) struct Piece {
    /// What stands before it: from the line behind the one of the element before on, if it is not on that line.
    before: String,
    value: Value,
    /// What stands behind it, its comma apart, on the same line.
    after: String,
}

impl Piece {
    /// The value, without what is around it.
    pub(super) fn plain(&self) -> String {
        plain(&self.value)
    }
}

/// A value without what is around it.
pub(super) fn plain(value: &Value) -> String {
    let mut value = value.clone();
    value.decor_mut().clear();
    match value.as_str() {
        Some(text) => format!("{text:?}"),
        None => value.to_string(),
    }
}

/// Lets the elements of a list be taken away and put elsewhere.
pub(super) fn arrange(list: &mut Array, change: impl FnOnce(&mut Vec<Piece>)) {
    let (mut pieces, end) = apart(list);
    let mut blanks = pieces.iter().map(|piece| piece.before.clone()).filter(|before| is_blank(before));
    let (first, other) = (blanks.next().unwrap_or_default(), blanks.next().unwrap_or_else(|| " ".to_owned()));
    change(&mut pieces);
    for (at, piece) in pieces.iter_mut().enumerate().filter(|(_, piece)| is_blank(&piece.before)) {
        piece.before = if at == 0 { first.clone() } else { other.clone() };
    }
    together(list, pieces, end);
}

/// Puts a new element behind the others: on a line of its own if the last one has one.
pub(super) fn add(pieces: &mut Vec<Piece>, value: Value) {
    let last = pieces.last().map(|last| last.before.as_str()).unwrap_or_default();
    let before = match last.rsplit_once('\n') {
        Some((_, indent)) => format!("\n{indent}"),
        None => " ".to_owned(),
    };
    pieces.push(Piece { before, value, after: String::new() });
}

fn is_blank(before: &str) -> bool {
    before.chars().all(|c| c == ' ' || c == '\t')
}

/// The elements, and what stands behind the last one's line.
fn apart(list: &Array) -> (Vec<Piece>, String) {
    let text = |raw: Option<&RawString>| raw.and_then(RawString::as_str).unwrap_or_default().to_owned();
    let mut pieces: Vec<Piece> = Vec::new();
    let mut carried = String::new();
    for value in list {
        let mut value = value.clone();
        let (prefix, suffix) = (text(value.decor().prefix()), text(value.decor().suffix()));
        *value.decor_mut() = Decor::default();
        let (of_last, before) = line(take(&mut carried) + &prefix, pieces.is_empty());
        if let Some(last) = pieces.last_mut() {
            last.after.push_str(&of_last);
        }
        // What stands before the comma stands behind it from now on.
        carried = suffix;
        pieces.push(Piece { before, value, after: String::new() });
    }
    let (of_last, end) = line(carried + &text(Some(list.trailing())), pieces.is_empty());
    if let Some(last) = pieces.last_mut() {
        last.after = of_last;
    }
    (pieces, end)
}

/// What stands on the line of the element before, and the rest. Without a line break all of it is the rest.
fn line(text: String, is_first: bool) -> (String, String) {
    match text.find('\n') {
        Some(at) if !is_first => (text[..at].trim_end().to_owned(), text[at..].to_owned()),
        _ => (String::new(), text),
    }
}

fn together(list: &mut Array, pieces: Vec<Piece>, end: String) {
    let trailing_comma = list.trailing_comma();
    list.clear();
    // A comment goes on to the end of its line.
    let behind = |after: String, next: &str| {
        if after.contains('#') && !next.starts_with('\n') { format!("{after}\n{next}") } else { after + next }
    };
    let mut after = String::new();
    for mut piece in pieces {
        let prefix = behind(take(&mut after), &piece.before);
        piece.value.decor_mut().set_prefix(prefix);
        list.push_formatted(piece.value);
        after = piece.after;
    }
    list.set_trailing(behind(after, &end));
    list.set_trailing_comma(trailing_comma && !list.is_empty());
}
