//! A TOML document → the same with services and backends added, removed or changed in place.

use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, RawString, Table, TableLike, Value};

use super::below::Below;
use super::layout::{Layout, key_indent};
use super::{EditError, Settings, list};

/// The order of keys in a new table; others follow by name.
const ORDER: [&str; 9] =
    ["name", "vips", "protocol", "forwarding", "affinity", "address", "port", "weight", "state"];

/// A configuration as a document.
pub(super) struct Document {
    toml: DocumentMut,
    below: Below,
    /// Lines end as they do in files of Windows.
    crlf: bool,
}

impl Document {
    pub(super) fn parse(text: &str) -> Result<Self, EditError> {
        let mut toml = text
            .replace("\r\n", "\n")
            .parse()
            .map_err(|error: toml_edit::TomlError| EditError::Text(error.message().to_owned()))?;
        let below = Below::take(&mut toml);
        Ok(Self { toml, below, crlf: text.contains("\r\n") })
    }

    pub(super) fn text(&mut self) -> String {
        self.below.put_back(&mut self.toml);
        let text = self.toml.to_string();
        if self.crlf { text.replace('\n', "\r\n") } else { text }
    }

    pub(super) fn add_service(&mut self, name: &str, set: &Settings) -> Result<(), EditError> {
        if self.services().find(name).is_some() {
            return Err(EditError::Exists {
                what: "service".to_owned(),
                name: name.to_owned(),
                command: format!("service set {name}"),
            });
        }
        let layout = Place::Header(self.toml.as_table_mut()).layout("service");
        self.services().push(new_table(name, set, layout.as_ref())?);
        Ok(())
    }

    pub(super) fn remove_service(&mut self, name: &str) -> Result<(), EditError> {
        let at = self.find_service(name)?;
        let removed = self.services().remove(at);
        self.keep_comments_above(removed);
        Ok(())
    }

    pub(super) fn set_service(&mut self, name: &str, set: &Settings) -> Result<(), EditError> {
        let at = self.find_service(name)?;
        if set.keys().any(|key| key.split('.').next() == Some("backend")) {
            return Err(EditError::Backends);
        }
        self.services().at(at).map_or(Ok(()), |service| set_keys(service, set))
    }

    pub(super) fn add_backend(&mut self, service: &str, name: &str, set: &Settings) -> Result<(), EditError> {
        let at = self.find_service(service)?;
        if self.backends(at).find(name).is_some() {
            return Err(EditError::Exists {
                what: format!("backend of service {service}"),
                name: name.to_owned(),
                command: format!("backend set {service} {name}"),
            });
        }
        let layout = self.services().at(at).and_then(|service| service.layout("backend"));
        self.backends(at).push(new_table(name, set, layout.as_ref())?);
        Ok(())
    }

    pub(super) fn remove_backend(&mut self, service: &str, name: &str) -> Result<(), EditError> {
        let (service, at) = self.find_backend(service, name)?;
        let removed = self.backends(service).remove(at);
        self.keep_comments_above(removed);
        Ok(())
    }

    pub(super) fn set_backend(&mut self, service: &str, name: &str, set: &Settings) -> Result<(), EditError> {
        let (service, at) = self.find_backend(service, name)?;
        self.backends(service).at(at).map_or(Ok(()), |backend| set_keys(backend, set))
    }

    /// The name of the service with this number.
    pub(super) fn service_name(&mut self, at: usize) -> Option<String> {
        self.services().names().into_iter().nth(at)
    }

    /// The name of the backend with this number of the service with this number.
    pub(super) fn backend_name(&mut self, service: usize, at: usize) -> Option<String> {
        self.backends(service).names().into_iter().nth(at)
    }

