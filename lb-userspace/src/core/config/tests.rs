//! Configuration texts → the values or the errors, with their lines and places, that they must give.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

mod forwarding;
mod refused;

/// Every key.
const EXAMPLE: &str = r#"
[agent]
interfaces = ["eth0"]            # where the XDP program is attached; more than one is allowed
xdp_mode   = "auto"
metrics    = "127.0.0.1:9400"
flow_table_size = 1048576
ring_seed  = 0
source_v4  = "192.0.2.1"
source_v6  = ["2001:db8:1::1", "2001:db8:2::/64"]
nat_table_size = 65536
oversized  = "reply"
time_openings = 1

[[service]]
name       = "web"
vips       = ["203.0.113.10:80", "[2001:db8::10]:80"]
protocol   = "tcp"
forwarding = "l2-dsr"
affinity   = "client"
all_down   = "fail-open"
min_healthy = 0

[service.health]
type = "http"
port = 80
path = "/healthz"
host = "your-app.example"
expect = "200-399"
via = "backend"
interval = "2s"
timeout  = "1s"
rise = 2
fall = 3
slow_start = "0s"

[[service.backend]]
name    = "web1"
address = "10.0.1.11"
port    = 80
weight  = 100
state   = "enabled"
"#;

const AGENT: &str = "[agent]\ninterfaces = [\"eth0\"]\n";

/// A valid file with `keys` in `[agent]`, on line 3.
fn with_agent(keys: &str) -> String {
    format!("{AGENT}{keys}\n")
}

/// A valid file with `keys` in its only service, from line 6 on.
fn with_service(keys: &str) -> String {
    format!("{AGENT}[[service]]\nname = \"web\"\nvips = [\"192.0.2.1:80\"]\n{keys}\n")
}

/// A valid file with `keys` in its only service's health check, from line 7 on.
fn with_health(keys: &str) -> String {
    with_service(&format!("[service.health]\n{keys}"))
}

/// A valid file with `keys` in its only backend, from line 9 on.
fn with_backend(keys: &str) -> String {
    with_service(&format!("[[service.backend]]\nname = \"b1\"\naddress = \"10.0.0.1\"\n{keys}"))
}

fn source(address: &str, prefix: u8) -> Source {
    Source { address: address.parse().unwrap(), prefix }
}

fn errors(text: &str) -> Vec<String> {
    parse(text).err().unwrap_or_default().iter().map(ToString::to_string).collect()
}

/// Asserts that `text` has exactly these errors, of each the beginning.
#[track_caller]
fn refused(text: &str, beginnings: &[&str]) {
    let found = errors(text);
    let matches = found.len() == beginnings.len()
        && found.iter().zip(beginnings).all(|(error, beginning)| error.starts_with(beginning));
    assert!(matches, "in\n{text}\nfound {found:#?}\nexpected {beginnings:#?}");
}

#[track_caller]
fn only_service(text: &str) -> Service {
    let config = parse(text).unwrap_or_else(|errors| panic!("in\n{text}\n{errors:#?}"));
    assert_eq!(config.services.len(), 1);
    config.services[0].clone()
}

#[test]
fn the_documented_example_is_read_in_full() {
    let config = parse(EXAMPLE).unwrap();
    let expected = Config {
        agent: Agent {
            interfaces: vec!["eth0".to_owned()],
            xdp_mode: XdpMode::Auto,
            metrics: Some("127.0.0.1:9400".parse().unwrap()),
            flow_table_size: 1_048_576,
            ring_seed: 0,
            source_v4: vec![source("192.0.2.1", 32)],
            source_v6: vec![source("2001:db8:1::1", 128), source("2001:db8:2::", 64)],
            nat_table_size: 65_536,
            oversized: Oversized::Reply,
            time_openings: 1,
        },
        services: vec![Service {
            name: "web".to_owned(),
            vips: vec![
                Vip { address: "203.0.113.10".parse().unwrap(), port: 80 },
                Vip { address: "2001:db8::10".parse().unwrap(), port: 80 },
            ],
            protocol: Protocol::Tcp,
            forwarding: Forwarding::L2Dsr,
            affinity: Affinity::Client,
            all_down: AllDown::FailOpen,
            min_healthy: 0,
            health: Health {
                probe: Probe::Http {
                    path: "/healthz".to_owned(),
                    host: Some("your-app.example".to_owned()),
                    expect: vec![200..=399],
                    body: None,
                    tls: None,
                },
                port: Some(80),
                interval: Duration::from_secs(2),
                timeout: Duration::from_secs(1),
                rise: 2,
                fall: 3,
                via: Via::Backend,
                slow_start: Duration::ZERO,
                hold_down: Duration::from_secs(10),
                hold_down_max: Duration::from_secs(300),
                passive: Passive::Event,
            },
            backends: vec![Backend {
                name: "web1".to_owned(),
                address: "10.0.1.11".parse().unwrap(),
                port: None,
                weight: 100,
                state: BackendState::Enabled,
            }],
        }],
    };
    assert_eq!(config, expected);
}

