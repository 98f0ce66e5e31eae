//! What happens right now, an order and a filter → the lines of the table.

use std::cmp::Ordering;

use crate::core::live::{Live, LiveBackend, LiveService, LiveTcp, Rate};

/// Which line: a service, or a backend of one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) service: String,
    pub(super) backend: Option<String>,
}

/// A line of the table.
#[derive(Clone, Copy, Debug)]
pub(super) enum Row<'a> {
    Service(&'a LiveService),
    Backend(&'a LiveService, &'a LiveBackend),
}

impl Row<'_> {
    pub(super) fn key(&self) -> Key {
        match self {
            Self::Service(service) => Key { service: service.name.clone(), backend: None },
            Self::Backend(service, backend) => {
                Key { service: service.name.clone(), backend: Some(backend.name.clone()) }
            }
        }
    }

    pub(super) fn rate(&self) -> Rate {
        match self {
            Self::Service(service) => service.rate,
            Self::Backend(_, backend) => backend.rate,
        }
    }

    pub(super) fn active_flows(&self) -> u64 {
        match self {
            Self::Service(service) => service.active_flows,
            Self::Backend(_, backend) => backend.active_flows,
        }
    }

    /// What customers' packets show of its connections, if it is about TCP.
    pub(super) fn tcp(&self) -> Option<&LiveTcp> {
        match self {
            Self::Service(service) => service.tcp.as_ref(),
            Self::Backend(_, backend) => backend.tcp.as_ref(),
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Service(service) => &service.name,
            Self::Backend(_, backend) => &backend.name,
        }
    }

    /// How well it is, in a word or two.
    pub(super) fn state(&self) -> String {
        match self {
            Self::Service(service) => service.status.clone(),
            Self::Backend(_, backend) if backend.state == "enabled" => backend.health.clone(),
            Self::Backend(_, backend) if backend.health == "unhealthy" => format!("{}, ill", backend.state),
            Self::Backend(_, backend) => backend.state.clone(),
        }
    }

    /// How bad it is: 0 if nothing is, 1 if somebody wants it so or it may be worth a look, 2 if something is wrong.
    pub(super) fn alarm(&self) -> u8 {
        match self {
            Self::Service(service) => match service.status.as_str() {
                "healthy" => 0,
                "degraded" => 1,
                _ => 2,
            },
            Self::Backend(_, backend) => match (backend.health.as_str(), backend.state.as_str()) {
                ("unhealthy", "enabled") => 2,
                ("healthy", "enabled") if backend.reason.is_empty() => 0,
                ("unknown", "enabled") if backend.reason.is_empty() && backend.serving => 0,
                _ => 1,
            },
        }
    }
}

/// What comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    /// As the configuration has it.
    #[default]
    Configuration,
    Name,
    Packets,
    Bits,
    Flows,
    /// What is wrong comes first.
    State,
}

impl Sort {
    pub(super) fn next(self) -> Self {
        match self {
            Self::Configuration => Self::Name,
            Self::Name => Self::Packets,
            Self::Packets => Self::Bits,
            Self::Bits => Self::Flows,
            Self::Flows => Self::State,
            Self::State => Self::Configuration,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Configuration => "config",
            Self::Name => "name",
            Self::Packets => "pkt/s",
            Self::Bits => "bit/s",
            Self::Flows => "flows",
            Self::State => "state",
        }
    }

    fn compare(self, a: &Row<'_>, b: &Row<'_>) -> Ordering {
        match self {
            Self::Configuration => Ordering::Equal,
            Self::Name => a.name().cmp(b.name()),
            Self::Packets => b.rate().packets_per_second.total_cmp(&a.rate().packets_per_second),
            Self::Bits => b.rate().bits_per_second.total_cmp(&a.rate().bits_per_second),
            Self::Flows => b.active_flows().cmp(&a.active_flows()),
            Self::State => b.alarm().cmp(&a.alarm()),
        }
    }
}

/// What is to be seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Selection {
    pub(super) sort: Sort,
    pub(super) reversed: bool,
    /// Only what has this in its name, address, state or reason; everything if it is empty.
    pub(super) filter: String,
    /// Only this service.
    pub(super) focus: Option<String>,
}

/// The lines: each service, and its backends below it.
pub(super) fn rows<'a>(live: &'a Live, selection: &Selection) -> Vec<Row<'a>> {
    let wanted = selection.filter.to_lowercase();
    let has = |text: &str| text.to_lowercase().contains(&wanted);
    let focused = |service: &&LiveService| selection.focus.as_ref().is_none_or(|name| *name == service.name);
    let mut services: Vec<Row<'a>> = live.services.iter().filter(focused).map(Row::Service).collect();
    arrange(&mut services, selection);
    let mut rows = Vec::new();
    for row in services {
        let Row::Service(service) = row else { continue };
        let whole = has(&service.name) || has(&service.status) || service.vips.iter().any(|vip| has(vip));
        let matches = |backend: &&LiveBackend| {
            let texts = [&backend.name, &backend.address, &backend.state, &backend.health, &backend.reason];
            whole || texts.into_iter().any(|text| has(text))
        };
        let shown = service.backends.iter().filter(matches);
        let mut backends: Vec<Row<'a>> = shown.map(|backend| Row::Backend(service, backend)).collect();
        arrange(&mut backends, selection);
        if whole || !backends.is_empty() {
            rows.push(row);
            rows.append(&mut backends);
        }
    }
    rows
}

fn arrange(rows: &mut [Row<'_>], selection: &Selection) {
    rows.sort_by(|a, b| selection.sort.compare(a, b));
    if selection.reversed {
        rows.reverse();
    }
}
