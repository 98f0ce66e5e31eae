//! Modes, and the ports, families and sources with them → what goes together, and what is refused.

use std::net::Ipv4Addr;

use lb_common::abi::MAX_SOURCES;

use super::*;

/// Which families of VIP, backend and source go together in which mode.
#[test]
fn families_mix_where_nothing_is_translated() {
    let (v4, v6) = ("192.0.2.1:80", "[2001:db8::1]:80");
    let service = |mode: &str, vips: &[&str], address: &str| {
        let vips: Vec<String> = vips.iter().map(|vip| format!("\"{vip}\"")).collect();
        format!(
            "{AGENT}[[service]]\nname = \"web\"\nforwarding = \"{mode}\"\nvips = [{}]\n[[service.backend]]\n\
             name = \"b1\"\naddress = \"{address}\"\n",
            vips.join(", ")
        )
    };
    for mode in ["l2-dsr", "ipip", "gue"] {
        for vips in [&[v4][..], &[v6], &[v4, v6], &[v6, v4]] {
            for address in ["10.0.0.1", "fd00::1"] {
                assert_eq!(only_service(&service(mode, vips, address)).vips.len(), vips.len());
            }
        }
    }
    assert_eq!(only_service(&service("nat", &[v4, "192.0.2.2:443"], "10.0.0.1")).backends.len(), 1);
    assert_eq!(only_service(&service("nat", &[v6, "[2001:db8::2]:443"], "fd00::1")).backends.len(), 1);
    for (vips, address, error) in [
        (
            &[v4][..],
            "fd00::1",
            "9: service[0].backend[0].address: fd00::1 and the VIP 192.0.2.1:80 are of different families",
        ),
        (
            &[v6],
            "10.0.0.1",
            "9: service[0].backend[0].address: 10.0.0.1 and the VIP [2001:db8::1]:80 are of different",
        ),
        (
            &[v4, v6],
            "10.0.0.1",
            "6: service[0].vips[1]: [2001:db8::1]:80 and 192.0.2.1:80 are of different families",
        ),
        (
            &[v6, v4],
            "10.0.0.1",
            "6: service[0].vips[1]: 192.0.2.1:80 and [2001:db8::1]:80 are of different families",
        ),
    ] {
        refused(&service("nat", vips, address), &[error]);
    }
}

/// With `nat` each backend may listen on a port of its own, and is asked there.
#[test]
fn backends_of_nat_have_ports_of_their_own() {
    let nat = |second: &str| {
        with_backend(&format!(
            "port = 8080\n[[service.backend]]\nname = \"b2\"\naddress = \"10.0.0.2\"\n{second}"
        ))
        .replace("[[service]]", "[[service]]\nforwarding = \"nat\"")
    };
    let service = only_service(&nat(""));
    let ports = |of: &dyn Fn(&Backend) -> Option<u16>| service.backends.iter().map(of).collect::<Vec<_>>();
    assert_eq!(ports(&|backend| backend.port), [Some(8080), None]);
    assert_eq!(ports(&|backend| service.probe_port(backend)), [Some(8080), Some(80)]);
    // One backend without a port, and the VIPs do not say which.
    let mixed = nat("health = 1").replace("1:80\"]", "1:80\", \"192.0.2.1:81\"]").replace("health = 1", "");
    assert_eq!(only_service(&mixed).health.probe, Probe::None);
}

