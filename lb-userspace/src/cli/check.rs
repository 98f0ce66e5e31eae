//! `sluice check`: validates a configuration file, without an agent.

use std::path::PathBuf;

use serde::Serialize;

use super::{Failure, Format, OutputFlag, output};
use crate::core::config::{self, Config};
use crate::io::store;

/// Validate a configuration file and list every error
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Configuration file
    file: PathBuf,
    #[command(flatten)]
    format: OutputFlag,
}

/// What was found.
#[derive(Serialize)]
struct Finding {
    valid: bool,
    errors: Vec<String>,
    services: usize,
    backends: usize,
    flow_table_bytes: u64,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let text = store::read(&arguments.file).map_err(Failure::failed)?;
    let file = arguments.file.display().to_string();
    let parsed = config::parse(&text)
        .map_err(|errors| errors.iter().map(|error| error.at(&file).to_string()).collect::<Vec<_>>());
    if arguments.format.output == Format::Json {
        output::json(&finding(&parsed))?;
    } else if let Ok(config) = &parsed {
        let Finding { services, backends, flow_table_bytes, .. } = finding(&parsed);
        output::print(&format!(
            "{file}: valid: {services} services, {backends} backends, {} flows in a table of {} KiB",
            config.agent.flow_table_size,
            flow_table_bytes / 1_024,
        ))?;
    }
    parsed.map(|_| ()).map_err(Failure::Invalid)
}

fn finding(parsed: &Result<Config, Vec<String>>) -> Finding {
    match parsed {
        Ok(config) => Finding {
            valid: true,
            errors: Vec::new(),
            services: config.services.len(),
            backends: config.services.iter().map(|service| service.backends.len()).sum(),
            flow_table_bytes: u64::from(config.agent.flow_table_size) * size_of::<u64>() as u64,
        },
        Err(errors) => {
            Finding { valid: false, errors: errors.clone(), services: 0, backends: 0, flow_table_bytes: 0 }
        }
    }
}
