//! Health probes over the network: turns a target and a [`Check`] into success or the reason why not, and both into a
//! stream of such outcomes.
//!
//! Nothing here decides whether a backend is healthy; that is `core::health`.

mod http;
mod path;
mod report;
mod tls;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_rustls::rustls::ClientConfig;

use crate::core::config::{Health, Probe};

pub use path::ForwardingPath;
pub use report::{ProbeReport, probe_loop};
pub use tls::{PrepareError, TlsClients};

/// Why a probe failed, in words for the operator.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Nothing listens on the port.
    #[error("connection refused")]
    Refused,
    /// The connection was not accepted in time.
    #[error("no connection within {0:?}")]
    ConnectTimeout(Duration),
    /// The connection was accepted but the answer did not come in time.
    #[error("connected, but no answer within {0:?}")]
    AnswerTimeout(Duration),
    /// There is no way to the backend, or it does not answer ARP or neighbour discovery.
    #[error("unreachable: {0}")]
    Unreachable(io::Error),
    /// This host's own route to the backend is one that leads nowhere.
    #[error("unreachable: this host has a route of type {0} to it; `ip route` shows it")]
    RoutedNowhere(&'static str),
    /// The answer came with a status that the configuration does not accept.
    #[error("status {status} (expected {expected})")]
    UnexpectedStatus {
        /// The status of the answer.
        status: u16,
        /// The accepted ones, as the configuration writes them.
        expected: String,
    },
    /// The answer came without what the configuration looks for.
    #[error("the body does not contain {wanted:?} (its first {searched} bytes were searched)")]
    UnexpectedBody {
        /// What it should contain.
        wanted: String,
        /// Bytes searched.
        searched: usize,
    },
    /// The connection cannot be encrypted as the configuration asks.
    #[error("TLS: {0}")]
    Tls(String),
    /// Neither the VIP nor the backend's own address answers.
    #[error("no connection within {limit:?}, neither to VIP {vip} nor to {host} itself")]
    SilentBoth {
        /// The VIP.
        vip: IpAddr,
        /// The backend's own address.
        host: IpAddr,
        /// How long was waited.
        limit: Duration,
    },
    /// The backend answers, but not for the VIP.
    #[error(
        "no answer for VIP {vip} within {limit:?}, though {host} itself answers: the VIP is missing on its loopback interface"
    )]
    VipSilent {
        /// The VIP.
        vip: IpAddr,
        /// The backend's own address.
        host: IpAddr,
        /// How long was waited.
        limit: Duration,
    },
    /// Nobody takes the tunnel off.
    #[error(
        "{host} refuses {mode} tunnels: nothing takes them off there; run `sluice decap`, or set up its kernel's tunnel"
    )]
    TunnelRefused {
        /// The backend's own address.
        host: IpAddr,
        /// The forwarding mode.
        mode: &'static str,
    },
    /// The backend answers and does not refuse the tunnel, but nobody answers for the VIP.
    #[error(
        "no answer for VIP {vip} within {limit:?}, though {host} itself answers and does not refuse {mode} tunnels: the VIP is \
         missing on its loopback interface, or what takes tunnels off there does not accept this host's"
    )]
    TunneledVipSilent {
        /// The VIP.
        vip: IpAddr,
        /// The backend's own address.
        host: IpAddr,
        /// How long was waited.
        limit: Duration,
        /// The forwarding mode.
        mode: &'static str,
    },
    /// The program that forwards checks did not see this one. It says nothing of the backend.
    #[error("the check did not go through the forwarding path: {0}")]
    NotForwarded(&'static str),
    /// The connection was closed before a whole answer head had come.
    #[error("connection closed without an answer")]
    Closed,
    /// What came is no HTTP/1 answer, or its head is too large.
    #[error("malformed answer: {0}")]
    Malformed(String),
    /// The configured path or host cannot be sent as an HTTP request.
    #[error("the probe's path or host is not valid in HTTP: {0}")]
    InvalidRequest(String),
    /// This host has run out of something that a probe needs: files, memory, ports. It says nothing of the backend.
    #[error("this host cannot probe: {0}")]
    NoResources(io::Error),
    /// Anything else that the network stack reports.
    #[error("{0}")]
    Io(io::Error),
}

impl ProbeError {
    /// Whether nothing at all came back.
    pub fn is_silence(&self) -> bool {
        matches!(self, Self::ConnectTimeout(_) | Self::SilentBoth { .. })
    }

    /// Whether the cause is this host's, so that nothing follows for the backend.
    pub fn is_local(&self) -> bool {
        matches!(self, Self::NoResources(_) | Self::NotForwarded(_))
    }
}

/// The errors that mean that this host has run out of something.
const NO_RESOURCES: [i32; 5] = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EADDRNOTAVAIL];

impl From<io::Error> for ProbeError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(code) if NO_RESOURCES.contains(&code) => Self::NoResources(error),
            _ => Self::Io(error),
        }
    }
}

/// Where a probe goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// The backend's own address, and the port.
    pub address: SocketAddr,
    /// The way of customers' packets to it; `None` if its own address is asked.
    pub path: Option<Arc<ForwardingPath>>,
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Self { address, path: None }
    }
}

/// A check that is ready to be made: of all backends of a service.
#[derive(Debug)]
pub struct Check {
    health: Health,
    tls: Option<Arc<ClientConfig>>,
}

