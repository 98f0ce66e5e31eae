//! The maps as memory → an [`Image`] of what is loaded: of all of it, or of some services.

use std::collections::BTreeMap;
use std::sync::Arc;

use lb_common::abi::{Name, Ring, VipTable};

use super::tables::TableSet;
use crate::core::image::{Beside, Image, LoadedBackend, LoadedService};
use crate::core::ring::Known;
use crate::core::vips;

impl TableSet {
    /// Reads back what is loaded.
    pub fn image(&self) -> Image {
        Image { services: self.loaded_services(), ..self.names() }
    }

    /// Reads back what is loaded, but for what is known of the rings: those that are not known are read for that.
    pub fn names(&self) -> Image {
        let vip_table =
            self.control().map(|control| VipTable::from_word(control.vip_table.load())).unwrap_or_default();
        let without_ring =
            |(id, name): (u32, &Name)| (id, LoadedService { name: name.as_str().to_owned(), ring: None });
        Image {
            services: self.named_services().map(without_ring).collect(),
            backends: self.loaded_backends(),
            vips: vips::read(self.vips.records(), vip_table),
            vip_table,
            globals: self.globals(),
            capacity: self.capacity(),
            beside: Beside::default(),
        }
    }

    /// Reads back what is loaded of some services, by their names, without their VIPs; of all others, no more than what they
    /// occupy.
    pub fn image_of(&self, names: &[&str]) -> Image {
        let (mut services, mut beside) = (BTreeMap::new(), Beside::default());
        for (id, name) in self.named_services() {
            let ring = self.services.records().get(id as usize).and_then(|service| service.load().ring);
            if names.contains(&name.as_str()) {
                let ring = ring.and_then(|slot| Some((slot, self.known_ring(slot)?)));
                services.insert(id, LoadedService { name: name.as_str().to_owned(), ring });
            } else {
                beside.services.push(id);
                beside.rings.extend(ring);
            }
        }
        let mut backends = BTreeMap::new();
        for (id, service) in self.backend_ids() {
            match services.contains_key(&service) {
                true => backends.extend(self.loaded_backend(id).map(|backend| (id, backend))),
                false => beside.backends.push(id),
            }
        }
        let (globals, capacity) = (self.globals(), self.capacity());
        Image { services, backends, globals, capacity, beside, ..Image::default() }
    }

    /// The names of services by their ids.
    pub fn service_names(&self) -> BTreeMap<u32, String> {
        self.named_services().map(|(id, name)| (id, name.as_str().to_owned())).collect()
    }

    fn named_services(&self) -> impl Iterator<Item = (u32, &Name)> {
        self.service_ids().filter_map(|id| Some((id, self.service_names.records().get(id as usize)?)))
    }

    fn loaded_services(&self) -> BTreeMap<u32, LoadedService> {
        let records = self.services.records().iter().zip(self.service_names.records());
        (0..)
            .zip(records)
            .map(|(id, (service, name))| (id, service.load(), name))
            .filter(|(_, word, _)| word.used)
            .map(|(id, word, name)| {
                let ring = word.ring.and_then(|slot| Some((slot, self.known_ring(slot)?)));
                (id, LoadedService { name: name.as_str().to_owned(), ring })
            })
            .collect()
    }

    /// The ring in a slot.
    pub fn ring(&self, slot: u16) -> Option<Arc<Ring>> {
        self.rings.read(slot).ok().flatten().map(Arc::from)
    }

    /// What is known of the ring in a slot. Only this process writes rings, so one that is known need not be read again.
    fn known_ring(&self, slot: u16) -> Option<Arc<Known>> {
        if let Some(known) = self.known_rings.borrow().get(&slot) {
            return Some(Arc::clone(known));
        }
        let known = Arc::new(Known::of(&*self.ring(slot)?));
        self.known_rings.borrow_mut().insert(slot, Arc::clone(&known));
        Some(known)
    }

    fn loaded_backends(&self) -> BTreeMap<u16, LoadedBackend> {
        self.backend_ids().filter_map(|(id, _)| Some((id, self.loaded_backend(id)?))).collect()
    }

    fn loaded_backend(&self, id: u16) -> Option<LoadedBackend> {
        let backend = self.backends.records().get(usize::from(id))?;
        let name = self.backend_names.records().get(usize::from(id))?;
        let word = backend.load();
        let flags = word.flags();
        // One that its word says too little of, as older releases wrote it, is to be written anew.
        let hop =
            Some(*backend.hop(word)).filter(|hop| flags.resolved && flags.plain == hop.takes_untagged());
        Some(LoadedBackend {
            name: name.as_str().to_owned(),
            address: backend.address,
            service: flags.service.into(),
            enabled: flags.enabled,
            healthy: flags.healthy,
            probed_healthy: flags.probed_healthy,
            takes_new: flags.takes_new,
            forwarding: flags.forwarding,
            port: flags.port.get(),
            hop,
        })
    }
}
