//! What the agent knows and holds, and how it brings the datapath in line with it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use lb_common::abi::FLOW_WAYS;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Options;
use super::capture::Capturing;
use super::confirm::Waiting;
use super::hops::Walk;
use super::paths::PathKey;
use super::probing::{Checks, Probed, Report};
use super::reconcile::{bring_about, bring_about_some, go};
use super::watch::Observed;
use crate::core::config::{Config, Protocol};
use crate::core::events::Event;
use crate::core::image::{Image, Wanted};
use crate::core::plan::{Plan, RingCache};
use crate::core::reach::{Target, targets};
use crate::core::scope;
use crate::core::slow_start::Ramp;
use crate::core::stats::{
    self, AgentStatus, FlowTable, InterfaceStatus, NatTable, Readings, Snapshot, snapshot,
};
use crate::core::trend::Trends;
use crate::core::wanted::{BackendKey, Knowledge};
use crate::io::api::Requests;
use crate::io::datapath::{Datapath, DatapathError, Kernel, PinDir, ProbePath};
use crate::io::events::EventLog;
use crate::io::exporters::Histograms;
use crate::io::history::History;
use crate::io::lock::FolderLock;
use crate::io::neighbours::{HopError, Interface, Resolver, XdpState};
use crate::io::probes::TlsClients;
use crate::io::received;

/// A server task that ends with its handle.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The agent.
pub(super) struct Agent {
    pub(super) options: Options,
    pub(super) config: Config,
    /// The text that the configuration was read from.
    pub(super) text: String,
    pub(super) revision: u64,
    pub(super) history: History,
    /// The change that is undone unless it is confirmed.
    pub(super) waiting: Option<Waiting>,
    pub(super) started: Instant,
    pub(super) pins: PinDir,
    /// The pin directory, and the state directory if there is one.
    pub(super) _locks: (FolderLock, Option<FolderLock>),
    pub(super) kernel: Kernel,
    pub(super) resolver: Resolver,
    pub(super) interfaces: Vec<Interface>,
    pub(super) knowledge: Knowledge,
    /// Why a next hop is not known.
    pub(super) hop_errors: BTreeMap<Target, HopError>,
    /// The look at all next hops that is under way.
    pub(super) walk: Walk,
    /// The last one of those that did not answer and were asked again, if it is not yet the turn of all.
    pub(super) retried: Option<Target>,
    /// Backends that have just fallen silent, whose neighbours are to be verified.
    pub(super) doubted: BTreeSet<IpAddr>,
    /// What the last look at next hops found wrong that was not so before.
    pub(super) hop_news: Vec<String>,
    /// The checks in force.
    pub(super) checks: Checks,
    /// The certificate authorities that encrypted checks trust, as they were read.
    pub(super) tls: TlsClients,
    pub(super) probed: BTreeMap<BackendKey, Probed>,
    /// Services of whose backends something else is known than was brought about.
    pub(super) stale: BTreeSet<String>,
    /// Backends on their way back to their weight.
    pub(super) ramps: BTreeMap<BackendKey, Ramp>,
    /// The checks' way through the forwarding path, if any takes it.
    pub(super) path: Option<ProbePath>,
    /// The targets there.
    pub(super) path_targets: BTreeMap<PathKey, u32>,
    pub(super) reports: mpsc::Sender<Report>,
    pub(super) requests: Requests,
    pub(super) metrics: Option<Server>,
    /// What happened: every event goes through [`Agent::record`].
    pub(super) events: EventLog,
    /// What events are made from that need a look back.
    pub(super) observed: Observed,
    pub(super) histograms: Histograms,
    /// The last hour.
    pub(super) trends: Trends,
    /// What was found out about rings that another agent has loaded.
    pub(super) rings: RingCache,
    /// Set while a change of the datapath is under way, and after one that was broken off.
    pub(super) unsettled: bool,
    /// The capture under way.
    pub(super) capturing: Capturing,
    /// Set when the program was removed on request.
    pub(super) detached: bool,
}

