use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::*;
use crate::core::config::{Passive, Tls, Via};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
const LONG: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(200);

fn http(expect: &[RangeInclusive<u16>]) -> Probe {
    Probe::Http { path: "/healthz?full=1".into(), host: None, expect: expect.to_vec(), body: None, tls: None }
}

fn http_with_body(wanted: &str) -> Probe {
    let Probe::Http { path, host, expect, tls, .. } = http_ok() else { unreachable!() };
    Probe::Http { path, host, expect, body: Some(wanted.to_owned()), tls }
}

async fn probe(target: SocketAddr, probe: &Probe, timeout: Duration) -> Result<(), ProbeError> {
    check(probe.clone(), timeout, timeout).probe(&target.into()).await
}

fn http_ok() -> Probe {
    http(&[200..=399])
}

async fn listener() -> (TcpListener, SocketAddr) {
    listener_on(V4).await
}

async fn listener_on(loopback: IpAddr) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((loopback, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// Serves one connection: reads the request head, writes `pieces` with `pause` after each, then holds the
/// connection open until the peer ends it. Returns the request.
async fn serve(pieces: Vec<Vec<u8>>, pause: Duration) -> (SocketAddr, JoinHandle<String>) {
    serve_on(V4, pieces, pause).await
}

async fn serve_on(
    loopback: IpAddr,
    pieces: Vec<Vec<u8>>,
    pause: Duration,
) -> (SocketAddr, JoinHandle<String>) {
    let (listener, address) = listener_on(loopback).await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let request = read_head(&mut stream).await;
        for piece in pieces {
            if stream.write_all(&piece).await.is_err() {
                return request;
            }
            sleep(pause).await;
        }
        // A reset is as good an end as any.
        let _ = stream.read_to_end(&mut Vec::new()).await;
        request
    });
    (address, server)
}

async fn serve_text(answer: &str) -> SocketAddr {
    serve(vec![answer.as_bytes().to_vec()], Duration::ZERO).await.0
}

#[tokio::test]
async fn tcp_succeeds_when_accepted_and_resets_instead_of_lingering() {
    for loopback in [V4, V6] {
        let (listener, address) = listener_on(loopback).await;
        probe(address, &Probe::Tcp, LONG).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let end = stream.read(&mut [0]).await.unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::ConnectionReset, "{loopback}");
    }
}

#[tokio::test]
async fn nobody_listening_is_refused() {
    // Bound but not listening: nobody else can take the port meanwhile.
    for (holder, loopback) in [(TcpSocket::new_v4(), V4), (TcpSocket::new_v6(), V6)] {
        let holder = holder.unwrap();
        holder.bind((loopback, 0).into()).unwrap();
        let address = holder.local_addr().unwrap();
        for probe_kind in [Probe::Tcp, http_ok()] {
            let error = probe(address, &probe_kind, LONG).await.unwrap_err();
            assert!(matches!(error, ProbeError::Refused), "{error:?}");
            assert_eq!(error.to_string(), "connection refused");
        }
    }
}

#[tokio::test]
async fn full_accept_queue_times_out_during_connect() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut held = Vec::new();
    while let Ok(stream) = timeout(SHORT, TcpStream::connect(address)).await {
        held.push(stream.unwrap());
    }
    let error = probe(address, &Probe::Tcp, SHORT).await.unwrap_err();
    assert!(matches!(error, ProbeError::ConnectTimeout(_)), "{error:?}");
    assert_eq!(error.to_string(), "no connection within 200ms");
}

#[test]
fn connect_errors_have_their_names() {
    let text = |kind| connect_error(io::Error::from(kind), LONG).to_string();
    assert_eq!(text(io::ErrorKind::HostUnreachable), "unreachable: host unreachable");
    assert_eq!(text(io::ErrorKind::NetworkUnreachable), "unreachable: network unreachable");
    assert_eq!(text(io::ErrorKind::TimedOut), "no connection within 10s");
    assert_eq!(text(io::ErrorKind::PermissionDenied), "permission denied");
    let text = |number| connect_error(io::Error::from_raw_os_error(number), LONG).to_string();
    assert!(text(libc::EINVAL).contains("a route of type blackhole"));
    assert!(text(libc::EACCES).contains("a route of type prohibit"));
}

