//! Routes, neighbours and interfaces as the kernel knows them → the next hops in force.

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream;
use lb_common::abi;
use nix::net::if_::if_indextoname;
use tokio::time::timeout;

use super::state::Agent;
use crate::core::config::{Config, Forwarding, Service};
use crate::core::events::{Event, clip};
use crate::core::reach::{self, Target};
use crate::core::wanted::BackendKey;
use crate::io::datapath::Datapath;
use crate::io::host;
use crate::io::neighbours::{HopError, Interface, InterfaceError, NextHop};

/// News that are told one by one.
pub(super) const MAX_NEWS: usize = 10;
/// How long questions about neighbours that fell silent may take.
const VERIFYING: Duration = Duration::from_millis(200);
/// Addresses that are looked at in one step.
const STEP: usize = 100;
/// Addresses that are resolved at the same time.
const CONCURRENT: usize = 64;

/// A look at all next hops, which goes on step by step: so nobody who asks for something meanwhile waits for the whole of it.
#[derive(Debug, Default)]
pub(super) struct Walk {
    /// What is still to be looked at.
    left: Vec<Target>,
    /// Whether any of the others changed.
    changed: bool,
    /// Whether something changed since it began, so that another one must follow.
    again: bool,
}

impl Walk {
    pub(super) fn is_under_way(&self) -> bool {
        !self.left.is_empty()
    }

    /// Whether next hops are known that are not in force yet: what is done for some services alone would name addresses to send
    /// from whose answers nobody looks up.
    pub(super) fn has_changes(&self) -> bool {
        self.changed
    }
}

impl Agent {
    /// Has the neighbours of backends that fell silent verified. With so many at once it is another fault, and not theirs.
    pub(super) async fn verify_doubted(&mut self) {
        let some: Vec<_> = std::mem::take(&mut self.doubted).into_iter().take(CONCURRENT).collect();
        let verify = async {
            for address in some {
                if let Err(error) = self.resolver.doubt(address).await {
                    log::debug!("cannot have {address} verified: {error}");
                }
            }
        };
        // The kernel answers in microseconds; were it not to, more is waiting for this task.
        let _ = timeout(VERIFYING, verify).await;
    }

    /// Backends whose answers must be translated, and come in where no program does it.
    pub(super) fn unseen_answers(&self) -> BTreeMap<BackendKey, String> {
        let attached: BTreeSet<u32> = self.interfaces.iter().map(|interface| interface.ifindex).collect();
        let mut unseen = BTreeMap::new();
        let translated = |service: &&Service| service.forwarding == Forwarding::Nat && self.options.attach;
        for service in self.config.services.iter().filter(translated) {
            for (backend, target) in service.backends.iter().zip(reach::targets(service)) {
                let interface = self.knowledge.hops.get(&target).map_or(0, |hop| hop.interface);
                if interface != 0
                    && !attached.contains(&interface)
                    && let Ok(name) = if_indextoname(interface)
                {
                    let name = name.to_string_lossy();
                    let why = format!(
                        "its answers come in on {name}, where the program is not, and so never reach a customer: add {name} to \
                         agent.interfaces"
                    );
                    unseen.insert(BackendKey::new(&service.name, &backend.name), why);
                }
            }
        }
        unseen
    }

    /// The same to be read by people.
    pub(super) fn unseen_news(&self) -> Vec<String> {
        let unseen = self.unseen_answers().into_iter();
        summarise(
            unseen
                .map(|(key, why)| format!("service {}: backend {}: {why}", key.service, key.backend))
                .collect(),
        )
    }

    /// Looks again at the interfaces, and begins to look at the next hops.
    pub(super) async fn refresh_network(&mut self) {
        self.refresh_interfaces().await;
        if self.walk.is_under_way() {
            self.walk.again = true;
        } else {
            self.walk = Walk { left: targets(&self.config).into_iter().collect(), ..Walk::default() };
            if !self.walk.is_under_way() && self.unsettled {
                self.reconcile();
            }
        }
    }