#[test]
fn absent_keys_have_their_defaults() {
    let config = parse(&with_backend("")).unwrap();
    assert_eq!(
        config.agent,
        Agent {
            interfaces: vec!["eth0".to_owned()],
            xdp_mode: XdpMode::Auto,
            metrics: None,
            flow_table_size: 1_048_576,
            ring_seed: 0,
            source_v4: vec![],
            source_v6: vec![],
            nat_table_size: 131_072,
            oversized: Oversized::Drop,
            time_openings: 32,
        }
    );
    let service = &config.services[0];
    assert_eq!(
        (service.protocol, service.forwarding, service.affinity, service.all_down, service.min_healthy),
        (Protocol::Tcp, Forwarding::L2Dsr, Affinity::Connection, AllDown::FailOpen, 0)
    );
    let default_health = Health {
        probe: Probe::Tcp,
        port: None,
        interval: Duration::from_secs(2),
        timeout: Duration::from_secs(1),
        rise: 2,
        fall: 3,
        via: Via::Backend,
        slow_start: Duration::ZERO,
        hold_down: Duration::from_secs(10),
        hold_down_max: Duration::from_secs(300),
        passive: Passive::Event,
    };
    assert_eq!(service.health, default_health);
    assert_eq!(service.probe_port(&service.backends[0]), Some(80));
    assert_eq!((service.backends[0].weight, service.backends[0].state), (100, BackendState::Enabled));
    let http = only_service(&with_health("type = \"http\"")).health.probe;
    assert_eq!(
        http,
        Probe::Http { path: "/".to_owned(), host: None, expect: vec![200..=399], body: None, tls: None }
    );
    assert_eq!(only_service(&with_health("interval = \"5s\"")).health.probe, Probe::Tcp);
    assert_eq!(parse(AGENT).unwrap().services, vec![]);
}