#[test]
fn want_of_local_resources_is_told_apart_from_a_bad_backend() {
    let error = |code| connect_error(io::Error::from_raw_os_error(code), LONG);
    for code in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EADDRNOTAVAIL] {
        assert!(error(code).is_local(), "{:?}", error(code));
        assert!(matches!(error(code), ProbeError::NoResources(_)), "{:?}", error(code));
        assert!(error(code).to_string().starts_with("this host cannot probe: "));
    }
    for code in [libc::ECONNREFUSED, libc::EHOSTUNREACH, libc::ETIMEDOUT, libc::ECONNRESET, libc::EACCES] {
        assert!(!error(code).is_local(), "{:?}", error(code));
    }
}

#[tokio::test]
async fn http_sends_what_a_web_server_wants_to_see() {
    for loopback in [V4, V6] {
        let answer = b"HTTP/1.1 204 No Content\r\n\r\n".to_vec();
        let (address, server) = serve_on(loopback, vec![answer], Duration::ZERO).await;
        probe(address, &http_ok(), LONG).await.unwrap();
        let request = server.await.unwrap().to_lowercase();
        assert!(request.starts_with("get /healthz?full=1 http/1.1\r\n"), "{request}");
        assert!(request.contains(&format!("\r\nhost: {address}\r\n")), "{request}");
        assert!(request.contains("\r\nuser-agent: sluice/"), "{request}");
        assert!(request.contains("\r\nconnection: close\r\n"), "{request}");
    }
}

#[test]
fn host_is_the_configured_name_or_the_address() {
    let host = |target: &str, host: Option<&str>| {
        let request = http::request(target.parse().unwrap(), "/", host, 80).unwrap();
        request.headers().get("host").unwrap().to_str().unwrap().to_owned()
    };
    assert_eq!(host("192.0.2.1:80", Some("your-app.example")), "your-app.example");
    assert_eq!(host("192.0.2.1:80", None), "192.0.2.1");
    assert_eq!(host("192.0.2.1:8080", None), "192.0.2.1:8080");
    assert_eq!(host("[2001:db8::1]:80", None), "[2001:db8::1]");
    assert_eq!(host("[2001:db8::1]:8080", None), "[2001:db8::1]:8080");
}

#[test]
fn unsendable_request_is_told_apart_from_a_bad_backend() {
    let error = http::request("192.0.2.1:80".parse().unwrap(), "/", Some("a\nb"), 80).unwrap_err();
    assert!(matches!(error, ProbeError::InvalidRequest(_)), "{error:?}");
}

#[tokio::test]
async fn accepted_but_silent_times_out_waiting_for_the_answer() {
    let (address, _server) = serve(Vec::new(), Duration::ZERO).await;
    let error = probe(address, &http_ok(), SHORT).await.unwrap_err();
    assert!(matches!(error, ProbeError::AnswerTimeout(_)), "{error:?}");
    assert_eq!(error.to_string(), "connected, but no answer within 200ms");
}

#[tokio::test]
async fn wrong_status_names_both_sides() {
    let address = serve_text("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").await;
    let error = probe(address, &http(&[200..=299, 304..=304]), LONG).await.unwrap_err();
    assert_eq!(error.to_string(), "status 503 (expected 200-299,304)");
}

#[tokio::test]
async fn garbage_is_malformed() {
    for answer in ["SSH-2.0-OpenSSH_9.2\r\n\r\n", "\0\u{1}\u{2} nonsense \r\n\r\n", "HTTP/1.1 abc\r\n\r\n"] {
        let error = probe(serve_text(answer).await, &http_ok(), LONG).await.unwrap_err();
        assert!(matches!(error, ProbeError::Malformed(_)), "{answer:?}: {error:?}");
    }
}

