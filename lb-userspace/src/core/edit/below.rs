//! Comments directly below the last key of a table, such as keys out of use: taken out of a document while it is edited, and put back
//! below the tables that are still there.
//!
//! The library counts them to the header behind them, or to the end of the file; so what is new would come between.

use std::collections::BTreeMap;

use toml_edit::{Decor, DocumentMut, Item, Table, TableLike};

use super::document::{header_position, last_position, raw};

/// The comments, by the place in the document of the table that they are in.
pub(super) struct Below(BTreeMap<isize, String>);

impl Below {
    pub(super) fn take(toml: &mut DocumentMut) -> Self {
        let root = toml.as_table_mut();
        // Headers count from one. What is above the first one is the file's, unless keys are above it.
        root.set_position(Some(0));
        let first = isize::from(root.get_values().is_empty());
        let mut below = BTreeMap::new();
        let mut divide = |at: isize, between: &str, header: bool| {
            let (own, rest) = between.split_at(if at < first { 0 } else { length(between, header) });
            if !own.is_empty() {
                below.insert(at, own.to_owned());
            }
            rest.to_owned()
        };
        each_table(root, &mut |table| {
            if let Some(at) = header_position(table).filter(|&at| at > 0) {
                let rest = divide(at - 1, raw(table.decor().prefix()), true);
                table.decor_mut().set_prefix(rest);
            }
        });
        let rest = divide(last_position(root), raw(Some(toml.trailing())), false);
        toml.set_trailing(rest);
        Self(below)
    }

    pub(super) fn put_back(&mut self, toml: &mut DocumentMut) {
        each_table(toml.as_table_mut(), &mut |table| {
            let Some(own) = header_position(table).and_then(|at| self.0.remove(&at)) else { return };
            let line = match last_line(table) {
                Some(line) => line,
                None => table.decor_mut(),
            };
            let suffix = format!("{}\n{}", raw(line.suffix()), own.trim_end_matches('\n'));
            line.set_suffix(suffix);
        });
    }
}

/// How much of what stands between a table's last line and a header, or the end, is in the table: the comments up to an
/// empty line. Those that the header follows without one may be about either, and are in the table as far as they are keys.
pub(super) fn length(between: &str, header: bool) -> usize {
    let lines: Vec<&str> =
        between.split_inclusive('\n').take_while(|line| line.trim_start().starts_with('#')).collect();
    let all = lines.iter().map(|line| line.len()).sum();
    if header && between[all..].trim_matches([' ', '\t']).is_empty() {
        lines.iter().rev().skip_while(|line| !is_key(line)).map(|line| line.len()).sum()
    } else {
        all
    }
}

/// Whether a comment is a key out of use.
fn is_key(comment: &str) -> bool {
    let key = comment.split_once('=').map(|(key, _)| key.trim_start_matches([' ', '\t', '#']).trim_end());
    key.is_some_and(|key| {
        !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
    })
}

fn each_table(table: &mut Table, visit: &mut impl FnMut(&mut Table)) {
    visit(table);
    for (_, item) in table.iter_mut() {
        match item {
            Item::Table(table) => each_table(table, visit),
            Item::ArrayOfTables(tables) => tables.iter_mut().for_each(|table| each_table(table, visit)),
            _ => {}
        }
    }
}

/// What is around the last value under a header.
fn last_line(table: &mut dyn TableLike) -> Option<&mut Decor> {
    let lines = table.iter_mut().filter_map(|(_, item)| match item {
        Item::Table(table) if table.is_dotted() => last_line(table),
        Item::Value(value) => Some(value.decor_mut()),
        _ => None,
    });
    lines.last()
}
