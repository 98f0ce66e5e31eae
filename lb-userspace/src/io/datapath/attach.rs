//! The program and an interface → a pinned link.

use std::io;

use aya::programs::links::{FdLink, LinkInfo, LinkType, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, Xdp, XdpMode as AyaMode, loaded_links};
use nix::net::if_::if_nametoindex;

use super::kernel::{Kernel, LoadError, chain};
use super::pins::{PinDir, PinError};
use crate::core::config::XdpMode;

/// Why the program cannot be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The pin directory.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The program is not loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// There is no such interface.
    #[error("agent.interfaces: there is no interface {0:?} here; `ip link` lists those there are")]
    NoInterface(String),
    /// Another XDP program is on the interface.
    #[error(
        "{0}: another XDP program is attached; if it is not needed: `ip link set dev {0} xdp off`, or, where a BPF link holds \
         it (`bpftool link` shows it), end the process that does, or `sluice detach --pin-dir DIR` if it is another Sluice's"
    )]
    Busy(String),
    /// The driver does not take it.
    #[error(
        "{interface}: the driver does not take the program: {cause}; xdp_mode = \"auto\" falls back to the slower generic mode"
    )]
    Driver {
        /// The interface.
        interface: String,
        /// Why.
        cause: String,
    },
    /// Anything else.
    #[error("{interface}: cannot attach the program: {cause}")]
    Other {
        /// The interface.
        interface: String,
        /// Why.
        cause: String,
    },
}

/// How the program came onto an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attached {
    /// A link was there: its program was replaced, without a packet in between.
    Replaced,
    /// Newly, as wished.
    New,
    /// Newly, in generic mode, because the driver mode failed for this reason.
    Fallback(String),
}

impl Kernel {
    /// Attaches the program to an interface, through its pinned link if there is one.
    pub fn attach(&mut self, pins: &PinDir, interface: &str, mode: XdpMode) -> Result<Attached, AttachError> {
        let ifindex = if_nametoindex(interface).unwrap_or(0);
        let program = self.program()?;
        if pins.is_linked(interface, ifindex) {
            let replaced = replace(program, pins, interface).map_err(|error| other(interface, &error));
            return replaced.map(|()| Attached::Replaced);
        }
        // It was taken off, or the interface it was on is gone or has another name; this one only has its old one.
        pins.remove_link(interface)?;
        let attached = match mode {
            XdpMode::Driver => {
                create(program, pins, interface, AyaMode::Driver)?;
                Attached::New
            }
            XdpMode::Generic => {
                create(program, pins, interface, AyaMode::Skb)?;
                Attached::New
            }
            XdpMode::Auto => match create(program, pins, interface, AyaMode::Driver) {
                Ok(()) => Attached::New,
                Err(AttachError::Driver { cause, .. }) => {
                    create(program, pins, interface, AyaMode::Skb)?;
                    Attached::Fallback(cause)
                }
                Err(error) => return Err(error),
            },
        };
        Ok(attached)
    }
}

/// The number of the BPF link that holds an XDP program of this number on an interface; none if no link does, or this user may
/// not know.
pub fn link_of(program: u32) -> Option<u32> {
    let is_its = |link: &LinkInfo| {
        link.program_id() == program && link.link_type().is_ok_and(|kind| kind == LinkType::Xdp)
    };
    loaded_links().filter_map(Result::ok).find(is_its).map(|link| link.id())
}

/// Puts the program onto the link that is pinned; the pin keeps the link.
pub(super) fn replace(program: &mut Xdp, pins: &PinDir, interface: &str) -> Result<(), ProgramError> {
    let pinned = PinnedLink::from_pin(pins.link(interface))
        .map_err(|error| ProgramError::IOError(io::Error::other(chain(&error))))?;
    let link = XdpLink::try_from(FdLink::from(pinned))
        .map_err(|error| ProgramError::IOError(io::Error::other(chain(&error))))?;
    let id = program.attach_to_link(link)?;
    drop(program.take_link(id)?);
    Ok(())
}

/// Attaches and pins a new link.
fn create(program: &mut Xdp, pins: &PinDir, interface: &str, mode: AyaMode) -> Result<(), AttachError> {
    let id = program.attach(interface, mode).map_err(|error| match &error {
        ProgramError::UnknownInterface { .. } => AttachError::NoInterface(interface.to_owned()),
        ProgramError::SyscallError(call) if is_busy(&call.io_error) => {
            AttachError::Busy(interface.to_owned())
        }
        _ if mode == AyaMode::Driver => {
            AttachError::Driver { interface: interface.to_owned(), cause: chain(&error) }
        }
        _ => other(interface, &error),
    })?;
    let link = program.take_link(id).map_err(|error| other(interface, &error))?;
    let link = FdLink::try_from(link).map_err(|error| other(interface, &error))?;
    let pinned = link.pin(pins.link(interface)).map_err(|error| other(interface, &error))?;
    drop(pinned);
    Ok(())
}

/// The interface has a program already: EBUSY from the link, EEXIST from the mode.
pub(super) fn is_busy(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST))
}

fn other(interface: &str, error: &dyn std::error::Error) -> AttachError {
    AttachError::Other { interface: interface.to_owned(), cause: chain(error) }
}