/// Changing the datapath failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReconcileError {
    #[error(transparent)]
    Plan(#[from] crate::core::plan::PlanError),
    #[error(transparent)]
    Datapath(#[from] DatapathError),
}

impl Agent {
    /// Brings the datapath in line with what is known; failures are logged, and tried again later.
    pub(super) fn reconcile(&mut self) {
        let began = Instant::now();
        self.advance_ramps();
        self.stale.clear();
        let wanted = self.knowledge.wanted(&self.config);
        let done = self.bring_about(&wanted, began);
        self.told(done);
    }

    /// The same, where it is only of some services' backends that something else is known than was.
    pub(super) fn reconcile_stale(&mut self) {
        let began = Instant::now();
        self.advance_ramps();
        let stale = std::mem::take(&mut self.stale);
        if self.unsettled || self.walk.has_changes() || stale.len() > scope::MOST {
            return self.reconcile();
        }
        let services = self.config.services.iter().filter(|service| stale.contains(&service.name));
        let wanted = self.knowledge.wanted_of(&self.config, services);
        let done = bring_about_some(&mut self.kernel, &wanted, &mut self.rings, &mut self.unsettled);
        let done = done.map(|done| self.brought_about(done, began, Some(&stale)));
        self.told(done);
    }

    fn told(&mut self, done: Result<(), ReconcileError>) {
        if let Err(error) = done {
            // Whatever it was, all is looked at next time.
            self.unsettled = true;
            self.record(Event::NotReconciled { cause: error.to_string() });
        }
    }

    /// Brings the datapath to what is wanted, which was known since a moment.
    pub(super) fn bring_about(&mut self, wanted: &Wanted, since: Instant) -> Result<(), ReconcileError> {
        let done = bring_about(&mut self.kernel, wanted, &mut self.rings, &mut self.unsettled)?;
        self.brought_about(done, since, None);
        Ok(())
    }

    /// Goes a way that was planned from what is loaded of some services, or of all.
    pub(super) fn go(
        &mut self,
        plan: &Plan,
        since: Instant,
        some: Option<&BTreeSet<String>>,
    ) -> Result<(), ReconcileError> {
        let in_force = go(&mut self.kernel, plan, &mut self.unsettled)?;
        self.brought_about((plan.actions.len(), in_force), since, some);
        Ok(())
    }

    fn brought_about(
        &mut self,
        (actions, in_force): (usize, Instant),
        since: Instant,
        some: Option<&BTreeSet<String>>,
    ) {
        if actions > 0 {
            self.histograms.applied(in_force.saturating_duration_since(since));
            self.publish_paths();
        }
        self.record_statuses(some);
    }

    /// Removes idle flows.
    pub(super) fn sweep(&mut self) {
        let Ok(now) = self.kernel.now() else { return };
        let image = self.kernel.tables().image();
        let ids = image.ids_by_name();
        let udp_services: BTreeSet<u32> = self
            .config
            .services
            .iter()
            .filter(|service| service.protocol == Protocol::Udp)
            .filter_map(|service| ids.get(service.name.as_str()).copied())
            .collect();
        let udp = image.backends.iter().filter(|(_, backend)| udp_services.contains(&backend.service));
        let udp: BTreeSet<u16> = udp.map(|(&id, _)| id).collect();
        self.kernel.tables().sweep_idle(now, &udp);
        let left = self.kernel.tables().sweep_translations(now);
        self.release_sources(&image);
        self.leave_host_ports();
        self.look_for_pressure(left);
        self.look_for_drained(now);
    }

    /// Sweeps translations more often while they take much of their table.
    pub(super) fn relieve_translations(&self) {
        if let Ok(now) = self.kernel.now() {
            self.kernel.tables().relieve_translations(now);
        }
    }

    /// Sends new translated flows from no port that the host gives to its own connections.
    pub(super) fn leave_host_ports(&mut self) {
        if self.kernel.leave_host_ports() {
            log::info!(
                "net.ipv4.ip_local_port_range has changed: new connections of nat leave these ports to the host"
            );
        }
    }

    /// Has answers no longer looked up to addresses that flows were sent from, and none is any more.
    fn release_sources(&mut self, image: &Image) {
        let former = image.former_sources();
        // A packet under way may still be sent from one.
        if former.is_empty() || self.kernel.grace().is_err() {
            return;
        }
        let unused = self.kernel.tables().without_flows(former);
        if !unused.is_empty() {
            let wanted = Wanted { unused, ..self.knowledge.wanted(&self.config) };
            let done = self.bring_about(&wanted, Instant::now());
            self.told(done);
        }
    }

    /// Everything there is to show.
    pub(super) fn snapshot(&self) -> Result<Snapshot, DatapathError> {
        Ok(snapshot(self.status(), &self.config, &self.knowledge, &self.reasons(), &self.readings()?))
    }

    fn status(&self) -> AgentStatus {
        let received = received::by_interface();
        let interfaces = self.interfaces.iter().filter_map(|interface| {
            let received = received.get(&interface.name).copied();
            Some(InterfaceStatus { received, ..self.interface_status(interface)? })
        });
        let not_attached =
            self.interfaces.iter().filter(|interface| self.interface_status(interface).is_none());
        AgentStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.started.elapsed().as_secs(),
            interfaces: interfaces.collect(),
            not_attached: not_attached.map(|interface| interface.name.clone()).collect(),
            no_attach: !self.options.attach,
            revision: self.revision,
            config: self.options.config.display().to_string(),
            unconfirmed: self.unconfirmed(),
        }
    }

    /// What is wrong with backends.
    fn reasons(&self) -> BTreeMap<BackendKey, String> {
        let mut reasons = self.check_reasons();
        for (key, reason) in self.unseen_answers() {
            reasons.entry(key).or_insert(reason);
        }
        if self.hop_errors.is_empty() {
            return reasons;
        }
        for service in &self.config.services {
            for (backend, target) in service.backends.iter().zip(targets(service)) {
                if let Some(error) = self.hop_errors.get(&target) {
                    let key = BackendKey::new(&service.name, &backend.name);
                    reasons.entry(key).or_insert_with(|| error.to_string());
                }
            }
        }
        reasons
    }

    fn readings(&self) -> Result<Readings, DatapathError> {
        let tables = self.kernel.tables();
        let image = tables.image();
        let forwarded = self.kernel.forwarded()?;
        let (verdicts, cpus) = self.kernel.verdicts_by_cpu(&forwarded)?;
        Ok(Readings {
            verdicts,
            cpus: stats::cpus(&cpus.0, &received::online_cpus()),
            timings: self.kernel.timings(),
            program: self.kernel.runs(),
            services: forwarded.services,
            backends: forwarded.backends,
            flows: tables.live_flows(self.kernel.now()?),
            flow_table: FlowTable {
                size: u64::from(image.capacity.flow_buckets) * FLOW_WAYS as u64,
                entries: tables.flow_entries(),
                ..FlowTable::default()
            },
            nat: NatTable {
                size: image.capacity.translations.into(),
                entries: tables.translation_count(),
                ..NatTable::default()
            },
            image,
        })
    }

    /// One line about what runs.
    pub(super) fn describe(&self) -> String {
        let backends: usize = self.config.services.iter().map(|service| service.backends.len()).sum();
        let interfaces: Vec<String> = self
            .interfaces
            .iter()
            .map(|interface| match self.interface_status(interface) {
                Some(status) => format!("{} ({} mode)", status.name, status.xdp_mode),
                None => format!("{} (not attached)", interface.name),
            })
            .collect();
        format!(
            "services: {}, backends: {backends}, on {}",
            self.config.services.len(),
            interfaces.join(", ")
        )
    }

    /// What becomes of the data plane when the agent ends.
    pub(super) fn farewell(&self) -> &'static str {
        if self.detached {
            "the program is removed"
        } else if self.interfaces.iter().any(|interface| self.interface_status(interface).is_some()) {
            "the data plane goes on forwarding; `sluice detach` removes it"
        } else {
            "the program is not attached"
        }
    }

    /// How the program is attached to an interface; none if it is not.
    fn interface_status(&self, interface: &Interface) -> Option<InterfaceStatus> {
        let xdp_mode = match interface.xdp {
            // Another program may be on it.
            _ if self.observed.off.contains_key(&interface.name) => return None,
            XdpState::None => return None,
            XdpState::Driver => "driver",
            XdpState::Generic => "generic",
        };
        Some(InterfaceStatus { name: interface.name.clone(), xdp_mode: xdp_mode.to_owned(), received: None })
    }
}
