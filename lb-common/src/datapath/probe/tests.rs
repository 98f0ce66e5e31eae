//! A health check's packets leave as a customer's would, their answers are recognised, and nothing else is touched.

use core::cell::RefCell;
use std::boxed::Box;
use std::collections::BTreeMap;
use std::vec::Vec;

use super::*;
use crate::abi::{BackendFlags, BackendWord, Forwarding, NextHop, Word};
use crate::datapath::Header;
use crate::slice::SlicePacket;

const OWN: [u8; 4] = [10, 0, 1, 2];
const WEB: [u8; 4] = [10, 0, 1, 11];
const VIP: [u8; 4] = [203, 0, 113, 10];
const HOP: ([u8; 6], [u8; 6]) = ([2, 0, 0, 0, 0, 0x11], [2, 0, 0, 0, 0, 2]);
const HEADROOM: usize = 64;
const INDEX: u32 = 3;
const SYN: u8 = 2;

/// A packet whose checksums are left to the interface.
struct Own<'a>(SlicePacket<'a>);

impl Packet for Own<'_> {
    fn read<T: Header>(&self, offset: usize) -> Option<T> {
        self.0.read(offset)
    }

    fn write<T: Header>(&mut self, offset: usize, header: T) -> Option<()> {
        self.0.write(offset, header)
    }

    fn grow_head(&mut self, bytes: usize) -> Option<()> {
        self.0.grow_head(bytes)
    }

    fn shrink_head(&mut self, bytes: usize) -> Option<()> {
        self.0.shrink_head(bytes)
    }

    fn truncate(&mut self, bytes: usize) -> Option<()> {
        self.0.truncate(bytes)
    }

    fn interface(&self) -> u32 {
        self.0.interface()
    }
}

impl OwnPacket for Own<'_> {
    fn readdress(&mut self, parsed: &Parsed, side: Side, to: Address) -> Option<()> {
        let at = parsed.ip_offset + if side == Side::Source { 12 } else { 16 };
        self.write(at, to.words()[3])
    }
}

struct Tables {
    control: Control,
    backends: [Backend; 2],
    targets: [ProbeTarget; 4],
    expected: RefCell<BTreeMap<(Address, Address, u32), u32>>,
}

impl ProbeTables for Tables {
    fn control(&self) -> Option<&Control> {
        Some(&self.control)
    }

    fn backend(&self, id: u16) -> Option<&Backend> {
        self.backends.get(usize::from(id))
    }

    fn target(&self, index: u32) -> Option<&ProbeTarget> {
        self.targets.get(index as usize)
    }

    fn expected(&self, answer: &TupleKey) -> Option<impl Deref<Target = u32>> {
        let target = *self.expected.borrow().get(&(answer.source, answer.destination, answer.ports))?;
        Some(Box::new(target))
    }

    fn expect(&self, answer: &TupleKey, target: u32) {
        self.expected.borrow_mut().insert((answer.source, answer.destination, answer.ports), target);
    }

    fn now(&self, _: &Control) -> Tick {
        Tick(7)
    }
}

fn tables(forwarding: Forwarding, resolved: bool) -> Tables {
    let flags = BackendFlags { used: true, enabled: true, resolved, forwarding, ..BackendFlags::default() };
    let hop = NextHop { source: Address::v4(OWN), ..NextHop::new(HOP.0, HOP.1, 0) };
    let backend = Backend {
        word: Word::new(BackendWord::new(flags).word()),
        address: Address::v4(WEB),
        hops: [hop, hop],
        ..Backend::default()
    };
    let mut targets: [ProbeTarget; 4] = Default::default();
    let target = &mut targets[INDEX as usize];
    (target.vip, target.address) = (Address::v4(VIP), Address::v4(WEB));
    target.backend.store(1);
    Tables {
        control: Control::default(),
        backends: [Backend::default(), backend],
        targets,
        expected: RefCell::default(),
    }
}

/// A TCP segment of a host in a frame, and room in front of it.
fn frame(from: [u8; 4], to: [u8; 4], ports: [u16; 2], protocol: u8, flags: u8) -> Vec<u8> {
    let [source, destination] = ports.map(u16::to_be_bytes);
    let mut frame = std::vec![0; HEADROOM];
    frame.extend([2, 0, 0, 0, 0, 0xee, 2, 0, 0, 0, 0, 0xff, 8, 0]);
    frame.extend([0x45, 0, 0, 40, 0, 7, 0x40, 0, 60, protocol, 0, 0]);
    frame.extend(from.iter().chain(&to).chain(&source).chain(&destination));
    frame.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
    frame
}

fn sent(tables: &Tables, frame: &mut [u8], mark: u32) -> (ProbeAction, Vec<u8>) {
    let mut packet = Own(SlicePacket::new(frame, HEADROOM, 9));
    let action = probe_out(&mut packet, tables, mark);
    (action, packet.0.bytes().to_vec())
}

