//! Routes to their messages.

use std::sync::Arc;

use tropis_model::route::{
    AbortStatus, Cors, Destination, Fault, Forward, HeaderChanges, HeaderOperations, HttpRoute, Mirror, Origin, PathRewrite, Redirect,
    RedirectPort, RequestMatch, Retries, Rewrite, RouteAction, TcpRoute, TextMatch, TlsRoute, ValueMatch,
};
use tropis_proto::waypoint::{self as wire, fault, http_route, named_match, path_rewrite, redirect};

use super::parts;

pub(in super::super) fn http_to_wire(route: &HttpRoute) -> wire::HttpRoute {
    wire::HttpRoute {
        name: route.name.to_string(),
        origin: Some(origin(&route.origin)),
        matches: route.matches.iter().map(request_match).collect(),
        action: Some(match &route.action {
            RouteAction::Forward(found) => http_route::Action::Forward(forward(found)),
            RouteAction::Redirect(found) => http_route::Action::Redirect(redirect(found)),
            RouteAction::Respond(found) => {
                http_route::Action::Respond(wire::DirectResponse { status: found.status.into(), body: found.body.to_vec() })
            }
        }),
        headers: header_changes(&route.headers),
        fault: route.fault.as_ref().map(fault),
        cors: route.cors.as_ref().map(cors),
    }
}

pub(in super::super) fn tls_to_wire(route: &TlsRoute) -> wire::TlsRoute {
    wire::TlsRoute {
        origin: Some(origin(&route.origin)),
        server_names: parts::texts_to_wire(&route.server_names),
        destination_blocks: parts::blocks_to_wire(&route.destination_blocks),
        source_labels: parts::labels_to_wire(&route.source_labels),
        source_namespace: parts::text_to_wire(&route.source_namespace),
        destinations: route.destinations.iter().map(destination).collect(),
    }
}

pub(in super::super) fn tcp_to_wire(route: &TcpRoute) -> wire::TcpRoute {
    wire::TcpRoute {
        origin: Some(origin(&route.origin)),
        destination_blocks: parts::blocks_to_wire(&route.destination_blocks),
        source_labels: parts::labels_to_wire(&route.source_labels),
        source_namespace: parts::text_to_wire(&route.source_namespace),
        destinations: route.destinations.iter().map(destination).collect(),
    }
}

fn origin(origin: &Origin) -> wire::Origin {
    wire::Origin { kind: origin.kind.to_string(), object: origin.object.to_string(), field: origin.field.to_string() }
}

fn forward(forward: &Forward) -> wire::Forward {
    let mirror = |mirror: &Mirror| wire::Mirror { pool: Some(parts::pool_key_to_wire(&mirror.pool)), share_ppm: mirror.share_ppm };
    wire::Forward {
        destinations: forward.destinations.iter().map(destination).collect(),
        rewrite: forward.rewrite.as_ref().map(rewrite),
        timeout: forward.timeout.map(parts::duration_to_wire),
        retries: Some(retries(&forward.retries)),
        mirrors: forward.mirrors.iter().map(mirror).collect(),
    }
}

fn destination(destination: &Destination) -> wire::Destination {
    wire::Destination {
        pool: Some(parts::pool_key_to_wire(&destination.pool)),
        weight: destination.weight,
        headers: header_changes(&destination.headers),
    }
}

fn request_match(found: &RequestMatch) -> wire::RequestMatch {
    let text = |found: &Option<TextMatch>| found.as_ref().map(parts::text_match_to_wire);
    wire::RequestMatch {
        name: parts::text_to_wire(&found.name),
        uri: text(&found.uri),
        ignore_uri_case: found.ignore_uri_case,
        scheme: text(&found.scheme),
        method: text(&found.method),
        authority: text(&found.authority),
        headers: named(&found.headers),
        without_headers: named(&found.without_headers),
        query: named(&found.query),
        source_labels: parts::labels_to_wire(&found.source_labels),
        source_namespace: parts::text_to_wire(&found.source_namespace),
    }
}

fn named(list: &[(Arc<str>, ValueMatch)]) -> Vec<wire::NamedMatch> {
    let one = |(name, value): &(Arc<str>, ValueMatch)| wire::NamedMatch {
        name: name.to_string(),
        value: Some(match value {
            ValueMatch::Present => named_match::Value::Present(()),
            ValueMatch::Text(text) => named_match::Value::Text(parts::text_match_to_wire(text)),
        }),
    };
    list.iter().map(one).collect()
}

