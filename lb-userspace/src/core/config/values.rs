//! One TOML value → one value of the model, or a sentence about what is wrong with it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::de::DeValue;

use super::Vip;
use super::reader::{describe, suggest};

/// Longest name of a service or backend.
const NAME_BYTES_MAX: usize = 63;
/// Longest interface name: the kernel's `IFNAMSIZ` less the terminating zero.
const INTERFACE_BYTES_MAX: usize = 15;
const PATH_BYTES_MAX: usize = 1_024;
const BODY_BYTES_MAX: usize = 1_024;
/// Longest DNS name with room for a port.
const HOST_BYTES_MAX: usize = 261;
/// Status codes of HTTP.
const STATUS: RangeInclusive<u16> = 100..=599;

/// Why a text is not a duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Not a whole number with one of the units.
    #[error("write a whole number and its unit, such as 500ms, 2s or 1m")]
    Malformed,
    /// More milliseconds than 64 bits hold.
    #[error("is too long")]
    TooLong,
}

/// Reads `500ms`, `2s` or `1m`.
///
/// # Errors
/// When the text is anything else, or longer than can be counted in milliseconds.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        _ => return Err(DurationError::Malformed),
    };
    if digits.is_empty() {
        return Err(DurationError::Malformed);
    }
    let count: u64 = digits.parse().map_err(|_| DurationError::TooLong)?;
    count.checked_mul(unit_ms).map(Duration::from_millis).ok_or(DurationError::TooLong)
}

/// A duration as the configuration writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written(pub Duration);

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_millis() {
            0 => f.write_str("0s"),
            ms if ms % 60_000 == 0 => write!(f, "{}m", ms / 60_000),
            ms if ms % 1_000 == 0 => write!(f, "{}s", ms / 1_000),
            ms => write!(f, "{ms}ms"),
        }
    }
}

pub(super) fn text<'a>(value: &'a DeValue<'_>) -> Result<&'a str, String> {
    value.as_str().ok_or_else(|| format!("expected a string in quotes, found {}", describe(value)))
}

/// A whole number within `range`.
pub(super) fn integer<T>(range: RangeInclusive<T>) -> impl FnOnce(&DeValue<'_>) -> Result<T, String>
where
    T: TryFrom<i128> + Into<i128> + Copy + fmt::Display,
{
    move |value| {
        let DeValue::Integer(number) = value else {
            return Err(format!("expected a whole number without quotes, found {}", describe(value)));
        };
        let (least, most): (i128, i128) = ((*range.start()).into(), (*range.end()).into());
        i128::from_str_radix(number.as_str(), number.radix())
            .ok()
            .filter(|number| (least..=most).contains(number))
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| format!("must be {least} to {most}, not {number}"))
    }
}

/// One of several words.
pub(super) fn choice<T: Copy>(words: &[(&str, T)]) -> impl FnOnce(&DeValue<'_>) -> Result<T, String> {
    move |value| {
        let found = text(value)?;
        if let Some((_, choice)) = words.iter().find(|(word, _)| *word == found) {
            return Ok(*choice);
        }
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        Err(format!("{found:?} is not known; {}", suggest(found, &known)))
    }
}

/// A duration within `range`.
pub(super) fn duration(
    range: RangeInclusive<Duration>,
) -> impl FnOnce(&DeValue<'_>) -> Result<Duration, String> {
    move |value| {
        let Some(found) = value.as_str() else {
            return Err(format!("expected a duration in quotes, such as \"2s\", found {}", describe(value)));
        };
        let bounds = format!("{} to {}", Written(*range.start()), Written(*range.end()));
        match parse_duration(found) {
            Ok(duration) if range.contains(&duration) => Ok(duration),
            Ok(_) | Err(DurationError::TooLong) => Err(format!("must be {bounds}, not {found}")),
            Err(error @ DurationError::Malformed) => Err(format!("{found:?} is not a duration; {error}")),
        }
    }
}

/// The name of a service or a backend.
pub(super) fn name(value: &DeValue<'_>) -> Result<String, String> {
    let found = text(value)?;
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if (1..=NAME_BYTES_MAX).contains(&found.len()) && found.bytes().all(allowed) {
        return Ok(found.to_owned());
    }
    Err(format!("a name is 1 to {NAME_BYTES_MAX} letters, digits, '.', '_' or '-', not {found:?}"))
}

/// The name of a network interface, by the kernel's rules.
pub(super) fn interface(value: &DeValue<'_>) -> Result<String, String> {
    let found = text(value)?;
    let forbidden = |c: char| c.is_whitespace() || c.is_control() || c == '/' || c == ':';
    if !(1..=INTERFACE_BYTES_MAX).contains(&found.len()) {
        return Err(format!("an interface name is 1 to {INTERFACE_BYTES_MAX} bytes long, not {found:?}"));
    }
    if found.contains(forbidden) || found == "." || found == ".." {
        return Err(format!("an interface name has no spaces, '/' or ':', not {found:?}"));
    }
    Ok(found.to_owned())
}

/// An address and a port to listen on.
pub(super) fn listen_address(value: &DeValue<'_>) -> Result<SocketAddr, String> {
    let found = text(value)?;
    found.parse().map_err(|_| {
        format!("expected an IP address and a port, such as \"127.0.0.1:9400\", found {found:?}")
    })
}

