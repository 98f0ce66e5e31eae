//! Checks through the forwarding path → targets that the datapath knows, each with its backend's id.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::AgentError;
use super::state::Agent;
use crate::core::config::{self, Config, Probe};
use crate::core::reach;
use crate::core::wanted::BackendKey;
use crate::io::datapath::{Datapath, ProbePath};
use crate::io::probes::{ForwardingPath, Target};

/// A target of the datapath: a backend with its own address, and the VIP it is asked at.
pub(super) type PathKey = (BackendKey, IpAddr, IpAddr);

impl Agent {
    /// Loads what checks through the forwarding path need, if the configuration has such, and gives each a target.
    pub(super) fn prepare_paths(&mut self, config: &Config) -> Result<(), AgentError> {
        let wanted = path_keys(config);
        if wanted.is_empty() {
            return Ok(());
        }
        let new = wanted.iter().filter(|key| !self.path_targets.contains_key(*key)).count();
        if self.path.as_ref().is_none_or(|path| path.room() < new) {
            // What the former one counts is forgotten with it, and its checks begin anew.
            self.path = Some(ProbePath::load(&self.pins, wanted.len())?);
            self.path_targets.clear();
        }
        let Some(path) = &mut self.path else { return Ok(()) };
        for key in wanted {
            if !self.path_targets.contains_key(&key)
                && let Some(target) = path.add(key.2, key.1)
            {
                self.path_targets.insert(key, target);
            }
        }
        Ok(())
    }

    /// Has targets again for the checks of the configuration in force, after another one was given up.
    pub(super) fn restore_paths(&mut self) {
        if let Err(error) = self.prepare_paths(&self.config.clone()) {
            log::error!("health checks do not go through the forwarding path: {error}");
        }
    }

    /// Tells the datapath which backend each target is, and puts its programs where packets to them leave.
    pub(super) fn publish_paths(&mut self) {
        let wanted = path_keys(&self.config);
        let Some(path) = &mut self.path else { return };
        if wanted.is_empty() {
            self.path = None;
            self.path_targets.clear();
            return;
        }
        let image = self.kernel.tables().image();
        let loaded: BTreeMap<(u32, &str), u16> = image
            .backends
            .iter()
            .map(|(&id, backend)| ((backend.service, backend.name.as_str()), id))
            .collect();
        let services = image.ids_by_name();
        for ((key, address, _), &target) in &self.path_targets {
            let service = services.get(key.service.as_str()).copied();
            let id = service.and_then(|service| loaded.get(&(service, key.backend.as_str())).copied());
            let is_same =
                |id: &u16| image.backends.get(id).is_some_and(|found| found.address.to_ip() == *address);
            path.set_backend(target, id.filter(is_same).unwrap_or(0));
        }
        self.path_targets.retain(|key, _| wanted.contains(key));
        if !self.options.attach {
            return;
        }
        let mut interfaces: BTreeSet<u32> =
            self.interfaces.iter().map(|interface| interface.ifindex).collect();
        let asked = self.config.services.iter().filter(|service| is_asked_through(service));
        let hops = asked.flat_map(reach::targets).filter_map(|target| self.knowledge.hops.get(&target));
        interfaces.extend(hops.map(|hop| hop.interface).filter(|&index| index != 0));
        if let Err(error) = path.attach(&interfaces) {
            log::error!("{error}");
        }
    }

    /// Where the probes of each backend go: of the services whose names are asked for.
    pub(super) fn targets(&self, of: impl Fn(&str) -> bool) -> Vec<(BackendKey, Target)> {
        let of_service = |service: &'_ config::Service| {
            let probed = service.backends.iter().filter_map(|backend| {
                let key = BackendKey::new(&service.name, &backend.name);
                let address = SocketAddr::new(backend.address, service.probe_port(backend)?);
                let vips = service.probed_vips(backend).into_iter().filter_map(|vip| {
                    let target = self.path_targets.get(&(key.clone(), backend.address, vip))?;
                    Some((vip, *target))
                });
                let vips: Vec<_> = vips.collect();
                let counts = self.path.as_ref().map(ProbePath::counts).filter(|_| !vips.is_empty());
                let path =
                    counts.map(|counts| Arc::new(ForwardingPath::new(service.forwarding, vips, counts)));
                Some((key, Target { address, path }))
            });
            probed.collect::<Vec<_>>()
        };
        self.config.services.iter().filter(|service| of(&service.name)).flat_map(of_service).collect()
    }
}

pub(super) fn is_asked_through(service: &config::Service) -> bool {
    service.health.probe != Probe::None
        && service.backends.iter().any(|backend| !service.probed_vips(backend).is_empty())
}

fn path_keys(config: &Config) -> BTreeSet<PathKey> {
    let services = config.services.iter().filter(|service| is_asked_through(service));
    let keys = services.flat_map(|service| {
        service.backends.iter().flat_map(|backend| {
            let key = BackendKey::new(&service.name, &backend.name);
            service.probed_vips(backend).into_iter().map(move |vip| (key.clone(), backend.address, vip))
        })
    });
    keys.collect()
}
