//! A long configuration and a change of few of its services → the same change made in these services' parts of the text alone, so
//! that it takes as long in a file of hundreds of services as in one of a few.

use std::ops::Range;

use lb_common::abi::MAX_BACKENDS;

use super::{Edit, EditError, below, edited};
use crate::core::config::{self, Config};
use crate::core::scope::MOST;

/// What a text says that differs from `former`, which says `known`, in the parts of few services alone; `None` if that is not so, or if
/// their VIPs change, which those of others may contradict, or if anything is wrong.
pub fn parse_beside(text: &str, former: &str, known: &Config) -> Option<Config> {
    let (parts, former_parts) = (parts(text)?, parts(former)?);
    let count = known.services.len();
    let head = text.get(..parts.first()?.start)?;
    if [parts.len(), former_parts.len()] != [count; 2] || former.get(..former_parts.first()?.start)? != head {
        return None;
    }
    let mut changed = Vec::new();
    for (at, (part, former_part)) in parts.into_iter().zip(former_parts).enumerate() {
        let own = text.get(part)?;
        if own != former.get(former_part)? {
            changed.push((at, own));
        }
    }
    if changed.len() > MOST {
        return None;
    }
    let mut config = known.clone();
    for (at, own) in changed {
        let Config { agent, services } = config::parse(&format!("{head}{own}")).ok()?;
        let [new] = <[_; 1]>::try_from(services).ok()?;
        let old = config.services.get_mut(at)?;
        if agent != known.agent
            || (&new.name, new.protocol, &new.vips) != (&old.name, old.protocol, &old.vips)
        {
            return None;
        }
        *old = new;
    }
    has_room(&config).then_some(config)
}

fn has_room(config: &Config) -> bool {
    let backends: usize = config.services.iter().map(|service| service.backends.len()).sum();
    backends <= MAX_BACKENDS as usize
}

/// What [`edited`] makes of a text that says `config`; `None` where the edit, or the text, is not of the kind that can be taken
/// apart.
pub(super) fn edited_part(
    text: &str,
    config: &Config,
    edit: &Edit,
) -> Option<Result<(String, Config), EditError>> {
    let service = match edit {
        Edit::BackendAdd { service, .. }
        | Edit::BackendRemove { service, .. }
        | Edit::BackendSet { service, .. } => service,
        Edit::ServiceAdd { .. } | Edit::ServiceRemove { .. } | Edit::ServiceSet { .. } => return None,
    };
    let at = config.services.iter().position(|found| found.name == *service)?;
    let parts = parts(text)?;
    let mut part = parts.get(at).filter(|_| parts.len() == config.services.len())?.clone();
    if part.end < text.len() {
        part.end -= above_next(text.get(part.clone())?);
    }
    let head = text.get(..parts.first()?.start)?;
    let (before, own, behind) = (text.get(..part.start)?, text.get(part.clone())?, text.get(part.end..)?);
    let (alone, small) = match edited(&format!("{head}{own}"), edit) {
        Ok(edited) => edited,
        Err(error) => return Some(Err(error)),
    };
    let own = alone.strip_prefix(head).filter(|own| behind.is_empty() || own.ends_with('\n'))?;
    let Config { agent, services } = small;
    let [new] = <[_; 1]>::try_from(services).ok()?;
    if agent != config.agent || new.name != *service {
        return None;
    }
    let mut config = config.clone();
    *config.services.get_mut(at)? = new;
    has_room(&config).then(|| Ok((format!("{before}{own}{behind}"), config)))
}

/// How much of the end of a part is about the header behind it.
fn above_next(part: &str) -> usize {
    let comments = part.split_inclusive('\n').rev().take_while(|line| line.trim_start().starts_with('#'));
    let length: usize = comments.map(str::len).sum();
    length - below::length(&part[part.len() - length..], true)
}

/// Where the part of each service is in a valid text, from its header to the next one's; `None` if that is not certain.
///
/// Outside strings of several lines, a line that begins with a bracket is a header, or the line of an array: then what is
/// within the brackets is not what headers are accepted here.
fn parts(text: &str) -> Option<Vec<Range<usize>>> {
    if text.contains("\"\"\"") || text.contains("'''") || text.contains('\r') {
        return None;
    }
    let mut starts = Vec::new();
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let begins = line.trim_start_matches([' ', '\t']);
        if begins.starts_with("[[service]]") {
            starts.push(at);
        } else if begins.starts_with('[') {
            let of_service = begins.starts_with("[service.") || begins.starts_with("[[service.");
            if starts.is_empty() == of_service {
                return None;
            }
        }
        at += line.len();
    }
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    Some(starts.iter().copied().zip(ends).map(|(start, end)| start..end).collect())
}
