//! Parts of the bench → samples of what they measure, one JSON object a line, for `cargo xtask bench` to make sense of.
//!
//! It depends on the agent, which `xtask` must not: that has to build before the eBPF toolchain is there.

mod attack;
mod control;
mod customers;
mod ipvs;
mod live;
mod object;
mod packet;
mod samples;
#[path = "../../tests/support/mod.rs"]
mod support;
#[path = "../../tests/support/ways.rs"]
mod ways;
mod wires;
mod world;
mod wrk;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    // `cargo bench` itself hands over `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let quick = arguments.iter().any(|argument| argument == "--quick");
    for part in arguments.iter().filter(|argument| *argument != "--quick") {
        match part.as_str() {
            "packet" => packet::run(if quick { &packet::QUICK } else { &packet::FULL }, &mut samples::print)?,
            "attack" => attack::run(quick, &mut samples::print)?,
            "control" => control::run(quick, &mut samples::print)?,
            "ipvs" => ipvs::run()?,
            ipvs::INSIDE => ipvs::inside()?,
            "live" => live::run(quick, &mut samples::print)?,
            "customers" => customers::run(quick, &mut samples::print)?,
            other => bail!("there is no part {other}"),
        }
    }
    Ok(())
}
