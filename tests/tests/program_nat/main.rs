//! The program ring for `nat` and ICMP errors: frames through the program in the kernel and the slice implementation, against
//! frames that are built from scratch.

#[path = "../support/mod.rs"]
mod support;

mod again;
mod connections;
mod errors;
mod errors_untranslated;
mod forward;
mod fragments;
mod full;
mod ports;
mod properties;
