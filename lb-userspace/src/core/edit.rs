//! A configuration's text and an edit of one service or backend → the new text, comments and formatting kept.

mod below;
mod document;
mod layout;
mod list;
mod part;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use part::parse_beside;

use super::config::{self, Config, ConfigError};
use document::Document;

/// Values by key: a string, an integer, a boolean, or a list of strings; null takes the key away, so that its default
/// holds. Keys of a table inside are named `health.interval`.
pub type Settings = BTreeMap<String, serde_json::Value>;

/// A change of one service or one backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Edit {
    /// A new service.
    ServiceAdd {
        /// Its name.
        service: String,
        /// Its other keys; `vips` must be among them.
        set: Settings,
    },
    /// A service goes, with its backends.
    ServiceRemove {
        /// Its name.
        service: String,
    },
    /// Keys of a service change.
    ServiceSet {
        /// Its name.
        service: String,
        /// The keys.
        set: Settings,
    },
    /// A new backend.
    BackendAdd {
        /// The service's name.
        service: String,
        /// The backend's name.
        backend: String,
        /// Its other keys; `address` must be among them.
        set: Settings,
    },
    /// A backend goes.
    BackendRemove {
        /// The service's name.
        service: String,
        /// The backend's name.
        backend: String,
    },
    /// Keys of a backend change.
    BackendSet {
        /// The service's name.
        service: String,
        /// The backend's name.
        backend: String,
        /// The keys.
        set: Settings,
    },
}

impl Edit {
    /// Whether it takes keys out of the file.
    pub fn takes_away(&self) -> bool {
        self.set().is_some_and(|set| set.values().any(serde_json::Value::is_null))
    }

    fn set(&self) -> Option<&Settings> {
        match self {
            Self::ServiceAdd { set, .. }
            | Self::ServiceSet { set, .. }
            | Self::BackendAdd { set, .. }
            | Self::BackendSet { set, .. } => Some(set),
            Self::ServiceRemove { .. } | Self::BackendRemove { .. } => None,
        }
    }

    /// The same with a value for each key that is to be taken away, so that a key that nobody knows shows.
    fn giving_instead(mut self) -> Self {
        if let Self::ServiceAdd { set, .. }
        | Self::ServiceSet { set, .. }
        | Self::BackendAdd { set, .. }
        | Self::BackendSet { set, .. } = &mut self
        {
            set.values_mut().filter(|value| value.is_null()).for_each(|value| *value = "".into());
        }
        self
    }
}

/// As the command that makes it.
impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, service, backend, set) = match self {
            Self::ServiceAdd { service, set } => ("service add", service, None, Some(set)),
            Self::ServiceRemove { service } => ("service remove", service, None, None),
            Self::ServiceSet { service, set } => ("service set", service, None, Some(set)),
            Self::BackendAdd { service, backend, set } => ("backend add", service, Some(backend), Some(set)),
            Self::BackendRemove { service, backend } => ("backend remove", service, Some(backend), None),
            Self::BackendSet { service, backend, set } => ("backend set", service, Some(backend), Some(set)),
        };
        write!(f, "{verb} {service}")?;
        if let Some(backend) = backend {
            write!(f, " {backend}")?;
        }
        for (key, value) in set.into_iter().flatten() {
            match value {
                serde_json::Value::Null => write!(f, " --unset {key}")?,
                serde_json::Value::String(text) => write!(f, " {key}={text}")?,
                value => write!(f, " {key}={value}")?,
            }
        }
        Ok(())
    }
}

