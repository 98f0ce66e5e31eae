//! Translations and tunnels under stress: very many connections at once, and an agent that is killed.

use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use lb_tests::{Agent, BACKEND_PORT, HttpConnection, Lab, TcpEcho, wait_until};

use crate::ways::{self, WAYS, Way};

const PATIENCE: Duration = Duration::from_secs(20);
/// Where the web servers hold connections.
const HELD_PORT: u16 = 9_100;

/// The ways that translate, IPv4 first.
fn nat() -> Vec<Way> {
    WAYS.into_iter().filter(|way| way.is_nat()).collect()
}

/// Translations that `sluice status` shows, after making sure that none was refused.
fn translations(agent: &Agent<'_>) -> u64 {
    assert_eq!(ways::drops(agent, &[]), [""; 0]);
    agent.status().expect("status")["nat"]["entries"].as_u64().expect("a count")
}

/// The configuration of services whose connections are held; `agent` is what else stands in its first table.
fn held_config(lab: &Lab, ways: &[Way], agent: &str) -> String {
    let mut config = format!("[agent]\ninterfaces = [\"eth0\"]\nxdp_mode = \"driver\"\n{agent}\n");
    for way in ways {
        let vip = SocketAddr::new(way.vip(), HELD_PORT);
        config +=
            &format!("[[service]]\nname = \"{}\"\nvips = [\"{vip}\"]\nforwarding = \"nat\"\n", way.name());
        config += "[service.health]\ntype = \"tcp\"\nport = 80\n";
        for web in lab.webs() {
            let (name, address) = (web.name(), way.backend(web));
            config += &format!("[[service.backend]]\nname = \"{name}\"\naddress = \"{address}\"\n");
        }
    }
    config
}

/// What answers them on the web servers.
fn held_servers(lab: &Lab, way: Way) -> Vec<TcpEcho> {
    let serve = |web| TcpEcho::start(web, SocketAddr::new(way.backend(web), HELD_PORT)).expect("server");
    lab.webs().iter().map(serve).collect()
}

#[test]
fn nat_holds_fifty_thousand_connections_and_a_new_agent_takes_them_over() {
    const OF_EACH_FAMILY: [usize; 2] = [44_000, 6_000];
    let lab = Lab::builder().vip_on_backends(false).start().expect("a lab");
    let ways = nat();
    let config = held_config(&lab, &ways, "");
    ways::announce(&lab, &ways);
    let servers: Vec<_> = ways.iter().map(|way| held_servers(&lab, *way)).collect();
    let agent = ways::healthy_agent(&lab, &config);
    let start = Instant::now();
    let open = |(way, count): (&Way, usize)| {
        lab.many_connections(SocketAddr::new(way.vip(), HELD_PORT), count, 3 * PATIENCE).expect("connections")
    };
    let held: Vec<_> = ways.iter().zip(OF_EACH_FAMILY).map(open).collect();
    eprintln!("opened within {:?}", start.elapsed());
    let echo = || held.iter().for_each(|held| held.echo(PATIENCE).expect("echoes"));
    echo();
    for (servers, count) in servers.iter().zip(OF_EACH_FAMILY) {
        let accepted: Vec<_> = servers.iter().map(TcpEcho::accepted).collect();
        assert_eq!(accepted.iter().sum::<usize>(), count);
        assert!(accepted.iter().all(|one| *one > count * 2 / 5), "{accepted:?}");
    }
    let count: usize = OF_EACH_FAMILY.iter().sum();
    assert_eq!(count, 50_000);
    assert_eq!(translations(&agent), 2 * count as u64);
    agent.kill9().expect("kill -9");
    echo();
    let agent = ways::healthy_agent(&lab, &config);
    echo();
    assert_eq!(translations(&agent), 2 * count as u64);
    eprintln!("done within {:?}", start.elapsed());
}

