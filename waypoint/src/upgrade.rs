//! Upgrades (WebSocket and the like): after 101 the connection is the applications', and bytes are relayed, for as long as policy allows
//! the request that asked for it.
//!
//! HTTP/1.1 hands a connection over only when its own work on it has ended, on both sides: the request leaves here what is to be relayed
//! ([`UpgradeSlot::leave`]), and the caller's connection finds it when it is free ([`go_on`]).

use std::{cell::RefCell, fmt, net::SocketAddr, rc::Rc, sync::Arc};

use http::HeaderMap;
use tokio::sync::oneshot;
use tropis_model::{
    authorize::request::Endpoint,
    outcome::{Reason, Side, Stage},
    pool::PoolKey,
    request::RequestFacts,
    route::Host,
    view::View,
    workload::Workload,
};
use tropis_net::relay::{RelayOptions, StopReason, relay};

use crate::{
    entry::Entry,
    stages::{
        authorize::{self, Way},
        balance::Chosen,
        forward::{Tries, head::Outgoing},
        report::Report,
    },
    stream::Stream,
    upstream::{connections::HandedOver, counts::Held, pools::Active},
};

/// What a connection goes on with after its last request.
#[derive(Default)]
pub struct UpgradeSlot {
    left: RefCell<Option<Upgrade>>,
}

/// An upgrade that both sides agreed to.
pub struct Upgrade {
    /// The endpoint's side, when HTTP/1.1 has let go of it.
    pub upstream: oneshot::Receiver<HandedOver>,
    /// The request that asked for it.
    pub asked: Box<Asked>,
    /// Its report.
    pub report: Box<Report>,
    /// Its places in the pool.
    pub held: (Held, Active),
}

/// What policies may ask about a request, kept for longer than the request.
pub struct Asked {
    entry: Rc<Entry>,
    host: Arc<Host>,
    method: String,
    scheme: String,
    authority: String,
    path: String,
    query: Option<String>,
    headers: HeaderMap,
    outgoing: Outgoing,
    pool: PoolKey,
    /// The host of the pool's service, if that goes through us.
    there: Option<Arc<Host>>,
    workload: Arc<Workload>,
    address: SocketAddr,
}

impl UpgradeSlot {
    /// The request was answered with 101.
    pub fn leave(&self, upgrade: Upgrade) {
        *self.left.borrow_mut() = Some(upgrade);
    }
}

impl Asked {
    /// What this request asked, of the endpoint that was chosen.
    pub fn of(tries: &Tries<'_>, chosen: &Chosen) -> Box<Self> {
        let (journey, facts) = (tries.journey, &tries.journey.facts);
        Box::new(Self {
            entry: journey.entry.clone(),
            host: journey.host.clone(),
            method: facts.method.to_owned(),
            scheme: facts.scheme.to_owned(),
            authority: facts.authority.to_owned(),
            path: facts.path.to_owned(),
            query: facts.query.map(str::to_owned),
            headers: facts.headers.clone(),
            outgoing: tries.outgoing.clone(),
            pool: chosen.current.state.key.clone(),
            there: chosen.current.ready.host.clone(),
            workload: chosen.workload.clone(),
            address: chosen.address,
        })
    }

    /// Waits until policy, as it changes, no longer allows it. A host that is no longer known here is no denial: its last policies hold on.
    async fn revoked(&self) {
        let current = &self.entry.worker.shared.view;
        let mut changes = current.subscribe();
        let (mut host, mut there) = (self.host.clone(), self.there.clone());
        loop {
            // What changed before the first look counts as well.
            let view = current.load();
            host = self.entry.host(&view).unwrap_or(host);
            there = view.host(&self.pool.host).cloned().or(there);
            if !self.is_allowed(&host, there.as_ref(), &view) {
                return;
            }
            drop(view);
            if changes.changed().await.is_err() {
                std::future::pending().await
            }
        }
    }

    fn is_allowed(&self, host: &Host, there: Option<&Arc<Host>>, view: &View) -> bool {
        let caller = self.entry.caller(view);
        let facts = RequestFacts {
            method: &self.method,
            scheme: &self.scheme,
            authority: &self.authority,
            path: &self.path,
            query: self.query.as_deref(),
            headers: &self.headers,
            port: self.entry.addressed.port(),
            caller: &caller,
            remote_address: None,
            destination: self.entry.addressed.address(),
            server_name: None,
            token: None,
        };
        let workload = view.workload(&self.workload.uid).unwrap_or(&self.workload);
        let endpoint = Endpoint { workload, address: self.address };
        authorize::is_still_allowed(&Way { host, pool: &self.pool, there, endpoint }, &facts, &self.outgoing)
    }
}

/// HTTP/1.1 has let go of the caller's connection: relays, if it was upgraded, or else waits for the caller to finish as well.
pub async fn go_on(slot: &UpgradeSlot, downstream: Stream) {
    let left = slot.left.borrow_mut().take();
    let Some(upgrade) = left else { return downstream.linger().await };
    let Upgrade { upstream, asked, mut report, held } = upgrade;
    let Ok((upstream, held_connection)) = upstream.await else {
        return report.ended(Stage::Relay, Reason::UpstreamReset, Side::Upstream);
    };
    let control = report.control();
    let options = RelayOptions { control: control.clone() };
    let mut relaying = std::pin::pin!(relay(downstream, upstream, &options));
    let outcome = tokio::select! {
        biased;
        () = asked.revoked() => {
            control.stop(StopReason::PermitRevoked);
            relaying.await
        }
        outcome = &mut relaying => outcome,
    };
    drop((held, held_connection));
    report.relayed(&outcome);
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asked").field("method", &self.method).field("path", &self.path).finish_non_exhaustive()
    }
}
