//! Services that are checked every 300 ms, and what becomes of it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lb_tests::{Agent, Lab, wait_until};

pub const PATIENCE: Duration = Duration::from_secs(20);

/// Quick checks: every 300 ms, one success or two failures decide; whatever came before.
pub const QUICK: &str = "interval = \"300ms\"\ntimeout = \"300ms\"\nrise = 1\nfall = 2\nhold_down = \"0s\"\n";

/// A service: its name, VIPs, forwarding mode and the keys of its health check.
pub struct Service<'a> {
    pub name: &'a str,
    pub vips: &'a [SocketAddr],
    pub forwarding: &'a str,
    pub health: &'a str,
    /// Name, address and further keys of each backend.
    pub backends: Vec<(String, IpAddr, &'a str)>,
}

pub fn configuration(services: &[Service<'_>]) -> String {
    let mut text =
        "[agent]\ninterfaces = [\"eth0\"]\nxdp_mode = \"driver\"\nflow_table_size = 65536\n".to_owned();
    for Service { name, vips, forwarding, health, backends } in services {
        let vips: Vec<String> = vips.iter().map(ToString::to_string).collect();
        text += &format!("[[service]]\nname = \"{name}\"\nvips = {vips:?}\nforwarding = \"{forwarding}\"\n");
        text += &format!("[service.health]\n{QUICK}{health}\n");
        for (name, address, keys) in backends {
            text += &format!("[[service.backend]]\nname = \"{name}\"\naddress = \"{address}\"\n{keys}\n");
        }
    }
    text
}

pub fn webs<'a>(lab: &Lab, v6: bool) -> Vec<(String, IpAddr, &'a str)> {
    let address = |web: &lb_tests::Host| web.both_addresses()[usize::from(v6)];
    lab.webs().iter().map(|web| (web.name().to_owned(), address(web), "")).collect()
}

pub fn health_of(agent: &Agent<'_>, service: &str, backend: &str) -> (String, String) {
    let found = agent.backend(service, backend).expect("a backend");
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    (text("health"), text("reason"))
}

/// Waits until a backend is as healthy as this, for a reason that contains these words.
pub fn wait_for(agent: &Agent<'_>, service: &str, backend: &str, health: &str, reason: &str) {
    let mut last = Default::default();
    wait_until("health and reason", PATIENCE, || {
        last = health_of(agent, service, backend);
        last.0 == health && last.1.contains(reason) && last.1.is_empty() == reason.is_empty()
    })
    .unwrap_or_else(|_| {
        panic!("{service}/{backend}: wanted {health}: {reason:?}, found {last:?}\n{}", agent.log())
    });
}