/// Why an edit is impossible. Nothing has been changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// There is none of this name.
    #[error("there is no {what} {name:?}; there are: {}", list(.known))]
    Unknown {
        /// What was looked for: a service, or a backend of one.
        what: String,
        /// Its name.
        name: String,
        /// Those there are.
        known: Vec<String>,
    },
    /// There is one of this name.
    #[error("there is a {what} {name:?} already; change it with `sluice {command}`, or choose another name")]
    Exists {
        /// What was to be added.
        what: String,
        /// Its name.
        name: String,
        /// What changes it.
        command: String,
    },
    /// A key that cannot be one.
    #[error("{0:?} is no key; write KEY=VALUE, for a table inside such as health TABLE.KEY=VALUE")]
    Key(String),
    /// Backends are no key of a service.
    #[error("backends are changed one by one: `sluice backend add`, `set`, `remove`")]
    Backends,
    /// A value of a kind that no key has.
    #[error("{0}: the value must be a string, an integer, true, false or a list of strings")]
    Value(String),
    /// The text in force is not what it was when it was read: it cannot be edited.
    #[error("the configuration cannot be edited: {0}")]
    Text(String),
    /// The outcome would be invalid; one line a finding.
    #[error("{}", .0.join("\n"))]
    Invalid(Vec<String>),
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// The text after an edit, and the configuration that it says; `config` is what the text says before it.
pub fn edited_from(text: &str, config: &Config, edit: &Edit) -> Result<(String, Config), EditError> {
    part::edited_part(text, config, edit).unwrap_or_else(|| edited(text, edit))
}

/// The same, if nobody knows what the text says before.
pub fn edited(text: &str, edit: &Edit) -> Result<(String, Config), EditError> {
    if edit.takes_away() {
        refuse_unknown(text, edit)?;
    }
    let (mut document, after) = carried_out(text, edit)?;
    match config::parse(&after) {
        Ok(config) => Ok((after, config)),
        Err(errors) => {
            Err(EditError::Invalid(errors.iter().map(|error| by_name(error, &mut document)).collect()))
        }
    }
}

/// A key that is not there can be taken away, but only if there is such a key.
fn refuse_unknown(text: &str, edit: &Edit) -> Result<(), EditError> {
    let (mut document, after) = carried_out(text, &edit.clone().giving_instead())?;
    let errors = config::parse(&after).err().unwrap_or_default();
    let unknown: Vec<String> = errors
        .iter()
        .filter(|error| error.is_unknown_key())
        .map(|error| by_name(error, &mut document))
        .collect();
    if unknown.is_empty() { Ok(()) } else { Err(EditError::Invalid(unknown)) }
}

fn carried_out(text: &str, edit: &Edit) -> Result<(Document, String), EditError> {
    let mut document = Document::parse(text)?;
    match edit {
        Edit::ServiceAdd { service, set } => document.add_service(service, set)?,
        Edit::ServiceRemove { service } => document.remove_service(service)?,
        Edit::ServiceSet { service, set } => document.set_service(service, set)?,
        Edit::BackendAdd { service, backend, set } => document.add_backend(service, backend, set)?,
        Edit::BackendRemove { service, backend } => document.remove_backend(service, backend)?,
        Edit::BackendSet { service, backend, set } => document.set_backend(service, backend, set)?,
    }
    let after = document.text();
    Ok((document, after))
}

/// An error in a text that nobody has seen: named by service and backend rather than by line and number.
fn by_name(error: &ConfigError, document: &mut Document) -> String {
    let ConfigError { line: _, path, message } = error;
    let mut named = String::new();
    let mut service = None;
    for part in path.split('.') {
        let number = |what: &str| {
            part.strip_prefix(what)
                .and_then(|rest| rest.strip_suffix(']'))
                .and_then(|number| number.parse().ok())
        };
        let name = if let Some(at) = number("service[") {
            service = Some(at);
            document.service_name(at).map(|name| format!("service[{name}]"))
        } else {
            service
                .zip(number("backend["))
                .and_then(|(service, at)| Some(format!("backend[{}]", document.backend_name(service, at)?)))
        };
        if !named.is_empty() {
            named.push('.');
        }
        named.push_str(name.as_deref().unwrap_or(part));
    }
    if named.is_empty() { message.clone() } else { format!("{named}: {message}") }
}
