//! The options → a running agent: configuration, program, first health, tables, and only then packets.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lb_common::abi::FLOW_WAYS;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::probing::Report;
use super::state::{Agent, ReconcileError};
use super::{AgentError, Options, packet_log};
use crate::core::config::{self, Config};
use crate::core::health::Health;
use crate::core::image::{Capacity, Image};
use crate::core::wanted::{BackendKey, Knowledge};
use crate::io::api::Requests;
use crate::io::datapath::{Attached, Datapath, Kernel, PinDir, capacity_for};
use crate::io::exporters::Histograms;
use crate::io::neighbours::{InterfaceError, Resolver};
use crate::io::store;

/// How long backends may take to tell their MAC addresses before the start goes on without.
const FIRST_HOPS: Duration = Duration::from_secs(1);
/// How long the first round of probes may take before the start goes on without.
const FIRST_PROBES: Duration = Duration::from_secs(3);

/// Starts the agent.
pub(super) async fn start(
    options: Options,
    requests: Requests,
    report_sender: mpsc::Sender<Report>,
    reports: &mut mpsc::Receiver<Report>,
) -> Result<Agent, AgentError> {
    let config = read_config(&options)?;
    let pins = PinDir::new(&options.pin_dir);
    pins.create()?;
    let lock = pins.lock()?;
    let resolver = Resolver::new().await.map_err(|cause| AgentError::Io { what: "netlink", cause })?;
    let mut interfaces = Vec::new();
    for name in &config.agent.interfaces {
        interfaces.push(resolver.interface(name).await?);
    }
    let (mut kernel, adopted) = Kernel::load(&pins, capacity(&config), options.log_packets)?;
    if options.log_packets {
        packet_log::spawn(&mut kernel);
    }
    // What a former agent left in the middle of a change may still be seen by a packet.
    kernel.grace()?;
    kernel.set_ring_seed(config.agent.ring_seed);
    let image = kernel.tables().image();
    if adopted {
        log::info!("adopted {} services with their flows", image.services.len());
    }
    let mut agent = Agent {
        options,
        config,
        revision: 1,
        started: Instant::now(),
        pins,
        _lock: lock,
        kernel,
        resolver,
        interfaces,
        knowledge: Knowledge::default(),
        hop_errors: BTreeMap::new(),
        probed: BTreeMap::new(),
        reports: report_sender,
        requests,
        metrics: None,
        histograms: Histograms::default(),
        detached: false,
    };
    agent.publish_interfaces();
    agent.metrics = agent.serve_metrics(agent.config.agent.metrics).await?;
    agent.sync_probes(&adopted_health(&image));
    let config = agent.config.clone();
    agent.resolve(&config, FIRST_HOPS).await;
    agent.wait_for_health(reports).await;
    let wanted = agent.knowledge.wanted(&agent.config);
    agent.bring_about(&wanted).map_err(|error| match error {
        ReconcileError::Plan(error) => AgentError::Plan(error),
        ReconcileError::Datapath(error) => AgentError::Datapath(error),
    })?;
    if agent.options.attach {
        agent.attach_all().await?;
    }
    Ok(agent)
}

/// Tells systemd, if it started us, that the agent serves.
pub(super) fn notify_ready() {
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        log::warn!("cannot tell the service manager: {error}");
    }
}

/// Reads the configuration file.
pub(super) fn read_config(options: &Options) -> Result<Config, AgentError> {
    let text = store::read(&options.config)?;
    let name = options.config.display().to_string();
    parse_config(&text, &name).map_err(AgentError::Config)
}

/// Parses a configuration; every error with its place in the file of this name.
pub(super) fn parse_config(text: &str, name: &str) -> Result<Config, Vec<String>> {
    config::parse(text).map_err(|errors| errors.iter().map(|error| error.at(name).to_string()).collect())
}

/// The capacity that a configuration asks for.
pub(super) fn capacity(config: &Config) -> Capacity {
    let backends = config.services.iter().map(|service| service.backends.len()).sum();
    // Each VIP may bring a mark for its address.
    let vips: usize = config.services.iter().map(|service| service.vips.len() * 2).sum();
    capacity_for(config.services.len(), backends, vips, config.agent.flow_table_size)
}

/// Flows that a table of this capacity holds.
pub(super) fn flows(capacity: Capacity) -> u64 {
    u64::from(capacity.flow_buckets) * FLOW_WAYS as u64
}

/// What a former agent had found out about the backends that are loaded.
fn adopted_health(image: &Image) -> BTreeMap<BackendKey, Health> {
    let backends = image.backends.values();
    let known = backends.filter_map(|backend| {
        let service = image.services.get(&backend.service)?;
        let health = if backend.healthy { Health::Healthy } else { Health::Unhealthy };
        Some((BackendKey::new(&service.name, &backend.name), health))
    });
    known.collect()
}

impl Agent {
    /// Judges probes until each backend's health is known: packets are better not sent to a server that is down.
    async fn wait_for_health(&mut self, reports: &mut mpsc::Receiver<Report>) {
        let round = async {
            while !self.all_known() {
                let Some(report) = reports.recv().await else { return };
                self.judge(report);
            }
        };
        if timeout(FIRST_PROBES, round).await.is_err() {
            log::warn!("starting although some backends have not been probed yet");
        }
    }

    /// Attaches the program to every interface of the configuration, and detaches it from those no longer there.
    pub(super) async fn attach_all(&mut self) -> Result<(), AgentError> {
        for name in self.config.agent.interfaces.clone() {
            self.attach(&name).await?;
        }
        for name in self.pins.linked_interfaces()? {
            if !self.config.agent.interfaces.contains(&name) {
                self.pins.remove(&self.pins.link(&name))?;
                log::info!("{name}: detached; it is no longer in agent.interfaces");
            }
        }
        Ok(())
    }

    /// Attaches the program to one interface, and looks at what came of it.
    pub(super) async fn attach(&mut self, name: &str) -> Result<(), AgentError> {
        let mode = self.config.agent.xdp_mode;
        match self.kernel.attach(&self.pins, name, mode)? {
            Attached::New => log::info!("{name}: attached"),
            Attached::Replaced => log::info!("{name}: took over from the former agent"),
            Attached::Fallback(cause) => log::warn!(
                "{name}: the driver does not take the program ({cause}); running in the slower generic mode. \
                 Set agent.xdp_mode = \"driver\" to make this an error"
            ),
        }
        let found = self.resolver.interface(name).await?;
        match self.interfaces.iter_mut().find(|interface| interface.name == name) {
            Some(interface) => *interface = found,
            None => return Err(InterfaceError::NotFound { name: name.to_owned() }.into()),
        }
        Ok(())
    }
}
