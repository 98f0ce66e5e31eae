//! Pure: values in, values out. Nothing here knows of aya, tokio, files, sockets or the clock.

pub mod capture;
pub mod config;
pub mod decap;
pub mod diff;
pub mod doctor;
pub mod edit;
pub mod effect;
pub mod events;
pub mod explain;
pub mod flows;
pub mod health;
pub mod image;
pub mod live;
pub mod names;
pub mod plan;
pub mod pressure;
pub mod reach;
pub mod report;
pub mod ring;
pub mod scope;
pub mod signals;
pub mod slow_start;
pub mod stats;
pub mod trend;
pub mod vips;
pub mod wanted;
