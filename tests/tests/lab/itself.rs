//! The lab without Sluice: hosts reach what they should, and nothing else, and nothing is left behind.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use lb_tests::{
    BACKEND_PORT, CDN_NAME, Capture, Host, HttpConnection, Lab, Load, SHOP_NAME, TcpEcho, Topology, UdpEcho,
    echo_datagram, send_frame, vlan_tagged, wait_until,
};

#[test]
fn web_servers_serve_their_page_and_the_app_tier() {
    let start = Instant::now();
    let lab = Lab::builder().web_servers(3).start().expect("a lab");
    eprintln!("the lab took {:?}", start.elapsed());
    for web in lab.webs() {
        let mut connection =
            HttpConnection::open(lab.customer(), SocketAddr::from((web.address(), 80)), None)
                .expect("connect");
        let page = connection.get("/").expect("page");
        assert_eq!((page.status, page.served_by()), (200, web.name()));
        assert!(page.text().contains(web.name()));
        let mut apps = [false, false];
        for _ in 0..4 {
            let api = connection.get("/api/v1/orders").expect("api");
            assert_eq!((api.status, api.served_by()), (200, web.name()));
            assert!(api.text().contains("\"path\":\"/api/v1/orders\""), "{}", api.text());
            apps[usize::from(api.text().contains("app2"))] = true;
        }
        assert_eq!(apps, [true, true], "both app servers are asked");
        assert_eq!(connection.get("/healthz").expect("healthz").text(), "ok\n");
    }
    let authority = lab.authority().to_str().expect("path").to_owned();
    let there = format!("{SHOP_NAME}:443:{}", lab.web(0).address());
    let shop = format!("https://{SHOP_NAME}/");
    let page = lab.customer().curl(&["--cacert", &authority, "--resolve", &there, &shop]).expect("https");
    assert_eq!(page.served_by(), "web1");
}

#[test]
fn hosts_serve_and_reach_each_other_in_both_families() {
    let lab = Lab::builder().start().expect("a lab");
    for (web, address) in lab.webs().iter().flat_map(|web| web.both_addresses().map(|address| (web, address)))
    {
        let to = SocketAddr::new(address, 80);
        for from in [lab.customer(), lab.edge()] {
            let connection = HttpConnection::open(from, to, Some(30_000)).expect("connect");
            assert_eq!(connection.get_and_close("/").expect("page").served_by(), web.name(), "{address}");
        }
        let page = lab.customer().curl(&[&format!("http://{to}/api")]).expect("curl");
        assert_eq!((page.status, page.served_by()), (200, web.name()), "{address}");
    }
    let load = Load::start(lab.customer(), SocketAddr::from((lab.web(0).address6(), 80)), "/", 1);
    wait_until("requests flow", Duration::from_secs(5), || load.done() > 20).expect("load");
    assert_eq!(load.stop().expect("report").failed, 0);
    // Only who is told where it is finds the VIP: a web server does not announce it on the segment.
    for (vip, via) in lab.both_vips(80).into_iter().zip(lab.web(1).both_addresses()) {
        let nobody = lab.customer().curl(&["--max-time", "0.5", &format!("http://{vip}/")]);
        assert!(nobody.is_err(), "{vip} is answered without Sluice");
        lab.customer().ip(&format!("route replace {} via {via}", vip.ip())).expect("ip");
        let connection = HttpConnection::open(lab.customer(), vip, None).expect("connect");
        assert_eq!(connection.get_and_close("/").expect("page").served_by(), "web2", "{vip}");
    }
}

#[test]
fn a_pulled_cable_keeps_addresses_and_routes() {
    let lab = Lab::builder().start().expect("a lab");
    let customer = lab.customer();
    customer.link_down("eth0").expect("pull");
    customer.link_up("eth0").expect("plug in");
    for address in lab.web(0).both_addresses() {
        customer.connect(SocketAddr::new(address, 80), None).expect("connect");
    }
    let output = customer.command("ip").args(["route", "get", &lab.vip6(80).ip().to_string()]).output();
    let output = output.expect("ip");
    assert!(String::from_utf8_lossy(&output.stdout).contains("via fd00:1::2"), "{output:?}");
}