    /// Looks at some of the next hops that are still to be looked at; at the end, brings about what changed.
    pub(super) async fn walk_on(&mut self) {
        let first = self.walk.left.len().saturating_sub(STEP);
        let mut some: BTreeSet<Target> = self.walk.left.split_off(first).into_iter().collect();
        // Those of another configuration are forgotten by now.
        some.retain(|target| {
            self.knowledge.hops.contains_key(target) || self.hop_errors.contains_key(target)
        });
        self.walk.changed |= self.resolve(some, Duration::ZERO).await;
        if self.walk.is_under_way() {
            return;
        }
        let Walk { changed, again, .. } = std::mem::take(&mut self.walk);
        if changed || self.unsettled {
            self.reconcile();
        }
        if again {
            self.refresh_network().await;
        }
    }

    /// Looks again at what did not answer: the kernel, left alone, would not ask for it another time, and a server or
    /// gateway that comes back need not tell of itself. Where there are many, they take turns.
    pub(super) async fn retry_hops(&mut self) {
        let silent = self.hop_errors.iter().filter(|(_, error)| error.may_pass()).map(|(target, _)| *target);
        let silent: BTreeSet<Target> = silent.collect();
        let behind = self.retried.map_or(Bound::Unbounded, Bound::Excluded);
        let turn = silent.range((behind, Bound::Unbounded)).chain(&silent).take(STEP.min(silent.len()));
        let turn: BTreeSet<Target> = turn.copied().collect();
        self.retried = turn.last().copied().filter(|_| turn.len() < silent.len());
        if !turn.is_empty() && (self.resolve(turn, Duration::ZERO).await || self.unsettled) {
            self.reconcile();
        }
    }

    /// Looks again at the interfaces: an own MAC address may change, an interface be made anew under its name, and the program
    /// be taken off.
    pub(super) async fn refresh_interfaces(&mut self) {
        for at in 0..self.interfaces.len() {
            let Some(known) = self.interfaces.get(at).cloned() else { continue };
            let (found, is_there) = match self.resolver.interface(&known.name).await {
                Ok(found) => (found, true),
                // Another one may come under its name.
                Err(InterfaceError::NotFound { .. }) => {
                    if self.options.attach && known.is_there() {
                        self.tell_absent(known.name.clone());
                    }
                    (Interface::absent(&known.name), false)
                }
                Err(_) => continue,
            };
            if self.options.attach && is_there && !self.pins.is_linked(&known.name, found.ifindex) {
                self.attach_again(&known.name, found.ifindex == known.ifindex).await;
            } else if found != known
                && let Some(interface) = self.interfaces.get_mut(at)
            {
                *interface = found;
            } else {
                continue;
            }
            self.publish_interfaces();
            self.publish_paths();
        }
    }

    /// Attaches the program to an interface that it is not on any more: it was taken off, or the interface made anew. What goes
    /// wrong is told once; the next look tries again.
    async fn attach_again(&mut self, name: &str, taken_off: bool) {
        let told = self.observed.off.get(name).cloned();
        if told.is_none() && !taken_off {
            self.record(Event::InterfaceReplaced { interface: name.to_owned() });
        }
        let cause = match self.attach(name).await {
            Ok(_) => {
                self.observed.off.remove(name);
                if taken_off && told.flatten().is_none() {
                    self.record(Event::TakenOff { interface: name.to_owned() });
                }
                return;
            }
            Err(error) => error.to_string(),
        };
        // What a removed pin held goes a moment later: only who is in the way twice is.
        let telling = told.as_ref().map(|_| cause.clone());
        if let Some(told) = &told
            && telling != *told
        {
            self.record(Event::NotAttached { interface: name.to_owned(), cause: clip(&cause) });
        }
        self.observed.off.insert(name.to_owned(), telling);
    }

    /// Tells the program which interfaces it is on.
    pub(super) fn publish_interfaces(&self) {
        let interfaces: Vec<(u32, [u8; 6])> =
            self.interfaces.iter().map(|interface| (interface.ifindex, interface.mac)).collect();
        self.kernel.tables().set_interfaces(&interfaces);
    }

