//! The pin directory on bpffs: what outlives the agent.

mod link;

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use aya::maps::{MapData, MapInfo, MapType};
use lb_common::abi::{self, Control, map};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{FsType, statfs};

use super::probe_path;
use super::region::{Access, Region};
use crate::core::image::Capacity;
use crate::io::lock::FolderLock;

/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS: FsType = FsType(0xcafe_4a11);
/// Where bpffs belongs.
const BPF_FS_ROOT: &str = "/sys/fs/bpf";
/// Prefix of a pinned link's name; the interface's follows.
const LINK_PREFIX: &str = "link-";
/// Where the maps in force are pinned.
const MAPS: &str = "maps";
/// Where those are that are being filled, or that were in force before and are not emptied yet.
const OTHER_MAPS: &str = "maps_other";

/// What is wrong with the pin directory.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// Not on bpffs.
    #[error("{path}: not on a BPF filesystem; mount one there (`mount -t bpf bpf {path}`) or choose a --pin-dir under {BPF_FS_ROOT}", path = .0.display())]
    NotBpfFs(PathBuf),
    /// bpffs takes no such name.
    #[error("{path}: a BPF filesystem takes no names with a dot: choose a --pin-dir without one in {name:?}", path = path.display())]
    Dot {
        /// The pin directory.
        path: PathBuf,
        /// The part of it that has the dot.
        name: String,
    },
    /// This user may not.
    #[error("{path}: {cause}; run as root", path = path.display())]
    Denied {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
    /// Another agent holds it.
    #[error("{path}: another sluice agent is running on this pin directory; stop it first, or choose another --pin-dir", path = .0.display())]
    Locked(PathBuf),
    /// What is pinned was made by another version.
    #[error("{path}: what is pinned there ({what}) does not fit this version of sluice, and is left as it is: it goes on forwarding. Either start the version of sluice that made it, which adopts it; or run `sluice detach --pin-dir {path}` and start this one, which ends the forwarding in between and forgets flows and counters", path = path.display())]
    Incompatible {
        /// The pin directory.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// The operating system said no.
    #[error("{path}: {cause}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
}

/// A pin directory.
#[derive(Clone, Debug)]
pub struct PinDir {
    root: PathBuf,
    maps: &'static str,
}

/// What a pin directory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pinned {
    /// Nothing that was ever in force.
    Nothing,
    /// Maps of this version, and their sizes.
    Maps(Capacity),
}

