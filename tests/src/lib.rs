//! The lab: turns a description ("two web servers, weights 3:1") into a running network of namespaces with real
//! nginx servers and a real `sluice agent`, for tests, the demo and benchmarks.
//!
//! ```text
//!   customer      cdn        edge (sluice, native XDP)
//!      │           │          │
//!   ═══╧═══════════╧══════════╧════════ public segment 10.0.1.0/24, VIP 203.0.113.10
//!              │           │
//!            web1        web2 …        the VIP on their loopback
//!              │           │
//!   ═══════════╧═════╤═════╧═════╤═════ private segment 10.0.2.0/24
//!                  app1        app2
//! ```
//!
//! Every host is an anonymous network namespace held by a file descriptor, every process dies with the thread that
//! started it, and files are removed by a guardian process: nothing is left behind, even after `kill -9`.

mod agent;
mod certs;
mod config;
mod curl;
mod frames;
mod guard;
mod guest;
mod host;
mod http;
mod lab;
mod load;
mod netns;
mod nginx;
mod process;
mod programs;
mod topology;
mod udp;
mod xdp_pass;

pub use agent::{Agent, sluice_binary};
pub use config::SluiceToml;
pub use frames::{Capture, send_frame};
pub use guest::{GUEST_RESULTS, Guest, GuestKernel, GuestReport};
pub use host::Host;
pub use http::{HttpConnection, Response};
pub use lab::{CDN_NAME, Lab, LabBuilder, SHOP_NAME, VIP};
pub use load::{Load, LoadReport};
pub use netns::Netns;
pub use process::{Daemon, run_checked, wait_until};
pub use programs::ProgramCost;
pub use topology::Addresses;
pub use udp::UdpEcho;
