//! A backend's side of tunnels: turns a web server into one that runs `sluice decap`.

use std::fs;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::agent::sluice_binary;
use crate::host::Host;
use crate::lab::Lab;
use crate::process::{Daemon, wait_until};

const START_TIMEOUT: Duration = Duration::from_secs(20);
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// A `sluice decap` on one host; killed when dropped, and its program goes with it.
#[derive(Debug)]
pub struct Decap {
    daemon: Daemon,
    output: PathBuf,
}

impl Lab {
    /// Starts `sluice decap` on `interface` of `host` with these further arguments (`--from`, `192.0.2.0/24`, …) and
    /// waits until its program is attached. An error with its words if it ends before.
    pub fn start_decap(&self, host: &Host, interface: &str, arguments: &[&str]) -> Result<Decap> {
        let mut command = host.command(sluice_binary()?);
        command.args(["decap", "-o", "json", "--iface", interface]).args(arguments);
        let name = format!("sluice decap on {}", host.name());
        let file = |ending| self.directory().join(format!("decap-{}.{ending}", host.name()));
        let output = file("json");
        let mut daemon = Daemon::spawn_with_output(command, &name, &file("log"), &output)?;
        let mut ended = None;
        let attached = wait_until(&format!("{name} is attached"), START_TIMEOUT, || {
            ended = daemon.exited().ok().flatten();
            ended.is_some() || host.has_xdp(interface)
        });
        if let Some(status) = ended {
            bail!("{name} ended with {status}; it said:\n{}", daemon.log());
        }
        attached.with_context(|| format!("{name} said:\n{}", daemon.log()))?;
        Ok(Decap { daemon, output })
    }

    /// Starts `sluice decap` on `eth0` of every web server.
    pub fn start_decap_on_webs(&self, arguments: &[&str]) -> Result<Vec<Decap>> {
        self.webs().iter().map(|web| self.start_decap(web, "eth0", arguments)).collect()
    }
}

impl Decap {
    /// What it has said on stderr.
    pub fn log(&self) -> String {
        self.daemon.log()
    }

    /// Asks it to end with SIGTERM: its exit status and the counters it printed.
    pub fn terminate(mut self) -> Result<(ExitStatus, Value)> {
        self.daemon.signal(Signal::SIGTERM)?;
        let status = self.daemon.wait(END_TIMEOUT)?;
        let text = fs::read_to_string(&self.output).context("the output of sluice decap")?;
        let counters = serde_json::from_str(&text).with_context(|| {
            format!("sluice decap ({status}) printed no JSON but {text:?}; it said:\n{}", self.log())
        })?;
        Ok((status, counters))
    }
}
