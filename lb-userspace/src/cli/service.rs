//! `sluice service`: services, listed or one by one.

use super::client::Client;
use super::output::Columns;
use super::{Failure, Format, OutputFlag, output, status};
use crate::core::stats::Snapshot;

/// List or show services
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List the services
    List {
        #[command(flatten)]
        format: OutputFlag,
    },
    /// Show one service and its backends
    Show {
        /// The service's name
        name: String,
        #[command(flatten)]
        format: OutputFlag,
    },
}

pub(super) async fn run(command: &Command, client: &Client) -> Result<(), Failure> {
    let snapshot: Snapshot = client.get("/v1/status").await?;
    match command {
        Command::List { format } if format.output == Format::Json => output::json(&snapshot.services),
        Command::List { .. } => output::print(&list(&snapshot)),
        Command::Show { name, format } => {
            let service = snapshot.services.iter().find(|service| service.name == *name);
            let service = service.ok_or_else(|| {
                let names: Vec<&str> =
                    snapshot.services.iter().map(|service| service.name.as_str()).collect();
                Failure::Invalid(vec![format!(
                    "there is no service {name:?}; there are: {}",
                    names.join(", ")
                )])
            })?;
            match format.output {
                Format::Json => output::json(service),
                Format::Table => output::print(&status::service(service)),
            }
        }
    }
}

fn list(snapshot: &Snapshot) -> String {
    let mut columns =
        Columns::with_header(&["service", "status", "protocol", "VIPs", "serving", "packets", "new flows"]);
    for service in &snapshot.services {
        let serving = service.backends.iter().filter(|backend| backend.serving).count();
        columns.line(vec![
            service.name.clone(),
            service.status.clone(),
            service.protocol.clone(),
            service.vips.join(" "),
            format!("{serving} of {}", service.backends.len()),
            service.packets.to_string(),
            service.new_flows.to_string(),
        ]);
    }
    columns.render("")
}
