//! Whether a rule matches. `lenient` is for rules whose match takes leave away (DENY): in doubt they match; the others do not.

use std::{net::IpAddr, sync::Arc};

use http::HeaderMap;
use ipnet::IpNet;

use crate::{
    policy::{ServiceAccountMatch, StringMatch},
    request::{RequestFacts, Token},
    request_policy::{Attribute, Condition, OperationMatch, PathMatch, RequestRule, Segment, SourceMatch},
};

use super::{ServerName, attributes::Asked};

/// `from` (any), `to` (any), `when` (all); an empty list holds.
pub(super) fn matches(rule: &RequestRule, asked: &Asked<'_>, lenient: bool) -> bool {
    if asked.request.is_none() && !lenient && asks_for_http(rule) {
        return false;
    }
    (rule.from.is_empty() || rule.from.iter().any(|source| source_holds(source, asked, lenient)))
        && (rule.to.is_empty() || rule.to.iter().any(|operation| operation_holds(operation, asked, lenient)))
        && rule.when.iter().all(|condition| condition_holds(condition, asked, lenient))
}

/// Whether any part of the rule asks for what only HTTP has.
fn asks_for_http(rule: &RequestRule) -> bool {
    let source = |source: &SourceMatch| {
        !(source.request_principals.is_empty()
            && source.not_request_principals.is_empty()
            && source.remote_ip_blocks.is_empty()
            && source.not_remote_ip_blocks.is_empty())
    };
    let operation = |operation: &OperationMatch| {
        !(operation.hosts.is_empty()
            && operation.not_hosts.is_empty()
            && operation.methods.is_empty()
            && operation.not_methods.is_empty()
            && operation.paths.is_empty()
            && operation.not_paths.is_empty())
    };
    rule.from.iter().any(source) || rule.to.iter().any(operation) || rule.when.iter().any(|condition| is_http(&condition.attribute))
}

fn is_http(attribute: &Attribute) -> bool {
    match attribute {
        Attribute::RequestHeader(_)
        | Attribute::RemoteIp
        | Attribute::TokenPrincipal
        | Attribute::TokenAudiences
        | Attribute::TokenPresenter
        | Attribute::TokenClaim(_) => true,
        Attribute::SourceIp
        | Attribute::SourceNamespace
        | Attribute::SourcePrincipal
        | Attribute::SourceServiceAccount
        | Attribute::DestinationIp
        | Attribute::DestinationPort
        | Attribute::ServerName => false,
    }
}

fn source_holds(source: &SourceMatch, asked: &Asked<'_>, lenient: bool) -> bool {
    let namespace = |value: &StringMatch| asked.namespace().is_some_and(|namespace| text(value, namespace.as_bytes()));
    let connection = field(&source.principals, &source.not_principals, |value| asked.is_principal(value))
        && field(&source.namespaces, &source.not_namespaces, namespace)
        && field(&source.service_accounts, &source.not_service_accounts, |account| is_account(account, asked))
        && blocks(&source.ip_blocks, &source.not_ip_blocks, asked.source(), lenient);
    let Some(request) = asked.request else { return connection };
    let token = |value: &StringMatch| request.token.is_some_and(|token| text(value, token.principal.as_bytes()));
    connection
        && field(&source.request_principals, &source.not_request_principals, token)
        && blocks(&source.remote_ip_blocks, &source.not_remote_ip_blocks, remote(request), lenient)
}

fn operation_holds(operation: &OperationMatch, asked: &Asked<'_>, lenient: bool) -> bool {
    let ports = field(&operation.ports, &operation.not_ports, |port| *port == asked.port);
    let Some(request) = asked.request else { return ports };
    let is_host = |value: &StringMatch, lenient| host(value, request.authority, lenient);
    let method = |value: &StringMatch| text(value, request.method.as_bytes());
    ports
        && (operation.hosts.is_empty() || operation.hosts.iter().any(|value| is_host(value, lenient)))
        && !operation.not_hosts.iter().any(|value| is_host(value, !lenient))
        && field(&operation.methods, &operation.not_methods, method)
        && field(&operation.paths, &operation.not_paths, |value| path(value, request.path))
}

/// Of what only HTTP has nothing is left of a connection's condition: it holds.
fn condition_holds(condition: &Condition, asked: &Asked<'_>, lenient: bool) -> bool {
    let (values, not_values) = (&condition.values, &condition.not_values);
    let optional = |found: Option<&str>| field(values, not_values, |value| found.is_some_and(|found| text(value, found.as_bytes())));
    let address = |found: Option<IpAddr>| {
        (values.is_empty() || values.iter().any(|value| address_is(value, found, lenient)))
            && !not_values.iter().any(|value| address_is(value, found, !lenient))
    };
    let token = |holds: &dyn Fn(Option<&Token>) -> bool| asked.request.is_none_or(|request| holds(request.token));
    let any = |found: &[Arc<str>]| field(values, not_values, |value| found.iter().any(|found| text(value, found.as_bytes())));
    match &condition.attribute {
        Attribute::SourceIp => address(asked.source()),
        Attribute::DestinationIp => address(asked.destination.map(|address| address.to_canonical())),
        Attribute::SourceNamespace => optional(asked.namespace()),
        Attribute::SourcePrincipal => field(values, not_values, |value| asked.is_principal(value)),
        Attribute::ServerName => match asked.server_name {
            ServerName::Unknown => (values.is_empty() && not_values.is_empty()) || lenient,
            ServerName::Named(name) => optional(Some(name)),
            ServerName::Absent => optional(None),
        },
        Attribute::DestinationPort => optional(Some(&asked.port.to_string())),
        Attribute::SourceServiceAccount => field(values, not_values, |value| asked.is_service_account(value)),
        Attribute::RemoteIp => asked.request.is_none_or(|request| address(remote(request))),
        Attribute::RequestHeader(name) => asked.request.is_none_or(|request| {
            (values.is_empty() || values.iter().any(|value| header(value, request.headers, name, lenient)))
                && !not_values.iter().any(|value| header(value, request.headers, name, !lenient))
        }),
        Attribute::TokenPrincipal => token(&|token| optional(token.map(|token| &*token.principal))),
        Attribute::TokenPresenter => token(&|token| optional(token.and_then(|token| token.presenter.as_deref()))),
        Attribute::TokenAudiences => token(&|token| any(token.map_or(&[], |token| &token.audiences))),
        Attribute::TokenClaim(path) => token(&|token| any(token.map_or(&[], |token| token.claim(path)))),
    }
}

