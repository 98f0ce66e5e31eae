//! `sluice flows --clients`: a sample of packets and the table of translations → who the clients are.

use std::path::Path;
use std::time::{Duration, Instant};

use super::client::{ANSWER, Client};
use super::output::{Columns, percent};
use super::{Failure, Format, output};
use crate::core::capture::{CaptureLine, CaptureRequest};
use crate::core::clients::{ClientReport, Clients, Kinds, Question, SAMPLE, SNAP, Sampled};
use crate::core::image::Image;
use crate::core::stats::{ServiceStats, Snapshot};
use crate::io::datapath::{Access, Datapath, Kernel, PinDir};

/// The longest that packets are sampled.
const LONGEST: Duration = Duration::from_secs(60);
/// How long it is looked how many packets there are, to know which share of them makes a sample.
const LOOK: Duration = Duration::from_millis(300);
/// What customers' packets become.
const FORWARDED: &str = "forward";
/// The forwarding mode whose translations tell the clients.
const NAT: &str = "nat";

pub(super) async fn run(
    pin_dir: &Path,
    question: &Question,
    duration: Duration,
    format: Format,
    client: &Client,
) -> Result<(), Failure> {
    if !(Duration::from_secs(1)..=LONGEST).contains(&duration) {
        return Err(Failure::usage(format!("--for: {duration:?} is not from 1s to 60s")));
    }
    let mut clients = Clients::default();
    let kinds = {
        let kernel = Kernel::open(&PinDir::new(pin_dir), Access::Read).map_err(Failure::failed)?;
        let names: Image = kernel.tables().names();
        let kinds = question.kinds(&names);
        if kinds.translated {
            let translations = kernel.tables().translations().map(|(key, translation, _)| (key, translation));
            clients.add_translations(translations, &names, question);
        }
        kinds
    };
    if kinds == Kinds::default() && (question.service.is_some() || question.backend.is_some()) {
        return Err(not_there(question.service.as_deref(), question.backend.as_deref()));
    }
    let sampled = match kinds.other {
        true => Some(sample(&mut clients, question, duration, client).await?),
        false => None,
    };
    let report = clients.report(kinds, sampled, question);
    match format {
        Format::Json => output::json(&report),
        Format::Table => output::print(&render(&report)),
    }
}

/// A service or backend was asked for that is not there.
pub(super) fn not_there(service: Option<&str>, backend: Option<&str>) -> Failure {
    let asked = [("service", service), ("backend", backend)];
    let asked = asked.iter().filter_map(|(what, name)| Some(format!("{what} {}", name.as_ref()?)));
    let asked = asked.collect::<Vec<_>>().join(" with ");
    Failure::usage(format!("there is no {asked}; `sluice status` shows those there are"))
}

/// Has the agent look at packets for some time, and counts them.
async fn sample(
    clients: &mut Clients,
    question: &Question,
    duration: Duration,
    client: &Client,
) -> Result<Sampled, Failure> {
    let first = forwarded(client, question).await?.packets;
    let began = Instant::now();
    tokio::time::sleep(LOOK).await;
    let now = forwarded(client, question).await?;
    let rate = now.packets.saturating_sub(first) as f64 / began.elapsed().as_secs_f64();
    let one_in = ((rate * duration.as_secs_f64() / SAMPLE as f64) as u32).clamp(1, 1 << 30);
    let request = CaptureRequest {
        service: question.service.clone(),
        backend: question.backend.clone(),
        verdicts: vec![FORWARDED.to_owned()],
        snap: SNAP,
        sample: one_in,
        count: 2 * SAMPLE,
        seconds: duration.as_secs(),
        ..CaptureRequest::default()
    };
    let mut lines = client.post_for_lines("/v1/capture", &request).await?;
    let (mut before, mut began) = (now.packets, Instant::now());
    loop {
        // Counts come every so often, and the end at the latest when it was to come.
        let next = async { lines.next().await.map_err(|error| client.broken(error)) };
        let line = client.within(duration + ANSWER, next).await?;
        let line = line.ok_or_else(|| Failure::Unreachable("the agent ended amid the sample".to_owned()))?;
        match serde_json::from_slice(&line).map_err(Failure::failed)? {
            CaptureLine::Started { .. } => {
                before = forwarded(client, question).await?.packets;
                began = Instant::now();
            }
            CaptureLine::Packet(packet) => {
                clients.add_packet(&packet, |service| now.translated.iter().any(|name| name == service));
            }
            CaptureLine::Counts(_) => {}
            CaptureLine::Ended { counts, .. } => {
                let seconds = began.elapsed().as_secs_f64();
                let of = forwarded(client, question).await?.packets.saturating_sub(before);
                return Ok(Sampled { packets: 0, of, seconds, one_in, lost: counts.lost });
            }
        }
    }
}

/// What the agent counts of the services that have to be sampled.
struct Forwarded {
    packets: u64,
    /// The services whose translations tell all.
    translated: Vec<String>,
}

async fn forwarded(client: &Client, question: &Question) -> Result<Forwarded, Failure> {
    let status: Snapshot = client.get("/v1/status").await?;
    let (translated, sampled): (Vec<_>, Vec<_>) =
        status.services.into_iter().partition(|service| service.forwarding == NAT);
    let of_service = |service: &ServiceStats| {
        let backends =
            service.backends.iter().filter(|backend| question.is_about(&service.name, &backend.name));
        backends.map(|backend| backend.packets).sum::<u64>()
    };
    let packets = sampled.iter().map(of_service).sum();
    Ok(Forwarded { packets, translated: translated.into_iter().map(|service| service.name).collect() })
}

fn render(report: &ClientReport) -> String {
    let mut columns =
        Columns::with_header(&["client", "backend", "share", "flows", "packets", "bytes", "from"]);
    let number = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    for line in &report.lines {
        columns.line(vec![
            line.client.to_string(),
            format!("{}/{}", line.service, line.backend),
            percent(line.share),
            line.flows.to_string(),
            number(line.packets),
            number(line.bytes),
            line.from.name().to_owned(),
        ]);
    }
    let mut parts = vec![columns.render("")];
    if report.lines_left_out > 0 {
        parts.push(format!("… and {} more lines", report.lines_left_out));
    }
    parts.push(report.note.clone());
    parts.join("\n")
}
