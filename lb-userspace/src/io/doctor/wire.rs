//! Frames onto an interface, and those that come back, with a packet socket.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Longest frame that is read whole.
const MAX_FRAME: usize = 2_048;

/// What to do after a frame.
pub(super) enum Next {
    /// Go on.
    Wait,
    /// Send this, and go on.
    Send(Vec<u8>),
    /// Everything is known.
    End,
}

/// Sends `frames` on an interface, once more at half time, and has `take` look at the frames of one EtherType that come in,
/// until it has seen enough or `patience` is over.
pub(super) fn exchange(
    ifindex: u32,
    ether_type: u16,
    frames: &[Vec<u8>],
    patience: Duration,
    mut take: impl FnMut(&[u8]) -> Next,
) -> io::Result<()> {
    if frames.is_empty() {
        return Ok(());
    }
    let socket = open(ifindex, ether_type)?;
    let (began, mut rounds) = (Instant::now(), 0);
    let mut buffer = [0; MAX_FRAME];
    loop {
        let passed = began.elapsed();
        if passed >= patience {
            return Ok(());
        }
        if rounds == 0 || (rounds == 1 && passed * 2 >= patience) {
            rounds += 1;
            for frame in frames {
                send(&socket, frame)?;
            }
        }
        let until = if rounds == 1 { patience / 2 } else { patience };
        let left = u16::try_from(until.saturating_sub(passed).as_millis()).unwrap_or(u16::MAX);
        let mut ready = [PollFd::new(std::os::fd::AsFd::as_fd(&socket), PollFlags::POLLIN)];
        // At least a moment, so that a rest below a millisecond is no busy loop.
        if poll(&mut ready, PollTimeout::from(left.max(1)))? == 0 {
            continue;
        }
        // SAFETY: the buffer is live and of the length given.
        let length = unsafe {
            libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT)
        };
        let Some(frame) = usize::try_from(length).ok().and_then(|length| buffer.get(..length)) else {
            continue;
        };
        match take(frame) {
            Next::Wait => {}
            Next::Send(answer) => send(&socket, &answer)?,
            Next::End => return Ok(()),
        }
    }
}

fn send(socket: &OwnedFd, frame: &[u8]) -> io::Result<()> {
    // SAFETY: the frame is live and of the length given.
    let sent = unsafe { libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A socket that receives what comes in on the interface with this EtherType.
fn open(ifindex: u32, ether_type: u16) -> io::Result<OwnedFd> {
    let protocol = ether_type.to_be();
    // Protocol 0: nothing is received before the socket is bound to its interface.
    // SAFETY: no memory is involved.
    let descriptor = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor, which nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
    // SAFETY: zeros are a valid address.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as libc::c_ushort;
    address.sll_protocol = protocol;
    address.sll_ifindex = i32::try_from(ifindex).unwrap_or(0);
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the address is live and of the length given.
    match unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } {
        0 => Ok(socket),
        _ => Err(io::Error::last_os_error()),
    }
}
