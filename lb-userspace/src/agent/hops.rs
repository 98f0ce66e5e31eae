//! Routes, neighbours and interfaces as the kernel knows them → the next hops in force.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream;
use lb_common::abi;

use super::state::Agent;
use crate::core::config::Config;
use crate::io::datapath::Datapath;
use crate::io::neighbours::{HopError, NextHop};

/// Errors that are told one by one.
const MAX_NEWS: usize = 10;
/// Addresses that are resolved at the same time.
const CONCURRENT: usize = 64;

impl Agent {
    /// Looks again at interfaces and next hops, and brings about what changed.
    pub(super) async fn refresh_network(&mut self) {
        self.refresh_interfaces().await;
        if self.resolve(&self.config.clone(), Duration::ZERO).await || self.unsettled {
            self.reconcile();
        }
    }

    /// Looks again at the interfaces: an own MAC address may change, and an interface be made anew under its name.
    async fn refresh_interfaces(&mut self) {
        for at in 0..self.interfaces.len() {
            let Some(known) = self.interfaces.get(at).cloned() else { continue };
            let Ok(found) = self.resolver.interface(&known.name).await else { continue };
            if found == known {
                continue;
            }
            if found.ifindex != known.ifindex && self.options.attach {
                log::warn!("{}: the interface was made anew", known.name);
                // On an error what is known stays, so that the next look tries again.
                if let Err(error) = self.attach(&known.name).await {
                    log::error!("{error}");
                }
            } else if let Some(interface) = self.interfaces.get_mut(at) {
                *interface = found;
            }
            self.publish_interfaces();
        }
    }

    /// Tells the program which interfaces it is on.
    pub(super) fn publish_interfaces(&self) {
        let interfaces: Vec<(u32, [u8; 6])> =
            self.interfaces.iter().map(|interface| (interface.ifindex, interface.mac)).collect();
        self.kernel.tables().set_interfaces(&interfaces);
    }

    /// Resolves the backends of a configuration; says whether a next hop changed. One that cannot be resolved now keeps
    /// what was last known: health decides what becomes of the backend.
    pub(super) async fn resolve(&mut self, config: &Config, patience: Duration) -> bool {
        let addresses: BTreeSet<IpAddr> = config
            .services
            .iter()
            .flat_map(|service| &service.backends)
            .map(|backend| backend.address)
            .collect();
        let deadline = Instant::now() + patience;
        let resolver = &self.resolver;
        let resolve = async |address| {
            let left = deadline.saturating_duration_since(Instant::now());
            (address, resolver.resolve_within(address, left).await)
        };
        let found: Vec<(IpAddr, Result<NextHop, HopError>)> =
            stream::iter(addresses).map(resolve).buffer_unordered(CONCURRENT).collect().await;
        let mut changed = false;
        let mut news = Vec::new();
        for (address, result) in found {
            match result {
                Ok(hop) => {
                    let hop = self.shared_hop(hop);
                    changed |= self.knowledge.hops.insert(address, hop) != Some(hop);
                    self.hop_errors.remove(&address);
                }
                Err(error) => {
                    let error = error.to_string();
                    if self.hop_errors.insert(address, error.clone()).as_ref() != Some(&error) {
                        news.push(error);
                    }
                }
            }
        }
        self.hop_news = summarise(news);
        for error in &self.hop_news {
            log::warn!("no next hop: {error}");
        }
        changed
    }

    /// The next hop as the program's record has it. With one interface there is no other to transmit on.
    fn shared_hop(&self, hop: NextHop) -> abi::NextHop {
        let only = matches!(self.interfaces.as_slice(), [only] if only.ifindex == hop.ifindex);
        abi::NextHop::new(hop.destination_mac, hop.source_mac, if only { 0 } else { hop.ifindex })
    }
}

/// At most a screenful of errors; of more, the number.
fn summarise(mut errors: Vec<String>) -> Vec<String> {
    let more = errors.len().saturating_sub(MAX_NEWS);
    errors.truncate(MAX_NEWS);
    if more > 0 {
        errors.push(format!("… and {more} more addresses; `sluice status` shows each"));
    }
    errors
}
