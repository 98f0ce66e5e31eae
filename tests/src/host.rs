//! One machine of the lab: turns a namespace into a place where commands, closures and an nginx run.

use std::ffi::{CString, OsStr};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context, Result};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::netns::Netns;
use crate::nginx::Nginx;
use crate::process::{die_with_parent, run_checked, search_path};
use crate::segment::{Attachment, Segment};
use crate::wiring::{ip_batch, write_sysctl};

/// How long a connection attempt or an answer may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A machine of the lab.
#[derive(Debug)]
pub struct Host {
    name: String,
    netns: Netns,
    attachments: Vec<Attachment>,
    routes: String,
    hosts_file: Option<PathBuf>,
    state: Option<PathBuf>,
    nginx: Option<Nginx>,
}

impl Host {
    pub(crate) fn new(name: &str, attachments: Vec<Attachment>) -> Result<Self> {
        let netns = Netns::new().with_context(|| format!("making host {name}"))?;
        let name = name.to_owned();
        Ok(Self {
            name,
            netns,
            attachments,
            routes: String::new(),
            hosts_file: None,
            state: None,
            nginx: None,
        })
    }

    /// Commands that bring back its routes after a link was down.
    pub(crate) fn routed_by(&mut self, commands: String) {
        self.routes = commands;
    }

    pub(crate) fn resolve_by(&mut self, hosts_file: PathBuf) {
        self.hosts_file = Some(hosts_file);
    }

    /// Where agents on it keep their state, as systemd would tell them.
    pub(crate) fn keep_state_in(&mut self, folder: PathBuf) {
        self.state = Some(folder);
    }

    pub(crate) fn serve(&mut self, nginx: Nginx) {
        self.nginx = Some(nginx);
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// What its interfaces are attached to: `eth0` first.
    pub fn attachments(&self) -> &[Attachment] {
        &self.attachments
    }

    /// Its IPv4 address at `eth0`.
    pub fn address(&self) -> Ipv4Addr {
        self.attachments.first().map_or(Ipv4Addr::UNSPECIFIED, |first| first.v4())
    }

    /// Its IPv6 address at `eth0`.
    pub fn address6(&self) -> Ipv6Addr {
        self.attachments.first().map_or(Ipv6Addr::UNSPECIFIED, |first| first.v6())
    }

    /// Its addresses at `eth0`, IPv4 first.
    pub fn both_addresses(&self) -> [IpAddr; 2] {
        [self.address().into(), self.address6().into()]
    }

    /// Its attachment to a segment.
    pub fn on(&self, segment: Segment) -> Option<Attachment> {
        self.attachments.iter().find(|at| at.segment == segment).copied()
    }

    /// The other end, in the switch namespace, of its interface `eth0`, `eth1`, …: the host's name for the first.
    pub fn port(&self, interface: usize) -> String {
        match interface {
            0 => self.name.clone(),
            other => format!("{}-eth{other}", self.name),
        }
    }

    /// The hardware address of one of its interfaces.
    pub fn mac(&self, interface: &str) -> Result<[u8; 6]> {
        let wanted = interface.to_owned();
        let found = self.run(|| -> Result<Option<[u8; 6]>> {
            let mut all = nix::ifaddrs::getifaddrs().context("listing interfaces")?;
            Ok(all.find_map(|entry| {
                let address = entry.address.filter(|_| entry.interface_name == wanted)?;
                address.as_link_addr().and_then(|link| link.addr())
            }))
        })??;
        found.with_context(|| format!("{} has no interface {interface}", self.name))
    }

    /// Whether an XDP program is attached to one of its interfaces.
    pub fn has_xdp(&self, interface: &str) -> bool {
        self.xdp_program(interface).is_ok_and(|id| id.is_some())
    }

    /// The id of the XDP program that is attached to one of its interfaces.
    pub fn xdp_program(&self, interface: &str) -> Result<Option<u32>> {
        let mut ip = self.command("ip");
        let shown = run_checked(ip.args(["-json", "-details", "link", "show", interface]))?;
        let shown: Value = serde_json::from_slice(&shown.stdout).context("ip -json link show is not JSON")?;
        let id = shown[0]["xdp"]["prog"]["id"].as_u64();
        Ok(id.and_then(|id| u32::try_from(id).ok()))
    }

    /// A command that will run in this host's namespace, see its `/etc/hosts`, and die with the calling thread.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env("PATH", search_path());
        self.netns.apply_to(&mut command);
        if let Some(folder) = &self.state {
            command.env("STATE_DIRECTORY", folder);
        }
        if let Some(file) = &self.hosts_file {
            see_hosts_file(&mut command, file);
        }
        die_with_parent(&mut command);
        command
    }

