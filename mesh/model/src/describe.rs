//! Routes, matches, destinations and balancers as a user would say them: in what a waypoint shows of itself and in what `tropis` tells.

use std::sync::Arc;

use crate::{
    pool::{Balancer, PoolKey},
    route::{Destination, Forward, HttpRoute, Origin, RequestMatch, RouteAction, TextMatch, ValueMatch},
};

/// `VirtualService shop/reviews spec.http[0]`.
pub fn origin(origin: &Origin) -> String {
    match origin.field.is_empty() {
        true => format!("{} {}", origin.kind, origin.object),
        false => format!("{} {} {}", origin.kind, origin.object, origin.field),
    }
}

/// The conditions of a route: `/api* and headers[end-user]=jason, or /*`.
pub fn matches(route: &HttpRoute) -> String {
    if route.matches.is_empty() {
        return "/*".to_owned();
    }
    route.matches.iter().map(one_match).collect::<Vec<_>>().join(", or ")
}

fn one_match(one: &RequestMatch) -> String {
    let mut parts = Vec::new();
    if let Some(uri) = &one.uri {
        parts.push(text(uri) + if one.ignore_uri_case { " (any case)" } else { "" });
    }
    let fields = [("method", &one.method), ("scheme", &one.scheme), ("authority", &one.authority)];
    parts.extend(fields.into_iter().filter_map(|(name, wanted)| Some(format!("{name}={}", text(wanted.as_ref()?)))));
    let named = |kind: &str, list: &[(Arc<str>, ValueMatch)]| -> Vec<String> {
        list.iter().map(|(name, wanted)| format!("{kind}[{name}]{}", value(wanted))).collect()
    };
    parts.extend(named("headers", &one.headers));
    parts.extend(named("withoutHeaders", &one.without_headers));
    parts.extend(named("queryParams", &one.query));
    parts.extend(one.source_labels.iter().map(|(name, value)| format!("sourceLabels[{name}]={value}")));
    parts.extend(one.source_namespace.iter().map(|namespace| format!("sourceNamespace={namespace}")));
    if parts.is_empty() { "/*".to_owned() } else { parts.join(" and ") }
}

fn text(wanted: &TextMatch) -> String {
    match wanted {
        TextMatch::Exact(text) => text.to_string(),
        TextMatch::Prefix(text) => format!("{text}*"),
        TextMatch::PathPrefix(text) => format!("{}/*", text.trim_end_matches('/')),
        TextMatch::Regex(pattern) => format!("~{}", pattern.source),
    }
}

fn value(wanted: &ValueMatch) -> String {
    match wanted {
        ValueMatch::Present => String::new(),
        ValueMatch::Text(wanted) => format!("={}", text(wanted)),
    }
}

/// What a route does: `reviews.shop:9080/v1 90%, reviews.shop:9080/v2 10%`.
pub fn action(route: &HttpRoute) -> String {
    match &route.action {
        RouteAction::Forward(forward) => forwarded(forward),
        RouteAction::Redirect(redirect) => format!("redirect {}", redirect.status),
        RouteAction::Respond(response) => format!("respond {}", response.status),
    }
}

fn forwarded(forward: &Forward) -> String {
    let mut parts = destinations(&forward.destinations);
    parts.extend(
        forward.mirrors.iter().map(|mirror| format!("mirror {} {}", pool(&mirror.pool), percent(u64::from(mirror.share_ppm), 1_000_000))),
    );
    parts.join(", ")
}

/// Destinations with their shares.
pub fn destinations(destinations: &[Destination]) -> Vec<String> {
    let total: u64 = destinations.iter().map(|one| u64::from(one.weight)).sum();
    let one = |one: &Destination| match destinations.len() {
        1 => pool(&one.pool),
        _ => format!("{} {}", pool(&one.pool), percent(u64::from(one.weight), total)),
    };
    destinations.iter().map(one).collect()
}

/// A share in percent, with one decimal where it needs one.
pub fn percent(part: u64, total: u64) -> String {
    if total == 0 {
        return "0%".to_owned();
    }
    let tenths = (part * 1000 + total / 2) / total;
    match tenths % 10 {
        0 => format!("{}%", tenths / 10),
        rest => format!("{}.{rest}%", tenths / 10),
    }
}

/// `reviews.shop:9080/v1`.
pub fn pool(key: &PoolKey) -> String {
    let host = key.host.hostname.split(".svc.").next().unwrap_or(&key.host.hostname);
    match &key.subset {
        Some(subset) => format!("{host}:{}/{subset}", key.port),
        None => format!("{host}:{}", key.port),
    }
}

/// A balancer, as a DestinationRule names it.
pub fn balancer(balancer: &Balancer) -> &'static str {
    match balancer {
        Balancer::LeastRequest => "LEAST_REQUEST",
        Balancer::RoundRobin => "ROUND_ROBIN",
        Balancer::Random => "RANDOM",
        Balancer::ConsistentHash { .. } => "CONSISTENT_HASH",
        Balancer::Passthrough => "PASSTHROUGH",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_rounded_to_what_is_worth_telling() {
        assert_eq!(percent(90, 100), "90%");
        assert_eq!(percent(1, 3), "33.3%");
        assert_eq!(percent(0, 0), "0%");
        assert_eq!(percent(500_000, 1_000_000), "50%");
    }

    #[test]
    fn a_match_reads_as_it_was_written() {
        let one = RequestMatch {
            uri: Some(TextMatch::Prefix("/api".into())),
            ignore_uri_case: true,
            method: Some(TextMatch::Exact("GET".into())),
            headers: vec![("end-user".into(), ValueMatch::Text(TextMatch::regex("ja.*").unwrap())), ("x".into(), ValueMatch::Present)],
            ..RequestMatch::default()
        };
        assert_eq!(one_match(&one), "/api* (any case) and method=GET and headers[end-user]=~ja.* and headers[x]");
        assert_eq!(one_match(&RequestMatch::default()), "/*");
    }
}