    fn services(&mut self) -> Tables<'_> {
        Place::Header(self.toml.as_table_mut()).tables("service")
    }

    fn backends(&mut self, service: usize) -> Tables<'_> {
        self.services().at(service).map_or(Tables::None, |service| service.tables("backend"))
    }

    fn find_service(&mut self, name: &str) -> Result<usize, EditError> {
        let services = self.services();
        services.find(name).ok_or_else(|| EditError::Unknown {
            what: "service".to_owned(),
            name: name.to_owned(),
            known: services.names(),
        })
    }

    fn find_backend(&mut self, service: &str, name: &str) -> Result<(usize, usize), EditError> {
        let at = self.find_service(service)?;
        let backends = self.backends(at);
        match backends.find(name) {
            Some(backend) => Ok((at, backend)),
            None => Err(EditError::Unknown {
                what: format!("backend of service {service}"),
                name: name.to_owned(),
                known: backends.names(),
            }),
        }
    }

    /// Comments directly above a header go with what it begins. Those that an empty line keeps apart from it are about more
    /// than that, and move to what comes next.
    fn keep_comments_above(&mut self, removed: Option<Table>) {
        let Some(removed) = removed else { return };
        let prefix = raw(removed.decor().prefix());
        // What indents the header is no line of its own.
        let prefix = prefix.rfind('\n').map_or("", |at| &prefix[..=at]);
        let own = prefix.lines().rev().take_while(|line| !line.trim().is_empty()).count();
        let lines = prefix.lines().count();
        let kept: Vec<&str> = prefix.lines().take(lines.saturating_sub(own)).collect();
        if !kept.iter().any(|line| line.trim_start().starts_with('#')) {
            return;
        }
        let kept = format!("{}\n", kept.join("\n").trim_end());
        let after = last_position(&removed);
        match next_table(self.toml.as_table_mut(), after) {
            Some(next) => {
                let own = next.decor().prefix().and_then(RawString::as_str).unwrap_or("\n").to_owned();
                next.decor_mut().set_prefix(kept + &own);
            }
            None => {
                let own = raw(Some(self.toml.trailing())).to_owned();
                self.toml.set_trailing(kept + &own);
            }
        }
    }
}

/// Blanks and comments of the document as text.
pub(super) fn raw(text: Option<&RawString>) -> &str {
    text.and_then(RawString::as_str).unwrap_or_default()
}

/// The last place in the document that a table and those in it have.
pub(super) fn last_position(table: &Table) -> isize {
    let inside = table.iter().map(|(_, item)| match item {
        Item::Table(table) => last_position(table),
        Item::ArrayOfTables(tables) => tables.iter().map(last_position).max().unwrap_or_default(),
        _ => 0,
    });
    inside.chain(table.position()).max().unwrap_or_default()
}

/// The first table behind a place in the document.
fn next_table(root: &mut Table, after: isize) -> Option<&mut Table> {
    let wanted = first_behind(root, after)?;
    find_at(root, wanted)
}

/// The least place behind `after` that the header of a table, or of one in it, has.
fn first_behind(table: &Table, after: isize) -> Option<isize> {
    let own = header_position(table).filter(|&position| position > after);
    let inside = table.iter().filter_map(|(_, item)| match item {
        Item::Table(table) => first_behind(table, after),
        Item::ArrayOfTables(tables) => tables.iter().filter_map(|table| first_behind(table, after)).min(),
        _ => None,
    });
    inside.chain(own).min()
}

fn find_at(table: &mut Table, position: isize) -> Option<&mut Table> {
    if header_position(table) == Some(position) {
        return Some(table);
    }
    table.iter_mut().find_map(|(_, item)| match item {
        Item::Table(table) => find_at(table, position),
        Item::ArrayOfTables(tables) => tables.iter_mut().find_map(|table| find_at(table, position)),
        _ => None,
    })
}

pub(super) fn header_position(table: &Table) -> Option<isize> {
    table.position().filter(|_| !table.is_implicit() && !table.is_dotted())
}

