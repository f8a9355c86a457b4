//! What a connection's requests have in common: who calls, what is addressed, and the worker that serves it.

use std::{
    cell::{Cell, RefCell},
    fmt,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use http::HeaderValue;
use tropis_model::{
    attached::is_ours,
    identity::Identity,
    route::{Caller, Host},
    view::View,
    workload::Workload,
};

use crate::{
    callers::{self, Question},
    stages::resolve::{self, Addressed, ResolveError},
    worker::Worker,
};

/// A connection that was accepted.
pub struct Entry {
    /// The worker that serves it.
    pub worker: Rc<Worker>,
    /// The identity that the original caller proved; `None` behind a listener of our own.
    pub identity: Option<Identity>,
    /// Where the original caller called from.
    pub source_address: SocketAddr,
    /// Its address as text, as `x-forwarded-for` names it.
    pub source_text: HeaderValue,
    /// What it called.
    pub addressed: Addressed,
    /// Its identity was proved, and ours to it.
    pub mutual_tls: bool,
    /// Who calls, as the view of this version says.
    known: RefCell<(u64, Rc<Known>)>,
    /// Keeps being asked who that is, if the view does not tell of itself.
    question: RefCell<Option<Question>>,
    /// The workload that the tunnel describes as its source: for metrics, until it is known better.
    described: Option<Arc<Workload>>,
    /// The way of what is addressed, as the view of this version says.
    way: Cell<(u64, Way)>,
    /// The host that was made up for a workload that is addressed itself, with the view's version that it is of.
    made: RefCell<Option<(u64, Arc<Host>)>>,
}

/// Whether what a connection addresses is reached through this waypoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It is.
    Here,
    /// It goes through another one, or through none; it is served still, for what is under way.
    Elsewhere,
    /// It is not known here any more: what is asked of it is refused.
    Nowhere,
}

/// Who calls.
#[derive(Debug, Default)]
struct Known {
    /// What routes and policies may ask about it.
    caller: Rc<Caller>,
    /// The workload that it is.
    workload: Option<Arc<Workload>>,
}

impl Entry {
    /// A connection of `identity` (proved by its tunnel) from `source_address`, for what `addressed` says.
    pub fn new(worker: Rc<Worker>, identity: Option<Identity>, source_address: SocketAddr, addressed: Addressed) -> Self {
        let mutual_tls = identity.is_some();
        // An address's text is a header's value.
        let source_text = HeaderValue::try_from(source_address.ip().to_string()).unwrap_or(HeaderValue::from_static("unknown"));
        Self {
            worker,
            identity,
            source_address,
            source_text,
            addressed,
            mutual_tls,
            known: RefCell::new((u64::MAX, Rc::default())),
            question: RefCell::default(),
            described: None,
            way: Cell::new((u64::MAX, Way::Here)),
            made: RefCell::default(),
        }
    }

    /// The same with what the tunnel says of its source, where `view` does not know it. It is asked for from now on.
    pub fn described(self, view: &View, baggage: Option<&str>) -> Self {
        let is_known = self.known(view).workload.is_some();
        let described = self.identity.as_ref().filter(|_| !is_known).and_then(|identity| callers::described(baggage, identity));
        Self { described, ..self }
    }

    /// The original caller, as far as `view` knows it. Who is not known is asked for.
    pub fn caller(&self, view: &View) -> Rc<Caller> {
        self.known(view).caller.clone()
    }

    /// The original caller's workload, as far as it is known by now: for metrics.
    pub fn source(&self) -> Option<Arc<Workload>> {
        self.known(&self.worker.shared.view.load()).workload.clone().or_else(|| self.described.clone())
    }

