//! TOML text → a table with spans, its syntax errors recorded.

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use toml_parser::parser::RecursionGuard;
use toml_parser::{ParseError, Source};

use super::report::Report;

/// Deepest nesting of arrays and inline tables looked into; the document's own reader has the same limit.
const DEPTH_MAX: u32 = 80;

/// Reads as much of `text` as can be read; a broken value or a repeated key does not hide what follows it.
pub(super) fn read<'a>(text: &'a str, report: &Report) -> Spanned<DeTable<'a>> {
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let span = error.span().unwrap_or_default();
        let message = error.message();
        let key = text.get(span.clone()).map(|key| key.trim_matches(['"', '\'']));
        match key.filter(|_| message == "duplicate key") {
            Some(key) => {
                let first = nearest(root.get_ref(), key, span.start, "");
                // A table that is begun again takes the place of the first one.
                let (path, there) = first.map_or((key.to_owned(), String::new()), |(offset, path)| {
                    if offset == span.start {
                        return (path, String::new());
                    }
                    (path, format!("; it is there already, in line {}", report.line_of(offset)))
                });
                report.syntax(span.start, path, format!("{message}{there}: remove one"));
            }
            None => report.syntax(span.start, String::new(), message.to_owned()),
        }
    }
    // A second look at the grammar alone tells errors that lose the structure from those that cost one value.
    let mut lost: Vec<ParseError> = Vec::new();
    let tokens = Source::new(text).lex().into_vec();
    let mut ignored = ();
    toml_parser::parser::parse_document(
        &tokens,
        &mut RecursionGuard::new(&mut ignored, DEPTH_MAX),
        &mut lost,
    );
    for error in lost {
        report.lost(error.unexpected().map_or(0, |span| span.start()));
    }
    root
}

/// Where a key stands that is written once more at `before`, and its path: the nearest of this name.
fn nearest(table: &DeTable<'_>, key: &str, before: usize, path: &str) -> Option<(usize, String)> {
    let found = table.iter().flat_map(|(name, value)| {
        let inner =
            if path.is_empty() { name.get_ref().to_string() } else { format!("{path}.{}", name.get_ref()) };
        let inside = match value.get_ref() {
            DeValue::Table(table) => nearest(table, key, before, &inner),
            DeValue::Array(array) => {
                let tables = array.iter().enumerate();
                let tables = tables.filter_map(|(at, value)| Some((at, value.get_ref().as_table()?)));
                tables.filter_map(|(at, table)| nearest(table, key, before, &format!("{inner}[{at}]"))).max()
            }
            _ => None,
        };
        let own =
            (name.get_ref() == key && name.span().start <= before).then_some((name.span().start, inner));
        own.into_iter().chain(inside)
    });
    found.max()
}
