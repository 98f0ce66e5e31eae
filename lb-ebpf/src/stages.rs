//! A stage of the pipeline → a function of the program by itself, which the verifier goes through once and whose stack is its own.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::datapath::{self, Action, Exit, Outcome, Stage};
use lb_common::verdict::Verdict;
use lb_ebpf::packet::XdpPacket;

use crate::maps::Maps;
use crate::steered::Steered;

/// Marks a word that holds an [`Exit`].
const EXIT: u64 = 1;

/// Calls the function of the stage that an exit leads to. Of the outcome only action, verdict and interface come back: the rest
/// was counted there.
#[inline(always)]
pub fn call(context: *mut xdp_md, exit: Exit) -> Result<Outcome, Exit> {
    let word = match exit.stage {
        Stage::Plain => plain(context),
        Stage::Rare => rare(context),
        Stage::Icmp => icmp(context),
        Stage::IcmpError => icmp_error(context),
        Stage::Nat => nat(context),
        Stage::NatReturn => nat_return(context),
        Stage::NatNew => nat_new(context),
        Stage::NatError => nat_error(context),
        Stage::Answer => answer(context, exit.to_word()),
        Stage::None => return Err(exit),
    };
    unpack(word)
}

#[inline(always)]
fn unpack(word: u64) -> Result<Outcome, Exit> {
    if word & EXIT != 0 {
        return Err(Exit::from_word(word >> 8));
    }
    let verdict = Verdict::from_index((word >> 16 & 0xff) as usize).unwrap_or(Verdict::DropInconsistent);
    let action = Action::from_number((word >> 1) as u32 & 7);
    Ok(Outcome { action, ..Outcome::without_backend(verdict, (word >> 32) as u32) })
}

#[inline(always)]
fn run(context: *mut xdp_md, exit: Exit) -> u64 {
    match datapath::run_stage(&mut Steered(XdpPacket(&XdpContext::new(context))), &Maps, exit) {
        Ok(outcome) => {
            (outcome.action as u64) << 1
                | (outcome.verdict as u64) << 16
                | u64::from(outcome.interface) << 32
        }
        Err(exit) => EXIT | exit.to_word() << 8,
    }
}

/// See [`datapath::extensions`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn extensions(context: *mut xdp_md, ip_offset: u64, next: u64, bytes: u64) -> u64 {
    let context = XdpContext::new(context);
    let ip_offset = ip_offset as usize & datapath::MAX_OFFSET;
    datapath::extensions(&XdpPacket(&context), ip_offset, next as u8, bytes as u16).word()
}

/// See [`Stage::Plain`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn plain(context: *mut xdp_md) -> u64 {
    run(context, Stage::Plain.into())
}

/// See [`Stage::Rare`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn rare(context: *mut xdp_md) -> u64 {
    run(context, Stage::Rare.into())
}

/// See [`Stage::Icmp`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn icmp(context: *mut xdp_md) -> u64 {
    run(context, Stage::Icmp.into())
}

/// See [`Stage::IcmpError`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn icmp_error(context: *mut xdp_md) -> u64 {
    run(context, Stage::IcmpError.into())
}

/// See [`Stage::Nat`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nat(context: *mut xdp_md) -> u64 {
    run(context, Stage::Nat.into())
}

/// See [`Stage::NatReturn`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nat_return(context: *mut xdp_md) -> u64 {
    run(context, Stage::NatReturn.into())
}

/// See [`Stage::NatNew`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nat_new(context: *mut xdp_md) -> u64 {
    run(context, Stage::NatNew.into())
}

/// See [`Stage::NatError`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nat_error(context: *mut xdp_md) -> u64 {
    run(context, Stage::NatError.into())
}

/// See [`Stage::Answer`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn answer(context: *mut xdp_md, exit: u64) -> u64 {
    run(context, Exit { stage: Stage::Answer, ..Exit::from_word(exit) })
}
