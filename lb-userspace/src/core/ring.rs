//! Backends and weights → a Maglev ring.
