//! A TOML table → typed values, with every wrong, missing and unknown key recorded.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::report::{Place, Report, UNKNOWN_KEY};

/// A table being read. Keys asked for are known; [`Section::finish`] complains about the others.
pub(super) struct Section<'a> {
    report: &'a Report,
    table: &'a DeTable<'a>,
    place: Place,
    known: Vec<&'static str>,
}

/// An element of an array, and where it stands.
pub(super) struct Element<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

/// The valid elements of an array.
pub(super) struct List<T> {
    pub(super) elements: Vec<Element<T>>,
    /// False when elements were left out because they are wrong.
    pub(super) complete: bool,
}

impl<T> Default for List<T> {
    /// Nothing, and nothing left out.
    fn default() -> Self {
        Self { elements: Vec::new(), complete: true }
    }
}

impl<'a> Section<'a> {
    /// The document itself.
    pub(super) fn root(report: &'a Report, table: &'a DeTable<'a>) -> Self {
        Self { report, table, place: Place { line: 1, path: String::new() }, known: Vec::new() }
    }

    /// The section's header.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// The value at `key`, `None` when the key is absent; an error (recorded) when `convert` refuses it.
    fn read<T>(
        &mut self,
        key: &'static str,
        convert: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) -> Result<Option<T>, Recorded> {
        let Some(item) = self.entry(key) else { return Ok(None) };
        let place = self.place_of(key);
        if !self.report.is_readable(place.line) {
            return Err(Recorded);
        }
        convert(item.get_ref()).map(Some).map_err(|message| {
            self.report.wrong(place, message);
            Recorded
        })
    }

