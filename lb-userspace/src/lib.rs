//! The Sluice agent and the `sluice` command.

// In the agent a failure is an error that is handled, never the end of the process; tests may panic as they like.
#![cfg_attr(
    not(test),
    deny(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::todo,
        clippy::unimplemented,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

pub mod agent;
pub mod cli;
pub mod core;
pub mod io;
