//! The datapath in the kernel and over slices is the same: over random tables, random and mutated frames meet the same
//! verdict, leave as the same bytes, are counted alike and change the tables alike.

mod support;

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use lb_common::abi::{ICMP_PER_TICK, NatPorts, TOO_BIG_PER_TICK};
use lb_common::hash;
use lb_common::verdict::Verdict;
use lb_userspace::io::datapath::{Datapath, capacity_for};

use support::dice::Dice;
use support::nat_frames::EDGE;
use support::parity::{TICK_SHIFTS, Twins};
use support::random_frames::Around;
use support::random_tables::{self, BACKENDS, SERVICES};

/// Frames that are sent over the same tables.
const FRAMES_A_TABLE: u32 = 500;
/// Tables that are laid out one after the other in the same maps.
const TABLES_A_LOADING: u32 = 50;

/// Few enough flows and translations for both tables to be full at times; of translations more, too, for more of them to meet.
const FLOWS: u32 = 1_024;
const NAT_CONNECTIONS: [u32; 2] = [2, 32];

/// A number from the environment.
fn number<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// Says in a failure how to bring it about again.
struct Reproduce(u64);

impl Drop for Reproduce {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to see this again: SLUICE_PARITY_SEED={}", self.0);
        }
    }
}

/// Frames, 100,000 if `SLUICE_PARITY_CASES` does not ask for more, of a chance that `SLUICE_PARITY_SEED` repeats.
#[test]
fn kernel_and_slice_agree() {
    let cases: u32 = number("SLUICE_PARITY_CASES").unwrap_or(100_000);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = number("SLUICE_PARITY_SEED").unwrap_or(now.as_nanos() as u64);
    let mut seen = BTreeMap::new();
    let tables = cases.div_ceil(FRAMES_A_TABLE);
    for loading in 0..tables.div_ceil(TABLES_A_LOADING) {
        let seed = seed.wrapping_add(loading.into());
        let _reproduce = Reproduce(seed);
        agree(seed, (tables - loading * TABLES_A_LOADING).min(TABLES_A_LOADING), &mut seen);
    }
    let named: BTreeMap<&str, u32> = seen.iter().map(|(verdict, count)| (verdict.name(), *count)).collect();
    println!("{named:?}");
    // Drivers leave more room in front than any header takes.
    let reachable = Verdict::ALL.iter().filter(|verdict| **verdict != Verdict::DropHeadroom);
    let missed: Vec<&str> =
        reachable.filter(|verdict| !seen.contains_key(verdict)).map(|verdict| verdict.name()).collect();
    assert!(cases < 100_000 || missed.is_empty(), "never met: {missed:?}");
}

/// Sends frames over tables, one after the other, through both.
fn agree(seed: u64, tables: u32, seen: &mut BTreeMap<Verdict, u32>) {
    let mut dice = Dice(seed);
    let services = SERVICES * 2;
    let connections = NAT_CONNECTIONS[seed as usize % 2];
    let capacity = capacity_for(services, services * BACKENDS, services * 8, FLOWS, connections);
    let mut twins = Twins::with_capacity(&random_tables::wanted(&mut dice), capacity);
    twins.set_own_mac(EDGE);
    twins.set_flow_key(hash::expand(seed));
    let mut around = Around::new();
    for _ in 0..tables {
        let wanted = random_tables::wanted(&mut dice);
        twins.apply(&wanted);
        around.now(&wanted);
        twins.set_nat_ports(dice.of(&[
            NatPorts { hole: 32_768, hole_size: 28_232 },
            NatPorts { hole: 0, hole_size: 0 },
            // Sixteen ports.
            NatPorts { hole: 1_040, hole_size: 64_496 },
        ]));
        for _ in 0..FRAMES_A_TABLE {
            if dice.once_in(50) {
                happens(&mut dice, &mut twins);
            }
            let frame = around.frame(&mut dice);
            let (outcome, left) = twins.agree_on(&frame);
            *seen.entry(outcome.verdict).or_default() += 1;
            around.became(&mut dice, &outcome, left);
        }
        let [kernel, memory] = twins.changed();
        assert_eq!(kernel.verdicts, memory.verdicts, "kernel (left) and memory (right)");
        assert_eq!(kernel.traffic, memory.traffic, "kernel (left) and memory (right)");
        assert!(kernel == memory, "the tables differ: {}", kernel.difference(&memory));
    }
}

/// What happens to tables but packets: time passes, the agent sweeps, answers have been given.
fn happens(dice: &mut Dice, twins: &mut Twins) {
    let shifts: Vec<u32> = TICK_SHIFTS.collect();
    match dice.below(16) {
        0 => twins.set_icmp_answers(ICMP_PER_TICK - 1, TOO_BIG_PER_TICK - 1),
        1 | 2 => {
            for tables in [twins.kernel.tables(), twins.memory.tables()] {
                tables.sweep_translations(twins.memory.now);
            }
        }
        _ => twins.set_time(dice.of(&shifts)),
    }
}
