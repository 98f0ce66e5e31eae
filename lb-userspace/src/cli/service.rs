//! `sluice service`: services, listed, one by one, or edited.

use serde_json::Value;

use super::backend::edited;
use super::client::Client;
use super::output::Columns;
use super::settings::{Setting, setting, settings};
use super::terms::Terms;
use super::{Failure, Format, OutputFlag, output, status};
use crate::core::edit::{Edit, Settings};
use crate::core::stats::Snapshot;

/// List, show, add, change or remove services
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
    /// Add a service, without backends: add these with `sluice backend add`
    Add {
        /// The service's name
        name: String,
        #[command(flatten)]
        keys: Keys,
        #[command(flatten)]
        terms: Terms,
    },
    /// Remove a service and its backends: its flows are lost
    Remove {
        /// The service's name
        name: String,
        #[command(flatten)]
        terms: Terms,
    },
    /// Change keys of a service
    Set {
        /// The service's name
        name: String,
        #[command(flatten)]
        keys: Keys,
        /// Key to take out of the file, so that its default holds
        #[arg(long, value_name = "KEY")]
        unset: Vec<String>,
        #[command(flatten)]
        terms: Terms,
    },
}

/// Keys of a service.
#[derive(Debug, clap::Args)]
pub(super) struct Keys {
    /// A VIP; more of them for more. They are all VIPs that the service then has
    #[arg(long = "vip", value_name = "ADDRESS:PORT")]
    vips: Vec<String>,
    /// tcp or udp
    #[arg(long)]
    protocol: Option<String>,
    /// l2-dsr, ipip, gue or nat
    #[arg(long)]
    forwarding: Option<String>,
    /// Any other key of the configuration, such as affinity=client or health.interval=5s
    #[arg(value_name = "KEY=VALUE", value_parser = setting)]
    set: Vec<Setting>,
}

impl Keys {
    fn settings(&self, unset: &[String]) -> Result<Settings, Failure> {
        let flags = [
            ("vips", (!self.vips.is_empty()).then(|| self.vips.clone().into())),
            ("protocol", self.protocol.as_deref().map(Value::from)),
            ("forwarding", self.forwarding.as_deref().map(Value::from)),
        ];
        settings(flags, &self.set, unset)
    }
}

pub(super) async fn run(command: &Command, client: &Client) -> Result<(), Failure> {
    match command {
        Command::Add { name, keys, terms } => {
            let edit = Edit::ServiceAdd { service: name.clone(), set: keys.settings(&[])? };
            edited(edit, *terms, client).await
        }
        Command::Remove { name, terms } => {
            edited(Edit::ServiceRemove { service: name.clone() }, *terms, client).await
        }
        Command::Set { name, keys, unset, terms } => {
            let set = keys.settings(unset)?;
            if set.is_empty() {
                return Err(Failure::usage(
                    "nothing to set: name a key, such as affinity=client or --vip 203.0.113.10:80",
                ));
            }
            edited(Edit::ServiceSet { service: name.clone(), set }, *terms, client).await
        }
        Command::List { .. } | Command::Show { .. } => print(command, client).await,
    }
}

async fn print(command: &Command, client: &Client) -> Result<(), Failure> {
    let snapshot: Snapshot = client.get("/v1/status").await?;
    match command {
        Command::List { format } if format.output == Format::Json => output::json(&snapshot.services),
        Command::List { .. } => output::print(&list(&snapshot)),
        Command::Show { name, format } => {
            let service = snapshot.services.iter().find(|service| service.name == *name);
            let service = service.ok_or_else(|| {
                let names: Vec<&str> =
                    snapshot.services.iter().map(|service| service.name.as_str()).collect();
                Failure::usage(format!("there is no service {name:?}; there are: {}", names.join(", ")))
            })?;
            match format.output {
                Format::Json => output::json(service),
                Format::Table => output::print(&status::service(service)),
            }
        }
        Command::Add { .. } | Command::Remove { .. } | Command::Set { .. } => Ok(()),
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
