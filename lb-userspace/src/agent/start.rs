//! The options → a running agent: configuration, program, first health, tables, and only then packets.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use lb_common::abi::{FLOW_WAYS, MAX_SOURCES, NextHop};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::capture::Capturing;
use super::found::{Found, leave_no_folder, look_around};
use super::hops::{Walk, targets};
use super::probing::{KnownHealth, Report};
use super::requests::serve_public;
use super::state::{Agent, ReconcileError};
use super::watch::Observed;
use super::{AgentError, HANDOVER, Options, packet_log};
use crate::core::config::{self, Config, Forwarding, XdpMode};
use crate::core::events::Event;
use crate::core::health::Health;
use crate::core::image::{Capacity, Image};
use crate::core::plan::RingCache;
use crate::core::reach::{Target, reach};
use crate::core::trend::Trends;
use crate::core::wanted::{BackendKey, Knowledge, forwarding};
use crate::io::api::{self, Requests};
use crate::io::datapath::{
    AttachError, Attached, Datapath, Kernel, LoadError, PinDir, capacity_for, forget_capture,
};
use crate::io::events::EventLog;
use crate::io::exporters::Histograms;
use crate::io::host::give_back_memory;
use crate::io::neighbours::{InterfaceError, XdpState};
use crate::io::probes::TlsClients;
use crate::io::store::{self, StoreError};

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
    log: &mut Option<EventLog>,
) -> Result<Agent, AgentError> {
    let pins = PinDir::new(&options.pin_dir);
    pins.create()?;
    let lock = pins.lock_within(HANDOVER).await?;
    let found = look_around(&options, &pins).await;
    let found = found.inspect_err(|_| leave_no_folder(&pins))?;
    let Found { state_lock, history, undone, text, config, resolver, interfaces } = found;
    let (mut kernel, adopted) = load(&options, &pins, capacity(&config))?;
    if options.log_packets {
        packet_log::spawn(&mut kernel);
    }
    // What a former agent left in the middle of a change may still be seen by a packet.
    kernel.grace()?;
    let image = kernel.tables().image();
    kernel.tables().sweep_orphans(&image.backends);
    let events = EventLog::open(&options.state_dir);
    events.note_lapse();
    *log = Some(events.clone());
    if adopted {
        events.record(Event::Adopted { services: image.services.len() });
    }
    undone.into_iter().for_each(|event| events.record(event));
    let hops = adopted_hops(&image, &config);
    let mut agent = Agent {
        options,
        config,
        text,
        revision: 0,
        history,
        waiting: None,
        started: Instant::now(),
        pins,
        _locks: (lock, state_lock),
        kernel,
        resolver,
        interfaces,
        knowledge: Knowledge { hops, ..Knowledge::default() },
        hop_errors: BTreeMap::new(),
        walk: Walk::default(),
        retried: None,
        doubted: BTreeSet::new(),
        hop_news: Vec::new(),
        checks: BTreeMap::new(),
        tls: TlsClients::default(),
        probed: BTreeMap::new(),
        stale: BTreeSet::new(),
        ramps: BTreeMap::new(),
        path: None,
        path_targets: BTreeMap::new(),
        reports: report_sender,
        requests,
        metrics: None,
        events,
        observed: Observed::default(),
        histograms: Histograms::default(),
        trends: Trends::default(),
        rings: RingCache::default(),
        unsettled: false,
        capturing: Capturing::default(),
        detached: false,
    };
    agent.begin_or_leave_nothing(adopted, &image, reports).await?;
    Ok(agent)
}

fn load(options: &Options, pins: &PinDir, capacity: Capacity) -> Result<(Kernel, bool), AgentError> {
    let loaded = match &options.object {
        None => Kernel::load(pins, capacity, options.log_packets),
        Some(path) => {
            let object = std::fs::read(path)
                .map_err(|cause| StoreError { path: path.to_owned(), cause })
                .map_err(AgentError::Store)?;
            log::warn!("loading {} in the place of the program that is built in", path.display());
            Kernel::load_from(object.into(), pins, capacity, options.log_packets)
        }
    };
    Ok(loaded?)
}

impl Agent {
    /// Begins. If that fails, what was loaded goes, unless it was adopted: the next start would take it for what customers are served by.
    async fn begin_or_leave_nothing(
        &mut self,
        adopted: bool,
        image: &Image,
        reports: &mut mpsc::Receiver<Report>,
    ) -> Result<(), AgentError> {
        let begun = match self.make_room_first(adopted) {
            Ok(()) => self.begin(image, reports).await,
            error => error,
        };
        if begun.is_err()
            && !adopted
            && let Err(error) = self.pins.remove_all()
        {
            log::warn!("what was loaded is left behind: {error}");
        }
        begun
    }

