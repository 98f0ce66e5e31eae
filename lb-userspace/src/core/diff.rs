//! Two configurations → what differs, one line a value.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::{self, Display, Formatter};

use serde::{Deserialize, Serialize};

use super::config::{Config, Probe, Service, Source, Tls, Written, statuses};
use super::names;

/// One value that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Where: `service[web].backend[web1].weight`, by name.
    pub path: String,
    /// The value before; none if it is new.
    pub before: Option<String>,
    /// The value after; none if it is gone.
    pub after: Option<String>,
}

impl Display for Change {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { path, before, after } = self;
        match (before, after) {
            (Some(before), Some(after)) => write!(f, "~ {path}: {before} → {after}"),
            (None, Some(after)) => write!(f, "+ {path}: {after}"),
            (Some(before), None) => write!(f, "- {path}: {before}"),
            (None, None) => f.write_str(path),
        }
    }
}

/// What differs between two configurations, in the order of the paths.
pub fn diff(before: &Config, after: &Config) -> Vec<Change> {
    // Only what differs is written out: that is little of much.
    let same: HashSet<&str> = {
        let former: HashMap<&str, &Service> =
            before.services.iter().map(|service| (service.name.as_str(), service)).collect();
        let same = after.services.iter().filter(|service| former.get(service.name.as_str()) == Some(service));
        same.map(|service| service.name.as_str()).collect()
    };
    let (before, mut after) = (flatten(before, &same), flatten(after, &same));
    let mut changes: Vec<Change> = before
        .into_iter()
        .filter_map(|(path, value)| {
            let new = after.remove(&path);
            (new.as_ref() != Some(&value)).then_some(Change { path, before: Some(value), after: new })
        })
        .collect();
    changes.extend(after.into_iter().map(|(path, value)| Change { path, before: None, after: Some(value) }));
    changes.sort_by(|a, b| a.path.cmp(&b.path));
    changes
}

/// Every value of a configuration by its path, but for these services.
fn flatten(config: &Config, without: &HashSet<&str>) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    let agent = &config.agent;
    let mut put = |path: String, value: String| values.insert(path, value);
    put("agent.interfaces".into(), agent.interfaces.join(" "));
    put("agent.xdp_mode".into(), names::xdp_mode(agent.xdp_mode).into());
    put("agent.metrics".into(), agent.metrics.map_or("off".into(), |address| address.to_string()));
    put("agent.flow_table_size".into(), agent.flow_table_size.to_string());
    put("agent.ring_seed".into(), agent.ring_seed.to_string());
    put("agent.source_v4".into(), sources(&agent.source_v4));
    put("agent.source_v6".into(), sources(&agent.source_v6));
    put("agent.nat_table_size".into(), agent.nat_table_size.to_string());
    put("agent.oversized".into(), names::oversized(agent.oversized).into());
    put("agent.time_openings".into(), agent.time_openings.to_string());
    let services = config.services.iter().filter(|service| !without.contains(service.name.as_str()));
    for service in services {
        let at = |key: &str| format!("service[{}].{key}", service.name);
        let vips: Vec<String> = service.vips.iter().map(ToString::to_string).collect();
        put(at("vips"), vips.join(" "));
        put(at("protocol"), names::protocol(service.protocol).into());
        put(at("forwarding"), names::forwarding(service.forwarding).into());
        put(at("affinity"), names::affinity(service.affinity).into());
        put(at("all_down"), names::all_down(service.all_down).into());
        put(at("min_healthy"), service.min_healthy.to_string());
        let health = &service.health;
        put(at("health.type"), names::probe(&health.probe).into());
        put(at("health.passive"), names::passive(health.passive).into());
        if health.probe != Probe::None {
            if let Some(port) = health.port {
                put(at("health.port"), port.to_string());
            }
            put(at("health.interval"), Written(health.interval).to_string());
            put(at("health.timeout"), Written(health.timeout).to_string());
            put(at("health.rise"), health.rise.to_string());
            put(at("health.fall"), health.fall.to_string());
            put(at("health.via"), names::via(health.via).into());
            put(at("health.slow_start"), Written(health.slow_start).to_string());
            put(at("health.hold_down"), Written(health.hold_down).to_string());
            put(at("health.hold_down_max"), Written(health.hold_down_max).to_string());
        }
        if let Probe::Http { path, host, expect, body, tls } = &health.probe {
            put(at("health.path"), path.clone());
            if let Some(host) = host {
                put(at("health.host"), host.clone());
            }
            put(at("health.expect"), statuses(expect));
            if let Some(body) = body {
                put(at("health.body"), body.clone());
            }
            if let Some(tls) = tls {
                put(at("health.verify"), (*tls != Tls::Unverified).to_string());
                let ca = if let Tls::Authorities(file) = tls { file.as_str() } else { "the system's" };
                put(at("health.ca"), ca.to_owned());
            }
        }
        for backend in &service.backends {
            let at = |key: &str| format!("service[{}].backend[{}].{key}", service.name, backend.name);
            put(at("address"), backend.address.to_string());
            if let Some(port) = backend.port {
                put(at("port"), port.to_string());
            }
            put(at("weight"), backend.weight.to_string());
            put(at("state"), names::state(backend.state).into());
        }
    }
    values
}

fn sources(sources: &[Source]) -> String {
    if sources.is_empty() {
        return "the interface's".into();
    }
    sources.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::config::parse;

    #[test]
    fn values_are_written_as_the_configuration_writes_them() {
        let text = |health: &str| {
            let agent =
                "[agent]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\nvips = [\"192.0.2.1:80\"]\n";
            parse(&format!("{agent}[service.health]\ntype = \"tcp\"\n{health}")).expect("valid")
        };
        let after = text("slow_start = \"90s\"\ninterval = \"1m\"\ntimeout = \"1500ms\"\nrise = 3");
        let changes: Vec<String> = diff(&text(""), &after).iter().map(ToString::to_string).collect();
        let expected = [
            "~ service[web].health.hold_down: 10s → 5m",
            "~ service[web].health.hold_down_max: 5m → 60m",
            "~ service[web].health.interval: 2s → 1m",
            "~ service[web].health.rise: 2 → 3",
            "~ service[web].health.slow_start: 0s → 90s",
            "~ service[web].health.timeout: 1s → 1500ms",
        ];
        assert_eq!(changes, expected);
    }
}
