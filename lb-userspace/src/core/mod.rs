//! Pure: values in, values out. Nothing here knows of aya, tokio, files, sockets or the clock.

pub mod config;
pub mod health;
pub mod image;
pub mod plan;
pub mod ring;
pub mod vips;