#[test]
fn ports_that_would_not_be_used_are_refused() {
    let service = |mode: &str, vips: &str| {
        format!(
            "{AGENT}[[service]]\nname = \"web\"\nforwarding = \"{mode}\"\nvips = {vips}\n[[service.backend]]\n\
             name = \"b1\"\naddress = \"10.0.0.1\"\nport = 8080\n"
        )
    };
    let (one, two, same) =
        (r#"["192.0.2.1:80"]"#, r#"["192.0.2.1:80", "192.0.2.2:443"]"#, r#"["192.0.2.1:8080"]"#);
    let every = r#"["192.0.2.1:80", "192.0.2.2:0"]"#;
    for mode in ["l2-dsr", "ipip", "gue"] {
        let only_nat = "10: service[0].backend[0].port: only nat translates ports";
        refused(&service(mode, one), &[&format!("{only_nat}, {mode} keeps the VIP's port 80; remove it")]);
        refused(&service(mode, two), &[&format!("{only_nat}, {mode} keeps the VIP's port; remove it")]);
        refused(&service(mode, every), &[only_nat]);
        assert_eq!(only_service(&service(mode, same)).backends[0].port, None);
    }
    for vips in [one, two, same] {
        assert_eq!(only_service(&service("nat", vips)).backends[0].port, Some(8080));
    }
    refused(
        &service("nat", every),
        &["10: service[0].backend[0].port: the VIP 192.0.2.2:0 stands for every port"],
    );
    assert_eq!(only_service(&service("nat", every).replace("port = 8080\n", "")).backends[0].port, None);
}

#[test]
fn sources_are_addresses_or_prefixes_one_or_more() {
    let agent =
        |keys: &str| parse(&with_agent(keys)).unwrap_or_else(|errors| panic!("{keys}: {errors:#?}")).agent;
    for (text, expected) in [
        ("\"192.0.2.1\"", vec![source("192.0.2.1", 32)]),
        ("\"192.0.2.1/32\"", vec![source("192.0.2.1", 32)]),
        ("[\"192.0.0.0/16\", \"192.0.2.1\"]", vec![source("192.0.0.0", 16), source("192.0.2.1", 32)]),
    ] {
        assert_eq!(agent(&format!("source_v4 = {text}")).source_v4, expected, "{text}");
    }
    for (text, expected) in [
        ("\"2001:db8::1\"", vec![source("2001:db8::1", 128)]),
        ("[\"2001:db8::/64\"]", vec![source("2001:db8::", 64)]),
        ("\"2001:db8::fffe/127\"", vec![source("2001:db8::fffe", 127)]),
    ] {
        assert_eq!(agent(&format!("source_v6 = {text}")).source_v6, expected, "{text}");
    }
    let most: Vec<String> = (0..MAX_SOURCES).map(|n| format!("\"192.0.2.{n}\"")).collect();
    assert_eq!(agent(&format!("source_v4 = [{}]", most.join(","))).source_v4.len(), MAX_SOURCES);
}

#[test]
fn a_source_contains_its_prefix_and_no_more() {
    let of = |address: &str, prefix, other: &str| source(address, prefix).contains(other.parse().unwrap());
    assert!(of("192.0.2.16", 28, "192.0.2.31") && of("192.0.2.16", 28, "192.0.2.16"));
    assert!(!of("192.0.2.16", 28, "192.0.2.32") && !of("192.0.2.16", 28, "192.0.2.15"));
    assert!(of("192.0.2.1", 32, "192.0.2.1") && !of("192.0.2.1", 32, "192.0.2.0"));
    assert!(of("2001:db8::", 64, "2001:db8::ffff:0:0:1") && !of("2001:db8::", 64, "2001:db8:0:1::"));
    assert!(!of("2001:db8::1", 128, "192.0.2.1"));
    assert_eq!(source("192.0.2.16", 28).to_string(), "192.0.2.16/28");
    assert_eq!(source("2001:db8::1", 128).to_string(), "2001:db8::1");
}

#[test]
fn wrong_sources_are_refused() {
    let many: Vec<String> = (0..17).map(|n| format!("\"192.0.2.{n}\"")).collect();
    let many = format!("[{}]", many.join(","));
    for (value, error) in [
        ("1", "3: agent.source_v4: expected a string in quotes, found the integer 1"),
        ("[]", "3: agent.source_v4: is empty; write one or more, such as \"192.0.2.1\" or \"192.0.2.0/28\""),
        ("[\"192.0.2.1\",\n7]", "4: agent.source_v4[1]: expected a string in quotes, found the integer 7"),
        ("\"eth0\"", "3: agent.source_v4: expected an IPv4 address or prefix, such as"),
        ("\"192.0.2.1:80\"", "3: agent.source_v4: expected an IPv4 address or prefix"),
        ("\"192.0.2.0/\"", "3: agent.source_v4: expected an IPv4 address or prefix"),
        ("\"192.0.2.0/+28\"", "3: agent.source_v4: expected an IPv4 address or prefix"),
        ("\"192.0.2.0/28/28\"", "3: agent.source_v4: expected an IPv4 address or prefix"),
        ("\"192.0.0.0/15\"", "3: agent.source_v4: the length of a prefix must be 16 to 32, not 15"),
        ("\"192.0.2.0/33\"", "3: agent.source_v4: the length of a prefix must be 16 to 32, not 33"),
        ("\"192.0.2.0/999\"", "3: agent.source_v4: the length of a prefix must be 16 to 32, not 999"),
        (
            "\"192.0.2.1/28\"",
            "3: agent.source_v4: \"192.0.2.1/28\" has host bits set; write \"192.0.2.0/28\"",
        ),
        ("\"0.0.0.0/16\"", "3: agent.source_v4: 0.0.0.0 is the unspecified address"),
        ("\"127.0.0.1\"", "3: agent.source_v4: 127.0.0.1 is a loopback address"),
        ("[\"224.0.0.0/16\"]", "3: agent.source_v4[0]: 224.0.0.0 is a multicast address"),
        ("\"255.255.255.255\"", "3: agent.source_v4: 255.255.255.255 is the broadcast address"),
        ("\"2001:db8::1\"", "3: agent.source_v4: \"2001:db8::1\" is IPv6; write it to agent.source_v6"),
        ("[\"192.0.2.1\", \"192.0.2.1/32\"]", "3: agent.source_v4[1]: 192.0.2.1 is listed twice"),
        (many.as_str(), "3: agent.source_v4: at most 16 sources, not 17"),
    ] {
        refused(&with_agent(&format!("source_v4 = {value}")), &[error]);
    }
    for (value, error) in [
        ("\"192.0.2.1\"", "3: agent.source_v6: \"192.0.2.1\" is IPv4; write it to agent.source_v4"),
        ("\"2001:db8::/63\"", "3: agent.source_v6: the length of a prefix must be 64 to 128, not 63"),
        ("\"2001:db8::/129\"", "3: agent.source_v6: the length of a prefix must be 64 to 128, not 129"),
        (
            "\"2001:db8::1/64\"",
            "3: agent.source_v6: \"2001:db8::1/64\" has host bits set; write \"2001:db8::/64\"",
        ),
        ("\"fe80::/64\"", "3: agent.source_v6: fe80:: is a link-local address"),
        ("\"::ffff:192.0.2.1\"", "3: agent.source_v6: ::ffff:192.0.2.1 is an IPv4 address in IPv6 notation"),
        (
            "\"2001:db8::1%eth0\"",
            "3: agent.source_v6: expected an IPv6 address or prefix, such as \"2001:db8::1\"",
        ),
    ] {
        refused(&with_agent(&format!("source_v6 = {value}")), &[error]);
    }
}

#[test]
fn sources_go_with_the_services() {
    let file =
        |sources: &str, service: &str| format!("{AGENT}{sources}\n[[service]]\nname = \"web\"\n{service}\n");
    let (v4, v6) = ("vips = [\"192.0.2.1:80\"]", "vips = [\"[2001:db8::1]:80\"]");
    for (sources, service, error) in [
        (
            "source_v4 = \"192.0.2.1\"",
            v4,
            "3: agent.source_v4: 192.0.2.1 is a VIP of service[0] \"web\", line 4",
        ),
        (
            "source_v4 = [\"192.0.3.1\", \"192.0.2.0/28\"]",
            v4,
            "3: agent.source_v4[1]: 192.0.2.0/28 contains 192.0.2.1, a VIP",
        ),
        (
            "source_v6 = \"2001:db8::/64\"",
            v6,
            "3: agent.source_v6: 2001:db8::/64 contains 2001:db8::1, a VIP",
        ),
    ] {
        refused(&file(sources, service), &[error]);
    }
    for (sources, service) in [
        ("source_v4 = \"192.0.2.2\"", v4),
        ("source_v4 = \"192.0.2.16/28\"", v4),
        ("source_v6 = \"2001:db8:0:1::/64\"", v6),
    ] {
        assert_eq!(errors(&file(sources, service)), [""; 0]);
    }
    let nat = |vips: &str| format!("{vips}\nforwarding = \"nat\"");
    for (sources, vips, key) in [
        ("source_v4 = \"198.51.100.0/28\"", v4, "source_v4"),
        ("source_v6 = [\"2001:db8:1::/64\", \"2001:db8:2::/127\"]", v6, "source_v6"),
    ] {
        let error = format!(
            "7: service[0].forwarding: nat needs an address to translate clients to, and agent.{key} has only"
        );
        refused(&file(sources, &nat(vips)), &[&error]);
    }
    for (sources, vips) in [
        ("", v4),
        ("source_v4 = \"198.51.100.1\"", v4),
        ("source_v4 = [\"198.51.100.0/28\", \"198.51.100.1/32\"]", v4),
        // What the other family has does not matter.
        ("source_v6 = \"2001:db8:1::/64\"", v4),
        ("source_v4 = \"198.51.100.0/28\"", v6),
    ] {
        assert_eq!(errors(&file(sources, &nat(vips))), [""; 0]);
    }
}

proptest! {
    /// A source is taken if and only if it is a unicast address, or a prefix of the right length and nothing behind it.
    #[test]
    fn any_source_is_right_or_refused(bits in any::<u32>(), zeros in 0_u32..=32, prefix in any::<u8>()) {
        let address = Ipv4Addr::from_bits(bits.checked_shl(zeros).unwrap_or(0));
        let unicast = !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || address.is_broadcast());
        let fits = (16..=32).contains(&prefix) && address.to_bits().trailing_zeros() + u32::from(prefix) >= 32;
        let parsed = parse(&with_agent(&format!("source_v4 = \"{address}/{prefix}\"")));
        prop_assert_eq!(parsed.is_ok(), unicast && fits);
    }
}
