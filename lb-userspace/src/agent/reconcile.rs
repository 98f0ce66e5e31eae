//! What is wanted → a datapath that holds it, or one that holds a state on the way there, each of which is whole.

use super::state::ReconcileError;
use crate::core::image::Wanted;
use crate::core::plan::{Action, Plan, RingCache, plan};
use crate::io::datapath::{Datapath, DatapathError};

/// Plans the way from what is loaded to what is wanted, and goes it; how many actions that took.
pub(super) fn bring_about(
    datapath: &mut impl Datapath,
    wanted: &Wanted,
    rings: &mut RingCache,
    unsettled: &mut bool,
) -> Result<usize, ReconcileError> {
    let plan = plan(&datapath.tables().image(), wanted, rings)?;
    go(datapath, &plan, unsettled)?;
    Ok(plan.actions.len())
}

/// Goes a way that was planned from what is loaded. Where it is broken off, `unsettled` stays set, and the next time the rest of
/// the way, or the way back, is planned from there.
pub(super) fn go(
    datapath: &mut impl Datapath,
    plan: &Plan,
    unsettled: &mut bool,
) -> Result<(), DatapathError> {
    if *unsettled {
        // What was broken off may have released what packets under way still read.
        datapath.grace()?;
    }
    *unsettled = true;
    for action in &plan.actions {
        log::debug!("{}", summary(action));
        datapath.apply(action)?;
    }
    *unsettled = false;
    Ok(())
}

fn summary(action: &Action) -> String {
    match action {
        Action::WriteGlobals(_) => "write the settings for all services".to_owned(),
        Action::WriteBackend { id, backend, .. } => format!("write backend {id} ({})", backend.name),
        Action::WriteRing { slot, .. } => format!("write ring {slot}"),
        Action::WriteService { id, name, word, .. } => {
            format!("switch service {id} ({name}) to ring {:?}", word.ring)
        }
        Action::WriteVips { .. } => "switch the VIP table".to_owned(),
        Action::Grace => "wait for packets under way".to_owned(),
        Action::ClearBackend(id) => format!("free backend {id}"),
        Action::ClearService(id) => format!("free service {id}"),
        Action::Retire { backends, .. } => format!("end the accounts of backends {:?}", backends.keys()),
    }
}

#[cfg(test)]
mod tests;
