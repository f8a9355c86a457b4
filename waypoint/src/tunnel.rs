//! What arrives: a tunnel connection is accepted once, TLS proves both ends; each tunnel on it is then a connection of HTTP, whose
//! requests make journeys of their own ([`crate::request`]), or of something else ([`crate::connection`]).

mod sniff;

use std::{net::SocketAddr, rc::Rc};

use http::StatusCode;
use tokio::{net::TcpStream, task::spawn_local};
use tropis_hbone::server::{IncomingTunnel, SessionEnd};
use tropis_model::{
    resolve::Authority,
    route::{Host, PortProtocol},
};
use tropis_net::drain::DrainSignal;

use self::sniff::Sniffed;
use crate::{
    config::{MAX_CONNECTIONS_PER_WORKER, PlainListener},
    connection,
    entry::Entry,
    http_server,
    stages::{
        Failure,
        accept::AcceptError,
        identify,
        resolve::{self, Addressed, ResolveError},
    },
    stream::Stream,
    worker::Worker,
};

/// Serves a tunnel connection, and every tunnel on it.
pub async fn serve(worker: Rc<Worker>, mut drain: DrainSignal, stream: TcpStream, from: SocketAddr) {
    let place = match worker.open_connections.take("connections", MAX_CONNECTIONS_PER_WORKER) {
        Ok(place) => place,
        Err(error) => return refused(&error.into(), from),
    };
    let session = tokio::select! {
        session = identify::peer(&worker.shared, stream) => session,
        () = drain.cut() => return,
    };
    let session = match session {
        Ok(session) => session,
        Err(error) => return refused(&error.into(), from),
    };
    tracing::debug!(peer = %session.peer(), %from, "tunnel connection open");
    let end = session.serve(drain.clone(), {
        let worker = worker.clone();
        move |tunnel| drop(spawn_local(serve_tunnel(worker.clone(), drain.clone(), tunnel)))
    });
    match end.await {
        SessionEnd::Closed | SessionEnd::Cut | SessionEnd::Unused => tracing::debug!(%from, "tunnel connection closed"),
        SessionEnd::Flooded(excess) => refused(&AcceptError::Flood(excess).into(), from),
        end @ (SessionEnd::Dead | SessionEnd::Broken(_) | SessionEnd::Lost(_)) => tracing::debug!(%from, ?end, "tunnel connection broke"),
    }
    drop(place);
}

/// A connection that was refused before anything that could be read was asked for, or ended for more than that.
pub fn refused(failure: &Failure, from: SocketAddr) {
    let outcome = failure.outcome;
    tracing::event!(
        target: "access",
        tracing::Level::WARN,
        src.addr = tracing::field::display(from),
        error = failure.error,
        stage = outcome.stage.word(),
        reason = outcome.reason.word(),
        side = outcome.side.word(),
        "connection failed"
    );
}

async fn serve_tunnel(worker: Rc<Worker>, drain: DrainSignal, tunnel: IncomingTunnel) {
    let config = &worker.shared.config;
    let view = worker.shared.view.load();
    let source = identify::source(tunnel.remote(), tunnel.headers().forwarded.as_ref());
    let addressed = match resolve::addressed(&view, &config.gateway, &config.network, tunnel.authority()) {
        Ok(addressed) => addressed,
        Err(error) => {
            // Without a configuration nobody can say what is attached: another replica may know.
            let status = match error {
                ResolveError::NotConfigured { .. } => StatusCode::SERVICE_UNAVAILABLE,
                ResolveError::NotAttached { .. } => StatusCode::NOT_FOUND,
            };
            refused(&error.into(), source);
            return tunnel.refuse(status);
        }
    };
    let entry = Entry::new(worker.clone(), Some(tunnel.peer().clone()), source, addressed);
    let entry = entry.described(&view, tunnel.headers().baggage.as_deref());
    // The peer may have given up meanwhile.
    let Ok(stream) = tunnel.accept(None) else { return };
    serve_stream(Rc::new(entry), Stream::tunnel(stream), drain).await;
}

/// Serves a plain connection, whose caller is unknown, for what its listener is for.
pub async fn serve_plain(worker: Rc<Worker>, drain: DrainSignal, plain: PlainListener, stream: TcpStream, from: SocketAddr) {
    let _place = match worker.open_connections.take("connections", MAX_CONNECTIONS_PER_WORKER) {
        Ok(place) => place,
        Err(error) => return refused(&error.into(), from),
    };
    let config = &worker.shared.config;
    let view = worker.shared.view.load();
    let authority = Authority::Hostname { hostname: plain.hostname.clone(), port: plain.port };
    match resolve::addressed(&view, &config.gateway, &config.network, &authority) {
        Ok(addressed) => {
            let entry = Entry::new(worker.clone(), None, from, addressed);
            serve_stream(Rc::new(entry), Stream::socket(stream), drain).await;
        }
        Err(error) => refused(&error.into(), from),
    }
}

/// Finds out what is spoken, and serves it.
async fn serve_stream(entry: Rc<Entry>, stream: Stream, mut drain: DrainSignal) {
    let view = entry.worker.shared.view.load();
    let protocol = match entry.host(&view) {
        Ok(host) => protocol(&host, &entry.addressed),
        Err(error) => return refused(&error.into(), entry.source_address),
    };
    let limits = &entry.worker.shared.config.http;
    let sniffed = tokio::select! {
        biased;
        sniffed = sniff::protocol(stream, protocol, limits) => sniffed,
        // It has said nothing yet.
        () = http_server::idle_too_long(&entry, &mut drain) => return,
    };
    match sniffed {
        Ok((Sniffed::Http(spoken), stream)) => http_server::serve(entry, stream, spoken, drain).await,
        Ok((Sniffed::Other { server_name }, stream)) => connection::serve(entry, stream, server_name, drain).await,
        Err(error) => tracing::debug!(%error, caller = %entry.source_address, "connection ended before it said anything"),
    }
}

fn protocol(host: &Host, addressed: &Addressed) -> PortProtocol {
    host.ports.get(&addressed.port()).map(|port| port.protocol).unwrap_or_default()
}
