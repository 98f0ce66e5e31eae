//! The web console in a real Chromium on the edge host: it runs, shows what happens in time, looks right, and asks nobody else.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lb_tests::{Agent, Browser, Lab, Load, UdpEcho, echo_datagram, wait_until};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);
const CONSOLE: &str = "http://127.0.0.1:9400/";
/// What the console promises: what the agent knows is shown within this time.
const SHOWN_WITHIN_MS: u64 = 2_000;

/// Helpers within the page: a row by its name, a row's state, and when something came about.
const HELPERS: &str = r##"
    const rowOf = (name) => [...document.querySelectorAll("#rows tr.backend")].find((tr) => tr.cells[0].textContent === name);
    const stateOf = (name) => rowOf(name).cells[1].textContent;
    const column = (title) => [...document.querySelectorAll("thead th")].findIndex((th) => th.textContent === title);
    const cell = (name, title) => rowOf(name).cells[column(title)].textContent;
    const noted = { packets: new Set(), unhealthy: 0 };
    new MutationObserver(() => {
        noted.packets.add(document.getElementById("packets").textContent);
        if (!noted.unhealthy && stateOf("web1") === "unhealthy") noted.unhealthy = Date.now();
    }).observe(document.body, { subtree: true, childList: true, characterData: true });
    undefined
"##;

/// The least contrast of a text with what is behind it, by WCAG's formula, over all elements with text of their own.
const CONTRAST: &str = r#"(() => {
    const parts = (colour) => colour.match(/[\d.]+/g).map(Number);
    const light = (colour) => {
        const [r, g, b] = parts(colour).map((part) => part / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (node) => {
        const colour = getComputedStyle(node).backgroundColor;
        const seen = parts(colour)[3] !== 0;
        return seen || !node.parentElement ? colour : behind(node.parentElement);
    };
    const texts = [...document.body.querySelectorAll("*")].filter((node) =>
        node.checkVisibility() && !["OPTION", "SCRIPT"].includes(node.tagName)
        && [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()));
    const worst = texts.map((node) => {
        const [a, b] = [light(getComputedStyle(node).color), light(behind(node))].sort((a, b) => b - a);
        return [(a + 0.05) / (b + 0.05), node.outerHTML.slice(0, 80)];
    }).sort((a, b) => a[0] - b[0])[0];
    return [...worst, texts.length];
})()"#;

fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).expect("a time");
    u64::try_from(since.as_millis()).expect("a number")
}

/// Checks that find a death as quickly as they can on a busy machine, and a console.
fn start(lab: &Lab) -> Agent<'_> {
    let config = lab.config().metrics().to_string().replace("[agent]\n", "[agent]\ntime_openings = 1\n");
    let config = config.replace("\"300ms\"", "\"200ms\"").replace("fall = 3", "fall = 2");
    let agent = lab.start_agent(&config).expect("an agent");
    agent.wait_until_healthy().expect("healthy");
    agent
}

fn pictures() -> Option<PathBuf> {
    let folder = PathBuf::from(std::env::var_os("SLUICE_SCREENSHOTS")?);
    fs::create_dir_all(&folder).expect("a folder");
    Some(folder)
}