#[test]
fn a_killed_agent_costs_no_transfer_through_tunnels_and_translations() {
    let lab = Lab::builder().backend_mtu(1_600).start().expect("a lab");
    let used: Vec<_> = WAYS.into_iter().filter(|way| way.is_routed() && way.vip6 == way.backends6).collect();
    let _servers = ways::serve(&lab, &used);
    let config = ways::config(&lab, &used, "", "");
    let agent = ways::healthy_agent(&lab, &config);
    let shoppers = used.iter().map(|way| {
        let mut shopper = HttpConnection::open(lab.customer(), way.tcp(), None).expect("connect");
        let server = shopper.get("/").expect("page").served_by().to_owned();
        (*way, shopper, server)
    });
    let mut shoppers: Vec<_> = shoppers.collect();
    let mut all_are_served = |when: &str| {
        for (way, shopper, server) in &mut shoppers {
            let page = shopper.get("/").unwrap_or_else(|error| panic!("{way:?}, {when}: {error:#}"));
            assert_eq!(page.served_by(), server, "{way:?}, {when}");
        }
    };
    let stopping = AtomicBool::new(false);
    let done: Vec<_> = used.iter().map(|_| AtomicU32::new(0)).collect();
    std::thread::scope(|scope| {
        let (lab, stopping) = (&lab, &stopping);
        let transfers: Vec<_> = used
            .iter()
            .zip(&done)
            .map(|(way, done)| {
                scope.spawn(move || -> anyhow::Result<()> {
                    while !stopping.load(Ordering::Relaxed) {
                        lab.transfer(way.tcp())?;
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        let flow_on = || {
            let before: Vec<_> = done.iter().map(|done| done.load(Ordering::Relaxed)).collect();
            let more = |(done, before): (&AtomicU32, &u32)| done.load(Ordering::Relaxed) > before + 1;
            wait_until("transfers go on", PATIENCE, || done.iter().zip(&before).all(more))
        };
        let outcome = (|| -> anyhow::Result<Agent<'_>> {
            flow_on()?;
            agent.kill9()?;
            flow_on()?;
            all_are_served("without an agent");
            let agent = lab.start_agent(&config)?;
            agent.wait_until_healthy()?;
            flow_on()?;
            Ok(agent)
        })();
        stopping.store(true, Ordering::Relaxed);
        for (way, transfers) in used.iter().zip(transfers) {
            transfers.join().expect("transfers").unwrap_or_else(|error| panic!("{way:?}: {error:#}"));
        }
        let agent = outcome.expect("agents");
        all_are_served("with the new agent");
        assert_eq!(ways::drops(&agent, &[]), [""; 0]);
    });
}

/// A change that cannot be undone any more, for the table of before has no room for what is there now.
#[test]
fn an_undo_that_fails_is_told_and_ends_with_a_confirmation() {
    let lab = Lab::builder().vip_on_backends(false).start().expect("a lab");
    let way = nat()[0];
    ways::announce(&lab, &[way]);
    let at = SocketAddr::new(way.vip(), HELD_PORT);
    let _servers = held_servers(&lab, way);
    let config = |size: u32| held_config(&lab, &[way], &format!("nat_table_size = {size}"));
    let agent = ways::healthy_agent(&lab, &config(1_024));
    let wider = lab.directory().join("wider.toml");
    std::fs::write(&wider, config(4_096)).expect("written");
    let applied =
        agent.sluice(&["apply", &wider.display().to_string(), "--confirm-within", "3s"]).expect("apply");
    assert!(applied.status.success(), "{applied:?}");
    let held = lab.many_connections(at, 1_500, PATIENCE).expect("connections");
    let failed =
        || agent.status().expect("status")["agent"]["unconfirmed"]["failed"].as_str().map(str::to_owned);
    wait_until("the undo has failed", PATIENCE, || failed().is_some()).expect("in time");
    assert!(
        failed().is_some_and(|cause| cause.contains("agent.nat_table_size: 1500 connections are open")),
        "{:?}",
        failed()
    );
    let told = agent.sluice(&["events", "--kind", "refused"]).expect("events");
    let told = String::from_utf8(told.stdout).expect("text");
    assert!(told.contains("undo, for nobody confirmed in time: refused"), "{told}");
    assert!(agent.sluice(&["confirm"]).expect("confirm").status.success());
    assert_eq!(failed(), None);
    let narrower = lab.directory().join("narrower.toml");
    std::fs::write(&narrower, config(1_024)).expect("written");
    let foreseen = agent.sluice(&["apply", &narrower.display().to_string(), "--dry-run"]).expect("dry run");
    let foreseen = format!("{foreseen:?}");
    let refusal = "would be refused: agent.nat_table_size: 1500 connections are open";
    assert!(foreseen.contains(refusal), "{foreseen}");
    held.echo(PATIENCE).expect("echoes");
}

/// The host's own connections, health checks among them, are not to meet those that are translated.
#[test]
fn ports_that_the_host_takes_for_itself_later_are_left_to_it() {
    let lab = Lab::builder().vip_on_backends(false).start().expect("a lab");
    let way = nat()[0];
    ways::announce(&lab, &[way]);
    let config = ways::config(&lab, &[way], "", "");
    let sources = |agent: &Agent<'_>| -> Vec<u16> {
        let port = |customers: u16| {
            let from = SocketAddr::new(way.customer(&lab), customers).to_string();
            let packet = ["explain", "--src", &from, "--dst", &way.tcp().to_string(), "--syn", "-o", "json"];
            let output = agent.sluice(&packet).expect("explain");
            let told = String::from_utf8(output.stdout).expect("text");
            let translated = told.split("translated: ").nth(1).unwrap_or_else(|| panic!("{told}"));
            let source = translated.split_whitespace().find_map(|word| word.parse::<SocketAddr>().ok());
            source.unwrap_or_else(|| panic!("{translated}")).port()
        };
        (4_000..4_020).map(port).collect()
    };
    let agent = ways::healthy_agent(&lab, &config);
    assert!(sources(&agent).iter().any(|&port| port < 32_768));
    agent.kill9().expect("kill -9");
    lab.edge().sysctl("net/ipv4/ip_local_port_range", "1024 50000").expect("a setting");
    let agent = ways::healthy_agent(&lab, &config);
    let ports = sources(&agent);
    assert!(ports.iter().all(|&port| port > 50_000), "{ports:?}");
}

/// New connections are sent from another address, and those of before go on with theirs: with this agent, and with the next.
#[test]
fn connections_outlive_the_choice_of_another_source() {
    let lab = Lab::builder().vip_on_backends(false).start().expect("a lab");
    let ways = nat();
    ways::announce(&lab, &ways);
    let config = |host| {
        ways::config(
            &lab,
            &ways,
            &format!("source_v4 = \"192.0.2.{host}\"\nsource_v6 = \"2001:db8:192::{host}\""),
            "",
        )
    };
    let agent = ways::healthy_agent(&lab, &config(1));
    let mut shoppers: Vec<_> = Vec::new();
    let mut all_are_served = |when: &str| {
        for way in &ways {
            shoppers.push((way, HttpConnection::open(lab.customer(), way.tcp(), None).expect("connect")));
        }
        for (way, shopper) in &mut shoppers {
            shopper.get("/").unwrap_or_else(|error| panic!("{way:?}, {when}: {error:#}"));
        }
    };
    all_are_served("before");
    std::fs::write(lab.config_file(), config(2)).expect("written");
    let applied = agent.sluice(&["apply", &lab.config_file().display().to_string()]).expect("apply");
    let said = String::from_utf8(applied.stdout).expect("text");
    assert!(said.contains("agent.source_v4"), "{said}{}", String::from_utf8_lossy(&applied.stderr));
    all_are_served("after the change");
    agent.kill9().expect("kill -9");
    let agent = ways::healthy_agent(&lab, &config(3));
    all_are_served("with the new agent");
    for (way, source) in ways.iter().zip(["192.0.2.3:", "[2001:db8:192::3]:"]) {
        let from = SocketAddr::new(way.customer(&lab), 4_000).to_string();
        let packet = ["explain", "--src", &from, "--dst", &way.tcp().to_string(), "--syn", "-o", "json"];
        let explained = String::from_utf8(agent.sluice(&packet).expect("explain").stdout).expect("text");
        assert!(explained.contains(source), "{explained}");
    }
    assert_eq!(ways::drops(&agent, &[]), [""; 0]);
}

/// A flood of datagrams, each of another flow, fills the table for a minute; who comes next is served all the same.
#[test]
fn a_flood_that_fills_the_table_keeps_nobody_out() {
    const FLOOD: usize = 3_000;
    let lab = Lab::builder().vip_on_backends(false).start().expect("a lab");
    let ways = nat();
    ways::announce(&lab, &ways);
    let agent = ways::healthy_agent(&lab, &ways::config(&lab, &ways, "nat_table_size = 1024", ""));
    let open = |way: &Way| HttpConnection::open(lab.customer(), way.tcp(), None).expect("connect");
    let mut before: Vec<_> = ways.iter().map(open).collect();
    before.iter_mut().for_each(|shopper| drop(shopper.get("/").expect("served")));
    let flooded = ways[0];
    let flood = || {
        (0..FLOOD).try_for_each(|_| {
            UdpSocket::bind((flooded.customer(&lab), 0))?.send_to(b"?", flooded.udp()).map(drop)
        })
    };
    lab.customer().run(flood).expect("a thread").expect("sent");
    let start = Instant::now();
    for way in ways.iter().cycle().take(8) {
        open(way).get("/").unwrap_or_else(|error| panic!("{way:?}: {error:#}"));
    }
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    before.iter_mut().for_each(|shopper| drop(shopper.get("/").expect("served")));
    let status = agent.status().expect("status");
    assert!(status["nat"]["evictions"].as_u64() > Some(0), "{}", status["nat"]);
}

/// For IPv6 the kernel sends from the address that is most like the server's, and that may be a VIP on the interface: answers to it
/// would be taken for a customer's packets.
#[test]
fn a_vip_on_the_interface_is_not_what_translated_packets_come_from() {
    let lab = Lab::builder().vip_on_backends(false).start().expect("a lab");
    let web = &lab.webs()[0];
    let vip = Ipv6Addr::from_bits(web.address6().to_bits() ^ 8);
    lab.edge().ip(&format!("addr add {vip}/128 dev eth0 nodad\n")).expect("address");
    let output = lab.edge().command("ip").args(["-6", "route", "get", &web.address6().to_string()]).output();
    let route = String::from_utf8(output.expect("ip").stdout).expect("text");
    assert!(route.contains(&format!("src {vip}")), "{route}");
    let config = format!(
        "[agent]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"all\"\nvips = [\"[{vip}]:0\"]\nforwarding = \"nat\"\n\
         [service.health]\ntype = \"tcp\"\nport = {BACKEND_PORT}\n\
         [[service.backend]]\nname = \"web\"\naddress = \"{}\"\n",
        web.address6()
    );
    let agent = ways::healthy_agent(&lab, &config);
    let to = SocketAddr::new(vip.into(), BACKEND_PORT);
    let packet = ["explain", "--src", "[2001:db8::7]:4000", "--dst", &to.to_string(), "--syn", "-o", "json"];
    let output = agent.sluice(&packet).expect("explain");
    let explained = String::from_utf8(output.stdout).expect("text");
    assert!(explained.contains(&format!("[{}]:", lab.edge().address6())), "{explained}");
    for _ in 0..3 {
        let mut connection = HttpConnection::open(lab.customer(), to, None).expect("open");
        assert_eq!(connection.get("/").expect("answer").served_by(), web.name());
    }
}
