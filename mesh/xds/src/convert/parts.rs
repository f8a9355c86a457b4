//! Counts, numbers, durations, labels and matches: the parts that the messages of a waypoint share, with what is the most of each.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ipnet::IpNet;
use tropis_model::{address::NamespacedHostname, bounds, pool::PoolKey, route::TextMatch};
use tropis_proto::waypoint::{self as wire, text_match::Kind};

use super::{Interner, InvalidResource, address};

/// Bytes of a regular expression as written; with the library's own limit on what it compiles to, a bound on memory.
const MAX_PATTERN_BYTES: usize = 4096;
/// Longest duration, about a hundred years: added to any clock's time it does not overflow.
const MAX_DURATION: Duration = Duration::from_secs(100 * 366 * 24 * 3600);
/// All requests, in parts of a million.
const WHOLE_PPM: u32 = 1_000_000;

/// Refuses a list that is longer than `limit`.
pub(super) fn count(field: &'static str, found: usize, limit: usize) -> Result<(), InvalidResource> {
    if found > limit { Err(InvalidResource::TooMany { field, found, limit }) } else { Ok(()) }
}

/// Decodes a list of at most `limit` entries.
pub(super) fn list<W, M>(
    field: &'static str,
    limit: usize,
    wire: Vec<W>,
    decode: impl FnMut(W) -> Result<M, InvalidResource>,
) -> Result<Vec<M>, InvalidResource> {
    count(field, wire.len(), limit)?;
    wire.into_iter().map(decode).collect()
}

/// A message that must be there.
pub(super) fn required<T>(field: &'static str, message: Option<T>) -> Result<T, InvalidResource> {
    message.ok_or(InvalidResource::Empty(field))
}

/// A name that must not be empty.
pub(super) fn name(field: &'static str, text: &str, strings: &mut Interner) -> Result<Arc<str>, InvalidResource> {
    if text.is_empty() { Err(InvalidResource::Empty(field)) } else { Ok(strings.get(text)) }
}

/// A number of `accepted`, which `range` says in words.
pub(super) fn number<N: TryFrom<u32> + PartialOrd>(
    field: &'static str,
    found: u32,
    accepted: std::ops::RangeInclusive<N>,
    range: &'static str,
) -> Result<N, InvalidResource> {
    let refused = || InvalidResource::OutOfRange { field, found: found.to_string(), accepted: range };
    N::try_from(found).ok().filter(|number| accepted.contains(number)).ok_or_else(refused)
}

/// A port that something can listen on.
pub(super) fn port(field: &'static str, found: u32) -> Result<u16, InvalidResource> {
    match address::port(found, field)? {
        0 => Err(InvalidResource::Port { field, found }),
        port => Ok(port),
    }
}

/// A share of requests, in parts of a million.
pub(super) fn share(field: &'static str, found: u32) -> Result<u32, InvalidResource> {
    number(field, found, 0..=WHOLE_PPM, "0 to 1000000")
}

/// A share in percent.
pub(super) fn percent(field: &'static str, found: u32) -> Result<u8, InvalidResource> {
    number(field, found, 0..=100, "0 to 100")
}

/// A number that is finite and not negative.
pub(super) fn real(field: &'static str, found: f64) -> Result<f64, InvalidResource> {
    if found.is_finite() && found >= 0.0 {
        return Ok(found);
    }
    Err(InvalidResource::OutOfRange { field, found: found.to_string(), accepted: "a finite number, not negative" })
}

/// An HTTP status of an answer.
pub(super) fn status(field: &'static str, found: u32) -> Result<u16, InvalidResource> {
    number(field, found, bounds::STATUSES, "100 to 599")
}

/// A gRPC code; those beyond 16 have no meaning, and travel all the same.
pub(super) fn grpc_code(field: &'static str, found: u32) -> Result<u16, InvalidResource> {
    number(field, found, 0..=u16::MAX, "0 to 65535")
}

/// A duration; absent is `None`.
pub(super) fn duration(field: &'static str, found: Option<prost_types::Duration>) -> Result<Option<Duration>, InvalidResource> {
    let Some(found) = found else { return Ok(None) };
    let refused =
        || InvalidResource::OutOfRange { field, found: format!("{} s {} ns", found.seconds, found.nanos), accepted: "0 to 100 years" };
    let seconds = u64::try_from(found.seconds).map_err(|_| refused())?;
    let nanos = u32::try_from(found.nanos).ok().filter(|nanos| *nanos < 1_000_000_000).ok_or_else(refused)?;
    let duration = Duration::from_secs(seconds).checked_add(Duration::from_nanos(nanos.into()));
    duration.filter(|duration| *duration <= MAX_DURATION).map(Some).ok_or_else(refused)
}

/// A duration that must be there.
pub(super) fn required_duration(field: &'static str, found: Option<prost_types::Duration>) -> Result<Duration, InvalidResource> {
    duration(field, found)?.ok_or(InvalidResource::Empty(field))
}

