//! A new configuration → in force, whole, or not at all.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::{Duration, Instant};

use super::packet_log;
use super::start::{self, capacity_beside};
use super::state::{Agent, Server};
use crate::core::capture::EndReason;
use crate::core::config::{Config, Service, line_of_agent_key};
use crate::core::diff::diff;
use crate::core::effect::effects;
use crate::core::events::Event;
use crate::core::image::{Capacity, Image};
use crate::core::plan::{Plan, PlanError, plan, plan_some};
use crate::core::reach::{self, Target};
use crate::core::scope;
use crate::core::warn::left_without;
use crate::io::api::{ApiError, ApplyReport, ErrorKind};
use crate::io::datapath::{Datapath, LoadError};
use crate::io::host::give_back_memory;

/// How long new backends may take to tell their MAC addresses.
const NEW_HOPS: Duration = Duration::from_millis(500);

/// What was made ready for a new configuration before anything old is given up.
pub(super) struct Prepared {
    metrics: Option<Option<Server>>,
}

/// The configuration that was in force till now, and its server, if it has another one: as long as that is kept, so is its port.
pub(super) struct Former {
    config: Config,
    metrics: Option<Option<Server>>,
}

/// What a configuration would change.
pub(super) struct Foreseen {
    pub(super) report: ApplyReport,
    /// The sizes of the tables that it takes.
    pub(super) capacity: Capacity,
    way: Way,
}

/// The way to a configuration.
struct Way {
    /// The services that it is about, if these are not all.
    some: Option<BTreeSet<String>>,
    /// What is loaded of them now.
    image: Image,
    plan: Plan,
    /// Whether the plan rests on hopes for backends of which something is not known yet.
    hopeful: bool,
    /// Of which nothing is known yet.
    new: BTreeSet<Target>,
}

impl Agent {
    /// Brings a configuration into force; the one before, and what was done. On an error the one before stays.
    pub(super) async fn put_in_force(&mut self, config: Config) -> Result<(Former, ApplyReport), ApiError> {
        let began = Instant::now();
        let Foreseen { mut report, capacity, way } = self.foresee(&config, false)?;
        let Way { some, image, plan, hopeful, new } = way;
        // What may well be refused comes before anything is changed.
        let prepared = self.prepare(&config).await?;
        let checks = self.checks(&config).map_err(ApiError::failed)?;
        let mut as_foreseen = self.kernel.tables().capacity() == capacity;
        let room = self.make_room(capacity).map_err(ApiError::failed);
        let ready = room.and_then(|()| self.prepare_paths(&config).map_err(ApiError::failed));
        if let Err(error) = ready {
            self.check_as_before(&image);
            return Err(error);
        }
        as_foreseen &= new.is_empty();
        self.resolve(new, NEW_HOPS).await;
        let before = std::mem::replace(&mut self.config, config);
        let checks_before = std::mem::replace(&mut self.checks, checks);
        as_foreseen &= !self.sync_probes(Some(&before), &image);
        if before.agent.ring_seed != self.config.agent.ring_seed {
            self.kernel.set_ring_seed(self.config.agent.ring_seed);
        }
        // Mostly nothing is known now that was not known then, and nothing was to be hoped for.
        let done = if as_foreseen && !hopeful {
            self.go(&plan, began, some.as_ref())
        } else {
            let wanted = self.knowledge.wanted(&self.config);
            self.bring_about(&wanted, began)
        };
        if let Err(error) = done {
            self.config = before;
            self.checks = checks_before;
            self.check_as_before(&image);
            self.kernel.set_ring_seed(self.config.agent.ring_seed);
            self.reconcile();
            return Err(ApiError::failed(error));
        }
        self.publish_paths();
        let metrics = prepared.metrics.map(|metrics| std::mem::replace(&mut self.metrics, metrics));
        self.forget_unused(&before);
        self.record_state_changes(&before);
        let lost = self.hop_news.iter().map(|error| format!("no next hop: {error}"));
        report.warnings.extend(lost.chain(self.unseen_news()));
        Ok((Former { config: before, metrics }, report))
    }

