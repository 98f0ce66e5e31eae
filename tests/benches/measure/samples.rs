//! A thing to be measured and what it is compared with → samples of all of them, taken in turns.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use anyhow::Result;
use nix::time::{ClockId, clock_gettime};
use serde_json::json;

/// What was measured in turns: sample by sample the series belong together.
#[derive(Clone, Debug)]
pub struct Group {
    pub part: &'static str,
    pub name: String,
    pub unit: &'static str,
    pub series: BTreeMap<String, Vec<f64>>,
}

impl Group {
    pub fn new(part: &'static str, name: impl Into<String>, unit: &'static str) -> Self {
        Self { part, name: name.into(), unit, series: BTreeMap::new() }
    }

    /// As a line of JSON.
    pub fn line(&self) -> String {
        let Self { part, name, unit, series } = self;
        json!({ "part": part, "name": name, "unit": unit, "series": series }).to_string()
    }

    pub fn add(&mut self, who: &str, sample: f64) {
        self.series.entry(who.to_owned()).or_default().push(sample);
    }
}

/// Where finished groups go.
pub type Sink<'a> = &'a mut dyn FnMut(Group);

/// To the standard output, a line each.
pub fn print(group: Group) {
    println!("{}", group.line());
    let _ = std::io::stdout().flush();
}

/// CPU time that this thread has used: what others do on the machine does not count.
pub fn cpu_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}
