//! Effects: everything that touches the kernel, the network or files.

pub mod neighbours;
pub mod probes;