    /// Brings the configuration before into force again.
    pub(super) async fn go_back(&mut self, former: Former) -> Result<(), ApiError> {
        if let Some(metrics) = former.metrics {
            self.metrics = metrics;
        }
        self.put_in_force(former.config).await.map(drop)
    }

    /// Goes on with the checks of the configuration in force, after another one was given up; `loaded` is what was so before.
    fn check_as_before(&mut self, loaded: &Image) {
        self.restore_paths();
        self.sync_probes(None, loaded);
        self.publish_paths();
    }

    /// What cannot change while the agent runs; `text` says the configuration, and `name` is what it is called.
    pub(super) fn refuse_what_needs_a_restart(
        &self,
        config: &Config,
        text: &str,
        name: &str,
    ) -> Result<(), ApiError> {
        let mut errors = Vec::new();
        let mut refuse = |key: &str, why: &str| {
            let line = line_of_agent_key(text, key);
            errors.push(format!("{name}:{line}: agent.{key}: {why}"));
        };
        let restart = "restart the agent to change it (the data plane goes on meanwhile)";
        let detach = "a link keeps its mode; to change it, run `sluice detach` and start the agent again";
        if config.agent.interfaces != self.config.agent.interfaces {
            refuse("interfaces", restart);
        }
        if config.agent.xdp_mode != self.config.agent.xdp_mode {
            refuse("xdp_mode", detach);
        }
        if errors.is_empty() { Ok(()) } else { Err(ApiError { kind: ErrorKind::Invalid, errors }) }
    }

    /// Takes what the new configuration needs beyond the tables, while the old one still has its own.
    pub(super) async fn prepare(&self, config: &Config) -> Result<Prepared, ApiError> {
        let wanted = config.agent.metrics;
        if wanted == self.metrics.as_ref().map(|server| server.address) {
            return Ok(Prepared { metrics: None });
        }
        let metrics = self.serve_metrics(wanted).await.map_err(ApiError::failed)?;
        Ok(Prepared { metrics: Some(metrics) })
    }

