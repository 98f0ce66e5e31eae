//! An event → the words that the log and `sluice events` have for it.

use std::fmt::{self, Display, Formatter};

use super::Event;
use crate::core::names::number_of;

impl Display for Event {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready { what, .. } => write!(f, "ready: {what}"),
            Self::Ending { data_plane } => write!(f, "ending; {data_plane}"),
            Self::Lapsed { since } => {
                write!(f, "the agent before ended without a word; its last sign of life was at {since:.0}")
            }
            Self::Adopted { services } => {
                write!(f, "adopted {} with all flows", number_of(services, "service"))
            }
            Self::Resized { flows, connections, services, backends, flows_lost } => write!(
                f,
                "the tables hold {flows} flows, {connections} translated connections, {services} services and {backends} \
                 backends now; {flows_lost} live flows found no place"
            ),
            Self::Attached { interface } => write!(f, "{interface}: attached"),
            Self::TookOver { interface } => write!(f, "{interface}: took over from the former agent"),
            Self::ModeFallback { interface, cause } => write!(
                f,
                "{interface}: the driver does not take the program ({cause}); running in the slower generic mode. Set \
                 agent.xdp_mode = \"driver\" to make this an error"
            ),
            Self::ModeKept { interface, mode } => mode_kept(f, interface, mode),
            Self::Detached { interface } => {
                write!(f, "{interface}: detached; it is no longer in agent.interfaces")
            }
            Self::InterfaceReplaced { interface } => write!(f, "{interface}: the interface was made anew"),
            Self::TakenOff { interface } => {
                write!(f, "{interface}: the program was taken off; it is attached again")
            }
            Self::NotAttached { interface, cause } => {
                write!(f, "{interface}: not attached, so packets go past the program: {cause}; trying again")
            }
            Self::Health { service, backend, from, to, reason } => {
                write!(f, "service {service}: backend {backend}: {from} → {to}")?;
                reason.as_ref().map_or(Ok(()), |reason| write!(f, ": {reason}"))
            }
            Self::ServiceStatus { service, from, to, reason } => {
                turned(f, service, from.as_deref(), to, reason.as_deref())
            }
            Self::Applied { by, revision, changes, changes_total, flows_lost, flows_in_doubt } => {
                write!(f, "{by}: in force, revision {revision}, {}", number_of(changes_total, "change"))?;
                list(f, changes, *changes_total)?;
                lost(f, *flows_lost, *flows_in_doubt)
            }
            Self::Refused { by, errors, errors_total } => {
                write!(f, "{by}: refused, the configuration in force stays")?;
                list(f, errors, *errors_total)
            }
            Self::BackendState { service, backend, from, to } => {
                write!(f, "service {service}: backend {backend}: {from} → {to} by the configuration")
            }
            Self::Drained { service, backend } => {
                write!(f, "service {service}: backend {backend}: drained, no live flow is left")
            }
            Self::NextHopLost { reason, .. } => write!(f, "no next hop: {reason}"),
            Self::NextHopFound { address } => write!(f, "next hop of {address}: known again"),
            Self::NotReconciled { cause } => write!(f, "the datapath keeps its former state: {cause}"),
            Self::TablePressure { table, begins, entries, size, lost } => {
                pressure(f, table, *begins, (*entries, *size), *lost)
            }
            Self::Drops { verdict, begins: true, packets, meaning } => {
                write!(f, "{verdict}: {packets} packets dropped: {meaning}")
            }
            Self::Drops { verdict, begins: false, .. } => write!(f, "{verdict}: no more packets are dropped"),
            Self::Signal { service, backend, signal, begins, reason, counts } => {
                write!(f, "service {service}: backend {backend}: ")?;
                if *begins { shown(f, reason, *counts) } else { f.write_str(shown_no_more(signal)) }
            }
            Self::Unknown => f.write_str("an event that this version does not know"),
        }
    }
}

fn lost(f: &mut Formatter<'_>, flows: u64, in_doubt: u64) -> fmt::Result {
    write!(f, "; {flows} live flows lost their backend")?;
    if in_doubt == 0 { Ok(()) } else { write!(f, ", and up to {in_doubt} more, for a VIP was given up") }
}

fn turned(
    f: &mut Formatter<'_>,
    service: &str,
    from: Option<&str>,
    to: &str,
    reason: Option<&str>,
) -> fmt::Result {
    write!(f, "service {service}: ")?;
    from.map_or(Ok(()), |from| write!(f, "{from} → "))?;
    f.write_str(to)?;
    reason.map_or(Ok(()), |reason| write!(f, ": {reason}"))
}

fn mode_kept(f: &mut Formatter<'_>, interface: &str, mode: &str) -> fmt::Result {
    let slower = if mode == "generic" { "slower " } else { "" };
    write!(
        f,
        "{interface}: stays in {slower}{mode} mode, in which a former agent attached it; `sluice detach` ends that"
    )
}

fn shown(f: &mut Formatter<'_>, reason: &str, counts: bool) -> fmt::Result {
    let counts = if counts { "; this counts as a failed check" } else { "" };
    write!(f, "{reason}{counts}")
}

fn shown_no_more(signal: &str) -> &'static str {
    match signal {
        "unanswered" => "no more SYNs come again in vain",
        "resets" => "customers no longer reset its connections",
        _ => "the flood of RSTs is over",
    }
}

/// `: first; second; … and 3 more`.
fn list(f: &mut Formatter<'_>, lines: &[String], total: usize) -> fmt::Result {
    let mut separator = ": ";
    for line in lines {
        write!(f, "{separator}{line}")?;
        separator = "; ";
    }
    match total.saturating_sub(lines.len()) {
        0 => Ok(()),
        more => write!(f, "{separator}… and {more} more"),
    }
}

fn pressure(
    f: &mut Formatter<'_>,
    table: &str,
    begins: bool,
    (entries, size): (u64, u64),
    lost: u64,
) -> fmt::Result {
    let (name, run, key, what) = match table {
        "flow_table" => {
            ("the flow table", "runs", "agent.flow_table_size", "established flows lost their entry")
        }
        "nat_table" => {
            ("the NAT table", "runs", "agent.nat_table_size", "packets found no room for a new connection")
        }
        _ => (
            "the NAT ports",
            "run",
            "agent.source_v4 or source_v6 (more addresses)",
            "packets found no free port",
        ),
    };
    if !begins {
        return write!(f, "{name}: the pressure is over");
    }
    write!(f, "{name} {run} full: ")?;
    if table == "nat_table" {
        write!(f, "{entries} entries taken, {size} is what it is made for, ")?;
    } else if size > 0 {
        write!(f, "{entries} of {size} entries taken, ")?;
    }
    write!(f, "{lost} {what}; raise {key}")
}