    /// Brings the tables to what the configuration says, and only then attaches the program. `image` is what was loaded before.
    async fn begin(&mut self, image: &Image, reports: &mut mpsc::Receiver<Report>) -> Result<(), AgentError> {
        self.publish_interfaces();
        let metrics = match self.config.agent.metrics {
            Some(address) => Some((api::listen_public(address).await?, address)),
            None => None,
        };
        let config = self.config.clone();
        self.checks = self.checks(&config)?;
        self.prepare_paths(&config)?;
        self.sync_probes(None, image);
        self.resolve(targets(&self.config), FIRST_HOPS).await;
        self.kernel.set_ring_seed(self.config.agent.ring_seed);
        self.leave_host_ports();
        if self.path.is_some() {
            // Packets of checks through the forwarding path find their way by the tables.
            self.bring_about_first()?;
            self.publish_paths();
        }
        self.wait_for_health(reports).await;
        self.bring_about_first()?;
        if self.options.attach {
            self.attach_all().await?;
        }
        self.note_start();
        // Who asks for health or metrics is to hear of an agent that serves.
        self.metrics = metrics.map(|(listener, address)| {
            serve_public(listener, address, self.requests.clone(), self.events.clone())
        });
        Ok(())
    }
}

/// Tells systemd, if it started us, that the agent serves.
pub(super) fn notify_ready() {
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        log::warn!("cannot tell the service manager: {error}");
    }
}

/// Reads the configuration file: its text, and what it says.
pub(super) fn read_config(options: &Options) -> Result<(String, Config), AgentError> {
    let text = store::read(&options.config)?;
    let name = options.config.display().to_string();
    let config = parse_config(&text, &name).map_err(AgentError::Config)?;
    // Reading a long configuration takes many times its length for a moment.
    give_back_memory();
    Ok((text, config))
}

/// Parses a configuration; every error with its place in the file of this name.
pub(super) fn parse_config(text: &str, name: &str) -> Result<Config, Vec<String>> {
    config::parse(text).map_err(|errors| errors.iter().map(|error| error.at(name).to_string()).collect())
}

/// Room in the VIP table for the addresses that translated packets are sent from.
const MAX_SNAT_MARKS: usize = 2 * MAX_SOURCES;

/// The capacity that a configuration asks for.
pub(super) fn capacity(config: &Config) -> Capacity {
    capacity_beside(config, &Image::default())
}

/// The capacity that a configuration asks for which comes to what is loaded: that goes only when the new is there.
pub(super) fn capacity_beside(config: &Config, loaded: &Image) -> Capacity {
    let backends: usize = config.services.iter().map(|service| service.backends.len()).sum();
    // Each VIP may bring a mark for its address.
    let vips: usize = config.services.iter().map(|service| service.vips.len() * 2).sum();
    let (flows, connections) = (config.agent.flow_table_size, nat_connections(config).unwrap_or(0));
    let (services, backends) =
        (config.services.len().max(loaded.services.len()), backends.max(loaded.backends.len()));
    capacity_for(services, backends, vips + MAX_SNAT_MARKS, flows, connections)
}

/// Translated connections that there is to be room for; `None` if no service is translated.
pub(super) fn nat_connections(config: &Config) -> Option<u32> {
    let translated = config.services.iter().any(|service| service.forwarding == Forwarding::Nat);
    translated.then_some(config.agent.nat_table_size)
}

/// Flows that a table of this capacity holds.
pub(super) fn flows(capacity: Capacity) -> u64 {
    u64::from(capacity.flow_buckets) * FLOW_WAYS as u64
}

/// What was found out about the servers that are loaded. One that was not known to be healthy is probed as a new one.
pub(super) fn adopted_health(image: &Image) -> KnownHealth {
    let backends = image.backends.values().filter(|backend| backend.probed_healthy);
    let known = backends.filter_map(|backend| {
        let service = image.services.get(&backend.service)?;
        let key = BackendKey::new(&service.name, &backend.name);
        Some(((key, backend.address.to_ip()), Health::Healthy))
    });
    known.collect()
}

/// The next hops that are loaded: good until the kernel tells better ones. That of a service in another forwarding mode is
/// not, for it may be a gateway's.
fn adopted_hops(image: &Image, config: &Config) -> HashMap<Target, NextHop> {
    let ids = image.ids_by_name();
    let services =
        config.services.iter().filter_map(|service| Some((*ids.get(service.name.as_str())?, service)));
    let services: BTreeMap<u32, _> = services.collect();
    let hops = image.backends.values().filter_map(|backend| {
        let mode = services.get(&backend.service)?.forwarding;
        let same = forwarding(mode) == backend.forwarding;
        same.then_some(((backend.address.to_ip(), reach(mode)), backend.hop?))
    });
    hops.collect()
}

