//! A pinned link → where its program is, or a program that is detached, at once.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Commands of linux/bpf.h.
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_DETACH: libc::c_int = 34;

/// `union bpf_attr` for `BPF_OBJ_GET`.
#[repr(C)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// `union bpf_attr` for `BPF_LINK_DETACH`.
#[repr(C)]
struct LinkDetach {
    link_fd: u32,
}

/// `union bpf_attr` for `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct GetInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The beginning of `struct bpf_link_info`, of an XDP link.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    link_type: u32,
    id: u32,
    program: u32,
    _padding: u32,
    ifindex: u32,
    _more: u32,
}

/// The interface that the link pinned at `path` is on; 0 if it was taken off, or the interface is gone.
pub(super) fn ifindex(path: &Path) -> io::Result<u32> {
    let link = open(path)?;
    let mut info = LinkInfo::default();
    let mut asked = GetInfo {
        bpf_fd: link.as_raw_fd().unsigned_abs(),
        info_len: u32::try_from(size_of::<LinkInfo>()).unwrap_or(0),
        info: (&raw mut info) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut asked)?;
    // SAFETY: the kernel wrote there, behind the compiler's back.
    Ok(unsafe { std::ptr::read_volatile(&raw const info.ifindex) })
}

/// Detaches the program of the link pinned at `path`, which is done when this returns. Removing the pin would do it
/// too, but only some time later: the kernel releases what a removed pin held from a work queue.
pub(super) fn detach(path: &Path) -> io::Result<()> {
    let link = open(path)?;
    bpf(BPF_LINK_DETACH, &mut LinkDetach { link_fd: link.as_raw_fd().unsigned_abs() }).map(drop)
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut get = ObjGet { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    let fd = bpf(BPF_OBJ_GET, &mut get)?;
    // SAFETY: a new descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: `attributes` is a prefix of `union bpf_attr` of the length given; what it may point to lives in the
    // caller, and is as large as it says.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    match libc::c_int::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
