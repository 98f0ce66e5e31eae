//! `sluice decap`: takes the tunnels off on a backend, in the foreground.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use lb_common::abi::{DecapRoles, MAX_DECAP_SOURCES, SourcePrefix};
use lb_common::decap::Verdict;
use nix::net::if_::{if_indextoname, if_nametoindex};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::output::Columns;
use super::{Failure, Format, OutputFlag, output};
use crate::core::decap::{self, Prefix, Roles};
use crate::io::datapath::{Attached, Decapsulator};
use crate::io::host;
use crate::io::neighbours::{Resolver, XdpState};

/// How often the host's addresses and the interface are looked at.
const RECHECK: Duration = Duration::from_secs(1);

/// Take tunnels off on a backend: the other side of `ipip` and `gue`
///
/// An XDP program takes the outer headers off packets for VIPs until SIGTERM or SIGINT ends this command, which then prints what it counted.
/// What is no tunnel packet to this host is not touched. A tunnel packet to this host is dropped if its outer source is
/// not listed or its inner destination is no VIP.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Interface the tunnels come in on
    #[arg(long, value_name = "IF")]
    iface: String,
    /// Outer sources that are accepted: what the balancers' tunnels come from
    #[arg(long, value_name = "CIDR[,CIDR…]", value_delimiter = ',', required = true)]
    from: Vec<Prefix>,
    /// Inner destinations that are accepted; the addresses on the loopback interface by default
    #[arg(long, value_name = "ADDR[,ADDR…]", value_delimiter = ',', value_parser = decap::parse_vip)]
    vip: Vec<IpAddr>,
    #[command(flatten)]
    format: OutputFlag,
}

/// What was counted.
#[derive(Serialize)]
struct Counted<'a> {
    interface: &'a str,
    xdp_mode: &'static str,
    verdicts: BTreeMap<&'static str, u64>,
}

pub(super) async fn run(arguments: &Arguments) -> Result<(), Failure> {
    super::log_to_stderr();
    if arguments.from.len() > MAX_DECAP_SOURCES as usize {
        return Err(Failure::usage(format!("--from: at most {MAX_DECAP_SOURCES} sources")));
    }
    let end = |kind| signal(kind).map_err(Failure::failed);
    let (mut terminate, mut interrupt) = (end(SignalKind::terminate())?, end(SignalKind::interrupt())?);
    let mut decap = Running::start(arguments, Resolver::new().await.map_err(Failure::failed)?)?;
    let mut recheck = tokio::time::interval(RECHECK);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = recheck.tick() => decap.recheck().await?,
        }
    }
    decap.end()
}

/// The program at work.
struct Running<'a> {
    arguments: &'a Arguments,
    /// What tells whether the program is there still, which needs no privilege.
    resolver: Resolver,
    program: Decapsulator,
    index: u32,
    xdp_mode: &'static str,
    roles: Roles,
}

impl<'a> Running<'a> {
    fn start(arguments: &'a Arguments, resolver: Resolver) -> Result<Self, Failure> {
        let roles = roles(arguments)?;
        if decap::with_roles(&roles, DecapRoles::VIP).is_empty() {
            return Err(Failure::failed(
                "the loopback interface has no address but 127.0.0.0/8 and ::1; put the VIPs there \
                 (`ip address add VIP dev lo`), or name them with --vip",
            ));
        }
        let sources: Vec<SourcePrefix> = arguments.from.iter().map(|prefix| prefix.record()).collect();
        let mut program = Decapsulator::load(&sources).map_err(Failure::failed)?;
        set_addresses(&mut program, &roles)?;
        let attached = program.attach(&arguments.iface).map_err(Failure::failed)?;
        let xdp_mode = match &attached {
            Attached::Fallback(cause) => {
                log::warn!(
                    "{}: the driver does not take the program, so it runs in the slower generic mode: {cause}",
                    arguments.iface
                );
                "generic"
            }
            Attached::New | Attached::Replaced => "driver",
        };
        let index = if_nametoindex(arguments.iface.as_str()).map_err(Failure::failed)?;
        let running = Self { arguments, resolver, program, index, xdp_mode, roles };
        running.warn_of_foreign_vips();
        log::info!(
            "ready: {} ({xdp_mode} mode) takes tunnels off from {}; VIPs: {}",
            arguments.iface,
            list(&arguments.from),
            running.vips(),
        );
        Ok(running)
    }

