//! What a route changes in a request: its path, where a redirect leads, its headers. [`Sent`] is the request with all of that.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue};
use thiserror::Error;

use crate::{
    request::{AmbiguousPath, RequestFacts, canonical_host, has_dot_segment},
    route::{
        Destination, Forward, HeaderOperations, HttpRoute, PathRewrite, Redirect, RedirectPort, RequestMatch, TextMatch, UnanchoredPattern,
    },
};

mod sent;

pub use sent::Sent;

/// The new path with its query. `matched` is the match that hit; without one, or without a `uri` in it, the prefix is `/`.
///
/// A prefix and what follows it are joined as they are (`/a` to `/` makes `//c` of `/a/c`, as in Istio); only a path that would not begin
/// with a slash gets one. Errors when two harmless halves make a dot segment (`/a` to `/b/` with `/a../c`), also one beside an escaped slash
/// (`/a..%2Fc`): refuse it with 400, because the upstream would climb where policy saw none.
pub fn path(rewrite: &PathRewrite, matched: Option<&RequestMatch>, path: &str, query: Option<&str>) -> Result<String, AmbiguousPath> {
    let mut changed = changed(rewrite, matched, path);
    if !changed.starts_with('/') {
        changed.insert(0, '/');
    }
    let end = changed.find(['?', '#']).unwrap_or(changed.len());
    if has_dot_segment(&changed[..end]) && !has_dot_segment(path) {
        return Err(AmbiguousPath::RewrittenDotSegment);
    }
    if let Some(query) = query {
        changed.push(if changed.contains('?') { '&' } else { '?' });
        changed.push_str(query);
    }
    Ok(changed)
}

fn changed(rewrite: &PathRewrite, matched: Option<&RequestMatch>, path: &str) -> String {
    match rewrite {
        PathRewrite::Full(replacement) => replacement.to_string(),
        PathRewrite::Pattern { pattern, replacement } => substitute(pattern, replacement, path),
        PathRewrite::Matched(replacement) => match matched.and_then(|matched| matched.uri.as_ref()) {
            Some(TextMatch::Exact(_) | TextMatch::Regex(_)) => replacement.to_string(),
            Some(TextMatch::PathPrefix(prefix)) => replace_segments(prefix, replacement, path),
            Some(TextMatch::Prefix(prefix)) => format!("{replacement}{}", path.get(prefix.len()..).unwrap_or("")),
            None => format!("{replacement}{}", path.strip_prefix('/').unwrap_or(path)),
        },
    }
}

/// Gateway API `ReplacePrefixMatch`: slashes at the end of both prefixes do not count.
fn replace_segments(prefix: &str, replacement: &str, path: &str) -> String {
    let rest = path.get(prefix.trim_end_matches('/').len()..).unwrap_or("");
    match rest {
        "" => replacement.to_owned(),
        rest => format!("{}{rest}", replacement.trim_end_matches('/')),
    }
}

/// Every match of the pattern becomes the replacement.
fn substitute(pattern: &UnanchoredPattern, replacement: &str, path: &str) -> String {
    let mut changed = String::with_capacity(path.len() + replacement.len());
    let mut done = 0;
    for captures in pattern.regex.captures_iter(path) {
        let Some(whole) = captures.get(0) else { continue };
        changed.push_str(&path[done..whole.start()]);
        let mut rest = replacement;
        while let Some(at) = rest.find('\\') {
            changed.push_str(&rest[..at]);
            let Some(next) = rest[at + 1..].chars().next() else {
                rest = "";
                break;
            };
            match next.to_digit(10) {
                Some(group) => changed.push_str(captures.get(group as usize).map_or("", |group| group.as_str())),
                None => changed.push(next),
            }
            rest = &rest[at + 1 + next.len_utf8()..];
        }
        changed.push_str(rest);
        done = whole.end();
    }
    changed.push_str(&path[done..]);
    changed
}

