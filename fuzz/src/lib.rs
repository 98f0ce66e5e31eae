//! The invariants of `lb-userspace/tests/invariants`, compiled once for all targets.

#[path = "../../lb-userspace/tests/invariants/mod.rs"]
pub mod invariants;
