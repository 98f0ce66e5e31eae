//! Health probes over the network.