impl Agent {
    /// Has tables made larger or smaller that were adopted, where the configuration asks for that.
    fn make_room_first(&mut self, adopted: bool) -> Result<(), AgentError> {
        if !adopted {
            return Ok(());
        }
        let config = self.config.clone();
        let capacity = self.room_for(&config).map_err(AgentError::Plan)?;
        let mut wanted = self::capacity(&config);
        loop {
            // The data plane is to go on, and every other change to be possible.
            match self.make_room(capacity.with_tables(wanted)) {
                Err(error @ LoadError::FlowTableTooSmall(_)) => {
                    log::warn!("{error}; the table keeps its size");
                    wanted.flow_buckets = capacity.flow_buckets;
                }
                Err(error @ LoadError::NatTableTooSmall { .. }) => {
                    log::warn!("{error}; the table keeps its size");
                    wanted.translations = capacity.translations;
                }
                result => return Ok(result?),
            }
        }
    }

    /// Brings the tables in line with what is known so far.
    fn bring_about_first(&mut self) -> Result<(), AgentError> {
        let wanted = self.knowledge.wanted(&self.config);
        self.bring_about(&wanted, Instant::now()).map_err(|error| match error {
            ReconcileError::Plan(error) => AgentError::Plan(error),
            ReconcileError::Datapath(error) => AgentError::Datapath(error),
        })
    }

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

    /// Attaches the program to every interface of the configuration that is there, and detaches it from those no longer named. If one
    /// fails, none is left attached that was not so before: nobody would look after it.
    async fn attach_all(&mut self) -> Result<(), AgentError> {
        let mut new = Vec::new();
        for interface in self.interfaces.clone() {
            let name = interface.name.clone();
            if !interface.is_there() {
                self.tell_absent(name);
                continue;
            }
            match self.attach(&name).await {
                Ok(Attached::Replaced) => {}
                Ok(Attached::New | Attached::Fallback(_)) => new.push(name),
                Err(error) => {
                    for name in new {
                        self.pins.remove_link(&name)?;
                    }
                    return Err(error);
                }
            }
        }
        for name in self.pins.linked_interfaces()? {
            if !self.config.agent.interfaces.contains(&name) {
                self.pins.remove_link(&name)?;
                self.record(Event::Detached { interface: name });
            }
        }
        // A former agent may have ended amid a capture.
        forget_capture(&self.pins)?;
        Ok(())
    }

    /// Says that an interface is not there.
    pub(super) fn tell_absent(&mut self, interface: String) {
        let cause = InterfaceError::NotFound { name: interface.clone() }.to_string();
        self.record(Event::NotAttached { interface: interface.clone(), cause: cause.clone() });
        self.observed.off.insert(interface, Some(cause));
    }

    /// Attaches the program to one interface, and looks at what came of it.
    pub(super) async fn attach(&mut self, name: &str) -> Result<Attached, AgentError> {
        let mode = self.config.agent.xdp_mode;
        let attached = self.kernel.attach(&self.pins, name, mode)?;
        let found = self.resolver.interface(name).await?;
        let interface = name.to_owned();
        match &attached {
            Attached::New => self.record(Event::Attached { interface }),
            Attached::Replaced => {
                self.record(Event::TookOver { interface });
                if let Some(kept) = check_mode(name, mode, found.xdp)? {
                    self.record(kept);
                }
            }
            Attached::Fallback(cause) => {
                self.record(Event::ModeFallback { interface, cause: cause.clone() });
            }
        }
        match self.interfaces.iter_mut().find(|interface| interface.name == name) {
            Some(interface) => *interface = found,
            None => return Err(InterfaceError::NotFound { name: name.to_owned() }.into()),
        }
        Ok(attached)
    }
}

/// A link keeps the mode it was made with: says so where that is not the configured one.
fn check_mode(name: &str, wanted: XdpMode, found: XdpState) -> Result<Option<Event>, AttachError> {
    let mode = match (wanted, found) {
        (XdpMode::Driver, XdpState::Generic) => {
            return Err(AttachError::Driver {
                interface: name.to_owned(),
                cause: "a former agent attached it in generic mode, and a link keeps its mode; run `sluice detach` \
                        and start again"
                    .to_owned(),
            });
        }
        (XdpMode::Auto, XdpState::Generic) => "generic",
        (XdpMode::Generic, XdpState::Driver) => "driver",
        _ => return Ok(None),
    };
    Ok(Some(Event::ModeKept { interface: name.to_owned(), mode: mode.to_owned() }))
}
