//! Any bytes → a world and what happens in it → a panic if an invariant is broken. The fuzz targets and the ordinary tests
//! call the same functions, one for each target.
#![allow(dead_code, reason = "each fuzz target uses a part of it")]

pub mod affinity;
pub mod bytes;
pub mod config;
pub mod decap;
pub mod frames;
pub mod nat_round_trip;
pub mod pipeline;
pub mod wire;
pub mod world;
