//! The network itself: turns the plan into bridges and links in a switch namespace, and into hosts with addresses,
//! routes and the settings that native XDP and direct server return need.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::host::Host;
use crate::netns::Netns;
use crate::process::{die_with_parent, run_checked, search_path};
use crate::segment::Segment;
use crate::topology::{Network, Role, VIP, VIP6};

/// Makes bridges and links in `switch` and configures every host.
pub(crate) fn connect(switch: &Netns, hosts: &[(&Host, Role)], network: &Network) -> Result<()> {
    switch.run(quiet_switch)??;
    for (host, role) in hosts {
        // An interface takes its settings when it is made.
        host.run(|| host_sysctls(*role))?.with_context(|| format!("setting up {}", host.name()))?;
    }
    ip_batch(switch, &switch_commands(hosts, network)).context("building the switch")?;
    for (host, role) in hosts {
        let commands = host_commands(host, *role, network) + &route_commands(host, *role, network);
        ip_batch(host.netns(), &commands).with_context(|| format!("configuring {}", host.name()))?;
    }
    for (host, role) in hosts.iter().filter(|(_, role)| matches!(role, Role::Edge | Role::Backend)) {
        for port in ports(host) {
            let mut ethtool = Command::new("ethtool");
            // A VLAN tag beside the frame is not seen by XDP: it belongs into the bytes.
            ethtool.args(["-K", &port, "txvlan", "off", "tx-vlan-stag-hw-insert", "off"]);
            if *role == Role::Edge {
                // Frames of a local TCP stack carry half a checksum, which XDP_TX would put on the wire as it is.
                ethtool.args(["tx", "off"]);
            }
            ethtool.env("PATH", search_path());
            switch.apply_to(&mut ethtool);
            run_checked(&mut ethtool)?;
        }
    }
    Ok(())
}

/// The names of a host's ports in the switch namespace, in the order of its interfaces.
fn ports(host: &Host) -> impl Iterator<Item = String> {
    (0..host.attachments().len()).map(|index| host.port(index))
}

fn switch_commands(hosts: &[(&Host, Role)], network: &Network) -> String {
    let mut batch = String::from("link set lo up\n");
    let used =
        |segment| hosts.iter().flat_map(|(host, _)| host.attachments()).any(|there| there.segment == segment);
    for segment in Segment::ALL.into_iter().filter(|segment| used(*segment)) {
        let bridge = segment.name();
        batch += &format!("link add {bridge} type bridge forward_delay 0 mcast_snooping 0\n");
        // A bridge's own MTU limits nothing that it forwards: its ports' do.
        batch += &format!("link set {bridge} mtu {} up\n", network.link_mtu(Role::Edge, segment));
    }
    for (host, role) in hosts {
        let inside = host.netns().path();
        for (index, (attachment, port)) in host.attachments().iter().zip(ports(host)).enumerate() {
            let mtu = network.link_mtu(*role, attachment.segment);
            batch += &format!(
                "link add {port} mtu {mtu} type veth peer name eth{index} mtu {mtu} netns {inside}\n"
            );
            batch += &format!("link set {port} master {} up\n", attachment.segment.name());
        }
    }
    batch
}

fn host_commands(host: &Host, role: Role, network: &Network) -> String {
    let mut batch = String::from("link set lo up\n");
    for (index, at) in host.attachments().iter().enumerate() {
        // Else the kernel adds the segment's routes, with the link's MTU.
        let own_routes = network.route_mtu(role, at.segment).map_or("", |_| " noprefixroute");
        batch += &format!("addr add {}/24 dev eth{index}{own_routes}\n", at.v4());
        batch += &format!("addr add {}/64 dev eth{index} nodad{own_routes}\n", at.v6());
        batch += &format!("link set eth{index} up\n");
    }
    if role == Role::Backend && network.vip_on_backends {
        batch += &format!("addr add {VIP}/32 dev lo\naddr add {VIP6}/128 dev lo nodad\n");
    }
    batch
}

/// A host's routes as commands that may be repeated: a link that goes down takes its routes with it.
pub(crate) fn route_commands(host: &Host, role: Role, network: &Network) -> String {
    let mut batch = String::new();
    for (index, at) in host.attachments().iter().enumerate() {
        let mtu = network.route_mtu(role, at.segment);
        let with_mtu = mtu.map_or(String::new(), |mtu| format!(" mtu {mtu}"));
        if mtu.is_some() {
            let (v4, v6) = at.segment.prefixes();
            batch += &format!("route replace {v4} dev eth{index} src {}{with_mtu}\n", at.v4());
            batch += &format!("route replace {v6} dev eth{index}{with_mtu}\n");
        }
        for route in network.routes(role).iter().filter(|route| route.via.segment == at.segment) {
            let (to, via) = (&route.to, route.via);
            batch += &format!("route replace {} via {} dev eth{index}{with_mtu}\n", to.0, via.v4());
            batch += &format!("route replace {} via {} dev eth{index}{with_mtu}\n", to.1, via.v6());
        }
    }
    batch
}

/// The switch has no addresses, and bridged frames are not a firewall's business here, whose tables are not ours. Its
/// files exist only where the module is loaded.
fn quiet_switch() -> Result<()> {
    write_sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
    for family in ["iptables", "ip6tables"] {
        let name = format!("net/bridge/bridge-nf-call-{family}");
        if Path::new("/proc/sys").join(&name).exists() {
            write_sysctl(&name, "0")?;
        }
    }
    Ok(())
}

