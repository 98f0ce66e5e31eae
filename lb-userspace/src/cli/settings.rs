//! `KEY=VALUE` on the command line → values of the configuration.

use serde_json::Value;

use super::Failure;
use crate::core::edit::Settings;

/// Keys whose values are text although they may look like a number.
const TEXTS: [&str; 5] = ["name", "health.expect", "health.host", "health.path", "health.body"];

/// A key and its value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Setting(pub(super) String, pub(super) Value);

/// Reads `KEY=VALUE`. A value is an integer, `true`, `false`, a list in brackets, or else text; VIPs are a list in any case.
pub(super) fn setting(text: &str) -> Result<Setting, String> {
    let (key, value) = text
        .split_once('=')
        .filter(|(key, _)| !key.is_empty())
        .ok_or("write KEY=VALUE, such as weight=50")?;
    Ok(Setting(key.to_owned(), self::value(key, value)?))
}

fn value(key: &str, text: &str) -> Result<Value, String> {
    if TEXTS.contains(&key) {
        return Ok(Value::from(text));
    }
    if text.starts_with('[') && !text.starts_with("[:") && text.ends_with(']') {
        let list: Result<Value, _> = serde_json::from_str(text);
        return list.map_err(|_| format!("write a list as {key}='[\"one\", \"two\"]'"));
    }
    if key == "vips" {
        return Ok(text.split(',').collect());
    }
    Ok(match (text, text.parse::<i64>()) {
        ("true", _) => Value::from(true),
        ("false", _) => Value::from(false),
        (_, Ok(number)) => Value::from(number),
        _ => Value::from(text),
    })
}

/// Values, by flags of their own or not, and keys to be taken away → what an edit takes. Of a key that is named twice nobody can tell which
/// value is meant.
pub(super) fn settings(
    flags: impl IntoIterator<Item = (&'static str, Option<Value>)>,
    set: &[Setting],
    unset: &[String],
) -> Result<Settings, Failure> {
    let flags = flags.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    let set = set.iter().map(|Setting(key, value)| (key.clone(), value.clone()));
    let unset = unset.iter().map(|key| (key.clone(), Value::Null));
    let mut settings = Settings::new();
    for (key, value) in flags.chain(set).chain(unset) {
        if settings.contains_key(&key) {
            return Err(Failure::usage(format!("{key} is named twice: name it once")));
        }
        settings.insert(key, value);
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_what_they_look_like_but_where_text_is_meant() {
        for (text, expected) in [
            ("weight=50", json!(50)),
            ("health.interval=2s", json!("2s")),
            ("health.verify=false", json!(false)),
            ("health.expect=200", json!("200")),
            ("address=fd00::1", json!("fd00::1")),
            ("vips=[\"[::1]:80\", \"1.2.3.4:80\"]", json!(["[::1]:80", "1.2.3.4:80"])),
            ("vips=[::1]:80,1.2.3.4:80", json!(["[::1]:80", "1.2.3.4:80"])),
            ("health.path=/a=b", json!("/a=b")),
        ] {
            let key = text.split('=').next().unwrap().to_owned();
            assert_eq!(setting(text), Ok(Setting(key, expected)));
        }
        for wrong in ["weight", "=5", "vips=[a]"] {
            assert!(setting(wrong).unwrap_err().starts_with("write "), "{wrong}");
        }
    }

    #[test]
    fn a_key_is_named_once() {
        let weight = |value: i64| Setting("weight".to_owned(), json!(value));
        let flag = || [("weight", Some(json!(1))), ("port", None)];
        assert_eq!(settings(flag(), &[], &["port".to_owned()]).unwrap().len(), 2);
        let unset = ["weight".to_owned()];
        for twice in [
            settings(flag(), &[weight(1)], &[]),
            settings(flag(), &[], &unset),
            settings([], &[weight(1), weight(2)], &[]),
            settings([], &[weight(1)], &unset),
        ] {
            assert_eq!(twice.unwrap_err().to_string(), "weight is named twice: name it once");
        }
    }
}
