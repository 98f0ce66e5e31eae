//! Probe results → health transitions.
