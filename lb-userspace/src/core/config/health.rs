//! The `[service.health]` table, or its absence → [`Health`].

use std::ops::RangeInclusive;
use std::time::Duration;

use super::reader::Section;
use super::{Health, Probe, Protocol, values};

const INTERVAL: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3_600);
const INTERVAL_DEFAULT: Duration = Duration::from_secs(2);
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3_600);
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(1);
const SLOW_START: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3_600);
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
    }
}

pub(super) fn read(mut health: Section<'_>, default_port: DefaultPort) -> Option<Health> {
    let kinds = [("tcp", Kind::Tcp), ("http", Kind::Http), ("none", Kind::None)];
    let kind = health.or("type", Kind::Tcp, values::choice(&kinds, &["https"]));
    let probe = probe(&mut health, kind);
    let port = port(&mut health, kind, default_port);
    health.or("via", (), values::choice(&[("backend", ())], &["vip"]));
    let (interval, timeout) = times(&mut health);
    let rise = health.or("rise", RISE_DEFAULT, values::integer(THRESHOLD));
    let fall = health.or("fall", FALL_DEFAULT, values::integer(THRESHOLD));
    let slow_start = health.or("slow_start", Duration::ZERO, values::duration(SLOW_START));
    if slow_start.is_some_and(|duration| !duration.is_zero()) {
        health.wrong("slow_start", "not supported by this version; remove it or write \"0s\"".to_owned());
    }
    health.finish();
    Some(Health {
        probe: probe?,
        port: port?,
        interval: interval?,
        timeout: timeout?,
        rise: rise?,
        fall: fall?,
    })
}

fn probe(health: &mut Section<'_>, kind: Option<Kind>) -> Option<Probe> {
    let path = health.or("path", "/".to_owned(), values::http_path);
    let host = health.optional("host", values::http_host);
    let expect = health.or("expect", vec![STATUS_DEFAULT], values::statuses);
    match kind? {
        // Keys of a check that is switched off are left alone: it may be switched on again.
        Kind::None => Some(Probe::None),
        Kind::Tcp => {
            for key in ["path", "host", "expect"].into_iter().filter(|key| health.has(key)) {
                health.wrong(key, "only http checks have it; write type = \"http\" or remove it".to_owned());
            }
            Some(Probe::Tcp)
        }
        Kind::Http => Some(Probe::Http { path: path?, host: host?, expect: expect? }),
    }
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
