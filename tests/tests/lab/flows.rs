//! What `sluice flows` counts is what customers have open, with and without an agent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use lb_common::flow::{Entry, State, Tick};
use lb_tests::{HttpConnection, Lab, Load, wait_until};
use lb_userspace::io::datapath::{Access, Datapath, Kernel, PinDir};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);

fn flows(lab: &Lab, arguments: &[&str]) -> Value {
    let pins = lab.pins().to_str().expect("path");
    let output =
        lab.sluice(&[&["flows", "-o", "json", "--pin-dir", pins], arguments].concat()).expect("sluice");
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn open_connections_are_counted_by_backend_state_and_idleness() {
    let lab = Lab::builder().start().expect("a lab");
    let agent = lab.start_healthy_agent(&lab.config()).expect("an agent");
    let open = || {
        let mut connection = HttpConnection::open(lab.customer(), lab.vip(80), None).expect("connect");
        let server = connection.get("/").expect("answer").served_by().to_owned();
        (connection, server)
    };
    let connections: Vec<_> = (0..40).map(|_| open()).collect();
    let (mut closed, _) = open();
    let on = |name: &str| connections.iter().filter(|(_, server)| server == name).count() as u64;
    assert!(closed.get("/").is_ok());
    drop(closed);

    let check = |when: &str| {
        let report = flows(&lab, &["--service", "web"]);
        for line in report["lines"].as_array().expect("lines") {
            let backend = line["backend"].as_str().expect("backend");
            assert_eq!(line["service"], "web", "{when}: {report}");
            assert_eq!(line["established"], on(backend), "{when}: {report}");
        }
        assert_eq!(report["lines"].as_array().map(Vec::len), Some(2), "{when}: {report}");
        assert!(report["entries"].as_u64() >= Some(40), "{when}: {report}");
        assert_eq!(report["size"], 65_536, "{when}: {report}");
        assert!(report["unknown"].as_str().is_some_and(|text| text.contains("clients")), "{when}: {report}");
        let by_state = flows(&lab, &["--by", "state", "--state", "established"]);
        assert_eq!(by_state["lines"][0]["flows"], 40, "{when}: {by_state}");
        assert_eq!(by_state["lines"][0]["of"], "established", "{when}: {by_state}");
        assert_eq!(flows(&lab, &["--idle", "60m"])["flows"], 0, "{when}");
    };
    check("with an agent");
    let pins = lab.pins().to_str().expect("path");
    for wrong in
        [&["--service", "wbe"][..], &["--service", "web", "--backend", "web3"], &["--backend", "web"]]
    {
        let output = lab.sluice(&[&["flows", "--pin-dir", pins], wrong].concat()).expect("sluice");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && told.contains("there is no "), "{wrong:?}: {output:?}");
    }
    for name in ["web1", "web2"] {
        assert_eq!(agent.backend("web", name).expect("backend")["active_flows"], on(name), "as status says");
    }
    agent.kill9().expect("kill -9");
    check("without an agent");
    let nothing = lab.sluice(&["flows", "--pin-dir", "/sys/fs/bpf/sluice-none"]).expect("sluice");
    assert_eq!(nothing.status.code(), Some(1), "{nothing:?}");
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("nothing is loaded there"), "{nothing:?}");
}

fn clients(report: &Value) -> BTreeSet<&str> {
    let lines = report["lines"].as_array().expect("lines");
    lines.iter().map(|line| line["client"].as_str().expect("a client")).collect()
}

fn sum(report: &Value, key: &str) -> u64 {
    report["lines"].as_array().expect("lines").iter().filter_map(|line| line[key].as_u64()).sum()
}

