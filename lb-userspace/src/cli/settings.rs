//! `KEY=VALUE` on the command line → values of the configuration.

use serde_json::Value;

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

/// Values and keys to be taken away → what an edit takes.
pub(super) fn settings(set: &[Setting], unset: &[String]) -> Settings {
    let set = set.iter().map(|Setting(key, value)| (key.clone(), value.clone()));
    set.chain(unset.iter().map(|key| (key.clone(), Value::Null))).collect()
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
}
