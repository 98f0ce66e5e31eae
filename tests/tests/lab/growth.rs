//! Tables that become larger and smaller under traffic: no connection breaks, no packet is lost, and everything counted and
//! remembered is carried over; also where the agent is killed amid the change.

use std::fs;
use std::net::UdpSocket;
use std::ops::Range;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, ensure};
use lb_tests::{Agent, Host, HttpConnection, Lab, Load, SluiceToml, UdpEcho, wait_until};

const PATIENCE: Duration = Duration::from_secs(20);
/// The pauses between datagrams and between transfers: agents need the cores, too.
const PAUSES: [Duration; 2] = [Duration::from_micros(200), Duration::from_millis(20)];
const UDP_PORT: u16 = 7_000;
const TRANSLATED_PORT: u16 = 8_080;
/// Flows in the table at first, as the lab's configuration says.
const FLOWS: u32 = 65_536;

fn config(lab: &Lab) -> SluiceToml {
    lab.config().udp(UDP_PORT)
}

/// The configuration with a translated service, and with so many flows, translated connections and further services of 30 backends
/// each.
fn sized(lab: &Lab, flows: u32, connections: u32, services: u8) -> String {
    let text = config(lab).weights(&[0, 100]).to_string();
    let text = text.replace(
        &format!("flow_table_size = {FLOWS}"),
        &format!("flow_table_size = {flows}\nnat_table_size = {connections}"),
    );
    let service = |number: u8| {
        let head = format!(
            "\n[[service]]\nname = \"more{number}\"\nvips = [\"203.0.113.200:{}\"]\nhealth = {{ type = \"none\" }}\n",
            1_000 + u16::from(number)
        );
        let [a, b, c, _] = lab.web(1).address().octets();
        let backend =
            |at: u8| format!("[[service.backend]]\nname = \"b{at}\"\naddress = \"{a}.{b}.{c}.{at}\"\n");
        head + &(100..130).map(backend).collect::<String>()
    };
    text + &translated(lab) + &(0..services).map(service).collect::<String>()
}

/// A service whose customers are translated.
fn translated(lab: &Lab) -> String {
    let backend = |web: &Host| {
        format!(
            "[[service.backend]]\nname = \"{}\"\naddress = \"{}\"\nport = 80\n",
            web.name(),
            web.address()
        )
    };
    let head = format!(
        "\n[[service]]\nname = \"translated\"\nvips = [\"{}\"]\nforwarding = \"nat\"\nhealth = {{ type = \"none\" }}\n",
        lab.vip(TRANSLATED_PORT)
    );
    head + &lab.webs().iter().map(backend).collect::<String>()
}

/// Connections that stay open, with the server that each began with.
fn shoppers(lab: &Lab) -> Vec<(HttpConnection, String)> {
    shoppers_at(lab, 80)
}

fn shoppers_at(lab: &Lab, vip_port: u16) -> Vec<(HttpConnection, String)> {
    let connect = |port| {
        let mut connection =
            HttpConnection::open(lab.customer(), lab.vip(vip_port), Some(port)).expect("connect");
        let server = connection.get("/").expect("answer").served_by().to_owned();
        (connection, server)
    };
    (25_000..25_060).map(connect).collect()
}

fn still_served(shoppers: &mut [(HttpConnection, String)], when: &str) {
    for (connection, server) in shoppers {
        let answer = connection.get("/").unwrap_or_else(|error| panic!("{when}: {server}: {error:#}"));
        assert_eq!(answer.served_by(), server, "{when}");
    }
}

fn spawn_apply(lab: &Lab, text: &str) -> Child {
    let file = lab.directory().join("sized.toml");
    fs::write(&file, text).expect("write");
    let mut command = lab.sluice_command().expect("sluice");
    command.arg("apply").arg(file).arg("--overwrite");
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("apply")
}