    /// Resolves `targets`; says whether a next hop changed. One that cannot be resolved now keeps what was last known:
    /// health decides what becomes of the backend.
    pub(super) async fn resolve(&mut self, targets: BTreeSet<Target>, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let resolver = &self.resolver;
        let resolve = async |(address, reach)| {
            let left = deadline.saturating_duration_since(Instant::now());
            ((address, reach), resolver.resolve_within(address, reach, left).await)
        };
        let found: Vec<(Target, Result<NextHop, HopError>)> =
            stream::iter(targets).map(resolve).buffer_unordered(CONCURRENT).collect().await;
        let vips = self.config.services.iter().flat_map(|service| &service.vips);
        let vips: BTreeSet<IpAddr> = vips.map(|vip| vip.address).collect();
        let own: LazyCell<_> = LazyCell::new(own_addresses);
        let mut changed = false;
        let (mut news, mut found_again) = (Vec::new(), Vec::new());
        for (target, result) in found {
            match result {
                Ok(hop) => {
                    let hop = self.shared_hop(not_from_vip(hop, &vips, &own));
                    changed |= self.knowledge.hops.insert(target, hop) != Some(hop);
                    if self.hop_errors.remove(&target).is_some() {
                        found_again.push(target.0);
                    }
                }
                Err(error) => {
                    if self.hop_errors.get(&target) != Some(&error) {
                        news.push((target.0, error.to_string()));
                    }
                    self.hop_errors.insert(target, error);
                }
            }
        }
        // An address may be asked for in several ways.
        news.sort_unstable();
        news.dedup();
        found_again.sort_unstable();
        found_again.dedup();
        self.record_hops(&news, &found_again);
        self.hop_news = summarise(news.into_iter().map(|(_, error)| error).collect());
        changed
    }

    /// The next hop as the program's record has it. With one interface there is no other to transmit on. Outside of VLANs, frames lose the
    /// tags that they came in with where VLANs are the kernel's business; elsewhere they keep them.
    fn shared_hop(&self, hop: NextHop) -> abi::NextHop {
        let only = matches!(self.interfaces.as_slice(), [only] if only.ifindex == hop.ifindex);
        let interface = if only { 0 } else { hop.ifindex };
        let carries_vlans = self.interfaces.iter().any(|interface| interface.carries_vlans);
        abi::NextHop {
            source: hop.source.map(Into::into).unwrap_or_default(),
            mtu: u16::try_from(hop.mtu).unwrap_or(u16::MAX),
            vlan: hop.vlan.unwrap_or(if carries_vlans { abi::NextHop::UNTAGGED } else { 0 }),
            ..abi::NextHop::new(hop.destination_mac, hop.source_mac, interface)
        }
    }
}

/// This host's addresses, by interface.
fn own_addresses() -> Vec<(String, IpAddr)> {
    host::addresses_by_interface().unwrap_or_else(|error| {
        log::warn!("cannot list this host's addresses, so packets may be sent from a VIP: {error}");
        Vec::new()
    })
}

/// The next hop, sent from another address of the interface where the kernel would choose a VIP: what comes back to one is taken
/// for a customer's. For IPv6 it does so if the VIP is more like the backend's address than the interface's own.
fn not_from_vip(hop: NextHop, vips: &BTreeSet<IpAddr>, own: &LazyCell<Vec<(String, IpAddr)>>) -> NextHop {
    let Some(vip) = hop.source.filter(|source| vips.contains(source)) else { return hop };
    let interface = own.iter().find(|(_, address)| *address == vip).map(|(name, _)| name);
    let other = interface.and_then(|interface| host::source(own, interface, vip, vips));
    NextHop { source: other.or(hop.source), ..hop }
}

/// The next hops that a configuration wants.
pub(super) fn targets(config: &Config) -> BTreeSet<Target> {
    config.services.iter().flat_map(reach::targets).collect()
}

/// At most a screenful of errors; of more, the number.
fn summarise(mut errors: Vec<String>) -> Vec<String> {
    let more = errors.len().saturating_sub(MAX_NEWS);
    errors.truncate(MAX_NEWS);
    if more > 0 {
        errors.push(format!("… and {more} more; `sluice status` shows each"));
    }
    errors
}
