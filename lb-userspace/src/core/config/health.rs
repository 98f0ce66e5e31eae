//! The `[service.health]` table, or its absence → [`Health`].

use std::ops::RangeInclusive;
use std::time::Duration;

use super::reader::Section;
use super::{Backend, Forwarding, Health, Passive, Probe, Protocol, Tls, Via, Vip, values};

const INTERVAL: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3_600);
const INTERVAL_DEFAULT: Duration = Duration::from_secs(2);
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3_600);
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(1);
const SLOW_START: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3_600);
const HOLD_DOWN: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3_600);
/// In intervals.
const HOLD_DOWN_DEFAULT: u32 = 5;
/// In times the shortest.
const HOLD_DOWN_MAX_DEFAULT: u32 = 30;
const THRESHOLD: RangeInclusive<u32> = 1..=100;
const RISE_DEFAULT: u32 = 2;
const FALL_DEFAULT: u32 = 3;
const STATUS_DEFAULT: RangeInclusive<u16> = 200..=399;

/// The value of `type`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    None,
    Tcp,
    Http,
    Https,
}

/// Whether a service says which port to ask each backend at, if its health check does not.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum DefaultPort {
    /// Each backend has a port of its own, or the VIPs have one port.
    Clear,
    /// It does not.
    Unclear,
    /// What it would follow from is wrong: nothing is known, nothing follows.
    Unknown,
}

/// The check of a service that does not say: TCP where it is clear which port to ask.
pub(super) fn default(protocol: Protocol, port: DefaultPort) -> Health {
    let probe = match (protocol, port) {
        (Protocol::Tcp, DefaultPort::Clear) => Probe::Tcp,
        _ => Probe::None,
    };
    Health {
        probe,
        port: None,
        interval: INTERVAL_DEFAULT,
        timeout: TIMEOUT_DEFAULT,
        rise: RISE_DEFAULT,
        fall: FALL_DEFAULT,
        via: Via::Backend,
        slow_start: Duration::ZERO,
        hold_down: INTERVAL_DEFAULT * HOLD_DOWN_DEFAULT,
        hold_down_max: INTERVAL_DEFAULT * HOLD_DOWN_DEFAULT * HOLD_DOWN_MAX_DEFAULT,
        passive: Passive::Event,
    }
}

pub(super) fn read(
    mut health: Section<'_>,
    default_port: DefaultPort,
    forwarding: Option<Forwarding>,
    vips: &[Vip],
    backends: Option<&[Backend]>,
) -> Option<Health> {
    let kinds = [("tcp", Kind::Tcp), ("http", Kind::Http), ("https", Kind::Https), ("none", Kind::None)];
    let kind = health.or("type", Kind::Tcp, values::choice(&kinds));
    let probe = probe(&mut health, kind);
    let port = port(&mut health, kind, default_port);
    let via = health.or("via", Via::Backend, values::choice(&[("backend", Via::Backend), ("vip", Via::Vip)]));
    if via == Some(Via::Vip)
        && kind != Some(Kind::None)
        && forwarding.is_some_and(|mode| mode != Forwarding::Nat)
    {
        check_families(&health, vips, backends.unwrap_or_default());
    }
    let (interval, timeout) = times(&mut health);
    let rise = health.or("rise", RISE_DEFAULT, values::integer(THRESHOLD));
    let fall = health.or("fall", FALL_DEFAULT, values::integer(THRESHOLD));
    let slow_start = health.or("slow_start", Duration::ZERO, values::duration(SLOW_START));
    let (hold_down, hold_down_max) = hold_down(&mut health, interval);
    let passive = passive(&mut health, kind);
    health.finish();
    Some(Health {
        probe: probe?,
        port: port?,
        interval: interval?,
        timeout: timeout?,
        rise: rise?,
        fall: fall?,
        via: via?,
        slow_start: slow_start?,
        hold_down: hold_down?,
        hold_down_max: hold_down_max?,
        passive: passive?,
    })
}

/// What customers' packets show can take a backend out of service, but only its checks can bring it back.
fn passive(health: &mut Section<'_>, kind: Option<Kind>) -> Option<Passive> {
    let choices = [("off", Passive::Off), ("event", Passive::Event), ("fail", Passive::Fail)];
    let passive = health.or("passive", Passive::Event, values::choice(&choices));
    if passive == Some(Passive::Fail) && kind == Some(Kind::None) {
        let message =
            "\"fail\" needs checks, which bring a backend back; choose a type or write passive = \"event\"";
        health.wrong("passive", message.to_owned());
    }
    passive
}