    /// Runs a closure on a thread in this host's namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.netns.run(work)
    }

    /// Opens a TCP connection from this host, from a chosen source port if one is given.
    pub fn connect(&self, to: SocketAddr, source_port: Option<u16>) -> io::Result<TcpStream> {
        self.run(|| connect(to, source_port)).map_err(io::Error::other)?
    }

    /// RST segments that its kernel has sent (RFC 4022, `tcpOutRsts`).
    pub fn resets_sent(&self) -> Result<u64> {
        let counters = self.run(|| fs::read_to_string("/proc/thread-self/net/snmp"))??;
        let mut lines = counters.lines().filter_map(|line| line.strip_prefix("Tcp: "));
        let names = lines.next().unwrap_or_default().split(' ');
        let mut named = names.zip(lines.next().unwrap_or_default().split(' '));
        let (_, value) = named.find(|(name, _)| *name == "OutRsts").context("no counter of RSTs")?;
        Ok(value.parse()?)
    }

    /// Kills its nginx as a crash would.
    pub fn stop_nginx(&self) -> Result<()> {
        self.nginx()?.stop();
        Ok(())
    }

    /// Starts its nginx again and waits until it answers.
    pub fn start_nginx(&self) -> Result<()> {
        self.nginx()?.start(self)
    }

    /// Takes one of its interfaces down, as a pulled cable would.
    pub fn link_down(&self, interface: &str) -> Result<()> {
        self.ip(&format!("link set {interface} down"))
    }

    /// Brings an interface up again, and the routes through it.
    pub fn link_up(&self, interface: &str) -> Result<()> {
        let through = format!(" dev {interface} ");
        let routes = self.routes.lines().filter(|line| format!("{line} ").contains(&through));
        let up = format!("link set {interface} up");
        self.ip(&[up.as_str()].into_iter().chain(routes).collect::<Vec<_>>().join("\n"))
    }

    /// Runs `ip` on this host with each line of `commands`, such as `link set eth0 address 02:00:00:00:00:09`.
    pub fn ip(&self, commands: &str) -> Result<()> {
        ip_batch(&self.netns, &format!("{commands}\n")).with_context(|| format!("on {}", self.name))
    }

    /// Makes it forget what it has been told of paths with smaller MTUs.
    pub fn forget_path_mtu(&self) -> Result<()> {
        for family in ["-4", "-6"] {
            run_checked(self.command("ip").args([family, "route", "flush", "cache"]))?;
        }
        Ok(())
    }

    /// Changes a setting of this host, such as `net/ipv4/ip_forward`.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        self.run(|| write_sysctl(name, value))?
    }

    fn nginx(&self) -> Result<&Nginx> {
        self.nginx.as_ref().with_context(|| format!("{} runs no nginx", self.name))
    }
}

/// Connects from the calling thread's namespace.
pub(crate) fn connect(to: SocketAddr, source_port: Option<u16>) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    if let Some(port) = source_port {
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::new(unspecified(to), port).into())?;
    }
    socket.connect_timeout(&to.into(), TIMEOUT)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.set_write_timeout(Some(TIMEOUT))?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}

/// The address that stands for any of the same family.
pub(crate) fn unspecified(like: SocketAddr) -> IpAddr {
    match like {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Gives the command a mount namespace of its own in which `/etc/hosts` is `file`.
fn see_hosts_file(command: &mut Command, file: &Path) {
    let Ok(file) = CString::new(file.as_os_str().as_bytes()) else { return };
    // SAFETY: the closure runs between fork and exec and makes system calls on strings made before; it neither
    // allocates nor locks.
    unsafe {
        command.pre_exec(move || {
            let nothing = std::ptr::null();
            let private = libc::MS_REC | libc::MS_PRIVATE;
            let hosts = c"/etc/hosts".as_ptr();
            if libc::unshare(libc::CLONE_NEWNS) != 0
                || libc::mount(nothing, c"/".as_ptr(), nothing, private, nothing.cast()) != 0
                || libc::mount(file.as_ptr(), hosts, nothing, libc::MS_BIND, nothing.cast()) != 0
            {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
}
