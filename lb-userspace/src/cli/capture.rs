//! `sluice capture`: packets with their verdicts, before and after, into a pcapng file.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::client::Client;
use super::{Failure, Format, OutputFlag, output};
use crate::core::capture::{CaptureLine, CaptureRequest, Counts, EndReason};
use crate::core::config::parse_duration;
use crate::io::pcapng::PcapngFile;

/// Capture packets with their verdicts, before and after they are rewritten
///
/// tcpdump does not see what the program sends or drops: this does. Each packet's comment in the file names its verdict, service
/// and backend; one that was sent is there twice, on "IFACE in" as it came and on "IFACE out" as it left. While it runs, programs
/// that also hand packets over take the place of the load balancer's; without it there is nothing of the kind, and no cost. It
/// ends at the first of its bounds, or with Ctrl-C.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Where to write; - is stdout, for a pipe to Wireshark or tshark
    #[arg(short, long, value_name = "FILE.pcapng")]
    write: PathBuf,
    /// Only packets of this service, answers of its backends included
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Only packets to and from backends of this name
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// Only packets from or to this address or network, before or after their translation
    #[arg(long, value_name = "ADDR[/LENGTH]")]
    address: Option<String>,
    /// Only packets from or to this port, before or after their translation
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Only packets with these verdicts, as `sluice status` names them; drop, pass and reply are all of their kind
    #[arg(long, value_name = "VERDICT[,VERDICT…]", value_delimiter = ',')]
    verdict: Vec<String>,
    /// End after so many packets
    #[arg(short, long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// End after this time, an hour at most
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = some_time)]
    duration: Duration,
    /// End before the file is larger than so many MiB
    #[arg(long, value_name = "MIB", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    max_size: u64,
    /// Bytes to keep of each packet
    #[arg(long, value_name = "BYTES", default_value_t = 256, value_parser = clap::value_parser!(u32).range(64..=2_048))]
    snaplen: u32,
    /// Look at one packet in N only
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1 << 30))]
    sample: u32,
    #[command(flatten)]
    format: OutputFlag,
}

/// Why it ends if what it writes to is closed.
const NOBODY: &str = "nobody reads the output";

/// What came of it.
#[derive(Debug, Serialize)]
struct Summary {
    file: String,
    packets: u64,
    frames: u64,
    bytes: u64,
    #[serde(flatten)]
    counts: Counts,
    ended: &'static str,
}

/// A capture that goes on.
struct Recording<'a> {
    client: &'a Client,
    arguments: &'a Arguments,
    file: PcapngFile<BufWriter<Box<dyn Write>>>,
    packets: u64,
    /// Why it ends, once it was told to.
    ends: Option<&'static str>,
}

pub(super) async fn run(arguments: &Arguments, client: &Client) -> Result<(), Failure> {
    let to_stdout = arguments.write.as_os_str() == "-";
    if to_stdout && arguments.format.output == Format::Json {
        return Err(Failure::usage("-o json: stdout is where the packets go; name a file"));
    }
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let mut lines = client.post_for_lines("/v1/capture", &request(arguments)).await?;
    let failed = |error| failed(arguments, &error);
    let target: Box<dyn Write> = if to_stdout {
        Box::new(io::stdout())
    } else {
        Box::new(File::create(&arguments.write).map_err(failed)?)
    };
    let file = PcapngFile::new(BufWriter::new(target), arguments.snaplen).map_err(failed)?;
    let mut recording = Recording { client, arguments, file, packets: 0, ends: None };
    loop {
        let line = tokio::select! {
            line = lines.next() => line.ok().flatten(),
            _ = interrupt.recv() => {
                recording.end("interrupted").await?;
                continue;
            }
            _ = terminate.recv() => {
                recording.end("terminated").await?;
                continue;
            }
        };
        let Some(line) = line else {
            recording.file.flush().map_err(failed)?;
            let gone = "the agent is gone; what it had told of is in the file";
            return Err(Failure::Unreachable(gone.to_owned()));
        };
        let line = serde_json::from_slice(&line).map_err(Failure::failed)?;
        if let Some((reason, counts)) = recording.take(line).await? {
            return recording.finish(reason, counts);
        }
    }
}

