//! The lab as a whole: turns a builder's wishes into hosts that are connected, configured and serving.

use std::fs;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::agent::{Agent, sluice_binary};
use crate::certs;
use crate::config::SluiceToml;
use crate::guard::Guard;
use crate::host::Host;
use crate::netns::Netns;
use crate::nginx::{self, Nginx};
use crate::process::on_path;
use crate::topology::{CDN, CUSTOMER, EDGE, Network, Role, Topology, VIP, VIP6};
use crate::wiring;
use crate::xdp_pass::attach_pass;

/// The name that customers know.
pub const SHOP_NAME: &str = "shop.example";
/// The name under which customers reach the CDN.
pub const CDN_NAME: &str = "cdn.shop.example";

/// The numbers of `web1` and `app1` on their segments.
const FIRST_WEB: u8 = 11;
const FIRST_APP: u8 = 101;

/// What is built if nothing is wished for.
pub(crate) const NETWORK: Network = Network {
    topology: Topology::Bridge,
    mtu: 1500,
    backend_mtu: None,
    narrow_to_customers: None,
    narrow_to_backends: None,
    vip_on_backends: true,
};

/// What the lab cannot do without.
const PROGRAMS: [&str; 5] = ["ip", "ethtool", "nginx", "openssl", "curl"];

/// Wishes for a lab.
#[derive(Clone, Debug)]
pub struct LabBuilder {
    web_servers: u8,
    app_servers: u8,
    network: Network,
}

impl LabBuilder {
    /// How many web servers: `web1`, `web2`, …
    #[must_use]
    pub fn web_servers(mut self, count: u8) -> Self {
        self.web_servers = count;
        self
    }

    /// How many app servers: `app1`, `app2`, …
    #[must_use]
    pub fn app_servers(mut self, count: u8) -> Self {
        self.app_servers = count;
        self
    }

    /// The MTU of every link that no other wish is about.
    #[must_use]
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.network.mtu = mtu;
        self
    }

    /// The MTU of the links from the edge host to the web servers, if it is to be larger than the customers': tunnels
    /// need 20 to 60 bytes more. Web servers take such frames, but send no larger ones than the customers'.
    #[must_use]
    pub fn backend_mtu(mut self, mtu: u32) -> Self {
        self.network.backend_mtu = Some(mtu);
        self
    }

    /// Whether web servers have the VIPs on their loopback, as all modes but `nat` need; they have if nothing is said.
    #[must_use]
    pub fn vip_on_backends(mut self, there: bool) -> Self {
        self.network.vip_on_backends = there;
        self
    }

    /// How customers, edge host and web servers are connected.
    #[must_use]
    pub fn topology(mut self, topology: Topology) -> Self {
        self.network.topology = topology;
        self
    }

    /// The MTU of the link between the routers on the way to the customers; [`Topology::Routed`] only.
    #[must_use]
    pub fn narrow_to_customers(mut self, mtu: u32) -> Self {
        self.network.narrow_to_customers = Some(mtu);
        self
    }

    /// The MTU of the link between the routers on the way to the web servers; [`Topology::Routed`] only.
    #[must_use]
    pub fn narrow_to_backends(mut self, mtu: u32) -> Self {
        self.network.narrow_to_backends = Some(mtu);
        self
    }

    /// Builds it; the hosts serve when this returns, but no agent runs yet.
    pub fn start(self) -> Result<Lab> {
        check_machine()?;
        self.network.check()?;
        let guard = Guard::new()?;
        let host = |name: &str, role, number| Host::new(name, self.network.attachments(role, number));
        let servers = |prefix: &str, count: u8, role, first: u8| {
            let server = |n| host(&format!("{prefix}{n}"), role, first + n - 1);
            (1..=count).map(server).collect::<Result<Vec<_>>>()
        };
        let mut lab = Lab {
            customer: host("customer", Role::Client, CUSTOMER)?,
            cdn: host("cdn", Role::Client, CDN)?,
            edge: host("edge", Role::Edge, EDGE)?,
            webs: servers("web", self.web_servers, Role::Backend, FIRST_WEB)?,
            apps: servers("app", self.app_servers, Role::App, FIRST_APP)?,
            routers: (self.network.routers().iter())
                .map(|(name, role)| host(name, *role, 1))
                .collect::<Result<_>>()?,
            switch: Netns::new()?,
            files: guard.directory().join("files"),
            authority: PathBuf::new(),
            _pass_programs: Vec::new(),
            guard,
        };
        lab.edge.keep_state_in(lab.state());
        lab.connect(&self.network)?;
        lab.serve()?;
        Ok(lab)
    }
}

