//! The Sluice agent and the `sluice` command.

pub mod agent;
pub mod cli;
pub mod core;
pub mod io;
