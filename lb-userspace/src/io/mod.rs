//! Effects: everything that touches the kernel, the network or files.

pub mod datapath;
pub mod neighbours;
pub mod probes;
