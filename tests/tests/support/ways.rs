//! The ways from a VIP to its web servers: turns forwarding modes and families into services with a VIP each, so that one
//! lab with one agent serves all of them at once.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;

use lb_tests::{Agent, BACKEND_PORT, Decap, Host, Lab, SOURCES, SOURCES6, Segment, UdpEcho};

/// Where the VIPs answer datagrams.
pub const UDP_PORT: u16 = 9_000;
/// Where web servers without VIPs do.
const BACKEND_UDP_PORT: u16 = 9_001;
/// All VIPs here, for routes to them.
const VIPS: [&str; 2] = ["203.0.113.0/24", "2001:db8:203::/64"];

/// How packets of one VIP get to its web servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    pub mode: &'static str,
    /// Whether the VIP is an IPv6 address.
    pub vip6: bool,
    /// Whether the web servers' own addresses are: in tunnels, the outer ones.
    pub backends6: bool,
}

const fn way(mode: &'static str, vip6: bool, backends6: bool) -> Way {
    Way { mode, vip6, backends6 }
}

/// Every mode in every mixture of families.
pub const WAYS: [Way; 12] = [
    way("l2-dsr", false, false),
    way("l2-dsr", true, true),
    way("ipip", false, false),
    way("ipip", true, true),
    way("ipip", false, true),
    way("ipip", true, false),
    way("gue", false, false),
    way("gue", true, true),
    way("gue", false, true),
    way("gue", true, false),
    way("nat", false, false),
    way("nat", true, true),
];

impl Way {
    /// Whether a router may stand between Sluice and the web servers.
    pub fn is_routed(self) -> bool {
        self.mode != "l2-dsr"
    }

    pub fn is_tunnel(self) -> bool {
        matches!(self.mode, "ipip" | "gue")
    }

    pub fn is_nat(self) -> bool {
        self.mode == "nat"
    }

    /// Bytes that are put in front of a packet.
    pub fn overhead(self) -> u32 {
        let outer = if self.backends6 { 40 } else { 20 };
        match self.mode {
            "ipip" => outer,
            // A UDP header and a GUE header without extensions.
            "gue" => outer + 8 + 4,
            _ => 0,
        }
    }

    /// The name of its TCP service. That of its UDP service has `-udp` behind it.
    pub fn name(self) -> String {
        let family = |v6| if v6 { 6 } else { 4 };
        format!("{}-{}in{}", self.mode, family(self.vip6), family(self.backends6))
    }

    /// Its own VIP.
    pub fn vip(self) -> IpAddr {
        let index = WAYS.iter().position(|way| *way == self).expect("one of them");
        let number = 20 + u8::try_from(index).expect("few");
        if self.vip6 {
            Ipv6Addr::new(0x2001, 0xdb8, 0x203, 0, 0, 0, 0, number.into()).into()
        } else {
            Ipv4Addr::new(203, 0, 113, number).into()
        }
    }

    pub fn tcp(self) -> SocketAddr {
        SocketAddr::new(self.vip(), 80)
    }

    pub fn udp(self) -> SocketAddr {
        SocketAddr::new(self.vip(), UDP_PORT)
    }

    /// The customer's address in the family of the VIP.
    pub fn customer(self, lab: &Lab) -> IpAddr {
        lab.customer().both_addresses()[usize::from(self.vip6)]
    }

    /// The address that a web server is known by.
    pub fn backend(self, web: &Host) -> IpAddr {
        web.both_addresses()[usize::from(self.backends6)]
    }

    /// Where a web server answers its datagrams.
    pub fn echo(self, web: &Host) -> SocketAddr {
        if self.is_nat() { SocketAddr::new(self.backend(web), BACKEND_UDP_PORT) } else { self.udp() }
    }
}

/// The configuration of these ways; `agent` is what else stands in its first table, and `service` in every service's.
pub fn config(lab: &Lab, ways: &[Way], agent: &str, service: &str) -> String {
    let interfaces = lab.edge().attachments().len();
    let interfaces: Vec<_> = (0..interfaces).map(|index| format!("eth{index}")).collect();
    let mut text = format!("[agent]\ninterfaces = {interfaces:?}\nxdp_mode = \"driver\"\n");
    text += &format!("flow_table_size = 65536\n{agent}\n");
    for way in ways {
        let http = "type = \"http\"\nport = 80\npath = \"/healthz\"\ninterval = \"1s\"\ntimeout = \"900ms\"";
        for (suffix, protocol, vip, backend_port, health) in [
            ("", "tcp", way.tcp(), BACKEND_PORT, http),
            ("-udp", "udp", way.udp(), BACKEND_UDP_PORT, "type = \"none\""),
        ] {
            text += &format!("\n[[service]]\nname = \"{}{suffix}\"\nvips = [\"{vip}\"]\n", way.name());
            text += &format!("protocol = \"{protocol}\"\nforwarding = \"{}\"\n{service}\n", way.mode);
            text += &format!("[service.health]\n{health}\n");
            for web in lab.webs() {
                let address = way.backend(web);
                text += &format!("[[service.backend]]\nname = \"{}\"\naddress = \"{address}\"\n", web.name());
                if way.is_nat() {
                    text += &format!("port = {backend_port}\n");
                }
            }
        }
    }
    text
}

