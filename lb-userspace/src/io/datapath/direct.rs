//! An object and the tables whose address is in its programs → the object with these addresses: see [`lb_common::abi::direct`].

use std::os::fd::{AsFd, AsRawFd};

use aya::maps::{MapData, MapType};
use aya_obj::generated::{BPF_F_MMAPABLE, BPF_PSEUDO_MAP_VALUE};
use lb_common::abi::direct;

use super::kernel::{LoadError, chain, entries, pinned_map, sizes};
use super::pins::{PinDir, record_size};
use crate::core::image::Capacity;

/// `BPF_LD | BPF_IMM | BPF_DW`: the first half of an instruction that loads 64 bits.
const LOAD: u8 = 0x18;
/// Bytes of an instruction.
const INSTRUCTION: usize = 8;

/// The tables. They are to stay open until the programs are in the kernel, for until then their instructions name descriptors.
#[derive(Debug)]
pub(super) struct DirectTables(Vec<Table>);

#[derive(Debug)]
struct Table {
    map: MapData,
    records: u32,
}

impl DirectTables {
    /// Opens those that are pinned, and makes and pins those that are not, of this capacity.
    pub(super) fn open_or_make(pins: &PinDir, capacity: Capacity) -> Result<Self, LoadError> {
        let table =
            |name| if pins.map(name).exists() { open(pins, name) } else { make(pins, name, capacity) };
        direct::ALL.into_iter().map(table).collect::<Result<_, _>>().map(Self)
    }

    /// Opens those that are pinned.
    pub(super) fn open(pins: &PinDir) -> Result<Self, LoadError> {
        direct::ALL.into_iter().map(|name| open(pins, name)).collect::<Result<_, _>>().map(Self)
    }

    /// The object with their addresses and sizes in its instructions.
    pub(super) fn put_into(&self, object: &[u8]) -> Vec<u8> {
        put_into(object, |place| {
            let table = self.0.get(place)?;
            Some((table.map.fd().as_fd().as_raw_fd(), table.records))
        })
    }
}

fn open(pins: &PinDir, name: &'static str) -> Result<Table, LoadError> {
    let map = pinned_map(pins, name)?;
    let records = entries(&map, name)?;
    Ok(Table { map, records })
}

fn make(pins: &PinDir, name: &'static str, capacity: Capacity) -> Result<Table, LoadError> {
    let part = |cause: String| LoadError::Part { name, cause };
    let records = sizes(capacity).iter().find(|(sized, _)| *sized == name).map_or(1, |(_, size)| *size);
    let bytes = record_size(name).checked_mul(records).ok_or_else(|| part("too large".into()))?;
    let map = aya_obj::Map::new_from_params(MapType::Array as u32, 4, bytes, 1, BPF_F_MMAPABLE);
    let map = MapData::create(map, name, None).map_err(|error| part(chain(&error)))?;
    map.pin(pins.map(name)).map_err(|error| part(chain(&error)))?;
    Ok(Table { map, records })
}

/// Fills in what the object leaves open of a table, of which `table` knows the descriptor and how many records it has.
fn put_into(object: &[u8], table: impl Fn(usize) -> Option<(i32, u32)>) -> Vec<u8> {
    let mut object = object.to_vec();
    for at in (0..object.len()).step_by(INSTRUCTION) {
        let Some(instruction) = object.get_mut(at..).and_then(<[u8]>::first_chunk_mut) else { break };
        let [LOAD, registers, 0, 0, a, b, c, d, 0, 0, 0, 0, e, f, g, h] = *instruction else { continue };
        let said = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let Some((descriptor, records)) = table((said & direct::PLACE) as usize) else { continue };
        let (source, value) = match said & !direct::PLACE {
            direct::ADDRESS => (BPF_PSEUDO_MAP_VALUE as u8, descriptor.to_le_bytes()),
            direct::RECORDS => (0, records.to_le_bytes()),
            _ => continue,
        };
        let [a, b, c, d] = value;
        *instruction = [LOAD, registers | source << 4, 0, 0, a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0];
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(register: u8, value: u64) -> Vec<u8> {
        let bytes = value.to_le_bytes();
        [&[LOAD, register, 0, 0], &bytes[..4], &[0; 4], &bytes[4..]].concat()
    }

    #[test]
    fn addresses_and_sizes_are_filled_in_and_nothing_else() {
        let other = [load(1, direct::ADDRESS | 9), load(2, 77), vec![0x95, 0, 0, 0, 0, 0, 0, 0]].concat();
        let object =
            [load(3, direct::ADDRESS | 2), other.clone(), load(9, direct::RECORDS | 2), vec![LOAD, 1, 0]]
                .concat();
        let filled = put_into(&object, |place| (place == 2).then_some((7, 500)));
        let address = [LOAD, 3 | 2 << 4, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let records = [LOAD, 9, 0, 0, 244, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(filled, [&address[..], &other, &records, &[LOAD, 1, 0]].concat());
    }

    /// The programs name them by their places.
    #[test]
    fn places_are_those_of_the_names() {
        use lb_common::abi::map;
        let places = [
            (direct::CONTROL, map::CONTROL),
            (direct::VIPS, map::VIPS),
            (direct::SERVICES, map::SERVICES),
            (direct::BACKENDS, map::BACKENDS),
            (direct::FLOWS, map::FLOWS),
        ];
        for (place, name) in places {
            assert_eq!(direct::ALL[place as usize], name);
        }
    }
}