/// Whether `ping` with `size` bytes in one frame that must not be fragmented comes back.
fn ping_whole(from: &Host, to: IpAddr, size: u16) -> bool {
    let mut ping = from.command("ping");
    ping.args(["-c", "1", "-W", "0.3", "-M", "do", "-s", &size.to_string(), &to.to_string()]);
    ping.output().expect("ping").status.success()
}

#[test]
fn tunnels_have_room_where_customers_have_none() {
    let lab = Lab::builder().backend_mtu(1600).start().expect("a lab");
    let web = lab.web(0);
    for address in web.both_addresses() {
        assert!(ping_whole(lab.edge(), address, 1550), "1,590 bytes and more from the edge host: {address}");
        assert!(
            !ping_whole(lab.customer(), address, 1550),
            "1,590 bytes and more from a customer: {address}"
        );
        lab.transfer(SocketAddr::new(address, 80)).expect("transfer");
    }
    for address in lab.customer().both_addresses() {
        assert!(!ping_whole(web, address, 1550), "a web server sends no more than its customers take");
        assert!(ping_whole(web, address, 1450), "{address}");
    }
}

#[test]
fn jumbo_frames_go_everywhere() {
    let lab = Lab::builder().mtu(9000).start().expect("a lab");
    for address in lab.web(0).both_addresses() {
        for from in [lab.customer(), lab.edge()] {
            assert!(ping_whole(from, address, 8900), "{} to {address}", from.name());
        }
        lab.transfer(SocketAddr::new(address, 80)).expect("transfer");
    }
    for address in lab.edge().both_addresses() {
        assert!(ping_whole(lab.customer(), address, 8900), "{address}");
    }
}

#[test]
fn web_servers_without_the_vips_serve_under_another_port_too() {
    let lab = Lab::builder().vip_on_backends(false).start().expect("a lab");
    let web = lab.web(0);
    for (vip, own) in lab.both_vips(80).into_iter().zip(web.both_addresses()) {
        assert!(web.connect(vip, None).is_err(), "{vip} is not {}'s", web.name());
        let to = SocketAddr::new(own, BACKEND_PORT);
        let connection = HttpConnection::open(lab.customer(), to, None).expect("connect");
        assert_eq!(connection.get_and_close("/").expect("page").served_by(), web.name());
    }
    // What the balancer translates to its own addresses comes back to it.
    for (address, via) in [("192.0.2.9", "via 10.0.1.2 "), ("2001:db8:192::9", "via fd00:1::2 ")] {
        let output = web.command("ip").args(["route", "get", address]).output().expect("ip");
        assert!(String::from_utf8_lossy(&output.stdout).contains(via), "{output:?}");
    }
}

#[test]
fn a_decapsulator_that_does_not_start_is_told_with_its_words() {
    let lab = Lab::builder().start().expect("a lab");
    let refused = lab.start_decap(lab.web(0), "eth7", &["--from", "10.0.1.0/24"]).expect_err("no eth7");
    let refused = format!("{refused:#}");
    assert!(refused.contains("sluice decap on web1 ended with exit status"), "{refused}");
    assert!(!lab.web(0).has_xdp("eth0"));
}