/// A running lab. Everything in it ends when it is dropped, or when its process ends in any way.
#[derive(Debug)]
pub struct Lab {
    // Fields are dropped in this order: servers first, files last.
    customer: Host,
    cdn: Host,
    edge: Host,
    webs: Vec<Host>,
    apps: Vec<Host>,
    routers: Vec<Host>,
    switch: Netns,
    files: PathBuf,
    authority: PathBuf,
    _pass_programs: Vec<OwnedFd>,
    guard: Guard,
}

impl Lab {
    /// The longest that the standard health checks take to see a dead server: `fall × interval + timeout`.
    pub const FAILOVER: Duration = Duration::from_millis(3 * 300 + 300);

    /// A lab with two web servers and two app servers, to be varied.
    pub fn builder() -> LabBuilder {
        LabBuilder { web_servers: 2, app_servers: 2, network: NETWORK }
    }

    /// The host of the customers.
    pub fn customer(&self) -> &Host {
        &self.customer
    }

    /// The caching proxy between customers and VIP.
    pub fn cdn(&self) -> &Host {
        &self.cdn
    }

    /// The host that runs Sluice, on its interface `eth0`.
    pub fn edge(&self) -> &Host {
        &self.edge
    }

    /// The web server with this index: `web(0)` is `web1`.
    ///
    /// # Panics
    /// If the lab has not so many.
    pub fn web(&self, index: usize) -> &Host {
        &self.webs[index]
    }

    /// All web servers.
    pub fn webs(&self) -> &[Host] {
        &self.webs
    }

    /// All app servers.
    pub fn apps(&self) -> &[Host] {
        &self.apps
    }

    /// The routers of the topology: the one at the public segment first, then those before the customers and before the
    /// web servers.
    pub fn routers(&self) -> &[Host] {
        &self.routers
    }

    /// The namespace with the bridges and the ports ([`Host::port`]). What XDP transmits is seen here only.
    pub fn switch(&self) -> &Netns {
        &self.switch
    }

    /// The VIP with a port.
    pub fn vip(&self, port: u16) -> SocketAddr {
        SocketAddr::from((VIP, port))
    }

    /// The IPv6 VIP with a port.
    pub fn vip6(&self, port: u16) -> SocketAddr {
        SocketAddr::from((VIP6, port))
    }

    /// The VIPs of both families with a port, IPv4 first.
    pub fn both_vips(&self, port: u16) -> [SocketAddr; 2] {
        [self.vip(port), self.vip6(port)]
    }

    /// RST segments sent by the edge host and the web servers: who broke a connection.
    pub fn resets_sent(&self) -> Result<Vec<(&str, u64)>> {
        let hosts = std::iter::once(&self.edge).chain(&self.webs);
        hosts.map(|host| Ok((host.name(), host.resets_sent()?))).collect()
    }

    /// The authority that signed the web servers' certificate, for `curl --cacert`.
    pub fn authority(&self) -> &Path {
        &self.authority
    }

    /// Where the web servers keep what is stored under `/files/`.
    pub fn files(&self) -> &Path {
        &self.files
    }

    /// A directory that is removed with the lab.
    pub fn directory(&self) -> &Path {
        self.guard.directory()
    }

    /// Where the lab's agents pin their programs and maps.
    pub fn pins(&self) -> &Path {
        self.guard.pins()
    }

    /// The socket of the lab's agents.
    pub fn socket(&self) -> PathBuf {
        self.directory().join("sluice.sock")
    }

    /// Where the lab's agents keep their state.
    pub fn state(&self) -> PathBuf {
        self.directory().join("state")
    }

    /// The file that the lab's agents are configured by.
    pub fn config_file(&self) -> PathBuf {
        self.directory().join("sluice.toml")
    }

    /// The standard configuration: HTTP and HTTPS on the VIP, over all web servers.
    pub fn config(&self) -> SluiceToml {
        SluiceToml::new(&self.edge, &self.webs)
    }

