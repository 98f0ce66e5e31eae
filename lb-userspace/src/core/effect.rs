//! What is loaded, and what would be → the ring slots that change owner, and what becomes of live flows.
//!
//! Slots and flows are counted, not estimated: slots in the rings before and after, flows in the flow table, by backend.
//! An entry of the flow table does not say which ring slot its flow has, for the two go by different keys. So how many
//! flows would find another backend in the ring than in their entry is known by backend only: of a backend that loses all its
//! slots, all flows; of one that loses a tenth of them, a tenth, give or take chance.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lb_common::abi::{RING_SIZE, Ring};
use serde::{Deserialize, Serialize};

use super::cut::Cut;
use super::image::Image;
use super::plan::Plan;
use super::ring::slots_by_id;

/// What happens to a service whose ring changes, or that loses flows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RingChange {
    /// The service.
    pub service: String,
    /// Share of its ring's slots that change owner, 0 to 1.
    pub slots_changed: f64,
    /// Live flows it has: established and not idle for too long.
    pub live_flows: u64,
    /// Those of them that lose their backend.
    pub flows_lost: u64,
    /// Those of the others that may lose it, for the service gives up a VIP: which VIP a flow is of, the flow table does not tell.
    pub flows_in_doubt: u64,
    /// Share of the others that only the flow table keeps with their backend from then on, 0 to 1: the ring names another
    /// one. Each backend's live flows times the share of its slots that it loses.
    pub on_table_alone: f64,
    /// Its backends that lose slots or flows.
    pub backends: Vec<BackendLoss>,
}

/// A backend that loses slots or flows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendLoss {
    /// The backend.
    pub backend: String,
    /// Its live flows.
    pub live_flows: u64,
    /// Whether they lose it.
    pub flows_lost: bool,
    /// Slots it has now.
    pub slots: usize,
    /// Those of them that another backend gets.
    pub slots_lost: usize,
}

/// Rings that change at once, of which the new ones are kept until they are loaded: more take too much memory.
const KEPT: usize = 16;

/// What a plan does to the services that are loaded, in the order of their names; `flows` are live flows by backend id, and
/// `loaded` reads the ring in a slot.
pub fn effects(
    image: &Image,
    plan: &Plan,
    flows: &BTreeMap<u16, u64>,
    loaded: impl Fn(u16) -> Option<Arc<Ring>>,
) -> Vec<RingChange> {
    let keep = plan.rings.len() <= KEPT;
    let lost = image.backends.iter().filter(|(id, backend)| backend.enabled && !plan.kept.contains(id));
    let losing: BTreeSet<u32> = lost.map(|(_, backend)| backend.service).collect();
    // Most changes leave most rings alone: those are not counted out.
    let mut changes: Vec<RingChange> = Vec::new();
    for (&id, service) in &image.services {
        let (gone, after) = (!plan.services.contains(&id), plan.rings.get(&id));
        if !gone && after.is_none() && !losing.contains(&id) && !plan.cut.contains_key(&id) {
            continue;
        }
        let before = service.ring.as_ref().and_then(|(slot, _)| loaded(*slot));
        let after = match after {
            _ if gone => None,
            Some(None) => None,
            Some(Some(planned)) => {
                if keep {
                    planned.keep()
                } else {
                    planned.ring()
                }
            }
            None => before.clone(),
        };
        let service = Service { id, name: &service.name, gone, rings: [before, after] };
        let change = effect(image, plan, flows, &service);
        if change.slots_changed > 0.0 || change.flows_lost > 0 || change.flows_in_doubt > 0 {
            changes.push(change);
        }
    }
    changes.sort_by(|a, b| a.service.cmp(&b.service));
    changes
}

struct Service<'a> {
    id: u32,
    name: &'a str,
    gone: bool,
    /// Before and after.
    rings: [Option<Arc<Ring>>; 2],
}

