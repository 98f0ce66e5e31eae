//! `agent.source_v4` and `agent.source_v6` → [`Source`]s that go with the services.

use std::collections::HashSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use lb_common::abi::MAX_SOURCES;
use toml::de::DeValue;

use super::model::prefix_of;
use super::reader::{List, Section};
use super::{Source, Vip, values};

/// What is to be known of a family to read its key.
struct Family {
    key: &'static str,
    name: &'static str,
    prefixes: RangeInclusive<u8>,
    examples: &'static str,
}

const V4: Family = Family {
    key: "source_v4",
    name: "IPv4",
    prefixes: 16..=32,
    examples: "\"192.0.2.1\" or \"192.0.2.0/28\"",
};
const V6: Family = Family {
    key: "source_v6",
    name: "IPv6",
    prefixes: 64..=128,
    examples: "\"2001:db8::1\" or \"2001:db8::/64\"",
};

impl Family {
    fn of(address: IpAddr) -> &'static Self {
        if address.is_ipv4() { &V4 } else { &V6 }
    }

    fn source(&self, value: &DeValue<'_>) -> Result<Source, String> {
        let found = values::text(value)?;
        let (start, length) =
            found.split_once('/').map_or((found, None), |(start, length)| (start, Some(length)));
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let address: IpAddr =
            start.parse().ok().filter(|_| length.is_none_or(is_number)).ok_or_else(|| {
                format!(
                    "expected an {} address or prefix, such as {}, found {found:?}",
                    self.name, self.examples
                )
            })?;
        let family = Self::of(address);
        if family.key != self.key {
            return Err(format!("{found:?} is {}; write it to agent.{}", family.name, family.key));
        }
        let (least, most) = (self.prefixes.start(), self.prefixes.end());
        let prefix = length.map_or(Some(*most), |length| length.parse().ok());
        let Some(prefix) = prefix.filter(|prefix| self.prefixes.contains(prefix)) else {
            return Err(format!(
                "the length of a prefix must be {least} to {most}, not {}",
                length.unwrap_or_default()
            ));
        };
        values::unicast(address)?;
        let first = prefix_of(address, prefix);
        if first != address {
            return Err(format!(
                "{found:?} has host bits set; write \"{first}/{prefix}\", or the address alone"
            ));
        }
        Ok(Source { address, prefix })
    }

    fn sources(&self, agent: &mut Section<'_>) -> List<Source> {
        let hint = format!("write one or more, such as {}, or remove it", self.examples);
        let list = agent.one_or_more(self.key, &hint, |value| self.source(value));
        if list.elements.len() > MAX_SOURCES {
            agent.wrong(self.key, format!("at most {MAX_SOURCES} sources, not {}", list.elements.len()));
        }
        let mut seen = HashSet::new();
        for element in &list.elements {
            if !seen.insert(element.value) {
                agent.wrong_at(&element.place, format!("{} is listed twice; remove one", element.value));
            }
        }
        list
    }
}

/// The sources, and where each stands.
#[derive(Default)]
pub(super) struct Sources {
    v4: List<Source>,
    v6: List<Source>,
}

impl Sources {
    pub(super) fn read(agent: &mut Section<'_>) -> Self {
        Self { v4: V4.sources(agent), v6: V6.sources(agent) }
    }

    pub(super) fn v4(&self) -> Vec<Source> {
        self.v4.elements.iter().map(|element| element.value).collect()
    }

    pub(super) fn v6(&self) -> Vec<Source> {
        self.v6.elements.iter().map(|element| element.value).collect()
    }

    /// The key of the sources of `address`'s family, if there are some, but no address among them.
    pub(super) fn without_single(&self, address: IpAddr) -> Option<&'static str> {
        let list = if address.is_ipv4() { &self.v4 } else { &self.v6 };
        let only_prefixes = list.elements.iter().all(|element| !element.value.is_single());
        (list.complete && !list.elements.is_empty() && only_prefixes).then_some(Family::of(address).key)
    }

    /// Records an error at every source that a VIP is part of: what is sent to it would be taken for the service's.
    pub(super) fn refuse_vips<'v>(&self, root: &Section<'_>, vips: impl Iterator<Item = (Vip, &'v str)>) {
        let mut vips: Vec<(Vip, &str)> = vips.collect();
        vips.sort_unstable();
        for element in self.v4.elements.iter().chain(&self.v6.elements) {
            if let Some((vip, here)) = vips.iter().find(|(vip, _)| element.value.contains(vip.address)) {
                let source = element.value;
                let contains =
                    if source.is_single() { "is".into() } else { format!("contains {},", vip.address) };
                let message =
                    format!("{source} {contains} a VIP of {here}; write what only this host sends from");
                root.wrong_at(&element.place, message);
            }
        }
    }
}
