use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn prefixes_are_read_and_shown() {
    for (text, shown) in [
        ("10.0.1.0/24", "10.0.1.0/24"),
        ("10.0.1.2", "10.0.1.2/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("2001:db8::1", "2001:db8::1/128"),
        ("::/0", "::/0"),
    ] {
        assert_eq!(text.parse::<Prefix>().unwrap().to_string(), shown);
    }
}

#[test]
fn what_is_no_prefix_is_refused_with_the_reason() {
    for (text, reason) in [
        ("", "not an IP address"),
        ("10.0.1", "not an IP address"),
        ("10.0.1.0/", "0 to 32"),
        ("10.0.1.0/33", "an IPv4 prefix is 0 to 32"),
        ("10.0.1.0/64", "an IPv4 prefix is 0 to 32"),
        ("10.0.1.0/-1", "0 to 32"),
        ("2001:db8::/129", "an IPv6 prefix is 0 to 128"),
        ("10.0.1.2/24", "write 10.0.1.0/24 or 10.0.1.2"),
        ("2001:db8::1/64", "write 2001:db8::/64 or 2001:db8::1"),
        ("::ffff:10.0.1.2/128", "write 10.0.1.2 "),
    ] {
        let error = text.parse::<Prefix>().unwrap_err();
        assert!(error.contains(reason), "{text}: {error}");
    }
}

#[test]
fn a_vip_is_an_address_that_customers_can_send_to() {
    assert_eq!(parse_vip("203.0.113.10"), Ok(ip("203.0.113.10")));
    assert_eq!(parse_vip("2001:db8::10"), Ok(ip("2001:db8::10")));
    for text in
        ["0.0.0.0", "::", "127.0.0.1", "::1", "224.0.0.1", "ff02::1", "203.0.113.10:80", "shop.example"]
    {
        assert!(parse_vip(text).is_err(), "{text}");
    }
}

fn host() -> Vec<HostAddress> {
    let address = |text, on_loopback| HostAddress { address: ip(text), on_loopback };
    vec![
        address("127.0.0.1", true),
        address("::1", true),
        address("203.0.113.10", true),
        address("2001:db8::10", true),
        address("10.0.1.11", false),
        address("fe80::1", false),
    ]
}

#[test]
fn vips_are_those_on_the_loopback_interface_unless_named() {
    let found = roles(&host(), &[]);
    let local = ["10.0.1.11", "203.0.113.10", "2001:db8::10", "fe80::1"].map(ip);
    assert_eq!(with_roles(&found, DecapRoles::LOCAL), local);
    assert_eq!(with_roles(&found, DecapRoles::VIP), ["203.0.113.10", "2001:db8::10"].map(ip));
    // One that is named need not be an address of this host, and those that are not named are no VIPs.
    let named = roles(&host(), &[ip("203.0.113.10"), ip("203.0.113.99")]);
    assert_eq!(with_roles(&named, DecapRoles::LOCAL), local);
    assert_eq!(with_roles(&named, DecapRoles::VIP), ["203.0.113.10", "203.0.113.99"].map(ip));
    assert_eq!(with_roles(&named, DecapRoles::LOCAL.and(DecapRoles::VIP)), [ip("203.0.113.10")]);
}

/// A thousand addresses fit; what does not is refused, not left out.
#[test]
fn the_table_holds_every_address_or_is_refused() {
    let many = |count: u32| -> Roles {
        (0..count).map(|n| (Address::v4((0x0a00_0000 + n * 7).to_be_bytes()), DecapRoles::LOCAL)).collect()
    };
    let table = table(&many(1_000)).unwrap();
    let mut held: Vec<_> =
        table.iter().flat_map(|bucket| bucket.slots).filter(|slot| !slot.is_empty()).collect();
    held.sort_by_key(|slot| slot.address);
    assert!(held.iter().map(|slot| (slot.address, DecapRoles(slot.service.into()))).eq(many(1_000)));
    assert!(held.iter().all(|slot| slot.is(slot.address, DecapRoles::key(slot.address))));
    assert!(super::table(&many(3_000)).is_none());
}

#[test]
fn counters_are_told_by_name() {
    let mut counted = Verdicts::default();
    counted.packets[Verdict::DropSource.index()] = 7;
    let named = verdicts(&counted);
    assert_eq!(named.len(), Verdict::ALL.len());
    assert_eq!((named["drop.source"], named["decapsulated.ipip"]), (7, 0));
}
