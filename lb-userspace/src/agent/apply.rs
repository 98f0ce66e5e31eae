//! A new configuration → in force, whole, or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lb_common::abi::RING_SIZE;

use super::AgentError;
use super::hops::targets;
use super::start::{self, capacity, flows, parse_config};
use super::state::{Agent, Server};
use crate::core::config::Config;
use crate::core::diff::diff;
use crate::core::events::Event;
use crate::core::image::Image;
use crate::core::plan::{Plan, plan};
use crate::core::ring::changed_slots;
use crate::io::api::{ApiError, ApplyReport, ApplyRequest, ErrorKind, RingChange};
use crate::io::datapath::Datapath;
use crate::io::probes::TlsClients;
use crate::io::store;

/// How long new backends may take to tell their MAC addresses.
const NEW_HOPS: Duration = Duration::from_millis(500);

/// What was made ready for a new configuration before anything old is given up.
struct Prepared {
    metrics: Option<Option<Server>>,
}

impl Agent {
    /// SIGHUP: reads the file again.
    pub(super) async fn reload(&mut self) {
        // Certificate authorities are read again, too.
        self.tls = TlsClients::default();
        let applied = match start::read_config(&self.options) {
            Ok(config) => self.put_in_force(config).await,
            Err(AgentError::Config(errors)) => Err(ApiError { kind: ErrorKind::Invalid, errors }),
            Err(error) => Err(ApiError::failed(error)),
        };
        match applied {
            Ok(report) => self.record_applied("reload", &report),
            Err(error) => {
                for line in &error.errors {
                    log::error!("{line}");
                }
                self.record(Event::refused("reload", &error.errors));
            }
        }
    }

    /// Does what an apply asks for, and records what became of it.
    pub(super) async fn on_apply(&mut self, request: ApplyRequest) -> Result<ApplyReport, ApiError> {
        let dry_run = request.dry_run;
        let applied = self.apply(request).await;
        match &applied {
            _ if dry_run => {}
            Ok(report) => self.record_applied("apply", report),
            Err(error) => self.record(Event::refused("apply", &error.errors)),
        }
        applied
    }

    /// Brings a configuration into force, and then writes it to the agent's file.
    async fn apply(&mut self, request: ApplyRequest) -> Result<ApplyReport, ApiError> {
        let config = parse_config(&request.config, &request.name)
            .map_err(|errors| ApiError { kind: ErrorKind::Invalid, errors })?;
        if request.dry_run {
            self.refuse_what_needs_a_restart(&config)?;
            return self.predict(&config, true);
        }
        let current = store::read(&self.options.config).ok();
        let written = match current.as_deref() == Some(request.config.as_str()) {
            true => None,
            // Written aside first: what cannot be kept is not brought into force.
            false => Some(store::prepare(&self.options.config, &request.config).map_err(ApiError::failed)?),
        };
        let report = self.put_in_force(config).await?;
        match written.map(store::Prepared::commit) {
            None | Some(Ok(())) => Ok(report),
            Some(Err(error)) => Err(ApiError::failed(format!(
                "in force, but not in the agent's configuration file, so the next start or reload would undo it: {error}"
            ))),
        }
    }

    /// Brings a configuration into force. On an error the one before stays.
    async fn put_in_force(&mut self, config: Config) -> Result<ApplyReport, ApiError> {
        self.refuse_what_needs_a_restart(&config)?;
        let mut report = self.predict(&config, false)?;
        let prepared = self.prepare(&config).await?;
        self.resolve(targets(&config), NEW_HOPS).await;
        let checks = self.prepare_checks(&config).map_err(ApiError::failed)?;
        let before = std::mem::replace(&mut self.config, config);
        let checks_before = std::mem::replace(&mut self.checks, checks);
        let known = start::adopted_health(&self.kernel.tables().image());
        self.sync_probes(&known);
        if before.agent.ring_seed != self.config.agent.ring_seed {
            self.kernel.set_ring_seed(self.config.agent.ring_seed);
        }
        let wanted = self.knowledge.wanted(&self.config);
        if let Err(error) = self.bring_about(&wanted) {
            self.config = before;
            self.checks = checks_before;
            self.restore_paths();
            self.sync_probes(&known);
            self.kernel.set_ring_seed(self.config.agent.ring_seed);
            self.reconcile();
            return Err(ApiError::failed(error));
        }
        self.publish_paths();
        if let Some(metrics) = prepared.metrics {
            self.metrics = metrics;
        }
        self.forget_unused(&before);
        self.record_state_changes(&before);
        self.revision += 1;
        report.revision = self.revision;
        report.warnings = self.hop_news.iter().map(|error| format!("no next hop: {error}")).collect();
        Ok(report)
    }