/// No change at all takes no bytes.
fn header_changes(changes: &HeaderChanges) -> Option<wire::HeaderChanges> {
    let some = |operations: &HeaderOperations| (*operations != HeaderOperations::default()).then(|| header_operations(operations));
    (*changes != HeaderChanges::default())
        .then(|| wire::HeaderChanges { request: some(&changes.request), response: some(&changes.response) })
}

fn header_operations(operations: &HeaderOperations) -> wire::HeaderOperations {
    let headers = |list: &[(Arc<str>, Arc<str>)]| -> Vec<wire::Header> {
        list.iter().map(|(name, value)| wire::Header { name: name.to_string(), value: value.to_string() }).collect()
    };
    wire::HeaderOperations {
        remove: parts::texts_to_wire(&operations.remove),
        set: headers(&operations.set),
        add: headers(&operations.add),
    }
}

fn rewrite(rewrite: &Rewrite) -> wire::Rewrite {
    wire::Rewrite { path: rewrite.path.as_ref().map(path_rewrite), authority: parts::text_to_wire(&rewrite.authority) }
}

fn path_rewrite(rewrite: &PathRewrite) -> wire::PathRewrite {
    let kind = match rewrite {
        PathRewrite::Matched(text) => path_rewrite::Kind::Matched(text.to_string()),
        PathRewrite::Full(text) => path_rewrite::Kind::Full(text.to_string()),
        PathRewrite::Pattern { pattern, replacement } => {
            path_rewrite::Kind::Pattern(wire::PatternRewrite { pattern: pattern.source.to_string(), replacement: replacement.to_string() })
        }
    };
    wire::PathRewrite { kind: Some(kind) }
}

fn redirect(found: &Redirect) -> wire::Redirect {
    wire::Redirect {
        path: found.path.as_ref().map(path_rewrite),
        authority: parts::text_to_wire(&found.authority),
        scheme: parts::text_to_wire(&found.scheme),
        port: found.port.map(|port| match port {
            RedirectPort::Number(port) => redirect::Port::Number(port.into()),
            RedirectPort::FromScheme => redirect::Port::FromScheme(()),
            RedirectPort::FromRequest => redirect::Port::FromRequest(()),
        }),
        status: found.status.into(),
    }
}

fn retries(retries: &Retries) -> wire::Retries {
    let on = &retries.on;
    wire::Retries {
        attempts: retries.attempts,
        per_try_timeout: retries.per_try_timeout.map(parts::duration_to_wire),
        on: Some(wire::RetryOn {
            server_error: on.server_error,
            gateway_error: on.gateway_error,
            reset: on.reset,
            reset_before_request: on.reset_before_request,
            connect_failure: on.connect_failure,
            retriable_4xx: on.retriable_4xx,
            refused_stream: on.refused_stream,
            statuses: on.statuses.iter().copied().map(u32::from).collect(),
            grpc_statuses: on.grpc_statuses.iter().copied().map(u32::from).collect(),
        }),
        backoff: Some(parts::duration_to_wire(retries.backoff)),
        ignore_previous: retries.ignore_previous,
        remote_localities: retries.remote_localities,
    }
}

fn fault(found: &Fault) -> wire::Fault {
    wire::Fault {
        delay: (found.delay.as_ref())
            .map(|delay| fault::Delay { duration: Some(parts::duration_to_wire(delay.duration)), share_ppm: delay.share_ppm }),
        abort: found.abort.as_ref().map(|abort| fault::Abort {
            status: Some(match abort.status {
                AbortStatus::Http(status) => fault::abort::Status::Http(status.into()),
                AbortStatus::Grpc(code) => fault::abort::Status::Grpc(code.into()),
            }),
            share_ppm: abort.share_ppm,
        }),
    }
}

fn cors(cors: &Cors) -> wire::Cors {
    wire::Cors {
        allow_origins: cors.allow_origins.iter().map(parts::text_match_to_wire).collect(),
        allow_methods: parts::texts_to_wire(&cors.allow_methods),
        allow_headers: parts::texts_to_wire(&cors.allow_headers),
        expose_headers: parts::texts_to_wire(&cors.expose_headers),
        max_age: cors.max_age.map(parts::duration_to_wire),
        allow_credentials: cors.allow_credentials,
        ignore_unmatched_preflights: cors.ignore_unmatched_preflights,
    }
}
