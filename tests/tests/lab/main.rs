//! The lab ring: customers, agent and servers in namespaces. One program, so that its tests can wait beside each other.

mod browser;
mod capture;
mod console;
mod customers;
mod decap;
mod doctor;
mod edits;
mod events;
mod explain;
mod failures;
mod flows;
mod growth;
mod health;
mod itself;
mod metrics;
mod modes;
mod nat;
mod operations;
mod paths;
mod reload;
mod report;
mod signals;
mod size;
mod terminal;
mod vip_checks;

#[path = "../support/checks.rs"]
mod checks;
#[path = "../support/ways.rs"]
mod ways;