#[test]
fn clients_are_told_from_a_sample_that_says_so() {
    let lab = Lab::builder().start().expect("a lab");
    let agent = lab.start_healthy_agent(&lab.config()).expect("an agent");
    let loads = [lab.customer(), lab.cdn()].map(|host| Load::start(host, lab.vip(80), "/", 1));
    wait_until("requests flow", PATIENCE, || loads.iter().all(|load| load.done() > 50)).expect("load");
    let report = flows(&lab, &["--clients", "--service", "web", "--for", "1s"]);
    let of_web1 = flows(&lab, &["--clients", "--service", "web", "--backend", "web1", "--for", "1s"]);
    let table =
        agent.sluice(&["flows", "--clients", "--for", "1s", "--pin-dir", lab.pins().to_str().expect("path")]);
    for load in loads {
        let report = load.stop().expect("report");
        assert_eq!(report.failed, 0, "nobody notices: {report:?}; RSTs sent: {:?}", lab.resets_sent());
    }
    let hosts = [lab.customer(), lab.cdn()].map(|host| host.address().to_string());
    assert_eq!(clients(&report), hosts.iter().map(String::as_str).collect(), "{report}");
    let sampled = &report["sampled"];
    let [packets, of] = ["packets", "of"].map(|key| sampled[key].as_u64().expect("a number"));
    assert!(packets > 100 && packets <= of && sum(&report, "packets") == packets, "{report}");
    // The whole of its time, and no more packets counted than in that.
    assert!(sampled["seconds"].as_f64().is_some_and(|seconds| (0.9..5.0).contains(&seconds)), "{report}");
    assert!(sum(&report, "flows") > 20 && sum(&report, "flows") < packets, "{report}");
    let note = report["note"].as_str().expect("a note");
    assert!(note.starts_with(&format!("sampled: {packets} of {of} packets in ")), "{report}");
    let lines = report["lines"].as_array().expect("lines");
    assert_eq!(lines.len(), 4, "two clients at two backends: {report}");
    assert!(lines.iter().all(|line| line["from"] == "sample" && line["service"] == "web"), "{report}");
    assert!(
        of_web1["lines"].as_array().expect("lines").iter().all(|line| line["backend"] == "web1"),
        "{of_web1}"
    );
    assert_eq!(of_web1["lines"].as_array().map(Vec::len), Some(2), "{of_web1}");
    let table = String::from_utf8_lossy(&table.expect("sluice").stdout).into_owned();
    assert!(
        table.contains("web/web1") && table.contains("\nsampled: ") && table.contains(&hosts[0]),
        "{table}"
    );

    let pins = lab.pins().to_str().expect("path");
    let none = lab.sluice(&["flows", "--clients", "--service", "none", "--pin-dir", pins]).expect("sluice");
    assert_eq!(none.status.code(), Some(2), "{none:?}");
    agent.kill9().expect("kill -9");
    let nobody = lab.sluice(&["flows", "--clients", "--pin-dir", pins]).expect("sluice");
    assert_eq!(nobody.status.code(), Some(3), "it takes an agent: {nobody:?}");
}

#[test]
fn clients_of_nat_are_all_told_without_an_agent() {
    let lab = Lab::builder().vip_on_backends(false).start().expect("a lab");
    let config = lab.config().forwarding("nat");
    let agent = lab.start_healthy_agent(&config).expect("an agent");
    let open = |host, port: u16| {
        let to = SocketAddr::new(lab.vip(80).ip(), port);
        (0..15).map(|_| HttpConnection::open(host, to, None).expect("connect")).collect::<Vec<_>>()
    };
    let _held = [open(lab.customer(), 80), open(lab.cdn(), 80)];
    agent.kill9().expect("kill -9");
    let report = flows(&lab, &["--clients", "--service", "web"]);
    assert_eq!((&report["translated"], &report["sampled"]), (&30.into(), &Value::Null), "{report}");
    for host in [lab.customer(), lab.cdn()] {
        let address = host.address().to_string();
        let lines =
            report["lines"].as_array().expect("lines").iter().filter(|line| line["client"] == *address);
        assert_eq!(lines.map(|line| line["flows"].as_u64().expect("flows")).sum::<u64>(), 15, "{report}");
    }
    assert!(report["note"].as_str().is_some_and(|note| note.contains("all 30 connections")), "{report}");
}

/// Flows of a million; none of these idle times is near the end of its class, or near being too long.
const MILLION: u32 = 1_000_000;
const KINDS: [(State, u32, &str); 5] = [
    (State::Established, 0, "10s"),
    (State::Opening, 20, "1m"),
    (State::Established, 300, "10m"),
    (State::Closing, 20, "1m"),
    (State::Established, 2_000, "1h"),
];

