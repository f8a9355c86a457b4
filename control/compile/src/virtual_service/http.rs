//! A rule for HTTP requests becomes a route: what it matches.

use tropis_crds::istio::{
    value::StringMatches,
    virtual_service::{self as istio, HttpMatch, pseudo_header},
};
use tropis_model::route::{DirectResponse, HeaderChanges, HttpRoute, RequestMatch, RouteAction, TextMatch};

use super::{Problem, Rendering, Rule, action, counting, counts, texts, texts::BadPattern};
use crate::host::DEFAULT_ROUTE;

/// The route of a rule for a port; `None` when none of its matches is for that port.
pub(super) fn route(rendering: &Rendering<'_>, rule: &Rule<'_>, port: u16) -> Result<Option<HttpRoute>, Problem> {
    if rule.too_many {
        return Err(Problem::Matches);
    }
    let written = &rule.route;
    let Some(matches) = counting(&written.matches, |entry: &HttpMatch| counts(&entry.gateways, entry.port, port)) else { return Ok(None) };
    let matches = matches.iter().enumerate().map(|(index, entry)| request_match(entry, &format!("match[{index}]")));
    let matches = matches.collect::<Result<Vec<_>, _>>()?;
    let (action, headers) = action::action(rendering, rule, port)?;
    Ok(Some(HttpRoute {
        name: name(written).into(),
        origin: rule.origin.clone(),
        matches,
        action,
        headers,
        fault: written.fault.as_ref().and_then(action::fault),
        cors: written.cors_policy.as_ref().map(action::cors).transpose()?,
    }))
}

/// What stands in the place of a rule that cannot be read: everything that comes so far is refused.
pub(super) fn refusal(rule: &Rule<'_>) -> HttpRoute {
    HttpRoute {
        name: name(&rule.route).into(),
        origin: rule.origin.clone(),
        matches: Vec::new(),
        action: RouteAction::Respond(DirectResponse { status: 503, body: b"this route cannot be read".as_slice().into() }),
        headers: HeaderChanges::default(),
        fault: None,
        cors: None,
    }
}

fn name(route: &istio::HttpRoute) -> &str {
    if route.name.is_empty() { DEFAULT_ROUTE } else { &route.name }
}

fn request_match(entry: &HttpMatch, field: &str) -> Result<RequestMatch, BadPattern> {
    let lower = str::to_ascii_lowercase;
    Ok(RequestMatch {
        name: (!entry.name.is_empty()).then(|| entry.name.as_str().into()),
        uri: texts::optional(entry.uri.as_ref(), &format!("{field}.uri.regex"))?,
        ignore_uri_case: entry.ignore_uri_case,
        scheme: texts::optional(entry.scheme.as_ref(), &format!("{field}.scheme.regex"))?,
        method: texts::optional(entry.method.as_ref(), &format!("{field}.method.regex"))?,
        authority: texts::optional(entry.authority.as_ref(), &format!("{field}.authority.regex"))?,
        headers: texts::values(&without_pseudo_headers(&entry.headers), lower, &format!("{field}.headers"))?,
        without_headers: texts::values(&without_pseudo_headers(&entry.without_headers), lower, &format!("{field}.withoutHeaders"))?,
        query: texts::values(&entry.query_params, str::to_owned, &format!("{field}.queryParams"))?,
        source_labels: entry.source_labels.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect(),
        source_namespace: (!entry.source_namespace.is_empty()).then(|| entry.source_namespace.as_str().into()),
    })
}

/// Without what no header is called; Istio leaves those out too (traffic-api.md 1.3).
fn without_pseudo_headers(headers: &StringMatches) -> StringMatches {
    StringMatches(
        headers.0.iter().filter(|(name, _)| pseudo_header(name).is_none()).map(|(name, text)| (name.clone(), text.clone())).collect(),
    )
}

/// Whether a route takes every request, so that none after it is reached.
pub(super) fn takes_all(route: &HttpRoute) -> bool {
    route.matches.is_empty() || route.matches.iter().any(is_everything)
}

/// Whether a match holds for every request.
fn is_everything(entry: &RequestMatch) -> bool {
    let any_path = match &entry.uri {
        None => true,
        Some(TextMatch::Prefix(prefix)) => prefix.is_empty() || &**prefix == "/",
        Some(_) => false,
    };
    let rest = RequestMatch { name: None, uri: None, ignore_uri_case: false, ..entry.clone() };
    any_path && rest == RequestMatch::default()
}
