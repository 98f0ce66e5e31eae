//! The network itself: turns namespaces into two bridged segments with addresses, routes and the settings that native
//! XDP and direct server return need.

use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::netns::Netns;
use crate::process::{die_with_parent, run_checked, search_path};

/// The addresses of a host. Every lab uses the same ones: namespaces keep them apart.
#[derive(Clone, Copy, Debug, Default)]
pub struct Addresses {
    /// On the public segment, interface `eth0`.
    pub public: Option<Ipv4Addr>,
    /// On the private segment: `eth1`, or `eth0` if the host is on no other.
    pub private: Option<Ipv4Addr>,
}

/// What a host needs beyond its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Reaches the VIP through the edge host.
    Client,
    /// Runs Sluice.
    Edge,
    /// Has the VIP on its loopback and keeps quiet about it.
    Backend,
    /// Sits on the private segment only.
    App,
}

/// A host to be connected: its port on the bridges carries its name.
pub(crate) struct Port<'a> {
    pub(crate) name: &'a str,
    pub(crate) netns: &'a Netns,
    pub(crate) addresses: Addresses,
    pub(crate) role: Role,
}

/// Where the VIPs are and who forwards to them.
pub(crate) struct Routing {
    pub(crate) vip: Ipv4Addr,
    pub(crate) edge: Ipv4Addr,
    pub(crate) mtu: u32,
}

/// Makes bridges and links in `switch` and configures every host.
pub(crate) fn connect(switch: &Netns, ports: &[Port<'_>], routing: &Routing) -> Result<()> {
    switch.run(quiet_bridges)??;
    ip_batch(switch, &switch_commands(ports, routing.mtu)).context("building the switch")?;
    for port in ports {
        let configured = || -> Result<()> {
            port.netns.run(|| host_sysctls(port.role))??;
            ip_batch(port.netns, &host_commands(port, routing))
        };
        configured().with_context(|| format!("configuring {}", port.name))?;
    }
    for port in ports.iter().filter(|port| port.role == Role::Edge) {
        // Frames of a local TCP stack carry half a checksum, which XDP_TX would put on the wire as it is.
        let mut ethtool = Command::new("ethtool");
        ethtool.args(["-K", port.name, "tx", "off"]).env("PATH", search_path());
        switch.apply_to(&mut ethtool);
        run_checked(&mut ethtool)?;
    }
    Ok(())
}

fn switch_commands(ports: &[Port<'_>], mtu: u32) -> String {
    let mut batch = String::from("link set lo up\n");
    for bridge in ["public", "private"] {
        batch += &format!("link add {bridge} type bridge forward_delay 0 mcast_snooping 0\n");
        batch += &format!("link set {bridge} mtu {mtu} up\n");
    }
    for port in ports {
        for (interface, bridge) in interfaces(port.addresses).into_iter().zip(bridges(port.addresses)) {
            let end = if bridge == "private" { format!("{}-p", port.name) } else { port.name.to_owned() };
            let inside = port.netns.path();
            batch += &format!(
                "link add {end} mtu {mtu} type veth peer name {interface} mtu {mtu} netns {inside}\n"
            );
            batch += &format!("link set {end} master {bridge} up\n");
        }
    }
    batch
}

fn host_commands(port: &Port<'_>, routing: &Routing) -> String {
    let mut batch = String::from("link set lo up\n");
    let addresses = [port.addresses.public, port.addresses.private].into_iter().flatten();
    for (interface, address) in interfaces(port.addresses).into_iter().zip(addresses) {
        batch += &format!("addr add {address}/24 dev {interface}\nlink set {interface} up\n");
    }
    match port.role {
        Role::Client => batch += &format!("route add {}/32 via {}\n", routing.vip, routing.edge),
        Role::Backend => batch += &format!("addr add {}/32 dev lo\n", routing.vip),
        Role::Edge | Role::App => {}
    }
    batch
}

fn interfaces(addresses: Addresses) -> Vec<&'static str> {
    match (addresses.public, addresses.private) {
        (Some(_), Some(_)) => vec!["eth0", "eth1"],
        (None, None) => vec![],
        _ => vec!["eth0"],
    }
}

fn bridges(addresses: Addresses) -> Vec<&'static str> {
    let public = addresses.public.map(|_| "public");
    let private = addresses.private.map(|_| "private");
    public.into_iter().chain(private).collect()
}

/// Bridged frames are not a firewall's business here, and its tables are not ours. The file exists only where the
/// module is loaded.
fn quiet_bridges() -> Result<()> {
    let file = Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables");
    if file.exists() {
        fs::write(file, "0").with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}

/// Settings that must stand before the addresses come: a backend that has answered one ARP request for the VIP has
/// taken it from the edge host.
fn host_sysctls(role: Role) -> Result<()> {
    let mut settings = vec![("conf/all/rp_filter", "0"), ("conf/default/rp_filter", "0")];
    if role == Role::Backend {
        settings.extend([("conf/all/arp_ignore", "1"), ("conf/all/arp_announce", "2")]);
    }
    for (name, value) in settings {
        let file = format!("/proc/sys/net/ipv4/{name}");
        fs::write(&file, value).with_context(|| format!("writing {file}"))?;
    }
    Ok(())
}

/// Runs `ip -batch` in `netns`: one process for any number of commands.
pub(crate) fn ip_batch(netns: &Netns, batch: &str) -> Result<()> {
    let mut ip = Command::new("ip");
    ip.args(["-batch", "-"]).env("PATH", search_path());
    ip.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    netns.apply_to(&mut ip);
    die_with_parent(&mut ip);
    let mut child = ip.spawn().context("starting ip (iproute2)")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(batch.as_bytes()).context("writing to ip")?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("ip -batch: {}\n{batch}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUBLIC: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 11);
    const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 11);

    fn commands(role: Role, addresses: Addresses) -> String {
        let netns = Netns::new().expect("a namespace");
        let routing =
            Routing { vip: Ipv4Addr::new(203, 0, 113, 10), edge: Ipv4Addr::new(10, 0, 1, 2), mtu: 1500 };
        host_commands(&Port { name: "host", netns: &netns, addresses, role }, &routing)
    }

    #[test]
    fn a_backend_has_both_segments_and_the_vip() {
        let batch = commands(Role::Backend, Addresses { public: Some(PUBLIC), private: Some(PRIVATE) });
        assert!(batch.contains("addr add 10.0.1.11/24 dev eth0\n"), "{batch}");
        assert!(batch.contains("addr add 10.0.2.11/24 dev eth1\n"), "{batch}");
        assert!(batch.contains("addr add 203.0.113.10/32 dev lo\n"), "{batch}");
    }

    #[test]
    fn an_app_server_is_on_the_private_segment_only() {
        let batch = commands(Role::App, Addresses { public: None, private: Some(PRIVATE) });
        assert_eq!(batch, "link set lo up\naddr add 10.0.2.11/24 dev eth0\nlink set eth0 up\n");
    }

    #[test]
    fn a_client_goes_through_the_edge() {
        let batch = commands(Role::Client, Addresses { public: Some(PUBLIC), private: None });
        assert!(batch.ends_with("route add 203.0.113.10/32 via 10.0.1.2\n"), "{batch}");
    }
}
