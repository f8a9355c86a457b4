//! Delegation (traffic-api.md 1.10): a rule of the root and a rule of its delegate become one.

use std::collections::BTreeMap;

use tropis_crds::istio::{
    value::{StringMatch, StringMatches},
    virtual_service::{HttpMatch, HttpRoute},
};
use tropis_model::bounds;

/// What two rules make.
pub(super) enum Merged {
    /// This one.
    Rule(Box<HttpRoute>),
    /// None: a match of the delegate contradicts every match of the root.
    Nothing,
    /// One with more matches than a waypoint takes.
    TooMany,
}

/// The two rules in one.
pub(super) fn merge(root: &HttpRoute, delegate: &HttpRoute) -> Merged {
    let mut merged = delegate.clone();
    merged.matches = match matches(&root.matches, &delegate.matches) {
        Some(matches) if matches.len() > bounds::MATCHES => return Merged::TooMany,
        Some(matches) => matches,
        None => return Merged::Nothing,
    };
    merged.name = joined(&root.name, &delegate.name);
    merged.rewrite = merged.rewrite.or_else(|| root.rewrite.clone());
    merged.timeout = merged.timeout.or(root.timeout);
    merged.retries = merged.retries.or_else(|| root.retries.clone());
    merged.fault = merged.fault.or_else(|| root.fault.clone());
    merged.cors_policy = merged.cors_policy.or_else(|| root.cors_policy.clone());
    merged.headers = merged.headers.or_else(|| root.headers.clone());
    if merged.mirror.is_none() && merged.mirrors.is_empty() {
        merged.mirror = root.mirror.clone();
        merged.mirrors = root.mirrors.clone();
        merged.mirror_percentage = root.mirror_percentage;
        merged.mirror_percent = root.mirror_percent;
    }
    // A redirect or an answer takes none of what forwards.
    if merged.redirect.is_some() || merged.direct_response.is_some() {
        (merged.rewrite, merged.fault) = (None, None);
    }
    Merged::Rule(Box::new(merged))
}

fn joined(root: &str, delegate: &str) -> String {
    match (root, delegate) {
        ("", name) | (name, "") => name.to_owned(),
        (root, delegate) => format!("{root}-{delegate}"),
    }
}

/// The matches of both; `None` when there are none, and no more than tell that there are too many.
fn matches(root: &[HttpMatch], delegate: &[HttpMatch]) -> Option<Vec<HttpMatch>> {
    match (root, delegate) {
        ([], all) | (all, []) => return Some(all.to_vec()),
        _ => {}
    }
    let mut merged = Vec::new();
    for leaf in delegate {
        let before = merged.len();
        merged.extend(root.iter().filter(|root| !contradict(root, leaf)).map(|root| both(root, leaf)));
        if merged.len() == before {
            return None;
        }
        if merged.len() > bounds::MATCHES {
            break;
        }
    }
    Some(merged)
}

/// Whether nothing can be what both ask for, or the delegate asks for more than the root lets it.
fn contradict(root: &HttpMatch, leaf: &HttpMatch) -> bool {
    let texts = [(&root.uri, &leaf.uri), (&root.scheme, &leaf.scheme), (&root.method, &leaf.method), (&root.authority, &leaf.authority)];
    let maps = [(&root.headers, &leaf.headers), (&root.without_headers, &leaf.without_headers), (&root.query_params, &leaf.query_params)];
    let labels = root.source_labels.iter().any(|(key, value)| leaf.source_labels.get(key).is_some_and(|own| own != value));
    let namespaces = !root.source_namespace.is_empty() && root.source_namespace != leaf.source_namespace;
    let gateways = !root.gateways.is_empty() && leaf.gateways.iter().any(|gateway| !root.gateways.contains(gateway));
    texts.into_iter().any(|(root, leaf)| text_contradicts(root.as_ref(), leaf.as_ref()))
        || maps.into_iter().any(|(root, leaf)| map_contradicts(root, leaf))
        || root.ignore_uri_case != leaf.ignore_uri_case
        || root.port.zip(leaf.port).is_some_and(|(root, leaf)| root != leaf)
        || labels
        || namespaces
        || gateways
}

fn text_contradicts(root: Option<&StringMatch>, leaf: Option<&StringMatch>) -> bool {
    match (root, leaf) {
        (None, _) | (_, None) | (Some(StringMatch::Present), _) => false,
        (Some(StringMatch::Regex(_)), Some(_)) => true,
        (Some(StringMatch::Exact(root)), Some(leaf)) => !matches!(leaf, StringMatch::Exact(text) if text == root),
        (Some(StringMatch::Prefix(root)), Some(leaf)) => match leaf {
            StringMatch::Exact(text) | StringMatch::Prefix(text) => !text.starts_with(root.as_str()),
            StringMatch::Regex(_) | StringMatch::Present => true,
        },
    }
}

fn map_contradicts(root: &StringMatches, leaf: &StringMatches) -> bool {
    root.0.iter().any(|(name, wanted)| leaf.0.get(name).is_some_and(|own| text_contradicts(wanted.as_ref(), own.as_ref())))
}

/// What both ask for; where both say something, the delegate is the narrower.
fn both(root: &HttpMatch, leaf: &HttpMatch) -> HttpMatch {
    let text = |root: &Option<StringMatch>, leaf: &Option<StringMatch>| leaf.clone().or_else(|| root.clone());
    let map = |root: &StringMatches, leaf: &StringMatches| StringMatches(union(&root.0, &leaf.0));
    HttpMatch {
        name: joined(&root.name, &leaf.name),
        uri: text(&root.uri, &leaf.uri),
        scheme: text(&root.scheme, &leaf.scheme),
        method: text(&root.method, &leaf.method),
        authority: text(&root.authority, &leaf.authority),
        headers: map(&root.headers, &leaf.headers),
        without_headers: map(&root.without_headers, &leaf.without_headers),
        query_params: map(&root.query_params, &leaf.query_params),
        ignore_uri_case: leaf.ignore_uri_case,
        port: leaf.port.or(root.port),
        source_labels: union(&root.source_labels, &leaf.source_labels),
        source_namespace: leaf.source_namespace.clone(),
        gateways: if leaf.gateways.is_empty() { root.gateways.clone() } else { leaf.gateways.clone() },
        stat_prefix: if leaf.stat_prefix.is_empty() { root.stat_prefix.clone() } else { leaf.stat_prefix.clone() },
    }
}

fn union<V: Clone>(root: &BTreeMap<String, V>, leaf: &BTreeMap<String, V>) -> BTreeMap<String, V> {
    root.iter().chain(leaf).map(|(key, value)| (key.clone(), value.clone())).collect()
}