#[test]
fn every_word_has_its_value() {
    for (word, mode) in [("auto", XdpMode::Auto), ("driver", XdpMode::Driver), ("generic", XdpMode::Generic)]
    {
        assert_eq!(parse(&with_agent(&format!("xdp_mode = \"{word}\""))).unwrap().agent.xdp_mode, mode);
    }
    for (word, state) in [
        ("enabled", BackendState::Enabled),
        ("drain", BackendState::Drain),
        ("disabled", BackendState::Disabled),
    ] {
        assert_eq!(only_service(&with_backend(&format!("state = \"{word}\""))).backends[0].state, state);
    }
    for (word, forwarding) in [
        ("l2-dsr", Forwarding::L2Dsr),
        ("ipip", Forwarding::Ipip),
        ("gue", Forwarding::Gue),
        ("nat", Forwarding::Nat),
    ] {
        let service = only_service(&with_service(&format!("forwarding = \"{word}\"")));
        assert_eq!(service.forwarding, forwarding);
    }
    for (word, affinity) in [("connection", Affinity::Connection), ("client", Affinity::Client)] {
        assert_eq!(only_service(&with_service(&format!("affinity = \"{word}\""))).affinity, affinity);
    }
    for (word, oversized) in [("drop", Oversized::Drop), ("reply", Oversized::Reply)] {
        let config = parse(&with_agent(&format!("oversized = \"{word}\""))).unwrap();
        assert_eq!(config.agent.oversized, oversized);
    }
    for (word, passive) in [("off", Passive::Off), ("event", Passive::Event), ("fail", Passive::Fail)] {
        assert_eq!(only_service(&with_health(&format!("passive = \"{word}\""))).health.passive, passive);
    }
    for (word, via) in [("backend", Via::Backend), ("vip", Via::Vip)] {
        assert_eq!(only_service(&with_health(&format!("via = \"{word}\""))).health.via, via);
    }
    for (keys, expected) in [
        ("", Tls::System),
        ("verify = false", Tls::Unverified),
        ("ca = \"/etc/ca.pem\"", Tls::Authorities("/etc/ca.pem".to_owned())),
    ] {
        let probe =
            only_service(&with_health(&format!("type = \"https\"\nbody = \"ok\"\n{keys}"))).health.probe;
        let Probe::Http { tls, body, .. } = probe else { panic!("not HTTP") };
        assert_eq!((tls, body.as_deref()), (Some(expected), Some("ok")));
    }
    assert_eq!(only_service(&with_service("protocol = \"udp\"")).protocol, Protocol::Udp);
    assert_eq!(only_service(&with_service("all_down = \"drop\"")).all_down, AllDown::Drop);
    assert_eq!(only_service(&with_health("type = \"none\"\npath = \"/\"")).health.probe, Probe::None);
}