/// The page fits into windows of all widths, and can be read on either ground.
fn looks_right(browser: &mut Browser, folder: Option<&Path>) {
    let mut grounds = Vec::new();
    for (scheme, width, height) in [
        ("light", 1280, 1200),
        ("dark", 1280, 1200),
        ("light", 390, 844),
        ("dark", 390, 844),
        ("light", 320, 600),
    ] {
        browser.prefer(scheme).expect("a scheme");
        browser.resize(width, height).expect("a size");
        if let Some(folder) = folder {
            browser.screenshot(&folder.join(format!("{scheme}-{width}.png"))).expect("a picture");
        }
        let wide = "[document.documentElement, ...document.querySelectorAll('*')]
            .filter((node) => node.scrollWidth > node.clientWidth && getComputedStyle(node).overflowX !== 'visible')
            .map((node) => [node.className, node.scrollWidth, node.clientWidth, ...[...node.querySelectorAll('*')]
                .filter((inner) => inner.getBoundingClientRect().right > node.getBoundingClientRect().right)
                .map((inner) => inner.outerHTML.slice(0, 90) + inner.getBoundingClientRect().right)])";
        let scrolls = browser.evaluate(wide).expect("what scrolls");
        assert_eq!(scrolls, Value::Array(vec![]), "nothing has to be scrolled sideways at {width}");
        let width_of_page = browser.evaluate("document.documentElement.scrollWidth").expect("a width");
        assert!(width_of_page.as_u64() <= Some(width.into()), "{width_of_page} at {width}");
        let contrast = browser.evaluate(CONTRAST).expect("a contrast");
        assert!(contrast[0].as_f64() >= Some(4.5) && contrast[2].as_u64() > Some(40), "{scheme}: {contrast}");
        grounds.push(browser.evaluate("getComputedStyle(document.body).backgroundColor").expect("a colour"));
    }
    assert!(grounds[0] != grounds[1] && grounds[0] == grounds[2] && grounds[1] == grounds[3], "{grounds:?}");
    browser.prefer("light").expect("a scheme");
    browser.resize(1280, 1200).expect("a size");
}

/// Keys alone lead to the filter and out of it.
fn obeys_keys(browser: &mut Browser) {
    for key in ["/", "w", "e", "b", "2"] {
        browser.press(key).expect("a key");
    }
    browser.wait_for("!rowOf('web1') && !!rowOf('web2')", PATIENCE).expect("filtered");
    browser.press("Escape").expect("a key");
    browser.wait_for("!!rowOf('web1') && !!rowOf('web2')", PATIENCE).expect("all of them");
    browser.press("Tab").expect("a key");
    let focus = browser.evaluate("document.activeElement.id").expect("a focus");
    assert_eq!(focus, "order");
}

#[test]
fn the_console_runs_in_chromium_and_shows_what_happens() {
    let lab = Lab::builder().start().expect("a lab");
    let agent = start(&lab);
    let mut browser = Browser::start(lab.edge(), lab.directory()).expect("a browser");
    browser.open(CONSOLE).expect("the page");
    browser.wait_for("document.querySelectorAll('#rows tr.backend').length === 4", PATIENCE).expect("rows");
    browser.evaluate(HELPERS).expect("helpers");
    assert_eq!(browser.evaluate("stateOf('web1')").expect("a state"), "healthy");

    let load = Load::start(lab.customer(), lab.vip(80), "/", 1);
    browser.wait_for("noted.packets.size > 3", PATIENCE).expect("numbers that move");
    for (title, shown) in [
        ("opening", r"^\d+(\.\d)? (µs|ms|s)$"),
        ("again/s", r"^\d"),
        ("RST/s", r"^\d"),
        ("got", r"^[\d.]+ %$"),
    ] {
        browser.wait_for(&format!("/{shown}/.test(cell('web1', '{title}'))"), PATIENCE).expect(title);
    }

    lab.web(0).stop_nginx().expect("stop");
    let died = milliseconds(SystemTime::now());
    browser.wait_for("noted.unhealthy > 0", PATIENCE).expect("a death that shows");
    let shown = browser.evaluate("noted.unhealthy").expect("a time").as_u64().expect("a number");
    let known = browser.evaluate(
        "ask('events').then((all) => all.events.findLast((e) => e.event === 'health' && e.backend === 'web1' \
         && e.service === 'web').time).then(Date.parse)",
    );
    let known = known.expect("an event").as_u64().expect("a time");
    assert!(shown.saturating_sub(known) < SHOWN_WITHIN_MS, "known at {known}, shown at {shown}");
    assert!(shown.saturating_sub(died) < SHOWN_WITHIN_MS, "died before {died}, shown at {shown}");
    for shown in ["cell('web1', 'reason') === 'connection refused'", "rowOf('web1').querySelector('.bad')"] {
        browser.wait_for(&format!("!!({shown})"), PATIENCE).expect(shown);
    }
    browser.wait_for("$('events').textContent.includes('connection refused')", PATIENCE).expect("an event");
    browser.wait_for("charts[0].curve.getAttribute('d').includes('L')", PATIENCE).expect("the last hour");

    looks_right(&mut browser, pictures().as_deref());
    obeys_keys(&mut browser);
    load.stop().expect("report");
    assert_eq!(browser.complaints(), [] as [String; 0], "nothing to complain of");
    asks_nobody_else(&mut browser, &lab);

    // Then its questions fail, and the console says so.
    agent.terminate().expect("an end");
    browser.wait_for("!$('lost').hidden", PATIENCE).expect("told");
    lab.web(0).start_nginx().expect("start");
    let _agent = start(&lab);
    browser
        .wait_for("$('lost').hidden && stateOf('web1') === 'healthy'", PATIENCE)
        .expect("all is well again");
}