#[tokio::test]
async fn huge_head_is_malformed() {
    let line = format!("X-Filler: {}\r\n", "x".repeat(4000));
    let answer = format!("HTTP/1.1 200 OK\r\n{}\r\n", line.repeat(40));
    let error = probe(serve_text(&answer).await, &http_ok(), LONG).await.unwrap_err();
    assert!(matches!(error, ProbeError::Malformed(_)), "{error:?}");
}

#[tokio::test]
async fn closing_without_an_answer_is_told() {
    for sent in ["", "HTTP/1.1 200 OK\r\nContent-"] {
        let (listener, address) = listener().await;
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_head(&mut stream).await;
            stream.write_all(sent.as_bytes()).await.unwrap();
        });
        let error = probe(address, &http_ok(), LONG).await.unwrap_err();
        assert!(matches!(error, ProbeError::Closed), "{sent:?}: {error:?}");
        server.await.unwrap();
    }
}

#[tokio::test]
async fn reset_instead_of_an_answer_is_told() {
    let (listener, address) = listener().await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_head(&mut stream).await;
        stream.set_zero_linger().unwrap();
    });
    let error = probe(address, &http_ok(), LONG).await.unwrap_err();
    assert!(error.to_string().to_lowercase().contains("connection reset"), "{error:?}");
    server.await.unwrap();
}

#[tokio::test]
async fn slow_drip_counts_by_its_whole_duration() {
    let drip = || "HTTP/1.1 200 OK\r\n\r\n".bytes().map(|byte| vec![byte]).collect::<Vec<_>>();
    let pause = Duration::from_millis(20);
    let (within, _server) = serve(drip(), pause).await;
    probe(within, &http_ok(), LONG).await.unwrap();
    let (over, _server) = serve(drip(), pause).await;
    let error = probe(over, &http_ok(), SHORT).await.unwrap_err();
    assert!(matches!(error, ProbeError::AnswerTimeout(_)), "{error:?}");
}

#[tokio::test]
async fn unfinished_body_does_not_wedge_the_probe() {
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nthe rest never comes";
    probe(serve_text(answer).await, &http_ok(), LONG).await.unwrap();
}

#[tokio::test]
async fn interim_answer_is_not_the_answer() {
    let answer = "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    probe(serve_text(answer).await, &http(&[200..=200]), LONG).await.unwrap();
}

#[tokio::test]
async fn no_probe_always_succeeds() {
    probe("192.0.2.1:0".parse().unwrap(), &Probe::None, Duration::ZERO).await.unwrap();
}

fn check(probe: Probe, interval: Duration, timeout: Duration) -> Check {
    let health = Health {
        probe,
        port: None,
        interval,
        timeout,
        rise: 2,
        fall: 3,
        via: Via::Backend,
        slow_start: Duration::ZERO,
        hold_down: Duration::ZERO,
        hold_down_max: Duration::ZERO,
        passive: Passive::Off,
    };
    Check::new(&health, &mut TlsClients::default()).unwrap()
}