/// What `ip route get` on a host says of the way to an address.
fn way(from: &Host, to: IpAddr) -> String {
    let output = from.command("ip").args(["route", "get", &to.to_string()]).output().expect("ip");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn an_edge_host_with_two_interfaces_is_on_both_segments() {
    let lab = Lab::builder().topology(Topology::TwoInterfaces).start().expect("a lab");
    let on_link = |to, interface| {
        let way = way(lab.edge(), to);
        assert!(way.contains(&format!("dev {interface} ")) && !way.contains(" via "), "{way}");
    };
    for (address, customer) in lab.web(1).both_addresses().into_iter().zip(lab.customer().both_addresses()) {
        on_link(address, "eth1");
        on_link(customer, "eth0");
        assert!(way(lab.web(1), customer).contains(" via "), "{}", way(lab.web(1), customer));
        for from in [lab.edge(), lab.customer()] {
            let connection = HttpConnection::open(from, SocketAddr::new(address, 80), None).expect("connect");
            assert_eq!(connection.get_and_close("/").expect("page").served_by(), "web2");
        }
    }
    assert!(lab.config().to_string().contains("interfaces = [\"eth0\", \"eth1\"]"));
}

#[test]
fn a_routed_network_has_no_neighbours_but_routers() {
    let lab = Lab::builder().topology(Topology::Routed).backend_mtu(1600).start().expect("a lab");
    let edge = lab.edge();
    for (web, customer) in lab.web(0).both_addresses().into_iter().zip(lab.customer().both_addresses()) {
        for (from, to) in [
            (edge, web),
            (edge, customer),
            (lab.customer(), edge.both_addresses()[usize::from(web.is_ipv6())]),
        ] {
            assert!(way(from, to).contains(" via "), "{}", way(from, to));
            assert!(ping_whole(from, to, 1400), "{} to {to}", from.name());
        }
        assert!(ping_whole(edge, web, 1550), "room for tunnels");
        assert!(!ping_whole(edge, customer, 1550), "and none on the way to customers");
        lab.transfer(SocketAddr::new(web, 80)).expect("transfer");
    }
    let mut capture = Capture::start(edge, "eth0").expect("capture");
    let sent = lab.customer().run(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        socket.send_to(b"for the VIP", lab.vip(9000))
    });
    sent.expect("run").expect("send");
    let seen =
        capture.find(Duration::from_secs(3), |frame| frame.ends_with(b"for the VIP")).expect("capture");
    assert!(seen.is_some(), "the VIP is routed to the edge host");
}

#[test]
fn packets_too_big_for_a_narrow_link_are_answered_for() {
    let lab = Lab::builder().web_servers(1).app_servers(1).topology(Topology::Routed);
    let lab = lab.narrow_to_customers(1400).narrow_to_backends(1300).start().expect("a lab");
    let (customer, web) = (lab.customer(), lab.web(0));
    let found_out = |from: &Host, to| {
        let way = way(from, to);
        way.contains("mtu 1300").then_some(()).ok_or(way)
    };
    for (web_address, customer_address) in web.both_addresses().into_iter().zip(customer.both_addresses()) {
        let to = SocketAddr::new(web_address, 80);
        // What a host has found out also makes it ask for less.
        lab.upload(to).expect("upload");
        found_out(customer, web_address).expect("the customer is told");
        customer.forget_path_mtu().expect("forget");
        found_out(customer, web_address).expect_err("forgotten");
        found_out(web, customer_address).expect_err("the web server has not sent much");
        lab.download(to).expect("download");
        found_out(web, customer_address).expect("the web server is told");
    }
}

#[test]
fn customers_cannot_reach_the_private_segment() {
    let lab = Lab::builder().start().expect("a lab");
    for app in lab.apps() {
        let address = format!("http://{}:8080/", app.address());
        assert!(lab.customer().curl(&["--max-time", "1", &address]).is_err());
        // A customer who sends to the web server in the hope that it forwards.
        let mut route = lab.customer().command("ip");
        route.args(["route", "replace", &format!("{}/32", app.address()), "via", "10.0.1.11"]);
        assert!(route.status().expect("ip").success());
        assert!(lab.customer().curl(&["--max-time", "1", &address]).is_err());
    }
    let served = lab.web(0).connect(SocketAddr::from((lab.apps()[0].address(), 8080)), None);
    assert!(served.is_ok(), "web servers reach the app tier: {served:?}");
}