/// All that was asked for came from the agent, and a page that wants to ask others may not.
fn asks_nobody_else(browser: &mut Browser, lab: &Lab) {
    for path in ["", "status", "events", "trend"] {
        let address = format!("{CONSOLE}{path}");
        assert!(browser.requests().contains(&address), "{address}: {:?}", browser.requests());
    }
    let elsewhere = |requests: &[String]| {
        let own = |request: &&String| request.starts_with(CONSOLE) || request.starts_with("data:");
        requests.iter().find(|request| !own(request)).cloned()
    };
    assert_eq!(elsewhere(browser.requests()), None);
    // That a request to somebody else would have been seen, and that it is not let out.
    let other = format!("http://{}/", lab.web(1).address());
    let refused =
        format!("fetch('{other}', {{mode: 'no-cors'}}).then(() => 'sent', (error) => String(error))");
    let refused = browser.evaluate(&refused).expect("an answer");
    assert!(refused.as_str().is_some_and(|error| error.contains("TypeError")), "{refused}");
    let mut seen = Vec::new();
    wait_until("the attempt is seen", PATIENCE, || {
        seen = browser.requests().to_vec();
        seen.extend_from_slice(browser.complaints());
        seen.iter().any(|said| said.contains(&other))
    })
    .unwrap_or_else(|error| panic!("{error}: {seen:?}"));
}

const UDP_PORT: u16 = 9_000;
/// Of a datagram's content, and with its headers.
const SIZE: u64 = 100;
const PACKET: u64 = SIZE + 28;

/// Adds up what the page shows of a service, rate by rate, with the time that each is of.
const ADD_UP: &str = r##"
    let added = 0;
    const shown = show;
    show = () => {
        shown();
        const row = [...document.querySelectorAll("#rows tr.service")].find((tr) => tr.cells[0].textContent === "udp");
        if (before) added += Number(row.cells[2].textContent) * (latest.at - before.at) / 1000;
    };
    undefined
"##;

/// What `sluice top` makes of a second, while datagrams are sent: it cannot have seen more than there were meanwhile, nor
/// many fewer.
fn top_sees(agent: &Agent<'_>, sent: &AtomicU64) -> (f64, f64) {
    let began = (std::time::Instant::now(), sent.load(Ordering::SeqCst));
    let output = agent.sluice(&["top", "-o", "json"]).expect("sluice");
    let (took, sent) = (began.0.elapsed().as_secs_f64(), sent.load(Ordering::SeqCst) - began.1);
    let top: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let udp = top["services"].as_array().expect("services").iter().find(|service| service["name"] == "udp");
    let rate = udp.expect("udp")["rate"]["packets_per_second"].as_f64().expect("a rate");
    // One datagram may be counted and not yet answered.
    assert!(rate * top["seconds"].as_f64().expect("seconds") <= sent as f64 + 1.0, "{sent} were sent: {top}");
    (rate, sent as f64 / took)
}

fn send_from(port: u16, to: SocketAddr) {
    let socket = std::net::UdpSocket::bind(("0.0.0.0", port)).expect("a socket");
    assert_eq!(socket.send_to(&[7; 9], to).expect("sent"), 9);
}