    /// What cannot change while the agent runs.
    fn refuse_what_needs_a_restart(&self, config: &Config) -> Result<(), ApiError> {
        let mut errors = Vec::new();
        let restart = "restart the agent to change it (the data plane goes on meanwhile)";
        let detach = "a link keeps its mode; to change it, run `sluice detach` and start the agent again";
        if config.agent.interfaces != self.config.agent.interfaces {
            errors.push(format!("agent.interfaces: {restart}"));
        }
        if config.agent.xdp_mode != self.config.agent.xdp_mode {
            errors.push(format!("agent.xdp_mode: {detach}"));
        }
        let loaded = self.kernel.tables().capacity();
        if capacity(config).flow_buckets != loaded.flow_buckets {
            errors.push(format!(
                "agent.flow_table_size: the loaded flow table holds {} flows; to change it, stop the agent, run \
                 `sluice detach` and start it again (this ends the forwarding in between)",
                flows(loaded)
            ));
        }
        if capacity(config).translations != loaded.translations {
            errors.push(format!(
                "agent.nat_table_size: the loaded table holds {} connections; to change it, stop the agent, run `sluice \
                 detach` and start it again (this ends the forwarding in between)",
                loaded.translations / 2
            ));
        }
        if errors.is_empty() { Ok(()) } else { Err(ApiError { kind: ErrorKind::Invalid, errors }) }
    }

    /// Takes what the new configuration needs beyond the tables, while the old one still has its own.
    async fn prepare(&self, config: &Config) -> Result<Prepared, ApiError> {
        let wanted = config.agent.metrics;
        if wanted == self.metrics.as_ref().map(|server| server.address) {
            return Ok(Prepared { metrics: None });
        }
        let metrics = self.serve_metrics(wanted).await.map_err(ApiError::failed)?;
        Ok(Prepared { metrics: Some(metrics) })
    }

    /// What a configuration would change: exactly, if backends that have not been probed yet turn out well.
    fn predict(&mut self, config: &Config, dry_run: bool) -> Result<ApplyReport, ApiError> {
        let image = self.kernel.tables().image();
        let wanted = self.knowledge.clone().hopeful(config).wanted(config);
        let Plan { rings, kept, .. } = plan(&image, &wanted, &mut self.rings).map_err(ApiError::failed)?;
        let ids: BTreeMap<&str, u32> =
            image.services.iter().map(|(&id, service)| (service.name.as_str(), id)).collect();
        let mut changed: Vec<RingChange> = rings
            .iter()
            .filter_map(|(service, ring)| {
                let loaded = image.services.get(ids.get(service.as_str())?)?.ring.as_ref()?;
                let slots =
                    ring.as_ref().map_or(RING_SIZE, |ring| changed_slots(&loaded.1.slots, &ring.slots));
                Some((service, slots))
            })
            .filter(|&(_, slots)| slots > 0)
            .map(|(service, slots)| RingChange {
                service: service.clone(),
                slots_changed: slots as f64 / RING_SIZE as f64,
            })
            .collect();
        let gone = image.services.values().filter(|service| !rings.contains_key(&service.name));
        changed.extend(gone.map(|service| RingChange { service: service.name.clone(), slots_changed: 1.0 }));
        Ok(ApplyReport {
            dry_run,
            revision: self.revision,
            changes: diff(&self.config, config),
            rings: changed,
            flows_lost: self.flows_lost(&image, &kept)?,
            warnings: Vec::new(),
        })
    }

    /// Live flows of backends that are enabled now and would not be kept.
    fn flows_lost(&self, image: &Image, kept: &BTreeSet<u16>) -> Result<u64, ApiError> {
        let lost = image.backends.iter().filter(|(id, backend)| backend.enabled && !kept.contains(id));
        let counts = self.kernel.tables().live_flows(self.kernel.now().map_err(ApiError::failed)?);
        Ok(lost.filter_map(|(id, _)| counts.get(id)).sum())
    }

    /// Forgets what only the configuration before knew.
    fn forget_unused(&mut self, before: &Config) {
        let services: BTreeSet<&str> =
            self.config.services.iter().map(|service| service.name.as_str()).collect();
        for service in before.services.iter().filter(|service| !services.contains(service.name.as_str())) {
            self.histograms.forget(&service.name);
        }
        let wanted = targets(&self.config);
        self.knowledge.hops.retain(|target, _| wanted.contains(target));
        self.hop_errors.retain(|target, _| wanted.contains(target));
    }
}
