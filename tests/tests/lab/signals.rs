//! What customers' packets show of backends: how long connections take to open, SYNs that come again, RSTs and FINs; and what is made of
//! it.

use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::time::Duration;

use etherparse::PacketBuilder;
use lb_tests::{Agent, BACKEND_PORT, HttpConnection, Lab, LateServer, VIP, send_frames, wait_until};
use serde_json::Value;
use socket2::{Domain, SockRef, Socket, Type};

const PATIENCE: Duration = Duration::from_secs(30);
const METRICS: &str = "127.0.0.1:9400";
/// How late the late server answers.
const LATE: Duration = Duration::from_millis(40);
/// The bucket that times from 33.6 to 67.1 ms are in; none below has a time of the late server.
const LATE_BUCKET: usize = 12;
const CONNECTIONS: u16 = 60;

/// Services over all web servers: name, port, and keys of the health check.
fn configuration(lab: &Lab, services: &[(&str, u16, &str)]) -> String {
    let mut text = format!(
        "[agent]\ninterfaces = [\"eth0\"]\nxdp_mode = \"driver\"\nflow_table_size = 65536\nmetrics = \"{METRICS}\"\n\
         time_openings = 1\n"
    );
    for (name, port, health) in services {
        text += &format!("[[service]]\nname = \"{name}\"\nvips = [\"{}\"]\n", lab.vip(*port));
        text += "[service.health]\ntype = \"tcp\"\nport = 80\ninterval = \"300ms\"\ntimeout = \"300ms\"\nrise = 1\nfall = 2\n";
        text += &format!("{health}\n");
        for web in lab.webs() {
            text +=
                &format!("[[service.backend]]\nname = \"{}\"\naddress = \"{}\"\n", web.name(), web.address());
        }
    }
    text
}

fn start<'a>(lab: &'a Lab, services: &[(&str, u16, &str)]) -> Agent<'a> {
    let agent = lab.start_agent(&configuration(lab, services)).expect("an agent");
    agent.wait_until_healthy().expect("healthy");
    agent
}

/// Without the VIP its kernel drops what is for it, and says nothing.
fn take_vip_away(lab: &Lab, web: usize) {
    lab.web(web).ip(&format!("addr del {VIP}/32 dev lo")).expect("an address");
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("{key}: {value}"))
}

fn buckets(tcp: &Value) -> Vec<u64> {
    let buckets = tcp["opening"]["buckets"].as_array().unwrap_or_else(|| panic!("{tcp}"));
    buckets.iter().map(|count| count.as_u64().expect("a count")).collect()
}

#[test]
fn a_late_backend_shows_its_lateness_and_counts_are_those_of_the_packets() {
    let lab = Lab::builder().start().expect("a lab");
    take_vip_away(&lab, 0);
    let vip = SocketAddrV4::new(VIP, 80);
    let late = LateServer::start(lab.web(0), lab.customer(), vip, LATE).expect("a server");
    let agent = start(&lab, &[("web", 80, "")]);
    let mut connections = Vec::new();
    for port in 20_000..20_000 + CONNECTIONS {
        connections.push(lab.customer().connect(vip.into(), Some(port)).expect("a connection"));
    }
    // Some end with an RST, the others with a FIN, which the late server answers with an RST.
    for (at, connection) in connections.into_iter().enumerate() {
        let linger = (at % 3 == 0).then_some(Duration::ZERO);
        SockRef::from(&connection).set_linger(linger).expect("linger");
        drop(connection);
    }
    let tcp_of = |name: &str| agent.backend("web", name).expect("a backend")["tcp"].clone();
    // A FIN that comes again may be under way, so that it is looked until all agree.
    let mut last = (Value::Null, Default::default());
    wait_until("all counts agree", PATIENCE, || {
        let (backend, sent) = (agent.backend("web", "web1").expect("web1"), late.sent());
        let tcp = &backend["tcp"];
        last = (backend.clone(), sent);
        number(tcp, "opened") + number(tcp, "repeated") == sent.syns
            && [number(tcp, "fins"), number(tcp, "resets")] == [sent.fins, sent.resets]
            && number(&backend, "packets") == sent.packets
            && sent.fins >= number(tcp, "opened") / 2
            && sent.resets > 0
    })
    .unwrap_or_else(|error| panic!("{error}: {last:?}"));
    let (web1, web2) = (tcp_of("web1"), tcp_of("web2"));
    let [opened1, opened2] = [&web1, &web2].map(|tcp| number(tcp, "opened"));
    assert_eq!(opened1 + opened2, u64::from(CONNECTIONS), "{web1} {web2}");
    assert!(opened1 >= 10 && opened2 >= 10, "{web1} {web2}");
    for tcp in [&web1, &web2] {
        assert_eq!(number(tcp, "answered"), number(tcp, "opened"), "{tcp}");
        assert_eq!(number(&tcp["opening"], "timed"), number(tcp, "opened"), "each is timed: {tcp}");
    }
    let (slow, quick) = (buckets(&web1), buckets(&web2));
    assert_eq!(slow[..LATE_BUCKET].iter().sum::<u64>(), 0, "{web1}");
    assert!(slow[LATE_BUCKET] >= opened1 / 2, "{web1}");
    assert!(web1["opening"]["seconds"].as_f64().expect("seconds") >= 0.04 * opened1 as f64, "{web1}");
    assert!(quick[..LATE_BUCKET].iter().sum::<u64>() > opened2 / 2, "{web2}");

    let text = lab.edge().curl(&[&format!("http://{METRICS}/metrics")]).expect("metrics").text();
    let has = |line: String| assert!(text.lines().any(|found| found == line), "{line}: {text}");
    for (backend, tcp) in [("web1", &web1), ("web2", &web2)] {
        let labels = format!("service=\"web\",backend=\"{backend}\"");
        has(format!("sluice_backend_opening_seconds_count{{{labels}}} {}", number(tcp, "opened")));
        has(format!("sluice_backend_tcp_opened_total{{{labels}}} {}", number(tcp, "opened")));
        has(format!("sluice_backend_tcp_resets_total{{{labels}}} {}", number(tcp, "resets")));
        let below: u64 = buckets(tcp)[..LATE_BUCKET].iter().sum();
        has(format!("sluice_backend_opening_seconds_bucket{{le=\"0.033554432\",{labels}}} {below}"));
    }
    has(format!("sluice_service_opening_seconds_count{{service=\"web\"}} {CONNECTIONS}"));
    let top = agent.sluice(&["top", "-o", "json"]).expect("sluice");
    let top: Value = serde_json::from_slice(&top.stdout).expect("JSON");
    let median = &top["services"][0]["backends"][0]["tcp"]["opening_median"];
    assert!(median.as_f64().is_some_and(|seconds| (0.03..1.0).contains(&seconds)), "{top}");
    let shown = agent.sluice(&["service", "show", "web"]).expect("sluice");
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains(&format!("customers' packets: {CONNECTIONS} SYNs, ")), "{shown}");
    agent.terminate().expect("end");
}