fn effect(image: &Image, plan: &Plan, flows: &BTreeMap<u16, u64>, service: &Service<'_>) -> RingChange {
    let rings = service.rings.each_ref().map(Option::as_deref);
    let (lost_slots, changed) = moved(rings);
    let [before, after] = rings.map(|ring| ring.map(slots_by_id).unwrap_or_default());
    let mut change = RingChange {
        service: service.name.to_owned(),
        slots_changed: if service.gone { 1.0 } else { changed as f64 / RING_SIZE as f64 },
        live_flows: 0,
        flows_lost: 0,
        flows_in_doubt: 0,
        on_table_alone: 0.0,
        backends: Vec::new(),
    };
    let cut = plan.cut.get(&service.id);
    let mut on_table = 0.0;
    for (id, backend) in image.backends.iter().filter(|(_, backend)| backend.service == service.id) {
        let count = |of: &BTreeMap<u16, usize>| of.get(id).copied().unwrap_or(0);
        let (slots, slots_lost) = (count(&before), count(&lost_slots));
        let live_flows = flows.get(id).copied().unwrap_or(0);
        let flows_lost = backend.enabled && (cut == Some(&Cut::Whole) || !plan.kept.contains(id));
        change.live_flows += live_flows;
        if flows_lost {
            change.flows_lost += live_flows;
        } else if slots > 0 {
            on_table += live_flows as f64 * slots_lost as f64 / slots as f64;
        } else {
            // Its flows rest on the table already, but for those whose slot it would get.
            on_table += live_flows as f64 * (1.0 - count(&after) as f64 / RING_SIZE as f64);
        }
        if slots_lost > 0 || flows_lost && live_flows > 0 {
            change.backends.push(BackendLoss {
                backend: backend.name.clone(),
                live_flows,
                flows_lost,
                slots,
                slots_lost,
            });
        }
    }
    let kept = change.live_flows - change.flows_lost;
    if cut == Some(&Cut::Part) {
        change.flows_in_doubt = kept;
    }
    if kept > 0 {
        change.on_table_alone = on_table / kept as f64;
    }
    change.backends.sort_by(|a, b| a.backend.cmp(&b.backend));
    change
}

