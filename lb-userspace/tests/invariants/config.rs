//! Any text as a configuration: it is read or refused, with places in it, and where it stands in a file does not matter.

use std::collections::BTreeSet;

use lb_userspace::core::config::{Config, ConfigError, parse};
use lb_userspace::core::wanted::Knowledge;

pub fn check(input: &[u8]) {
    accepted(&String::from_utf8_lossy(input));
}

/// The same; yields what was read.
pub fn accepted(text: &str) -> Option<Config> {
    let read = parse(text);
    // A byte-order mark is one at the very beginning only.
    let (mark, rest) = text.split_at(if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 });
    let lower = parse(&format!("{mark}# A comment, which moves everything by a line.\n{rest}"));
    match (&read, lower) {
        (Ok(config), Ok(lower)) => {
            assert_eq!(*config, lower, "a comment changes nothing");
            let wanted = Knowledge::default().hoped(config, &BTreeSet::new()).0;
            let names = |services: Vec<&String>| services.into_iter().cloned().collect::<Vec<_>>();
            assert_eq!(
                names(config.services.iter().map(|service| &service.name).collect()),
                names(wanted.services.iter().map(|service| &service.name).collect()),
            );
        }
        (Err(errors), Err(lower)) => {
            assert!(!errors.is_empty(), "a refusal has a reason");
            let lines = text.matches('\n').count() + 1;
            assert!(
                errors.iter().all(|error| (1..=lines).contains(&error.line) && !error.message.is_empty())
            );
            // The reader of TOML does not tell where a key of too many parts is.
            if errors.iter().chain(&lower).any(|error| error.message == "recursion limit") {
                return None;
            }
            // That there is no `[agent]` at all is told of the first line, whatever stands there.
            let told = |errors: &[ConfigError], down: usize| -> Vec<(usize, String)> {
                let told = errors.iter().filter(|error| error.path != "agent");
                told.map(|error| (error.line + down, error.path.clone())).collect()
            };
            assert_eq!(told(errors, 1), told(&lower, 0), "the places move with the text");
        }
        (read, lower) => panic!("a comment changes {read:?} to {lower:?}"),
    }
    read.ok()
}
