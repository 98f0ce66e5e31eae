//! The maps as memory: changed by [`Action`]s, swept for idle flows.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use lb_common::abi::{
    Backend, BackendFlags, BackendWord, Control, FlowBucket, Latency, MAX_INTERFACES, Moving, Name,
    OPENING_SLOTS, SENDER_SLOTS, Service, ServiceWord, Settings, TRANSLATIONS_A_BUCKET, TranslationBucket,
    VipBucket, VipTable, Word, interface_slot, mac_word,
};
use lb_common::flow::{Entry, State, Tick, UDP_IDLE_TICKS};
use lb_common::net::{Address, Be16};
use lb_common::slice::{Fragments, TableSlices};

use super::fragments::MemoryFragments;
use super::region::{Large, Region};
use super::rings::Rings;
use super::{DatapathError, carry};
use crate::core::explain::Ingress;
use crate::core::image::{Capacity, Globals, LoadedBackend};
use crate::core::ring::{Known, Planned};

/// The memory of all mapped arrays.
pub struct TableSet {
    pub(super) control: Region<Control>,
    pub(super) vips: Region<VipBucket>,
    pub(super) services: Region<Service>,
    pub(super) backends: Region<Backend>,
    pub(super) rings: Rings,
    pub(super) flows: Large<FlowBucket>,
    pub(super) openings: Region<Word>,
    pub(super) service_latency: Region<Latency>,
    pub(super) backend_latency: Region<Latency>,
    pub(super) service_names: Region<Name>,
    pub(super) backend_names: Region<Name>,
    pub(super) translations: Large<TranslationBucket>,
    /// The one that is no array.
    pub(super) fragments: Box<dyn Fragments + Send>,
    pub(super) senders: Region<Word>,
    /// What is known of rings read or written before, by slot.
    pub(super) known_rings: RefCell<BTreeMap<u16, Arc<Known>>>,
    /// Backends whose next hop was replaced since the last grace period: packets may still read the one before.
    pub(super) fresh_hops: HashSet<u16>,
    /// Whether flows may have entries in buckets beside their own: see [`super::carry`].
    pub(super) copies: bool,
}

/// A next hop must not be replaced twice without a grace period in between.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NeedsGrace;

impl TableSet {
    /// Empty tables on the heap.
    pub fn heap(capacity: Capacity) -> Self {
        Self {
            control: Region::heap(1),
            vips: Region::heap(capacity.vip_buckets * 2),
            services: Region::heap(capacity.services),
            backends: Region::heap(capacity.backends + 1),
            rings: Rings::heap(capacity.rings),
            flows: Large::heap(capacity.flow_buckets),
            openings: Region::heap(OPENING_SLOTS),
            service_latency: Region::heap(capacity.services + 1),
            backend_latency: Region::heap(capacity.backends + 1),
            service_names: Region::heap(capacity.services),
            backend_names: Region::heap(capacity.backends + 1),
            translations: Large::heap(capacity.translation_buckets()),
            fragments: Box::new(MemoryFragments::default()),
            senders: Region::heap(SENDER_SLOTS),
            known_rings: RefCell::default(),
            fresh_hops: HashSet::new(),
            copies: false,
        }
    }