/// Connections that are being opened to a port of the VIP, and go on being so.
fn open_many(lab: &Lab, port: u16) -> Vec<Socket> {
    let open = || -> std::io::Result<Socket> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        match socket.connect(&SocketAddr::from((VIP, port)).into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
            _ => Ok(socket),
        }
    };
    lab.customer().run(|| (0..30).map(|_| open().expect("an opening")).collect()).expect("run")
}

fn signals(agent: &Agent<'_>) -> Vec<Value> {
    let output = agent.sluice(&["events", "-o", "json", "--kind", "signal"]).expect("sluice");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn a_backend_that_swallows_openings_is_told_of_and_where_wished_taken_out() {
    let lab = Lab::builder().start().expect("a lab");
    take_vip_away(&lab, 0);
    // Both are checked at the servers' own addresses, where all is well.
    let agent = start(
        &lab,
        &[
            ("told", 443, ""),
            ("taken", 80, "passive = \"fail\"\nhold_down = \"3s\""),
            ("off", 81, "passive = \"off\""),
        ],
    );
    let mut pending: Vec<Socket> = Vec::new();
    wait_until("both are told of, and one is taken out", PATIENCE, || {
        if pending.len() < 1_000 {
            pending.extend([443, 80, 81].iter().flat_map(|&port| open_many(&lab, port)));
        }
        let told = |service: &str| {
            signals(&agent).iter().any(|event| event["service"] == service && event["begins"] == true)
        };
        told("told") && agent.backend("taken", "web1").is_ok_and(|web1| web1["health"] == "unhealthy")
    })
    .unwrap_or_else(|error| panic!("{error}: {:#?}\n{}", signals(&agent), agent.log()));
    let taken = agent.backend("taken", "web1").expect("web1");
    assert_eq!(taken["ring_share"], 0.0, "{taken}");
    let reason = taken["reason"].as_str().expect("a reason");
    assert!(reason.contains("customers get no answer: ") && reason.contains("held down for "), "{taken}");
    for event in signals(&agent) {
        assert_eq!((&event["backend"], &event["signal"]), (&"web1".into(), &"unanswered".into()), "{event}");
        assert_eq!(event["counts"], event["service"] == "taken", "{event}");
        assert_ne!(event["service"], "off", "{event}");
    }
    assert_eq!(agent.backend("told", "web1").expect("web1")["health"], "healthy");
    assert_eq!(agent.backend("taken", "web2").expect("web2")["health"], "healthy");
    let tcp = agent.backend("taken", "web1").expect("web1")["tcp"].clone();
    assert!(number(&tcp, "repeated") >= 3 && number(&tcp, "answered") == 0, "{tcp}");
    let served = |_| {
        let mut connection = HttpConnection::open(lab.customer(), lab.vip(80), None).expect("a connection");
        assert_eq!(connection.get("/").expect("an answer").served_by(), "web2");
    };
    (0..5).for_each(served);
    drop(pending);

    // Its checks have gone well all the time; what they bring back may serve again.
    lab.web(0).ip(&format!("addr add {VIP}/32 dev lo")).expect("an address");
    wait_until("web1 is back", PATIENCE, || {
        agent.backend("taken", "web1").is_ok_and(|web1| web1["health"] == "healthy")
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", agent.log()));
    let streams: Vec<TcpStream> =
        (0..40).map(|_| lab.customer().connect(lab.vip(80), None).expect("a connection")).collect();
    drop(streams);
    wait_until("that is told, too", PATIENCE, || {
        signals(&agent).iter().any(|event| event["service"] == "taken" && event["begins"] == false)
    })
    .unwrap_or_else(|error| panic!("{error}: {:#?}", signals(&agent)));
    assert_eq!(agent.backend("taken", "web1").expect("web1")["health"], "healthy");
    agent.terminate().expect("end");
}

/// Lets customers make many connections to a port of the VIP, of which those that web1 serves end with an RST.
fn reset_those_of_web1(lab: &Lab, port: u16) {
    let (mut reset, mut closed) = (Vec::new(), Vec::new());
    while reset.len() < 30 || closed.len() < 30 {
        let stream = lab.customer().connect(lab.vip(port), None).expect("a connection");
        let socket = stream.try_clone().expect("a clone");
        let served = HttpConnection::over(stream).get("/").expect("an answer");
        if served.served_by() == "web1" { &mut reset } else { &mut closed }.push(socket);
        if reset.len() + closed.len() > 1_000 {
            // One of the two is out of service.
            return;
        }
    }
    for socket in &reset {
        SockRef::from(socket).set_linger(Some(Duration::ZERO)).expect("linger");
    }
}

#[test]
fn a_backend_whose_connections_are_reset_is_told_of_and_where_wished_taken_out() {
    let lab = Lab::builder().start().expect("a lab");
    let agent =
        start(&lab, &[("taken", 80, "passive = \"fail\"\nhold_down = \"1s\""), ("told", BACKEND_PORT, "")]);
    let told = |service: &str| {
        signals(&agent).iter().any(|event| event["service"] == service && event["begins"] == true)
    };
    let health = |service: &str, web: &str| agent.backend(service, web).expect("a backend")["health"].clone();
    wait_until("both are told of, and one is taken out", 2 * PATIENCE, || {
        if health("taken", "web1") == "healthy" {
            reset_those_of_web1(&lab, 80);
        }
        if !told("told") {
            reset_those_of_web1(&lab, BACKEND_PORT);
        }
        // Customers have only so many ports.
        std::thread::sleep(Duration::from_millis(200));
        told("told") && health("taken", "web1") == "unhealthy"
    })
    .unwrap_or_else(|error| panic!("{error}: {:#?}\n{}", signals(&agent), agent.log()));
    let events = signals(&agent);
    for event in &events {
        assert_eq!((&event["backend"], &event["signal"]), (&"web1".into(), &"resets".into()), "{event}");
        assert_eq!(event["counts"], event["service"] == "taken", "{event}");
    }
    let log = agent.log();
    assert!(log.contains("customers reset its connections: ") && log.contains("held down for 1s"), "{log}");
    assert_eq!((health("told", "web1"), health("taken", "web2")), ("healthy".into(), "healthy".into()));
    // Its checks go well, so that it comes back once it is not held down any more.
    wait_until("web1 is back", PATIENCE, || health("taken", "web1") == "healthy")
        .unwrap_or_else(|error| panic!("{error}\n{}", agent.log()));
    agent.terminate().expect("end");
}

#[test]
fn a_flood_of_resets_is_told_of_and_takes_nobody_out() {
    let lab = Lab::builder().start().expect("a lab");
    let agent = start(&lab, &[("web", 80, "passive = \"fail\"")]);
    let (customer, edge) = (lab.customer(), lab.edge());
    let macs = [customer, edge].map(|host| host.mac("eth0").expect("a MAC address"));
    let mut frame = Vec::new();
    let rst = PacketBuilder::ethernet2(macs[0], macs[1])
        .ipv4(customer.address().octets(), VIP.octets(), 64)
        .tcp(40_000, 80, 1, 0)
        .rst();
    rst.write(&mut frame, &[]).expect("a frame");
    let turned = |begins: bool| signals(&agent).iter().any(|event| event["begins"] == begins);
    wait_until("the flood is told of", PATIENCE, || {
        send_frames(customer, "eth0", &frame, 2_000).expect("a flood");
        turned(true)
    })
    .unwrap_or_else(|error| panic!("{error}: {}", agent.backend("web", "web1").expect("web1")));
    wait_until("its end is told of, too", PATIENCE, || turned(false))
        .unwrap_or_else(|error| panic!("{error}: {:#?}", signals(&agent)));
    for event in signals(&agent) {
        assert_eq!((&event["signal"], &event["counts"]), (&"reset_flood".into(), &false.into()), "{event}");
        let reason = event["reason"].as_str().expect("a reason");
        assert_eq!(reason.contains("a flood of "), event["begins"] == true, "{event}");
    }
    assert_eq!(agent.service("web").expect("web")["status"], "healthy");
    agent.terminate().expect("end");
}
