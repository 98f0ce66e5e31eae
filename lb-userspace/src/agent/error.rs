//! What can keep the agent from starting.

use std::io;
use std::path::PathBuf;

use crate::core::plan::PlanError;
use crate::io::api::ListenError;
use crate::io::datapath::{AttachError, DatapathError, LoadError, PinError};
use crate::io::neighbours::InterfaceError;
use crate::io::probes::PrepareError;
use crate::io::store::StoreError;

/// Why the agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The configuration is invalid; one line a finding, each with its place.
    #[error("{}", .0.join("\n"))]
    Config(Vec<String>),
    /// The configuration file cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The pin directory.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// Another agent keeps its history and events in the state directory.
    #[error("{path}: another sluice agent keeps its history and events there; stop it first, or choose another --state-dir", path = .0.display())]
    StateDir(PathBuf),
    /// The program cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The program cannot be attached.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// An interface cannot be used.
    #[error("agent.interfaces: {0}")]
    Interface(#[from] InterfaceError),
    /// The API cannot listen.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The configuration does not fit the loaded tables.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The tables cannot be changed.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// What a health check needs is not there.
    #[error("service {service}: {cause}")]
    Check {
        /// The service's name.
        service: String,
        /// What is missing.
        cause: PrepareError,
    },
    /// The operating system said no.
    #[error("{what}: {cause}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// Why.
        cause: io::Error,
    },
}
