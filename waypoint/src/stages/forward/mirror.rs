//! Mirrors: a copy of the request to another pool, whose answer nobody waits for.
//!
//! The copy is sent when the request itself has been answered or has failed: then its body is there as a whole, if it was kept. One that
//! was too large to keep, or was not read to its end, is not mirrored.

use std::{rc::Rc, sync::Arc, time::Duration};

use http::HeaderMap;
use http_body::Body;
use std::{future::poll_fn, net::IpAddr, pin::Pin};
use tokio::task::spawn_local;
use tropis_model::{outlier, pool::Pool, request::RequestFacts, route::Host, view::View, workload::Workload};

use super::{Tries, attempt, head::Outgoing};
use crate::{
    body::RequestBody,
    entry::Entry,
    request::Journey,
    stages::{
        accept::Place,
        authorize::{self, TargetPermit},
        balance::{self, Wish},
    },
    upstream::{connections::Connections, counts::Kind},
};

/// Shares are of so many requests.
const ALL_PPM: u64 = 1_000_000;
/// A copy that takes longer is given up: Envoy would hold it as long as the request itself.
const LIMIT: Duration = Duration::from_secs(60);

/// A copy on its way. It owns all that the request's journey borrowed.
struct Copied {
    entry: Rc<Entry>,
    view: Arc<View>,
    host: Arc<Host>,
    own: Option<Arc<Workload>>,
    pool: Arc<Pool>,
    permit: TargetPermit,
    outgoing: Outgoing,
    body: RequestBody,
    method: String,
    scheme: String,
    authority: String,
    path: String,
    query: Option<String>,
    headers: HeaderMap,
    port: u16,
    destination: Option<IpAddr>,
    version: http::Version,
    _place: Place,
}

/// Sends the copies that the route asks for.
pub(super) fn send(tries: &Tries<'_>) {
    let worker = &tries.journey.entry.worker;
    for mirror in &tries.forward.mirrors {
        let hits = worker.draw(|draw| draw.below(ALL_PPM)) < u64::from(mirror.share_ppm);
        let Some(pool) = tries.journey.host.pools.get(&mirror.pool).filter(|_| hits) else { continue };
        let Some(body) = tries.upload.copy() else {
            tracing::debug!(pool = %mirror.pool, "not mirrored: the body was not kept as a whole");
            continue;
        };
        let Ok(place) = worker.open_mirrors.take("mirrored requests", worker.shared.config.http.mirrors) else { return };
        let copied = copied(tries, pool.clone(), body, place);
        spawn_local(async move {
            if tokio::time::timeout(LIMIT, copied.run()).await.is_err() {
                tracing::debug!("a mirrored request was given up");
            }
        });
    }
}

fn copied(tries: &Tries<'_>, pool: Arc<Pool>, body: RequestBody, place: Place) -> Copied {
    let journey = tries.journey;
    let facts = &journey.facts;
    Copied {
        entry: journey.entry.clone(),
        view: journey.view.clone(),
        host: journey.host.clone(),
        own: tries.own.clone(),
        pool,
        permit: tries.permit,
        outgoing: tries.outgoing.clone(),
        body,
        method: facts.method.to_owned(),
        scheme: facts.scheme.to_owned(),
        authority: facts.authority.to_owned(),
        path: facts.path.to_owned(),
        query: facts.query.map(str::to_owned),
        headers: facts.headers.clone(),
        port: facts.port,
        destination: facts.destination,
        version: journey.version,
        _place: place,
    }
}

impl Copied {
    async fn run(self) {
        let caller = self.entry.caller(&self.view);
        let facts = RequestFacts {
            method: &self.method,
            scheme: &self.scheme,
            authority: &self.authority,
            path: &self.path,
            query: self.query.as_deref(),
            headers: &self.headers,
            port: self.port,
            caller: &caller,
            remote_address: None,
            destination: self.destination,
            server_name: None,
            token: None,
        };
        let entry = &self.entry;
        let journey = Journey { entry, view: &self.view, host: &self.host, facts, version: self.version, upgrades: None };
        let worker = &entry.worker;
        let current = worker.shared.pools.current(&self.view, &self.pool, self.own.as_deref());
        let key = worker.draw(|draw| balance::key(&self.pool, &journey.facts, draw));
        let wish = Wish { hash: key.hash, addressed: attempt::addressed(&journey), ..Wish::default() };
        let Ok(chosen) = balance::choose(worker, current, &wish) else { return };
        let Ok(_permit) = authorize::endpoint(&journey, &self.outgoing, &chosen, self.permit) else { return };
        let record = |outcome| chosen.current.state.record(&chosen.member, outcome, worker.shared.pools.now(), self.own.as_deref());
        let version = attempt::version(&journey, &self.pool);
        let mut lease = match Connections::acquire(worker, &chosen.current, &chosen.member, version).await {
            Ok(lease) => lease,
            Err(error) => {
                tracing::debug!(%error, "a mirrored request was not sent");
                return record(attempt::seen_of_connection(&error));
            }
        };
        let Ok(_held) = chosen.current.state.counts.take(Kind::Request, &self.pool.limits) else { return lease.give_back() };
        match lease.send(self.outgoing.request(&self.headers, 1, version, self.body)).await {
            Ok(response) => {
                record(outlier::Outcome::Response(response.status().as_u16()));
                let mut body = response.into_body();
                while let Some(Ok(_)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {}
                lease.give_back();
            }
            Err(_) => record(outlier::Outcome::Reset),
        }
    }
}
