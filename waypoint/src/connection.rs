//! The journey of a connection that is not HTTP: accept → identify → resolve → authorize → route → balance → connect → relay → report.

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use tokio::sync::watch;
use tropis_model::{
    authorize::request::{Endpoint, ServerName, StreamFacts},
    matching, outlier, pick,
    pool::Limits,
    route::{Caller, Destination, Host},
};
use tropis_net::{
    drain::DrainSignal,
    relay::{RelayControl, RelayOptions, StopReason, relay},
};

use crate::{
    entry::Entry,
    stages::{
        Failure,
        authorize::{self, Way},
        balance::{self, BalanceError, Chosen, Wish},
        connect::{self, Opened},
        report::Report,
        route::RouteError,
    },
    stream::Stream,
    upstream::counts::{Held, Kind},
};

/// A silence is looked for so many times within its limit; it ends one such part later than the limit at most.
const LOOKS: u32 = 8;

/// Serves a connection that is passed on as it is; `server_name` is that of its TLS, if it is TLS.
pub async fn serve(entry: Rc<Entry>, stream: Stream, server_name: ServerName<String>, mut drain: DrainSignal) {
    let server_name = server_name.borrowed();
    let mut report = Box::new(Report::connection(&entry, server_name.known()));
    // From before the first decision: what changes while the endpoint is connected to is heard of.
    let changes = entry.worker.shared.view.subscribe();
    let reached = tokio::select! {
        reached = reach(&entry, server_name, &mut report) => reached,
        () = drain.cut() => return,
    };
    let Reached { opened, host, chosen, _held } = match reached {
        Ok(reached) => reached,
        Err(failure) => {
            // The stream is dropped unanswered: a tunnel is reset, as the caller's own connection would be.
            return report.failed(failure);
        }
    };
    let control = report.control();
    report.relaying();
    let mut revoked = std::pin::pin!(revoked(&entry, server_name, host, &chosen, changes));
    let mut time_is_up = std::pin::pin!(time_is_up(&control, &chosen.current.ready.pool.limits));
    let options = RelayOptions { control: control.clone() };
    let mut relaying = std::pin::pin!(relay(stream, opened.stream, &options));
    let outcome = tokio::select! {
        biased;
        // First: what was denied meanwhile moves no byte.
        () = &mut revoked => {
            control.stop(StopReason::PermitRevoked);
            relaying.await
        }
        outcome = &mut relaying => outcome,
        () = drain.cut() => {
            control.stop(StopReason::Drained);
            relaying.await
        }
        () = &mut time_is_up => {
            control.stop(StopReason::TimeLimit);
            relaying.await
        }
    };
    report.relayed(&outcome);
}

/// Waits until the connection has been silent for as long as its pool allows, or has lasted as long as it may.
async fn time_is_up(control: &RelayControl, limits: &Limits) {
    let lasted = async {
        match limits.max_connection_duration {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = lasted => {}
        () = silent(control, limits.idle_timeout) => {}
    }
}

async fn silent(control: &RelayControl, limit: Option<Duration>) {
    let Some(limit) = limit else { return std::future::pending().await };
    let moved = || (control.sent(), control.received());
    let (mut before, mut looks) = (moved(), 0);
    while looks < LOOKS {
        tokio::time::sleep(limit / LOOKS).await;
        let now = moved();
        looks = if now == before { looks + 1 } else { 0 };
        before = now;
    }
}

/// Waits until policy, as it changes, no longer allows the connection. A `host` that is no longer known here, the one addressed or the one
/// to which a route brought it, is no denial: its last policies hold on.
async fn revoked(entry: &Entry, server_name: ServerName<&str>, mut host: Arc<Host>, chosen: &Chosen, mut changes: watch::Receiver<u64>) {
    let mut there = chosen.current.ready.host.clone();
    while changes.changed().await.is_ok() {
        let view = entry.worker.shared.view.load();
        host = entry.host(&view).unwrap_or(host);
        let way = Way::to(chosen, &host);
        there = view.host(&way.pool.host).cloned().or(there);
        let workload = view.workload(&chosen.workload.uid).unwrap_or(&chosen.workload);
        let way = Way { there: there.as_ref(), endpoint: Endpoint { workload, ..way.endpoint }, ..way };
        let caller = entry.caller(&view);
        let facts = facts(entry, &caller, server_name);
        let permit = authorize::connection_target(&host, &facts);
        if permit.and_then(|permit| authorize::connection_endpoint(&way, &facts, permit)).is_err() {
            return;
        }
    }
    std::future::pending().await
}

fn facts<'f>(entry: &Entry, caller: &'f Caller, server_name: ServerName<&'f str>) -> StreamFacts<'f> {
    StreamFacts { caller, port: entry.addressed.port(), destination: entry.addressed.address(), server_name }
}

/// What it takes to relay.
struct Reached {
    opened: Opened,
    host: Arc<Host>,
    chosen: Chosen,
    _held: Held,
}

async fn reach(entry: &Rc<Entry>, server_name: ServerName<&str>, report: &mut Report) -> Result<Reached, Failure> {
    let worker = &entry.worker;
    let mut view = report.view(worker.shared.view.seen());
    let mut host = entry.host(&view)?;
    if let Some(deadline) = entry.waits_for_caller(&host, &view) {
        entry.wait_for_caller(deadline).await;
        view = report.view(worker.shared.view.seen());
        host = entry.host(&view)?;
    }
    let host = report.host(host, &view);
    let caller = entry.caller(&view);
    let facts = facts(entry, &caller, server_name);
    let permit = authorize::connection_target(&host, &facts)?;
    report.permitted();
    let destination = route(entry, &host, &facts)?;
    let pool = report.pool(balance::pool(&host, &destination.pool)?);
    let own = worker.own(&view);
    let current = worker.shared.pools.current(&view, &pool, own.as_deref());
    let addressed = entry.addressed.address().map(|address| SocketAddr::new(address, entry.addressed.port()));
    let chosen = balance::choose(worker, current, &Wish { addressed, ..Wish::default() })?;
    let permit = authorize::connection_endpoint(&Way::to(&chosen, &host), &facts, permit)?;
    report.chosen(&chosen, 1);
    let held = chosen.current.state.counts.take(Kind::Connection, &pool.limits).map_err(BalanceError::Full)?;
    let opened = connect::open(worker, &pool.key, &chosen.member, &pool.limits, &pool.tls).await;
    drop(permit);
    let outcome = if opened.is_ok() { outlier::Outcome::Served } else { outlier::Outcome::ConnectFailure };
    chosen.current.state.record(&chosen.member, outcome, worker.shared.pools.now(), own.as_deref());
    let opened = opened?;
    report.connected(opened.local);
    Ok(Reached { opened, host, chosen, _held: held })
}

/// The destination: by the TLS routes if it is TLS, then by the TCP routes.
fn route(entry: &Entry, host: &Arc<Host>, facts: &StreamFacts<'_>) -> Result<Destination, RouteError> {
    let by_name = facts.server_name.known().and_then(|name| matching::tls(host, facts.port, name, facts.destination, facts.caller));
    let by_name = by_name.map(|route| &route.destinations);
    let destinations =
        by_name.or_else(|| matching::tcp(host, facts.port, facts.destination, facts.caller).map(|route| &route.destinations));
    let destinations = destinations.ok_or(RouteError::NotFound)?;
    entry.worker.draw(|draw| pick::destination(destinations, draw).cloned()).ok_or(RouteError::NotFound)
}