/// A table under a header of its own, or within braces.
enum Place<'a> {
    Header(&'a mut Table),
    Braces(&'a mut InlineTable),
}

impl<'a> Place<'a> {
    fn keys(self) -> &'a mut dyn TableLike {
        match self {
            Self::Header(table) => table,
            Self::Braces(table) => table,
        }
    }

    /// What a new table under a key is to look like if it has a header.
    fn layout(&self, key: &str) -> Option<Layout> {
        match self {
            Self::Header(table) => Some(Layout::within(table, key)),
            Self::Braces(_) => None,
        }
    }

    /// The list of tables under a key; an empty one if there is none.
    fn tables(self, key: &str) -> Tables<'a> {
        let new = match &self {
            Self::Header(_) => Item::ArrayOfTables(ArrayOfTables::new()),
            Self::Braces(_) => Item::Value(Value::Array(Array::new())),
        };
        match self.keys().entry(key).or_insert(new) {
            Item::ArrayOfTables(tables) => Tables::Headers(tables),
            Item::Value(Value::Array(tables)) => Tables::Braces(tables),
            _ => Tables::None,
        }
    }
}

/// The tables under a key.
enum Tables<'a> {
    /// `[[key]]` by `[[key]]`.
    Headers(&'a mut ArrayOfTables),
    /// `key = [{…}, {…}]`.
    Braces(&'a mut Array),
    /// What is there is neither. No valid configuration has this.
    None,
}

impl<'a> Tables<'a> {
    fn names(&self) -> Vec<String> {
        let name = |name: Option<&str>| name.unwrap_or_default().to_owned();
        match self {
            Self::Headers(tables) => {
                tables.iter().map(|table| name(table.get("name").and_then(Item::as_str))).collect()
            }
            Self::Braces(tables) => {
                let tables = tables.iter().map(Value::as_inline_table);
                tables.map(|table| name(table.and_then(|table| table.get("name")?.as_str()))).collect()
            }
            Self::None => Vec::new(),
        }
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.names().iter().position(|found| found == name)
    }

    fn at(self, at: usize) -> Option<Place<'a>> {
        match self {
            Self::Headers(tables) => tables.get_mut(at).map(Place::Header),
            Self::Braces(tables) => tables.get_mut(at)?.as_inline_table_mut().map(Place::Braces),
            Self::None => None,
        }
    }

    fn push(self, table: Table) {
        match self {
            Self::Headers(tables) => tables.push(table),
            Self::Braces(tables) => {
                list::arrange(tables, |pieces| list::add(pieces, table.into_inline_table().into()));
            }
            Self::None => {}
        }
    }

    /// Removes one; what was under a header is returned.
    fn remove(self, at: usize) -> Option<Table> {
        match self {
            Self::Headers(tables) => Some(tables.remove(at)),
            Self::Braces(tables) => {
                list::arrange(tables, |pieces| drop(pieces.remove(at)));
                None
            }
            Self::None => None,
        }
    }
}

/// A table of this name with these keys.
fn new_table(name: &str, set: &Settings, layout: Option<&Layout>) -> Result<Table, EditError> {
    let mut table = under_header(layout);
    put(&mut table, "name", &name.into(), layout)?;
    let rank = |key: &str| ORDER.iter().position(|ordered| *ordered == key).unwrap_or(ORDER.len());
    let mut keys: Vec<&String> = set.keys().collect();
    keys.sort_by_key(|key| (key.contains('.'), rank(key)));
    for key in keys {
        if let Some(value) = set.get(key) {
            set_key(&mut table, key, value, layout)?;
        }
    }
    Ok(table)
}

fn under_header(layout: Option<&Layout>) -> Table {
    let mut table = Table::new();
    if let Some(layout) = layout {
        table.decor_mut().set_prefix(&layout.header);
    }
    table
}

fn set_keys(place: Place<'_>, set: &Settings) -> Result<(), EditError> {
    let layout = match &place {
        Place::Header(table) => Some(Layout::of(table)),
        Place::Braces(_) => None,
    };
    let table = place.keys();
    set.iter().try_for_each(|(key, value)| set_key(table, key, value, layout.as_ref()))
}