    /// The value at `key`: `Some(None)` when absent, `None` when it is wrong.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        convert: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) -> Option<Option<T>> {
        self.read(key, convert).ok()
    }

    /// The value at `key` or, when absent, `default`; `None` when it is wrong.
    pub(super) fn or<T>(
        &mut self,
        key: &'static str,
        default: T,
        convert: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) -> Option<T> {
        self.read(key, convert).ok().map(|value| value.unwrap_or(default))
    }

    /// The value at `key`; `None` when it is wrong or absent. `hint` says what to write.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        hint: &str,
        convert: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) -> Option<T> {
        let value = self.read(key, convert).ok()?;
        if value.is_none() {
            self.missing(key, format!("missing; {hint}"));
        }
        value
    }

    /// The array at `key`, which must have at least one element.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        hint: &str,
        convert: impl Fn(&DeValue<'_>) -> Result<T, String>,
    ) -> List<T> {
        let mut list = List { elements: Vec::new(), complete: false };
        let Some(item) = self.entry(key) else {
            self.missing(key, format!("missing; {hint}"));
            return list;
        };
        let Some(array) = item.get_ref().as_array() else {
            self.wrong(key, format!("expected an array, found {}; {hint}", describe(item.get_ref())));
            return list;
        };
        if array.is_empty() {
            self.wrong(key, format!("is empty; {hint}"));
        }
        for (index, element) in array.iter().enumerate() {
            let place = self.element_place(key, index, element);
            list.elements.extend(self.element(place, convert(element.get_ref())));
        }
        list.complete = list.elements.len() == array.len();
        list
    }

    /// The value at `key`, or those of the array there, which then has at least one; none when absent.
    pub(super) fn one_or_more<T>(
        &mut self,
        key: &'static str,
        hint: &str,
        convert: impl Fn(&DeValue<'_>) -> Result<T, String>,
    ) -> List<T> {
        let Some(item) = self.entry(key) else { return List::default() };
        if item.get_ref().as_array().is_some() {
            return self.list(key, hint, convert);
        }
        let element = self.element(self.place_of(key), convert(item.get_ref()));
        List { complete: element.is_some(), elements: element.into_iter().collect() }
    }

    /// What a value was converted to, `None` when it is wrong or cannot be trusted.
    fn element<T>(&self, place: Place, converted: Result<T, String>) -> Option<Element<T>> {
        match converted {
            Ok(value) => self.report.is_readable(place.line).then_some(Element { value, place }),
            Err(message) => {
                self.report.wrong(place, message);
                None
            }
        }
    }

    /// The `[key]` table, absent or not a table (recorded) being `None`.
    pub(super) fn table(&mut self, key: &'static str) -> Option<Section<'a>> {
        let item = self.entry(key)?;
        let Some(table) = item.get_ref().as_table() else {
            let path = self.header_path(key);
            self.wrong(key, format!("expected a table, found {}; write [{path}]", describe(item.get_ref())));
            return None;
        };
        let place = Place { line: self.report.line_of(item.span().start), path: self.path_of(key) };
        Some(Section { report: self.report, table, place, known: Vec::new() })
    }

    /// The `[key]` table, which must be there.
    pub(super) fn required_table(&mut self, key: &'static str) -> Option<Section<'a>> {
        if self.entry(key).is_none() {
            let path = self.header_path(key);
            self.missing(key, format!("missing; add an [{path}] section"));
        }
        self.table(key)
    }

    /// The `[[key]]` tables; none when absent.
    pub(super) fn tables(&mut self, key: &'static str) -> Vec<Section<'a>> {
        let Some(item) = self.entry(key) else { return Vec::new() };
        let header = self.header_path(key);
        let Some(array) = item.get_ref().as_array() else {
            self.wrong(key, format!("expected an array of tables; write [[{header}]]"));
            return Vec::new();
        };
        let mut sections = Vec::with_capacity(array.len());
        for (index, element) in array.iter().enumerate() {
            let place = self.element_place(key, index, element);
            match element.get_ref().as_table() {
                Some(table) => {
                    sections.push(Section { report: self.report, table, place, known: Vec::new() });
                }
                None => self.report.wrong(
                    place,
                    format!("expected a table, found {}; write [[{header}]]", describe(element.get_ref())),
                ),
            }
        }
        sections
    }

    /// Whether `key` is present, right or wrong.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Records an error at `key`.
    pub(super) fn wrong(&self, key: &str, message: String) {
        self.report.wrong(self.place_of(key), message);
    }

    /// Records an error at an element of an array.
    pub(super) fn wrong_at(&self, place: &Place, message: String) {
        self.report.wrong(place.clone(), message);
    }

    /// Records an error at `key` that rests on something being absent.
    pub(super) fn missing(&self, key: &str, message: String) {
        self.report.missing(self.place_of(key), message);
    }

    /// Complains about keys nobody asked for.
    pub(super) fn finish(self) {
        for key in self.table.keys().map(|key| key.get_ref().as_ref()) {
            if !self.known.contains(&key) {
                self.wrong(key, format!("{UNKNOWN_KEY}{}", suggest(key, &self.known)));
            }
        }
    }

    /// The value at `key`, which is known from now on.
    fn entry(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        self.table.get(key)
    }

    fn place_of(&self, key: &str) -> Place {
        let line = match self.table.get_key_value(key) {
            Some((key, _)) => self.report.line_of(key.span().start),
            None => self.place.line,
        };
        Place { line, path: self.path_of(key) }
    }

    fn element_place(&self, key: &str, index: usize, element: &Spanned<DeValue<'_>>) -> Place {
        let line = self.report.line_of(element.span().start);
        Place { line, path: format!("{}[{index}]", self.path_of(key)) }
    }

    fn path_of(&self, key: &str) -> String {
        let bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
        let key = if bare { key.to_owned() } else { format!("{key:?}") };
        if self.place.path.is_empty() { key } else { format!("{}.{key}", self.place.path) }
    }

    /// `key` as it stands in a `[header]`: its path without indexes.
    fn header_path(&self, key: &str) -> String {
        let path = self.path_of(key);
        path.split('.').map(|part| part.split('[').next().unwrap_or(part)).collect::<Vec<_>>().join(".")
    }
}

/// The error has been recorded already.
struct Recorded;

/// What a value is, in words that a message can use.
pub(super) fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the string {text:?}"),
        DeValue::Integer(number) => format!("the integer {number}"),
        DeValue::Float(number) => format!("the number {number}"),
        DeValue::Boolean(value) => format!("the boolean {value}"),
        DeValue::Datetime(time) => format!("the date {time}"),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// What to write instead of `found`, out of `known`.
pub(super) fn suggest(found: &str, known: &[&str]) -> String {
    let typed = found.to_ascii_lowercase();
    let closest = known.iter().map(|&word| (strsim::osa_distance(&typed, word), word)).min();
    match closest {
        // A typo or two; in a short word, one.
        Some((distance, word)) if distance <= word.len().div_ceil(3).min(2) => {
            format!("did you mean {word:?}?")
        }
        _ => format!("known here: {}", known.join(", ")),
    }
}
