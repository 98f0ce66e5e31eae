//! The pin directory on bpffs: what outlives the agent.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::{MapInfo, MapType};
use lb_common::abi::{self, map};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{FsType, statfs};

use crate::core::image::Capacity;

/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS: FsType = FsType(0xcafe_4a11);
/// Where bpffs belongs.
const BPF_FS_ROOT: &str = "/sys/fs/bpf";
/// Prefix of a pinned link's name; the interface's follows.
const LINK_PREFIX: &str = "link-";

/// What is wrong with the pin directory.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// Not on bpffs.
    #[error("{path}: not on a BPF filesystem; mount one there (`mount -t bpf bpf {path}`) or choose a --pin-dir under {BPF_FS_ROOT}", path = .0.display())]
    NotBpfFs(PathBuf),
    /// Another agent holds it.
    #[error("{path}: another sluice agent is running on this pin directory; stop it first, or choose another --pin-dir", path = .0.display())]
    Locked(PathBuf),
    /// What is pinned was made by another version.
    #[error("{path}: what is pinned there ({what}) does not fit this version of sluice; `sluice detach --pin-dir {path}` removes it (this ends the forwarding until an agent is started)", path = path.display())]
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
#[derive(Debug)]
pub struct PinDir {
    root: PathBuf,
}

/// Keeps other agents away for as long as it lives.
#[derive(Debug)]
pub struct PinLock(#[expect(dead_code, reason = "held, not used")] File);

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
        Self { root: root.into() }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Where a map is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.root.join("maps").join(name)
    }

    /// Where a program is pinned.
    pub fn program(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Where an interface's link is pinned.
    pub fn link(&self, interface: &str) -> PathBuf {
        self.root.join(format!("{LINK_PREFIX}{interface}"))
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
            .filter_map(|entry| entry.file_name().to_str()?.strip_prefix(LINK_PREFIX).map(str::to_owned))
            .collect())
    }

    /// Makes the directory, mounting bpffs in its usual place if need be.
    pub fn create(&self) -> Result<(), PinError> {
        if self.root.starts_with(BPF_FS_ROOT) && !is_bpf_fs(Path::new(BPF_FS_ROOT)) {
            let none: Option<&str> = None;
            mount(Some("bpf"), BPF_FS_ROOT, Some("bpf"), MsFlags::empty(), none)
                .map_err(|errno| self.io(Path::new(BPF_FS_ROOT), errno.into()))?;
        }
        let existing = self.root.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
        if !is_bpf_fs(existing) {
            return Err(PinError::NotBpfFs(self.root.clone()));
        }
        let maps = self.root.join("maps");
        fs::create_dir_all(&maps).map_err(|cause| self.io(&maps, cause))
    }

    /// Takes the directory for this process.
    pub fn lock(&self) -> Result<PinLock, PinError> {
        let folder = File::open(&self.root).map_err(|cause| self.io(&self.root, cause))?;
        match folder.try_lock() {
            Ok(()) => Ok(PinLock(folder)),
            Err(TryLockError::WouldBlock) => Err(PinError::Locked(self.root.clone())),
            Err(TryLockError::Error(cause)) => Err(self.io(&self.root, cause)),
        }
    }

    /// What is pinned. Maps that another version would misread are an error: the loader would adopt them silently.
    pub fn pinned(&self) -> Result<Pinned, PinError> {
        let mut entries = Vec::new();
        for name in map::ALL {
            let path = self.map(name);
            if !path.exists() {
                continue;
            }
            let info = MapInfo::from_pin(&path)
                .map_err(|error| self.incompatible(format!("map {name}: {error}")))?;
            let (map_type, value_size) = layout(name);
            if info.map_type().ok() != Some(map_type)
                || info.key_size() != 4
                || info.value_size() != value_size
            {
                return Err(self.incompatible(format!("map {name} of another shape")));
            }
            entries.push((name, info.max_entries()));
        }
        let size = |wanted| entries.iter().find(|(name, _)| *name == wanted).map_or(0, |&(_, size)| size);
        if entries.len() < map::ALL.len() {
            return Ok(Pinned::Nothing);
        }
        Ok(Pinned::Maps(Capacity {
            services: size(map::SERVICES),
            backends: size(map::BACKENDS).saturating_sub(1),
            rings: size(map::RINGS),
            vip_buckets: size(map::VIPS) / 2,
            flow_buckets: size(map::FLOWS),
        }))
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
        for name in map::ALL {
            self.remove(&self.map(name))?;
        }
        for name in [abi::PROGRAM, abi::CLOCK_PROGRAM] {
            self.remove(&self.program(name))?;
        }
        Ok(())
    }

    /// Removes everything, links first: this detaches the program. Says from which interfaces.
    pub fn remove_all(&self) -> Result<Vec<String>, PinError> {
        let interfaces = self.linked_interfaces()?;
        for interface in &interfaces {
            self.remove(&self.link(interface))?;
        }
        self.remove_maps()?;
        for folder in [self.root.join("maps"), self.root.clone()] {
            match fs::remove_dir(&folder) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(cause) => return Err(self.io(&folder, cause)),
            }
        }
        Ok(interfaces)
    }

    fn io(&self, path: &Path, cause: io::Error) -> PinError {
        PinError::Io { path: path.to_owned(), cause }
    }
}

fn is_bpf_fs(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS)
}

/// Type and value size of a map of this version.
fn layout(name: &str) -> (MapType, u32) {
    let (map_type, size) = match name {
        map::CONTROL => (MapType::Array, size_of::<abi::Control>()),
        map::VIPS => (MapType::Array, size_of::<abi::VipBucket>()),
        map::SERVICES => (MapType::Array, size_of::<abi::Service>()),
        map::BACKENDS => (MapType::Array, size_of::<abi::Backend>()),
        map::RINGS => (MapType::Array, size_of::<abi::Ring>()),
        map::FLOWS => (MapType::Array, size_of::<abi::FlowBucket>()),
        map::VERDICTS => (MapType::PerCpuArray, size_of::<abi::Verdicts>()),
        map::SERVICE_TRAFFIC | map::BACKEND_TRAFFIC => (MapType::PerCpuArray, size_of::<abi::Traffic>()),
        _ => (MapType::Array, size_of::<abi::Name>()),
    };
    (map_type, u32::try_from(size).unwrap_or(u32::MAX))
}
