//! The smallest XDP program: turns a veth end into one that accepts what its peer transmits from XDP.
//!
//! `XDP_TX` on a veth leaves through the peer, and the peer takes such frames only while it has an XDP program of its
//! own. Two instructions are loaded by `bpf(2)` directly, so that the lab needs neither a BPF library nor a compiler.

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};

use crate::netns::Netns;

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_ATTACH_TYPE_XDP: u32 = 37;
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
const XDP_PASS: u64 = 2;

/// `r0 = XDP_PASS; exit`, each instruction as its little-endian 64-bit word: opcode, registers, offset, immediate.
const PROGRAM: [u64; 2] = [0xb7 | (XDP_PASS << 32), 0x95];

/// The head of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// The head of `union bpf_attr` for `BPF_LINK_CREATE`.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// Attaches the program to `interface` of `netns` in driver mode; it stays while the descriptor is held.
pub(crate) fn attach_pass(netns: &Netns, interface: &str) -> Result<OwnedFd> {
    let name = CString::new(interface)?;
    netns.run(|| -> Result<OwnedFd> {
        let ifindex = nix::net::if_::if_nametoindex(name.as_c_str())
            .with_context(|| format!("looking for interface {interface}"))?;
        let program = load().context("loading a pass-through XDP program")?;
        let link = LinkCreate {
            prog_fd: u32::try_from(program.as_raw_fd())?,
            target_ifindex: ifindex,
            attach_type: BPF_ATTACH_TYPE_XDP,
            flags: XDP_FLAGS_DRV_MODE,
        };
        new_descriptor(BPF_LINK_CREATE, &link).with_context(|| format!("attaching XDP to {interface}"))
    })?
}

fn load() -> Result<OwnedFd> {
    let license = c"Dual MIT/GPL";
    let attributes = ProgLoad {
        prog_type: BPF_PROG_TYPE_XDP,
        insn_cnt: u32::try_from(PROGRAM.len())?,
        insns: PROGRAM.as_ptr() as u64,
        license: license.as_ptr() as u64,
        prog_flags: BPF_F_XDP_HAS_FRAGS,
        ..ProgLoad::default()
    };
    new_descriptor(BPF_PROG_LOAD, &attributes)
}

/// A `bpf(2)` command whose answer is a new descriptor.
pub(crate) fn new_descriptor<T>(command: libc::c_long, attributes: &T) -> Result<OwnedFd> {
    let answer = bpf(command, attributes)?;
    // SAFETY: the commands this is called with answer with a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(answer) })
}

/// A `bpf(2)` command; pointers in `attributes` must be valid for what the command does with them.
pub(crate) fn bpf<T>(command: libc::c_long, attributes: &T) -> Result<i32> {
    // SAFETY: `attributes` is a live `repr(C)` prefix of `bpf_attr` of exactly the size given, and the pointers in it
    // outlive the call; the kernel reads no further.
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if answer < 0 {
        return Err(std::io::Error::last_os_error()).context("bpf(2)");
    }
    Ok(i32::try_from(answer)?)
}
