//! A datapath and other sizes → one of these sizes that goes on where the first one was, without a packet in between.
//!
//! Maps whose size changes are made anew beside those in force, all others are shared. What the old ones hold is carried
//! over; then the new ones take their place in the pin directory in one step, each interface's link is switched to a program
//! that uses them, and what came to the old ones meanwhile follows. Until then the new program leaves to the old one what only
//! that one can know. An agent that ends before the exchange leaves the old maps in force and pinned; one that ends after it
//! leaves the new ones pinned and the old ones beside them, and whoever starts next goes on from the switch.

use std::cell::RefCell;
use std::collections::BTreeMap;

use aya::programs::ProgramError;
use lb_common::abi::{Moving, Traffic, map};
use lb_common::datapath::Stage;

use super::attach::replace;
use super::carry::Lost;
use super::kernel::{Kernel, LoadError, adopted_capacity, chain, pinned_map, sizes};
use super::object::{load_programs, pin_programs, stages};
use super::pins::PinDir;
use super::region::Access;
use super::{Account, Datapath, DatapathError};
use crate::core::image::Capacity;
use crate::core::signals::Timing;

/// What came of a change of sizes.
pub type Resized = Lost;

impl Kernel {
    /// Goes on with tables of this capacity. On an error before the switch everything stays as it was.
    pub fn resize(
        &mut self,
        pins: &PinDir,
        capacity: Capacity,
        log_packets: bool,
    ) -> Result<Resized, LoadError> {
        pins.remove_other()?;
        let made = self.make(pins, capacity, log_packets).and_then(|bpf| {
            pins.exchange()?;
            Ok(bpf)
        });
        let mut bpf = match made {
            Ok(bpf) => bpf,
            Err(error) => {
                self.tables.set_moving(Moving::No);
                pins.remove_other()?;
                return Err(error);
            }
        };
        pin_programs(pins, &mut bpf)?;
        let mut next = Self::open(pins, Access::Write)?;
        next.program = Some(bpf);
        next.object = std::mem::take(&mut self.object);
        next.tables.known_rings = RefCell::new(self.tables.known_rings.take());
        next.tables.copies = self.tables.copies;
        let former = std::mem::replace(self, next);
        self.take_the_place_of(&former, pins)
    }

    /// Makes maps and programs, and fills the maps.
    fn make(&mut self, pins: &PinDir, capacity: Capacity, log_packets: bool) -> Result<aya::Ebpf, LoadError> {
        let other = pins.other();
        other.create_maps()?;
        share(pins, &other, self.tables.capacity(), capacity)?;
        let bpf = load_programs(&self.object, &other, capacity, log_packets)?;
        self.tables.set_moving(Moving::Out);
        self.grace().map_err(failed)?;
        let mut new = Self::open(&other, Access::Write)?;
        new.tables.take_over(&self.tables).map_err(failed)?;
        new.tables.set_moving(Moving::In);
        let set = stages(&other)?.set(Stage::Former as u32, self.program()?.fd()?, 0);
        set.map_err(|error| LoadError::Part { name: map::STAGES, cause: chain(&error) })?;
        let lost = new.tables.carry_over(&self.tables, self.now().map_err(failed)?).map_err(failed)?;
        self.refuse(lost)?;
        new.take_counters(self).map_err(failed)?;
        Ok(bpf)
    }

    /// Refuses tables of a capacity in which something would be lost, without making any.
    pub fn foresee_resize(&self, capacity: Capacity) -> Result<(), LoadError> {
        let now = self.now().map_err(failed)?;
        self.refuse(self.tables.lost_in(capacity, now).map_err(failed)?)
    }

    fn refuse(&self, lost: Lost) -> Result<(), LoadError> {
        if lost.flows > 0 {
            return Err(LoadError::FlowTableTooSmall(lost.flows));
        }
        if lost.translations > 0 {
            let all = self.tables.translation_count();
            let (connections, without_place) = (all.div_ceil(2), lost.translations.div_ceil(2));
            return Err(LoadError::NatTableTooSmall { connections, without_place });
        }
        Ok(())
    }

    /// Brings a change of sizes to its end that a former agent left.
    pub(super) fn finish_resize(&mut self, pins: &PinDir) -> Result<(), LoadError> {
        let other = pins.other();
        if other.has_maps()? {
            match adopted_capacity(&other) {
                Ok(Some(_)) => {
                    let former = Self::open(&other, Access::Write)?;
                    self.take_the_place_of(&former, pins)?;
                }
                // They were never finished, so nothing has used them.
                Ok(None) | Err(_) => pins.remove_other()?,
            }
        }
        self.tables.set_moving(Moving::No);
        Ok(())
    }