/// Sluice's own addresses of both families, which all routers send to it; tunnels have one for each flow.
pub fn own_sources() -> String {
    "source_v4 = [\"192.0.2.1\", \"192.0.2.128/25\"]\nsource_v6 = [\"2001:db8:192::1\", \"2001:db8:192:0:1::/80\"]"
        .to_owned()
}

/// What web servers run beside their nginx.
pub struct Servers {
    _decaps: Vec<Decap>,
    _echoes: Vec<UdpEcho>,
}

/// Makes the VIPs known to customers and routers, and puts all but those of `nat` on the web servers.
pub fn announce(lab: &Lab, ways: &[Way]) {
    let hosts = [lab.customer()].into_iter().chain(lab.routers().first());
    for host in hosts.filter(|host| host.on(Segment::Public).is_some()) {
        let edge = lab.edge().both_addresses();
        let route = |(vips, edge)| format!("route replace {vips} via {edge} dev eth0\n");
        host.ip(&VIPS.into_iter().zip(edge).map(route).collect::<String>()).expect("routes");
    }
    let vips = ways.iter().filter(|way| !way.is_nat()).map(|way| match way.vip() {
        IpAddr::V4(vip) => format!("addr add {vip}/32 dev lo\n"),
        IpAddr::V6(vip) => format!("addr add {vip}/128 dev lo nodad\n"),
    });
    let vips: String = vips.collect();
    lab.webs().iter().for_each(|web| web.ip(&vips).expect("VIPs"));
}

/// Has the web servers unpack tunnels.
pub fn unpack(lab: &Lab) -> Vec<Decap> {
    let [edge4, edge6] = lab.edge().both_addresses();
    let mut from = format!("{edge4},{edge6},{SOURCES},{SOURCES6}");
    // What is sent out of another interface has that one's address.
    for at in lab.edge().attachments().iter().skip(1) {
        from += &format!(",{},{}", at.v4(), at.v6());
    }
    lab.start_decap_on_webs(&["--from", &from]).expect("sluice decap")
}

/// Has the web servers answer by these ways.
pub fn serve(lab: &Lab, ways: &[Way]) -> Servers {
    announce(lab, ways);
    let echoes = lab.webs().iter().flat_map(|web| ways.iter().map(move |way| (web, way.echo(web))));
    let echoes = echoes.map(|(web, address)| UdpEcho::start(web, address).expect("echo")).collect();
    Servers { _decaps: unpack(lab), _echoes: echoes }
}

/// Starts an agent with this configuration and waits until all it serves is healthy.
pub fn healthy_agent<'lab>(lab: &'lab Lab, config: &str) -> Agent<'lab> {
    let agent = lab.start_agent(config).expect("an agent");
    agent.wait_until_healthy().expect("healthy");
    agent
}

/// A counter of `sluice status` by its verdict.
pub fn verdict(agent: &Agent<'_>, name: &str) -> u64 {
    agent.status().expect("status")["verdicts"][name].as_u64().expect("a count")
}

/// The drops that `sluice status` shows, those expected apart.
pub fn drops(agent: &Agent<'_>, expected: &[&str]) -> Vec<String> {
    let status = agent.status().expect("status");
    let verdicts = status["verdicts"].as_object().expect("verdicts");
    let drops = verdicts.iter().filter(|(name, count)| name.starts_with("drop.") && **count != 0);
    let drops = drops.filter(|(name, _)| !expected.contains(&name.as_str()));
    drops.map(|(name, count)| format!("{name}: {count}")).collect()
}

/// Fails unless a ping of this payload, in one frame, is answered.
pub fn ping(from: &Host, to: IpAddr, size: u32) {
    let mut ping: Command = from.command("ping");
    ping.args(["-c", "2", "-i", "0.05", "-W", "2", "-M", "do", "-s", &size.to_string(), &to.to_string()]);
    let output = ping.output().expect("ping");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains(" 0% packet loss"), "{to}, {size} bytes: {text}");
}

/// What a host has found out about the MTU of the path to an address.
pub fn path_mtu(from: &Host, to: IpAddr) -> Option<u32> {
    let output = from.command("ip").args(["route", "get", &to.to_string()]).output().expect("ip");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // A route's own MTU has no expiry.
    let words: Vec<_> = text.contains(" expires ").then_some(text.split_whitespace())?.collect();
    words.windows(2).find(|pair| pair[0] == "mtu").map(|pair| pair[1].parse().expect("a number"))
}

/// The names of both web servers.
pub fn both_webs() -> BTreeSet<String> {
    ["web1", "web2"].map(str::to_owned).into()
}
