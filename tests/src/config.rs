//! The lab's `sluice.toml`: turns web servers, weights and switches into the text of a configuration.

use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::host::Host;
use crate::topology::{VIP, VIP6};

/// A standard configuration to be varied; `to_string` gives the file's content.
#[derive(Clone, Debug)]
pub struct SluiceToml {
    vips: Vec<IpAddr>,
    backends: Vec<Backend>,
    backends_v6: bool,
    /// Service names and the port of their backends.
    backend_ports: Vec<(&'static str, u16)>,
    forwarding: &'static str,
    affinity: Option<&'static str>,
    all_down: &'static str,
    udp_port: Option<u16>,
    interfaces: Vec<&'static str>,
    source_v4: Option<&'static str>,
    source_v6: Option<&'static str>,
    metrics: bool,
}

#[derive(Clone, Debug)]
struct Backend {
    name: String,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    weight: u16,
    state: &'static str,
}

impl SluiceToml {
    /// For the edge host's interfaces and these web servers.
    pub(crate) fn new(edge: &Host, webs: &[Host]) -> Self {
        let interfaces = match edge.attachments() {
            [_, _, ..] => vec!["eth0", "eth1"],
            _ => vec!["eth0"],
        };
        let backend = |web: &Host| Backend {
            name: web.name().to_owned(),
            v4: web.address(),
            v6: web.address6(),
            weight: 100,
            state: "enabled",
        };
        Self {
            vips: vec![VIP.into()],
            backends: webs.iter().map(backend).collect(),
            backends_v6: false,
            backend_ports: Vec::new(),
            forwarding: "l2-dsr",
            affinity: None,
            all_down: "fail-open",
            udp_port: None,
            interfaces,
            source_v4: None,
            source_v6: None,
            metrics: false,
        }
    }

    /// Every service has the IPv6 VIP too.
    #[must_use]
    pub fn ipv6(mut self) -> Self {
        self.vips = vec![VIP.into(), VIP6.into()];
        self
    }

    /// Every service has the IPv6 VIP only.
    #[must_use]
    pub fn ipv6_only(mut self) -> Self {
        self.vips = vec![VIP6.into()];
        self
    }

    /// Backends are given by their IPv6 addresses.
    #[must_use]
    pub fn backends_v6(mut self) -> Self {
        self.backends_v6 = true;
        self
    }

    /// The port of the backends of one service, `web`, `web-tls` or `udp`: for `nat`, which translates it.
    #[must_use]
    pub fn backend_port(mut self, service: &'static str, port: u16) -> Self {
        self.backend_ports.push((service, port));
        self
    }

    /// The forwarding mode of every service: `l2-dsr`, `ipip`, `gue` or `nat`.
    #[must_use]
    pub fn forwarding(mut self, mode: &'static str) -> Self {
        self.forwarding = mode;
        self
    }

    /// The affinity of every service: `connection` or `client`.
    #[must_use]
    pub fn affinity(mut self, affinity: &'static str) -> Self {
        self.affinity = Some(affinity);
        self
    }

    /// Where the program is attached, if not to all interfaces of the edge host.
    #[must_use]
    pub fn interfaces(mut self, names: &[&'static str]) -> Self {
        self.interfaces = names.to_vec();
        self
    }

    /// The IPv4 source of tunnels and translated flows.
    #[must_use]
    pub fn source_v4(mut self, source: &'static str) -> Self {
        self.source_v4 = Some(source);
        self
    }

    /// The IPv6 source of tunnels and translated flows.
    #[must_use]
    pub fn source_v6(mut self, source: &'static str) -> Self {
        self.source_v6 = Some(source);
        self
    }

    /// Metrics and console are served, on the edge host alone: at port 9400 of 127.0.0.1.
    #[must_use]
    pub fn metrics(mut self) -> Self {
        self.metrics = true;
        self
    }

    /// Weights in the order of the web servers; those not named keep theirs.
    #[must_use]
    pub fn weights(mut self, weights: &[u16]) -> Self {
        for (backend, weight) in self.backends.iter_mut().zip(weights) {
            backend.weight = *weight;
        }
        self
    }

    /// Sets the state of one backend: `enabled`, `drain` or `disabled`.
    #[must_use]
    pub fn state(mut self, name: &str, state: &'static str) -> Self {
        for backend in self.backends.iter_mut().filter(|backend| backend.name == name) {
            backend.state = state;
        }
        self
    }

    /// Leaves one backend out.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.backends.retain(|backend| backend.name != name);
        self
    }

    /// What happens when no backend is healthy: `fail-open` or `drop`.
    #[must_use]
    pub fn all_down(mut self, policy: &'static str) -> Self {
        self.all_down = policy;
        self
    }

    /// Adds a UDP service without health checks on the VIP.
    #[must_use]
    pub fn udp(mut self, port: u16) -> Self {
        self.udp_port = Some(port);
        self
    }

