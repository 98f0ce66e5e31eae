//! What customers see: turns requests into lines that tell who answered.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Result;
use lb_tests::{CDN_NAME, HttpConnection, Lab, Response, SHOP_NAME};

use super::screen::Screen;

const CONNECTIONS: u16 = 1_000;
/// Chosen source ports give every run the same flows.
const FIRST_PORT: u16 = 20_000;

/// Each kind of customer asks for what it wants.
pub(crate) fn ask(screen: &mut Screen, lab: &Lab) -> Result<()> {
    screen.chapter(&format!("Customers ask for {SHOP_NAME} (203.0.113.10)"));
    let authority = lab.authority().to_string_lossy().into_owned();
    let shop = |path: &str| format!("http://{SHOP_NAME}{path}");
    let cdn = format!("http://{CDN_NAME}/");
    one(screen, lab, "browser", &[&shop("/")], "Welcome to the shop");
    one(
        screen,
        lab,
        "browser, HTTPS",
        &["--cacert", &authority, &format!("https://{SHOP_NAME}/")],
        "Welcome",
    );
    one(screen, lab, "mobile app", &[&shop("/api")], "\"path\":\"/api\"");
    one(screen, lab, "integration", &[&shop("/api/v1/orders")], "\"path\":\"/api/v1/orders\"");
    one(screen, lab, "through the CDN", &[&cdn], "Welcome to the shop");
    one(screen, lab, "… and again", &[&cdn], "Welcome to the shop");
    let mut ping = lab.customer().command("ping");
    let answered = ping.args(["-c", "1", "-W", "2", "-q", "203.0.113.10"]).output()?.status.success();
    screen.check(answered, "ping 203.0.113.10 is answered (by the XDP program)", "expected an echo reply");
    Ok(())
}

fn one(screen: &mut Screen, lab: &Lab, who: &str, arguments: &[&str], expected: &str) {
    let start = Instant::now();
    let result = lab.customer().curl(arguments);
    let took = start.elapsed().as_secs_f64() * 1e3;
    let url = arguments.last().copied().unwrap_or_default();
    match result {
        Ok(answer) => {
            let line = format!("{who:<16} {url:<36} {} {:<12} {took:>4.0} ms", answer.status, route(&answer));
            let fine = answer.status == 200 && answer.text().contains(expected);
            screen.check(fine, &line, &format!("expected 200 and {expected}, got: {}", answer.text()));
        }
        Err(error) => {
            screen.check(false, &format!("{who:<16} {url}"), &format!("expected an answer: {error:#}"));
        }
    }
}

/// Who had a part in an answer.
fn route(answer: &Response) -> String {
    let header = |name: &str| answer.headers.get(name).map(String::as_str);
    let web = answer.served_by();
    match (header("x-cache"), header("x-app")) {
        (Some("HIT"), _) => "cdn's cache".to_owned(),
        (Some(_), _) => format!("cdn → {web}"),
        (None, Some(app)) => format!("{web} → {app}"),
        (None, None) => web.to_owned(),
    }
}

/// A thousand customers are spread evenly.
pub(crate) fn distribution(screen: &mut Screen, lab: &Lab) -> Result<()> {
    screen.chapter(&format!("{CONNECTIONS} customers, two web servers of equal weight"));
    let mut by_server = BTreeMap::<String, u64>::new();
    let mut failed = None;
    let start = Instant::now();
    for port in FIRST_PORT..FIRST_PORT + CONNECTIONS {
        let answer = HttpConnection::open(lab.customer(), lab.vip(80), Some(port))
            .and_then(|connection| connection.get_and_close("/"));
        match answer {
            Ok(answer) => *by_server.entry(answer.served_by().to_owned()).or_default() += 1,
            Err(error) => failed = Some(format!("port {port}: {error:#}")),
        }
    }
    let took = start.elapsed().as_secs_f64();
    by_server.iter().for_each(|(server, count)| screen.bar(server, *count, u64::from(CONNECTIONS)));
    let error = failed.clone().unwrap_or_default();
    screen.check(failed.is_none(), &format!("all were served, in {took:.1} s"), &error);
    let fair = u64::from(CONNECTIONS) / 2;
    let near = by_server.len() == 2 && by_server.values().all(|count| count.abs_diff(fair) <= fair / 10);
    screen.check(
        near,
        "each web server has half of them, within 5 % of the whole",
        &format!("{by_server:?}"),
    );
    Ok(())
}

/// What customers must not reach.
pub(crate) fn private_tier(screen: &mut Screen, lab: &Lab) -> Result<()> {
    screen.chapter("The app tier stays private");
    let mut attempts: Vec<_> = lab
        .apps()
        .iter()
        .map(|app| (app.name().to_owned(), format!("http://{}:8080/", app.address())))
        .collect();
    attempts.push(("the VIP's port 8080".to_owned(), format!("http://{SHOP_NAME}:8080/")));
    for (target, url) in attempts {
        let result = lab.customer().curl(&["--connect-timeout", "1", &url]);
        let got = result.as_ref().map(Response::text).unwrap_or_default();
        screen.check(
            result.is_err(),
            &format!("a customer cannot reach {target:<20} {url}"),
            &format!("expected no answer, got: {got}"),
        );
    }
    Ok(())
}

/// One customer's packet, step by step.
pub(crate) fn explain(screen: &mut Screen, lab: &Lab) -> Result<()> {
    screen.chapter("Why did this customer get that server?");
    // A port that no connection above came from: a customer who is new.
    let port = FIRST_PORT - 1;
    let source = format!("{}:{port}", lab.customer().address());
    let arguments = ["explain", "--src", &source, "--dst", "203.0.113.10:80", "--syn"];
    screen.say(&format!("$ sluice {}", arguments.join(" ")));
    let explained = lab.sluice(&arguments)?;
    let text = String::from_utf8_lossy(&explained.stdout).into_owned();
    screen.show(&text);
    let connection = HttpConnection::open(lab.customer(), lab.vip(80), Some(port))?;
    let server = connection.get_and_close("/")?.served_by().to_owned();
    screen.check(
        explained.status.success() && text.contains(&server),
        &format!("the customer asks from that port, and {server} answers as explained"),
        &format!("{server} answered; {}", String::from_utf8_lossy(&explained.stderr)),
    );
    Ok(())
}
