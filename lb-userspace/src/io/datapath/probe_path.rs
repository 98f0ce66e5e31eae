//! The probing programs' object and the load balancer's pinned maps → health checks that take the way of customers' packets.
//!
//! Nothing of it is pinned. Where the kernel has links for programs on the host's side of an interface (tcx, Linux 6.6), they go with the
//! process; before that, what a killed agent left is removed by the next one, or by `sluice detach`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use aya::Ebpf;
use aya::maps::Map;
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, qdisc_add_clsact, qdisc_detach_program,
};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use aya::util::KernelVersion;
use lb_common::abi::{PROBE_MARK_MASK, PROBE_PROGRAMS, ProbeTarget, probe_map};
use nix::net::if_::if_indextoname;

use super::direct::DirectTables;
use super::kernel::{LoadError, chain};
use super::loader;
use super::object::{load_program, program};
use super::pins::PinDir;
use super::region::{Access, Region};

/// The eBPF object, aligned as the loader wants it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/probe.bpf.o"));

/// Targets that there is room for at least.
const TARGETS_MIN: u32 = 256;
/// The first kernel with tcx links.
const TCX: KernelVersion = KernelVersion::new(6, 6, 0);

/// The programs cannot be attached to an interface.
#[derive(Debug, thiserror::Error)]
#[error("{interface}: health checks cannot go through the forwarding path: {cause}")]
pub struct ProbePathError {
    /// The interface.
    interface: String,
    /// Why.
    cause: String,
}

/// How health checks get to the VIPs.
pub struct ProbePath {
    // Dropped first: without links no packet meets the rest.
    links: BTreeMap<u32, [SchedClassifierLink; 2]>,
    object: Ebpf,
    targets: Region<ProbeTarget>,
    counts: ProbeCounts,
    taken: u32,
}

/// What was counted for each target; the way to watch it from a task.
#[derive(Clone)]
pub struct ProbeCounts(Arc<Region<ProbeTarget>>);

impl std::fmt::Debug for ProbeCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProbeCounts").finish_non_exhaustive()
    }
}

/// The same if they are of the same programs: others count the same targets elsewhere.
impl PartialEq for ProbeCounts {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl ProbeCounts {
    /// Whether packets to a target find their backend.
    pub fn is_ready(&self, target: u32) -> bool {
        self.target(target).is_some_and(|target| target.backend.load() != 0)
    }

    /// Packets that were sent to a target.
    pub fn sent(&self, target: u32) -> u64 {
        self.target(target).map_or(0, |target| target.sent.load())
    }

    fn target(&self, target: u32) -> Option<&ProbeTarget> {
        self.0.records().get(target as usize)
    }
}

impl ProbePath {
    /// Loads the programs over the maps pinned here, with room for at least so many targets.
    pub fn load(pins: &PinDir, targets: usize) -> Result<Self, LoadError> {
        let most = !PROBE_MARK_MASK;
        let room = u32::try_from(targets.saturating_mul(2)).unwrap_or(u32::MAX).clamp(TARGETS_MIN, most);
        let tables = DirectTables::open(pins)?;
        let mut object = loader::load(&tables.put_into(OBJECT), |loader| {
            loader.map_max_entries(probe_map::TARGETS, room);
        })?;
        for name in PROBE_PROGRAMS {
            load_program::<SchedClassifier>(&mut object, name, SchedClassifier::load)?;
        }
        let targets = region(&object, Access::Write)?;
        let counts = ProbeCounts(Arc::new(region(&object, Access::Read)?));
        Ok(Self { links: BTreeMap::new(), object, targets, counts, taken: 0 })
    }

    /// How many more targets there is room for.
    pub fn room(&self) -> usize {
        self.targets.records().len().saturating_sub(self.taken as usize)
    }

    /// What is counted.
    pub fn counts(&self) -> ProbeCounts {
        self.counts.clone()
    }

    /// A new target: packets to `address` that bear its mark go to `vip`, once it has a backend. `None` if there is no room.
    pub fn add(&mut self, vip: IpAddr, address: IpAddr) -> Option<u32> {
        let index = self.taken;
        let target = self.targets.records_mut().get_mut(index as usize)?;
        (target.vip, target.address) = (vip.into(), address.into());
        self.taken += 1;
        Some(index)
    }

    /// Has packets to a target forwarded by the record of the backend with this id; 0 ends that.
    pub fn set_backend(&self, target: u32, backend: u16) {
        if let Some(target) = self.targets.records().get(target as usize) {
            target.backend.store(backend.into());
        }
    }

    /// Puts the programs onto the interfaces with these indexes, and onto no others.
    pub fn attach(&mut self, interfaces: &BTreeSet<u32>) -> Result<(), ProbePathError> {
        self.links.retain(|index, _| interfaces.contains(index));
        for &index in interfaces {
            if self.links.contains_key(&index) {
                continue;
            }
            // An interface that has just gone is not needed either.
            let Ok(name) = if_indextoname(index) else { continue };
            let interface = name.to_string_lossy().into_owned();
            let failed = |cause| ProbePathError { interface: interface.clone(), cause };
            if !has_tcx() {
                remove_left_behind(&interface);
                // One that is there already is what we want.
                let _ = qdisc_add_clsact(&interface);
            }
            let [out, back] = PROBE_PROGRAMS;
            let out = self.link(out, &interface, TcAttachType::Egress).map_err(failed)?;
            let back = self.link(back, &interface, TcAttachType::Ingress).map_err(failed)?;
            self.links.insert(index, [out, back]);
        }
        Ok(())
    }

    fn link(
        &mut self,
        name: &'static str,
        interface: &str,
        side: TcAttachType,
    ) -> Result<SchedClassifierLink, String> {
        let program =
            program::<SchedClassifier>(&mut self.object, name).map_err(|error| error.to_string())?;
        let options = if has_tcx() {
            TcAttachOptions::TcxOrder(LinkOrder::default())
        } else {
            TcAttachOptions::Netlink(NlOptions::default())
        };
        let link = program.attach_with_options(interface, side, options);
        link.and_then(|link| program.take_link(link)).map_err(|error| match has_tcx() {
            true => chain(&error),
            false => {
                format!("{} (before Linux 6.6 the modules sch_ingress and cls_bpf are needed)", chain(&error))
            }
        })
    }
}

fn has_tcx() -> bool {
    KernelVersion::current().is_ok_and(|version| version >= TCX)
}

/// Removes the programs from an interface on which an agent was killed before it could do so; needed where there are no tcx links.
pub(super) fn remove_left_behind(interface: &str) {
    let [out, back] = PROBE_PROGRAMS;
    for (name, side) in [(out, TcAttachType::Egress), (back, TcAttachType::Ingress)] {
        // That there is none is the rule.
        let _ = qdisc_detach_program(interface, side, name);
    }
}

fn region(object: &Ebpf, access: Access) -> Result<Region<ProbeTarget>, LoadError> {
    let name = probe_map::TARGETS;
    let part = |cause: String| LoadError::Part { name, cause };
    let Some(Map::Array(map)) = object.map(name) else { return Err(part("not in the object".into())) };
    let entries = map.info().map_err(|error| part(chain(&error)))?.max_entries();
    Region::map(map.fd(), entries, access).map_err(|error| part(format!("cannot be mapped: {error}")))
}
