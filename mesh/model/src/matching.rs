//! Which route a request or a connection takes.
//!
//! Routes are tried in their order, the first that matches wins. [`explain`] says of each earlier one which field kept it from
//! matching; it asks the same predicates, so that it cannot tell another story. Literals are compared as bytes and nothing is allocated.

use std::{fmt, net::IpAddr, sync::Arc};

use http::HeaderMap;
use ipnet::IpNet;

use crate::{
    request::{RequestFacts, query_parameter},
    route::{Caller, Host, HttpRoute, RequestMatch, TcpRoute, TextMatch, TlsRoute, ValueMatch},
};

/// The route that a request takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Matched<'a> {
    /// The route.
    pub route: &'a Arc<HttpRoute>,
    /// The match that hit; `None` if the route has no conditions. Rewrites need it.
    pub matched: Option<&'a RequestMatch>,
    /// The route's place in its port's list, from 0.
    pub index: usize,
}

/// A route that was tried, and why it was not taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Missed<'a> {
    /// The route.
    pub route: &'a Arc<HttpRoute>,
    /// For each of its matches, in order, the first field that does not hold.
    pub fields: Vec<Field<'a>>,
}

/// How a route was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation<'a> {
    /// The routes before it; all of them if there is none.
    pub missed: Vec<Missed<'a>>,
    /// The route that is taken.
    pub matched: Option<Matched<'a>>,
}

/// A field of [`RequestMatch`], with the name of the header, parameter or label. Prints as a user writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field<'a> {
    /// `uri`.
    Uri,
    /// `scheme`.
    Scheme,
    /// `method`.
    Method,
    /// `authority`.
    Authority,
    /// `headers`.
    Header(&'a str),
    /// `withoutHeaders`.
    WithoutHeader(&'a str),
    /// `queryParams`.
    QueryParameter(&'a str),
    /// `sourceLabels`.
    SourceLabel(&'a str),
    /// `sourceNamespace`.
    SourceNamespace,
}

impl fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uri => f.write_str("uri"),
            Self::Scheme => f.write_str("scheme"),
            Self::Method => f.write_str("method"),
            Self::Authority => f.write_str("authority"),
            Self::Header(name) => write!(f, "headers[{name}]"),
            Self::WithoutHeader(name) => write!(f, "withoutHeaders[{name}]"),
            Self::QueryParameter(name) => write!(f, "queryParams[{name}]"),
            Self::SourceLabel(name) => write!(f, "sourceLabels[{name}]"),
            Self::SourceNamespace => f.write_str("sourceNamespace"),
        }
    }
}

/// The route of a request to `port` of `host`. `None` is 404 `NR`: no rule matches, or the host has no such port.
pub fn route<'a>(host: &'a Host, port: u16, facts: &RequestFacts<'_>) -> Option<Matched<'a>> {
    let routes = &host.ports.get(&port)?.http;
    routes.iter().enumerate().find_map(|(index, route)| taken(route, index, facts))
}

/// How the route of a request is found, for `explain`.
pub fn explain<'a>(host: &'a Host, port: u16, facts: &RequestFacts<'_>) -> Explanation<'a> {
    let mut missed = Vec::new();
    for (index, route) in host.ports.get(&port).into_iter().flat_map(|port| &port.http).enumerate() {
        if let Some(matched) = taken(route, index, facts) {
            return Explanation { missed, matched: Some(matched) };
        }
        missed.push(Missed { route, fields: route.matches.iter().filter_map(|one| mismatch(one, facts)).collect() });
    }
    Explanation { missed, matched: None }
}

fn taken<'a>(route: &'a Arc<HttpRoute>, index: usize, facts: &RequestFacts<'_>) -> Option<Matched<'a>> {
    if route.matches.is_empty() {
        return Some(Matched { route, matched: None, index });
    }
    let matched = route.matches.iter().find(|one| mismatch(one, facts).is_none())?;
    Some(Matched { route, matched: Some(matched), index })
}

/// The first field of `one` that does not hold; `None` if all do.
pub fn mismatch<'a>(one: &'a RequestMatch, facts: &RequestFacts<'_>) -> Option<Field<'a>> {
    let holds = |wanted: &Option<TextMatch>, found: &str| wanted.as_ref().is_none_or(|wanted| text(wanted, found.as_bytes(), false));
    if !one.uri.as_ref().is_none_or(|uri| text(uri, facts.path.as_bytes(), one.ignore_uri_case)) {
        return Some(Field::Uri);
    }
    if !holds(&one.method, facts.method) {
        return Some(Field::Method);
    }
    if !holds(&one.scheme, facts.scheme) {
        return Some(Field::Scheme);
    }
    if !holds(&one.authority, facts.authority) {
        return Some(Field::Authority);
    }
    if let Some((name, _)) = one.headers.iter().find(|(name, wanted)| !header(facts.headers, name, wanted)) {
        return Some(Field::Header(name));
    }
    if let Some((name, _)) = one.without_headers.iter().find(|(name, unwanted)| header(facts.headers, name, unwanted)) {
        return Some(Field::WithoutHeader(name));
    }
    let parameter =
        |name: &str, wanted: &ValueMatch| query_parameter(facts.query, name).is_some_and(|found| value(wanted, found.as_bytes()));
    if let Some((name, _)) = one.query.iter().find(|(name, wanted)| !parameter(name, wanted)) {
        return Some(Field::QueryParameter(name));
    }
    caller_mismatch(&one.source_labels, one.source_namespace.as_deref(), facts.caller)
}

