//! The tables of a document → what the lines of a new one among them begin with.

use toml_edit::{Item, Table, TableLike};

use super::document::raw;

/// What is before new headers and keys under headers.
pub(super) struct Layout {
    /// Blanks before a header, with an empty line if the example has one.
    pub header: String,
    /// Blanks before a key where no other is.
    pub key: String,
}

impl Layout {
    pub(super) fn of(table: &Table) -> Self {
        let prefix = raw(table.decor().prefix());
        let (above, indent) = prefix.split_at(prefix.rfind('\n').map_or(0, |at| at + 1));
        // Above the first one there is nothing to be kept apart from.
        let apart = table.position() == Some(1) || above.lines().any(|line| line.trim().is_empty());
        let gap = if apart { "\n" } else { "" };
        Self { header: format!("{gap}{indent}"), key: key_indent(table).unwrap_or_default().to_owned() }
    }

    /// Of a new table under this key: like the last one there, or else in the same table, or else like that itself behind an
    /// empty line: in a part of the text, what is in front of the table is something else.
    pub(super) fn within(table: &Table, key: &str) -> Self {
        let sibling = table.get(key).and_then(last);
        let other = || table.iter().filter_map(|(_, item)| last(item)).last();
        sibling.or_else(other).map_or_else(
            || {
                let own = Self::of(table);
                Self { header: format!("\n{}", own.header.trim_start_matches('\n')), ..own }
            },
            Self::of,
        )
    }
}

/// The last table under a header that an item has.
fn last(item: &Item) -> Option<&Table> {
    match item {
        Item::Table(table) => Some(table).filter(|table| !table.is_dotted()),
        Item::ArrayOfTables(tables) => tables.iter().last(),
        _ => None,
    }
}

/// What is before the last key under a header, on its line.
pub(super) fn key_indent(table: &dyn TableLike) -> Option<&str> {
    let values = table.get_values();
    let prefix = raw(values.last()?.0.last()?.leaf_decor().prefix());
    prefix.rsplit('\n').next()
}