#[test]
fn the_vip_is_found_by_name_and_answered_by_nobody_without_sluice() {
    let lab = Lab::builder().start().expect("a lab");
    let output = lab.customer().command("getent").args(["hosts", SHOP_NAME]).output().expect("getent");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("203.0.113.10"), "{output:?}");
    let shop = format!("http://{SHOP_NAME}/");
    assert!(lab.customer().curl(&["--max-time", "1", &shop]).is_err());
    // No web server answers ARP for the VIP, even when a neighbour asks on the segment.
    let mut arp = lab.customer().command("ip");
    arp.args(["route", "replace", "203.0.113.10/32", "dev", "eth0"]);
    assert!(arp.status().expect("ip").success());
    assert!(lab.customer().curl(&["--max-time", "1", &shop]).is_err());
    // The CDN answers for itself: its origin cannot be reached.
    let answer = lab.customer().curl(&[&format!("http://{CDN_NAME}/")]).expect("the CDN");
    assert_eq!(answer.status, 504);
}

#[test]
fn a_killed_web_server_refuses_and_comes_back() {
    let lab = Lab::builder().start().expect("a lab");
    let address = SocketAddr::from((lab.web(0).address(), 80));
    let load = Load::start(lab.customer(), address, "/", 1);
    wait_until("requests flow", Duration::from_secs(5), || load.done() > 20).expect("load");
    let before = lab.resets_sent().expect("counters");
    lab.web(0).stop_nginx().expect("stop");
    assert!(lab.customer().connect(address, None).is_err());
    let after = lab.resets_sent().expect("counters");
    let grown: Vec<_> = after.iter().zip(&before).map(|(after, before)| after.1 > before.1).collect();
    assert_eq!(grown, [false, true, false], "edge, web1, web2: {before:?}, {after:?}");
    lab.web(0).start_nginx().expect("start");
    let before = load.done();
    wait_until("requests flow", Duration::from_secs(5), || load.done() > before + 20).expect("load");
    let report = load.stop().expect("report");
    assert!(report.failed > 0 && report.answered > 20, "{report:?}");
    assert_eq!(report.by_server.keys().collect::<Vec<_>>(), ["web1"]);
}

#[test]
fn datagrams_are_answered_with_the_servers_name() {
    let lab = Lab::builder().start().expect("a lab");
    let address = std::net::SocketAddrV4::new(lab.web(1).address(), 9000);
    let _echo = UdpEcho::start(lab.web(1), address).expect("echo");
    let socket = lab.customer().run(|| std::net::UdpSocket::bind("0.0.0.0:0")).expect("run").expect("socket");
    socket.set_read_timeout(Some(Duration::from_secs(3))).expect("timeout");
    socket.send_to(b"hello", address).expect("send");
    let mut answer = [0; 64];
    let (length, from) = socket.recv_from(&mut answer).expect("answer");
    assert_eq!((&answer[..length], from), (b"web2:hello".as_slice(), address.into()));
}

#[test]
fn a_frame_arrives_as_it_was_sent() {
    let lab = Lab::builder().start().expect("a lab");
    let mut capture = Capture::start(lab.edge(), "eth0").expect("capture");
    let mut frame = Vec::new();
    frame.extend(lab.edge().mac("eth0").expect("mac"));
    frame.extend(lab.customer().mac("eth0").expect("mac"));
    frame.extend([0x88, 0xb5]);
    frame.extend(b"a local experiment, by its EtherType");
    send_frame(lab.customer(), "eth0", &frame).expect("send");
    let seen = capture.find(Duration::from_secs(3), |seen| seen == frame).expect("capture");
    assert!(seen.is_some());
}

#[test]
fn vlan_tags_arrive_as_they_were_sent() {
    let lab = Lab::builder().start().expect("a lab");
    for (to, tags) in [
        (lab.edge(), [(0x8100, 0x6064)].as_slice()),
        (lab.web(1), &[(0x8100, 0x0007)]),
        (lab.web(1), &[(0x88a8, 0x0064), (0x8100, 0x0007)]),
        (lab.edge(), &[(0x88a8, 0x0064), (0x8100, 0x0007)]),
    ] {
        let addresses = [to.mac("eth0").expect("mac"), lab.customer().mac("eth0").expect("mac")].concat();
        let plain = [&addresses[..], &[0x88, 0xb5], b"a local experiment, tagged"].concat();
        let frame = vlan_tagged(&plain, tags);
        assert_eq!(frame.len(), plain.len() + 4 * tags.len());
        let mut capture = Capture::start(to, "eth0").expect("capture");
        send_frame(lab.customer(), "eth0", &frame).expect("send");
        let seen = capture.find(Duration::from_secs(3), |seen| seen == frame).expect("capture");
        assert!(seen.is_some(), "{tags:x?} to {}", to.name());
    }
}

