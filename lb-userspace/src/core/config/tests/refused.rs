//! One wrong value at a time → exactly one error, at its line and place.

use lb_common::abi::{MAX_BACKENDS, MAX_SERVICES};

use super::*;

#[test]
fn wrong_agents_are_refused() {
    let interfaces = |list: &str| format!("[agent]\ninterfaces = {list}\n");
    let many: Vec<String> = (0..17).map(|n| format!("\"eth{n}\"")).collect();
    for (text, error) in [
        (String::new(), "1: agent: missing; add an [agent] section"),
        ("agent = 1".to_owned(), "1: agent: expected a table, found the integer 1; write [agent]"),
        ("[[agent]]".to_owned(), "1: agent: expected a table, found an array; write [agent]"),
        ("\n[agent]".to_owned(), "2: agent.interfaces: missing; name at least one network interface"),
        (interfaces("[]"), "2: agent.interfaces: is empty; name at least one"),
        (interfaces("\"eth0\""), "2: agent.interfaces: expected an array, found the string \"eth0\""),
        (
            interfaces("[\n\"eth0\",\n7]"),
            "4: agent.interfaces[1]: expected a string in quotes, found the integer 7",
        ),
        (interfaces("[\"a\", \"a\"]"), "2: agent.interfaces[1]: \"a\" is listed twice"),
        (interfaces("[\"\"]"), "2: agent.interfaces[0]: an interface name is 1 to 15 bytes"),
        (interfaces("[\"sixteen-bytes-xx\"]"), "2: agent.interfaces[0]: an interface name is 1 to 15 bytes"),
        (interfaces("[\"a b\"]"), "2: agent.interfaces[0]: an interface name has no spaces"),
        (interfaces("[\"a/b\"]"), "2: agent.interfaces[0]: an interface name has no spaces"),
        (interfaces("[\"..\"]"), "2: agent.interfaces[0]: an interface name has no spaces"),
        (interfaces(&format!("[{}]", many.join(","))), "2: agent.interfaces: at most 16 interfaces, not 17"),
        (
            with_agent("xdp_mode = \"drvier\""),
            "3: agent.xdp_mode: \"drvier\" is not known; did you mean \"driver\"?",
        ),
        (
            with_agent("xdp_mode = \"x\""),
            "3: agent.xdp_mode: \"x\" is not known; known here: auto, driver, generic",
        ),
        (with_agent("metrics = \"localhost:9400\""), "3: agent.metrics: expected an IP address and a port"),
        (
            with_agent("flow_table_size = 4095"),
            "3: agent.flow_table_size: must be 4096 to 67108864, not 4095",
        ),
        (with_agent("flow_table_size = 67108865"), "3: agent.flow_table_size: must be 4096 to 67108864"),
        (with_agent("ring_seed = -1"), "3: agent.ring_seed: must be 0 to 9223372036854775807, not -1"),
        (with_agent("ring_seed = 9999999999999999999999"), "3: agent.ring_seed: must be 0 to"),
        (with_agent("ring_seed = \"1\""), "3: agent.ring_seed: expected a whole number without quotes"),
        (with_agent("nat_table_size = 1023"), "3: agent.nat_table_size: must be 1024 to 4194304, not 1023"),
        (with_agent("nat_table_size = 4194305"), "3: agent.nat_table_size: must be 1024 to 4194304"),
        (
            with_agent("oversized = \"fragment\""),
            "3: agent.oversized: \"fragment\" is not known; known here: drop, reply",
        ),
        (
            with_agent("time_openings = 12"),
            "3: agent.time_openings: must be a power of two up to 1024, or 0 for none",
        ),
        (with_agent("time_openings = 2048"), "3: agent.time_openings: must be 0 to 1024, not 2048"),
        (with_agent("metrisc = 1"), "3: agent.metrisc: unknown key; did you mean \"metrics\"?"),
        (with_agent("flwo_tabel_siez = 1"), "3: agent.flwo_tabel_siez: unknown key; known here: interfaces"),
        (with_agent("x = 1"), "3: agent.x: unknown key; known here: interfaces, xdp_mode"),
        (with_agent("\"a b\" = 1"), "3: agent.\"a b\": unknown key"),
        (with_agent("[servise]"), "3: servise: unknown key; did you mean \"service\"?"),
    ] {
        refused(&text, &[error]);
    }
    assert_eq!(parse(&with_agent("flow_table_size = 0x1000")).unwrap().agent.flow_table_size, 4_096);
    assert_eq!(parse(&with_agent("flow_table_size = 67_108_864")).unwrap().agent.flow_table_size, 67_108_864);
    assert_eq!(
        parse(&with_agent("ring_seed = 9223372036854775807")).unwrap().agent.ring_seed,
        i64::MAX.unsigned_abs()
    );
}

