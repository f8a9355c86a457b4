//! What is refused in a route of HTTP requests.

use tropis_model::bounds;

use super::super::{
    CorsPolicy, Fault, Headers, HttpMatch, HttpRoute, Redirect, Retry, Rewrite, Spec, StringMatch, StringMatches, pseudo_header,
};
use super::{validate_destination, validate_weights};
use crate::{decode::About, istio::check, names};

/// Conditions of `retryOn` besides statuses.
pub(crate) const RETRY_ON: &[&str] = &[
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "envoy-ratelimited",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

pub(super) fn validate(about: &mut About<'_>, spec: &Spec, route: &HttpRoute, path: &str) {
    validate_shape(about, spec, route, path);
    for (index, entry) in route.matches.iter().enumerate() {
        validate_match(about, entry, &format!("{path}.match[{index}]"));
    }
    for (index, entry) in route.route.iter().enumerate() {
        let path = format!("{path}.route[{index}]");
        validate_destination(about, &entry.destination, &format!("{path}.destination"));
        validate_headers(about, entry.headers.as_ref(), &format!("{path}.headers"));
    }
    validate_weights(about, route.route.iter().map(|entry| entry.weight), &format!("{path}.route"));
    if let Some(redirect) = &route.redirect {
        validate_redirect(about, route, redirect, &format!("{path}.redirect"));
    }
    if let Some(response) = &route.direct_response {
        let path = format!("{path}.directResponse");
        check::status(about, &format!("{path}.status"), Some(response.status));
        let body = response.body.as_ref();
        if body.is_some_and(|body| body.string.is_some() == body.bytes.is_some()) {
            about.refuse(&format!("{path}.body"), "", "is not one body", "exactly one of string and bytes");
        } else if body.is_some_and(|body| body.as_bytes().len() > bounds::BODY_BYTES) {
            about.refuse(&format!("{path}.body"), "", "is too large", "at most 1000000 bytes");
        }
    }
    if let Some(rewrite) = &route.rewrite {
        validate_rewrite(about, route, rewrite, &format!("{path}.rewrite"));
    }
    check::duration(about, &format!("{path}.timeout"), route.timeout);
    if let Some(retries) = &route.retries {
        validate_retries(about, retries, &format!("{path}.retries"));
    }
    if let Some(fault) = &route.fault {
        validate_fault(about, fault, &format!("{path}.fault"));
    }
    validate_mirrors(about, route, path);
    if let Some(cors) = &route.cors_policy {
        validate_cors(about, cors, &format!("{path}.corsPolicy"));
    }
    validate_headers(about, route.headers.as_ref(), &format!("{path}.headers"));
}

/// Exactly one thing is done, and what stands beside it fits.
fn validate_shape(about: &mut About<'_>, spec: &Spec, route: &HttpRoute, path: &str) {
    let actions = [
        ("route", !route.route.is_empty()),
        ("redirect", route.redirect.is_some()),
        ("directResponse", route.direct_response.is_some()),
        ("delegate", route.delegate.is_some()),
    ];
    let chosen: Vec<&str> = actions.iter().filter(|(_, present)| *present).map(|(name, _)| *name).collect();
    let accepted = "exactly one of route, redirect, directResponse and delegate";
    match chosen.as_slice() {
        [] => about.refuse(path, "", "does nothing with what it matches", accepted),
        [_] => {}
        several => about.refuse(path, several.join(" beside "), "is ambiguous", accepted),
    }
    if route.rewrite.is_some() && (route.redirect.is_some() || route.direct_response.is_some()) {
        about.refuse(&format!("{path}.rewrite"), "", "is only allowed with route", "remove it");
    }
    if route.fault.is_some() && (route.redirect.is_some() || route.direct_response.is_some()) {
        about.refuse(&format!("{path}.fault"), "", "is only allowed with route", "remove it");
    }
    if let Some(delegate) = &route.delegate {
        if spec.hosts.is_empty() {
            about.refuse(&format!("{path}.delegate"), "", "is not allowed without spec.hosts", "delegation has one level");
        }
        if !names::is_dns_subdomain(&delegate.name) {
            about.refuse(&format!("{path}.delegate.name"), format!("{:?}", delegate.name), "is not a name", "a VirtualService's name");
        }
        if !delegate.namespace.is_empty() && !names::is_dns_label(&delegate.namespace) {
            let found = format!("{:?}", delegate.namespace);
            about.refuse(&format!("{path}.delegate.namespace"), found, "is not a namespace", "at most 63 of a-z, 0-9 and -");
        }
    }
}

fn validate_match(about: &mut About<'_>, entry: &HttpMatch, path: &str) {
    if let Some(uri) = &entry.uri {
        check::text_match(about, &format!("{path}.uri"), uri, true);
    }
    for (name, text) in [("scheme", &entry.scheme), ("method", &entry.method), ("authority", &entry.authority)] {
        if let Some(text) = text {
            check::text_match(about, &format!("{path}.{name}"), text, false);
        }
    }
    let maps = [("headers", &entry.headers), ("withoutHeaders", &entry.without_headers), ("queryParams", &entry.query_params)];
    for (name, matches) in maps {
        validate_matches(about, matches, &format!("{path}.{name}"));
    }
    for (list, matches) in [("headers", &entry.headers), ("withoutHeaders", &entry.without_headers)] {
        for (name, field) in matches.0.keys().filter_map(|name| Some((name, pseudo_header(name)?))) {
            let effect = format!("the entry is left out; the request's {field} is matched by the field {field} alone");
            check::not_honoured(about, &format!("{path}.{list}[{name}]"), &effect);
        }
    }
    check::port(about, &format!("{path}.port"), entry.port);
    check::labels(about, &entry.source_labels, &format!("{path}.sourceLabels"));
    if !entry.source_namespace.is_empty() && !names::is_dns_label(&entry.source_namespace) {
        let found = format!("{:?}", entry.source_namespace);
        about.refuse(&format!("{path}.sourceNamespace"), found, "is not a namespace", "at most 63 of a-z, 0-9 and -");
    }
    check::gateways(about, &entry.gateways, &format!("{path}.gateways"));
    if !entry.stat_prefix.is_empty() {
        check::not_honoured(about, &format!("{path}.statPrefix"), "no statistics are kept under it");
    }
}

/// How many patterns the rules have: in matches, in origins of CORS and in rewrites.
pub(super) fn patterns(rules: &[HttpRoute]) -> usize {
    let is_pattern = |text: &&StringMatch| matches!(text, StringMatch::Regex(_));
    let of_match = |entry: &HttpMatch| {
        let texts = [&entry.uri, &entry.scheme, &entry.method, &entry.authority].into_iter().flatten();
        let maps = [&entry.headers, &entry.without_headers, &entry.query_params].into_iter().flat_map(|map| map.0.values().flatten());
        texts.chain(maps).filter(is_pattern).count()
    };
    let of_rule = |rule: &HttpRoute| {
        let origins = rule.cors_policy.iter().flat_map(|cors| &cors.allow_origins).filter(is_pattern).count();
        let rewrites = rule.rewrite.iter().filter(|rewrite| rewrite.uri_regex_rewrite.is_some()).count();
        rule.matches.iter().map(of_match).sum::<usize>() + origins + rewrites
    };
    rules.iter().map(of_rule).sum()
}

/// Matches of headers or query parameters.
fn validate_matches(about: &mut About<'_>, matches: &StringMatches, path: &str) {
    for (name, entry) in &matches.0 {
        let field = format!("{path}[{name}]");
        match entry {
            _ if name.is_empty() => about.refuse(path, "\"\"", "is an empty name", "a name"),
            None => about.refuse(&field, "null", "is not a match", "{} for presence, or exact, prefix or regex"),
            // Presence, as Istio reads it; not a pattern.
            Some(StringMatch::Present) => {}
            Some(StringMatch::Regex(pattern)) if pattern == "*" => {}
            Some(text) => check::text_match(about, &field, text, false),
        }
    }
}

fn validate_redirect(about: &mut About<'_>, route: &HttpRoute, redirect: &Redirect, path: &str) {
    let texts = [&redirect.uri, &redirect.prefix_rewrite, &redirect.authority, &redirect.scheme];
    if texts.iter().all(|text| text.is_empty()) && redirect.port.is_none() && redirect.derive_port.is_none() {
        about.refuse(path, "", "leads to where the request came from", "at least one of uri, prefixRewrite, authority, scheme and port");
    }
    if !redirect.uri.is_empty() && !redirect.prefix_rewrite.is_empty() {
        about.refuse(path, "uri beside prefixRewrite", "is ambiguous", "one of them");
    }
    let by_prefix = |entry: &HttpMatch| matches!(entry.uri, Some(StringMatch::Prefix(_)));
    if !redirect.prefix_rewrite.is_empty() && (route.matches.is_empty() || !route.matches.iter().all(by_prefix)) {
        let found = format!("{:?}", redirect.prefix_rewrite);
        about.refuse(&format!("{path}.prefixRewrite"), found, "has no prefix to replace", "uri.prefix in every match");
    }
    if redirect.port.is_some() && redirect.derive_port.is_some() {
        about.refuse(path, "port beside derivePort", "is ambiguous", "one of them");
    }
    check::port(about, &format!("{path}.port"), redirect.port);
    if let Some(code) = redirect.redirect_code.filter(|code| ![301, 302, 303, 307, 308].contains(code)) {
        about.refuse(&format!("{path}.redirectCode"), code.to_string(), "is not a redirect", "301, 302, 303, 307 or 308");
    }
}

fn validate_rewrite(about: &mut About<'_>, route: &HttpRoute, rewrite: &Rewrite, path: &str) {
    if rewrite.uri.is_empty() && rewrite.authority.is_empty() && rewrite.uri_regex_rewrite.is_none() {
        about.refuse(path, "an empty mapping", "changes nothing", "at least one of uri, uriRegexRewrite and authority");
    }
    if let Some(regex) = &rewrite.uri_regex_rewrite {
        if !rewrite.uri.is_empty() {
            about.refuse(path, "uri beside uriRegexRewrite", "is ambiguous", "one of them");
        }
        let path = format!("{path}.uriRegexRewrite");
        if regex.pattern.is_empty() || regex.rewrite.is_empty() {
            about.refuse(&path, "", "is incomplete", "both match and rewrite");
        }
        check::pattern(about, &format!("{path}.match"), &regex.pattern);
    }
    let sets_host = |headers: &Option<Headers>| {
        let request = headers.as_ref().map(|headers| &headers.request);
        request.is_some_and(|request| request.set.keys().chain(request.add.keys()).any(|name| is_authority(name)))
    };
    if !rewrite.authority.is_empty() && (sets_host(&route.headers) || route.route.iter().any(|entry| sets_host(&entry.headers))) {
        about.refuse(&format!("{path}.authority"), "", "stands beside a header operation on the host", "one of them");
    }
}

fn validate_retries(about: &mut About<'_>, retries: &Retry, path: &str) {
    check::within(about, &format!("{path}.attempts"), Some(retries.attempts), 0, i64::from(i32::MAX));
    let others = retries.per_try_timeout.is_some() || !retries.retry_on.is_empty() || retries.backoff.is_some();
    if retries.attempts == 0 && (others || retries.retry_remote_localities.is_some() || retries.retry_ignore_previous_hosts.is_some()) {
        about.refuse(
            &format!("{path}.attempts"),
            "0",
            "turns retries off, which nothing beside it can refine",
            "at least 1, or nothing else",
        );
    }
    check::duration(about, &format!("{path}.perTryTimeout"), retries.per_try_timeout);
    check::duration(about, &format!("{path}.backoff"), retries.backoff);
    for condition in retries.retry_on.split(',').filter(|_| !retries.retry_on.is_empty()) {
        let status = condition.parse().is_ok_and(|status: u16| (100..=599).contains(&status));
        if !status && !RETRY_ON.contains(&condition) {
            let accepted = format!("{} or a status, with commas and no blanks between them", RETRY_ON.join(", "));
            about.refuse(&format!("{path}.retryOn"), format!("{condition:?}"), "is not a condition", &accepted);
        } else if ["retriable-headers", "envoy-ratelimited", "http3-post-connect-failure"].contains(&condition) {
            check::not_honoured(about, &format!("{path}.retryOn"), &format!("{condition} calls for no retry"));
        }
    }
}

fn validate_fault(about: &mut About<'_>, fault: &Fault, path: &str) {
    if fault.delay.is_none() && fault.abort.is_none() {
        about.refuse(path, "an empty mapping", "is no fault", "delay or abort");
    }
    if let Some(delay) = &fault.delay {
        let path = format!("{path}.delay");
        if delay.exponential_delay.is_some() {
            about.refuse(&format!("{path}.exponentialDelay"), "", "is not supported, by Istio neither", "fixedDelay");
        } else if delay.fixed_delay.is_none() {
            about.refuse(&format!("{path}.fixedDelay"), "", "is missing", "for example \"5s\"");
        }
        check::duration(about, &format!("{path}.fixedDelay"), delay.fixed_delay);
        check::percent(about, &format!("{path}.percentage"), delay.percentage);
        check::within(about, &format!("{path}.percent"), delay.percent, 0, 100);
        if delay.percent.is_some() {
            check::deprecated(about, &format!("{path}.percent"), "percentage.value", "it is obeyed where percentage is absent");
        }
    }
    if let Some(abort) = &fault.abort {
        let path = format!("{path}.abort");
        if abort.http2_error.is_some() {
            about.refuse(&format!("{path}.http2Error"), "", "is not supported, by Istio neither", "httpStatus or grpcStatus");
        } else if abort.http_status.is_some() == abort.grpc_status.is_some() {
            about.refuse(&path, "", "has not one status", "exactly one of httpStatus and grpcStatus");
        }
        check::status(about, &format!("{path}.httpStatus"), abort.http_status);
        if let Some(status) = abort.grpc_status.as_deref().filter(|status| super::super::action::grpc_status(status).is_none()) {
            about.refuse(&format!("{path}.grpcStatus"), format!("{status:?}"), "is not a gRPC status", "for example UNAVAILABLE or \"14\"");
        }
        check::percent(about, &format!("{path}.percentage"), abort.percentage);
    }
}

fn validate_mirrors(about: &mut About<'_>, route: &HttpRoute, path: &str) {
    if route.mirror.is_some() && !route.mirrors.is_empty() {
        about.refuse(path, "mirror beside mirrors", "is ambiguous", "one of them");
    }
    if let Some(mirror) = &route.mirror {
        validate_destination(about, mirror, &format!("{path}.mirror"));
    }
    check::percent(about, &format!("{path}.mirrorPercentage"), route.mirror_percentage);
    check::within(about, &format!("{path}.mirrorPercent"), route.mirror_percent.map(i64::from), 0, 100);
    if route.mirror_percent.is_some() {
        let effect = "it is obeyed where mirrorPercentage is absent";
        check::deprecated(about, &format!("{path}.mirrorPercent"), "mirrorPercentage.value", effect);
    }
    for (index, mirror) in route.mirrors.iter().enumerate() {
        let path = format!("{path}.mirrors[{index}]");
        validate_destination(about, &mirror.destination, &format!("{path}.destination"));
        check::percent(about, &format!("{path}.percentage"), mirror.percentage);
    }
}

fn validate_cors(about: &mut About<'_>, cors: &CorsPolicy, path: &str) {
    for (index, origin) in cors.allow_origins.iter().enumerate() {
        check::text_match(about, &format!("{path}.allowOrigins[{index}]"), origin, false);
    }
    if !cors.allow_origin.is_empty() {
        check::deprecated(about, &format!("{path}.allowOrigin"), "allowOrigins", "it is obeyed where allowOrigins is absent");
    }
    check::duration(about, &format!("{path}.maxAge"), cors.max_age);
    if cors.max_age.is_some_and(|age| age.0.subsec_nanos() != 0) {
        about.refuse(&format!("{path}.maxAge"), "", "has a fraction of a second", "whole seconds");
    }
    for (name, list) in
        [("allowHeaders", &cors.allow_headers), ("exposeHeaders", &cors.expose_headers), ("allowMethods", &cors.allow_methods)]
    {
        for (index, text) in list.iter().enumerate().filter(|(_, text)| !is_token(text)) {
            about.refuse(&format!("{path}.{name}[{index}]"), format!("{text:?}"), "is not a name", "letters, digits and -");
        }
    }
}

fn validate_headers(about: &mut About<'_>, headers: Option<&Headers>, path: &str) {
    let Some(headers) = headers else { return };
    for (side, operations) in [("request", &headers.request), ("response", &headers.response)] {
        for (name, map) in [("set", &operations.set), ("add", &operations.add)] {
            for (header, value) in map {
                let field = format!("{path}.{side}.{name}[{header}]");
                let allowed =
                    is_token(header) && !(side == "response" && is_authority(header)) || side == "request" && header == ":authority";
                if !allowed {
                    about.refuse(&field, format!("{header:?}"), "is not a header that may be changed here", "a header's name");
                }
                validate_value(about, value, &field);
            }
        }
        for (index, header) in operations.remove.iter().enumerate() {
            if !is_token(header) || is_authority(header) {
                let field = format!("{path}.{side}.remove[{index}]");
                about.refuse(&field, format!("{header:?}"), "is not a header that may be removed", "a header's name");
            }
        }
    }
}

/// A value: visible characters; a `%` begins or ends a command of Envoy's formatter, `%%` is one `%`.
fn validate_value(about: &mut About<'_>, value: &str, field: &str) {
    let percents = value.replace("%%", "").matches('%').count();
    if value.bytes().any(|byte| (byte < b' ' && byte != b'\t') || byte == 127) {
        about.refuse(field, format!("{value:?}"), "is not a header's value", "text without control characters");
    } else if percents % 2 == 1 {
        about.refuse(field, format!("{value:?}"), "has a command that does not end", "%% for %");
    } else if percents > 0 {
        check::not_honoured(about, field, "Envoy's formatter commands are not supported, so the header stays as it is");
    }
}

fn is_authority(header: &str) -> bool {
    header.eq_ignore_ascii_case("host") || header.eq_ignore_ascii_case(":authority")
}

/// A token of HTTP (RFC 9110 §5.6.2): what names of headers and methods are made of.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}
