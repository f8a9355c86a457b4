//! The host of a request in its only spelling.

use std::{borrow::Cow, fmt, net::Ipv6Addr};

use thiserror::Error;

/// Longest name of the DNS (RFC 1035 §2.3.4), without a dot at its end.
const MAX_HOST_LENGTH: usize = 253;

/// A request's host. Prints as an authority: `reviews.shop:9080`, `[fd00::1]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanonicalHost<'a> {
    /// Lower case, without a dot at its end; an IPv6 address without its brackets.
    pub host: Cow<'a, str>,
    /// The port, if one was sent.
    pub port: Option<u16>,
}

/// The authority does not name one host. Answer 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InvalidHost {
    /// Nothing is there.
    #[error("the request names no host")]
    Empty,
    /// Too long for a name.
    #[error("the host is longer than {MAX_HOST_LENGTH} characters")]
    TooLong,
    /// A character that no host has; user information is refused by this too.
    #[error("the host holds a character that no host has")]
    Character,
    /// Brackets with something else in them, or half of them.
    #[error("the host has brackets without an IPv6 address in them")]
    Brackets,
    /// Not 1 to 65535 in plain digits.
    #[error("the port of the host is not a number from 1 to 65535")]
    Port,
}

/// Reads an authority (`HOST`, `HOST:PORT`, `[IPV6]`, `[IPV6]:PORT`; RFC 9110 §4.2, without user information).
pub fn canonical_host(authority: &str) -> Result<CanonicalHost<'_>, InvalidHost> {
    if authority.is_empty() {
        return Err(InvalidHost::Empty);
    }
    if let Some(rest) = authority.strip_prefix('[') {
        let (address, rest) = rest.split_once(']').ok_or(InvalidHost::Brackets)?;
        let parsed: Ipv6Addr = address.parse().map_err(|_| InvalidHost::Brackets)?;
        let port = match rest {
            "" => None,
            _ => Some(port(rest.strip_prefix(':').ok_or(InvalidHost::Brackets)?)?),
        };
        return Ok(CanonicalHost { host: parsed.to_string().into(), port });
    }
    let (host, port) = match authority.split_once(':') {
        Some((host, digits)) => (host, Some(port(digits)?)),
        None => (authority, None),
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    match host.len() {
        0 => return Err(InvalidHost::Empty),
        1..=MAX_HOST_LENGTH => {}
        _ => return Err(InvalidHost::TooLong),
    }
    let named = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    if host.starts_with('.') || host.contains("..") || !host.bytes().all(named) || host.ends_with('.') {
        return Err(InvalidHost::Character);
    }
    let host = match host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => host.to_ascii_lowercase().into(),
        false => host.into(),
    };
    Ok(CanonicalHost { host, port })
}

fn port(digits: &str) -> Result<u16, InvalidHost> {
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(InvalidHost::Port);
    }
    digits.parse().ok().filter(|port| *port != 0).ok_or(InvalidHost::Port)
}

impl fmt::Display for CanonicalHost<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]", self.host)?,
            false => f.write_str(&self.host)?,
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}
