//! The Sluice agent and the `sluice` command.

pub mod core;
pub mod io;