    /// Starts `sluice agent` on the edge host with this configuration and waits until it answers. Started again, it
    /// finds what the one before has pinned.
    pub fn start_agent(&self, config: &str) -> Result<Agent<'_>> {
        self.start_agent_with(config, None)
    }

    /// The same with another eBPF object than the one that is built in.
    pub fn start_agent_with(&self, config: &str, object: Option<&Path>) -> Result<Agent<'_>> {
        let file = self.config_file();
        fs::write(&file, config).with_context(|| format!("writing {}", file.display()))?;
        Agent::start(self, object)
    }

    /// Like [`Lab::start_agent`], and waits until every backend of every service has proved healthy.
    pub fn start_healthy_agent(&self, config: &SluiceToml) -> Result<Agent<'_>> {
        let agent = self.start_agent(&config.to_string())?;
        agent.wait_until_healthy()?;
        Ok(agent)
    }

    /// A `sluice` command on the edge host, pointed at the lab's socket.
    pub fn sluice_command(&self) -> Result<Command> {
        let mut command = self.edge.command(sluice_binary()?);
        command.arg("--socket").arg(self.socket());
        Ok(command)
    }

    /// Runs a `sluice` command on the edge host.
    pub fn sluice(&self, arguments: &[&str]) -> Result<Output> {
        self.sluice_command()?.args(arguments).output().context("running sluice")
    }

    fn connect(&mut self, network: &Network) -> Result<()> {
        let routers: Vec<_> = network.routers().iter().map(|(_, role)| *role).collect();
        let clients = [(&mut self.customer, Role::Client), (&mut self.cdn, Role::Client)];
        let mut hosts: Vec<_> = clients.into_iter().chain([(&mut self.edge, Role::Edge)]).collect();
        hosts.extend(self.webs.iter_mut().map(|web| (web, Role::Backend)));
        hosts.extend(self.apps.iter_mut().map(|app| (app, Role::App)));
        hosts.extend(self.routers.iter_mut().zip(routers));
        for (host, role) in &mut hosts {
            let commands = wiring::route_commands(host, *role, network);
            host.routed_by(commands);
        }
        let hosts: Vec<(&Host, Role)> = hosts.into_iter().map(|(host, role)| (&*host, role)).collect();
        wiring::connect(&self.switch, &hosts, network)?;
        let ports = (0..self.edge.attachments().len()).map(|index| self.edge.port(index));
        self._pass_programs = ports.map(|port| attach_pass(&self.switch, &port)).collect::<Result<_>>()?;
        Ok(())
    }

    fn serve(&mut self) -> Result<()> {
        let directory = self.guard.directory().to_owned();
        fs::create_dir(&self.files).context("creating the directory of stored files")?;
        let certificates = certs::make(&directory, SHOP_NAME)?;
        self.authority.clone_from(&certificates.authority);
        let hosts = directory.join("hosts");
        let names = format!("127.0.0.1 localhost\n{VIP} {SHOP_NAME}\n{} {CDN_NAME}\n", self.cdn.address());
        fs::write(&hosts, names).context("writing the customers' hosts file")?;
        self.customer.resolve_by(hosts);

        let apps: Vec<_> = self.apps.iter().map(Host::address).collect();
        for app in &mut self.apps {
            let server = nginx::app_server(app.name());
            app.serve(Nginx::new(&directory, app.name(), nginx::APP_PORT, &server)?);
        }
        for web in &mut self.webs {
            let server = nginx::web_server(web.name(), &apps, &certificates, &self.files);
            web.serve(Nginx::new(&directory, web.name(), 80, &server)?);
        }
        let server = nginx::cdn(VIP, SHOP_NAME, &directory);
        self.cdn.serve(Nginx::new(&directory, "cdn", 80, &server)?);
        let servers = self.apps.iter().chain(&self.webs).chain([&self.cdn]);
        servers.into_iter().try_for_each(Host::start_nginx)
    }
}

/// Says at once what would otherwise fail later and less clearly.
fn check_machine() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the lab makes network namespaces and loads BPF programs: run it as root");
    }
    let missing: Vec<_> = PROGRAMS.into_iter().filter(|program| !on_path(program)).collect();
    if !missing.is_empty() {
        bail!("the lab needs {}: run `cargo xtask setup`", missing.join(", "));
    }
    Ok(())
}