/// A VIP.
pub(super) fn vip(value: &DeValue<'_>) -> Result<Vip, String> {
    let found = text(value)?;
    let Ok(vip) = found.parse::<SocketAddr>() else {
        return Err(match found.parse::<IpAddr>() {
            Ok(address) => {
                let [one, every] = [80, 0].map(|port| SocketAddr::new(address, port));
                let meant = unbracketed(found).map_or(String::new(), |meant| {
                    format!("; or \"{meant}\", if {} is the port and not a part of the address", meant.port())
                });
                format!("needs a port; write \"{one}\", or \"{every}\" for every port{meant}")
            }
            Err(_) => format!(
                "expected address:port, such as \"203.0.113.10:80\" or \"[2001:db8::10]:80\", found {found:?}"
            ),
        });
    };
    unicast(vip.ip())?;
    if matches!(vip, SocketAddr::V6(v6) if v6.scope_id() != 0) {
        return Err(format!("{found:?} has a zone, which only link-local addresses have; remove it"));
    }
    Ok(Vip { address: vip.ip(), port: vip.port() })
}

/// What an IPv6 address may have been meant to be: another one and a port, without brackets.
fn unbracketed(found: &str) -> Option<SocketAddrV6> {
    let (address, port) = found.rsplit_once(':')?;
    Some(SocketAddrV6::new(address.parse().ok()?, port.parse().ok()?, 0, 0))
}

/// The address of a backend.
pub(super) fn backend_address(value: &DeValue<'_>) -> Result<IpAddr, String> {
    let found = text(value)?;
    let Ok(address) = found.parse() else {
        return Err(if found.parse::<SocketAddr>().is_ok() {
            format!("{found:?} has a port; write the address alone")
        } else {
            format!("expected an IP address, such as \"10.0.1.11\" or \"2001:db8::11\", found {found:?}")
        });
    };
    unicast(address)?;
    Ok(address)
}

/// Refuses what is not the address of one interface somewhere beyond this link.
pub(super) fn unicast(address: IpAddr) -> Result<(), String> {
    if let IpAddr::V6(v6) = address
        && let Some(v4) = v6.to_ipv4_mapped()
    {
        return Err(format!("{address} is an IPv4 address in IPv6 notation; write {v4}"));
    }
    let kind = if address.is_unspecified() {
        "the unspecified address"
    } else if address.is_loopback() {
        "a loopback address"
    } else if address.is_multicast() {
        "a multicast address"
    } else if address == Ipv4Addr::BROADCAST {
        "the broadcast address"
    } else if matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
        "a link-local address"
    } else {
        return Ok(());
    };
    Err(format!("{address} is {kind}; use a unicast address that packets can be routed to"))
}

/// Path and query of an HTTP request.
pub(super) fn http_path(value: &DeValue<'_>) -> Result<String, String> {
    let found = text(value)?;
    let plain = found.bytes().all(|b| b.is_ascii_graphic());
    if found.starts_with('/') && plain && found.len() <= PATH_BYTES_MAX {
        return Ok(found.to_owned());
    }
    Err(format!(
        "a path begins with '/' and is at most {PATH_BYTES_MAX} bytes of ASCII without spaces, not {found:?}"
    ))
}

/// A `Host` header.
pub(super) fn http_host(value: &DeValue<'_>) -> Result<String, String> {
    let found = text(value)?;
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b".-_:[]".contains(&b);
    if (1..=HOST_BYTES_MAX).contains(&found.len()) && found.bytes().all(allowed) {
        return Ok(found.to_owned());
    }
    Err(format!("expected a host name, such as \"your-app.example\", found {found:?}"))
}

/// What a body must contain.
pub(super) fn http_body(value: &DeValue<'_>) -> Result<String, String> {
    let found = text(value)?;
    if (1..=BODY_BYTES_MAX).contains(&found.len()) {
        return Ok(found.to_owned());
    }
    Err(format!("expected 1 to {BODY_BYTES_MAX} bytes that the body is to contain, found {}", found.len()))
}

/// The path of a file: from the root, for the agent's folder is not that of who writes the configuration.
pub(super) fn file(value: &DeValue<'_>) -> Result<String, String> {
    let found = text(value)?;
    if found.starts_with('/') && !found.contains('\0') {
        return Ok(found.to_owned());
    }
    Err(format!("expected the path of a file from the root, such as \"/etc/sluice/ca.pem\", found {found:?}"))
}

/// A boolean.
pub(super) fn boolean(value: &DeValue<'_>) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| format!("expected true or false without quotes, found {}", describe(value)))
}

fn status(text: &str) -> Option<u16> {
    let digits = text.len() == 3 && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|code| digits && STATUS.contains(code))
}

/// Accepted HTTP status codes: `200`, `200-399`, `200-299,301`.
pub(super) fn statuses(value: &DeValue<'_>) -> Result<Vec<RangeInclusive<u16>>, String> {
    let found = text(value)?;
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(status(first.trim())?..=status(last.trim())?).filter(|range| !range.is_empty())
    };
    found.split(',').map(range).collect::<Option<_>>().ok_or_else(|| {
        let (least, most) = STATUS.into_inner();
        format!(
            "expected status codes from {least} to {most}, such as \"200\", \"200-399\" or \"200-299,301\", \
             found {found:?}"
        )
    })
}
