//! What a connection's requests have in common: who calls, what is addressed, and the worker that serves it.

use std::{
    cell::{Cell, RefCell},
    fmt,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
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
    stages::resolve::{self, Addressed, ResolveError},
    worker::Worker,
};

/// A connection that was accepted.
pub struct Entry {
    /// The worker that serves it.
    pub worker: Rc<Worker>,
    /// The original caller.
    pub caller: Caller,
    /// The original caller's workload, as far as it is known: for metrics.
    pub source: Option<Arc<Workload>>,
    /// Where the original caller called from.
    pub source_address: SocketAddr,
    /// Its address as text, as `x-forwarded-for` names it.
    pub source_text: HeaderValue,
    /// What it called.
    pub addressed: Addressed,
    /// Its identity was proved, and ours to it.
    pub mutual_tls: bool,
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

impl Entry {
    /// A connection of `identity` (proved by its tunnel) from `source_address`, for what `addressed` says.
    pub fn new(worker: Rc<Worker>, view: &View, identity: Option<Identity>, source_address: SocketAddr, addressed: Addressed) -> Self {
        let source = view.workload_at(&worker.shared.config.network, source_address.ip());
        // An address is hearsay where the identity says that another calls.
        let source = source.filter(|source| identity.as_ref().is_none_or(|identity| source.identity == *identity)).cloned();
        let labels = source.as_ref().map(|source| source.labels.clone()).unwrap_or_default();
        let mutual_tls = identity.is_some();
        let caller = Caller { identity, address: Some(source_address.ip()), labels };
        // An address's text is a header's value.
        let source_text = HeaderValue::try_from(source_address.ip().to_string()).unwrap_or(HeaderValue::from_static("unknown"));
        Self {
            worker,
            caller,
            source,
            source_address,
            source_text,
            addressed,
            mutual_tls,
            way: Cell::new((u64::MAX, Way::Here)),
            made: RefCell::default(),
        }
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
            _ if self.caller.identity.is_none() => true,
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
        f.debug_struct("Entry").field("addressed", &self.addressed).field("caller", &self.caller).finish_non_exhaustive()
    }
}