/// Longer than [`MAX_DURATION`] becomes that.
pub(super) fn duration_to_wire(duration: Duration) -> prost_types::Duration {
    let duration = duration.min(MAX_DURATION);
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

/// Labels of a selector or a workload.
pub(super) fn labels(
    field: &'static str,
    wire: BTreeMap<String, String>,
    strings: &mut Interner,
) -> Result<BTreeMap<Arc<str>, Arc<str>>, InvalidResource> {
    count(field, wire.len(), bounds::LABELS)?;
    Ok(wire.iter().map(|(key, value)| (strings.get(key), strings.get(value))).collect())
}

pub(super) fn labels_to_wire(labels: &BTreeMap<Arc<str>, Arc<str>>) -> BTreeMap<String, String> {
    labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

/// Texts without a rule of their own.
pub(super) fn texts(field: &'static str, wire: &[String], strings: &mut Interner) -> Result<Vec<Arc<str>>, InvalidResource> {
    count(field, wire.len(), bounds::TOLD_VALUES)?;
    Ok(wire.iter().map(|text| strings.get(text)).collect())
}

pub(super) fn texts_to_wire(texts: &[Arc<str>]) -> Vec<String> {
    texts.iter().map(|text| text.to_string()).collect()
}

pub(super) fn text(wire: Option<String>, strings: &mut Interner) -> Option<Arc<str>> {
    wire.map(|text| strings.get(&text))
}

pub(super) fn text_to_wire(text: &Option<Arc<str>>) -> Option<String> {
    text.as_ref().map(|text| text.to_string())
}

pub(super) fn blocks(field: &'static str, wire: &[wire::Block]) -> Result<Vec<IpNet>, InvalidResource> {
    count(field, wire.len(), bounds::TOLD_VALUES)?;
    wire.iter().map(|block| address::block(&block.address, Some(block.length), field)).collect()
}

pub(super) fn blocks_to_wire(blocks: &[IpNet]) -> Vec<wire::Block> {
    blocks.iter().map(|block| wire::Block { address: address::bytes(block.addr()), length: block.prefix_len().into() }).collect()
}

pub(super) fn pool_key(field: &'static str, wire: Option<wire::PoolKey>, strings: &mut Interner) -> Result<PoolKey, InvalidResource> {
    let wire = required(field, wire)?;
    Ok(PoolKey {
        host: NamespacedHostname { namespace: strings.get(&wire.namespace), hostname: name(field, &wire.hostname, strings)? },
        port: port(field, wire.port)?,
        subset: text(wire.subset, strings),
    })
}

pub(super) fn pool_key_to_wire(key: &PoolKey) -> wire::PoolKey {
    wire::PoolKey {
        namespace: key.host.namespace.to_string(),
        hostname: key.host.hostname.to_string(),
        port: key.port.into(),
        subset: text_to_wire(&key.subset),
    }
}

/// Compiles a regular expression that is not too long.
pub(super) fn pattern<T>(
    field: &'static str,
    source: &str,
    compile: impl FnOnce(&str) -> Result<T, regex::Error>,
) -> Result<T, InvalidResource> {
    if source.len() > MAX_PATTERN_BYTES {
        return Err(InvalidResource::OutOfRange {
            field,
            found: format!("a pattern of {} bytes", source.len()),
            accepted: "4096 bytes at most",
        });
    }
    compile(source).map_err(|error| InvalidResource::Pattern { field, pattern: source.to_owned(), reason: last_line(&error) })
}

/// A parse error draws the expression over several lines and says what is wrong in the last one.
fn last_line(error: &regex::Error) -> String {
    let text = error.to_string();
    let line = text.lines().last().unwrap_or_default().trim();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

pub(super) fn text_match(field: &'static str, wire: wire::TextMatch, strings: &mut Interner) -> Result<TextMatch, InvalidResource> {
    Ok(match wire.kind.ok_or(InvalidResource::UnknownMatch(field))? {
        Kind::Exact(text) => TextMatch::Exact(strings.get(&text)),
        Kind::Prefix(text) => TextMatch::Prefix(strings.get(&text)),
        Kind::PathPrefix(text) => TextMatch::PathPrefix(strings.get(&text)),
        Kind::Regex(source) => pattern(field, &source, TextMatch::regex)?,
    })
}

pub(super) fn text_match_to_wire(found: &TextMatch) -> wire::TextMatch {
    let kind = match found {
        TextMatch::Exact(text) => Kind::Exact(text.to_string()),
        TextMatch::Prefix(text) => Kind::Prefix(text.to_string()),
        TextMatch::PathPrefix(text) => Kind::PathPrefix(text.to_string()),
        TextMatch::Regex(pattern) => Kind::Regex(pattern.source.to_string()),
    };
    wire::TextMatch { kind: Some(kind) }
}
