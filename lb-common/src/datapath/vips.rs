//! A destination → its place in the VIP table.

use super::Tables;
use crate::abi::{Control, VIP_PROBES, VIP_WAYS, VipBucket, VipSlot, VipTable, vip_key};
use crate::hash;
use crate::net::{Address, Be16, Protocol};

/// Walks the VIP table from where the hash points to the first empty slot.
#[inline(always)]
pub(super) fn find_vip<'a, T: Tables>(
    tables: &'a T,
    control: &Control,
    table: VipTable,
    address: Address,
    port: Be16,
    protocol: Protocol,
) -> Option<&'a VipSlot> {
    let key = vip_key(address, port, protocol);
    // Nearly every search ends in the first bucket.
    let bucket = tables.vip_bucket(bucket_index(control, table, hash::vip(address, key)))?;
    match find_in(bucket, address, key) {
        Search::Found(_, slot) => Some(slot),
        Search::Ended => None,
        Search::GoesOn => {
            let place = tables.vip_beyond(address, key).checked_sub(1)? as usize;
            tables.vip_bucket((place / VIP_WAYS) as u32)?.slots.get(place % VIP_WAYS)
        }
    }
}

/// The same beyond the first bucket: the slot's number over all buckets, and one more; 0 if there is none.
#[inline(always)]
pub fn vip_beyond<T: Tables>(tables: &T, address: Address, key: u32) -> u64 {
    let Some(control) = tables.control() else { return 0 };
    let table = VipTable::from_word(control.vip_table.load());
    let first = hash::vip(address, key);
    let mut probe = 1;
    while probe < VIP_PROBES {
        let index = bucket_index(control, table, first.wrapping_add(probe));
        let Some(bucket) = tables.vip_bucket(index) else { return 0 };
        match find_in(bucket, address, key) {
            Search::Found(way, _) => return u64::from(index) * VIP_WAYS as u64 + way as u64 + 1,
            Search::Ended => return 0,
            Search::GoesOn => probe += 1,
        }
    }
    0
}

/// Index of a bucket in the half of the table that is in force.
#[inline(always)]
fn bucket_index(control: &Control, table: VipTable, number: u32) -> u32 {
    table.first_bucket.wrapping_add(number & control.vip_buckets.wrapping_sub(1))
}

/// What a look into one bucket gave.
enum Search<'a> {
    /// The VIP is in this slot, the one with this number.
    Found(usize, &'a VipSlot),
    /// It is in none.
    Ended,
    /// It may be in the next bucket.
    GoesOn,
}

#[inline(always)]
fn find_in(bucket: &VipBucket, address: Address, key: u32) -> Search<'_> {
    for (way, slot) in bucket.slots.iter().enumerate() {
        if slot.is(address, key) {
            return Search::Found(way, slot);
        }
        if slot.is_empty() {
            return Search::Ended;
        }
    }
    Search::GoesOn
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{FragmentRoute, TupleKey};
    use crate::flow::Tick;
    use crate::slice::{Fragments, SliceTables, TableSlices};

    struct NoFragments;

    impl Fragments for NoFragments {
        fn fragment(&self, _: &TupleKey) -> Option<FragmentRoute> {
            None
        }

        fn set_fragment(&self, _: &TupleKey, _: &FragmentRoute) {}
    }

    fn address(number: u16) -> Address {
        let [high, low] = number.to_be_bytes();
        if number.is_multiple_of(2) {
            Address::v4([203, 0, high, low])
        } else {
            Address::from_words([1, 2, 3, number.into()])
        }
    }

    #[test]
    fn finds_what_its_first_bucket_has_no_room_for() {
        const HALF: u32 = 16;
        const VIPS: u16 = 26;
        let mut buckets = [VipBucket::default(); 2 * HALF as usize];
        let control = Control { vip_buckets: HALF, ..Control::default() };
        let table = VipTable { first_bucket: HALF, ..VipTable::default() };
        control.vip_table.store(table.to_word());
        let port = Be16::new(443);
        let mut beyond = 0;
        for service in 0..VIPS {
            let (address, key) = (address(service), vip_key(address(service), port, Protocol::TCP));
            let first = hash::vip(address, key);
            let probe = (0..VIP_PROBES)
                .find(|probe| {
                    let bucket =
                        &mut buckets[bucket_index(&control, table, first.wrapping_add(*probe)) as usize];
                    let Some(free) = bucket.slots.iter_mut().find(|slot| slot.is_empty()) else {
                        return false;
                    };
                    *free = VipSlot { address, key, service, ..VipSlot::default() };
                    true
                })
                .expect("room");
            beyond += u16::from(probe > 0);
        }
        assert!(beyond > 3, "{beyond}");
        let slices = TableSlices {
            control: &control,
            vips: &buckets,
            services: &[],
            backends: &[],
            rings: &[],
            flows: &[],
            openings: &[],
            latency: &[],
            translations: &[],
            fragments: &NoFragments,
            senders: &[],
        };
        let tables = SliceTables::new(slices, Tick(0));
        let find = |number: u16, port| {
            let found = find_vip(&tables, &control, table, address(number), port, Protocol::TCP);
            found.map(|slot| slot.service)
        };
        for number in 0..VIPS {
            assert_eq!(find(number, port), Some(number));
            assert_eq!(find(number, Be16::new(80)), None);
            assert_eq!(find(VIPS + number, port), None);
        }
    }
}