#[test]
fn all_numbers_are_those_of_the_packets_that_the_lab_sent() {
    let lab = Lab::builder().start().expect("a lab");
    let vip = SocketAddr::new(lab.vip(80).ip(), UDP_PORT);
    let _servers: Vec<_> = lab.webs().iter().map(|web| UdpEcho::start(web, vip).expect("a server")).collect();
    let config = lab.config().udp(UDP_PORT).metrics().to_string();
    let agent = lab.start_agent(&config).expect("an agent");
    let mut browser = Browser::start(lab.edge(), lab.directory()).expect("a browser");
    browser.open(CONSOLE).expect("the page");
    browser
        .wait_for("!!before && document.querySelectorAll('#rows tr').length === 9", PATIENCE)
        .expect("rows");
    browser.evaluate(ADD_UP).expect("a sum");

    let (sent, stopping) = (AtomicU64::new(0), AtomicBool::new(false));
    let sent = std::thread::scope(|threads| {
        threads.spawn(|| {
            while !stopping.load(Ordering::SeqCst) {
                echo_datagram(lab.customer(), vip, SIZE as usize).expect("an echo");
                sent.fetch_add(1, Ordering::SeqCst);
                // About as many as the page shows exactly.
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let (told, real) = top_sees(&agent, &sent);
        stopping.store(true, Ordering::SeqCst);
        assert!((0.5..2.0).contains(&(told / real)), "{told} of {real} a second");
        &sent
    });
    let sent = sent.load(Ordering::SeqCst);
    assert!(sent > 50, "{sent}");
    for web in ["web1", "web2"] {
        assert!(agent.sluice(&["backend", "drain", "udp", web]).expect("sluice").status.success());
    }
    let dropped: u16 = 25;
    // From ports that no flow has had: those of flows go on to backends that drain.
    lab.customer().run(|| (0..dropped).for_each(|n| send_from(20_000 + n, vip))).expect("run");

    let service = agent.service("udp").expect("udp");
    let verdicts = agent.status().expect("status")["verdicts"].clone();
    assert_eq!(service["packets"], sent, "{service}");
    assert_eq!(service["bytes"], sent * PACKET, "{service}");
    // Each datagram came from another port, or from one that had been given before.
    let flows = service["new_flows"].as_u64().expect("flows");
    assert!(flows <= sent && flows >= sent - sent / 10, "{service}");
    let backends = service["backends"].as_array().expect("backends");
    let packets: Vec<u64> = backends.iter().filter_map(|backend| backend["packets"].as_u64()).collect();
    assert!(packets.iter().sum::<u64>() == sent && packets.iter().all(|&packets| packets > 0), "{service}");
    assert_eq!(verdicts["drop.no_backend"], dropped, "{verdicts}");
    let metrics = lab.edge().curl(&[&format!("{CONSOLE}metrics")]).expect("metrics").text();
    for line in [
        format!("sluice_service_packets_total{{service=\"udp\"}} {sent}"),
        format!("sluice_service_bytes_total{{service=\"udp\"}} {}", sent * PACKET),
        format!("sluice_service_new_flows_total{{service=\"udp\"}} {flows}"),
        format!("sluice_backend_packets_total{{service=\"udp\",backend=\"web1\"}} {}", packets[0]),
        format!("sluice_backend_packets_total{{service=\"udp\",backend=\"web2\"}} {}", packets[1]),
        format!("sluice_verdicts_total{{verdict=\"drop.no_backend\"}} {dropped}"),
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line}: {metrics}");
    }
    let top = agent.sluice(&["top", "-o", "json"]).expect("sluice");
    let top: Value = serde_json::from_slice(&top.stdout).expect("JSON");
    let drops = top["drops"].as_array().expect("drops");
    assert!(
        drops.iter().any(|drop| drop["verdict"] == "drop.no_backend" && drop["packets"] == dropped),
        "{top}"
    );
    let shown = format!(
        "$('verdicts').textContent.includes('drop.no_backend') && $('verdicts').rows[0].cells[2].textContent === '{dropped}'"
    );
    browser.wait_for(&shown, PATIENCE).expect("drops");
    // Each rate is rounded to a whole number of packets.
    let near = format!("Math.abs(added - {sent}) <= 5 + {sent} / 50");
    browser.wait_for(&near, PATIENCE).unwrap_or_else(|error| {
        panic!("{error}: {:?} of {sent}", browser.evaluate("added"));
    });
}
