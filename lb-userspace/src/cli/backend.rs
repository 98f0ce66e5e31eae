//! `sluice backend`: edits of single backends.

use serde_json::Value;

use super::client::Client;
use super::drain;
use super::settings::{Setting, setting, settings};
use super::terms::{Terms, seconds};
use super::{Failure, report};
use crate::core::edit::{Edit, Settings};
use crate::io::api::{ApplyReport, EditRequest};

/// Add, change, drain or remove backends
///
/// Each change is put in force without moving a flow of another backend, and written to the agent's configuration file.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Add a backend to a service
    Add {
        #[command(flatten)]
        which: Which,
        /// The server's own address
        #[arg(value_name = "ADDRESS", conflicts_with = "address")]
        at: Option<String>,
        #[command(flatten)]
        keys: Keys,
        #[command(flatten)]
        terms: Terms,
    },
    /// Remove a backend: its flows are lost
    Remove {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        terms: Terms,
    },
    /// Change keys of a backend
    Set {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        keys: Keys,
        /// Any key of the configuration, such as weight=50
        #[arg(value_name = "KEY=VALUE", value_parser = setting)]
        set: Vec<Setting>,
        /// Key to take out of the file, so that its default holds
        #[arg(long, value_name = "KEY")]
        unset: Vec<String>,
        #[command(flatten)]
        terms: Terms,
    },
    /// Change a backend's share of new flows
    SetWeight {
        #[command(flatten)]
        which: Which,
        /// Its share relative to the others'; 0 = no new flows
        #[arg(value_parser = weight, allow_negative_numbers = true)]
        weight: u16,
        #[command(flatten)]
        terms: Terms,
    },
    /// Let a backend take new flows
    Enable {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        terms: Terms,
    },
    /// Let a backend take nothing: its flows are lost
    Disable {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        terms: Terms,
    },
    /// Let a backend keep its flows, but take no new ones
    Drain {
        #[command(flatten)]
        which: Which,
        /// Wait until no live flow is left, and show how many are
        #[arg(long, conflicts_with = "dry_run")]
        wait: bool,
        /// How long to wait before giving up with status 4; the backend goes on draining
        #[arg(long, value_name = "DURATION", default_value = "300s", value_parser = seconds, requires = "wait")]
        timeout: u64,
        #[command(flatten)]
        terms: Terms,
    },
}

/// Which backend.
#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// The service's name
    pub(super) service: String,
    /// The backend's name
    pub(super) backend: String,
}

/// Keys of a backend.
#[derive(Debug, clap::Args)]
pub(super) struct Keys {
    /// The server's own address; another address is another server
    #[arg(long)]
    address: Option<String>,
    /// The server's port; `nat` only
    #[arg(long)]
    port: Option<u16>,
    /// Its share of new flows relative to the others'
    #[arg(long, value_parser = weight, allow_negative_numbers = true)]
    weight: Option<u16>,
    /// enabled, drain or disabled
    #[arg(long)]
    state: Option<String>,
}

/// A weight.
fn weight(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| format!("write a whole number from 0 to {}", u16::MAX))
}

impl Keys {
    fn values(&self) -> [(&'static str, Option<Value>); 4] {
        [
            ("address", self.address.as_deref().map(Value::from)),
            ("state", self.state.as_deref().map(Value::from)),
            ("port", self.port.map(Value::from)),
            ("weight", self.weight.map(Value::from)),
        ]
    }
}

pub(super) async fn run(command: &Command, client: &Client) -> Result<(), Failure> {
    match command {
        Command::Add { which, at, keys, terms } => {
            let at = ("address", at.as_deref().map(Value::from));
            let set = settings(keys.values().into_iter().chain([at]), &[], &[])?;
            let Which { service, backend } = which;
            let edit = Edit::BackendAdd { service: service.clone(), backend: backend.clone(), set };
            edited(edit, *terms, client).await
        }
        Command::Remove { which: Which { service, backend }, terms } => {
            let edit = Edit::BackendRemove { service: service.clone(), backend: backend.clone() };
            edited(edit, *terms, client).await
        }
        Command::Set { which, keys, set, unset, terms } => {
            let set = settings(keys.values(), set, unset)?;
            if set.is_empty() {
                return Err(Failure::usage("nothing to set: name a key, such as --weight 50 or weight=50"));
            }
            edited(changed(which, set), *terms, client).await
        }
        Command::SetWeight { which, weight, terms } => {
            edited(changed(which, [("weight".to_owned(), (*weight).into())].into()), *terms, client).await
        }
        Command::Enable { which, terms } => edited(in_state(which, "enabled"), *terms, client).await,
        Command::Disable { which, terms } => edited(in_state(which, "disabled"), *terms, client).await,
        Command::Drain { which, wait: false, terms, .. } => {
            edited(in_state(which, "drain"), *terms, client).await
        }
        Command::Drain { which, wait: true, timeout, terms } => {
            let report = ask(in_state(which, "drain"), *terms, client).await?;
            drain::wait(which, *timeout, report, terms.format, client).await
        }
    }
}

fn changed(which: &Which, set: Settings) -> Edit {
    Edit::BackendSet { service: which.service.clone(), backend: which.backend.clone(), set }
}

fn in_state(which: &Which, state: &str) -> Edit {
    changed(which, [("state".to_owned(), state.into())].into())
}

/// Has the agent make an edit.
pub(super) async fn ask(edit: Edit, terms: Terms, client: &Client) -> Result<ApplyReport, Failure> {
    let Terms { dry_run, if_revision, confirm_within, format: _ } = terms;
    client
        .post("/v1/edit", &EditRequest { edit, dry_run, if_revision, confirm_within_seconds: confirm_within })
        .await
}

/// Has the agent make an edit, and shows what it did.
pub(super) async fn edited(edit: Edit, terms: Terms, client: &Client) -> Result<(), Failure> {
    report::show(&ask(edit, terms, client).await?, terms.format)
}
