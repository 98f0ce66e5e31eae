//! `sluice doctor`: what is wrong with this host, its network and its backends, and how to cure it.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::client::Client;
use super::{DEFAULT_PIN_DIR, Failure, Format, OutputFlag, output};
use crate::core::config::{self, Config};
use crate::core::doctor::{CHECKS, Finding, Weight, judge};
use crate::core::names::number_of;
use crate::core::stats::Snapshot;
use crate::io::datapath::PinDir;
use crate::io::{doctor, store};

/// Where the configuration is, unless the agent or the command line says otherwise.
const DEFAULT_CONFIG: &str = "/etc/sluice/sluice.toml";

/// Check host, network card, kernel and backends; each finding with its fix
///
/// Works with and without a running agent. Sends a few packets: ARP requests for the VIPs, and to each backend of an l2-dsr
/// service one that opens a connection to the VIP, which is ended at once. Exits with 4 if a warning or an error was found;
/// notes are only shown.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Configuration to check against; by default the running agent's, else /etc/sluice/sluice.toml
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where program, maps and links are, or are to be, pinned
    #[arg(long, value_name = "DIR", default_value = DEFAULT_PIN_DIR)]
    pin_dir: PathBuf,
    /// Send no packets
    #[arg(long)]
    no_probe: bool,
    #[command(flatten)]
    format: OutputFlag,
}

/// The answer.
#[derive(Serialize)]
struct Report<'a> {
    /// The configuration checked against.
    config: String,
    /// The checks made.
    checks: &'a [&'static str],
    findings: &'a [Finding],
}

pub(super) async fn run(arguments: &Arguments, client: &Client) -> Result<(), Failure> {
    let agent: Option<Snapshot> = match client.get("/v1/status").await {
        Ok(snapshot) => Some(snapshot),
        Err(Failure::Unreachable(why)) => {
            log::debug!("{why}");
            None
        }
        Err(error) => return Err(error),
    };
    let path = config_path(arguments, agent.as_ref(), client)?;
    let config = read(&path)?;
    let pins = PinDir::new(&arguments.pin_dir);
    let facts = doctor::facts(&config, &pins, agent, !arguments.no_probe);
    let facts = facts.await.map_err(|error| Failure::failed(format!("looking at this host: {error}")))?;
    let mut findings = judge(&config, &facts);
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.weight));
    match arguments.format.output {
        Format::Json => {
            let report = Report { config: path.display().to_string(), checks: &CHECKS, findings: &findings };
            output::json(&report)?;
        }
        Format::Table => output::print(&render(&findings))?,
    }
    let count = |weight| findings.iter().filter(|finding| finding.weight == weight).count();
    match (count(Weight::Error), count(Weight::Warning)) {
        (0, 0) => Ok(()),
        (errors, warnings) => {
            let found = format!("{}, {}", number_of(errors, "error"), number_of(warnings, "warning"));
            Err(Failure::NotAsWished(found))
        }
    }
}

fn config_path(arguments: &Arguments, agent: Option<&Snapshot>, client: &Client) -> Result<PathBuf, Failure> {
    if let Some(given) = &arguments.config {
        return Ok(given.clone());
    }
    if let Some(agent) = agent {
        return Ok(agent.agent.config.clone().into());
    }
    if Path::new(DEFAULT_CONFIG).exists() {
        return Ok(DEFAULT_CONFIG.into());
    }
    Err(Failure::Unreachable(format!(
        "no agent answers at {}, and there is no {DEFAULT_CONFIG}; name a configuration with --config",
        client.socket().display()
    )))
}

fn read(path: &Path) -> Result<Config, Failure> {
    let text = store::read(path).map_err(|error| Failure::unread(&error))?;
    let name = path.display().to_string();
    config::parse(&text)
        .map_err(|errors| Failure::Invalid(errors.iter().map(|error| error.at(&name).to_string()).collect()))
}

fn render(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return format!("{} checks, nothing found", CHECKS.len());
    }
    findings.iter().map(paragraph).collect::<Vec<_>>().join("\n\n")
}

fn paragraph(finding: &Finding) -> String {
    let weight = match finding.weight {
        Weight::Note => "note",
        Weight::Warning => "WARNING",
        Weight::Error => "ERROR",
    };
    let place = if finding.on == "here" { String::new() } else { format!(" on {}", finding.on) };
    let mut lines = vec![
        format!("{weight}  {}: {}: {}", finding.check, finding.subject, finding.what),
        format!("  why: {}", finding.why),
    ];
    lines.extend(finding.fix.iter().map(|fix| format!("  fix{place}: {fix}")));
    lines.join("\n")
}
