//! TOML text → a table with spans, its syntax errors recorded.

use toml::Spanned;
use toml::de::DeTable;
use toml_parser::parser::RecursionGuard;
use toml_parser::{ParseError, Source};

use super::report::Report;

/// Deepest nesting of arrays and inline tables looked into; the document's own reader has the same limit.
const DEPTH_MAX: u32 = 80;

/// Reads as much of `text` as can be read; a broken value or a repeated key does not hide what follows it.
pub(super) fn read<'a>(text: &'a str, report: &Report) -> Spanned<DeTable<'a>> {
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let offset = error.span().map_or(0, |span| span.start);
        report.syntax(offset, error.message().to_owned());
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