type Labels = std::collections::BTreeMap<Arc<str>, Arc<str>>;

/// `sourceLabels` and `sourceNamespace`, on the original caller.
fn caller_mismatch<'a>(labels: &'a Labels, namespace: Option<&str>, caller: &Caller) -> Option<Field<'a>> {
    if let Some((name, _)) = labels.iter().find(|(name, value)| caller.labels.get(*name) != Some(*value)) {
        return Some(Field::SourceLabel(name));
    }
    let found = caller.identity.as_ref().map(|identity| &*identity.namespace);
    (namespace.is_some() && namespace != found).then_some(Field::SourceNamespace)
}

/// Whether a header matches. Several of one name are one value, joined by commas (RFC 9110 §5.2).
fn header(headers: &HeaderMap, name: &str, wanted: &ValueMatch) -> bool {
    let mut values = headers.get_all(name).iter();
    let Some(first) = values.next() else { return false };
    match (wanted, values.next()) {
        (ValueMatch::Present, _) => true,
        (ValueMatch::Text(wanted), None) => text(wanted, first.as_bytes(), false),
        (ValueMatch::Text(wanted), Some(second)) => {
            let mut joined = first.as_bytes().to_vec();
            for value in std::iter::once(second).chain(values) {
                joined.push(b',');
                joined.extend_from_slice(value.as_bytes());
            }
            text(wanted, &joined, false)
        }
    }
}

fn value(wanted: &ValueMatch, found: &[u8]) -> bool {
    match wanted {
        ValueMatch::Present => true,
        ValueMatch::Text(wanted) => text(wanted, found, false),
    }
}

/// Whether a text matches. `ignore_case` is for literals, never for patterns. A pattern sees bytes that are no UTF-8 as U+FFFD.
pub fn text(wanted: &TextMatch, found: &[u8], ignore_case: bool) -> bool {
    let equal = |wanted: &[u8], found: &[u8]| match ignore_case {
        true => wanted.eq_ignore_ascii_case(found),
        false => wanted == found,
    };
    let starts = |prefix: &[u8]| found.get(..prefix.len()).is_some_and(|start| equal(prefix, start));
    match wanted {
        TextMatch::Exact(exact) => equal(exact.as_bytes(), found),
        TextMatch::Prefix(prefix) => starts(prefix.as_bytes()),
        TextMatch::PathPrefix(prefix) => {
            let prefix = prefix.trim_end_matches('/').as_bytes();
            starts(prefix) && matches!(found.get(prefix.len()), None | Some(b'/'))
        }
        TextMatch::Regex(pattern) => match std::str::from_utf8(found) {
            Ok(found) => pattern.whole.is_match(found),
            Err(_) => pattern.whole.is_match(&String::from_utf8_lossy(found)),
        },
    }
}

/// The route of a TLS connection to `port` of `host`, by its server name, the address that was called and who calls.
pub fn tls<'a>(host: &'a Host, port: u16, server_name: &str, destination: Option<IpAddr>, caller: &Caller) -> Option<&'a Arc<TlsRoute>> {
    host.ports.get(&port)?.tls.iter().find(|route| {
        route.server_names.iter().any(|wanted| name_matches(wanted, server_name))
            && within(&route.destination_blocks, destination)
            && caller_mismatch(&route.source_labels, route.source_namespace.as_deref(), caller).is_none()
    })
}

/// The route of a connection to `port` of `host`, by the address that was called and who calls.
pub fn tcp<'a>(host: &'a Host, port: u16, destination: Option<IpAddr>, caller: &Caller) -> Option<&'a Arc<TcpRoute>> {
    host.ports.get(&port)?.tcp.iter().find(|route| {
        within(&route.destination_blocks, destination)
            && caller_mismatch(&route.source_labels, route.source_namespace.as_deref(), caller).is_none()
    })
}

/// `*` is any name, `*.suffix` any name below `suffix`; case does not matter.
fn name_matches(wanted: &str, found: &str) -> bool {
    match wanted.strip_prefix('*') {
        Some(suffix) => {
            let (wanted, found) = (suffix.as_bytes(), found.as_bytes());
            found.len() > wanted.len() && found[found.len() - wanted.len()..].eq_ignore_ascii_case(wanted)
        }
        None => wanted.eq_ignore_ascii_case(found),
    }
}

fn within(blocks: &[IpNet], address: Option<IpAddr>) -> bool {
    blocks.is_empty() || address.is_some_and(|address| blocks.iter().any(|block| block.contains(&address.to_canonical())))
}

#[cfg(test)]
mod tests;