#[test]
fn wrong_vips_are_refused() {
    let vips = |list: &str| format!("{AGENT}[[service]]\nname = \"web\"\nvips = {list}");
    for (text, error) in [
        (vips("[]"), "5: service[0].vips: is empty"),
        (vips("[\"192.0.2.1\"]"), "5: service[0].vips[0]: needs a port; write \"192.0.2.1:80\""),
        (vips("[\"web:80\"]"), "5: service[0].vips[0]: expected address:port"),
        (vips("[\"192.0.2.1:65536\"]"), "5: service[0].vips[0]: expected address:port"),
        (
            vips("[\"2001:db8::10\"]"),
            "5: service[0].vips[0]: needs a port; write \"[2001:db8::10]:80\", or \"[2001:db8::10]:0\"",
        ),
        (
            vips("[\"2001:db8::50:443\"]"),
            "5: service[0].vips[0]: needs a port; write \"[2001:db8::50:443]:80\", or \"[2001:db8::50:443]:0\" for every port; \
             or \"[2001:db8::50]:443\", if 443 is the port and not a part of the address",
        ),
        (
            vips("[\"[2001:db8::10]\"]"),
            "5: service[0].vips[0]: expected address:port, such as \"203.0.113.10:80\" or",
        ),
        (vips("[\"[::]:80\"]"), "5: service[0].vips[0]: :: is the unspecified address"),
        (vips("[\"[::1]:80\"]"), "5: service[0].vips[0]: ::1 is a loopback address"),
        (vips("[\"[ff02::1]:80\"]"), "5: service[0].vips[0]: ff02::1 is a multicast address"),
        (vips("[\"[fe80::1]:80\"]"), "5: service[0].vips[0]: fe80::1 is a link-local address"),
        (vips("[\"[febf::1%2]:80\"]"), "5: service[0].vips[0]: febf::1 is a link-local address"),
        (vips("[\"[2001:db8::1%2]:80\"]"), "5: service[0].vips[0]: \"[2001:db8::1%2]:80\" has a zone"),
        (
            vips("[\"[::ffff:192.0.2.1]:80\"]"),
            "5: service[0].vips[0]: ::ffff:192.0.2.1 is an IPv4 address in IPv6 notation; write 192.0.2.1",
        ),
        (
            vips("[\"[2001:db8::1]:80\", \"[2001:DB8:0::1]:80\"]"),
            "5: service[0].vips[1]: [2001:db8::1]:80 is already used by service[0] \"web\", line 3",
        ),
        (vips("[\"0.0.0.0:80\"]"), "5: service[0].vips[0]: 0.0.0.0 is the unspecified address"),
        (vips("[\"127.0.0.1:80\"]"), "5: service[0].vips[0]: 127.0.0.1 is a loopback address"),
        (vips("[\"224.0.0.1:80\"]"), "5: service[0].vips[0]: 224.0.0.1 is a multicast address"),
        (vips("[\"255.255.255.255:80\"]"), "5: service[0].vips[0]: 255.255.255.255 is the broadcast address"),
        (
            vips("[\"192.0.2.1:80\",\n\"192.0.2.1:80\"]"),
            "6: service[0].vips[1]: 192.0.2.1:80 is already used by service[0] \"web\", line 3",
        ),
    ] {
        refused(&text, &[error]);
    }
}

