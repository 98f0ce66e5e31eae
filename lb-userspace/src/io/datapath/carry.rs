//! Tables of one size → tables of another that hold the same, the flow table first of all.
//!
//! An entry of the flow table says nothing of the half of its flow's hash that chooses the bucket but the bucket it is in.
//! So in a table of another size it belongs into one of a few neighbouring buckets, and nobody can tell which: each gets a
//! copy. A packet finds the one in its flow's own bucket; the others are never touched again, by which they are known.
//! A table that grows by a whole factor has room for all of them: each new bucket gets the entries of one old bucket.

use std::io;
use std::ops::RangeInclusive;

use lb_common::abi::{FlowBucket, VipTable};
use lb_common::flow::{Entry, State, Tick};
use lb_common::hash;

use super::DatapathError;
use super::tables::TableSet;
use crate::core::image::Capacity;
use crate::core::vips;

/// Ticks that may pass while entries are carried over: the program goes on writing younger ones.
const WHILE_CARRIED: u32 = 16;

/// What did not find a place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Live flows whose bucket is full of flows that are used more.
    pub flows: u64,
    /// Translations, each of one direction of a connection.
    pub translations: u64,
}

impl TableSet {
    /// Takes over what only the agent writes from tables of other sizes, whose program goes on meanwhile. Nobody may see
    /// these tables yet; maps that are as large are the same maps.
    pub(super) fn take_over(&mut self, former: &Self) -> Result<(), DatapathError> {
        let (new, old) = (self.capacity(), former.capacity());
        if new.services != old.services {
            self.services.copy_from(&former.services);
            self.service_names.copy_from(&former.service_names);
        }
        if new.backends != old.backends {
            self.backends.copy_from(&former.backends);
            self.backend_names.copy_from(&former.backend_names);
        }
        if new.rings != old.rings {
            self.take_rings(former)?;
        }
        self.control.copy_from(&former.control);
        if let Some(control) = self.control_mut() {
            (control.flow_buckets, control.vip_buckets) = (new.flow_buckets, new.vip_buckets);
            control.translation_buckets = new.translation_buckets();
        }
        if new.vip_buckets != old.vip_buckets {
            let image = former.names();
            let buckets = vips::build(&image.vips, new.vip_buckets).ok_or_else(|| DatapathError {
                action: "carrying the VIPs over",
                cause: format!("{} buckets have no room for them", new.vip_buckets),
            })?;
            self.write_vips(VipTable { first_bucket: 0, ..image.vip_table }, &buckets);
        }
        Ok(())
    }

    /// Takes over the rings in force, each in its slot.
    fn take_rings(&mut self, former: &Self) -> Result<(), DatapathError> {
        let failed = |cause: String| DatapathError { action: "carrying the rings over", cause };
        for slot in former.services.records().iter().filter_map(|service| service.load().ring) {
            let ring = former.rings.read(slot).map_err(|error| failed(error.to_string()))?;
            let ring = ring.ok_or_else(|| failed(format!("there is none in slot {slot}")))?;
            self.rings.write(slot, &ring).map_err(|error| failed(error.to_string()))?;
        }
        Ok(())
    }

    /// What would be lost in tables of another capacity, tried in memory; nothing here is changed.
    pub(super) fn lost_in(&self, capacity: Capacity, now: Tick) -> Result<Lost, DatapathError> {
        // Of the rest nothing is asked, and what of the tables is not written to takes no memory.
        let mut trial =
            Self::heap(Capacity { services: 0, backends: 0, rings: 0, vip_buckets: 0, ..capacity });
        trial.control.copy_from(&self.control);
        if let Some(control) = trial.control_mut() {
            control.translation_buckets = capacity.translation_buckets();
        }
        trial.carry_over(self, now)
    }

    /// Takes over flows and translations. May be repeated: what came to the former tables meanwhile follows, and what is
    /// younger here stays.
    pub(super) fn carry_over(&mut self, former: &Self, now: Tick) -> Result<Lost, DatapathError> {
        let failed = |error: io::Error| DatapathError {
            action: "mapping the tables of flows and translations",
            cause: error.to_string(),
        };
        let mut lost = Lost::default();
        if self.flows.count() != former.flows.count() {
            let (old, new) = (former.flows.records().map_err(failed)?, self.flows.records().map_err(failed)?);
            lost.flows = carry(old, new, now);
            self.copies = true;
        }
        if self.translations.count() != former.translations.count() {
            former.translations.records().and(self.translations.records()).map_err(failed)?;
            lost.translations = self.carry_translations(former);
        }
        Ok(lost)
    }
}

