//! Configuration text → validated [`Config`], or every error with its line and path.

mod agent;
mod backend;
mod health;
mod model;
mod reader;
mod report;
mod service;
mod sources;
mod syntax;
#[cfg(test)]
mod tests;
mod values;

use reader::Section;
use report::Report;
use service::Taken;
use sources::Sources;

pub use model::*;
pub use report::ConfigError;
pub use values::{DurationError, Written, parse_duration};

/// Reads and validates a configuration file's text.
///
/// # Errors
/// Everything that is wrong with the text, sorted by line. Where the TOML itself is broken, what follows the
/// first place that cannot be understood is not checked, because it could only be guessed at.
pub fn parse(text: &str) -> Result<Config, Vec<ConfigError>> {
    let report = Report::new(text);
    let root = syntax::read(text, &report);
    let config = read_config(Section::root(&report, root.get_ref()));
    match (config, report.into_errors()) {
        (Some(config), errors) if errors.is_empty() => Ok(config),
        (_, errors) => Err(errors),
    }
}

/// The line of a valid text in which a key of `[agent]` stands, or else that table's.
pub fn line_of_agent_key(text: &str, key: &str) -> usize {
    let report = Report::new(text);
    let root = syntax::read(text, &report);
    let agent = root.get_ref().get_key_value("agent");
    let key = agent.and_then(|(_, agent)| agent.get_ref().as_table()?.get_key_value(key)).map(|(key, _)| key);
    let place = key.or(agent.map(|(agent, _)| agent));
    place.map_or(1, |place| report.line_of(place.span().start))
}

fn read_config(mut root: Section<'_>) -> Option<Config> {
    let (mut sources, mut taken) = (Sources::default(), Taken::default());
    let agent = root.required_table("agent").and_then(|section| agent::read(section, &mut sources));
    let services = service::read_all(root.tables("service"), &sources, &mut taken);
    sources.refuse_vips(&root, taken.vips());
    root.finish();
    Some(Config { agent: agent?, services: services? })
}