/// Fills the pinned flow table, and says how many flows of each kind each of the loaded backends has.
fn fill(lab: &Lab) -> BTreeMap<(String, String), [u64; KINDS.len()]> {
    let kernel = Kernel::open(&PinDir::new(lab.pins()), Access::Write).expect("the pinned tables");
    let (image, now) = (kernel.tables().image(), kernel.now().expect("the time"));
    let buckets = kernel.tables().slices().expect("tables").flows;
    let ids: Vec<u16> = image.backends.keys().copied().collect();
    assert_eq!(ids.len(), 4, "two backends of two services");
    let mut counted = BTreeMap::new();
    for number in 0..MILLION {
        // Shares that differ: the square spreads unevenly.
        let id = ids[number as usize * number as usize % 13 % ids.len()];
        let kind = number as usize % 11 % KINDS.len();
        let (state, idle, _) = KINDS[kind];
        let at = number as usize;
        let entry = Entry::new(number << 1, id, state, Tick(now.0.wrapping_sub(idle)));
        buckets[at / 4].store(at % 4, entry);
        let backend = &image.backends[&id];
        let owner = (image.services[&backend.service].name.clone(), backend.name.clone());
        counted.entry(owner).or_insert([0; KINDS.len()])[kind] += 1;
    }
    // Of nobody, and one that has been opened for too long: they are in no line.
    let last = buckets.last().expect("a bucket");
    last.store(0, Entry::new(2, 900, State::Established, now));
    last.store(1, Entry::new(4, ids[0], State::Opening, Tick(now.0.wrapping_sub(200))));
    counted
}

#[test]
fn a_million_flows_are_counted_to_the_last_one() {
    let lab = Lab::builder().start().expect("a lab");
    let text = lab.config().to_string().replace("flow_table_size = 65536", "flow_table_size = 2097152");
    let agent = lab.start_agent(&text).expect("an agent");
    agent.wait_until_healthy().expect("healthy");
    let counted = fill(&lab);

    let report = flows(&lab, &[]);
    // The checks' own connections do not pass the table.
    assert_eq!((&report["size"], &report["flows"]), (&2_097_152.into(), &MILLION.into()), "{report}");
    assert_eq!((&report["entries"], &report["expired"]), (&(MILLION + 2).into(), &2.into()), "{report}");
    let lines = report["lines"].as_array().expect("lines");
    assert_eq!(lines.len(), counted.len(), "{report}");
    for line in lines {
        let name = |key: &str| line[key].as_str().expect("a name").to_owned();
        let of = counted[&(name("service"), name("backend"))];
        let sum = |is: &dyn Fn(State, &str) -> bool| -> u64 {
            let kinds = KINDS.iter().zip(of).filter(|((state, _, class), _)| is(*state, class));
            kinds.map(|(_, flows)| flows).sum()
        };
        assert_eq!(line["flows"], of.iter().sum::<u64>(), "{line}");
        for (key, wanted) in
            [("established", State::Established), ("opening", State::Opening), ("closing", State::Closing)]
        {
            assert_eq!(line[key], sum(&|state, _| state == wanted), "{key}: {line}");
        }
        for class in ["10s", "1m", "10m", "1h", "more"] {
            assert_eq!(line["idle"][class], sum(&|_, of| of == class), "{class}: {line}");
        }
        let told = agent.backend(&name("service"), &name("backend")).expect("backend");
        assert_eq!(told["active_flows"], line["established"], "status says the same: {told}");
    }
    for (key, by) in [("service", 0), ("backend", 1)] {
        for name in counted.keys().map(|owner| if by == 0 { &owner.0 } else { &owner.1 }) {
            let of = counted
                .iter()
                .filter(|(owner, _)| *name == if by == 0 { &owner.0 } else { &owner.1 }.as_str());
            let wanted: u64 = of.flat_map(|(_, flows)| flows).sum();
            let found = flows(&lab, &[&format!("--{key}"), name, "--by", "state"]);
            assert_eq!(found["flows"], wanted, "{key} {name}: {found}");
        }
    }
    let long = flows(&lab, &["--idle", "5m", "--by", "service"]);
    let wanted: u64 = counted.values().map(|of| of[2] + of[4]).sum();
    assert_eq!(long["flows"], wanted, "{long}");
}