impl PinDir {
    /// The pin directory at `root`, which need not exist.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), maps: MAPS }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Where a map is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.root.join(self.maps).join(name)
    }

    /// The same directory with the other maps in place of those in force: larger ones that are being filled or, after
    /// [`Self::exchange`], those they replace.
    pub fn other(&self) -> Self {
        Self { root: self.root.clone(), maps: if self.maps == MAPS { OTHER_MAPS } else { MAPS } }
    }

    /// Makes the folder for the maps.
    pub fn create_maps(&self) -> Result<(), PinError> {
        let maps = self.root.join(self.maps);
        fs::create_dir_all(&maps).map_err(|cause| self.io(&maps, cause))
    }

    /// Whether there is a folder for the maps.
    pub fn has_maps(&self) -> Result<bool, PinError> {
        self.has(&self.root.join(self.maps))
    }

    /// Puts the other maps in the place of those in force, and these in theirs, in one step.
    pub fn exchange(&self) -> Result<(), PinError> {
        let path = |maps| CString::new(self.root.join(maps).into_os_string().into_vec());
        let renamed = path(MAPS).and_then(|ours| Ok((ours, path(OTHER_MAPS)?)));
        let renamed = renamed.map_err(io::Error::from).and_then(|(ours, other)| {
            // SAFETY: both are strings that live until the call returns.
            let result = unsafe {
                let (ours, other) = (ours.as_ptr(), other.as_ptr());
                libc::syscall(
                    libc::SYS_renameat2,
                    libc::AT_FDCWD,
                    ours,
                    libc::AT_FDCWD,
                    other,
                    libc::RENAME_EXCHANGE,
                )
            };
            if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
        });
        renamed.map_err(|cause| self.io(&self.root.join(OTHER_MAPS), cause))
    }

    /// Where a program is pinned.
    pub fn program(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Where an interface's link is pinned.
    pub fn link(&self, interface: &str) -> PathBuf {
        self.root.join(format!("{LINK_PREFIX}{}", escape(interface)))
    }

    /// Whether the link that is pinned for an interface is on it. It is not if it was taken off, or its pin removed.
    pub fn is_linked(&self, interface: &str, ifindex: u32) -> bool {
        link::ifindex(&self.link(interface)).is_ok_and(|found| found != 0 && found == ifindex)
    }

    /// Whether there is such a directory.
    pub fn exists(&self) -> Result<bool, PinError> {
        self.has(&self.root)
    }

    /// Whether it is, or would be made, on a BPF filesystem.
    pub fn is_on_bpf_fs(&self) -> bool {
        self.root.ancestors().find(|ancestor| ancestor.exists()).is_some_and(is_bpf_fs)
    }

    /// Its path from the root, without symbolic links where it exists: the same for all who mean the same directory.
    pub fn canonical(&self) -> PathBuf {
        let found = fs::canonicalize(&self.root).or_else(|_| std::path::absolute(&self.root));
        found.unwrap_or_else(|_| self.root.clone())
    }

    /// The interfaces whose links are pinned.
    pub fn linked_interfaces(&self) -> Result<Vec<String>, PinError> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(cause) => return Err(self.io(&self.root, cause)),
        };
        Ok(entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.strip_prefix(LINK_PREFIX).map(unescape))
            .collect())
    }

    /// Makes the directory, mounting bpffs in its usual place if need be.
    pub fn create(&self) -> Result<(), PinError> {
        if self.root.starts_with(BPF_FS_ROOT) && !is_bpf_fs(Path::new(BPF_FS_ROOT)) {
            let none: Option<&str> = None;
            mount(Some("bpf"), BPF_FS_ROOT, Some("bpf"), MsFlags::empty(), none)
                .map_err(|errno| self.io(Path::new(BPF_FS_ROOT), errno.into()))?;
            if is_mount_namespace_own() {
                log::warn!(
                    "{BPF_FS_ROOT} is mounted in a mount namespace that is not the host's, as `ip netns exec` makes one: what is \
                     pinned there ends with it, and the forwarding with the agent; `nsenter --net=/run/netns/NAME` makes none"
                );
            }
        }
        let existing = self.root.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
        if !is_bpf_fs(existing) {
            return Err(PinError::NotBpfFs(self.root.clone()));
        }
        if let Some(name) = dotted(self.root.strip_prefix(existing).unwrap_or(Path::new(""))) {
            return Err(PinError::Dot { path: self.root.clone(), name });
        }
        self.create_maps()
    }

    /// Takes the directory for this process; one that another process holds may be let go of within this time.
    pub async fn lock_within(&self, patience: Duration) -> Result<FolderLock, PinError> {
        let taken = FolderLock::take_within(&self.root, patience).await;
        taken.map_err(|cause| self.io(&self.root, cause))?.ok_or_else(|| PinError::Locked(self.root.clone()))
    }

    /// What is pinned. Maps that another version would misread are an error: the loader would adopt them silently.
    pub fn pinned(&self) -> Result<Pinned, PinError> {
        let mut entries = Vec::new();
        let mut missing = None;
        for name in map::ALL {
            let path = self.map(name);
            if !self.has(&path)? {
                missing = Some(name);
                continue;
            }
            let info = MapInfo::from_pin(&path)
                .map_err(|error| self.incompatible(format!("map {name}: {error}")))?;
            let records = records_in(name, &info);
            let records = records.ok_or_else(|| self.incompatible(format!("map {name} of another shape")))?;
            entries.push((name, records));
        }
        let size = |wanted| entries.iter().find(|(name, _)| *name == wanted).map_or(0, |&(_, size)| size);
        if let Some(name) = missing {
            // Starting over would take the tables away from under the packets.
            if self.finished()? || !self.linked_interfaces()?.is_empty() {
                return Err(self.incompatible(format!("map {name} is missing")));
            }
            return Ok(Pinned::Nothing);
        }
        Ok(Pinned::Maps(Capacity {
            services: size(map::SERVICES),
            backends: size(map::BACKENDS).saturating_sub(1),
            rings: size(map::RINGS),
            vip_buckets: size(map::VIPS) / 2,
            flow_buckets: size(map::FLOWS),
            translations: size(map::TRANSLATIONS).saturating_mul(abi::TRANSLATIONS_A_BUCKET),
        }))
    }

    /// Whether the map `control`, whose shape is known to fit, says that the maps were in force.
    fn finished(&self) -> Result<bool, PinError> {
        let path = self.map(map::CONTROL);
        if !self.has(&path)? {
            return Ok(false);
        }
        let failed = |cause: String| self.incompatible(format!("map {}: {cause}", map::CONTROL));
        let control = MapData::from_pin(&path).map_err(|error| failed(error.to_string()))?;
        let control = Region::<Control>::map(control.fd(), 1, Access::Read);
        let control = control.map_err(|error| failed(error.to_string()))?;
        Ok(control.records().first().is_some_and(|control| control.abi_version.load() != 0))
    }

    /// The error of pins that another version made.
    pub fn incompatible(&self, what: String) -> PinError {
        PinError::Incompatible { path: self.root.clone(), what }
    }

    /// Removes one pin; says whether there was one.
    pub fn remove(&self, path: &Path) -> Result<bool, PinError> {
        match fs::remove_file(path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(cause) => Err(self.io(path, cause)),
        }
    }

    /// Removes the pinned maps and programs, which frees them unless something still uses them.
    pub fn remove_maps(&self) -> Result<(), PinError> {
        for pins in [self, &self.other()] {
            for name in map::ALL {
                self.remove(&pins.map(name))?;
            }
        }
        for name in abi::programs() {
            self.remove(&self.program(name))?;
        }
        Ok(())
    }

    /// Removes the other maps, which frees those that nothing uses any more.
    pub fn remove_other(&self) -> Result<(), PinError> {
        let other = self.other();
        for name in map::ALL {
            self.remove(&other.map(name))?;
        }
        let folder = self.root.join(other.maps);
        match fs::remove_dir(&folder) {
            Err(cause) if !is_gone_or_in_use(&cause) => Err(self.io(&folder, cause)),
            _ => Ok(()),
        }
    }

    /// Removes everything, links first: this detaches the program. Says from which interfaces.
    pub fn remove_all(&self) -> Result<Vec<String>, PinError> {
        let interfaces = self.linked_interfaces()?;
        for interface in &interfaces {
            self.remove_link(interface)?;
            probe_path::remove_left_behind(interface);
        }
        self.remove_maps()?;
        for folder in [self.root.join(OTHER_MAPS), self.root.join(MAPS), self.root.clone()] {
            match fs::remove_dir(&folder) {
                Ok(()) => {}
                // Somebody keeps other things in it, or mounted it for us: both may stay.
                Err(error) if is_gone_or_in_use(&error) => {}
                Err(cause) => return Err(self.io(&folder, cause)),
            }
        }
        Ok(interfaces)
    }

    /// Removes an interface's link: the program is detached when this returns. Says whether there was a link.
    pub fn remove_link(&self, interface: &str) -> Result<bool, PinError> {
        let path = self.link(interface);
        // What cannot be detached so is detached by the removal, a little later.
        if let Err(error) = link::detach(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            log::debug!("{}: {error}", path.display());
        }
        self.remove(&path)
    }

    fn has(&self, path: &Path) -> Result<bool, PinError> {
        path.try_exists().map_err(|cause| self.io(path, cause))
    }

    fn io(&self, path: &Path, cause: io::Error) -> PinError {
        let path = path.to_owned();
        match cause.kind() {
            io::ErrorKind::PermissionDenied => PinError::Denied { path, cause },
            _ => PinError::Io { path, cause },
        }
    }
}

