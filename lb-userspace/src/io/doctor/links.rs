//! The interfaces of this network namespace, as the kernel tells them → facts.

use std::collections::BTreeMap;
use std::io;

use futures_util::StreamExt;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, XdpAttached};

use crate::core::doctor::LinkFacts;

/// An interface.
#[derive(Debug, Default)]
struct Link {
    name: String,
    facts: LinkFacts,
    master: Option<u32>,
    lower: Option<u32>,
}

/// All interfaces by name.
pub(super) async fn all() -> io::Result<BTreeMap<String, LinkFacts>> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    let mut links = BTreeMap::new();
    let mut answers = std::pin::pin!(handle.link().get().execute());
    while let Some(answer) = answers.next().await {
        let message = answer.map_err(io::Error::other)?;
        links.insert(message.header.index, link(&message));
    }
    let named = |index: Option<u32>| index.and_then(|index| links.get(&index));
    let over = |index: u32| {
        let vlans = links.values().filter(|link| link.facts.kind == "vlan" && link.lower == Some(index));
        vlans.map(|link| link.name.clone()).collect()
    };
    let whole = links.iter().map(|(&index, link)| {
        let master = named(link.master).map(|master| (master.name.clone(), master.facts.kind.clone()));
        let lower = named(link.lower).map(|lower| lower.name.clone());
        (link.name.clone(), LinkFacts { master, lower, vlans: over(index), ..link.facts.clone() })
    });
    Ok(whole.collect())
}

fn link(message: &LinkMessage) -> Link {
    let mut link = Link::default();
    link.facts.running = message.header.flags.contains(LinkFlags::Up | LinkFlags::Running);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.facts.mtu = *mtu,
            LinkAttribute::Controller(index) => link.master = Some(*index),
            LinkAttribute::Link(index) => link.lower = Some(*index),
            LinkAttribute::Xdp(values) => {
                link.facts.xdp = xdp(values);
                link.facts.program = values.iter().find_map(|value| match value {
                    LinkXdp::ProgId(program) => Some(*program),
                    _ => None,
                });
            }
            LinkAttribute::LinkInfo(values) => {
                let kind = values.iter().find_map(|value| match value {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
                link.facts.kind = kind.unwrap_or_default();
            }
            _ => {}
        }
    }
    link
}

fn xdp(values: &[LinkXdp]) -> Option<&'static str> {
    values.iter().find_map(|value| match value {
        LinkXdp::Attached(XdpAttached::Driver | XdpAttached::Hardware) => Some("driver"),
        LinkXdp::Attached(XdpAttached::SocketBuffer) => Some("generic"),
        _ => None,
    })
}
