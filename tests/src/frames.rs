//! Raw frames: turns bytes into frames on an interface, and what arrives on an interface into bytes.

use std::ffi::CString;
use std::io::{Error, ErrorKind};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::host::Host;

/// How long one read waits before the deadline is looked at.
const TICK: Duration = Duration::from_millis(50);
/// The length of the two addresses that a frame begins with.
const ADDRESSES: usize = 12;

/// Puts `frame` on `interface` of `host` exactly as it is.
pub fn send_frame(host: &Host, interface: &str, frame: &[u8]) -> Result<()> {
    send_frames(host, interface, frame, 1)
}

/// Puts `frame` on `interface` of `host` so many times.
pub fn send_frames(host: &Host, interface: &str, frame: &[u8], count: usize) -> Result<()> {
    // Protocol 0: this socket receives nothing.
    let socket = packet_socket(host, interface, 0)?;
    for _ in 0..count {
        let sent = socket.send(frame).context("sending a frame")?;
        anyhow::ensure!(sent == frame.len(), "only {sent} bytes of a frame were sent");
    }
    Ok(())
}

/// `frame` with VLAN tags put after its addresses, outermost first: each is the EtherType that announces it (`0x8100`, or
/// `0x88a8` for the outer of two) and its priority and VLAN id.
pub fn vlan_tagged(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(ADDRESSES.min(frame.len()));
    let tags =
        tags.iter().flat_map(|(announced_by, tag)| [announced_by.to_be_bytes(), tag.to_be_bytes()].concat());
    addresses.iter().copied().chain(tags).chain(rest.iter().copied()).collect()
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
        ask_for_tags(&socket).context("asking for VLAN tags")?;
        Ok(Self { socket })
    }

    /// The first frame that `wanted` accepts, or none within `timeout`.
    pub fn find(&mut self, timeout: Duration, wanted: impl Fn(&[u8]) -> bool) -> Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + timeout;
        let mut buffer = vec![0; 65_536];
        while Instant::now() < deadline {
            match receive(&self.socket, &mut buffer) {
                Ok(frame) if wanted(&frame) => return Ok(Some(frame)),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error).context("capturing"),
            }
        }
        Ok(None)
    }
}

/// The kernel takes the outer VLAN tag out of a frame; have it say which that was.
fn ask_for_tags(socket: &Socket) -> std::io::Result<()> {
    let yes: libc::c_int = 1;
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    let (level, option, value) = (libc::SOL_PACKET, libc::PACKET_AUXDATA, std::ptr::from_ref(&yes).cast());
    // SAFETY: the value is live and of the length given.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value, length) } {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}

/// Receives one frame, its outer VLAN tag put back where it was.
pub(crate) fn receive(socket: &Socket, buffer: &mut [u8]) -> std::io::Result<Vec<u8>> {
    // Of u64, for the alignment of what the kernel writes there.
    let mut control = [0_u64; 16];
    let mut data = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: null pointers and lengths of 0 are a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut data;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: the message points to live buffers of the lengths it gives.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    let length = usize::try_from(length).map_err(|_| Error::last_os_error())?;
    let frame = buffer.get(..length).unwrap_or_default();
    // SAFETY: the kernel has filled the control buffer and set its length; the headers are walked as it lays them out,
    // and the data of one of this type is a `tpacket_auxdata`, read wherever it is aligned.
    let found = unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        let is_auxdata = |header: &libc::cmsghdr| {
            (header.cmsg_level, header.cmsg_type) == (libc::SOL_PACKET, libc::PACKET_AUXDATA)
        };
        header
            .as_ref()
            .filter(|header| is_auxdata(header))
            .map(|_| libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>().read_unaligned())
    };
    Ok(match found {
        Some(aux) if aux.tp_status & libc::TP_STATUS_VLAN_VALID != 0 => {
            vlan_tagged(frame, &[(aux.tp_vlan_tpid, aux.tp_vlan_tci)])
        }
        _ => frame.to_vec(),
    })
}

pub(crate) fn packet_socket(host: &Host, interface: &str, ethertype: u16) -> Result<Socket> {
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