#[tokio::test]
async fn a_body_must_contain_what_is_looked_for() {
    let pieces = [b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nall is w".to_vec(), b"ell.".to_vec()];
    let (address, _server) = serve(pieces.to_vec(), Duration::from_millis(20)).await;
    probe(address, &http_with_body("is well"), LONG).await.unwrap();
    let (address, _server) = serve(pieces.to_vec(), Duration::ZERO).await;
    let error = probe(address, &http_with_body("is bad"), LONG).await.unwrap_err();
    assert_eq!(error.to_string(), "the body does not contain \"is bad\" (its first 12 bytes were searched)");
}

#[tokio::test]
async fn of_an_endless_body_only_the_beginning_is_searched() {
    let mut pieces = vec![b"HTTP/1.1 200 OK\r\n\r\n".to_vec()];
    pieces.extend(std::iter::repeat_n(vec![b'x'; 16 * 1024], 4));
    pieces.push(b"is well".to_vec());
    let (address, _server) = serve(pieces, Duration::ZERO).await;
    let error = probe(address, &http_with_body("is well"), LONG).await.unwrap_err();
    assert!(matches!(error, ProbeError::UnexpectedBody { searched: 65_536, .. }), "{error:?}");
}

#[tokio::test]
async fn who_speaks_no_tls_is_told_so() {
    let Probe::Http { path, host, expect, body, .. } = http_ok() else { unreachable!() };
    let https = Probe::Http { path, host, expect, body, tls: Some(Tls::Unverified) };
    let address = serve_text("HTTP/1.1 400 Bad Request\r\n\r\n").await;
    let error = probe(address, &https, SHORT * 5).await.unwrap_err();
    assert!(matches!(error, ProbeError::AnswerTimeout(_) | ProbeError::Tls(_)), "{error:?}");
}

#[test]
fn a_certificate_is_for_the_host_without_port_or_for_the_address() {
    let name = |host: Option<&str>| {
        tls::server_name(host, "192.0.2.1:443".parse().unwrap()).unwrap().to_str().into_owned()
    };
    assert_eq!(name(Some("shop.example")), "shop.example");
    assert_eq!(name(Some("shop.example:8443")), "shop.example");
    assert_eq!(name(Some("[2001:db8::1]:443")), "2001:db8::1");
    assert_eq!(name(Some("2001:db8::1")), "2001:db8::1");
    assert_eq!(name(None), "192.0.2.1");
}

#[tokio::test]
async fn loop_reports_each_probe_start_to_start_and_ends_with_its_receiver() {
    // The kernel accepts the connections; nobody answers them.
    let (_listener, address) = listener().await;
    let (sender, mut receiver) = mpsc::channel(8);
    let settings = Arc::new(check(http_ok(), Duration::from_millis(250), 2 * SHORT));
    let began = Instant::now();
    let task = tokio::spawn(probe_loop(
        ("web", 1),
        address.into(),
        settings,
        SHORT,
        |interval| interval * 2,
        sender,
    ));
    let mut arrivals = Vec::new();
    for _ in 0..3 {
        let report = receiver.recv().await.unwrap();
        assert_eq!(report.target_key, ("web", 1));
        assert!(matches!(report.result, Err(ProbeError::AnswerTimeout(_))), "{:?}", report.result);
        assert!(report.duration >= 2 * SHORT, "{:?}", report.duration);
        arrivals.push(began.elapsed());
    }
    // First delay 200 ms, each probe 400 ms, starts 500 ms apart: 600, 1100, 1600 ms. Were the delay
    // counted from a probe's end, the third report would come at 2400 ms.
    assert!(arrivals[0] >= Duration::from_millis(600), "{arrivals:?}");
    assert!(arrivals[2] >= Duration::from_millis(1600), "{arrivals:?}");
    assert!(arrivals[2] < Duration::from_millis(2400), "{arrivals:?}");
    drop(receiver);
    timeout(LONG, task).await.expect("the loop ends with its receiver").unwrap();
}

#[tokio::test]
async fn loop_ends_while_it_waits_for_its_first_probe() {
    let (sender, receiver) = mpsc::channel(1);
    let settings = Arc::new(check(Probe::Tcp, LONG, LONG));
    let target = Target::from(SocketAddr::from((V4, 1)));
    let task = tokio::spawn(probe_loop((), target, settings, LONG * 6, |interval| interval, sender));
    drop(receiver);
    timeout(LONG, task).await.expect("the loop ends with its receiver").unwrap();
}

/// There are as many as backends, and most of them wait most of the time.
#[test]
fn a_loop_takes_little_while_it_waits() {
    let (sender, _receiver) = mpsc::channel::<ProbeReport<Arc<()>>>(1);
    let settings = Arc::new(check(http_ok(), LONG, LONG));
    let target = Target::from(SocketAddr::from((V4, 1)));
    let task = probe_loop(Arc::new(()), target, settings, LONG, |interval| interval, sender);
    assert!(size_of_val(&task) <= 512, "{} bytes", size_of_val(&task));
}