#[test]
fn wrong_services_are_refused() {
    for (text, error) in [
        (with_agent("[service]"), "3: service: expected an array of tables; write [[service]]"),
        (with_agent("service = [1]"), "3: agent.service: unknown key"),
        (format!("service = [1]\n{AGENT}"), "1: service[0]: expected a table, found the integer 1"),
        (format!("{AGENT}[[service]]\nvips = [\"192.0.2.1:80\"]"), "3: service[0].name: missing"),
        (format!("{AGENT}[[service]]\nname = \"web\""), "3: service[0].vips: missing"),
        (
            format!("{AGENT}[[service]]\nname = \"a b\"\nvips = [\"192.0.2.1:80\"]"),
            "4: service[0].name: a name is",
        ),
        (
            format!("{AGENT}[[service]]\nname = \"\"\nvips = [\"192.0.2.1:80\"]"),
            "4: service[0].name: a name is",
        ),
        (with_service("protocol = \"sctp\""), "6: service[0].protocol: \"sctp\" is not known"),
        (
            with_service("forwarding = \"l2dsr\""),
            "6: service[0].forwarding: \"l2dsr\" is not known; did you mean",
        ),
        (with_service("affinity = \"none\""), "6: service[0].affinity: \"none\" is not known"),
        (with_service("all_down = \"open\""), "6: service[0].all_down: \"open\" is not known"),
        (
            with_service("min_healthy = 1"),
            "6: service[0].min_healthy: must be at most the number of backends, 0",
        ),
        (with_service("min_healthy = -1"), "6: service[0].min_healthy: must be 0 to"),
        (
            with_service("health = 1"),
            "6: service[0].health: expected a table, found the integer 1; write [service.health]",
        ),
        (
            with_service("backend = 1"),
            "6: service[0].backend: expected an array of tables; write [[service.backend]]",
        ),
        (with_service("wieght = 1"), "6: service[0].wieght: unknown key"),
    ] {
        refused(&text, &[error]);
    }
    assert_eq!(
        only_service(&with_backend("").replace(
            "80\"]",
            "80\"]
min_healthy = 1"
        ))
        .min_healthy,
        1
    );
}