fn apply(lab: &Lab, text: &str) {
    let output = spawn_apply(lab, text).wait_with_output().expect("apply");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn number(agent: &Agent<'_>, path: &str) -> u64 {
    let status = agent.status().expect("status");
    status.pointer(path).and_then(serde_json::Value::as_u64).unwrap_or_else(|| panic!("{path}: {status}"))
}

/// Datagrams of one flow after the other, each of which must be echoed; how many.
fn echoing(lab: &Lab, stopping: &AtomicBool, sent: &AtomicU64) -> anyhow::Result<()> {
    lab.customer().run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(lab.vip(UDP_PORT))?;
        socket.set_read_timeout(Some(Duration::from_secs(3)))?;
        while !stopping.load(Ordering::Relaxed) {
            let number = sent.load(Ordering::Relaxed).to_be_bytes();
            socket.send(&number)?;
            let mut answer = [0; 64];
            let length = socket.recv(&mut answer).context("a datagram or its echo is lost")?;
            let answer = answer.get(..length).unwrap_or_default();
            ensure!(answer.ends_with(&number), "another datagram's echo: {answer:?}");
            sent.fetch_add(1, Ordering::Relaxed);
            sleep(PAUSES[0]);
        }
        Ok(())
    })?
}

fn transferring(lab: &Lab, stopping: &AtomicBool, done: &AtomicU64) -> anyhow::Result<()> {
    while !stopping.load(Ordering::Relaxed) {
        lab.transfer(lab.vip(80))?;
        done.fetch_add(1, Ordering::Relaxed);
        sleep(PAUSES[1]);
    }
    Ok(())
}

/// Has customers use both services while something is done. Each request, transfer and datagram must be answered. How many
/// datagrams there were.
fn amid_traffic(lab: &Lab, work: impl FnOnce(&dyn Fn())) -> u64 {
    let to = lab.vip(UDP_PORT);
    let _echoes: Vec<_> = lab.webs().iter().map(|web| UdpEcho::start(web, to).expect("echo")).collect();
    let (stopping, datagrams, transfers) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let load = Load::start(lab.customer(), lab.vip(80), "/", 1);
    std::thread::scope(|scope| {
        let threads = [
            scope.spawn(|| echoing(lab, &stopping, &datagrams)),
            scope.spawn(|| transferring(lab, &stopping, &transfers)),
        ];
        let flow_on = || {
            let done = || [load.done(), datagrams.load(Ordering::Relaxed), transfers.load(Ordering::Relaxed)];
            let before = done();
            let on = || done().iter().zip(before).all(|(now, before)| *now > before + 1);
            wait_until("traffic goes on", PATIENCE, on).expect("traffic");
        };
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&flow_on)));
        stopping.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().expect("traffic").expect("no loss");
        }
        worked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    let report = load.stop().expect("report");
    assert_eq!(report.failed, 0, "{report:?}; RSTs sent: {:?}", lab.resets_sent());
    assert!(report.answered > 50, "{report:?}");
    datagrams.load(Ordering::Relaxed)
}

fn no_drops(agent: &Agent<'_>) {
    let status = agent.status().expect("status");
    let verdicts = status["verdicts"].as_object().expect("verdicts");
    let drops: Vec<_> =
        verdicts.iter().filter(|(name, count)| name.starts_with("drop.") && **count != 0).collect();
    assert!(drops.is_empty(), "{drops:?}");
}

