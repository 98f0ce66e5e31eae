//! An eBPF object and what is to be set in it → its maps made and its programs ready to be verified.
//!
//! aya's loader reads all types of the running kernel when it is made, 20 MiB that nothing of ours asks for. So there is one, made by
//! the first who needs it, which is the agent's start, and it forgets them. What was set for one object stays set for the next one, and
//! matters where that has a map or a global of the same name: these are set anew each time. That a global must exist cannot be said so.

use std::sync::{LazyLock, Mutex, PoisonError};

use aya::{Ebpf, EbpfError, EbpfLoader};

static LOADER: LazyLock<Mutex<EbpfLoader<'static>>> = LazyLock::new(|| {
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    Mutex::new(loader)
});

/// Loads an object, after `set` has said what is not as the object says.
pub(super) fn load(object: &[u8], set: impl FnOnce(&mut EbpfLoader<'static>)) -> Result<Ebpf, EbpfError> {
    let mut loader = LOADER.lock().unwrap_or_else(PoisonError::into_inner);
    set(&mut loader);
    loader.load(object)
}