/// Slots that each backend loses, and how many change owner in all.
fn moved(rings: [Option<&Ring>; 2]) -> (BTreeMap<u16, usize>, usize) {
    match rings {
        [None, None] => (BTreeMap::new(), 0),
        [None, Some(_)] => (BTreeMap::new(), RING_SIZE),
        [Some(before), None] => (slots_by_id(before), RING_SIZE),
        [Some(before), Some(after)] => {
            let mut lost: BTreeMap<u16, usize> = BTreeMap::new();
            let pairs = before.slots.iter().zip(&after.slots);
            for (&owner, _) in pairs.filter(|(before, after)| before != after) {
                *lost.entry(owner).or_default() += 1;
            }
            let changed = lost.values().sum();
            (lost, changed)
        }
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::core::image::{LoadedBackend, LoadedService};
    use crate::core::ring::{Member, Planned, Recipe};

    type Members<'a> = &'a [(&'a str, u16, u16)];

    fn recipe(members: Members<'_>) -> Option<Arc<Recipe>> {
        let members = members.iter().map(|&(name, id, weight)| Member { name, id, weight });
        Recipe::new(0, members).map(Arc::new)
    }

    /// What becomes of a service with these members in its ring when they are those, and these backends keep their flows.
    fn changes(
        before: Members<'_>,
        after: Option<Members<'_>>,
        kept: &[u16],
        flows: &BTreeMap<u16, u64>,
    ) -> Vec<RingChange> {
        changes_with_cut(before, after, kept, flows, BTreeMap::new())
    }

    /// The same where the service is cut off from flows.
    fn changes_with_cut(
        before: Members<'_>,
        after: Option<Members<'_>>,
        kept: &[u16],
        flows: &BTreeMap<u16, u64>,
        cut: BTreeMap<u32, Cut>,
    ) -> Vec<RingChange> {
        let planned = recipe(before).map(Planned::new);
        let loaded = planned.as_ref().and_then(Planned::ring);
        let known = planned.zip(loaded.as_ref()).map(|(planned, ring)| (0, Arc::new(planned.known(ring))));
        let image = Image {
            services: [(0, LoadedService { name: "web".to_owned(), ring: known })].into(),
            backends: [(1, LoadedBackend::well("a", 0)), (2, LoadedBackend::well("b", 0))].into(),
            ..Image::default()
        };
        let changed = after.filter(|after| *after != before);
        let plan = Plan {
            services: after.map(|_| 0).into_iter().collect(),
            rings: changed
                .map(|after| (0, recipe(after).map(|new| Arc::new(Planned::new(new)))))
                .into_iter()
                .collect(),
            kept: kept.iter().copied().collect::<BTreeSet<u16>>(),
            cut,
            ..Plan::default()
        };
        effects(&image, &plan, flows, |_| loaded.clone())
    }

    const BOTH: [(&str, u16, u16); 2] = [("a", 1, 1), ("b", 2, 1)];

    #[test]
    fn a_drained_backend_leaves_its_flows_to_the_table() {
        let flows = BTreeMap::from([(1, 30), (2, 10)]);
        let drained = changes(&BOTH, Some(&[("b", 2, 1)]), &[1, 2], &flows);
        let [change] = &drained[..] else { panic!("one service") };
        let half = change.backends[0].slots;
        assert!(half.abs_diff(RING_SIZE / 2) <= 1, "{change:?}");
        assert_eq!((change.live_flows, change.flows_lost), (40, 0));
        assert!((change.slots_changed - half as f64 / RING_SIZE as f64).abs() < 1e-12);
        assert!((change.on_table_alone - 0.75).abs() < 1e-12, "{change:?}");
        let a = BackendLoss {
            backend: "a".to_owned(),
            live_flows: 30,
            flows_lost: false,
            slots: half,
            slots_lost: half,
        };
        assert_eq!(change.backends, [a]);
        // Enabled again, it gets half of the slots back, and as many of its flows agree with the ring.
        let again = changes(&[("b", 2, 1)], Some(&BOTH), &[1, 2], &flows);
        let lost = half as f64 / RING_SIZE as f64;
        let expected = (30.0 * (1.0 - lost) + 10.0 * lost) / 40.0;
        assert!((again[0].on_table_alone - expected).abs() < 1e-12, "{again:?}");
    }

    #[test]
    fn what_is_removed_or_disabled_loses_its_flows() {
        let flows = BTreeMap::from([(1, 30), (2, 10)]);
        let without = changes(&BOTH, Some(&[("b", 2, 1)]), &[2], &flows);
        assert_eq!((without[0].flows_lost, without[0].on_table_alone), (30, 0.0));
        assert!(without[0].backends[0].flows_lost);
        let gone = changes(&BOTH, None, &[], &flows);
        assert_eq!((gone[0].flows_lost, gone[0].slots_changed), (40, 1.0));
        // Already without slots, but not without flows.
        let drained = changes(&[("b", 2, 1)], Some(&[("b", 2, 1)]), &[2], &flows);
        assert_eq!((drained[0].flows_lost, drained[0].slots_changed), (30, 0.0));
    }

    #[test]
    fn who_gives_up_a_vip_gives_up_its_flows() {
        let flows = BTreeMap::from([(1, 30), (2, 10)]);
        let cut = |cut| changes_with_cut(&BOTH, Some(&BOTH), &[1, 2], &flows, [(0, cut)].into());
        let whole = cut(Cut::Whole);
        assert_eq!((whole[0].flows_lost, whole[0].flows_in_doubt, whole[0].backends.len()), (40, 0, 2));
        let part = cut(Cut::Part);
        assert_eq!((part[0].flows_lost, part[0].flows_in_doubt), (0, 40));
    }

    #[test]
    fn what_stays_is_not_mentioned() {
        let flows = BTreeMap::from([(1, 30)]);
        assert_eq!(changes(&BOTH, Some(&BOTH), &[1, 2], &flows), []);
        assert_eq!(changes(&[], Some(&[]), &[1, 2], &flows), []);
    }
}
