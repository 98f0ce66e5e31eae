//! What is wanted → a datapath that holds it, or one that holds a state on the way there, each of which is whole.

use std::time::Instant;

use super::state::ReconcileError;
use crate::core::image::Wanted;
use crate::core::plan::{Action, Plan, RingCache, plan, plan_some};
use crate::io::datapath::{Datapath, DatapathError};

/// Plans the way from what is loaded to what is wanted, and goes it; how many actions that took, and when packets met the outcome.
pub(super) fn bring_about(
    datapath: &mut impl Datapath,
    wanted: &Wanted,
    rings: &mut RingCache,
    unsettled: &mut bool,
) -> Result<(usize, Instant), ReconcileError> {
    let plan = plan(&datapath.tables().image(), wanted, rings)?;
    let in_force = go(datapath, &plan, unsettled)?;
    Ok((plan.actions.len(), in_force))
}

/// The same for some services, which are all that is wanted here; others are left alone.
pub(super) fn bring_about_some(
    datapath: &mut impl Datapath,
    wanted: &Wanted,
    rings: &mut RingCache,
    unsettled: &mut bool,
) -> Result<(usize, Instant), ReconcileError> {
    let names: Vec<&str> = wanted.services.iter().map(|service| service.name.as_str()).collect();
    let plan = plan_some(&datapath.tables().image_of(&names), wanted, rings)?;
    let in_force = go(datapath, &plan, unsettled)?;
    Ok((plan.actions.len(), in_force))
}

/// Goes a way that was planned from what is loaded; when packets met the outcome, which is before all is tidied up. Where it is broken
/// off, `unsettled` stays set, and the next time the rest of the way, or the way back, is planned from there.
pub(super) fn go(
    datapath: &mut impl Datapath,
    plan: &Plan,
    unsettled: &mut bool,
) -> Result<Instant, DatapathError> {
    let mut in_force = Instant::now();
    if *unsettled {
        // What was broken off may have released what packets under way still read.
        datapath.grace()?;
    }
    *unsettled = true;
    for action in &plan.actions {
        log::debug!("{}", summary(action));
        datapath.apply(action)?;
        if !is_tidying(action) {
            in_force = Instant::now();
        }
    }
    *unsettled = false;
    Ok(in_force)
}

/// Whether it only tidies up, which no packet meets.
fn is_tidying(action: &Action) -> bool {
    matches!(
        action,
        Action::Grace | Action::ClearBackend(_) | Action::ClearService(_) | Action::Retire { .. }
    )
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