/// Settings that must stand before the addresses come: a backend that has answered one ARP request for the VIP has
/// taken it from the edge host. For IPv6 no such setting is needed: an address is answered for on its own interface.
fn host_sysctls(role: Role) -> Result<()> {
    for which in ["all", "default"] {
        write_sysctl(&format!("net/ipv4/conf/{which}/rp_filter"), "0")?;
        // Addresses are there at once, and stay when a cable is pulled; nobody is asked for more.
        for (name, value) in [
            ("accept_dad", "0"),
            ("accept_ra", "0"),
            ("router_solicitations", "0"),
            ("keep_addr_on_down", "1"),
        ] {
            write_sysctl(&format!("net/ipv6/conf/{which}/{name}"), value)?;
        }
    }
    if matches!(role, Role::Backend | Role::App) {
        spread_flows()?;
    }
    if role == Role::Backend {
        write_sysctl("net/ipv4/conf/all/arp_ignore", "1")?;
        write_sysctl("net/ipv4/conf/all/arp_announce", "2")?;
    }
    if role.forwards() {
        write_sysctl("net/ipv4/ip_forward", "1")?;
        write_sysctl("net/ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

/// Has each flow's packets taken by one CPU, as the queues of a real network card do. A veth pair takes them wherever they were sent,
/// and where two CPUs take a new connection's first two packets at once, Linux (6.18 here) may miss the connection as it moves from one
/// kind of socket to another, and answer the second one with an RST (`inet_ehash_insert` in `net/ipv4/inet_hashtables.c`). Seen once
/// in half a million connections, with nothing between the two hosts.
fn spread_flows() -> Result<()> {
    let file = "net/core/rps_default_mask";
    // Namespaces have one of their own since Linux 6.3.
    if !Path::new("/proc/sys").join(file).exists() {
        return Ok(());
    }
    let cpus = std::thread::available_parallelism().context("counting CPUs")?.get().min(32);
    write_sysctl(file, &format!("{:x}", u64::MAX >> (64 - cpus)))
}

/// Writes a setting of the calling thread's namespace; `name` has slashes: `net/ipv4/ip_forward`.
pub(crate) fn write_sysctl(name: &str, value: &str) -> Result<()> {
    let file = Path::new("/proc/sys").join(name);
    fs::write(&file, value).with_context(|| format!("writing {value} to {}", file.display()))
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
    use crate::lab::NETWORK;
    use crate::topology::Topology;

    fn commands(role: Role, number: u8, network: &Network) -> String {
        let host = Host::new("host", network.attachments(role, number)).expect("a host");
        host_commands(&host, role, network) + &route_commands(&host, role, network)
    }

    #[test]
    fn a_backend_has_both_segments_and_the_vips() {
        let batch = commands(Role::Backend, 11, &NETWORK);
        for line in [
            "addr add 10.0.1.11/24 dev eth0",
            "addr add fd00:2::11/64 dev eth1 nodad",
            "addr add 203.0.113.10/32 dev lo",
            "addr add 2001:db8:203::10/128 dev lo nodad",
        ] {
            assert!(batch.lines().any(|seen| seen == line), "no {line} in:\n{batch}");
        }
        let without = commands(Role::Backend, 11, &Network { vip_on_backends: false, ..NETWORK });
        assert!(!without.contains("dev lo\n") && !without.contains("dev lo nodad"), "{without}");
    }

    #[test]
    fn a_backend_does_not_send_what_only_tunnels_may() {
        let network = Network { topology: Topology::Routed, backend_mtu: Some(1600), ..NETWORK };
        let batch = commands(Role::Backend, 11, &network);
        for line in [
            "addr add 10.0.3.11/24 dev eth0 noprefixroute",
            "route replace 10.0.3.0/24 dev eth0 src 10.0.3.11 mtu 1500",
            "route replace ::/0 via fd00:3::1 dev eth0 mtu 1500",
            "addr add 10.0.2.11/24 dev eth1",
        ] {
            assert!(batch.lines().any(|seen| seen == line), "no {line} in:\n{batch}");
        }
    }

    #[test]
    fn an_app_server_is_on_the_private_segment_only() {
        let batch = commands(Role::App, 101, &NETWORK);
        let addresses = "addr add 10.0.2.101/24 dev eth0\naddr add fd00:2::101/64 dev eth0 nodad\n";
        assert_eq!(batch, format!("link set lo up\n{addresses}link set eth0 up\n"));
    }

    #[test]
    fn a_client_goes_through_the_edge() {
        let batch = commands(Role::Client, 100, &NETWORK);
        assert!(batch.contains("route replace 203.0.113.10/32 via 10.0.1.2 dev eth0\n"), "{batch}");
        assert!(batch.contains("route replace 2001:db8:203::10/128 via fd00:1::2 dev eth0\n"), "{batch}");
    }

    #[test]
    fn links_to_the_backends_have_room_for_tunnels_and_those_to_customers_have_not() {
        let network = Network { backend_mtu: Some(1600), ..NETWORK };
        assert_eq!(network.link_mtu(Role::Client, Segment::Public), 1500);
        assert_eq!(network.link_mtu(Role::Edge, Segment::Public), 1600);
        assert_eq!(network.link_mtu(Role::Backend, Segment::Private), 1500);
        let narrow = Network { narrow_to_backends: Some(1400), ..network };
        assert!(narrow.check().is_err(), "a bridge has no narrow link");
        let narrow = Network { topology: Topology::Routed, ..narrow };
        narrow.check().expect("a routed network has");
        assert_eq!(narrow.link_mtu(Role::Router, Segment::Downlink), 1400);
    }
}
