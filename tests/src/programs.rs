//! What a program costs the kernel: turns a pinned or attached BPF program into the instructions its verifier went
//! through and the size of what it made of it.
//!
//! Asked by `bpf(2)` directly, like the pass-through program: the lab needs no BPF library.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::host::Host;
use crate::xdp_pass::{bpf, new_descriptor};

const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
/// Size of one instruction.
const INSTRUCTION: u32 = 8;

/// What a loaded program costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramCost {
    /// Instructions that the verifier went through, over all branches.
    pub verified: u32,
    /// Instructions of the program.
    pub instructions: u32,
    /// Bytes of machine code.
    pub machine_code: u32,
}

/// The head of `union bpf_attr` for `BPF_OBJ_GET`.
#[repr(C)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The head of `union bpf_attr` for `BPF_PROG_GET_FD_BY_ID`.
#[repr(C)]
struct GetFd {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// The head of `union bpf_attr` for `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct GetInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// `struct bpf_prog_info` up to `verified_insns`, in 32-bit words; zeros ask for no copies.
#[repr(C, align(8))]
#[derive(Default)]
struct Info {
    kind: u32,
    id: u32,
    tag: [u32; 2],
    jited_prog_len: u32,
    xlated_prog_len: u32,
    pointers: [u32; 26],
    more: [u32; 22],
    verified_insns: u32,
    rest: u32,
}

const _: () = assert!(std::mem::offset_of!(Info, verified_insns) == 216);

impl ProgramCost {
    /// Of every program pinned in a directory, by name. Links are not programs; their names begin with `link-`.
    pub fn pinned_in(directory: &Path) -> Result<Vec<(String, Self)>> {
        let mut costs = Vec::new();
        for entry in fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with("link-") && entry.file_type()?.is_file() {
                costs.push((name, Self::pinned(&entry.path())?));
            }
        }
        costs.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(costs)
    }

    /// Of the program pinned at `path`.
    pub fn pinned(path: &Path) -> Result<Self> {
        let pathname = CString::new(path.as_os_str().as_bytes())?;
        let attributes = ObjGet { pathname: pathname.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
        let program = new_descriptor(BPF_OBJ_GET, &attributes)
            .with_context(|| format!("opening {}", path.display()))?;
        Self::of(&program).with_context(|| format!("asking about {}", path.display()))
    }

    /// Of the XDP program on an interface of a host.
    pub fn attached(host: &Host, interface: &str) -> Result<Self> {
        let on = || format!("asking about the program on {interface} of {}", host.name());
        attached(host, interface).and_then(|program| Self::of(&program)).with_context(on)
    }

    fn of(program: &OwnedFd) -> Result<Self> {
        let info = info(program)?;
        Ok(Self {
            verified: info.verified_insns,
            instructions: info.xlated_prog_len / INSTRUCTION,
            machine_code: info.jited_prog_len,
        })
    }
}

/// The kernel's hash of the instructions of the XDP program on an interface of a host.
pub fn program_tag(host: &Host, interface: &str) -> Result<[u32; 2]> {
    let tag = attached(host, interface).and_then(|program| Ok(info(&program)?.tag));
    tag.with_context(|| format!("asking about the program on {interface} of {}", host.name()))
}

fn attached(host: &Host, interface: &str) -> Result<OwnedFd> {
    let id = host.xdp_program(interface)?.context("there is no XDP program")?;
    new_descriptor(BPF_PROG_GET_FD_BY_ID, &GetFd { id, next_id: 0, open_flags: 0 })
}

fn info(program: &OwnedFd) -> Result<Info> {
    let mut info = Info::default();
    let attributes = GetInfo {
        bpf_fd: u32::try_from(program.as_raw_fd())?,
        info_len: u32::try_from(size_of::<Info>())?,
        info: (&raw mut info) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &attributes)?;
    Ok(info)
}
