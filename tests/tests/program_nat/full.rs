//! More connections than the table has room for → which find a place, and which make way.

use lb_common::flow::Eviction;
use lb_common::verdict::Verdict;
use lb_userspace::io::datapath::capacity_for;

use super::connections::{LATER, SOON, START, tcp, way};
use crate::support::nat_frames::{Family, Nat, Setup};
use crate::support::packets::{ACK, FIN, SYN};
use crate::support::parity::Twins;

/// The table holds what it was made for, and somewhat more; then it is full, and what is there goes on.
#[test]
fn the_table_may_be_full() {
    let setup = tcp(Family::V6);
    let twins = Twins::with_capacity(&setup.wanted(), capacity_for(8, 16, 16, 4_096, 64));
    let mut nat = Nat::with(twins, setup);
    let (mut all, mut refused) = (Vec::new(), 0);
    for port in 40_000..42_000 {
        let syn = setup.customer(port, SYN, b"");
        match nat.twins.agree(&syn.frame()).verdict {
            Verdict::Forward => all.push((port, nat.forward(&syn).0)),
            verdict => {
                assert_eq!(verdict, Verdict::DropNatTable);
                nat.unchanged(&syn, Verdict::DropNatTable);
                refused += 1;
            }
        }
        assert!(refused == 0 || all.len() > 64, "{} of 64 connections found room", all.len());
    }
    assert!(refused > 1_800 && all.len() < 113, "{} connections, {refused} refused", all.len());
    let places = nat.translations();
    assert_eq!(places, 2 * all.len(), "no half of a connection stays");
    for (port, left) in &all {
        for flags in [ACK, ACK | FIN] {
            assert_eq!(way(&nat.forward(&setup.customer(*port, flags, b"")).0), way(left));
        }
    }
    // A SYN gives up the old connection on its ports. The new one finds room only where there is some, and leaves no half of it.
    nat.twins.set_time(LATER);
    let mut left = places;
    for (port, _) in &all {
        match nat.twins.agree(&setup.customer(*port, SYN, b"").frame()).verdict {
            Verdict::Forward => {}
            verdict => {
                assert_eq!(verdict, Verdict::DropNatTable);
                left -= 2;
            }
        }
        assert_eq!(nat.translations(), left);
    }
    assert!(left > places / 2 && left < places, "{left} of {places}");
}

/// A flood of openings fills the table. Who comes a little later finds room all the same, and what goes on stays.
#[test]
fn openings_that_nobody_follows_up_make_way_in_a_full_table() {
    const NEW: u16 = 30;
    for setup in Setup::all() {
        let twins = Twins::with_capacity(&setup.wanted(), capacity_for(8, 16, 16, 4_096, 512));
        let mut nat = Nat::with(twins, setup);
        nat.twins.set_time(START);
        let mut followed = Vec::new();
        for port in 30_000..30_010 {
            let (left, _) = nat.forward(&setup.customer(port, SYN, b""));
            nat.forward(&setup.customer(port, ACK, b""));
            followed.push((port, way(&left)));
        }
        let mut refused = 0;
        for port in 40_000..42_000 {
            let frame = setup.customer(port, SYN, b"").frame();
            refused += u32::from(nat.twins.agree(&frame).verdict == Verdict::DropNatTable);
        }
        assert!(refused > 1_000, "{refused}: what has just begun stays");
        let before = nat.translations();
        nat.twins.set_time(SOON);
        for port in 50_000..50_000 + NEW {
            nat.forward(&setup.customer(port, SYN, b""));
        }
        let made_way = nat.twins.changed()[0].verdicts.evictions[Eviction::Unfollowed as usize] as usize;
        assert!(made_way > usize::from(NEW) / 2, "{made_way}");
        let sum = before + 2 * usize::from(NEW);
        assert_eq!(nat.translations() + 2 * made_way, sum, "both directions go");
        for (port, as_before) in followed {
            assert_eq!(way(&nat.forward(&setup.customer(port, ACK, b"")).0), as_before);
        }
    }
}