    /// Ends when the program is not on the interface any more. What else goes wrong leaves it as it was.
    async fn recheck(&mut self) -> Result<(), Failure> {
        let interface = self.resolver.interface(&self.arguments.iface).await;
        // One that was given another name keeps the program.
        let removed = if_indextoname(self.index).is_err();
        if removed || interface.is_ok_and(|interface| interface.xdp == XdpState::None) {
            return Err(Failure::failed(format!(
                "{}: the program is not on it any more: the interface was removed, or somebody took the program off; start this \
                 command again",
                self.arguments.iface
            )));
        }
        if let Err(failure) = self.follow_addresses() {
            log::error!("the addresses known before stay in force: {failure}");
        }
        Ok(())
    }

    fn follow_addresses(&mut self) -> Result<(), Failure> {
        let roles = roles(self.arguments)?;
        if roles == self.roles {
            return Ok(());
        }
        // Remembered in any case: what cannot be put in force is told once.
        self.roles = roles;
        set_addresses(&mut self.program, &self.roles)?;
        let local = decap::with_roles(&self.roles, DecapRoles::LOCAL);
        log::info!("this host's addresses changed: {}; VIPs: {}", list(&local), self.vips());
        self.warn_of_foreign_vips();
        Ok(())
    }

    fn vips(&self) -> String {
        list(&decap::with_roles(&self.roles, DecapRoles::VIP))
    }

    /// A VIP that is not the host's is decapsulated, but then the host does not take the packet.
    fn warn_of_foreign_vips(&self) {
        let own = decap::with_roles(&self.roles, DecapRoles::LOCAL.and(DecapRoles::VIP));
        for vip in self.arguments.vip.iter().filter(|vip| !own.contains(vip)) {
            log::warn!("{vip} is not an address of this host, which will not take packets for it");
        }
    }

    /// Detaches the program and prints what it counted.
    fn end(mut self) -> Result<(), Failure> {
        self.program.detach().map_err(Failure::failed)?;
        log::info!("ending; the program is detached from {}", self.arguments.iface);
        let verdicts = decap::verdicts(&self.program.verdicts().map_err(Failure::failed)?);
        let counted = Counted { interface: &self.arguments.iface, xdp_mode: self.xdp_mode, verdicts };
        match self.arguments.format.output {
            Format::Json => output::json(&counted),
            Format::Table => output::print(&table(&counted)),
        }
    }
}

fn roles(arguments: &Arguments) -> Result<Roles, Failure> {
    let host = host::addresses()
        .map_err(|error| Failure::failed(format!("reading the addresses of this host: {error}")))?;
    Ok(decap::roles(&host, &arguments.vip))
}

fn set_addresses(program: &mut Decapsulator, roles: &Roles) -> Result<(), Failure> {
    let table = decap::table(roles).ok_or_else(|| {
        Failure::failed(format!("this host has too many addresses for the program's table: {}", roles.len()))
    })?;
    program.set_addresses(&table).map_err(Failure::failed)
}

/// The verdicts that were met, in the order of the counters.
fn table(counted: &Counted<'_>) -> String {
    let mut columns = Columns::with_header(&["verdict", "packets", "meaning"]);
    for verdict in Verdict::ALL {
        let packets = counted.verdicts.get(verdict.name()).copied().unwrap_or_default();
        if packets > 0 {
            columns.line(vec![verdict.name().into(), packets.to_string(), verdict.explanation().into()]);
        }
    }
    format!("{} ({} mode)\n{}", counted.interface, counted.xdp_mode, columns.render("  "))
}

fn list<T: ToString>(items: &[T]) -> String {
    if items.is_empty() {
        return "none".to_owned();
    }
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}