fn probe(health: &mut Section<'_>, kind: Option<Kind>) -> Option<Probe> {
    let path = health.or("path", "/".to_owned(), values::http_path);
    let host = health.optional("host", values::http_host);
    let expect = health.or("expect", vec![STATUS_DEFAULT], values::statuses);
    let body = health.optional("body", values::http_body);
    let verify = health.or("verify", true, values::boolean);
    let ca = health.optional("ca", values::file);
    let refuse = |health: &mut Section<'_>, keys: &[&'static str], what: &str| {
        for key in keys.iter().filter(|key| health.has(key)) {
            health.wrong(key, format!("only {what} checks have it; write type = \"{what}\" or remove it"));
        }
    };
    match kind? {
        // Keys of a check that is switched off are left alone: it may be switched on again.
        Kind::None => Some(Probe::None),
        Kind::Tcp => {
            refuse(health, &["path", "host", "expect", "body"], "http");
            refuse(health, &["verify", "ca"], "https");
            Some(Probe::Tcp)
        }
        Kind::Http => {
            refuse(health, &["verify", "ca"], "https");
            Some(Probe::Http { path: path?, host: host?, expect: expect?, body: body?, tls: None })
        }
        Kind::Https => {
            let tls = match (verify?, ca?) {
                (false, Some(_)) => {
                    health.wrong("ca", "is not asked when verify = false; remove one of them".to_owned());
                    return None;
                }
                (false, None) => Tls::Unverified,
                (true, None) => Tls::System,
                (true, Some(file)) => Tls::Authorities(file),
            };
            Some(Probe::Http { path: path?, host: host?, expect: expect?, body: body?, tls: Some(tls) })
        }
    }
}

/// A probe is a connection from the host to the backend's own address; its VIP must be of that family.
fn check_families(health: &Section<'_>, vips: &[Vip], backends: &[Backend]) {
    for (family, is_v4) in [("IPv4", true), ("IPv6", false)] {
        let other = if is_v4 { "IPv6" } else { "IPv4" };
        let of_family = |vip: &Vip| vip.address.is_ipv4() == is_v4;
        let lacking = backends.iter().find(|backend| backend.address.is_ipv4() == is_v4);
        if let Some(backend) = lacking.filter(|_| !vips.is_empty() && !vips.iter().any(of_family)) {
            let message = format!(
                "\"vip\" needs a VIP of each backend's family: {} has an {family} address and all VIPs are {other}; \
                 give the service an {family} VIP or write via = \"backend\"",
                backend.name
            );
            health.wrong("via", message);
        }
    }
}

/// The shortest and the longest time that a flapping backend is held down: by default so many intervals, and so many times
/// that.
fn hold_down(health: &mut Section<'_>, interval: Option<Duration>) -> (Option<Duration>, Option<Duration>) {
    let most = *HOLD_DOWN.end();
    let default = (interval.unwrap_or_default() * HOLD_DOWN_DEFAULT).min(most);
    let first = health.or("hold_down", default, values::duration(HOLD_DOWN));
    let written = health.optional("hold_down_max", values::duration(HOLD_DOWN));
    let (Some(first), Some(written), Some(_)) = (first, written, interval) else { return (first, None) };
    let last = written.unwrap_or((first * HOLD_DOWN_MAX_DEFAULT).min(most));
    if last < first {
        let message =
            format!("must be at least hold_down, {}, not {}", values::Written(first), values::Written(last));
        health.wrong("hold_down_max", message);
    }
    (Some(first), Some(last))
}

fn port(health: &mut Section<'_>, kind: Option<Kind>, default_port: DefaultPort) -> Option<Option<u16>> {
    let written = health.optional("port", values::integer(1..=u16::MAX))?;
    if kind? == Kind::None {
        return Some(None);
    }
    if written.is_none() && default_port == DefaultPort::Unclear {
        health.missing("port", "missing; the VIPs do not share one port, so say which to check".to_owned());
    }
    Some(written)
}

fn times(health: &mut Section<'_>) -> (Option<Duration>, Option<Duration>) {
    let interval = health.or("interval", INTERVAL_DEFAULT, values::duration(INTERVAL));
    let written = health.optional("timeout", values::duration(TIMEOUT));
    let (Some(interval), Some(written)) = (interval, written) else { return (interval, None) };
    let timeout = written.unwrap_or(TIMEOUT_DEFAULT.min(interval));
    if timeout > interval {
        let message = format!(
            "must be at most the interval, {}, not {}: probes of one backend do not overlap",
            values::Written(interval),
            values::Written(timeout)
        );
        health.wrong("timeout", message);
    }
    (Some(interval), Some(timeout))
}
