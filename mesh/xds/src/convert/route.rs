//! `tropis.waypoint.v1.HttpRoute`, `TlsRoute` and `TcpRoute`.

use std::sync::Arc;

use tropis_model::{
    bounds,
    route::{
        AbortStatus, Cors, Destination, DirectResponse, Fault, FaultAbort, FaultDelay, Forward, HeaderChanges, HeaderOperations, HttpRoute,
        Mirror, Origin, PathRewrite, Redirect, RedirectPort, RequestMatch, Retries, RetryOn, Rewrite, RouteAction, TcpRoute, TlsRoute,
        UnanchoredPattern, ValueMatch,
    },
};
use tropis_proto::waypoint::{self as wire, fault, http_route, named_match, path_rewrite, redirect};

use super::{Interner, InvalidResource, parts};

mod encode;

pub(super) use encode::{http_to_wire, tcp_to_wire, tls_to_wire};

/// What a redirect answers with.
const REDIRECT_STATUSES: [u32; 5] = [301, 302, 303, 307, 308];

pub(super) fn http(wire: wire::HttpRoute, strings: &mut Interner) -> Result<HttpRoute, InvalidResource> {
    let origin = origin(wire.origin, strings)?;
    let part = format!("route {:?} of {}", wire.name, shown(&origin));
    let rest = || -> Result<HttpRoute, InvalidResource> {
        Ok(HttpRoute {
            name: strings.get(&wire.name),
            origin,
            matches: parts::list("matches", bounds::MATCHES, wire.matches, |found| request_match(found, strings))?,
            action: match parts::required("action", wire.action)? {
                http_route::Action::Forward(found) => RouteAction::Forward(Box::new(forward(found, strings)?)),
                http_route::Action::Redirect(found) => RouteAction::Redirect(redirect(found, strings)?),
                http_route::Action::Respond(found) => RouteAction::Respond(respond(found)?),
            },
            headers: header_changes(wire.headers, strings)?,
            fault: wire.fault.map(fault).transpose()?,
            cors: wire.cors.map(|found| cors(found, strings)).transpose()?,
        })
    };
    rest().map_err(|cause| cause.within(part))
}

pub(super) fn tls(wire: wire::TlsRoute, strings: &mut Interner) -> Result<TlsRoute, InvalidResource> {
    let origin = origin(wire.origin, strings)?;
    let part = format!("TLS route of {}", shown(&origin));
    let rest = || -> Result<TlsRoute, InvalidResource> {
        Ok(TlsRoute {
            origin,
            server_names: parts::texts("server_names", &wire.server_names, strings)?,
            destination_blocks: parts::blocks("destination_blocks", &wire.destination_blocks)?,
            source_labels: parts::labels("source_labels", wire.source_labels, strings)?,
            source_namespace: parts::text(wire.source_namespace, strings),
            destinations: destinations(wire.destinations, strings)?,
        })
    };
    rest().map_err(|cause| cause.within(part))
}

pub(super) fn tcp(wire: wire::TcpRoute, strings: &mut Interner) -> Result<TcpRoute, InvalidResource> {
    let origin = origin(wire.origin, strings)?;
    let part = format!("TCP route of {}", shown(&origin));
    let rest = || -> Result<TcpRoute, InvalidResource> {
        Ok(TcpRoute {
            origin,
            destination_blocks: parts::blocks("destination_blocks", &wire.destination_blocks)?,
            source_labels: parts::labels("source_labels", wire.source_labels, strings)?,
            source_namespace: parts::text(wire.source_namespace, strings),
            destinations: destinations(wire.destinations, strings)?,
        })
    };
    rest().map_err(|cause| cause.within(part))
}

fn shown(origin: &Origin) -> String {
    format!("{} {} {}", origin.kind, origin.object, origin.field).trim_end().to_owned()
}

fn origin(wire: Option<wire::Origin>, strings: &mut Interner) -> Result<Origin, InvalidResource> {
    let wire = parts::required("origin", wire)?;
    Ok(Origin { kind: strings.get(&wire.kind), object: strings.get(&wire.object), field: strings.get(&wire.field) })
}

fn forward(wire: wire::Forward, strings: &mut Interner) -> Result<Forward, InvalidResource> {
    if wire.destinations.is_empty() {
        return Err(InvalidResource::Empty("destinations"));
    }
    Ok(Forward {
        destinations: destinations(wire.destinations, strings)?,
        rewrite: wire.rewrite.map(|found| rewrite(found, strings)).transpose()?,
        timeout: parts::duration("timeout", wire.timeout)?,
        retries: retries(parts::required("retries", wire.retries)?)?,
        mirrors: parts::list("mirrors", bounds::MIRRORS, wire.mirrors, |found| {
            Ok(Mirror {
                pool: parts::pool_key("mirrors.pool", found.pool, strings)?,
                share_ppm: parts::share("mirrors.share_ppm", found.share_ppm)?,
            })
        })?,
    })
}