/// Within braces, no layout is given.
fn set_key(
    table: &mut dyn TableLike,
    key: &str,
    value: &serde_json::Value,
    layout: Option<&Layout>,
) -> Result<(), EditError> {
    let bare =
        |key: &str| !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    match key.split_once('.') {
        None if bare(key) => put(table, key, value, layout),
        Some((outer, inner)) if bare(outer) && bare(inner) => {
            let empty = match table.get(outer) {
                None if value.is_null() => return Ok(()),
                None => true,
                Some(_) => false,
            };
            if empty {
                let mut new = under_header(layout);
                // Behind a header of a backend, a header of this one would look as if it were the backend's.
                new.set_dotted(table.contains_key("backend"));
                table.insert(outer, Item::Table(new));
            }
            let inside = table.get_mut(outer);
            let layout = layout.filter(|_| inside.as_ref().is_some_and(|item| item.is_table()));
            match inside.and_then(Item::as_table_like_mut) {
                Some(table) => put(table, inner, value, layout),
                None => Err(EditError::Key(key.to_owned())),
            }
        }
        _ => Err(EditError::Key(key.to_owned())),
    }
}

/// Puts a value in the place of the one before, with the comment and the blanks around that.
fn put(
    table: &mut dyn TableLike,
    key: &str,
    value: &serde_json::Value,
    layout: Option<&Layout>,
) -> Result<(), EditError> {
    if value.is_null() {
        table.remove(key);
        return Ok(());
    }
    let mut new = toml_value(key, value)?;
    match (table.get_mut(key), layout) {
        (Some(Item::Value(old)), _) => {
            if let (Value::Array(old), Value::Array(new)) = (&mut *old, &new) {
                change_list(old, new);
            } else {
                *new.decor_mut() = old.decor().clone();
                *old = new;
            }
        }
        (_, Some(layout)) => {
            let indent = key_indent(table).unwrap_or(&layout.key).to_owned();
            table.insert(key, Item::Value(new));
            if let Some(mut key) = table.key_mut(key) {
                key.leaf_decor_mut().set_prefix(indent);
            }
        }
        (_, None) => {
            // The blank before the closing brace belongs to the last value.
            if let Some((_, Item::Value(last))) = table.iter_mut().last() {
                let suffix = raw(last.decor().suffix()).to_owned();
                if !suffix.is_empty() && suffix.trim().is_empty() {
                    last.decor_mut().set_suffix("");
                    *new.decor_mut() = toml_edit::Decor::new(" ", suffix);
                }
            }
            table.insert(key, Item::Value(new));
        }
    }
    Ok(())
}

/// Brings a list to what is wanted; elements that stay keep their lines and comments.
fn change_list(list: &mut Array, wanted: &Array) {
    list::arrange(list, |pieces| {
        let mut before = std::mem::take(pieces);
        for value in wanted {
            match before.iter().position(|piece| piece.plain() == list::plain(value)) {
                Some(at) => pieces.push(before.remove(at)),
                None => list::add(pieces, value.clone()),
            }
        }
    });
}

fn toml_value(key: &str, value: &serde_json::Value) -> Result<Value, EditError> {
    let wrong = || EditError::Value(key.to_owned());
    match value {
        serde_json::Value::Bool(value) => Ok(Value::from(*value)),
        serde_json::Value::Number(number) => number.as_i64().map(Value::from).ok_or_else(wrong),
        serde_json::Value::String(text) => Ok(Value::from(text.as_str())),
        serde_json::Value::Array(list) => {
            let list: Result<Array, EditError> = list
                .iter()
                .map(|element| if element.is_array() { Err(wrong()) } else { toml_value(key, element) })
                .collect();
            Ok(Value::Array(list?))
        }
        serde_json::Value::Null | serde_json::Value::Object(_) => Err(wrong()),
    }
}