#[test]
fn big_datagrams_are_echoed_whole_by_either_family() {
    let lab = Lab::builder().start().expect("a lab");
    for address in lab.web(1).both_addresses() {
        let to = SocketAddr::new(address, 9000);
        let _echo = UdpEcho::start(lab.web(1), to).expect("echo");
        for size in [1, 8_000, 30_000] {
            assert_eq!(
                echo_datagram(lab.customer(), to, size).expect("echo"),
                "web2",
                "{size} bytes to {to}"
            );
        }
        let nobody = SocketAddr::new(address, 9001);
        assert!(echo_datagram(lab.customer(), nobody, 10).is_err());
    }
}

#[test]
fn short_connections_are_counted_by_server() {
    let lab = Lab::builder().start().expect("a lab");
    let to = SocketAddr::from((lab.web(0).address6(), 80));
    let by_server = lab.short_connections(to, 100).expect("answers");
    assert_eq!(by_server, [("web1".to_owned(), 100)].into());
}

#[test]
fn many_connections_are_held_and_echoed() {
    let lab = Lab::builder().start().expect("a lab");
    for address in lab.web(0).both_addresses() {
        let to = SocketAddr::new(address, 9000);
        let server = TcpEcho::start(lab.web(0), to).expect("server");
        let held = lab.many_connections(to, 2_000, Duration::from_secs(10)).expect("connections");
        assert_eq!((held.count(), server.accepted()), (2_000, 2_000));
        held.echo(Duration::from_secs(5)).expect("echoes again");
        drop(server);
        let gone = held.echo(Duration::from_secs(5)).expect_err("without a server");
        let gone = format!("{gone:#}");
        assert!(gone.contains("on connection 0"), "{gone}");
    }
}

/// The body of the process that `nothing_is_left_behind…` kills: started by hand, it only holds a lab.
#[test]
#[ignore = "run by nothing_is_left_behind_when_the_lab_is_killed"]
fn hold_a_lab() {
    let lab = Lab::builder().start().expect("a lab");
    std::fs::create_dir_all(lab.pins().join("maps")).expect("pins");
    println!("\nholding {} {}", lab.directory().display(), lab.pins().display());
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn nothing_is_left_behind_when_the_lab_is_killed() {
    use std::io::BufRead;
    let mut holder = Command::new(std::env::current_exe().expect("this test"))
        .args(["--ignored", "--exact", "itself::hold_a_lab", "--nocapture"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("holder");
    let output = std::io::BufReader::new(holder.stdout.take().expect("stdout"));
    let line = output.lines().map_while(Result::ok).find(|line| line.starts_with("holding ")).expect("a lab");
    let paths: Vec<_> = line.split(' ').skip(1).map(std::path::PathBuf::from).collect();
    let directory = paths[0].to_str().expect("path").to_owned();
    let runs = || {
        let own = std::process::id().to_string();
        let pids = std::fs::read_dir("/proc").expect("proc").flatten().map(|entry| entry.path());
        pids.filter(|pid| !pid.ends_with(&own))
            .filter_map(|pid| std::fs::read_to_string(pid.join("cmdline")).ok())
            .any(|command| command.contains(&directory) && !command.contains("guardian"))
    };
    assert!(runs(), "the lab's servers run");
    assert!(paths.iter().all(|path| path.exists()));
    holder.kill().expect("kill");
    holder.wait().expect("wait");
    wait_until("nothing is left", Duration::from_secs(5), || {
        !runs() && paths.iter().all(|path| !path.exists())
    })
    .expect("nothing left");
}