/// Of several, the weights' sum must fit and not be 0. None is a route of connections that closes what it takes.
fn destinations(wire: Vec<wire::Destination>, strings: &mut Interner) -> Result<Vec<Destination>, InvalidResource> {
    let sum = wire.iter().try_fold(0u32, |sum, found| sum.checked_add(found.weight));
    match sum {
        None => return Err(InvalidResource::Weights("is larger than 4294967295")),
        Some(0) if wire.len() > 1 => return Err(InvalidResource::Weights("is 0")),
        Some(_) => {}
    }
    parts::list("destinations", bounds::DESTINATIONS, wire, |found| {
        Ok(Destination {
            pool: parts::pool_key("destinations.pool", found.pool, strings)?,
            weight: found.weight,
            headers: header_changes(found.headers, strings)?,
        })
    })
}

fn request_match(wire: wire::RequestMatch, strings: &mut Interner) -> Result<RequestMatch, InvalidResource> {
    let mut text = |field, found: Option<wire::TextMatch>| found.map(|found| parts::text_match(field, found, &mut *strings)).transpose();
    let uri = text("uri", wire.uri)?;
    let scheme = text("scheme", wire.scheme)?;
    let method = text("method", wire.method)?;
    let authority = text("authority", wire.authority)?;
    Ok(RequestMatch {
        name: parts::text(wire.name, strings),
        uri,
        ignore_uri_case: wire.ignore_uri_case,
        scheme,
        method,
        authority,
        headers: named("headers", wire.headers, strings)?,
        without_headers: named("without_headers", wire.without_headers, strings)?,
        query: named("query", wire.query, strings)?,
        source_labels: parts::labels("source_labels", wire.source_labels, strings)?,
        source_namespace: parts::text(wire.source_namespace, strings),
    })
}

fn named(field: &'static str, wire: Vec<wire::NamedMatch>, strings: &mut Interner) -> Result<Vec<(Arc<str>, ValueMatch)>, InvalidResource> {
    parts::list(field, bounds::NAMED_MATCHES, wire, |found| {
        let value = match found.value.ok_or(InvalidResource::UnknownMatch(field))? {
            named_match::Value::Present(()) => ValueMatch::Present,
            named_match::Value::Text(text) => ValueMatch::Text(parts::text_match(field, text, strings)?),
        };
        Ok((parts::name(field, &found.name, strings)?, value))
    })
}

fn header_changes(wire: Option<wire::HeaderChanges>, strings: &mut Interner) -> Result<HeaderChanges, InvalidResource> {
    let wire = wire.unwrap_or_default();
    Ok(HeaderChanges { request: header_operations(wire.request, strings)?, response: header_operations(wire.response, strings)? })
}

fn header_operations(wire: Option<wire::HeaderOperations>, strings: &mut Interner) -> Result<HeaderOperations, InvalidResource> {
    let wire = wire.unwrap_or_default();
    let mut headers = |field, found| {
        parts::list(field, bounds::HEADERS, found, |header: wire::Header| {
            Ok((parts::name(field, &header.name, &mut *strings)?, strings.get(&header.value)))
        })
    };
    let (set, add) = (headers("headers.set", wire.set)?, headers("headers.add", wire.add)?);
    let remove = parts::list("headers.remove", bounds::HEADERS, wire.remove, |name| parts::name("headers.remove", &name, strings))?;
    Ok(HeaderOperations { remove, set, add })
}

fn rewrite(wire: wire::Rewrite, strings: &mut Interner) -> Result<Rewrite, InvalidResource> {
    Ok(Rewrite {
        path: wire.path.map(|found| path_rewrite("rewrite.path", found, strings)).transpose()?,
        authority: parts::text(wire.authority, strings),
    })
}

fn path_rewrite(field: &'static str, wire: wire::PathRewrite, strings: &mut Interner) -> Result<PathRewrite, InvalidResource> {
    Ok(match parts::required(field, wire.kind)? {
        path_rewrite::Kind::Matched(text) => PathRewrite::Matched(strings.get(&text)),
        path_rewrite::Kind::Full(text) => PathRewrite::Full(strings.get(&text)),
        path_rewrite::Kind::Pattern(found) => PathRewrite::Pattern {
            pattern: parts::pattern(field, &found.pattern, UnanchoredPattern::new)?,
            replacement: strings.get(&found.replacement),
        },
    })
}

