//! The VIP table that is loaded, and what is wanted → the actions that switch to another one.

use std::collections::{BTreeSet, HashMap, HashSet};

use lb_common::abi::{Forwarding, SNAT_MARK, VipTable};
use lb_common::net::{Address, Protocol};

use super::{Action, Ids, PlanError};
use crate::core::image::{Image, VipKey, VipTarget, Wanted, source_mark};
use crate::core::vips;

/// The VIP table in force, at some point of a plan.
pub(super) struct Vips {
    entries: Vec<(VipKey, VipTarget)>,
    /// Where the half in force begins.
    first_bucket: u32,
    /// Buckets of a half.
    buckets: u32,
}

impl Vips {
    /// That which is loaded.
    pub(super) fn loaded(image: &Image) -> Self {
        Self {
            entries: image.vips.clone(),
            first_bucket: image.vip_table.first_bucket,
            buckets: image.capacity.vip_buckets,
        }
    }

    /// Lets answers in to addresses that nothing is sent from yet, before anything is: this host knows nothing of those connections, and
    /// would reset them.
    pub(super) fn mark_sources(&mut self, sources: &BTreeSet<Address>, actions: &mut Vec<Action>) {
        if !self.entries.iter().any(|(_, target)| target.flags.nat()) {
            return;
        }
        let held: HashSet<&(VipKey, VipTarget)> = self.entries.iter().collect();
        let new: Vec<_> = sources.iter().map(source_mark).filter(|mark| !held.contains(mark)).collect();
        // Where there is no room for more, they come with all the rest.
        if !new.is_empty() && self.switch([self.entries.as_slice(), &new].concat(), actions) {
            actions.push(Action::Grace);
        }
    }

    /// Switches to the wanted one, if it is another.
    pub(super) fn switch_to_wanted(
        &mut self,
        wanted: &Wanted,
        sources: &BTreeSet<Address>,
        ids: &Ids,
        actions: &mut Vec<Action>,
    ) -> Result<(), PlanError> {
        let named: HashMap<&str, u32> = ids.of(wanted).map(|of| (of.service.name.as_str(), of.id)).collect();
        let mut needed = 0;
        // Where there is no room for addresses of before, they go: that is better than to refuse what is wanted.
        for sources in [sources, &wanted.snat] {
            let entries = wanted.vip_entries(sources, |name| named.get(name).copied());
            needed = entries.len();
            if self.holds(&entries) || self.switch(entries, actions) {
                return Ok(());
            }
        }
        Err(PlanError::Full { what: "VIPs and VIP addresses", needed, gone: 0, capacity: self.buckets })
    }

    fn holds(&self, entries: &[(VipKey, VipTarget)]) -> bool {
        let held: HashSet<&(VipKey, VipTarget)> = self.entries.iter().collect();
        entries.len() == held.len() && entries.iter().all(|entry| held.contains(entry))
    }

    /// Switches to a table of these entries; says whether they fit.
    fn switch(&mut self, entries: Vec<(VipKey, VipTarget)>, actions: &mut Vec<Action>) -> bool {
        let Some(buckets) = vips::build(&entries, self.buckets) else { return false };
        self.first_bucket = if self.first_bucket > 0 { 0 } else { self.buckets };
        let is_published = |vip: &VipKey| [Protocol::TCP, Protocol::UDP].contains(&vip.protocol);
        let marks = || entries.iter().filter(|(key, _)| key.protocol == SNAT_MARK);
        let table = VipTable {
            first_bucket: self.first_bucket,
            any_port: entries.iter().any(|(vip, _)| vip.port == 0 && is_published(vip)),
            nat: marks().next().is_some(),
            never_snat: !marks().fold(0, |kinds, (mark, _)| kinds | VipTable::kind(mark.address)),
        };
        actions.push(Action::WriteVips { table, buckets });
        self.entries = entries;
        true
    }
}

/// The addresses that answers are looked up for: those that new flows are sent from, and those that flows of before may still be.
pub(super) fn sources(loaded: &Image, wanted: &Wanted) -> BTreeSet<Address> {
    let translated = wanted.services.iter().filter(|service| service.forwarding == Forwarding::Nat);
    let backends = || translated.clone().flat_map(|service| &service.backends);
    let [v4, v6] = [true, false].map(|v4| backends().any(|backend| backend.address.is_v4() == v4));
    let translates = |source: &Address| if source.is_v4() { v4 } else { v6 };
    let before = loaded.sources().filter(|source| translates(source) && !wanted.unused.contains(source));
    before.chain(wanted.snat.iter().copied()).collect()
}
