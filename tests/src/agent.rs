//! The agent under test: turns a configuration file into a running `sluice agent` that can be asked, signalled and
//! killed.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::lab::Lab;
use crate::process::{Daemon, wait_until};

const START_TIMEOUT: Duration = Duration::from_secs(20);
const HEALTHY_TIMEOUT: Duration = Duration::from_secs(10);
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// A `sluice agent` on the lab's edge host; killed when dropped, which leaves its data plane to the lab's end.
#[derive(Debug)]
pub struct Agent<'lab> {
    lab: &'lab Lab,
    daemon: Daemon,
}

impl<'lab> Agent<'lab> {
    pub(crate) fn start(lab: &'lab Lab, object: Option<&Path>) -> Result<Self> {
        let mut command = lab.edge().command(sluice_binary()?);
        command.arg("agent").arg("--config").arg(lab.config_file());
        command.arg("--socket").arg(lab.socket()).arg("--pin-dir").arg(lab.pins());
        command.arg("--state-dir").arg(lab.state());
        if let Some(object) = object {
            command.arg("--object").arg(object);
        }
        let daemon = Daemon::spawn(command, "sluice agent", &lab.directory().join("agent.log"))?;
        let mut agent = Self { lab, daemon };
        let mut ended = None;
        let answers = wait_until("the agent answers", START_TIMEOUT, || {
            ended = agent.daemon.exited().ok().flatten();
            ended.is_some() || agent.status().is_ok()
        });
        if let Some(status) = ended {
            bail!("sluice agent ended with {status}; it said:\n{}", agent.log());
        }
        answers.with_context(|| format!("sluice agent said:\n{}", agent.log()))?;
        Ok(agent)
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.daemon.log()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// Kills it with SIGKILL.
    pub fn kill9(mut self) -> Result<()> {
        self.daemon.signal(Signal::SIGKILL)?;
        self.daemon.wait(END_TIMEOUT).map(drop)
    }

    /// Asks it to end with SIGTERM and waits until it has.
    pub fn terminate(mut self) -> Result<ExitStatus> {
        self.daemon.signal(Signal::SIGTERM)?;
        self.daemon.wait(END_TIMEOUT)
    }

    /// Has it stand still, as if the machine had no time for it; the data plane goes on.
    pub fn pause(&self) -> Result<()> {
        self.daemon.signal(Signal::SIGSTOP)
    }

    /// Has it go on after [`Agent::pause`].
    pub fn resume(&self) -> Result<()> {
        self.daemon.signal(Signal::SIGCONT)
    }

    /// Asks it to read its configuration file again.
    pub fn sighup(&self) -> Result<()> {
        self.daemon.signal(Signal::SIGHUP)
    }

    /// Runs a `sluice` command against it.
    pub fn sluice(&self, arguments: &[&str]) -> Result<Output> {
        self.lab.sluice(arguments)
    }

    /// What `sluice status -o json` says.
    pub fn status(&self) -> Result<Value> {
        let output = self.sluice(&["status", "-o", "json"])?;
        if !output.status.success() {
            bail!("sluice status: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        serde_json::from_slice(&output.stdout).context("sluice status -o json is not JSON")
    }

    /// The status of one service.
    pub fn service(&self, name: &str) -> Result<Value> {
        named(&self.status()?["services"], name).with_context(|| format!("no service {name} in the status"))
    }

    /// The status of one backend of a service.
    pub fn backend(&self, service: &str, name: &str) -> Result<Value> {
        named(&self.service(service)?["backends"], name)
            .with_context(|| format!("no backend {name} of service {service} in the status"))
    }

    /// Waits until every service is healthy.
    pub fn wait_until_healthy(&self) -> Result<()> {
        let mut last = Value::Null;
        wait_until("every service is healthy", HEALTHY_TIMEOUT, || {
            last = self.status().unwrap_or_else(|error| Value::from(format!("{error:#}")));
            let services = last["services"].as_array();
            services.is_some_and(|all| all.iter().all(|service| service["status"] == "healthy"))
        })
        .map(drop)
        .with_context(|| format!("last seen: {last}\nthe agent's log:\n{}", self.log()))
    }

    /// Waits until a service has this status: `healthy`, `degraded`, `failing-open` or `down`.
    pub fn wait_for_status(&self, service: &str, status: &str, timeout: Duration) -> Result<Duration> {
        let mut last = Value::Null;
        wait_until(&format!("service {service} is {status}"), timeout, || {
            last = self.service(service).unwrap_or_else(|error| Value::from(format!("{error:#}")));
            last["status"] == status
        })
        .with_context(|| format!("last seen: {last}\nthe agent's log:\n{}", self.log()))
    }
}

fn named(list: &Value, name: &str) -> Option<Value> {
    list.as_array()?.iter().find(|item| item["name"] == name).cloned()
}

/// The `sluice` that is tested: `$SLUICE_BIN`, else the workspace's release build.
pub fn sluice_binary() -> Result<PathBuf> {
    let binary = match std::env::var_os("SLUICE_BIN") {
        Some(path) => PathBuf::from(path),
        None => target_directory().join("release/sluice"),
    };
    if !binary.is_file() {
        bail!("there is no {}: run `cargo xtask build`", binary.display());
    }
    Ok(binary)
}

fn target_directory() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    match std::env::var_os("CARGO_TARGET_DIR") {
        // A relative one counts from where cargo was called, which is the workspace by every command we give.
        Some(directory) => workspace.join(directory),
        None => workspace.join("target"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_entries_are_found_by_name() {
        let list = serde_json::json!([{"name": "web", "packets": 1}, {"name": "web-tls", "packets": 2}]);
        assert_eq!(named(&list, "web-tls").expect("found")["packets"], 2);
        assert_eq!(named(&list, "dns"), None);
        assert_eq!(named(&Value::Null, "web"), None);
    }
}