fn redirect(wire: wire::Redirect, strings: &mut Interner) -> Result<Redirect, InvalidResource> {
    if !REDIRECT_STATUSES.contains(&wire.status) {
        return Err(InvalidResource::OutOfRange {
            field: "redirect.status",
            found: wire.status.to_string(),
            accepted: "301, 302, 303, 307 or 308",
        });
    }
    Ok(Redirect {
        path: wire.path.map(|found| path_rewrite("redirect.path", found, strings)).transpose()?,
        authority: parts::text(wire.authority, strings),
        scheme: parts::text(wire.scheme, strings),
        port: match wire.port {
            None => None,
            Some(redirect::Port::Number(found)) => Some(RedirectPort::Number(parts::port("redirect.port", found)?)),
            Some(redirect::Port::FromScheme(())) => Some(RedirectPort::FromScheme),
            Some(redirect::Port::FromRequest(())) => Some(RedirectPort::FromRequest),
        },
        status: parts::status("redirect.status", wire.status)?,
    })
}

fn respond(wire: wire::DirectResponse) -> Result<DirectResponse, InvalidResource> {
    parts::count("respond.body", wire.body.len(), bounds::BODY_BYTES)?;
    Ok(DirectResponse {
        status: parts::number("respond.status", wire.status, bounds::ANSWER_STATUSES, "200 to 599")?,
        body: wire.body.into(),
    })
}

fn retries(wire: wire::Retries) -> Result<Retries, InvalidResource> {
    let on = wire.on.unwrap_or_default();
    Ok(Retries {
        attempts: wire.attempts,
        per_try_timeout: parts::duration("retries.per_try_timeout", wire.per_try_timeout)?,
        on: RetryOn {
            server_error: on.server_error,
            gateway_error: on.gateway_error,
            reset: on.reset,
            reset_before_request: on.reset_before_request,
            connect_failure: on.connect_failure,
            retriable_4xx: on.retriable_4xx,
            refused_stream: on.refused_stream,
            statuses: parts::list("retries.statuses", bounds::TOLD_VALUES, on.statuses, |found| parts::status("retries.statuses", found))?,
            grpc_statuses: parts::list("retries.grpc_statuses", bounds::TOLD_VALUES, on.grpc_statuses, |found| {
                parts::grpc_code("retries.grpc_statuses", found)
            })?,
        },
        backoff: parts::required_duration("retries.backoff", wire.backoff)?,
        ignore_previous: wire.ignore_previous,
        remote_localities: wire.remote_localities,
    })
}

fn fault(wire: wire::Fault) -> Result<Fault, InvalidResource> {
    let delay = |found: fault::Delay| -> Result<FaultDelay, InvalidResource> {
        Ok(FaultDelay {
            duration: parts::required_duration("fault.delay.duration", found.duration)?,
            share_ppm: parts::share("fault.delay.share_ppm", found.share_ppm)?,
        })
    };
    let abort = |found: fault::Abort| -> Result<FaultAbort, InvalidResource> {
        Ok(FaultAbort {
            status: match parts::required("fault.abort.status", found.status)? {
                fault::abort::Status::Http(status) => {
                    AbortStatus::Http(parts::number("fault.abort.http", status, bounds::ANSWER_STATUSES, "200 to 599")?)
                }
                fault::abort::Status::Grpc(code) => AbortStatus::Grpc(parts::grpc_code("fault.abort.grpc", code)?),
            },
            share_ppm: parts::share("fault.abort.share_ppm", found.share_ppm)?,
        })
    };
    Ok(Fault { delay: wire.delay.map(delay).transpose()?, abort: wire.abort.map(abort).transpose()? })
}

fn cors(wire: wire::Cors, strings: &mut Interner) -> Result<Cors, InvalidResource> {
    Ok(Cors {
        allow_origins: parts::list("cors.allow_origins", bounds::MATCHES, wire.allow_origins, |found| {
            parts::text_match("cors.allow_origins", found, strings)
        })?,
        allow_methods: parts::texts("cors.allow_methods", &wire.allow_methods, strings)?,
        allow_headers: parts::texts("cors.allow_headers", &wire.allow_headers, strings)?,
        expose_headers: parts::texts("cors.expose_headers", &wire.expose_headers, strings)?,
        max_age: parts::duration("cors.max_age", wire.max_age)?,
        allow_credentials: wire.allow_credentials,
        ignore_unmatched_preflights: wire.ignore_unmatched_preflights,
    })
}
