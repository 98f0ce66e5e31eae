//! A question → a choice, both as words and room in a map: so a stage's program can have picking in a function by itself. The verifier goes
//! through that once, and not once for each way that leads there.

use super::super::Transport;
use super::super::signals::Seen;
use super::super::{Classified, Exit, Tables};
use super::{Fields, Flow, Pick, pick_in};
use crate::abi::{BackendWord, VipFlags};
use crate::flow::Tick;
use crate::hash;
use crate::verdict::Verdict;

/// What [`pick`] is asked about the packet that is settled in the scratch room.
#[derive(Clone, Copy)]
pub(in crate::datapath) struct Asked {
    /// Its service.
    pub(in crate::datapath) classified: Classified,
    /// What it does to its flow.
    pub(in crate::datapath) transport: Transport,
    /// See [`Flow::held`].
    pub(in crate::datapath) held: u16,
}

impl Asked {
    const FLAGS_SHIFT: u32 = 16;
    const HELD_SHIFT: u32 = 32;
    const TRANSPORT_SHIFT: u32 = 48;

    #[inline(always)]
    fn to_word(self) -> u64 {
        let Classified { service, flags } = self.classified;
        u64::from(service as u16)
            | u64::from(flags.bits()) << Self::FLAGS_SHIFT
            | u64::from(self.held) << Self::HELD_SHIFT
            | u64::from(self.transport.bits()) << Self::TRANSPORT_SHIFT
    }

    #[inline(always)]
    fn from_word(word: u64) -> Self {
        let (service, flags) = (word as u16, VipFlags::from_bits((word >> Self::FLAGS_SHIFT) as u16));
        Self {
            classified: Classified { service: service.into(), flags },
            transport: Transport::from_bits((word >> Self::TRANSPORT_SHIFT) as u8),
            held: (word >> Self::HELD_SHIFT) as u16,
        }
    }
}

/// In what [`pick_settled`] answers: where what is not the backend's id begins.
const ANSWER_SHIFT: u32 = 16;

/// What is more of a choice than a word, in the scratch room.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::datapath) struct Picked {
    word: BackendWord,
    hash: u64,
    seen: Seen,
}

/// Picks the backend of the packet that is settled in the scratch room, which it takes, and remembers it.
#[inline(always)]
pub(in crate::datapath) fn pick<T: Tables>(tables: &T, asked: Asked) -> Result<Pick<'_>, Verdict> {
    let answer = tables.pick(asked.to_word());
    let id = answer as u16;
    if id == 0 {
        return Err(Exit::from_word(answer >> ANSWER_SHIFT).verdict());
    }
    let scratch = tables.scratch().ok_or(Verdict::DropInconsistent)?;
    let Picked { word, hash, seen } = scratch.work.picked;
    let backend = tables.backend(id).ok_or(Verdict::DropInconsistent)?;
    Ok(Pick { id, backend, word, seen, hash, now: Tick((answer >> ANSWER_SHIFT) as u32) })
}

/// The same with a question and an answer that are words: the backend's id, above it the time; or no id, and why there is none.
#[inline(always)]
pub fn pick_settled<T: Tables>(tables: &T, asked: u64) -> u64 {
    let Asked { classified, transport, held } = Asked::from_word(asked);
    let picked = (|| {
        let control = tables.control().ok_or(Verdict::DropInconsistent)?;
        let mut scratch = tables.scratch().ok_or(Verdict::DropInconsistent)?;
        let flow = Flow { fields: &scratch.work.parsed, transport, held };
        let hash = hash::flow(&control.flow_key, &flow.fields.tuple());
        let pick = pick_in::<_, _, false>(tables, control, &flow, classified, hash)?;
        scratch.work.picked = Picked { word: pick.word, hash: pick.hash, seen: pick.seen };
        Ok::<_, Exit>(u64::from(pick.id) | u64::from(pick.now.0) << ANSWER_SHIFT)
    })();
    picked.unwrap_or_else(|exit| exit.to_word() << ANSWER_SHIFT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_survives_the_round_trip() {
        let flags = VipFlags::new(true, true);
        let transport = Transport::from_bits(Transport::ALL);
        let classified = Classified { service: u16::MAX.into(), flags };
        let asked = Asked::from_word(Asked { classified, transport, held: 0x8001 }.to_word());
        let Classified { service, flags } = asked.classified;
        assert_eq!((service, flags), (u16::MAX.into(), VipFlags::new(true, true)));
        assert_eq!((asked.transport, asked.held), (transport, 0x8001));
    }
}
