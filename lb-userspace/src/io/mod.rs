//! Effects: everything that touches the kernel, the network or files.

pub mod api;
pub mod console;
pub mod datapath;
pub mod doctor;
pub mod events;
pub mod exporters;
pub mod history;
pub mod host;
pub mod lock;
pub mod neighbours;
pub mod pcap;
pub mod pcapng;
pub mod probes;
pub mod received;
pub mod report;
pub mod store;
