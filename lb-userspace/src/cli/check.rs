//! `sluice check`: validates a configuration file, without an agent.

use std::path::PathBuf;

use lb_common::abi::TranslationBucket;
use serde::Serialize;

use super::{Failure, Format, OutputFlag, output};
use crate::core::config::{self, Config, Forwarding};
use crate::core::image::Capacity;
use crate::core::names::number_of;
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
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Finding {
    valid: bool,
    errors: Vec<String>,
    services: usize,
    backends: usize,
    flow_table_size: u32,
    flow_table_bytes: u64,
    nat_table_size: u32,
    /// What the table takes; next to nothing where no service uses it.
    nat_table_bytes: u64,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let file = arguments.file.display().to_string();
    let parsed = match store::read(&arguments.file) {
        Ok(text) => config::parse(&text)
            .map_err(|errors| errors.iter().map(|error| error.at(&file).to_string()).collect::<Vec<_>>()),
        Err(error) if error.is_content() => Err(vec![error.to_string()]),
        Err(error) => return Err(Failure::failed(error)),
    };
    if arguments.format.output == Format::Json {
        output::json(&finding(&parsed))?;
    } else if let Ok(config) = &parsed {
        output::print(&format!("{file}: {}", describe(config, &finding(&parsed))))?;
    }
    parsed.map(|_| ()).map_err(Failure::Invalid)
}

fn finding(parsed: &Result<Config, Vec<String>>) -> Finding {
    match parsed {
        Ok(config) => {
            let (flows, connections) = (config.agent.flow_table_size, config.agent.nat_table_size);
            Finding {
                valid: true,
                errors: Vec::new(),
                services: config.services.len(),
                backends: config.services.iter().map(|service| service.backends.len()).sum(),
                flow_table_size: flows,
                flow_table_bytes: u64::from(flows) * size_of::<u64>() as u64,
                nat_table_size: connections,
                nat_table_bytes: nat_table_bytes(if uses_nat(config) { connections } else { 0 }),
            }
        }
        Err(errors) => Finding { errors: errors.clone(), ..Finding::default() },
    }
}

/// Whether a service is translated.
fn uses_nat(config: &Config) -> bool {
    config.services.iter().any(|service| service.forwarding == Forwarding::Nat)
}

/// Memory of the table for so many connections, in bytes.
fn nat_table_bytes(connections: u32) -> u64 {
    let translations = Capacity::translations_for(connections);
    let buckets = Capacity { translations, ..Capacity::default() }.translation_buckets();
    u64::from(buckets) * size_of::<TranslationBucket>() as u64
}

/// The finding about a valid file. The NAT table is left out where no service uses it.
fn describe(config: &Config, finding: &Finding) -> String {
    let mut text = format!(
        "valid: {}, {}, {} flows in a table of {} KiB",
        number_of(finding.services, "service"),
        number_of(finding.backends, "backend"),
        finding.flow_table_size,
        finding.flow_table_bytes / 1_024,
    );
    if uses_nat(config) {
        text += &format!(
            ", {} NAT connections in a table of {} KiB",
            finding.nat_table_size,
            finding.nat_table_bytes / 1_024,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(forwarding: &str) -> (String, Finding) {
        let text = format!(
            "[agent]\ninterfaces = [\"eth0\"]\nflow_table_size = 4096\nnat_table_size = 2048\n[[service]]\nname = \"a\"\n\
             vips = [\"192.0.2.1:80\"]\nforwarding = \"{forwarding}\"\n"
        );
        let config = config::parse(&text).unwrap();
        let finding = finding(&Ok(config.clone()));
        (describe(&config, &finding), finding)
    }

    #[test]
    fn memory_is_shown() {
        let (text, finding) = checked("gue");
        assert_eq!(text, "valid: 1 service, 0 backends, 4096 flows in a table of 32 KiB");
        assert_eq!((finding.flow_table_size, finding.flow_table_bytes), (4_096, 32_768));
        assert_eq!(
            (finding.nat_table_size, finding.nat_table_bytes),
            (2_048, 2_048),
            "nothing is translated"
        );
        let (text, finding) = checked("nat");
        assert_eq!(
            text,
            "valid: 1 service, 0 backends, 4096 flows in a table of 32 KiB, 2048 NAT connections in a table of 1024 KiB"
        );
        assert_eq!((finding.nat_table_size, finding.nat_table_bytes), (2_048, 1 << 20));
    }

    #[test]
    fn of_a_wrong_file_only_the_errors_are_told() {
        let errors = vec!["f:1: agent: missing".to_owned()];
        assert_eq!(finding(&Err(errors.clone())), Finding { errors, ..Finding::default() });
    }
}