#[test]
fn wrong_health_checks_are_refused() {
    for (keys, error) in [
        ("type = \"htpp\"", "7: service[0].health.type: \"htpp\" is not known; did you mean \"http\"?"),
        ("port = 0", "7: service[0].health.port: must be 1 to 65535, not 0"),
        ("port = 65536", "7: service[0].health.port: must be 1 to 65535, not 65536"),
        ("path = \"/\"", "7: service[0].health.path: only http checks have it"),
        ("host = \"a.example\"", "7: service[0].health.host: only http checks have it"),
        ("expect = \"200\"", "7: service[0].health.expect: only http checks have it"),
        ("via = \"vpi\"", "7: service[0].health.via: \"vpi\" is not known; did you mean \"vip\"?"),
        (
            "passive = \"loud\"",
            "7: service[0].health.passive: \"loud\" is not known; known here: off, event, fail",
        ),
        (
            "type = \"none\"\npassive = \"fail\"",
            "8: service[0].health.passive: \"fail\" needs checks, which bring a backend back",
        ),
        ("body = \"ok\"", "7: service[0].health.body: only http checks have it"),
        ("ca = \"/ca.pem\"", "7: service[0].health.ca: only https checks have it"),
        ("hold_down = \"61m\"", "7: service[0].health.hold_down: must be 0s to 60m, not 61m"),
        (
            "hold_down_max = \"9s\"",
            "7: service[0].health.hold_down_max: must be at least hold_down, 10s, not 9s",
        ),
        ("interval = \"99ms\"", "7: service[0].health.interval: must be 100ms to 60m, not 99ms"),
        ("interval = \"61m\"", "7: service[0].health.interval: must be 100ms to 60m, not 61m"),
        ("interval = \"99999999999999999999s\"", "7: service[0].health.interval: must be 100ms to 60m"),
        ("interval = 2", "7: service[0].health.interval: expected a duration in quotes, such as \"2s\""),
        ("interval = \"2\"", "7: service[0].health.interval: \"2\" is not a duration; write a whole number"),
        ("timeout = \"0s\"", "7: service[0].health.timeout: must be 1ms to 60m, not 0s"),
        (
            "timeout = \"2001ms\"",
            "7: service[0].health.timeout: must be at most the interval, 2s, not 2001ms",
        ),
        ("rise = 0", "7: service[0].health.rise: must be 1 to 100, not 0"),
        ("rise = 101", "7: service[0].health.rise: must be 1 to 100, not 101"),
        ("fall = 0", "7: service[0].health.fall: must be 1 to 100, not 0"),
        (
            "fall = 1.5",
            "7: service[0].health.fall: expected a whole number without quotes, found the number 1.5",
        ),
        ("slow_start = \"61m\"", "7: service[0].health.slow_start: must be 0s to 60m, not 61m"),
        ("hots = \"a\"", "7: service[0].health.hots: unknown key; did you mean \"host\"?"),
    ] {
        refused(&with_health(keys), &[error]);
    }
    let long = format!("path = \"/{}\"", "a".repeat(1_024));
    for (keys, error) in [
        (long.as_str(), "8: service[0].health.path: a path begins with '/' and is at most 1024 bytes"),
        ("path = \"healthz\"", "8: service[0].health.path: a path begins with '/'"),
        ("path = \"/a b\"", "8: service[0].health.path: a path begins with '/'"),
        ("path = \"/\\r\\nX: y\"", "8: service[0].health.path: a path begins with '/'"),
        ("host = \"\"", "8: service[0].health.host: expected a host name"),
        ("host = \"a\\r\\nX: y\"", "8: service[0].health.host: expected a host name"),
    ] {
        refused(&with_health(&format!("type = \"http\"\n{keys}")), &[error]);
    }
    for (keys, error) in [
        ("ca = \"ca.pem\"", "8: service[0].health.ca: expected the path of a file from the root, such as"),
        ("verify = \"no\"", "8: service[0].health.verify: expected true or false without quotes, found"),
        ("verify = false\nca = \"/ca.pem\"", "9: service[0].health.ca: is not asked when verify = false"),
        ("body = \"\"", "8: service[0].health.body: expected 1 to 1024 bytes that the body is to contain"),
    ] {
        refused(&with_health(&format!("type = \"https\"\n{keys}")), &[error]);
    }
    refused(
        &format!("{}[service.health]\nvia = \"vip\"\n", with_backend("").replace("10.0.0.1", "2001:db8::1")),
        &[
            "11: service[0].health.via: \"vip\" needs a VIP of each backend's family: b1 has an IPv6 address and all VIPs",
        ],
    );
}