    /// What nothing is known of yet. What is known, or known not to answer, is kept fresh by what the kernel tells.
    fn new_targets<'a>(&self, services: impl Iterator<Item = &'a Service>) -> BTreeSet<Target> {
        let all = services.flat_map(reach::targets);
        all.filter(|target| {
            !self.knowledge.hops.contains_key(target) && !self.hop_errors.contains_key(target)
        })
        .collect()
    }

    /// What a configuration would change: exactly, if backends of which nothing is known yet turn out well; and the way there.
    pub(super) fn foresee(&mut self, config: &Config, dry_run: bool) -> Result<Foreseen, ApiError> {
        let of_others = self.health_of_replaced(config);
        for (key, _) in &of_others {
            self.knowledge.health.remove(key);
        }
        let way = self.short_way(config).map_or_else(|| self.way(config), Ok);
        self.knowledge.health.extend(of_others);
        let way = way.map_err(ApiError::failed)?;
        let Way { image, plan, .. } = &way;
        let now = self.kernel.now().map_err(ApiError::failed)?;
        // Counting the flows takes a look at each of them.
        let is_quiet = plan.actions.is_empty();
        let flows = if is_quiet { BTreeMap::new() } else { self.kernel.tables().live_flows(now) };
        let rings = effects(image, plan, &flows, |slot| self.kernel.tables().ring(slot));
        let report = ApplyReport {
            dry_run,
            revision: self.revision,
            changes: diff(&self.config, config),
            flows_lost: rings.iter().map(|change| change.flows_lost).sum(),
            flows_in_doubt: rings.iter().map(|change| change.flows_in_doubt).sum(),
            rings,
            actions: plan.actions.len(),
            confirm_within_seconds: None,
            warnings: left_without(&self.config, config, &self.knowledge, dry_run),
        };
        let capacity = self.sizes(config, image.capacity);
        Ok(Foreseen { report, capacity, way })
    }

    /// The way to a configuration that concerns few services alone; `None` if that is not so, or if there is no room for it.
    fn short_way(&mut self, config: &Config) -> Option<Way> {
        if self.unsettled || self.walk.has_changes() {
            return None;
        }
        let services = scope::changed(&self.config, config)?;
        let names: Vec<&str> = services.iter().map(|service| service.name.as_str()).collect();
        let image = self.kernel.tables().image_of(&names);
        let new = self.new_targets(services.iter().copied());
        let (wanted, hopeful) = self.knowledge.hoped_of(config, services.iter().copied(), &new);
        let plan = plan_some(&image, &wanted, &mut self.rings).ok()?;
        let some = services.iter().map(|service| service.name.clone()).collect();
        Some(Way { some: Some(some), image, plan, hopeful, new })
    }

    /// The way to a configuration from all that is loaded.
    fn way(&mut self, config: &Config) -> Result<Way, PlanError> {
        let mut image = self.kernel.tables().image();
        let new = self.new_targets(config.services.iter());
        let (wanted, hopeful) = self.knowledge.hoped(config, &new);
        let plan = match plan(&image, &wanted, &mut self.rings) {
            Err(PlanError::Full { .. }) => {
                image.capacity = image.capacity.with_room(capacity_beside(config, &image));
                plan(&image, &wanted, &mut self.rings)
            }
            planned => planned,
        };
        Ok(Way { some: None, image, plan: plan?, hopeful, new })
    }

    /// The sizes of the tables that a configuration takes beside all that is loaded, whatever that came from.
    pub(super) fn room_for(&mut self, config: &Config) -> Result<Capacity, PlanError> {
        let loaded = self.way(config)?.image.capacity;
        Ok(self.sizes(config, loaded))
    }

    /// The sizes of the tables that a configuration takes. Those that could not be had at the start are tried again when they are
    /// changed; what the last translated service leaves behind is kept until the next start, for packets are still under way.
    fn sizes(&self, config: &Config, loaded: Capacity) -> Capacity {
        let mut wanted = start::capacity(config);
        if config.agent.flow_table_size == self.config.agent.flow_table_size {
            wanted.flow_buckets = loaded.flow_buckets;
        }
        let connections = start::nat_connections(config);
        if connections.is_none() || connections == start::nat_connections(&self.config) {
            wanted.translations = loaded.translations;
        }
        loaded.with_tables(wanted)
    }

    /// Goes on with tables of this capacity, if they have another one: with all flows, counters and rings.
    pub(super) fn make_room(&mut self, capacity: Capacity) -> Result<(), LoadError> {
        if self.kernel.tables().capacity() == capacity {
            return Ok(());
        }
        // Its programs know the tables in force only.
        self.end_capture(EndReason::Resized);
        let resized = self.kernel.resize(&self.pins, capacity, self.options.log_packets)?;
        if self.options.log_packets {
            packet_log::spawn(&mut self.kernel);
        }
        // Checks through the forwarding path read the tables: they begin anew.
        self.path = None;
        self.path_targets.clear();
        // Loading the program took much for a moment.
        give_back_memory();
        self.record(Event::Resized {
            flows: start::flows(capacity),
            connections: capacity.translations / 2,
            services: capacity.services,
            backends: capacity.backends,
            flows_lost: resized.flows,
        });
        Ok(())
    }

    /// Forgets what only the configuration before knew.
    fn forget_unused(&mut self, before: &Config) {
        let services: BTreeSet<&str> =
            self.config.services.iter().map(|service| service.name.as_str()).collect();
        for service in before.services.iter().filter(|service| !services.contains(service.name.as_str())) {
            self.histograms.forget(&service.name);
        }
        let wanted: HashSet<Target> = self.config.services.iter().flat_map(reach::targets).collect();
        self.knowledge.hops.retain(|target, _| wanted.contains(target));
        self.hop_errors.retain(|target, _| wanted.contains(target));
    }
}
