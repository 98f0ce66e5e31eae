//! The map `rings` → rings, one at a time: all of them together are more than the agent may take.

use std::io;

use aya::maps::{Array, Map, MapData, MapError};
use lb_common::abi::Ring;

use super::region::{Access, Large};

/// The rings, by slot.
pub(super) struct Rings {
    /// None if they are in plain memory.
    array: Option<Array<MapData, Ring>>,
    all: Large<Ring>,
}

impl Rings {
    /// `count` rings in plain memory.
    pub(super) fn heap(count: u32) -> Self {
        Self { array: None, all: Large::heap(count) }
    }

    /// Those of a map of so many.
    pub(super) fn kernel(map: MapData, count: u32) -> Result<Self, MapError> {
        let all = Large::new(map.fd(), count, Access::Read)?;
        Ok(Self { array: Some(Array::try_from(Map::Array(map))?), all })
    }

    /// How many there are.
    pub(super) fn count(&self) -> u32 {
        self.all.count()
    }

    /// The ring in a slot; `None` if there is no such slot.
    pub(super) fn read(&self, slot: u16) -> Result<Option<Box<Ring>>, MapError> {
        match (&self.array, self.all.at_hand()) {
            (Some(array), None) if u32::from(slot) < self.count() => {
                array.get(&slot.into(), 0).map(|ring| Some(Box::new(ring)))
            }
            (_, rings) => {
                Ok(rings.and_then(|rings| rings.get(usize::from(slot))).map(|ring| Box::new(*ring)))
            }
        }
    }

    /// Fills a slot that no packet sees.
    pub(super) fn write(&mut self, slot: u16, ring: &Ring) -> Result<(), MapError> {
        if let Some(array) = &mut self.array {
            return array.set(slot.into(), ring, 0);
        }
        if let Some(record) = self.all.on_heap().and_then(|rings| rings.get_mut(usize::from(slot))) {
            *record = *ring;
        }
        Ok(())
    }

    /// All of them, mapped until [`Rings::unmap`].
    pub(super) fn records(&self) -> io::Result<&[Ring]> {
        self.all.records()
    }

    /// Gives the mapping up.
    pub(super) fn unmap(&mut self) {
        self.all.unmap();
    }
}
