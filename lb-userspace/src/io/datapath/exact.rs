//! The maps that are no arrays, translations and the ways of fragments: in the kernel through system calls, for tests in memory.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use aya::maps::{HashMap as BpfHashMap, Map, MapData, MapError};
use lb_common::abi::{FragmentRoute, TRANSLATION_WORDS, Translation, TranslationState, TupleKey};
use lb_common::flow::Tick;
use lb_common::net::Protocol;
use lb_common::slice::Exact;

/// A translation as its words.
pub type Words = [u64; TRANSLATION_WORDS];

/// Ticks after which a translation goes that no answer came for, or whose connection was reset.
const OPENING_TICKS: u32 = 60;
/// Ticks after which one goes whose connection was closed: Linux' TIME_WAIT.
const CLOSED_TICKS: u32 = 60;
/// Ticks after which one goes whose connection is established: above the two hours of TCP's keep-alive.
const ESTABLISHED_TICKS: u32 = 9_000;
/// Ticks after which one of UDP goes: RFC 4787 asks for at least five minutes.
const UDP_TICKS: u32 = 300;

/// The maps, with what the agent needs beyond the datapath.
pub trait ExactMaps: Exact + Send {
    /// All translations.
    fn translations(&self) -> io::Result<Vec<(TupleKey, Words)>>;
}

/// In memory.
#[derive(Debug, Default)]
pub struct MemoryExact {
    capacity: usize,
    translations: RefCell<HashMap<TupleKey, Words>>,
    fragments: RefCell<HashMap<TupleKey, FragmentRoute>>,
}

impl MemoryExact {
    /// Empty, with room for so many translations.
    pub fn new(translations: u32) -> Self {
        Self { capacity: translations as usize, ..Self::default() }
    }
}

impl Exact for MemoryExact {
    fn translation(&self, key: &TupleKey) -> Option<Words> {
        self.translations.borrow().get(key).copied()
    }

    fn set_translation(&self, key: &TupleKey, words: Option<Words>) -> bool {
        let mut translations = self.translations.borrow_mut();
        match words {
            None => {
                translations.remove(key);
            }
            Some(_) if translations.len() >= self.capacity && !translations.contains_key(key) => {
                return false;
            }
            Some(words) => {
                translations.insert(*key, words);
            }
        }
        true
    }

    fn fragment(&self, key: &TupleKey) -> Option<FragmentRoute> {
        self.fragments.borrow().get(key).copied()
    }

    fn set_fragment(&self, key: &TupleKey, route: &FragmentRoute) {
        self.fragments.borrow_mut().insert(*key, *route);
    }
}

impl ExactMaps for MemoryExact {
    fn translations(&self) -> io::Result<Vec<(TupleKey, Words)>> {
        Ok(self.translations.borrow().iter().map(|(key, words)| (*key, *words)).collect())
    }
}

/// In the kernel.
pub struct KernelExact {
    translations: RefCell<BpfHashMap<MapData, TupleKey, Words>>,
    fragments: RefCell<BpfHashMap<MapData, TupleKey, FragmentRoute>>,
    /// The map `translations`, to be read in batches.
    descriptor: OwnedFd,
}

impl KernelExact {
    /// Over the two maps.
    pub fn new(translations: MapData, fragments: MapData) -> Result<Self, MapError> {
        let descriptor = translations.fd().as_fd().try_clone_to_owned()?;
        // Also the map that forgets what was least recently used is one to look things up in.
        let translations = BpfHashMap::try_from(Map::HashMap(translations))?;
        let fragments = BpfHashMap::try_from(Map::LruHashMap(fragments))?;
        Ok(Self { translations: RefCell::new(translations), fragments: RefCell::new(fragments), descriptor })
    }
}

impl Exact for KernelExact {
    fn translation(&self, key: &TupleKey) -> Option<Words> {
        self.translations.borrow().get(key, 0).ok()
    }

    fn set_translation(&self, key: &TupleKey, words: Option<Words>) -> bool {
        let mut translations = self.translations.borrow_mut();
        match words {
            None => translations.remove(key).is_ok(),
            Some(words) => translations.insert(key, words, 0).is_ok(),
        }
    }

    fn fragment(&self, key: &TupleKey) -> Option<FragmentRoute> {
        self.fragments.borrow().get(key, 0).ok()
    }

    fn set_fragment(&self, key: &TupleKey, route: &FragmentRoute) {
        // A way that is not known costs a fragment, which is counted.
        let _ = self.fragments.borrow_mut().insert(key, route, 0);
    }
}

impl ExactMaps for KernelExact {
    fn translations(&self) -> io::Result<Vec<(TupleKey, Words)>> {
        lookup_all(self.descriptor.as_fd())
    }
}

/// Entries read with one system call.
const BATCH: usize = 4_096;
/// `BPF_MAP_LOOKUP_BATCH` (`include/uapi/linux/bpf.h`).
const LOOKUP_BATCH: libc::c_int = 24;

