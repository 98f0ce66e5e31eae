//! The `[agent]` table → [`Agent`].

use std::collections::HashSet;
use std::ops::RangeInclusive;

use lb_common::abi::{MAX_FLOWS, MAX_INTERFACES, MAX_NAT_CONNECTIONS, MIN_FLOWS, MIN_NAT_CONNECTIONS};

use lb_common::datapath::TimedOpenings;
use toml::de::DeValue;

use super::reader::Section;
use super::sources::Sources;
use super::{Agent, Oversized, XdpMode, values};

/// Flows: from 32 KiB to 512 MiB of table.
const FLOW_TABLE_SIZE: RangeInclusive<u32> = MIN_FLOWS..=MAX_FLOWS;
const FLOW_TABLE_SIZE_DEFAULT: u32 = 1_048_576;
const NAT_TABLE_SIZE: RangeInclusive<u32> = MIN_NAT_CONNECTIONS..=MAX_NAT_CONNECTIONS;
const NAT_TABLE_SIZE_DEFAULT: u32 = 131_072;
const TIME_OPENINGS_DEFAULT: u32 = 32;
/// TOML promises no integers beyond this.
const RING_SEED_MAX: u64 = i64::MAX as u64;

/// The section, and in `sources` where they stand, which is known even when something else is wrong.
pub(super) fn read(mut agent: Section<'_>, sources: &mut Sources) -> Option<Agent> {
    let interfaces = interfaces(&mut agent);
    let xdp_mode = agent.or(
        "xdp_mode",
        XdpMode::Auto,
        values::choice(&[
            ("auto", XdpMode::Auto),
            ("driver", XdpMode::Driver),
            ("generic", XdpMode::Generic),
        ]),
    );
    let metrics = agent.optional("metrics", values::listen_address);
    let flow_table_size =
        agent.or("flow_table_size", FLOW_TABLE_SIZE_DEFAULT, values::integer(FLOW_TABLE_SIZE));
    let ring_seed = agent.or("ring_seed", 0, values::integer(0..=RING_SEED_MAX));
    *sources = Sources::read(&mut agent);
    let nat_table_size = agent.or("nat_table_size", NAT_TABLE_SIZE_DEFAULT, values::integer(NAT_TABLE_SIZE));
    let oversized = agent.or(
        "oversized",
        Oversized::Drop,
        values::choice(&[("drop", Oversized::Drop), ("reply", Oversized::Reply)]),
    );
    let time_openings = agent.or("time_openings", TIME_OPENINGS_DEFAULT, one_in);
    agent.finish();
    Some(Agent {
        interfaces,
        xdp_mode: xdp_mode?,
        metrics: metrics?,
        flow_table_size: flow_table_size?,
        ring_seed: ring_seed?,
        source_v4: sources.v4(),
        source_v6: sources.v6(),
        nat_table_size: nat_table_size?,
        oversized: oversized?,
        time_openings: time_openings?,
    })
}

/// A share: one in so many, a power of two; 0 is none.
fn one_in(value: &DeValue<'_>) -> Result<u32, String> {
    let number = values::integer(0..=TimedOpenings::MOST)(value)?;
    if number == 0 || number.is_power_of_two() {
        return Ok(number);
    }
    Err(format!("must be a power of two up to {}, or 0 for none, not {number}", TimedOpenings::MOST))
}

fn interfaces(agent: &mut Section<'_>) -> Vec<String> {
    let list = agent.list(
        "interfaces",
        "name at least one network interface, such as interfaces = [\"eth0\"]",
        values::interface,
    );
    if list.elements.len() > MAX_INTERFACES {
        agent
            .wrong("interfaces", format!("at most {MAX_INTERFACES} interfaces, not {}", list.elements.len()));
    }
    let mut seen = HashSet::new();
    for element in &list.elements {
        if !seen.insert(element.value.as_str()) {
            agent.wrong_at(&element.place, format!("{:?} is listed twice; remove one", element.value));
        }
    }
    list.elements.into_iter().map(|element| element.value).collect()
}
