//! `sluice explain`: what the datapath does with a packet, and why.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use nix::net::if_::if_nametoindex;

use super::client::Client;
use super::{DEFAULT_PIN_DIR, Failure, Format, OutputFlag, output};
use crate::core::explain::{
    Explanation, Ingress, PacketSpec, Question, SpecProtocol, explain, frame, to_hex,
};
use crate::io::datapath::{Access, Datapath, Kernel, PinDir, TableSet};
use crate::io::pcap;
use crate::io::pcapng::{CAME_IN, LEFT};

/// Frames of a capture that are explained.
const MAX_PACKETS: usize = 100;
/// How long the agent may take for a packet: without it, the pinned tables tell as much.
const ANSWER: Duration = Duration::from_secs(3);

/// Show what the datapath does with a packet, step by step
///
/// Runs the datapath's own code over the live tables. Nothing is changed or counted. If no agent answers, the pinned
/// tables are read.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("packet").required(true).args(["src", "frame"]))]
pub(super) struct Arguments {
    /// Source of the packet
    #[arg(long, value_name = "ADDR:PORT", requires = "dst", value_parser = endpoint)]
    src: Option<SocketAddr>,
    /// Destination of the packet
    #[arg(long, value_name = "VIP:PORT", requires = "src", value_parser = endpoint)]
    dst: Option<SocketAddr>,
    /// Transport protocol
    #[arg(long, value_enum, default_value_t, conflicts_with = "frame")]
    proto: Proto,
    /// The packet opens a TCP connection
    #[arg(long, conflicts_with = "frame")]
    syn: bool,
    /// A whole frame in hexadecimal, from the destination MAC on; or a capture, of whose first hundred frames those are explained that
    /// did not leave
    #[arg(long, value_name = "HEX|FILE.pcap")]
    frame: Option<String>,
    /// Interface it comes in on; by default that which `sluice capture` names, or the first attached one
    #[arg(long, value_name = "IF")]
    iface: Option<String>,
    /// Where the tables are pinned, in case no agent answers
    #[arg(long, value_name = "DIR", default_value = DEFAULT_PIN_DIR)]
    pin_dir: PathBuf,
    #[command(flatten)]
    format: OutputFlag,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Proto {
    #[default]
    Tcp,
    Udp,
    Icmp,
}

/// An address with a port.
fn endpoint(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "write an address and a port, such as 198.51.100.7:40000 or [2001:db8::7]:40000".to_owned()
    })
}

pub(super) async fn run(arguments: &Arguments, client: &Client) -> Result<(), Failure> {
    let (packets, is_capture) = packets(arguments)?;
    let explanations = ask(arguments, client, &packets).await?;
    match (arguments.format.output, explanations.as_slice()) {
        (Format::Json, [only]) if !is_capture => output::json(only),
        (Format::Json, all) => output::json(&all),
        (Format::Table, [only]) if !is_capture => output::print(&render(only)),
        (Format::Table, all) => {
            let numbered = (1..).zip(all);
            let packets = numbered.map(|(number, one)| format!("packet {number}\n{}", render(one)));
            output::print(&packets.collect::<Vec<_>>().join("\n\n"))
        }
    }
}

/// Has the agent explain packets; from the first one on that it does not answer, the pinned tables.
async fn ask(
    arguments: &Arguments,
    client: &Client,
    packets: &[Question],
) -> Result<Vec<Explanation>, Failure> {
    let mut explanations = Vec::new();
    for (at, question) in packets.iter().enumerate() {
        match client.post_within(ANSWER, "/v1/explain", question).await {
            Err(Failure::Unreachable(why)) => {
                let pins = PinDir::new(&arguments.pin_dir);
                let kernel = Kernel::open(&pins, Access::Read)
                    .map_err(|error| Failure::Unreachable(format!("{why}\nsluice: {error}")))?;
                output::note(format_args!("{why}; read from {}", arguments.pin_dir.display()));
                for question in packets.iter().skip(at) {
                    explanations.push(from_pins(&kernel, question)?);
                }
                break;
            }
            answer => explanations.push(answer?),
        }
    }
    Ok(explanations)
}

