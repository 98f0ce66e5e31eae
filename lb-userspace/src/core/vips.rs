//! VIPs → the buckets of the VIP table, by open addressing.

use lb_common::abi::{VIP_PROBES, VIP_WAYS, VipBucket, VipSlot, VipTable, vip_key};
use lb_common::hash;
use lb_common::net::Be16;

use super::image::{VipKey, VipTarget};

/// Room for hundreds of VIPs to come: 64 KiB a half.
const MIN_BUCKETS: usize = 1_024;

/// Buckets of one half for `entries` VIPs: filled to a quarter at most, so that searches end at once.
pub fn buckets_for(entries: usize) -> u32 {
    let buckets = (entries * 4).div_ceil(VIP_WAYS).max(MIN_BUCKETS).next_power_of_two();
    u32::try_from(buckets).unwrap_or(u32::MAX)
}

/// Lays the entries out in `count` buckets, a power of two; `None` if they do not fit within the probes a packet makes.
pub fn build(entries: &[(VipKey, VipTarget)], count: u32) -> Option<Vec<VipBucket>> {
    let mut buckets = vec![VipBucket::default(); count as usize];
    for &(key, target) in entries {
        let named = vip_key(key.address, Be16::new(key.port), key.protocol);
        let first = hash::vip(key.address, named);
        let slot = (0..VIP_PROBES).find_map(|probe| {
            let bucket = (first.wrapping_add(probe) & count.wrapping_sub(1)) as usize;
            let way = buckets.get(bucket)?.slots.iter().position(VipSlot::is_empty)?;
            Some((bucket, way))
        });
        let (bucket, way) = slot?;
        *buckets.get_mut(bucket)?.slots.get_mut(way)? = VipSlot {
            address: key.address,
            key: named,
            service: u16::try_from(target.service).unwrap_or(u16::MAX),
            flags: target.flags,
            padding: [0; 8],
        };
    }
    Some(buckets)
}

/// Reads the entries back from the half in force.
pub fn read(buckets: &[VipBucket], table: VipTable) -> Vec<(VipKey, VipTarget)> {
    let (first, second) = buckets.split_at(buckets.len() / 2);
    let half = if table.first_bucket > 0 { second } else { first };
    half.iter()
        .flat_map(|bucket| bucket.slots.iter().filter(|slot| !slot.is_empty()))
        .map(|slot| {
            let key = VipKey { address: slot.address, port: slot.port().get(), protocol: slot.protocol() };
            (key, VipTarget { service: slot.service.into(), flags: slot.flags })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::abi::VipFlags;
    use lb_common::net::{Address, Protocol};

    fn entries(count: u32) -> Vec<(VipKey, VipTarget)> {
        (0..count)
            .map(|n| {
                let address = Address::v4((0xcb00_7100 + n / 7).to_be_bytes());
                let key = VipKey { address, port: (n % 7 * 80) as u16, protocol: Protocol::TCP };
                (key, VipTarget { service: n, flags: VipFlags::new(n % 2 == 0, n % 3 == 0) })
            })
            .collect()
    }

    #[test]
    fn every_entry_survives_the_round_trip() {
        for count in [0, 1, 7, 100, 5_000] {
            let entries = entries(count);
            let mut buckets = build(&entries, buckets_for(entries.len())).unwrap();
            buckets.extend(vec![VipBucket::default(); buckets.len()]);
            let mut read = read(&buckets, VipTable::default());
            read.sort_by_key(|(_, target)| target.service);
            assert_eq!(read, entries);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert_eq!(build(&entries(200), 64).map(|_| ()), None);
    }
}