fn is_gone_or_in_use(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTEMPTY | libc::EBUSY))
}

/// An interface's name as bpffs takes it: without dots.
fn escape(interface: &str) -> String {
    interface.replace('%', "%25").replace('.', "%2E")
}

/// What [`escape`] made of an interface's name, undone.
fn unescape(name: &str) -> String {
    name.replace("%2E", ".").replace("%25", "%")
}

/// The first part of a path that has a dot in it.
fn dotted(path: &Path) -> Option<String> {
    path.components().find_map(|part| match part {
        Component::Normal(name) => {
            Some(name.to_string_lossy().into_owned()).filter(|name| name.contains('.'))
        }
        _ => None,
    })
}

/// Whether this process has a mount namespace other than that of the host's first one.
fn is_mount_namespace_own() -> bool {
    let namespace = |of: &str| fs::read_link(format!("/proc/{of}/ns/mnt")).ok();
    let first = namespace("1");
    first.is_some() && first != namespace("self")
}

fn is_bpf_fs(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS)
}

/// Key size of a map of this version.
fn key_size(name: &str) -> u32 {
    let size = match name {
        map::FRAGMENTS => size_of::<abi::TupleKey>(),
        _ => size_of::<u32>(),
    };
    u32::try_from(size).unwrap_or(u32::MAX)
}

