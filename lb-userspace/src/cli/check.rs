//! `sluice check`: validates a configuration file, without an agent.

use std::path::PathBuf;

use serde::Serialize;

use super::{Failure, Format, OutputFlag, output};
use crate::core::config::{self, Config, Forwarding};
use crate::io::store;

/// Memory of one `nat` connection, in bytes: an entry of a kernel hash map for each direction, with a header of 48, a key of 40
/// and a value of 72, which the kernel rounds up to 192, and 16 of its buckets. An estimate: kernels differ.
const NAT_CONNECTION_BYTES: u64 = 2 * (192 + 16);

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
    /// What a full table takes, about.
    nat_table_bytes: u64,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let text = store::read(&arguments.file).map_err(Failure::failed)?;
    let file = arguments.file.display().to_string();
    let parsed = config::parse(&text)
        .map_err(|errors| errors.iter().map(|error| error.at(&file).to_string()).collect::<Vec<_>>());
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
                nat_table_bytes: u64::from(connections) * NAT_CONNECTION_BYTES,
            }
        }
        Err(errors) => Finding { errors: errors.clone(), ..Finding::default() },
    }
}

/// The finding about a valid file. The NAT table is left out where no service uses it.
fn describe(config: &Config, finding: &Finding) -> String {
    let mut text = format!(
        "valid: {} services, {} backends, {} flows in a table of {} KiB",
        finding.services,
        finding.backends,
        finding.flow_table_size,
        finding.flow_table_bytes / 1_024,
    );
    if config.services.iter().any(|service| service.forwarding == Forwarding::Nat) {
        text += &format!(
            ", {} NAT connections in a table of about {} KiB",
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
        assert_eq!(text, "valid: 1 services, 0 backends, 4096 flows in a table of 32 KiB");
        assert_eq!((finding.flow_table_size, finding.flow_table_bytes), (4_096, 32_768));
        let (text, finding) = checked("nat");
        assert_eq!(
            text,
            "valid: 1 services, 0 backends, 4096 flows in a table of 32 KiB, 2048 NAT connections in a table of about \
             832 KiB"
        );
        assert_eq!((finding.nat_table_size, finding.nat_table_bytes), (2_048, 851_968));
    }

    #[test]
    fn of_a_wrong_file_only_the_errors_are_told() {
        let errors = vec!["f:1: agent: missing".to_owned()];
        assert_eq!(finding(&Err(errors.clone())), Finding { errors, ..Finding::default() });
    }
}