    fn known(&self, view: &View) -> Rc<Known> {
        let (version, known) = &mut *self.known.borrow_mut();
        if *version == view.version() {
            return known.clone();
        }
        *version = view.version();
        let (network, address) = (&self.worker.shared.config.network, self.source_address.ip());
        let found = match &self.identity {
            // An address is hearsay where the identity says that another calls.
            Some(identity) => view.caller_at(network, address, identity),
            None => view.workload_at(network, address),
        };
        let mut question = self.question.borrow_mut();
        if question.is_none() && self.identity.is_some() {
            *question = self.worker.shared.callers.ask(address, found.is_some());
        }
        let is_same = known.caller.address.is_some() && known.workload.as_ref().map(Arc::as_ptr) == found.map(Arc::as_ptr);
        if !is_same {
            let labels = found.map(|found| found.labels.clone()).unwrap_or_default();
            let caller = Caller { identity: self.identity.clone(), address: Some(address), labels };
            *known = Rc::new(Known { caller: Rc::new(caller), workload: found.cloned() });
        }
        known.clone()
    }

    /// Until when who calls is to be waited for, because the host's routes ask it for labels and it is not known yet.
    pub fn waits_for_caller(&self, host: &Host, view: &View) -> Option<Instant> {
        if self.known(view).workload.is_some() {
            return None;
        }
        let deadline = self.question.borrow().as_ref()?.deadline()?;
        let port = host.ports.get(&self.addressed.port())?;
        port.caller_labels().next().map(|_| deadline)
    }

    /// Waits until who calls is known, or is nobody, or `deadline`.
    pub async fn wait_for_caller(&self, deadline: Instant) {
        let mut changes = self.worker.shared.view.subscribe();
        let known = async {
            while self.known(&self.worker.shared.view.load()).workload.is_none() && self.is_asked() && changes.changed().await.is_ok() {}
        };
        // Too late is as good as unknown: what asks for labels does not match.
        let _ = tokio::time::timeout_at(deadline.into(), known).await;
    }

    fn is_asked(&self) -> bool {
        self.question.borrow().as_ref().is_some_and(|question| question.deadline().is_some())
    }

    /// The routes, policies and pools of what is addressed, as `view` has them: a change holds for open connections too, and what is no
    /// longer attached to us is no longer served.
    pub fn host(&self, view: &View) -> Result<Arc<Host>, ResolveError> {
        let config = &self.worker.shared.config;
        match &self.addressed {
            Addressed::Service { name, port, .. } => resolve::service(view, &config.gateway, name, *port),
            Addressed::Workload { uid, address } => {
                let mut made = self.made.borrow_mut();
                if let Some((_, host)) = made.as_ref().filter(|(version, _)| *version == view.version()) {
                    return Ok(host.clone());
                }
                let host = Arc::new(resolve::workload(view, &config.gateway, &config.network, uid, *address)?);
                *made = Some((view.version(), host.clone()));
                Ok(host)
            }
        }
    }

    /// The way of what is addressed now. Looked up once a view.
    pub fn way(&self) -> Way {
        let view = self.worker.shared.view.load();
        let (version, way) = self.way.get();
        if version == view.version() {
            return way;
        }
        let way = self.way_in(&view);
        self.way.set((view.version(), way));
        way
    }

    fn way_in(&self, view: &View) -> Way {
        if self.host(view).is_err() {
            return Way::Nowhere;
        }
        let config = &self.worker.shared.config;
        let Some(waypoint) = view.waypoint(&config.gateway) else { return Way::Here };
        let is_here = match &self.addressed {
            // Behind a listener of our own nobody is attached.
            _ if self.identity.is_none() => true,
            Addressed::Service { name, .. } => {
                let own = view.service(name).and_then(|service| service.waypoint.as_ref());
                own.is_some_and(|own| is_ours(view, waypoint, &config.network, own))
            }
            Addressed::Workload { uid, .. } => !waypoint.elsewhere.contains(uid),
        };
        if is_here { Way::Here } else { Way::Elsewhere }
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("addressed", &self.addressed).field("identity", &self.identity).finish_non_exhaustive()
    }
}