/// The buckets of a table of `new` buckets where flows may belong that are in this bucket of one of `old`.
fn candidates(bucket: u32, old: u32, new: u32) -> RangeInclusive<u32> {
    // The upper halves of hashes from which `hash::reduce` makes this bucket, of all 2³².
    let first = |bucket: u64| (bucket << 32).div_ceil(u64::from(old.max(1)));
    let (first, last) = (first(bucket.into()), first(u64::from(bucket) + 1).saturating_sub(1));
    hash::reduce(first << 32, new)..=hash::reduce(last << 32, new)
}

/// Puts every flow of a table wherever it may belong in one of another size; how many live flows found a bucket full.
fn carry(old: &[FlowBucket], new: &[FlowBucket], now: Tick) -> u64 {
    let now = Tick(now.0.wrapping_add(WHILE_CARRIED));
    let count = |buckets: &[FlowBucket]| u32::try_from(buckets.len()).unwrap_or(u32::MAX);
    let (old_count, new_count) = (count(old), count(new));
    let mut lost = 0;
    for (index, bucket) in (0..).zip(old) {
        for entry in entries(bucket).filter(|entry| !entry.is_expired(now)) {
            let places = candidates(index, old_count, new_count);
            let buckets = places.filter_map(|place| new.get(place as usize));
            let homeless = buckets.filter(|bucket| !place(bucket, entry, now)).count();
            lost += u64::from(homeless > 0 && entry.state() == State::Established);
        }
    }
    lost
}

fn entries(bucket: &FlowBucket) -> impl Iterator<Item = Entry> {
    bucket.ways.iter().filter_map(|way| Entry::from_word(way.load()))
}

/// Puts an entry into a bucket that packets may be changing, unless what is there is worth more; whether the flow has an
/// entry now.
fn place(bucket: &FlowBucket, entry: Entry, now: Tick) -> bool {
    // Packets change a bucket seldom compared to this: one that always comes between is one that has the entry.
    for _ in 0..8 {
        let (way, before) = match bucket.find(entry.signature()) {
            Some(found) if !is_younger(entry, found.entry, now) => return true,
            Some(found) => (found.way, found.entry.word()),
            None => {
                let way = bucket.victim(now).way;
                let Some(word) = bucket.ways.get(way).map(|way| way.load()) else { return false };
                if Entry::from_word(word).is_some_and(|other| other.rank(now) <= entry.rank(now)) {
                    return false;
                }
                (way, word)
            }
        };
        if bucket.ways.get(way).is_some_and(|way| way.replace(before, entry.word())) {
            return true;
        }
    }
    bucket.find(entry.signature()).is_some()
}

/// Whether an entry was written after another one of the same flow.
fn is_younger(entry: Entry, other: Entry, now: Tick) -> bool {
    // A connection on the ports of one that had ended when this was carried over: packets that came since do not tell.
    let opened_anew = entry.state() == State::Opening && other.state() == State::Closing;
    if opened_anew && entry.backend() == other.backend() {
        return true;
    }
    let (age, other_age) = (entry.age(now), other.age(now));
    // Within a tick: a flow only goes on from one state to the next, until its port is used anew.
    let further = entry.state() as u8 > other.state() as u8;
    age < other_age || age == other_age && (entry.backend() == other.backend()) == further && entry != other
}

/// The flows of a table, each once: copies lie in neighbouring buckets.
pub(super) fn flows(buckets: &[FlowBucket]) -> impl Iterator<Item = Entry> {
    let before = std::iter::once(None).chain(buckets.iter().map(Some));
    buckets.iter().zip(before).flat_map(|(bucket, before)| {
        let is_copy = move |entry: &Entry| {
            before.and_then(|before| before.find(entry.signature())).is_some_and(|found| {
                found.entry.backend() == entry.backend() && found.entry.state() == entry.state()
            })
        };
        entries(bucket).filter(move |entry| !is_copy(entry))
    })
}

/// Removes copies of flows of which another one has been used since: that one is in the flow's own bucket.
pub(super) fn remove_copies(buckets: &[FlowBucket], now: Tick) {
    let now = Tick(now.0.wrapping_add(WHILE_CARRIED));
    let mut before: Option<&FlowBucket> = None;
    for (index, bucket) in buckets.iter().enumerate() {
        let is_first = |entry: &Entry| before.is_none_or(|before| before.find(entry.signature()).is_none());
        for entry in entries(bucket).filter(is_first) {
            let copies = || {
                let following = buckets.get(index..).unwrap_or_default().iter();
                following.map_while(|bucket| Some((bucket, bucket.find(entry.signature())?)))
            };
            let youngest = copies().map(|(_, found)| found.entry.age(now)).min();
            for (bucket, found) in copies().filter(|(_, found)| Some(found.entry.age(now)) > youngest) {
                // If a packet changed it meanwhile, it is no copy.
                if let Some(way) = bucket.ways.get(found.way) {
                    way.replace(found.entry.word(), 0);
                }
            }
        }
        before = Some(bucket);
    }
}

#[cfg(test)]
mod tests;
