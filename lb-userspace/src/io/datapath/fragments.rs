//! The map `fragments`: which way the fragments of a datagram go, in the kernel through system calls, for tests in memory.

use std::cell::RefCell;
use std::collections::HashMap;

use aya::maps::{HashMap as BpfHashMap, Map, MapData, MapError};
use lb_common::abi::{FragmentRoute, TupleKey};
use lb_common::slice::Fragments;

/// In memory.
#[derive(Debug, Default)]
pub(super) struct MemoryFragments(RefCell<HashMap<TupleKey, FragmentRoute>>);

impl Fragments for MemoryFragments {
    fn fragment(&self, key: &TupleKey) -> Option<FragmentRoute> {
        self.0.borrow().get(key).copied()
    }

    fn set_fragment(&self, key: &TupleKey, route: &FragmentRoute) {
        self.0.borrow_mut().insert(*key, *route);
    }
}

/// In the kernel.
pub(super) struct KernelFragments(RefCell<BpfHashMap<MapData, TupleKey, FragmentRoute>>);

impl KernelFragments {
    /// Over the map.
    pub(super) fn new(fragments: MapData) -> Result<Self, MapError> {
        // Also the map that forgets what was least recently used is one to look things up in.
        Ok(Self(RefCell::new(BpfHashMap::try_from(Map::LruHashMap(fragments))?)))
    }
}

impl Fragments for KernelFragments {
    fn fragment(&self, key: &TupleKey) -> Option<FragmentRoute> {
        self.0.borrow().get(key, 0).ok()
    }

    fn set_fragment(&self, key: &TupleKey, route: &FragmentRoute) {
        // A way that is not known costs a fragment, which is counted.
        let _ = self.0.borrow_mut().insert(key, route, 0);
    }
}
