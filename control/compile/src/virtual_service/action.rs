//! What a rule does with a request: sends it on, redirects it, answers it; and what happens on the way.

use std::{sync::Arc, time::Duration};

use tropis_crds::istio::{
    value::{Percent, StringMatch},
    virtual_service::{self as istio, CorsPolicy, DerivedPort, Headers, UnmatchedPreflights, grpc_status},
};
use tropis_model::route::{
    AbortStatus, Cors, Destination, DirectResponse, Fault, FaultAbort, FaultDelay, Forward, HeaderChanges, HeaderOperations, Mirror,
    PathRewrite, Redirect, RedirectPort, Retries, RetryOn, Rewrite, RouteAction, TextMatch,
};

use super::{
    Rendering, Rule,
    texts::{self, BadPattern},
};

/// All requests.
const ALL_PPM: u32 = 1_000_000;
/// Base of the waits between tries, where nothing else is said.
const BACKOFF: Duration = Duration::from_millis(25);
/// Tries after the first, where nothing else is said.
const ATTEMPTS: u32 = 2;

/// The action of a rule for a port, with its header changes.
pub(super) fn action(rendering: &Rendering<'_>, rule: &Rule<'_>, port: u16) -> Result<(RouteAction, HeaderChanges), BadPattern> {
    let route = &rule.route;
    let headers = route.headers.as_ref().map(changes).unwrap_or_default();
    let action = if let Some(written) = &route.redirect {
        RouteAction::Redirect(redirect(written))
    } else if let Some(written) = &route.direct_response {
        let body = written.body.as_ref().map(|body| body.as_bytes().into()).unwrap_or_default();
        RouteAction::Respond(DirectResponse { status: number(written.status), body })
    } else {
        RouteAction::Forward(Box::new(forward(rendering, rule, port)?))
    };
    Ok((action, headers))
}

fn forward(rendering: &Rendering<'_>, rule: &Rule<'_>, port: u16) -> Result<Forward, BadPattern> {
    let route = &rule.route;
    let namespace = rule.object.metadata.namespace.as_str();
    let pool = |destination: &istio::Destination| rendering.target(namespace, destination).pool(destination, port);
    let alone = route.route.len() == 1;
    let shares = route.route.iter().filter(|entry| alone || entry.weight > 0);
    let destinations = shares.map(|entry| Destination {
        pool: pool(&entry.destination),
        weight: weight(entry.weight, alone),
        headers: entry.headers.as_ref().map(changes).unwrap_or_default(),
    });
    let single = route.mirror.as_ref().map(|mirror| {
        let share = route.mirror_percentage.or(route.mirror_percent.map(|percent| Percent { value: percent.into() }));
        (mirror, share)
    });
    let several = route.mirrors.iter().map(|mirror| (&mirror.destination, mirror.percentage));
    let mirrors = single
        .into_iter()
        .chain(several)
        .map(|(destination, share)| Mirror { pool: pool(destination), share_ppm: share.map_or(ALL_PPM, share_ppm) });
    Ok(Forward {
        destinations: destinations.collect(),
        rewrite: route.rewrite.as_ref().map(rewrite).transpose()?,
        timeout: route.timeout.map(|timeout| timeout.0),
        retries: route.retries.as_ref().map_or_else(default_retries, retries),
        mirrors: mirrors.filter(|mirror| mirror.share_ppm > 0).collect(),
    })
}

/// A weight; one that stands alone counts however small it is.
pub(super) fn weight(written: i64, alone: bool) -> u32 {
    if alone { 1 } else { u32::try_from(written).unwrap_or_default() }
}

/// A share in millionths.
fn share_ppm(share: Percent) -> u32 {
    // Within 0 to 1 000 000: decoding took 0.0 to 100.0.
    (share.value * 10_000.0).round().clamp(0.0, f64::from(ALL_PPM)) as u32
}

/// A small number that decoding has checked.
fn number(written: i64) -> u16 {
    u16::try_from(written).unwrap_or_default()
}

fn rewrite(written: &istio::Rewrite) -> Result<Rewrite, BadPattern> {
    let path = match &written.uri_regex_rewrite {
        Some(regex) => Some(PathRewrite::Pattern {
            pattern: texts::pattern(&regex.pattern, "rewrite.uriRegexRewrite.match")?,
            replacement: regex.rewrite.as_str().into(),
        }),
        None => (!written.uri.is_empty()).then(|| PathRewrite::Matched(written.uri.as_str().into())),
    };
    Ok(Rewrite { path, authority: text(&written.authority) })
}

fn redirect(written: &istio::Redirect) -> Redirect {
    let path = match (written.uri.as_str(), written.prefix_rewrite.as_str()) {
        ("", "") => None,
        ("", prefix) => Some(PathRewrite::Matched(prefix.into())),
        (uri, _) => Some(PathRewrite::Full(uri.into())),
    };
    let derived = written.derive_port.map(|port| match port {
        DerivedPort::Protocol => RedirectPort::FromScheme,
        DerivedPort::Request => RedirectPort::FromRequest,
    });
    Redirect {
        path,
        authority: text(&written.authority),
        scheme: text(&written.scheme),
        port: written.port.map(|port| RedirectPort::Number(number(port))).or(derived),
        status: written.redirect_code.map_or(301, number),
    }
}

fn text(written: &str) -> Option<Arc<str>> {
    (!written.is_empty()).then(|| written.into())
}

