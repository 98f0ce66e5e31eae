//! Changes by command and API: what they cost customers, that the file and the tables follow them, and that each can be
//! tried, refused, confirmed and undone.

mod answers;
mod api;
mod customers;
mod safety;
#[path = "../../../../lb-userspace/build/toolchain.rs"]
#[allow(dead_code, reason = "set-up uses the rest")]
mod toolchain;
mod under_load;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use lb_tests::{Agent, HttpConnection, Lab, wait_until};
use lb_userspace::core::config;
use lb_userspace::core::health::Health;
use lb_userspace::core::plan::{RingCache, plan};
use lb_userspace::core::reach::targets;
use lb_userspace::core::wanted::{BackendKey, Knowledge};
use lb_userspace::io::datapath::{Access, Datapath, Kernel, PinDir};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);
const COMMENT: &str = "# the shop's own words\n";

/// What a command said.
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}{}", self.out, self.err))
    }
}

fn said(output: &Output) -> Said {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
}

fn sluice(lab: &Lab, command: &str) -> Said {
    said(&lab.sluice(&command.split(' ').collect::<Vec<_>>()).expect("sluice"))
}

/// Runs a command that must succeed; its JSON.
fn done(lab: &Lab, command: &str) -> Value {
    let said = sluice(lab, &format!("{command} -o json"));
    assert_eq!(said.code, 0, "{command}: {}", said.err);
    said.json()
}

/// Runs a command that must be refused with this status and these words.
fn refused(lab: &Lab, command: &str, code: i32, words: &str) {
    let said = sluice(lab, command);
    assert_eq!(said.code, code, "{command}: {}{}", said.out, said.err);
    assert!(said.err.contains(words), "{command}: {}", said.err);
    assert_eq!(said.out, "", "{command}: data although it was refused");
}

fn file(lab: &Lab) -> String {
    fs::read_to_string(lab.config_file()).expect("the file")
}

fn weight(agent: &Agent<'_>, backend: &str) -> Value {
    agent.backend("web", backend).expect("backend")["weight"].clone()
}

/// A lab with three web servers and an agent.
fn three(lab: &Lab) -> Agent<'_> {
    let agent = lab.start_agent(&format!("{COMMENT}{}", lab.config())).expect("an agent");
    agent.wait_until_healthy().expect("healthy");
    agent
}

/// Starts the agent with the file as it is.
fn restart(lab: &Lab) -> Agent<'_> {
    lab.start_agent(&file(lab)).expect("an agent")
}

/// Connections that stay open, by the server that each is with.
fn shoppers(lab: &Lab, count: u16) -> Vec<(HttpConnection, String)> {
    let enter = |port| {
        let mut connection = HttpConnection::open(lab.customer(), lab.vip(80), Some(port)).expect("connect");
        let server = connection.get("/").expect("answer").served_by().to_owned();
        (connection, server)
    };
    (26_000..26_000 + count).map(enter).collect()
}

fn still_served(shoppers: &mut [(HttpConnection, String)], when: &str) {
    for (connection, server) in shoppers {
        let answer = connection.get("/").unwrap_or_else(|error| panic!("{when}: {server}: {error:#}"));
        assert_eq!(answer.served_by(), server, "{when}");
    }
}

/// The pinned tables become what a plan from the file makes of them, if they are not: a check may just have failed on a busy machine.
fn tables_are_as_the_file_says(lab: &Lab) {
    let mut actions = Vec::new();
    let settled = wait_until("the tables are as the file says", PATIENCE, || {
        actions = actions_left(lab);
        actions.is_empty()
    });
    assert!(settled.is_ok(), "{actions:?}");
}

/// What a plan from the file would still do.
fn actions_left(lab: &Lab) -> Vec<String> {
    let config = config::parse(&file(lab)).unwrap_or_else(|errors| panic!("{errors:?}"));
    let kernel = Kernel::open(&PinDir::new(lab.pins()), Access::Read).expect("the pinned tables");
    let image = kernel.tables().image();
    let mut knowledge = Knowledge::default();
    for service in &config.services {
        for (backend, target) in service.backends.iter().zip(targets(service)) {
            knowledge.health.insert(BackendKey::new(&service.name, &backend.name), Health::Healthy);
            let loaded = image.backends.values().find(|loaded| loaded.address == backend.address.into());
            knowledge.hops.extend(loaded.and_then(|loaded| loaded.hop).map(|hop| (target, hop)));
        }
    }
    let plan = plan(&image, &knowledge.wanted(&config), &mut RingCache::default()).expect("a plan");
    plan.actions.iter().map(|action| format!("{action:.60?}")).collect()
}

/// Numbers that look like chance, the same ones every time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// Builds the object of another datapath over the same maps.
fn other_object() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the workspace");
    let toolchain = toolchain::Toolchain::find(&root.join("target/tools")).expect("a toolchain");
    let target = root.join("target/ebpf");
    let mut command = toolchain.build_command(&root.join("lb-ebpf"), &target);
    let output = command.args(["--features", "other", "--bin", "other"]).output().expect("cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    toolchain::Toolchain::object(&target, "other")
}
