//! What `explain` says of every named frame is what the kernel then does with it, and saying so changes nothing.

mod support;

use lb_common::abi::ICMP_PER_TICK;
use lb_common::verdict::Verdict;
use lb_userspace::core::explain::{Explanation, Ingress, explain, parse_hex};
use lb_userspace::core::image::Wanted;
use lb_userspace::io::datapath::Datapath;

use support::frames::wire::FAMILIES;
use support::frames::{self, Named};
use support::parity::{INTERFACE, SHORTEST, Twins};
use support::wanted;

/// Of the live tables in the kernel.
fn explained(twins: &Twins, frame: &[u8]) -> Explanation {
    let tables = twins.kernel.tables();
    let ingress = Ingress { index: INTERFACE, mac: [0; 6] };
    explain(tables.slices().unwrap(), &tables.names(), twins.memory.now, frame.to_vec(), ingress, &[])
}

/// Verdicts of which nobody need be told what to do.
fn is_well(verdict: Verdict) -> bool {
    use Verdict::{Forward, ForwardReturn, PassPathMtu, ReplyIcmpEcho};
    [Forward, ForwardReturn, PassPathMtu, ReplyIcmpEcho].contains(&verdict)
}

fn check(twins: &mut Twins, name: &str, frame: &[u8]) -> Verdict {
    let told = explained(twins, frame);
    assert_eq!(told, explained(twins, frame), "{name}: asked again, another answer");
    // The twin in memory met none of that: a trace of it in the kernel's tables would make them differ.
    let (result, outcome) = twins.agreed(frame);
    assert_eq!(told.verdict, result.verdict.name(), "{name}: {told:?}");
    assert_eq!(told.meaning, result.verdict.explanation(), "{name}");
    let leaves = told.rewritten.as_deref().map_or_else(|| frame.to_vec(), |hex| parse_hex(hex).unwrap());
    assert_eq!(leaves, result.frame, "{name}: {told:?}");
    assert_eq!(told.advice.is_empty(), is_well(result.verdict), "{name}: {told:?}");
    assert_eq!(told.headers.is_empty(), !result.verdict.is_sent(), "{name}: {told:?}");
    assert_eq!(told.backend.is_empty(), outcome.backend == 0, "{name}: {told:?}");
    if outcome.backend != 0 {
        let told_of_it = told.steps.iter().filter(|step| step.contains(&told.backend)).count();
        assert!(told_of_it > 0, "{name}: no step says why {}: {told:?}", told.backend);
    }
    result.verdict
}

fn check_all(wanted: &Wanted, frames: &[Named]) {
    let mut twins = Twins::new(wanted);
    for Named { name, frame, verdict, .. } in frames {
        assert!(frame.len() >= SHORTEST, "{name}");
        assert_eq!(check(&mut twins, name, frame), *verdict, "{name}");
    }
}

#[test]
fn every_named_frame_is_explained_as_the_kernel_treats_it() {
    check_all(&wanted(), &frames::all());
    let mut told = wanted();
    told.globals.reply_oversized = true;
    check_all(&told, &frames::all_told());
}

#[test]
fn an_answer_too_many_is_explained_as_one() {
    let mut twins = Twins::new(&wanted());
    for family in FAMILIES {
        let echo = frames::echo::request(family, family.client(), b"ping").frame();
        twins.set_icmp_answers(ICMP_PER_TICK - 1, 0);
        assert_eq!(check(&mut twins, "the last answer", &echo), Verdict::ReplyIcmpEcho);
        assert_eq!(check(&mut twins, "one more", &echo), Verdict::DropIcmpRate);
    }
}
