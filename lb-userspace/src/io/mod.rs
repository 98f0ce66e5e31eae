//! Effects: everything that touches the kernel, the network or files.

pub mod api;
pub mod datapath;
pub mod exporters;
pub mod history;
pub mod host;
pub mod neighbours;
pub mod probes;
pub mod store;