/// The `location` of a redirect: always absolute, so that a path like `//elsewhere` names no host.
///
/// The query is kept unless a new full path brings its own. A port that the caller sent stays, unless the redirect sets one or it was
/// the default of a scheme that changes.
pub fn location(redirect: &Redirect, matched: Option<&RequestMatch>, facts: &RequestFacts<'_>) -> Result<String, AmbiguousPath> {
    let scheme = redirect.scheme.as_deref().unwrap_or(facts.scheme);
    let authority = redirect.authority.as_deref().unwrap_or(facts.authority);
    let (host, sent_port) = split_port(authority);
    let port = match redirect.port {
        Some(RedirectPort::Number(port)) => Some(port).filter(|port| default_port(scheme) != Some(*port)),
        Some(RedirectPort::FromRequest) => Some(facts.port).filter(|port| default_port(scheme) != Some(*port)),
        Some(RedirectPort::FromScheme) => None,
        None if redirect.authority.is_none() && scheme != facts.scheme => {
            sent_port.filter(|port| default_port(facts.scheme) != Some(*port))
        }
        None => sent_port,
    };
    let path = match &redirect.path {
        None => with_query(facts.path, facts.query),
        Some(PathRewrite::Full(full)) if full.contains('?') => full.to_string(),
        Some(PathRewrite::Full(full)) => with_query(full, facts.query),
        Some(rewrite) => path(rewrite, matched, facts.path, facts.query)?,
    };
    let slash = if path.starts_with('/') { "" } else { "/" };
    Ok(match port {
        Some(port) => format!("{scheme}://{host}:{port}{slash}{path}"),
        None => format!("{scheme}://{host}{slash}{path}"),
    })
}

/// The host as it is written, and its port.
fn split_port(authority: &str) -> (&str, Option<u16>) {
    let port = canonical_host(authority).ok().and_then(|host| host.port);
    match (port, authority.rsplit_once(':')) {
        (Some(port), Some((host, _))) => (host, Some(port)),
        _ => (authority, None),
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

/// The query stands before a fragment.
fn with_query(path: &str, query: Option<&str>) -> String {
    let Some(query) = query else { return path.to_owned() };
    match path.split_once('#') {
        Some((path, fragment)) => format!("{path}?{query}#{fragment}"),
        None => format!("{path}?{query}"),
    }
}

/// A change of headers makes no header, or one too many. Answer 500 and name it; compiling should have refused the former.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{name:?} with the value that was made for it is no header, or there are too many")]
pub struct InvalidHeader {
    /// The header's name.
    pub name: String,
}

/// Removes, then sets, then adds. `render` makes a value of what the user wrote: [`literal`], or what also knows `%COMMAND%`s.
/// Returns the authority, if one is set (`host` and `:authority` are no headers here); its last mention wins.
pub fn headers(
    operations: &HeaderOperations,
    headers: &mut HeaderMap,
    render: impl for<'v> Fn(&'v str) -> Cow<'v, str>,
) -> Result<Option<String>, InvalidHeader> {
    for name in &operations.remove {
        if !names_authority(name) {
            headers.remove(&**name);
        }
    }
    let mut authority = None;
    let operations = operations.set.iter().map(|set| (set, true)).chain(operations.add.iter().map(|add| (add, false)));
    for ((name, value), overwrite) in operations {
        let value = render(value);
        if names_authority(name) {
            authority = Some(value.into_owned());
            continue;
        }
        let invalid = || InvalidHeader { name: name.to_string() };
        let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| invalid())?;
        let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| invalid())?;
        match overwrite {
            true => drop(headers.try_insert(header, value).map_err(|_| invalid())?),
            false => drop(headers.try_append(header, value).map_err(|_| invalid())?),
        }
    }
    Ok(authority)
}

/// The headers of a request as its route and then the destination that was drawn change them, `None` if neither does; and the authority
/// that they name, the destination's before the route's.
pub fn request_headers(
    route: &HttpRoute,
    destination: Option<&Destination>,
    headers: &HeaderMap,
) -> Result<(Option<HeaderMap>, Option<String>), InvalidHeader> {
    let of_destination = destination.map(|destination| &destination.headers.request);
    let (mut changed, mut authority) = (None, None);
    for operations in [Some(&route.headers.request), of_destination].into_iter().flatten().filter(|one| !one.is_empty()) {
        let named = self::headers(operations, changed.get_or_insert_with(|| headers.clone()), literal)?;
        authority = named.or(authority);
    }
    Ok((changed, authority))
}

/// The authority that a route sends: what it rewrites to wins where it has one destination, what header changes say (`by_headers`) where
/// several share.
pub fn authority<'a>(forward: &'a Forward, by_headers: Option<&'a str>) -> Option<&'a str> {
    let by_route = forward.rewrite.as_ref().and_then(|rewrite| rewrite.authority.as_deref());
    if forward.destinations.len() > 1 { by_headers.or(by_route) } else { by_route.or(by_headers) }
}

fn names_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority")
}

/// A header's value without commands: `%%` is one percent sign.
pub fn literal(value: &str) -> Cow<'_, str> {
    match value.contains("%%") {
        true => value.replace("%%", "%").into(),
        false => value.into(),
    }
}

#[cfg(test)]
mod tests;