#[test]
fn wrong_backends_are_refused() {
    let address =
        |address: &str| with_service(&format!("[[service.backend]]\nname = \"b1\"\naddress = \"{address}\""));
    let second = |name: &str, address: &str| {
        with_backend(&format!("[[service.backend]]\nname = \"{name}\"\naddress = \"{address}\""))
    };
    for (text, error) in [
        (
            with_service("[[service.backend]]\naddress = \"10.0.0.1\""),
            "6: service[0].backend[0].name: missing",
        ),
        (with_service("[[service.backend]]\nname = \"b1\""), "6: service[0].backend[0].address: missing"),
        (second("b1", "10.0.0.2"), "10: service[0].backend[1].name: \"b1\" is already used by backend[0]"),
        (
            second("b2", "10.0.0.1"),
            "11: service[0].backend[1].address: 10.0.0.1 is already used by backend[0]",
        ),
        (second("b/2", "10.0.0.2"), "10: service[0].backend[1].name: a name is 1 to 63"),
        (second(&"b".repeat(64), "10.0.0.2"), "10: service[0].backend[1].name: a name is 1 to 63"),
        (address("192.0.2.1"), "8: service[0].backend[0].address: 192.0.2.1 is this service's VIP"),
        (address("10.0.0.1:80"), "8: service[0].backend[0].address: \"10.0.0.1:80\" has a port"),
        (address("web1"), "8: service[0].backend[0].address: expected an IP address"),
        (address("[2001:db8::1]"), "8: service[0].backend[0].address: expected an IP address"),
        (address("[2001:db8::1]:80"), "8: service[0].backend[0].address: \"[2001:db8::1]:80\" has a port"),
        (address("::"), "8: service[0].backend[0].address: :: is the unspecified address"),
        (address("::1"), "8: service[0].backend[0].address: ::1 is a loopback address"),
        (address("ff05::2"), "8: service[0].backend[0].address: ff05::2 is a multicast address"),
        (address("fe80::1"), "8: service[0].backend[0].address: fe80::1 is a link-local address"),
        (
            address("::ffff:10.0.0.1"),
            "8: service[0].backend[0].address: ::ffff:10.0.0.1 is an IPv4 address in IPv6 notation; write 10.0.0.1",
        ),
        (address("224.0.0.1"), "8: service[0].backend[0].address: 224.0.0.1 is a multicast address"),
        (
            with_backend("port = 8080"),
            "9: service[0].backend[0].port: only nat translates ports, l2-dsr keeps",
        ),
        (with_backend("port = 0"), "9: service[0].backend[0].port: must be 1 to 65535, not 0"),
        (with_backend("weight = 65536"), "9: service[0].backend[0].weight: must be 0 to 65535, not 65536"),
        (with_backend("weight = -1"), "9: service[0].backend[0].weight: must be 0 to 65535, not -1"),
        (
            with_backend("weight = \"1\""),
            "9: service[0].backend[0].weight: expected a whole number without quotes",
        ),
        (with_backend("state = \"off\""), "9: service[0].backend[0].state: \"off\" is not known"),
        (
            with_backend("state = \"drained\""),
            "9: service[0].backend[0].state: \"drained\" is not known; did you mean",
        ),
        (
            with_backend("wieght = 1"),
            "9: service[0].backend[0].wieght: unknown key; did you mean \"weight\"?",
        ),
    ] {
        refused(&text, &[error]);
    }
    refused(
        &with_backend("port = 80").replace("1:80", "1:0"),
        &["9: service[0].backend[0].port: only nat translates ports"],
    );
    assert_eq!(only_service(&with_backend("port = 80\nweight = 0")).backends[0].weight, 0);
}

#[test]
fn names_and_vips_are_unique_across_services() {
    let service = |name: &str, vip: &str, protocol: &str| {
        format!("[[service]]\nname = \"{name}\"\nvips = [\"{vip}\"]\nprotocol = \"{protocol}\"\n")
    };
    let pair = |second: String| format!("{AGENT}{}{second}", service("a", "192.0.2.1:443", "tcp"));
    refused(
        &pair(service("a", "192.0.2.1:443", "tcp")),
        &[
            "8: service[1].name: \"a\" is already used by service[0] \"a\", line 3; choose another",
            "9: service[1].vips[0]: 192.0.2.1:443 is already used by service[0] \"a\", line 3; a VIP belongs",
        ],
    );
    for second in [("192.0.2.1:443", "udp"), ("192.0.2.1:0", "tcp"), ("192.0.2.2:443", "tcp")] {
        assert_eq!(parse(&pair(service("b", second.0, second.1))).map(|config| config.services.len()), Ok(2));
    }
}

#[test]
fn there_are_limits_to_services_and_backends() {
    let services = |count: usize| {
        let mut text = AGENT.to_owned();
        for n in 0..count {
            text +=
                &format!("[[service]]\nname = \"s{n}\"\nvips = [\"192.0.2.{}:{}\"]\n", n % 250, 1 + n / 250);
        }
        text
    };
    assert_eq!(
        parse(&services(MAX_SERVICES as usize)).map(|config| config.services.len()),
        Ok(MAX_SERVICES as usize)
    );
    refused(&services(MAX_SERVICES as usize + 1), &["12291: service[4096]: more than 4096 services"]);

    let backends = |count: usize| {
        let mut text = with_service("");
        for n in 0..count {
            let (high, low) = (n / 250, 1 + n % 250);
            text += &format!(
                "[[service.backend]]\nname = \"b{n}\"\naddress = \"10.{}.{}.{low}\"\n",
                high / 250,
                high % 250
            );
        }
        text
    };
    assert_eq!(only_service(&backends(MAX_BACKENDS as usize)).backends.len(), MAX_BACKENDS as usize);
    refused(&backends(MAX_BACKENDS as usize + 1), &["7: service[0].backend: more than 65534 backends"]);
}