/// Records in a map, if it is one of this version.
pub(super) fn records_in(name: &str, info: &MapInfo) -> Option<u32> {
    let (map_type, record) = layout(name);
    if info.map_type().ok() != Some(map_type) || info.key_size() != key_size(name) {
        return None;
    }
    let (size, count) = (info.value_size(), info.max_entries());
    if abi::direct::ALL.contains(&name) {
        (count == 1 && size > 0 && size % record == 0).then_some(size / record)
    } else {
        (size == record).then_some(count)
    }
}

/// Bytes of a record of a map.
pub(super) fn record_size(name: &str) -> u32 {
    layout(name).1
}

/// Type of a map of this version, and bytes of a record.
fn layout(name: &str) -> (MapType, u32) {
    let (map_type, size) = match name {
        map::CONTROL => (MapType::Array, size_of::<Control>()),
        map::VIPS => (MapType::Array, size_of::<abi::VipBucket>()),
        map::SERVICES => (MapType::Array, size_of::<abi::Service>()),
        map::BACKENDS => (MapType::Array, size_of::<abi::Backend>()),
        map::RINGS => (MapType::Array, size_of::<abi::Ring>()),
        map::FLOWS => (MapType::Array, size_of::<abi::FlowBucket>()),
        map::OPENINGS | map::SENDERS => (MapType::Array, size_of::<abi::Word>()),
        map::SERVICE_LATENCY | map::BACKEND_LATENCY => (MapType::Array, size_of::<abi::Latency>()),
        map::VERDICTS => (MapType::PerCpuArray, size_of::<abi::Verdicts>()),
        map::STAGES => (MapType::ProgramArray, size_of::<u32>()),
        map::TRANSLATIONS => (MapType::Array, size_of::<abi::TranslationBucket>()),
        map::FRAGMENTS => (MapType::LruHash, size_of::<abi::FragmentRoute>()),
        map::SERVICE_TRAFFIC | map::BACKEND_TRAFFIC => (MapType::PerCpuArray, size_of::<abi::Traffic>()),
        _ => (MapType::Array, size_of::<abi::Name>()),
    };
    (map_type, u32::try_from(size).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests;
