//! The lab's `sluice.toml`: turns web servers, weights and switches into the text of a configuration.

use std::fmt::{self, Display, Formatter};
use std::net::Ipv4Addr;

/// A standard configuration to be varied; `to_string` gives the file's content.
#[derive(Clone, Debug)]
pub struct SluiceToml {
    vip: Ipv4Addr,
    backends: Vec<Backend>,
    all_down: &'static str,
    udp_port: Option<u16>,
}

#[derive(Clone, Debug)]
struct Backend {
    name: String,
    address: Ipv4Addr,
    weight: u16,
    state: &'static str,
}

impl SluiceToml {
    pub(crate) fn new(vip: Ipv4Addr, servers: impl Iterator<Item = (String, Ipv4Addr)>) -> Self {
        let backends =
            servers.map(|(name, address)| Backend { name, address, weight: 100, state: "enabled" }).collect();
        Self { vip, backends, all_down: "fail-open", udp_port: None }
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

    fn service(&self, f: &mut Formatter<'_>, name: &str, port: u16, protocol: &str) -> fmt::Result {
        writeln!(f, "\n[[service]]\nname = \"{name}\"")?;
        writeln!(f, "vips = [\"{}:{port}\"]\nprotocol = \"{protocol}\"", self.vip)?;
        writeln!(f, "forwarding = \"l2-dsr\"\nall_down = \"{}\"", self.all_down)?;
        // The probe of every TCP service is the web server's own: it tells whether the server works.
        let health = match protocol {
            "tcp" => HTTP_HEALTH,
            _ => "type = \"none\"\n",
        };
        write!(f, "\n[service.health]\n{health}")?;
        for backend in &self.backends {
            let Backend { name, address, weight, state } = backend;
            writeln!(f, "\n[[service.backend]]\nname = \"{name}\"\naddress = \"{address}\"")?;
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
        writeln!(f, "[agent]\ninterfaces = [\"eth0\"]\nxdp_mode = \"driver\"\nflow_table_size = 65536")?;
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

    fn config() -> SluiceToml {
        let servers = [1, 2].map(|n| (format!("web{n}"), Ipv4Addr::new(10, 0, 1, 10 + n)));
        SluiceToml::new(Ipv4Addr::new(203, 0, 113, 10), servers.into_iter())
    }

    #[test]
    fn both_services_name_every_backend() {
        let text = config().to_string();
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
}