/// What is asked about, and whether it comes from a capture.
fn packets(arguments: &Arguments) -> Result<(Vec<Question>, bool), Failure> {
    let on_named = |packet| Question { packet, interface: arguments.iface.clone() };
    let protocol = match arguments.proto {
        Proto::Tcp => SpecProtocol::Tcp,
        Proto::Udp => SpecProtocol::Udp,
        Proto::Icmp => SpecProtocol::Icmp,
    };
    if let (None, Some(source), Some(destination)) = (&arguments.frame, arguments.src, arguments.dst) {
        let packet = PacketSpec::Tuple { source, destination, protocol, syn: arguments.syn };
        return Ok((vec![on_named(packet)], false));
    }
    let frame = arguments.frame.clone().unwrap_or_default();
    let path = Path::new(&frame);
    if !path.is_file() && is_hex(&frame) {
        return Ok((vec![on_named(PacketSpec::Frame(frame))], false));
    }
    let frames = pcap::frames(path, MAX_PACKETS).map_err(|error| {
        if is_hex(&frame) || path.is_file() {
            return Failure::failed(error);
        }
        Failure::usage(format!("--frame: neither hexadecimal nor a capture that can be read: {error}"))
    })?;
    let is_out =
        |frame: &pcap::CapturedFrame| frame.interface.as_ref().is_some_and(|name| name.ends_with(LEFT));
    let (left, came): (Vec<_>, Vec<_>) = frames.into_iter().partition(is_out);
    if !left.is_empty() {
        output::note(format_args!(
            "{} frames are packets as they left, which is told of them as they came in",
            left.len()
        ));
    }
    let cut = came.iter().filter(|frame| frame.bytes.len() < frame.length).count();
    if cut > 0 {
        output::note(format_args!(
            "{cut} packets were cut by the capture: capture more of them (`sluice capture --snaplen 2048`, `tcpdump -s 0`)"
        ));
    }
    let question = |frame: pcap::CapturedFrame| {
        // Of any other capture it may be an interface of another host.
        let named = frame.interface.as_ref().and_then(|name| name.strip_suffix(CAME_IN));
        let interface = arguments.iface.clone().or_else(|| named.map(str::to_owned));
        Question { packet: PacketSpec::Frame(to_hex(&frame.bytes)), interface }
    };
    Ok((came.into_iter().map(question).collect(), true))
}

/// Whether a text can be a frame rather than a file's name.
fn is_hex(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_hexdigit() || c.is_whitespace() || c == ':')
}

/// Answers from the pinned tables, which are only read.
fn from_pins(kernel: &Kernel, question: &Question) -> Result<Explanation, Failure> {
    let tables = kernel.tables();
    let ingress = ingress(tables, question.interface.as_deref())?;
    let frame = frame(&question.packet, ingress).map_err(Failure::usage)?;
    let slices = tables.slices().ok_or_else(|| Failure::failed("the tables are empty"))?;
    let now = kernel.now().map_err(Failure::failed)?;
    Ok(explain(slices, &tables.names(), now, frame, ingress, &[]))
}

fn ingress(tables: &TableSet, name: Option<&str>) -> Result<Ingress, Failure> {
    let attached = tables.interfaces();
    let Some(name) = name else { return Ok(attached.first().copied().unwrap_or_default()) };
    let unknown = || Failure::usage(format!("--iface: {name} is not one of the agent's interfaces"));
    let index = if_nametoindex(name).map_err(|_| unknown())?;
    attached.into_iter().find(|ingress| ingress.index == index).ok_or_else(unknown)
}

fn render(explanation: &Explanation) -> String {
    let numbered = (1..).zip(&explanation.steps).map(|(number, step)| format!("{number:>2}. {step}"));
    let mut lines: Vec<String> = numbered.collect();
    lines.push(format!("verdict: {} ({})", explanation.verdict, explanation.meaning));
    if !explanation.backend.is_empty() {
        lines.push(format!("backend: {} of service {}", explanation.backend, explanation.service));
    }
    if !explanation.headers.is_empty() {
        lines.push(format!("leaves as: {}", explanation.headers.join(" | ")));
    }
    if !explanation.advice.is_empty() {
        lines.push(format!("to be forwarded it needs {}", explanation.advice));
    }
    lines.join("\n")
}