    /// The tables for the datapath's own code. This maps all of them: see [`TableSet::unmap`].
    pub fn slices(&self) -> Option<TableSlices<'_>> {
        Some(TableSlices {
            control: self.control()?,
            vips: self.vips.records(),
            services: self.services.records(),
            backends: self.backends.records(),
            rings: self.rings.records().ok()?,
            flows: self.flows.records().ok()?,
            openings: self.openings.records(),
            latency: self.backend_latency.records(),
            translations: self.translations.records().ok()?,
            fragments: &*self.fragments,
            senders: self.senders.records(),
        })
    }

    /// Gives up mappings that are only needed at times: of the rings and the tables of flows and translations, which are most of what
    /// there is.
    pub fn unmap(&mut self) {
        self.rings.unmap();
        self.flows.unmap();
        self.translations.unmap();
    }

    /// The flow table, mapped until [`TableSet::unmap`]; empty if it cannot be mapped, which is told.
    pub(super) fn flow_buckets(&self) -> &[FlowBucket] {
        self.flows.records().unwrap_or_else(|error| {
            log::error!("the flow table cannot be mapped: {error}");
            &[]
        })
    }

    /// Has `work` look at the flow table, part by part. Copies of a flow lie in neighbouring buckets: while there are some, the table
    /// is one part.
    fn each_flow_buckets(&self, mut work: impl FnMut(&[FlowBucket])) {
        if self.copies {
            work(self.flow_buckets());
        } else if let Err(error) = self.flows.each_part(work) {
            log::error!("the flow table cannot be mapped: {error}");
        }
    }

    /// The record `control`.
    pub fn control(&self) -> Option<&Control> {
        self.control.records().first()
    }

    /// The record `control`, for what is set before packets are let in.
    pub fn control_mut(&mut self) -> Option<&mut Control> {
        self.control.records_mut().first_mut()
    }

    /// Says how far a change of sizes has come. Packets under way may still act on what was said before.
    pub(super) fn set_moving(&self, moving: Moving) {
        if let Some(control) = self.control() {
            control.moving.store(moving as u64);
        }
    }

    /// How much fits.
    pub fn capacity(&self) -> Capacity {
        let count = |records: usize| u32::try_from(records).unwrap_or(u32::MAX);
        Capacity {
            services: count(self.services.records().len()),
            backends: count(self.backends.records().len()).saturating_sub(1),
            rings: self.rings.count(),
            vip_buckets: count(self.vips.records().len() / 2),
            flow_buckets: self.flows.count(),
            translations: self.translations.count().saturating_mul(TRANSLATIONS_A_BUCKET),
        }
    }

    /// Writes a backend: a changed next hop goes to the place not in force, and the word switches to it.
    pub(super) fn write_backend(&mut self, id: u16, backend: &LoadedBackend) -> Result<(), NeedsGrace> {
        let at = usize::from(id);
        let (Some(record), Some(name)) =
            (self.backends.records_mut().get_mut(at), self.backend_names.records_mut().get_mut(at))
        else {
            return Ok(());
        };
        let before = record.load();
        let mut second_hop = before.flags().second_hop;
        if let Some(hop) = backend.hop
            && !(before.is_resolved() && *record.hop(before) == hop)
        {
            if !self.fresh_hops.insert(id) {
                return Err(NeedsGrace);
            }
            second_hop = !second_hop;
            let [first, second] = &mut record.hops;
            *(if second_hop { second } else { first }) = hop;
        }
        *name = Name::new(&backend.name);
        if record.address != backend.address {
            record.noted.store(0);
        }
        record.address = backend.address;
        let word = BackendWord::new(BackendFlags {
            used: true,
            enabled: backend.enabled,
            healthy: backend.healthy,
            probed_healthy: backend.probed_healthy,
            takes_new: backend.takes_new,
            resolved: backend.hop.is_some(),
            plain: backend.hop.is_some_and(|hop| hop.takes_untagged()),
            second_hop,
            forwarding: backend.forwarding,
            service: u16::try_from(backend.service).unwrap_or(u16::MAX),
            port: Be16::new(backend.port),
        });
        record.word.store(word.word());
        Ok(())
    }

    /// Frees a backend's id; where its hops lie is remembered for the next grace period's sake.
    pub(super) fn clear_backend(&mut self, id: u16) {
        if let Some(record) = self.backends.records().get(usize::from(id)) {
            let second_hop = record.load().flags().second_hop;
            let free = BackendWord::new(BackendFlags { second_hop, ..BackendFlags::default() });
            record.word.store(free.word());
        }
    }

    pub(super) fn write_ring(&mut self, slot: u16, planned: &Planned) -> Result<(), DatapathError> {
        let failed = |cause: String| DatapathError { action: "writing a ring", cause };
        let ring = planned.ring().ok_or_else(|| failed("it has no backends".to_owned()))?;
        self.known_rings.get_mut().remove(&slot);
        self.rings.write(slot, &ring).map_err(|error| failed(error.to_string()))?;
        self.known_rings.get_mut().insert(slot, Arc::new(planned.known(&ring)));
        Ok(())
    }

    pub(super) fn write_service(&mut self, id: u32, name: &str, word: ServiceWord) {
        let at = id as usize;
        if let (Some(record), Some(named)) =
            (self.services.records().get(at), self.service_names.records_mut().get_mut(at))
        {
            *named = Name::new(name);
            record.word.store(word.to_word());
        }
    }

    pub(super) fn write_vips(&mut self, table: VipTable, buckets: &[VipBucket]) {
        let (first, second) = {
            let records = self.vips.records_mut();
            let middle = records.len() / 2;
            records.split_at_mut(middle)
        };
        let half = if table.first_bucket > 0 { second } else { first };
        for (record, bucket) in half.iter_mut().zip(buckets) {
            *record = *bucket;
        }
        if let Some(control) = self.control() {
            control.vip_table.store(table.to_word());
        }
    }

    /// Ids of the services.
    pub fn service_ids(&self) -> impl Iterator<Item = u32> {
        (0..).zip(self.services.records()).filter(|(_, service)| service.load().used).map(|(id, _)| id)
    }

    /// Ids of the backends and of their services.
    pub fn backend_ids(&self) -> impl Iterator<Item = (u16, u32)> {
        let words = (0..).zip(self.backends.records()).map(|(id, backend)| (id, backend.load().flags()));
        words.filter(|(_, word)| word.used).map(|(id, word)| (id, word.service.into()))
    }

    /// Ids of the backends and of their services, and their names.
    pub fn named_backends(&self) -> impl Iterator<Item = (u16, u32, &str)> {
        let names = self.backend_names.records();
        self.backend_ids()
            .filter_map(|(id, service)| Some((id, service, names.get(usize::from(id))?.as_str())))
    }

    /// Settings for all services.
    pub(super) fn globals(&self) -> Globals {
        let Some(control) = self.control() else { return Globals::default() };
        let [v4, v6] = control.snat_counts.map(|count| count as usize);
        let list = |sources: &[Address], count| sources.iter().take(count).copied().collect();
        Globals {
            reply_oversized: control.settings.reply_oversized(),
            timed_openings: control.timed_openings,
            sources: control.sources,
            snat: [list(&control.snat_v4, v4), list(&control.snat_v6, v6)],
        }
    }

    /// Replaces the settings for all services. In between a new flow may meet the old addresses or, for an instant, none.
    pub(super) fn write_globals(&mut self, globals: &Globals) {
        let Some(control) = self.control_mut() else { return };
        control.settings = Settings::new(globals.reply_oversized);
        control.timed_openings = globals.timed_openings;
        control.sources = globals.sources;
        let lists = [&mut control.snat_v4, &mut control.snat_v6];
        for ((list, wanted), count) in lists.into_iter().zip(&globals.snat).zip(&mut control.snat_counts) {
            if list.iter().take(*count as usize).eq(wanted) {
                continue;
            }
            *count = 0;
            for (place, source) in list.iter_mut().zip(wanted) {
                *place = *source;
            }
            *count = u32::try_from(wanted.len()).unwrap_or(0);
        }
    }

    /// Names the attached interfaces: kernel index and own MAC address.
    pub fn set_interfaces(&self, interfaces: &[(u32, [u8; 6])]) {
        let Some(control) = self.control() else { return };
        let mut wanted = [(0, [0; 6]); MAX_INTERFACES];
        for &(index, mac) in interfaces {
            let free = (0..MAX_INTERFACES)
                .map(|probe| interface_slot(index, probe))
                .find(|&slot| wanted.get(slot).is_some_and(|(taken, _)| *taken == 0));
            if let Some(place) = free.and_then(|slot| wanted.get_mut(slot)) {
                *place = (index, mac);
            }
        }
        for (record, (index, mac)) in control.interfaces.iter().zip(wanted) {
            // An index that no interface has, while the address changes: 0 would end the search.
            if record.index.load() != u64::from(index) {
                record.index.store(u64::MAX);
            }
            record.mac.store(mac_word(mac));
            record.index.store(index.into());
        }
    }

    /// The attached interfaces, by index.
    pub fn interfaces(&self) -> Vec<Ingress> {
        let entries = self.control().map(|control| control.interfaces.as_slice()).unwrap_or_default();
        let mut found: Vec<Ingress> = entries
            .iter()
            .map(|entry| (entry.index.load(), entry.mac.load().to_le_bytes()))
            .filter_map(|(index, [a, b, c, d, e, f, ..])| {
                let index = u32::try_from(index).ok().filter(|&index| index != 0)?;
                Some(Ingress { index, mac: [a, b, c, d, e, f] })
            })
            .collect();
        found.sort_by_key(|ingress| ingress.index);
        found
    }

    /// Removes all flows of these backends.
    pub fn sweep_backends(&self, gone: &BTreeMap<u16, u32>) {
        self.sweep(|entry| gone.contains_key(&entry.backend()));
        self.sweep_translations_of(|id| gone.contains_key(&id));
    }

    /// Removes flows of ids that no backend has: an agent may have ended before it could.
    pub fn sweep_orphans(&self, backends: &BTreeMap<u16, LoadedBackend>) {
        self.sweep(|entry| !backends.contains_key(&entry.backend()));
        self.sweep_translations_of(|id| !backends.contains_key(&id));
    }

    /// Removes idle flows; `udp` are the backends of UDP services, whose flows idle out sooner. What holds a client at its backend is only
    /// written as flows begin, and does not: one of them may still be in use.
    pub fn sweep_idle(&self, now: Tick, udp: &BTreeSet<u16>) {
        self.sweep(|entry| {
            let sooner = !entry.is_client() && udp.contains(&entry.backend());
            entry.is_expired(now) || sooner && entry.age(now) > UDP_IDLE_TICKS
        });
        if self.copies {
            carry::remove_copies(self.flow_buckets(), now);
        }
    }

    fn sweep(&self, goes: impl Fn(Entry) -> bool) {
        self.each_flow_buckets(|buckets| {
            for way in buckets.iter().flat_map(|bucket| &bucket.ways) {
                let word = way.load();
                if Entry::from_word(word).is_some_and(&goes) {
                    // If a packet changed the entry meanwhile, it is not idle.
                    way.replace(word, 0);
                }
            }
        });
    }

    /// Live flows by backend id: those established and not idle for too long. One that was only opened may never have
    /// been answered.
    pub fn live_flows(&self, now: Tick) -> BTreeMap<u16, u64> {
        let mut counts = vec![0_u64; self.backends.records().len()];
        let live = |entry: &Entry| {
            entry.state() == State::Established && !entry.is_expired(now) && !entry.is_client()
        };
        self.each_flow_buckets(|buckets| {
            for entry in carry::flows(buckets).filter(live) {
                if let Some(count) = counts.get_mut(usize::from(entry.backend())) {
                    *count += 1;
                }
            }
        });
        (0..).zip(counts).filter(|(_, count)| *count > 0).collect()
    }

    /// Entries of the flow table that are taken.
    pub fn flow_entries(&self) -> u64 {
        let mut entries = 0;
        self.each_flow_buckets(|buckets| {
            let words = buckets.iter().flat_map(|bucket| &bucket.ways);
            entries += words.filter(|way| Entry::from_word(way.load()).is_some()).count();
        });
        entries as u64
    }
}