/// A health check's kind and port by protocol, VIPs and backend, where the file does not say.
#[test]
fn the_default_check_follows_vips_and_backends() {
    let service = |keys: &str, vips: &str, rest: &str| {
        format!(
            "{AGENT}[[service]]\nname = \"a\"\n{keys}\nvips = {vips}\n{rest}\n[[service.backend]]\nname = \"b\"\n\
             address = \"10.0.0.1\"\n"
        )
    };
    let probed = |text: &str| {
        let service = only_service(text);
        (service.health.probe.clone(), service.probe_port(&service.backends[0]))
    };
    let (one, two, all) =
        (r#"["192.0.2.1:80", "192.0.2.2:80"]"#, r#"["192.0.2.1:80", "192.0.2.1:443"]"#, r#"["192.0.2.1:0"]"#);
    let (udp, nat) = ("protocol = \"udp\"", "forwarding = \"nat\"");
    for (keys, vips, port, probe, expected) in [
        ("", one, "", Probe::Tcp, Some(80)),
        ("", two, "", Probe::None, None),
        ("", all, "", Probe::None, None),
        (udp, one, "", Probe::None, None),
        (nat, one, "", Probe::Tcp, Some(80)),
        (nat, one, "port = 8080", Probe::Tcp, Some(8080)),
        (nat, two, "", Probe::None, None),
        (nat, two, "port = 8080", Probe::Tcp, Some(8080)),
        (nat, all, "", Probe::None, None),
    ] {
        let text = service(keys, vips, "") + port;
        assert_eq!(probed(&text), (probe, expected), "{text}");
    }
    let check = "[service.health]\ntype = \"tcp\"";
    assert_eq!(probed(&service(udp, one, check)), (Probe::Tcp, Some(80)));
    assert_eq!(probed(&(service(nat, two, check) + "port = 8080")), (Probe::Tcp, Some(8080)));
    for (keys, vips) in [("", two), ("", all), (nat, two), (nat, all)] {
        let missing = "7: service[0].health.port: missing; the VIPs do not share one port";
        refused(&service(keys, vips, check), &[missing]);
        assert_eq!(probed(&service(keys, vips, "health.port = 8081")), (Probe::Tcp, Some(8081)));
    }
    assert_eq!(probed(&(service(nat, one, "health.port = 8081") + "port = 8080")).1, Some(8081));
}

#[test]
fn a_default_timeout_is_no_longer_than_the_interval() {
    assert_eq!(only_service(&with_health("interval = \"200ms\"")).health.timeout, Duration::from_millis(200));
}

#[test]
fn flapping_backends_are_held_down_for_some_intervals_unless_the_file_says_how_long() {
    let seconds = Duration::from_secs;
    for (keys, first, most) in [
        ("interval = \"1s\"", seconds(5), seconds(150)),
        ("hold_down = \"4s\"", seconds(4), seconds(120)),
        ("hold_down = \"0s\"", seconds(0), seconds(0)),
        ("hold_down_max = \"10s\"", seconds(10), seconds(10)),
        ("interval = \"60m\"", seconds(3_600), seconds(3_600)),
    ] {
        let health = only_service(&with_health(keys)).health;
        assert_eq!((health.hold_down, health.hold_down_max), (first, most), "{keys}");
    }
}

/// Only `via = "vip"` leads to VIPs: those of the backend's family, each once.
#[test]
fn checks_go_through_the_vips_of_the_backends_family() {
    let vips = "\"192.0.2.2:80\", \"192.0.2.1:80\", \"192.0.2.1:443\", \"[2001:db8::1]:80\"";
    let text = |keys: &str| {
        with_backend("").replace("\"192.0.2.1:80\"", vips) + "[service.health]\nport = 80\n" + keys
    };
    let vips = |text: &str| {
        let service = only_service(text);
        service.probed_vips(&service.backends[0]).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(vips(&text("")), Vec::<String>::new());
    assert_eq!(vips(&text("via = \"vip\"")), ["192.0.2.1", "192.0.2.2"]);
    assert_eq!(vips(&text("via = \"vip\"").replace("10.0.0.1", "2001:db8::9")), ["2001:db8::1"]);
}

#[test]
fn statuses_are_codes_and_ranges() {
    for (text, expected) in
        [("200", vec![200..=200]), ("200-299,301", vec![200..=299, 301..=301]), ("100-599", vec![100..=599])]
    {
        let service = only_service(&with_health(&format!("type = \"http\"\nexpect = \"{text}\"")));
        let Probe::Http { expect, .. } = service.health.probe else { panic!("not HTTP") };
        assert_eq!(expect, expected, "{text}");
    }
    for text in ["", "99", "600", "300-200", "200-", "200,,301", "2xx", "+200-300"] {
        refused(
            &with_health(&format!("type = \"http\"\nexpect = \"{text}\"")),
            &["8: service[0].health.expect: expected status codes from 100 to 599"],
        );
    }
}

#[test]
fn durations_have_units() {
    for (text, expected) in [
        ("500ms", Ok(Duration::from_millis(500))),
        ("2s", Ok(Duration::from_secs(2))),
        ("1m", Ok(Duration::from_secs(60))),
        ("0s", Ok(Duration::ZERO)),
        ("", Err(DurationError::Malformed)),
        ("s", Err(DurationError::Malformed)),
        ("2", Err(DurationError::Malformed)),
        ("1h", Err(DurationError::Malformed)),
        ("1.5s", Err(DurationError::Malformed)),
        ("-1s", Err(DurationError::Malformed)),
        ("2 s", Err(DurationError::Malformed)),
        ("18446744073709551615ms", Ok(Duration::from_millis(u64::MAX))),
        ("18446744073709551616ms", Err(DurationError::TooLong)),
        ("18446744073709551615s", Err(DurationError::TooLong)),
    ] {
        assert_eq!(parse_duration(text), expected, "{text}");
    }
}

#[test]
fn all_errors_are_reported_at_once_sorted_by_line() {
    let text = r#"
[agent]
interfaces = []
xdp_mode = 3

[[service]]
name = "web"
vips = ["192.0.2.1:80", "nonsense"]
forwarding = "dnat"
min_healthy = 5

[service.health]
type = "http"
path = "no-slash"
timeout = "5s"

[[service.backend]]
name = "web1"
weight = 100000
port = 8080

[[service.backend]]
name = "web1"
address = "10.0.0.1"
colour = "red"
weight = 1
weight = 2
"#;
    refused(
        text,
        &[
            "3: agent.interfaces: is empty",
            "4: agent.xdp_mode: expected a string in quotes, found the integer 3",
            "8: service[0].vips[1]: expected address:port",
            "9: service[0].forwarding: \"dnat\" is not known; did you mean \"nat\"?",
            "10: service[0].min_healthy: must be at most the number of backends, 2, not 5",
            "14: service[0].health.path: a path begins",
            "15: service[0].health.timeout: must be at most the interval, 2s, not 5s",
            "17: service[0].backend[0].address: missing",
            "19: service[0].backend[0].weight: must be 0 to 65535",
            "23: service[0].backend[1].name: \"web1\" is already used by backend[0]",
            "25: service[0].backend[1].colour: unknown key",
            "27: service[0].backend[1].weight: duplicate key; it is there already, in line 26: remove one",
        ],
    );
}

#[test]
fn a_broken_value_hides_nothing_but_itself() {
    refused(
        &with_health("interval = 1s\ntimeout = \"3s\"\nrise = 0"),
        &["7: ", "9: service[0].health.rise: must be 1 to 100"],
    );
    refused(&with_backend("weight = \nstate = \"x\""), &["9: ", "10: service[0].backend[0].state"]);
    refused(&with_service("protocol = \"udp\nmin_healthy = 9"), &["6: ", "7: service[0].min_healthy"]);
}

#[test]
fn where_the_structure_is_lost_what_follows_is_not_guessed_at() {
    refused(
        "[agent]\nxdp_mode = 1\ninterfaces\n[[service]]\nname = 1",
        &["2: agent.xdp_mode: expected a string", "3: key with no value, expected `=`"],
    );
    // The header's error turns its keys into keys of the document, and takes the backends away.
    refused(&with_service("min_healthy = 1\n[[service.backend\nname = \"b1\""), &["7: unclosed array table"]);
    let unclosed = errors("[agent]\nflow_table_size = 1\ninterfaces = [\"eth0\"\nxdp_mode = \"auto\"");
    assert!(unclosed[0].starts_with("2: agent.flow_table_size: must be"), "{unclosed:#?}");
    assert!(unclosed[1].starts_with("4: "), "{unclosed:#?}");
    assert!(unclosed[1..].iter().all(|error| !error.contains("agent")), "{unclosed:#?}");
}

/// What follows from a wrong value is not a second mistake.
#[test]
fn one_mistake_is_one_error() {
    let vip = with_backend("port = 8080").replace("1:80\"]", "1:80\", \"web\"]");
    refused(&vip, &["5: service[0].vips[1]: expected address:port"]);
    let check = with_health("type = \"http\"").replace("192.0.2.1:80", "192.0.2.1");
    refused(&check, &["5: service[0].vips[0]: needs a port"]);
    let mode = with_backend("port = 8080").replace("[[service.", "forwarding = \"nta\"\n[[service.");
    refused(&mode, &["6: service[0].forwarding: \"nta\" is not known; did you mean \"nat\"?"]);
    let port = with_backend("port = 0\n[service.health]")
        .replace("[[service]]", "[[service]]\nforwarding = \"nat\"");
    let port = port.replace("1:80\"]", "1:80\", \"192.0.2.1:81\"]");
    refused(&port, &["10: service[0].backend[0].port: must be 1 to 65535, not 0"]);
    let source = with_agent(
        "source_v4 = [\"192.0.2.0/28\", \"1.2.3\"]\n[[service]]\nname = \"web\"\nforwarding = \"nat\"\nvips = [\"198.51.100.1:80\"]",
    );
    refused(&source, &["3: agent.source_v4[1]: expected an IPv4 address or prefix"]);
    let interval = with_health("interval = \"1x\"\ntimeout = \"5s\"");
    refused(&interval, &["7: service[0].health.interval"]);
}

#[test]
fn errors_name_file_line_and_place() {
    let error = &parse(&with_backend("weight = -1")).unwrap_err()[0];
    assert_eq!(
        error.at("/etc/sluice.toml").to_string(),
        "/etc/sluice.toml:9: service[0].backend[0].weight: must be 0 to 65535, not -1"
    );
    let error = &parse(&with_agent("x = \"\\q\"")).unwrap_err()[0];
    assert!(error.at("f").to_string().starts_with("f:3: "), "{error}");
    assert!(error.path.is_empty());
}

/// What an operator copies first.
#[test]
fn the_example_in_deploy_is_valid() {
    let text = include_str!("../../../../deploy/sluice.toml");
    let as_it_is = parse(text).unwrap();
    // The same with every key that is commented out.
    let commented = |line: &str| {
        let rest = line.strip_prefix("# ")?.trim_start();
        let is_key = rest.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '));
        (is_key || rest.starts_with("[[")).then(|| rest.to_owned())
    };
    let all: Vec<String> =
        text.lines().map(|line| commented(line).unwrap_or_else(|| line.to_owned())).collect();
    let with_all = parse(&all.join("\n")).unwrap_or_else(|errors| panic!("{errors:#?}"));
    assert!(as_it_is.agent.source_v6.is_empty() && !with_all.agent.source_v6.is_empty());
    let forwarding =
        |config: &Config| config.services.iter().map(|service| service.forwarding).collect::<Vec<_>>();
    assert_eq!(forwarding(&as_it_is), [Forwarding::L2Dsr; 2]);
    assert_eq!(forwarding(&with_all), [Forwarding::L2Dsr, Forwarding::L2Dsr, Forwarding::Nat]);
}

proptest! {
    #[test]
    fn any_text_is_answered(text in "\\PC*") {
        let _ = parse(&text);
    }

    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse(&String::from_utf8_lossy(&bytes));
    }

    /// What TOML is made of, in any order.
    #[test]
    fn any_tokens_are_answered(parts in proptest::collection::vec(
        prop::sample::select(vec![
            "[agent]", "[[service]]", "[service.health]", "[[service.backend]]", "[service]", "service", "health",
            "name", "vips", ".", "=", "=", "[", "]", "{", "}", ",", "\"", "\"a\"", "\"192.0.2.1:80\"", "'''", "\"\"\"",
            "source_v4", "forwarding", "\"nat\"", "port", "\"192.0.2.0/28\"", "\"[2001:db8::1]:0\"", "1", "-1", "0x", "1.5", "true", "1979-05-27", "\n", "\n", "\n", "\r\n", "#", "\\", " ", "é", "\u{0}",
        ]), 0..60)) {
        let _ = parse(&parts.concat());
    }

    /// A valid text with one stretch replaced: an answer, and every error in the file's order and lines.
    #[test]
    fn damaged_text_is_answered(
        from in 0..EXAMPLE.len(),
        length in 0_usize..40,
        put in "[\\[\\]\\{\\}=\"'#.,\n a-z0-9-]{0,12}",
    ) {
        let to = (from + length).min(EXAMPLE.len());
        let text = format!("{}{put}{}", &EXAMPLE[..from], &EXAMPLE[to..]);
        if let Err(errors) = parse(&text) {
            prop_assert!(!errors.is_empty());
            prop_assert!(errors.is_sorted_by_key(|error| error.line));
            let lines = text.split('\n').count();
            prop_assert!(errors.iter().all(|error| (1..=lines).contains(&error.line)));
        }
    }

    #[test]
    fn any_integer_is_in_range_or_refused(weight in any::<i128>()) {
        let parsed = parse(&with_backend(&format!("weight = {weight}")));
        prop_assert_eq!(parsed.is_ok(), (0..=65_535).contains(&weight));
    }
}

#[test]
fn the_line_of_a_key_of_the_agent_is_told_for_what_needs_a_restart() {
    let text = "# all\n[agent]\ninterfaces = [\"eth0\"]\nxdp_mode = \"auto\"\n";
    assert_eq!(line_of_agent_key(text, "interfaces"), 3);
    assert_eq!(line_of_agent_key(text, "xdp_mode"), 4);
    assert_eq!(line_of_agent_key(text, "metrics"), 2, "the table's");
    assert_eq!(line_of_agent_key("", "metrics"), 1);
}

#[test]
fn a_table_that_is_there_twice_is_named() {
    refused(
        "[agent]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"a\"\nvips = [\"192.0.2.1:80\"]\n[agent]\n",
        &["6: agent: duplicate key: remove one"],
    );
    refused(
        &with_health("fall = 2\n[service.health]\nrise = 3"),
        &["8: service[0].health: duplicate key: remove one"],
    );
}