    /// Switches the links over from a former program with other maps, takes over what came to these meanwhile, and lets
    /// them go.
    fn take_the_place_of(&mut self, former: &Self, pins: &PinDir) -> Result<Resized, LoadError> {
        let counted = self.counted().map_err(failed)?;
        for interface in pins.linked_interfaces()? {
            match replace(self.program()?, pins, &interface) {
                // The interface is gone, or another one by now.
                Err(ProgramError::SyscallError(error))
                    if error.io_error.raw_os_error() == Some(libc::ENOLINK) => {}
                result => result?,
            }
        }
        // From here on the former program sees but what it alone may know.
        self.grace().map_err(failed)?;
        self.tables.carry_over(&former.tables, self.now().map_err(failed)?).map_err(failed)?;
        self.tables.set_moving(Moving::No);
        // From here on nobody writes the former maps.
        self.grace().map_err(failed)?;
        let lost = self.tables.carry_over(&former.tables, self.now().map_err(failed)?).map_err(failed)?;
        if self.tables.capacity().backends != former.tables.capacity().backends {
            self.add_counted_since(former, &counted).map_err(failed)?;
        }
        // Where there is none, there is nothing to be done.
        let _ = stages(pins)?.clear_index(&(Stage::Former as u32));
        pins.remove_other()?;
        Ok(lost)
    }

    /// Takes over counters that are not shared; what is counted meanwhile follows in [`Self::add_counted_since`].
    fn take_counters(&mut self, former: &Self) -> Result<(), DatapathError> {
        let (new, old) = (self.tables.capacity(), former.tables.capacity());
        let mut accounts = Vec::new();
        if new.backends != old.backends {
            accounts.extend(former.tables.backend_ids().map(|(id, _)| Account::Backend(id)));
        }
        if new.services != old.services {
            accounts.extend(former.tables.service_ids().map(Account::Service));
            accounts.push(Account::Gone);
        }
        for account in accounts {
            self.set_traffic_by_cpu(account, former.traffic_by_cpu(account)?)?;
            self.tables.set_timing(account, &former.tables.timing(account));
        }
        Ok(())
    }

    /// What is counted for each backend.
    fn counted(&self) -> Result<BTreeMap<u16, (Traffic, Timing)>, DatapathError> {
        let of = |account| Ok((self.traffic(account)?, self.tables.timing(account)));
        let ids = self.tables.backend_ids();
        ids.map(|(id, _)| Ok((id, of(Account::Backend(id))?))).collect()
    }

    /// Adds what former counters counted after they were taken over. The program counts for the backends by now, and nobody else
    /// may write there: it goes to what their services had before.
    fn add_counted_since(
        &mut self,
        former: &Self,
        counted: &BTreeMap<u16, (Traffic, Timing)>,
    ) -> Result<(), DatapathError> {
        let ids: Vec<(u16, u32)> = former.tables.backend_ids().collect();
        let mut since: BTreeMap<u32, Traffic> = BTreeMap::new();
        for (id, service) in ids {
            let last = former.traffic(Account::Backend(id))?;
            let (taken, timed) = counted.get(&id).copied().unwrap_or_default();
            *since.entry(service).or_default() += last.since(&taken);
            let timing = former.tables.timing(Account::Backend(id)).since(&timed);
            self.tables.add_timing(Account::Backend(id), &timing);
        }
        for (service, traffic) in since.into_iter().filter(|(_, traffic)| traffic.packets > 0) {
            let mut sums = self.traffic_by_cpu(Account::Service(service))?;
            if let Some(first) = sums.first_mut() {
                *first += traffic;
            }
            self.set_traffic_by_cpu(Account::Service(service), sums)?;
        }
        Ok(())
    }
}

/// Pins the maps among the other ones that are the same in both: those that keep their size, but for what says the sizes
/// and what names the programs.
fn share(pins: &PinDir, other: &PinDir, old: Capacity, new: Capacity) -> Result<(), LoadError> {
    let new_sizes = sizes(new);
    let keeps_size = |name: &str| {
        let before = sizes(old).into_iter().find(|(sized, _)| *sized == name);
        before.is_none_or(|before| new_sizes.contains(&before))
    };
    for name in map::ALL {
        if name == map::CONTROL || name == map::STAGES || !keeps_size(name) {
            continue;
        }
        let map = pinned_map(pins, name)?;
        map.pin(other.map(name)).map_err(|error| LoadError::Part { name, cause: chain(&error) })?;
    }
    Ok(())
}

fn failed(error: DatapathError) -> LoadError {
    LoadError::Io { what: error.action, cause: std::io::Error::other(error.cause) }
}