#[cfg(test)]
mod tests {
    use lb_common::abi::NextHop;
    use lb_common::flow::{ESTABLISHED_IDLE_TICKS, client_signature, flow_signature};

    use super::*;

    #[test]
    fn what_an_older_release_wrote_of_a_backend_is_written_anew() {
        let mut tables = TableSet::heap(Capacity { backends: 1, ..Capacity::default() });
        let hop = Some(NextHop::new([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], 0));
        let backend = LoadedBackend { hop, ..LoadedBackend::well("web1", 0) };
        let loaded = |tables: &TableSet| tables.image().backends.remove(&1).unwrap();
        assert!(tables.write_backend(1, &backend).is_ok());
        assert_eq!(loaded(&tables), backend);
        let record = &tables.backends.records()[1];
        let older = BackendFlags { plain: false, ..record.load().flags() };
        record.word.store(BackendWord::new(older).word());
        assert_eq!(loaded(&tables).hop, None, "so there is something to be done");
        assert!(tables.write_backend(1, &backend).is_ok());
        assert_eq!(loaded(&tables), backend);
    }

    #[test]
    fn flows_idle_out_by_what_they_are() {
        const NOW: Tick = Tick(1 << 20);
        let tables = TableSet::heap(Capacity { flow_buckets: 1, backends: 2, ..Capacity::default() });
        let ways = [
            (flow_signature(4), 1, UDP_IDLE_TICKS),
            (flow_signature(8), 1, UDP_IDLE_TICKS + 1),
            (flow_signature(12), 2, UDP_IDLE_TICKS + 1),
            (flow_signature(16), 2, ESTABLISHED_IDLE_TICKS + 1),
            (client_signature(20), 1, ESTABLISHED_IDLE_TICKS),
            (client_signature(24), 1, ESTABLISHED_IDLE_TICKS + 1),
        ];
        for (place, (signature, backend, idle)) in tables.flow_buckets()[0].ways.iter().zip(ways) {
            place.store(Entry::new(signature, backend, State::Established, Tick(NOW.0 - idle)).word());
        }
        tables.sweep_idle(NOW, &BTreeSet::from([1]));
        let left: Vec<_> =
            ways.map(|(signature, ..)| tables.flow_buckets()[0].find(signature).is_some()).into();
        assert_eq!(left, [true, false, true, false, true, false]);
    }
}