#[test]
fn tables_grow_and_shrink_under_load_and_lose_nothing() {
    let lab = Lab::builder().start().expect("a lab");
    let agent = lab.start_healthy_agent(&config(&lab)).expect("an agent");
    let mut shoppers = shoppers(&lab);
    let of_web1 = shoppers.iter().filter(|(_, server)| server == "web1").count() as u64;
    assert!(of_web1 > 5);
    assert_eq!(number(&agent, "/nat/size"), 8, "nothing is translated");
    // From now on the flow table alone knows who is with web1. A table for translations is made.
    apply(&lab, &sized(&lab, FLOWS, 131_072, 0));
    let mut translated = shoppers_at(&lab, TRANSLATED_PORT);
    let datagrams = amid_traffic(&lab, |flow_on| {
        let (mut packets, mut opened) = (0, [Some(0); 2]);
        let steps = [
            (131_072, 131_072, 0),
            (131_072, 131_072, 40),
            (32_768, 65_536, 40),
            (100_000, 262_144, 80),
            (16_384, 1_024, 0),
            (FLOWS, 131_072, 0),
        ];
        let mut size = FLOWS;
        for (flows, connections, services) in steps {
            let when = format!("{flows} flows, {connections} connections, {services} services");
            apply(&lab, &sized(&lab, flows, connections, services));
            // It grows by whole factors.
            size = if flows > size { size * flows.div_ceil(size) } else { flows };
            assert_eq!(number(&agent, "/flow_table/size"), u64::from(size), "{when}");
            assert_eq!(number(&agent, "/nat/size"), u64::from(connections) * 2, "{when}");
            flow_on();
            still_served(&mut shoppers, &when);
            still_served(&mut translated, &when);
            assert_eq!(number(&agent, "/nat/entries"), 2 * translated.len() as u64, "{when}");
            let service = agent.service("web").expect("web");
            assert!(service["packets"].as_u64() > Some(packets), "{when}: {service}");
            packets = service["packets"].as_u64().unwrap_or_default();
            let now =
                [&service["tcp"]["opened"], &service["tcp"]["opening"]["timed"]].map(|count| count.as_u64());
            assert!(now[0] > opened[0] && now[1] >= opened[1], "{when}: {service}");
            opened = now;
            let web1 = agent.backend("web", "web1").expect("web1");
            assert_eq!(web1["active_flows"], of_web1, "{when}: each counts once: {web1}");
            assert!(!lab.pins().join("maps_other").exists(), "{when}");
        }
    });
    assert_eq!(agent.service("udp").expect("udp")["packets"], datagrams, "each packet is counted once");
    no_drops(&agent);
    agent.terminate().expect("end");
    // Another size at a start is the same.
    let agent = lab.start_agent(&sized(&lab, 524_288, 131_072, 20)).expect("an agent");
    assert_eq!(number(&agent, "/flow_table/size"), 524_288);
    still_served(&mut shoppers, "after a restart");
    still_served(&mut translated, "after a restart");
    // Without the service, what is left of its connections stays until the agent starts again.
    drop(translated);
    apply(&lab, &config(&lab).to_string());
    assert_eq!(number(&agent, "/nat/size"), 262_144);
    agent.terminate().expect("end");
    let agent = lab.start_agent(&config(&lab).to_string()).expect("an agent");
    assert_eq!(number(&agent, "/nat/size"), 8);
    still_served(&mut shoppers, "without a translated service");
    assert_eq!(agent.service("udp").expect("udp")["packets"], datagrams);
}

/// A connection after the other, each from the next port, on which two requests are made a moment apart; how many.
fn reconnecting(lab: &Lab, vip_port: u16, ports: Range<u16>, stopping: &AtomicBool) -> anyhow::Result<u32> {
    let mut done = 0;
    for port in ports.cycle() {
        if stopping.load(Ordering::Relaxed) {
            break;
        }
        let mut connection = HttpConnection::open(lab.customer(), lab.vip(vip_port), Some(port))?;
        let server = connection.get("/").context("the first answer")?.served_by().to_owned();
        sleep(Duration::from_millis(10));
        let answer = connection.get_and_close("/").context("the second answer")?;
        ensure!(answer.served_by() == server, "{server} became {}", answer.served_by());
        done += 1;
    }
    Ok(done)
}

#[test]
fn connections_that_open_while_tables_change_their_size_go_on() {
    let lab = Lab::builder().start().expect("a lab");
    let agent = lab.start_healthy_agent(&config(&lab)).expect("an agent");
    // Ports that the flow table knows with either server, from which only one server gets connections then.
    let used = 20_000..22_000;
    for port in used.clone() {
        let connection = HttpConnection::open(lab.customer(), lab.vip(80), Some(port)).expect("connect");
        connection.get_and_close("/").expect("answer");
    }
    apply(&lab, &sized(&lab, FLOWS, 131_072, 0));
    let stopping = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (lab, stopping) = (&lab, &stopping);
        let customers: Vec<_> = (0..4_u16)
            .flat_map(|at| {
                let again = used.start + at * 500..used.start + (at + 1) * 500;
                // Few enough that they are used again.
                let new = 30_000 + at * 350..30_000 + (at + 1) * 350;
                [(80, again), (TRANSLATED_PORT, new)]
            })
            .map(|(vip_port, ports)| scope.spawn(move || reconnecting(lab, vip_port, ports, stopping)))
            .collect();
        for round in 0..12 {
            let (flows, connections) = [(131_072, 262_144), (FLOWS, 131_072)][round % 2];
            apply(lab, &sized(lab, flows, connections, 0));
        }
        stopping.store(true, Ordering::Relaxed);
        let ended = customers.into_iter().map(|customer| customer.join().expect("a customer"));
        let ended: Vec<_> = ended.map(|done| done.map_err(|error| format!("{error:#}"))).collect();
        assert!(ended.iter().all(|done| done.as_ref().is_ok_and(|done| *done > 0)), "{ended:?}");
    });
    no_drops(&agent);
}