/// The attributes of `BPF_MAP_LOOKUP_BATCH`.
#[derive(Debug, Default)]
#[repr(C)]
struct BatchAttributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Reads a whole map: some thousand entries at a time, where one by one would take two system calls each.
fn lookup_all(map: BorrowedFd<'_>) -> io::Result<Vec<(TupleKey, Words)>> {
    let mut all = Vec::new();
    let (mut keys, mut values) = (vec![TupleKey::default(); BATCH], vec![[0_u64; TRANSLATION_WORDS]; BATCH]);
    let (mut position, mut next) = (0_u32, 0_u32);
    let mut first = true;
    loop {
        let mut attributes = BatchAttributes {
            in_batch: if first { 0 } else { (&raw mut position) as u64 },
            out_batch: (&raw mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: BATCH as u32,
            map: u32::try_from(map.as_raw_fd()).unwrap_or(u32::MAX),
            ..BatchAttributes::default()
        };
        // SAFETY: all pointers are to live memory, of the size that the map's keys and values, of which `count` are asked
        // for, and its position take.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, LOOKUP_BATCH, &raw mut attributes, size_of::<BatchAttributes>())
        };
        let error = (result != 0).then(io::Error::last_os_error);
        // ENOENT marks the end, and what was read before it counts.
        let end = error.as_ref().is_some_and(|error| error.raw_os_error() == Some(libc::ENOENT));
        if let Some(error) = error
            && !end
        {
            return Err(error);
        }
        all.extend(keys.iter().copied().zip(values.iter().copied()).take(attributes.count as usize));
        if end {
            return Ok(all);
        }
        (position, first) = (next, false);
    }
}

/// The translations that are to go: both directions of connections that are idle for too long or closed.
pub fn expired(all: &[(TupleKey, Words)], now: Tick) -> Vec<TupleKey> {
    let all: HashMap<TupleKey, Translation> =
        all.iter().map(|(key, words)| (*key, Translation::from_words(*words))).collect();
    let mut keys = Vec::new();
    for (key, translation) in &all {
        let protocol = Protocol(key.protocol as u8);
        let reverse = all.get(&translation.reverse_key(protocol));
        let own = TranslationState::from_word(translation.state.load());
        let other = reverse.map(|reverse| TranslationState::from_word(reverse.state.load()));
        // One that stands alone was just made, or left over.
        if is_over(protocol, translation.reply != 0, own, other, now) {
            keys.push(*key);
        }
    }
    keys
}

fn is_over(
    protocol: Protocol,
    reply: bool,
    own: TranslationState,
    other: Option<TranslationState>,
    now: Tick,
) -> bool {
    let age = |state: TranslationState| now.0.wrapping_sub(state.tick);
    // The direction that was used last counts for both.
    let idle = other.map_or(age(own), |other| age(other).min(age(own)));
    let (reset, closing) = match other {
        Some(other) => (own.reset || other.reset, own.closing && other.closing),
        None => (own.reset, own.closing),
    };
    let answers = if reply { Some(own) } else { other };
    let answered = answers.is_some_and(|state| state.established);
    let limit = match protocol {
        _ if other.is_none() || !answered || reset => OPENING_TICKS,
        Protocol::TCP if closing => CLOSED_TICKS,
        Protocol::TCP => ESTABLISHED_TICKS,
        _ => UDP_TICKS,
    };
    idle > limit
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Tick = Tick(100_000);

    fn state(age: u32, established: bool, closing: bool, reset: bool) -> TranslationState {
        TranslationState { tick: NOW.0 - age, established, closing, reset, fresh: false }
    }

    #[test]
    fn translations_end_by_how_far_their_connection_has_come() {
        let over = |protocol, age, closing, answered| {
            let own = state(age, true, closing, false);
            is_over(protocol, false, own, Some(state(age, answered, closing, false)), NOW)
        };
        assert!(!over(Protocol::TCP, 9_000, false, true), "idle for less than the keep-alive");
        assert!(over(Protocol::TCP, 9_001, false, true));
        assert!(!over(Protocol::TCP, 60, true, true), "closed just now");
        assert!(over(Protocol::TCP, 61, true, true));
        assert!(over(Protocol::TCP, 61, false, false), "never answered");
        assert!(!over(Protocol::UDP, 300, false, true));
        assert!(over(Protocol::UDP, 301, false, true));
        // What one side still uses is not idle, whatever the other does.
        let idle = state(10_000, true, false, false);
        assert!(!is_over(Protocol::TCP, false, idle, Some(state(5, true, false, false)), NOW));
        // One side's FIN alone does not end it, a RST does.
        let half = Some(state(100, true, false, false));
        assert!(!is_over(Protocol::TCP, false, state(100, true, true, false), half, NOW));
        assert!(is_over(Protocol::TCP, false, state(100, true, false, true), half, NOW));
        assert!(is_over(Protocol::TCP, true, state(61, true, false, false), None, NOW), "left over");
    }
}