/// Time between two looks whether the datapath knows a backend yet.
const READY_POLL: Duration = Duration::from_millis(20);

impl Check {
    /// Prepares a check.
    ///
    /// # Errors
    /// What it needs of this host is missing: certificate authorities.
    pub fn new(health: &Health, clients: &mut TlsClients) -> Result<Self, PrepareError> {
        let tls = match &health.probe {
            Probe::Http { tls: Some(tls), .. } => Some(clients.client(tls)?),
            _ => None,
        };
        Ok(Self { health: health.clone(), tls })
    }

    /// What the configuration says of it.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Whether both are made with the same certificate authorities, as they were read.
    pub fn trusts_as(&self, other: &Self) -> bool {
        match (&self.tls, &other.tls) {
            (Some(own), Some(its)) => Arc::ptr_eq(own, its),
            (own, its) => own.is_some() == its.is_some(),
        }
    }

    /// Probes `target` once; the whole of it takes at most the timeout, and as long again to find out why the forwarding
    /// path is silent. [`Probe::None`] always succeeds.
    pub async fn probe(&self, target: &Target) -> Result<(), ProbeError> {
        let deadline = Instant::now() + self.health.timeout;
        match &target.path {
            None => self.ask(target.address, target.address, None, deadline).await,
            // On the heap: a task is as large as the largest thing it may do, and there are as many as backends.
            Some(path) => Box::pin(self.probe_through(path, target, deadline)).await,
        }
    }

    /// Probes through the forwarding path.
    async fn probe_through(
        &self,
        path: &ForwardingPath,
        target: &Target,
        deadline: Instant,
    ) -> Result<(), ProbeError> {
        let limit = self.health.timeout;
        for &(vip, index) in &path.vips {
            while !path.counts.is_ready(index) {
                if Instant::now() >= deadline {
                    return Err(ProbeError::NotForwarded("the datapath does not know the backend yet"));
                }
                sleep(READY_POLL).await;
            }
            let before = path.counts.sent(index);
            let named = SocketAddr::new(vip, target.address.port());
            let result = self.ask(target.address, named, Some(ForwardingPath::mark(index)), deadline).await;
            let left = path.counts.sent(index) != before;
            match result {
                Ok(()) if left => {}
                Ok(()) => return Err(ProbeError::NotForwarded("no program is where the packets leave")),
                Err(ProbeError::ConnectTimeout(_) | ProbeError::Unreachable(_)) if left => {
                    return Err(path.explain(vip, target.address, limit).await);
                }
                Err(error) => return Err(error),
            }
        }
        path.is_fine();
        Ok(())
    }

    /// Asks at an address; `named` is what whoever answers is asked for.
    async fn ask(
        &self,
        address: SocketAddr,
        named: SocketAddr,
        mark: Option<u32>,
        deadline: Instant,
    ) -> Result<(), ProbeError> {
        let limit = self.health.timeout;
        let (path, host, expect, body) = match &self.health.probe {
            Probe::None => return Ok(()),
            Probe::Tcp => return connect(address, mark, deadline, limit).await.map(drop),
            Probe::Http { path, host, expect, body, .. } => (path, host.as_deref(), expect, body.as_deref()),
        };
        let stream = connect(address, mark, deadline, limit).await?;
        let request = http::request(named, path, host, if self.tls.is_some() { 443 } else { 80 })?;
        // On the heap, as above.
        let exchange = Box::pin(async {
            let expected = http::Expected { statuses: expect, body };
            match &self.tls {
                None => http::ask(stream, request, expected).await,
                Some(client) => {
                    let name = tls::server_name(host, named)?;
                    let stream = tls::encrypt(client.clone(), name, stream).await?;
                    http::ask(stream, request, expected).await
                }
            }
        });
        timeout_at(deadline, exchange).await.map_err(|_| ProbeError::AnswerTimeout(limit))?
    }
}

/// Connects such that dropping the stream resets the connection. A balancer opens many probes a second: closed
/// the ordinary way each would stay in TIME_WAIT here for a minute, and one to a backend that has died would
/// go on sending its FIN for many minutes. All that a probe wants to know it knows by then, and the peer has
/// had the whole request, so nothing is lost by the reset.
async fn connect(
    target: SocketAddr,
    mark: Option<u32>,
    deadline: Instant,
    timeout: Duration,
) -> Result<TcpStream, ProbeError> {
    let socket = if target.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if let Some(mark) = mark {
        SockRef::from(&socket).set_mark(mark)?;
    }
    socket.set_zero_linger()?;
    timeout_at(deadline, socket.connect(target))
        .await
        .map_err(|_| ProbeError::ConnectTimeout(timeout))?
        .map_err(|error| connect_error(error, timeout))
}

fn connect_error(error: io::Error, timeout: Duration) -> ProbeError {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => ProbeError::Refused,
        io::ErrorKind::TimedOut => ProbeError::ConnectTimeout(timeout),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => ProbeError::Unreachable(error),
        _ if error.raw_os_error() == Some(libc::EINVAL) => ProbeError::RoutedNowhere("blackhole"),
        _ if error.raw_os_error() == Some(libc::EACCES) => ProbeError::RoutedNowhere("prohibit"),
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests;