#[test]
fn a_flow_table_is_not_made_smaller_than_what_it_holds() {
    let lab = Lab::builder().start().expect("a lab");
    let agent = lab.start_healthy_agent(&config(&lab)).expect("an agent");
    let open = || -> anyhow::Result<()> {
        for port in 20_000..28_000 {
            let socket = UdpSocket::bind(("0.0.0.0", port))?;
            socket.connect(lab.vip(UDP_PORT))?;
            // The second packet shows that the flow goes on.
            socket.send(&[1])?;
            // Nobody listens, which an ICMP error may tell.
            let _ = socket.send(&[2]);
        }
        Ok(())
    };
    lab.customer().run(open).expect("a thread").expect("datagrams");
    let live = || {
        let backends = agent.service("udp").expect("udp")["backends"].as_array().cloned().unwrap_or_default();
        backends.iter().filter_map(|backend| backend["active_flows"].as_u64()).sum::<u64>()
    };
    wait_until("the flows are seen", PATIENCE, || live() > 7_900).expect("flows");
    let output = spawn_apply(&lab, &sized(&lab, 4_096, 131_072, 0)).wait_with_output().expect("apply");
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        error.contains("agent.flow_table_size: ") && error.contains("live flows would find no place"),
        "{error}"
    );
    assert_eq!(number(&agent, "/flow_table/size"), u64::from(FLOWS));
    assert!(live() > 7_900, "{}", live());
    assert!(!lab.pins().join("maps_other").exists());
    // A start with it keeps the table, and other changes go on.
    agent.terminate().expect("end");
    let agent = lab.start_agent(&sized(&lab, 4_096, 131_072, 0)).expect("an agent");
    assert_eq!(number(&agent, "/flow_table/size"), u64::from(FLOWS));
    assert!(agent.log().contains("keeps its size"), "{}", agent.log());
    apply(&lab, &sized(&lab, 4_096, 131_072, 3));
    assert_eq!(number(&agent, "/flow_table/size"), u64::from(FLOWS));
}

#[test]
fn an_agent_that_starts_makes_room_for_what_its_file_has_more() {
    let lab = Lab::builder().start().expect("a lab");
    let agent = lab.start_healthy_agent(&config(&lab)).expect("an agent");
    let mut shoppers = shoppers(&lab);
    agent.terminate().expect("end");
    let agent = lab.start_agent(&sized(&lab, FLOWS, 131_072, 40)).expect("an agent");
    assert!(agent.log().contains("services and"), "{}", agent.log());
    still_served(&mut shoppers, "with more services");
}

#[test]
fn an_agent_killed_amid_a_change_of_sizes_leaves_what_the_next_one_adopts() {
    let lab = Lab::builder().start().expect("a lab");
    let mut agent = lab.start_healthy_agent(&config(&lab)).expect("an agent");
    let mut shoppers = shoppers(&lab);
    apply(&lab, &sized(&lab, FLOWS, 131_072, 0));
    let other = lab.pins().join("maps_other");
    let mut packets = 0;
    amid_traffic(&lab, |flow_on| {
        for round in 0..8_u32 {
            let (flows, connections, services) =
                [(262_144, 262_144, 40), (16_384, 131_072, 80)][round as usize % 2];
            let text = sized(&lab, flows, connections, services);
            let mut asking = spawn_apply(&lab, &text);
            wait_until("other maps are made", PATIENCE, || other.exists()).expect("a change of sizes");
            // From the first map made to the last one let go.
            sleep(Duration::from_millis(u64::from(round) * 25));
            agent.kill9().expect("kill");
            asking.wait().expect("apply");
            flow_on();
            still_served(&mut shoppers, &format!("round {round}, without an agent"));
            agent = lab.start_agent(&text).expect("an agent");
            agent.wait_until_healthy().expect("healthy");
            assert!(!other.exists(), "round {round}");
            let size = number(&agent, "/flow_table/size");
            assert!((u64::from(flows)..2 * u64::from(flows)).contains(&size), "round {round}: {size}");
            flow_on();
            still_served(&mut shoppers, &format!("round {round}, with the next agent"));
            let counted = agent.service("web").expect("web")["packets"].as_u64().expect("a count");
            assert!(counted > packets, "round {round}");
            packets = counted;
        }
        no_drops(&agent);
    });
}
