//! A check through the forwarding path that found no answer → what is wrong with that path.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use etherparse::PacketBuilder;
use lb_common::abi::{GUE_PORT, PROBE_MARK};
use lb_common::net::Protocol;
use socket2::{Domain, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout};

use super::{ProbeError, connect};
use crate::core::config::Forwarding;
use crate::io::datapath::ProbeCounts;

/// How long a finding is good while nothing changes: hosts answer only so many tunnel packets with an error.
const FINDING_LASTS: Duration = Duration::from_secs(5);
/// How long a host may take to answer at its own address, or to refuse a tunnel, when that is asked only to find the
/// reason: a failure is not to be told much later than it is known.
const PATIENCE: Duration = Duration::from_millis(300);

/// The way of customers' packets to a backend.
#[derive(Debug)]
pub struct ForwardingPath {
    /// How the service's packets are forwarded.
    pub forwarding: Forwarding,
    /// The VIPs to be asked at, each with its place among the datapath's targets.
    pub vips: Vec<(IpAddr, u32)>,
    /// What the datapath counts.
    pub counts: ProbeCounts,
    /// What was found last, while the checks fail.
    finding: Mutex<Option<(Instant, Finding)>>,
}

impl PartialEq for ForwardingPath {
    fn eq(&self, other: &Self) -> bool {
        self.forwarding == other.forwarding && self.vips == other.vips && self.counts == other.counts
    }
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    /// The host itself does not answer.
    Silent,
    /// The host says that nobody takes the tunnel off there.
    TunnelRefused,
    /// The host is there, and takes the tunnel if there is one; but nobody answers for the VIP.
    VipSilent,
}

impl ForwardingPath {
    /// The way to a backend by way of these VIPs.
    pub fn new(forwarding: Forwarding, vips: Vec<(IpAddr, u32)>, counts: ProbeCounts) -> Self {
        Self { forwarding, vips, counts, finding: Mutex::new(None) }
    }

    /// The mark of packets to a target.
    pub(super) fn mark(target: u32) -> u32 {
        PROBE_MARK | target
    }

    /// All went well.
    pub(super) fn is_fine(&self) {
        *self.finding.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Why nobody answers at `vip` within `limit`, though the packets to `backend` left.
    pub(super) async fn explain(&self, vip: IpAddr, backend: SocketAddr, limit: Duration) -> ProbeError {
        let known = *self.finding.lock().unwrap_or_else(PoisonError::into_inner);
        let finding = match known {
            Some((when, finding)) if when.elapsed() < FINDING_LASTS => finding,
            _ => {
                let finding = self.find(vip, backend).await;
                *self.finding.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some((Instant::now(), finding));
                finding
            }
        };
        let mode = match self.forwarding {
            Forwarding::L2Dsr => "l2-dsr",
            Forwarding::Ipip => "ipip",
            Forwarding::Gue => "gue",
            Forwarding::Nat => "nat",
        };
        let host = backend.ip();
        match finding {
            Finding::Silent => ProbeError::SilentBoth { vip, host, limit },
            Finding::TunnelRefused => ProbeError::TunnelRefused { host, mode },
            Finding::VipSilent if self.forwarding == Forwarding::L2Dsr => {
                ProbeError::VipSilent { vip, host, limit }
            }
            Finding::VipSilent => ProbeError::TunneledVipSilent { vip, host, limit, mode },
        }
    }

    async fn find(&self, vip: IpAddr, backend: SocketAddr) -> Finding {
        let direct = connect(backend, None, Instant::now() + PATIENCE, PATIENCE).await;
        if !matches!(direct, Ok(_) | Err(ProbeError::Refused)) {
            return Finding::Silent;
        }
        let refused = match self.forwarding {
            Forwarding::Ipip => is_refused(vip, backend.ip(), false).await,
            Forwarding::Gue => is_refused(vip, backend.ip(), true).await,
            Forwarding::L2Dsr | Forwarding::Nat => Ok(false),
        };
        // If it cannot be tried, nothing is known of it.
        if refused.unwrap_or(false) { Finding::TunnelRefused } else { Finding::VipSilent }
    }
}

/// Sends one tunnel packet that changes nothing where it arrives, and says whether the host refuses such.
async fn is_refused(vip: IpAddr, host: IpAddr, gue: bool) -> io::Result<bool> {
    let inner_protocol = if vip.is_ipv4() { Protocol::IPIP } else { Protocol::IPV6 };
    let (kind, protocol, port) = if gue {
        (Type::DGRAM, socket2::Protocol::UDP, GUE_PORT)
    } else {
        (Type::RAW, socket2::Protocol::from(i32::from(inner_protocol.0)), 0)
    };
    let to = SocketAddr::new(host, port);
    let socket = Socket::new(Domain::for_address(to), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    socket.connect(&to.into())?;
    // To the kernel's calls a raw socket is the same as this one.
    let socket = UdpSocket::from_std(socket.into())?;
    let between: &[u8] = if gue { &[0, inner_protocol.0, 0, 0] } else { &[] };
    let packet = [between, &harmless(vip)].concat();
    if let Err(error) = socket.send(&packet).await {
        return refusal(&error).ok_or(error);
    }
    let mut answer = [0; 64];
    let told = timeout(PATIENCE, async {
        loop {
            // What else comes in this way is somebody else's.
            if let Err(error) = socket.recv(&mut answer).await {
                return refusal(&error).ok_or(error);
            }
        }
    });
    told.await.unwrap_or(Ok(false))
}

/// Whether an error is what the kernel makes of an ICMP or ICMPv6 error that says: nobody takes such packets here.
fn refusal(error: &io::Error) -> Option<bool> {
    let codes = [libc::ECONNREFUSED, libc::ENOPROTOOPT, libc::EPROTO];
    error.raw_os_error().filter(|code| codes.contains(code)).map(|_| true)
}

/// The answer to a ping that nobody sent: whoever takes it throws it away.
fn harmless(vip: IpAddr) -> Vec<u8> {
    let mut packet = Vec::new();
    let written = match vip {
        IpAddr::V4(vip) => {
            let builder = PacketBuilder::ipv4(Ipv4Addr::LOCALHOST.octets(), vip.octets(), 1);
            builder.icmpv4_echo_reply(0, 0).write(&mut packet, &[])
        }
        IpAddr::V6(vip) => {
            let builder = PacketBuilder::ipv6(Ipv6Addr::LOCALHOST.octets(), vip.octets(), 1);
            builder.icmpv6_echo_reply(0, 0).write(&mut packet, &[])
        }
    };
    // Writing to memory cannot fail, and an empty packet is as harmless.
    written.map(|()| packet).unwrap_or_default()
}
