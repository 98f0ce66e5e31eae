//! The lab: turns a description ("two web servers, weights 3:1") into a running network of namespaces with real
//! nginx servers and a real `sluice agent`, for tests, the demo and benchmarks.
//!
//! ```text
//!   customer      cdn        edge (sluice, native XDP)
//!      │           │          │
//!   ═══╧═══════════╧══════════╧════════ public segment, VIPs 203.0.113.10 and 2001:db8:203::10
//!              │           │
//!            web1        web2 …        the VIPs on their loopback
//!              │           │
//!   ═══════════╧═════╤═════╧═════╤═════ private segment
//!                  app1        app2
//! ```
//!
//! That is [`Topology::Bridge`]. In the others the web servers are on a segment of their own:
//!
//! ```text
//!   TwoInterfaces                                 Routed
//!
//!   ═ public ═ customer, cdn                      ═ customers ═ customer, cdn
//!      │      │                                       │
//!    edge   router                                  access
//!      │      │                                       │ uplink (narrow_to_customers)
//!   ═ backends ═ web1, web2 …                       router ═ public ═ edge
//!                                                     │ downlink (narrow_to_backends)
//!                                                    rack
//!                                                     │
//!                                                 ═ backends ═ web1, web2 …
//! ```
//!
//! [`Segment`] tells the addresses: host 11 on segment 1 has 10.0.1.11 and fd00:1::11. The web servers' answers never pass
//! the edge host unless they are addressed to it.
//!
//! Every host is an anonymous network namespace held by a file descriptor, every process dies with the thread that
//! started it, and files are removed by a guardian process: nothing is left behind, even after `kill -9`.

mod agent;
mod browser;
mod certs;
mod config;
mod curl;
mod decap;
mod frames;
mod guard;
mod guest;
mod host;
mod http;
mod lab;
mod late_server;
mod load;
mod many;
mod netns;
mod nginx;
mod process;
mod programs;
mod promtool;
mod pty;
mod segment;
mod tcp_echo;
mod topology;
mod transfer;
mod udp;
mod wiring;
mod xdp_pass;

pub use agent::{Agent, sluice_binary};
pub use browser::Browser;
pub use config::SluiceToml;
pub use decap::Decap;
pub use frames::{Capture, send_frame, send_frames, vlan_tagged};
pub use guest::{GUEST_RESULTS, Guest, GuestKernel, GuestReport};
pub use host::Host;
pub use http::{HttpConnection, Response};
pub use lab::{CDN_NAME, Lab, LabBuilder, SHOP_NAME};
pub use late_server::{LateServer, Sent};
pub use load::{Load, LoadReport};
pub use many::ManyConnections;
pub use netns::Netns;
pub use nginx::BACKEND_PORT;
pub use process::{Daemon, run_checked, wait_until};
pub use programs::{ProgramCost, program_tag};
pub use promtool::{promtool, promtool_below};
pub use pty::Pty;
pub use segment::{Attachment, Segment};
pub use tcp_echo::TcpEcho;
pub use topology::{SOURCES, SOURCES6, Topology, VIP, VIP6};
pub use transfer::echo_datagram;
pub use udp::UdpEcho;
