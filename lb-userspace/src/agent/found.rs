//! What an agent finds before it loads anything → what it will work with, or why it cannot.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use super::confirm::undo_unconfirmed;
use super::start::read_config;
use super::{AgentError, HANDOVER, Options};
use crate::core::config::Config;
use crate::core::events::Event;
use crate::io::datapath::{PinDir, Pinned};
use crate::io::history::History;
use crate::io::lock::FolderLock;
use crate::io::neighbours::{Interface, InterfaceError, Resolver};

/// What there is before anything is loaded.
pub(super) struct Found {
    pub(super) state_lock: Option<FolderLock>,
    pub(super) history: History,
    /// That a change was undone that nobody confirmed.
    pub(super) undone: Option<Event>,
    pub(super) text: String,
    pub(super) config: Config,
    pub(super) resolver: Resolver,
    /// Those of the configuration; not all of them need be there.
    pub(super) interfaces: Vec<Interface>,
}

/// Looks at what the agent will work with, once the pin directory is its own.
pub(super) async fn look_around(options: &Options, pins: &PinDir) -> Result<Found, AgentError> {
    let state_lock = lock_state_dir(&options.state_dir).await?;
    let mut history = History::open(&options.state_dir);
    // Only now is it sure that the agent which was to be told has ended.
    let undone = undo_unconfirmed(&options.config, &mut history)?;
    let (text, config) = read_config(options)?;
    let resolver = Resolver::new().await.map_err(|cause| AgentError::Io { what: "netlink", cause })?;
    let runs = !pins.linked_interfaces()?.is_empty();
    let (mut interfaces, mut missing) = (Vec::new(), None);
    for name in &config.agent.interfaces {
        let found = resolver.interface(name).await;
        interfaces.push(match found {
            // Customers are served on the others, where health is to be looked after.
            Err(error @ InterfaceError::NotFound { .. }) if runs => {
                missing = Some(error);
                Interface::absent(name)
            }
            found => found?,
        });
    }
    if let Some(error) = missing.filter(|_| !interfaces.iter().any(Interface::is_there)) {
        return Err(error.into());
    }
    Ok(Found { state_lock, history, undone, text, config, resolver, interfaces })
}

/// Removes a pin directory that nothing was loaded into; one that another agent left goes on.
pub(super) fn leave_no_folder(pins: &PinDir) {
    if matches!(pins.pinned(), Ok(Pinned::Nothing))
        && let Err(error) = pins.remove_all()
    {
        log::warn!("the pin directory is left behind: {error}");
    }
}

/// Takes the state directory for this agent; none if there cannot be one, as its users will say.
async fn lock_state_dir(folder: &Path) -> Result<Option<FolderLock>, AgentError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    match (made, FolderLock::take_within(folder, HANDOVER).await) {
        (Ok(()), Ok(None)) => Err(AgentError::StateDir(folder.to_owned())),
        (_, lock) => Ok(lock.ok().flatten()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_start_that_fails_leaves_no_empty_pin_directory_and_removes_nothing_else() {
        let root = std::env::temp_dir().join(format!("sluice-start-{}", std::process::id()));
        let pins = PinDir::new(&root);
        pins.create_maps().unwrap();
        leave_no_folder(&pins);
        assert!(!root.exists());
        pins.create_maps().unwrap();
        fs::write(pins.link("eth0"), "").unwrap();
        leave_no_folder(&pins);
        assert!(pins.link("eth0").exists(), "customers may be served by it");
        fs::remove_dir_all(&root).unwrap();
    }
}