    fn agent(&self, f: &mut Formatter<'_>) -> fmt::Result {
        // A list of strings is written alike in Rust and in TOML.
        writeln!(f, "[agent]\ninterfaces = {:?}", self.interfaces)?;
        writeln!(f, "xdp_mode = \"driver\"\nflow_table_size = 65536")?;
        for (key, source) in [("source_v4", self.source_v4), ("source_v6", self.source_v6)] {
            if let Some(source) = source {
                writeln!(f, "{key} = \"{source}\"")?;
            }
        }
        if self.metrics {
            writeln!(f, "metrics = \"127.0.0.1:9400\"")?;
        }
        Ok(())
    }

    fn service(&self, f: &mut Formatter<'_>, name: &str, port: u16, protocol: &str) -> fmt::Result {
        let vips: Vec<_> = self.vips.iter().map(|vip| SocketAddr::new(*vip, port).to_string()).collect();
        writeln!(f, "\n[[service]]\nname = \"{name}\"")?;
        writeln!(f, "vips = {vips:?}\nprotocol = \"{protocol}\"")?;
        writeln!(f, "forwarding = \"{}\"\nall_down = \"{}\"", self.forwarding, self.all_down)?;
        if let Some(affinity) = self.affinity {
            writeln!(f, "affinity = \"{affinity}\"")?;
        }
        // The probe of every TCP service is the web server's own: it tells whether the server works.
        let health = match protocol {
            "tcp" => HTTP_HEALTH,
            _ => "type = \"none\"\n",
        };
        write!(f, "\n[service.health]\n{health}")?;
        let backend_port = self.backend_ports.iter().rev().find(|(service, _)| *service == name);
        for Backend { name, v4, v6, weight, state } in &self.backends {
            let address = if self.backends_v6 { IpAddr::from(*v6) } else { IpAddr::from(*v4) };
            writeln!(f, "\n[[service.backend]]\nname = \"{name}\"\naddress = \"{address}\"")?;
            if let Some((_, port)) = backend_port {
                writeln!(f, "port = {port}")?;
            }
            writeln!(f, "weight = {weight}\nstate = \"{state}\"")?;
        }
        Ok(())
    }
}

/// Short, so that a failover takes about a second: see [`crate::Lab::FAILOVER`].
const HTTP_HEALTH: &str = "type = \"http\"
port = 80
path = \"/healthz\"
interval = \"300ms\"
timeout = \"300ms\"
rise = 2
fall = 3
";

impl Display for SluiceToml {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.agent(f)?;
        self.service(f, "web", 80, "tcp")?;
        self.service(f, "web-tls", 443, "tcp")?;
        match self.udp_port {
            Some(port) => self.service(f, "udp", port, "udp"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Role;

    fn config() -> SluiceToml {
        let network = crate::lab::NETWORK;
        let host =
            |name: &str, role, number| Host::new(name, network.attachments(role, number)).expect("host");
        let webs = [1, 2].map(|n| host(&format!("web{n}"), Role::Backend, 10 + n));
        SluiceToml::new(&host("edge", Role::Edge, 2), &webs)
    }

    #[test]
    fn both_services_name_every_backend() {
        let text = config().to_string();
        assert!(text.starts_with("[agent]\ninterfaces = [\"eth0\"]\n"), "{text}");
        assert!(text.contains("vips = [\"203.0.113.10:80\"]"), "{text}");
        assert!(text.contains("vips = [\"203.0.113.10:443\"]"), "{text}");
        assert_eq!(text.matches("address = \"10.0.1.12\"").count(), 2, "{text}");
        assert!(!text.contains("udp"), "{text}");
    }

    #[test]
    fn variations_show() {
        let text = config().weights(&[300]).without("web2").all_down("drop").udp(9000).to_string();
        assert_eq!(text.matches("weight = 300").count(), 3, "{text}");
        assert!(!text.contains("web2"), "{text}");
        assert!(text.contains("all_down = \"drop\""), "{text}");
        assert!(text.contains("vips = [\"203.0.113.10:9000\"]\nprotocol = \"udp\""), "{text}");
    }

    #[test]
    fn modes_families_and_sources_show() {
        let text = config().forwarding("nat").ipv6().backends_v6().backend_port("web", 8000);
        let text = text.affinity("client").interfaces(&["eth0", "eth1"]).source_v4("192.0.2.1").to_string();
        assert!(text.contains("interfaces = [\"eth0\", \"eth1\"]\n"), "{text}");
        assert!(text.contains("\nsource_v4 = \"192.0.2.1\"\n"), "{text}");
        assert!(text.contains("vips = [\"203.0.113.10:80\", \"[2001:db8:203::10]:80\"]\n"), "{text}");
        assert_eq!(text.matches("forwarding = \"nat\"\n").count(), 2, "{text}");
        assert_eq!(text.matches("affinity = \"client\"\n").count(), 2, "{text}");
        assert_eq!(text.matches("address = \"fd00:1::12\"\n").count(), 2, "{text}");
        assert_eq!(text.matches("\nport = 8000\n").count(), 2, "one for each backend of one service: {text}");
    }
}