/// What holds where a route says nothing about retries: connections that failed and gRPC's `unavailable` and `cancelled`; no HTTP status.
pub(crate) fn default_retries() -> Retries {
    Retries { attempts: ATTEMPTS, on: default_conditions(), backoff: BACKOFF, ignore_previous: true, ..Retries::default() }
}

fn default_conditions() -> RetryOn {
    RetryOn { connect_failure: true, refused_stream: true, grpc_statuses: vec![14, 1], ..RetryOn::default() }
}

fn retries(written: &istio::Retry) -> Retries {
    let attempts = u32::try_from(written.attempts).unwrap_or_default();
    if attempts == 0 {
        return Retries::default();
    }
    Retries {
        attempts,
        per_try_timeout: written.per_try_timeout.map(|timeout| timeout.0),
        on: if written.retry_on.is_empty() { default_conditions() } else { conditions(&written.retry_on) },
        backoff: written.backoff.map_or(BACKOFF, |backoff| backoff.0),
        ignore_previous: written.retry_ignore_previous_hosts.unwrap_or(true),
        remote_localities: written.retry_remote_localities.unwrap_or(false),
    }
}

/// The conditions of `retryOn`. Those that mean others too (`5xx`, `gateway-error`) set these as well.
fn conditions(list: &str) -> RetryOn {
    let mut on = RetryOn::default();
    for condition in list.split(',').map(str::trim) {
        match condition {
            "5xx" => {
                (on.server_error, on.reset, on.connect_failure, on.refused_stream) = (true, true, true, true);
            }
            "gateway-error" => (on.gateway_error, on.reset) = (true, true),
            "reset" => on.reset = true,
            "reset-before-request" => on.reset_before_request = true,
            "connect-failure" => on.connect_failure = true,
            "retriable-4xx" => on.retriable_4xx = true,
            "refused-stream" => on.refused_stream = true,
            "cancelled" => on.grpc_statuses.push(1),
            "deadline-exceeded" => on.grpc_statuses.push(4),
            "resource-exhausted" => on.grpc_statuses.push(8),
            "internal" => on.grpc_statuses.push(13),
            "unavailable" => on.grpc_statuses.push(14),
            // `retriable-status-codes` only says that the statuses beside it count, which they do.
            other => on.statuses.extend(other.parse::<u16>().ok()),
        }
    }
    on
}

/// A fault; `None` when no request would meet it.
pub(super) fn fault(written: &istio::Fault) -> Option<Fault> {
    let share = |percentage: Option<Percent>| percentage.map_or(0, share_ppm);
    let delay = written.delay.as_ref().and_then(|delay| {
        let old = delay.percent.map(|percent| Percent { value: percent as f64 });
        Some(FaultDelay { duration: delay.fixed_delay?.0, share_ppm: share(delay.percentage.or(old)) })
    });
    let abort = written.abort.as_ref().and_then(|abort| {
        let grpc = abort.grpc_status.as_deref().and_then(grpc_status).map(AbortStatus::Grpc);
        let status = abort.http_status.map(|status| AbortStatus::Http(number(status))).or(grpc)?;
        Some(FaultAbort { status, share_ppm: share(abort.percentage) })
    });
    let fault = Fault { delay: delay.filter(|delay| delay.share_ppm > 0), abort: abort.filter(|abort| abort.share_ppm > 0) };
    (fault != Fault::default()).then_some(fault)
}

pub(super) fn cors(written: &CorsPolicy) -> Result<Cors, BadPattern> {
    let old = written.allow_origin.iter().map(|origin| StringMatch::Exact(origin.clone())).collect();
    let origins: Vec<StringMatch> = if written.allow_origins.is_empty() { old } else { written.allow_origins.clone() };
    let mut allow_origins = Vec::new();
    for (index, origin) in origins.iter().enumerate() {
        // Exactly `*` is any origin, as browsers know it.
        let any = matches!(origin, StringMatch::Exact(text) if text == "*");
        let origin =
            if any { Some(TextMatch::Prefix("".into())) } else { texts::text(origin, &format!("corsPolicy.allowOrigins[{index}].regex"))? };
        allow_origins.extend(origin);
    }
    let names = |list: &[String]| list.iter().map(|name| name.as_str().into()).collect();
    Ok(Cors {
        allow_origins,
        allow_methods: names(&written.allow_methods),
        allow_headers: names(&written.allow_headers),
        expose_headers: names(&written.expose_headers),
        max_age: written.max_age.map(|age| age.0),
        allow_credentials: written.allow_credentials,
        ignore_unmatched_preflights: written.unmatched_preflights == UnmatchedPreflights::Ignore,
    })
}

fn changes(written: &Headers) -> HeaderChanges {
    HeaderChanges { request: operations(&written.request), response: operations(&written.response) }
}

fn operations(written: &istio::HeaderOperations) -> HeaderOperations {
    let values = |map: &std::collections::BTreeMap<String, String>| {
        let entries = map.iter().filter_map(|(name, value)| Some((name.to_ascii_lowercase().into(), plain(value)?.into())));
        entries.collect()
    };
    HeaderOperations {
        remove: written.remove.iter().map(|name| name.to_ascii_lowercase().into()).collect(),
        set: values(&written.set),
        add: values(&written.add),
    }
}

/// A value with `%%` read as `%`; `None` for one with commands of Envoy's formatter, which decoding told of.
fn plain(value: &str) -> Option<String> {
    (!value.replace("%%", "").contains('%')).then(|| value.replace("%%", "%"))
}