/// A field holds when it is empty or one value matches, and none of the negated values does.
fn field<T>(values: &[T], negated: &[T], matches: impl Fn(&T) -> bool) -> bool {
    (values.is_empty() || values.iter().any(&matches)) && !negated.iter().any(&matches)
}

/// The same for blocks of addresses; an address that nobody knows is a doubt.
fn blocks(values: &[IpNet], negated: &[IpNet], found: Option<IpAddr>, lenient: bool) -> bool {
    match found {
        Some(found) => field(values, negated, |block| block.contains(&found)),
        None => (values.is_empty() && negated.is_empty()) || lenient,
    }
}

/// A block or an address written as text. One that cannot be read is a doubt.
fn address_is(value: &StringMatch, found: Option<IpAddr>, doubt: bool) -> bool {
    let Some(found) = found else { return doubt };
    match value {
        StringMatch::Presence => true,
        StringMatch::Exact(block) => match (block.parse::<IpNet>(), block.parse::<IpAddr>()) {
            (Ok(block), _) => block.contains(&found),
            (_, Ok(address)) => address.to_canonical() == found,
            _ => doubt,
        },
        StringMatch::Prefix(_) | StringMatch::Suffix(_) => doubt,
    }
}

fn remote(request: &RequestFacts<'_>) -> Option<IpAddr> {
    request.remote_address.or(request.caller.address).map(|address| address.to_canonical())
}

fn is_account(account: &ServiceAccountMatch, asked: &Asked<'_>) -> bool {
    let identity = asked.caller.identity.as_ref();
    identity.is_some_and(|identity| identity.namespace == account.namespace && identity.service_account == account.service_account)
}

fn text(value: &StringMatch, found: &[u8]) -> bool {
    match value {
        StringMatch::Exact(exact) => found == exact.as_bytes(),
        StringMatch::Prefix(prefix) => found.starts_with(prefix.as_bytes()),
        StringMatch::Suffix(suffix) => found.ends_with(suffix.as_bytes()),
        StringMatch::Presence => !found.is_empty(),
    }
}

/// The authority as sent, without case. In doubt also without the dot that may end a name: `admin.` is `admin` to a server.
fn host(value: &StringMatch, authority: &str, doubt: bool) -> bool {
    if host_text(value, authority.as_bytes()) {
        return true;
    }
    let (name, port) = authority.split_once(':').unwrap_or((authority, ""));
    match name.strip_suffix('.') {
        Some(name) if doubt && port.is_empty() => host_text(value, name.as_bytes()),
        Some(name) if doubt => host_text(value, format!("{name}:{port}").as_bytes()),
        _ => false,
    }
}

fn host_text(value: &StringMatch, found: &[u8]) -> bool {
    let equal = |wanted: &str, found: Option<&[u8]>| found.is_some_and(|found| found.eq_ignore_ascii_case(wanted.as_bytes()));
    match value {
        StringMatch::Exact(exact) => equal(exact, Some(found)),
        StringMatch::Prefix(prefix) => equal(prefix, found.get(..prefix.len())),
        StringMatch::Suffix(suffix) => equal(suffix, found.len().checked_sub(suffix.len()).and_then(|at| found.get(at..))),
        StringMatch::Presence => !found.is_empty(),
    }
}

/// A header's value; several of one name are one value, joined by commas. In doubt also each by itself, since a server may take any.
fn header(value: &StringMatch, headers: &HeaderMap, name: &str, doubt: bool) -> bool {
    let mut values = headers.get_all(name).iter();
    let Some(first) = values.next() else { return false };
    if values.next().is_none() {
        return text(value, first.as_bytes());
    }
    let all: Vec<&[u8]> = headers.get_all(name).iter().map(|value| value.as_bytes()).collect();
    text(value, &all.join(&b',')) || (doubt && all.into_iter().any(|found| text(value, found)))
}

fn path(value: &PathMatch, found: &str) -> bool {
    match value {
        PathMatch::Text(value) => text(value, found.as_bytes()),
        PathMatch::Template(segments) => template(segments, found),
    }
}

/// Whether a path is of the template: segment by segment; [`Segment::Rest`] takes what is left, which may be empty but not missing its
/// slash (`/a/{**}` is `/a/` and `/a/b/c`, not `/a`).
fn template(segments: &[Segment], path: &str) -> bool {
    let Some(path) = path.strip_prefix('/') else { return false };
    let mut found = path.split('/');
    for segment in segments {
        let Some(found) = found.next() else { return false };
        match segment {
            Segment::Literal(literal) if **literal == *found => {}
            Segment::One if !found.is_empty() => {}
            Segment::Rest => return true,
            Segment::Literal(_) | Segment::One => return false,
        }
    }
    found.next().is_none()
}