impl Recording<'_> {
    /// Takes a line in; the last one says why it ends.
    async fn take(&mut self, line: CaptureLine) -> Result<Option<(EndReason, Counts)>, Failure> {
        match line {
            CaptureLine::Started { interfaces } => {
                output::note(format_args!("capturing on {}; Ctrl-C ends it", interfaces.join(", ")));
            }
            CaptureLine::Packet(packet) if self.ends.is_none() => {
                if self.file.bytes() >= self.arguments.max_size << 20 {
                    self.end("the file is as large as it may be").await?;
                    return Ok(None);
                }
                let written = self.file.write(&packet);
                self.packets += 1;
                self.check(written).await?;
            }
            CaptureLine::Packet(_) => {}
            CaptureLine::Counts(_) => {
                let flushed = self.file.flush();
                self.check(flushed).await?;
            }
            CaptureLine::Ended { reason, counts } => return Ok(Some((reason, counts))),
        }
        Ok(None)
    }

    /// A reader that has seen enough is no failure.
    async fn check(&mut self, written: io::Result<()>) -> Result<(), Failure> {
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.end(NOBODY).await,
            written => written.map_err(|error| failed(self.arguments, &error)),
        }
    }

    /// Asks the agent to end it, once.
    async fn end(&mut self, why: &'static str) -> Result<(), Failure> {
        if self.ends.replace(why).is_some() {
            return Ok(());
        }
        match self.client.post::<()>("/v1/capture/stop", &()).await {
            // It has just ended by itself.
            Err(Failure::Failed(_)) => Ok(()),
            stopped => stopped,
        }
    }

    fn finish(mut self, reason: EndReason, counts: Counts) -> Result<(), Failure> {
        match self.file.flush() {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.ends = Some(NOBODY),
            flushed => flushed.map_err(|error| failed(self.arguments, &error))?,
        }
        let summary = Summary {
            file: self.arguments.write.display().to_string(),
            packets: self.packets,
            frames: self.file.frames(),
            bytes: self.file.bytes(),
            counts,
            ended: self.ends.unwrap_or(reason.text()),
        };
        match self.arguments.format.output {
            Format::Json => output::json(&summary)?,
            Format::Table => output::note(summary.line()),
        }
        match reason {
            EndReason::Resized | EndReason::AgentEnds => Err(Failure::Failed(reason.text().to_owned())),
            _ => Ok(()),
        }
    }
}

impl Summary {
    fn line(&self) -> String {
        let Self { file, packets, frames, bytes, counts, ended } = self;
        format!(
            "{packets} packets in {frames} frames ({bytes} bytes) in {file}; looked at {}, wanted {}, lost {}; ended: {ended}",
            counts.seen, counts.wanted, counts.lost
        )
    }
}

/// A time that is none at all would capture nothing.
fn some_time(text: &str) -> Result<Duration, String> {
    let time = parse_duration(text).map_err(|error| error.to_string())?;
    if time.is_zero() { Err("must be more than 0s".to_owned()) } else { Ok(time) }
}

fn request(arguments: &Arguments) -> CaptureRequest {
    CaptureRequest {
        service: arguments.service.clone(),
        backend: arguments.backend.clone(),
        address: arguments.address.clone(),
        port: arguments.port,
        verdicts: arguments.verdict.clone(),
        snap: arguments.snaplen,
        sample: arguments.sample,
        count: arguments.count,
        seconds: arguments.duration.as_secs().max(1),
    }
}

fn listen(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|error| Failure::Failed(format!("listening to signals: {error}")))
}

fn failed(arguments: &Arguments, error: &io::Error) -> Failure {
    Failure::Failed(format!("{}: {error}", arguments.write.display()))
}
