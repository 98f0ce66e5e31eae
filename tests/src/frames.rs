//! Raw frames: turns bytes into frames on an interface, and what arrives on an interface into bytes.

use std::ffi::CString;
use std::io::{ErrorKind, Read};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::host::Host;

/// How long one read waits before the deadline is looked at.
const TICK: Duration = Duration::from_millis(50);

/// Puts `frame` on `interface` of `host` exactly as it is.
pub fn send_frame(host: &Host, interface: &str, frame: &[u8]) -> Result<()> {
    // Protocol 0: this socket receives nothing.
    let socket = packet_socket(host, interface, 0)?;
    let sent = socket.send(frame).context("sending a frame")?;
    anyhow::ensure!(sent == frame.len(), "only {sent} bytes of a frame were sent");
    Ok(())
}

/// Everything that an interface receives and sends from now on, after its XDP program.
#[derive(Debug)]
pub struct Capture {
    socket: Socket,
}

impl Capture {
    /// Starts capturing on `interface` of `host`.
    pub fn start(host: &Host, interface: &str) -> Result<Self> {
        let all = u16::try_from(libc::ETH_P_ALL)?;
        let socket = packet_socket(host, interface, all)?;
        socket.set_read_timeout(Some(TICK)).context("setting a timeout")?;
        Ok(Self { socket })
    }

    /// The first frame that `wanted` accepts, or none within `timeout`.
    pub fn find(&mut self, timeout: Duration, wanted: impl Fn(&[u8]) -> bool) -> Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + timeout;
        let mut buffer = vec![0; 65_536];
        while Instant::now() < deadline {
            match self.socket.read(&mut buffer) {
                Ok(length) => {
                    let frame = buffer.get(..length).unwrap_or_default();
                    if wanted(frame) {
                        return Ok(Some(frame.to_vec()));
                    }
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error).context("capturing"),
            }
        }
        Ok(None)
    }
}

fn packet_socket(host: &Host, interface: &str, ethertype: u16) -> Result<Socket> {
    let name = CString::new(interface)?;
    host.run(|| -> Result<Socket> {
        let ifindex = nix::net::if_::if_nametoindex(name.as_c_str())
            .with_context(|| format!("{} has no interface {interface}", host.name()))?;
        let protocol = Protocol::from(i32::from(ethertype.to_be()));
        let socket =
            Socket::new(Domain::PACKET, Type::RAW, Some(protocol)).context("opening a packet socket")?;
        socket.bind(&link_address(ifindex, ethertype)?).context("binding a packet socket")?;
        Ok(socket)
    })?
}

fn link_address(ifindex: u32, ethertype: u16) -> Result<SockAddr> {
    let ifindex = i32::try_from(ifindex)?;
    // SAFETY: `sockaddr_ll` fits the zeroed storage, which is aligned for every kind of address; the length set is
    // that of what was written.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let link = storage.cast::<libc::sockaddr_ll>();
            (*link).sll_family = libc::AF_PACKET as u16;
            (*link).sll_protocol = ethertype.to_be();
            (*link).sll_ifindex = ifindex;
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    }?;
    Ok(address)
}
