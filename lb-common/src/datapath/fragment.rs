//! A fragment without ports → the way its datagram's first fragment went.

use super::nat::Work;
use super::parse::{Fragment, Parsed};
use super::pick::Pick;
use super::signals::Seen;
use super::{Exit, Outcome, Packet, Stage, Step, Tables, admit, is_vip, rare};
use crate::abi::{Control, FragmentRoute, TupleKey};
use crate::flow::Tick;
use crate::hash;
use crate::verdict::Verdict;

/// Ticks for which a datagram's way is remembered: as long as Linux waits for the rest of one.
const LIFE_TICKS: u32 = 30;

/// Sends a later fragment after the first.
#[inline(always)]
pub(super) fn follow<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    control: &Control,
    parsed: &mut Parsed,
    fragment: Fragment,
) -> Result<Outcome, Exit> {
    let now = tables.now(control);
    let mut scratch = tables.scratch().ok_or(Verdict::DropInconsistent)?;
    scratch.work.key = TupleKey::of_fragment(&parsed.tuple, fragment.identification);
    let found = tables.fragment(&scratch.work.key, |route| {
        (is_fresh(route, now), route.service, route.backend, route.kind != FragmentRoute::PLAIN)
    });
    drop(scratch);
    let found = found.filter(|(fresh, ..)| *fresh);
    tables.observe(Step::FragmentLookup(found.map(|(_, _, backend, _)| backend)));
    let Some((_, service, id, translated)) = found else {
        let ours = is_vip(tables, control, parsed.tuple.destination);
        return Err(if ours { Verdict::DropFragment } else { Verdict::PassNotVip }.into());
    };
    if id == 0 {
        return Err(Verdict::PassFragment.into());
    }
    if translated {
        return Err(Stage::NatReturn.into());
    }
    admit(packet, control)?;
    let backend = tables.backend(id).ok_or(Verdict::DropFragment)?;
    let word = backend.load();
    if !word.serves(service.into()) {
        return Err(Verdict::DropFragment.into());
    }
    let hash = hash::flow(&control.flow_key, &parsed.tuple);
    let pick = Pick { id, backend, word, seen: Seen::NOTHING, hash, now };
    rare::deliver(packet, tables, control, parsed, &pick, service.into())
}

/// Whether the way is that of a datagram under way.
#[inline(always)]
pub(super) fn is_fresh(route: &FragmentRoute, now: Tick) -> bool {
    now.since(route.tick) <= LIFE_TICKS
}

/// Remembers where the rest of a datagram goes.
#[inline(always)]
pub(super) fn remember<T: Tables>(tables: &T, parsed: &Parsed, fragment: Fragment, work: &mut Work) {
    work.key = TupleKey::of_fragment(&parsed.tuple, fragment.identification);
    tables.set_fragment(&work.key, &work.route);
}