fn came(tables: &Tables, frame: &mut [u8]) -> (ProbeAction, Vec<u8>) {
    let mut packet = Own(SlicePacket::new(frame, HEADROOM, 9));
    let action = probe_in(&mut packet, tables);
    (action, packet.0.bytes().to_vec())
}

#[test]
fn a_check_goes_to_the_vip_and_its_answer_comes_back_as_the_backends() {
    let tables = tables(Forwarding::L2Dsr, true);
    let mut check = frame(OWN, WEB, [40_000, 80], 6, SYN);
    let (action, left) = sent(&tables, &mut check, PROBE_MARK | INDEX);
    assert_eq!(action, ProbeAction::GoOn);
    let mut wanted = frame(OWN, VIP, [40_000, 80], 6, SYN).split_off(HEADROOM);
    wanted[..6].copy_from_slice(&HOP.0);
    wanted[6..12].copy_from_slice(&HOP.1);
    assert_eq!(left, wanted);
    let (action, taken) = came(&tables, &mut frame(VIP, OWN, [80, 40_000], 6, SYN | 0x10));
    assert_eq!(action, ProbeAction::GoOn);
    assert_eq!(taken, frame(WEB, OWN, [80, 40_000], 6, SYN | 0x10).split_off(HEADROOM));
    let target = &tables.targets[INDEX as usize];
    assert_eq!((target.sent.load(), target.answered.load()), (1, 1));
}

#[test]
fn a_tunnel_is_put_around_it_as_around_a_customers() {
    for (forwarding, overhead, protocol) in [(Forwarding::Ipip, 20, 4), (Forwarding::Gue, 32, 17)] {
        let tables = tables(forwarding, true);
        let (action, left) = sent(&tables, &mut frame(OWN, WEB, [40_000, 80], 6, SYN), PROBE_MARK | INDEX);
        assert_eq!(action, ProbeAction::GoOn, "{forwarding:?}");
        assert_eq!(
            (left[14 + 9], &left[14 + 12..14 + 16], &left[14 + 16..14 + 20]),
            (protocol, &OWN[..], &WEB[..])
        );
        let inner = frame(OWN, VIP, [40_000, 80], 6, SYN).split_off(HEADROOM + 14);
        assert_eq!(left[14 + overhead..], inner, "{forwarding:?}");
        // What is sent so is not taken for a check once more.
        let mut again = [std::vec![0; HEADROOM], left.clone()].concat();
        assert_eq!(sent(&tables, &mut again, PROBE_MARK | INDEX), (ProbeAction::Leave, left));
    }
}

#[test]
fn what_is_no_check_is_left_alone() {
    let tables = tables(Forwarding::L2Dsr, true);
    for (mark, to, protocol) in [
        (0, WEB, 6),
        (INDEX, WEB, 6),
        (PROBE_MARK + 0x100_0000 + INDEX, WEB, 6),
        (PROBE_MARK | 77, WEB, 6),
        (PROBE_MARK | INDEX, [10, 0, 1, 12], 6),
        (PROBE_MARK | INDEX, WEB, 17),
    ] {
        let original = frame(OWN, to, [40_000, 80], protocol, SYN);
        let (action, left) = sent(&tables, &mut original.clone(), mark);
        assert_eq!((action, &left[..]), (ProbeAction::Leave, &original[HEADROOM..]), "{mark:x} {to:?}");
    }
    sent(&tables, &mut frame(OWN, WEB, [40_000, 80], 6, SYN), PROBE_MARK | INDEX);
    for (from, ports) in [(VIP, [80, 40_001]), (VIP, [81, 40_000]), (WEB, [80, 40_000])] {
        let original = frame(from, OWN, ports, 6, SYN | 0x10);
        let (action, taken) = came(&tables, &mut original.clone());
        assert_eq!((action, &taken[..]), (ProbeAction::Leave, &original[HEADROOM..]), "{from:?} {ports:?}");
    }
    assert_eq!(tables.targets[INDEX as usize].answered.load(), 0);
}

#[test]
fn what_has_no_way_is_dropped_and_not_sent_past_it() {
    let check = || frame(OWN, WEB, [40_000, 80], 6, SYN);
    let unresolved = tables(Forwarding::L2Dsr, false);
    assert_eq!(sent(&unresolved, &mut check(), PROBE_MARK | INDEX).0, ProbeAction::Drop);
    let without = tables(Forwarding::L2Dsr, true);
    without.targets[INDEX as usize].backend.store(0);
    assert_eq!(sent(&without, &mut check(), PROBE_MARK | INDEX).0, ProbeAction::Drop);
    for tables in [unresolved, without] {
        assert_eq!(tables.targets[INDEX as usize].sent.load(), 0);
    }
}
