//! VirtualServices become routes.
//!
//! [`used`] says which of them a waypoint uses for a host and in which order (traffic-api.md 1.9); [`Rendering`] gives their routes port
//! by port. What is wrong with one of them, whoever uses it, is told by [`findings()`].

mod action;
mod delegate;
mod findings;
mod http;
mod l4;
mod texts;

use std::{borrow::Cow, cell::RefCell, collections::BTreeMap, sync::Arc};

use tropis_crds::{
    Finding, Level, Object, codes,
    istio::virtual_service::{self as istio, Destination as IstioDestination},
};
use tropis_model::{
    bounds,
    route::{HttpRoute, Origin, TcpRoute, TlsRoute},
};

use crate::{
    Index,
    host::Target,
    index::{Key, full_host, key_of},
};

pub(crate) use action::default_retries;
use delegate::Merged;
pub use findings::findings;

/// The gateway that stands for all traffic inside the mesh.
pub(crate) const MESH: &str = "mesh";

/// Whether something of namespace `own` that is exported to `export_to` is seen from namespace `viewer`.
pub(crate) fn is_visible(export_to: &[String], own: &str, viewer: &str) -> bool {
    export_to.is_empty() || export_to.iter().any(|entry| entry == "*" || entry == viewer || (entry == "." && own == viewer))
}

/// Whether a list of gateways, empty for the default, takes in traffic inside the mesh.
fn in_mesh(gateways: &[String]) -> bool {
    gateways.is_empty() || gateways.iter().any(|gateway| gateway == MESH)
}

/// Whether a VirtualService has a rule for traffic inside the mesh.
pub(crate) fn routes_in_mesh(object: &Object) -> bool {
    let counts = |gateways: &mut dyn Iterator<Item = &Vec<String>>| {
        let mut gateways = gateways.peekable();
        gateways.peek().is_none() || gateways.any(|gateways| in_mesh(gateways))
    };
    object.virtual_service().is_some_and(|service| {
        let spec = &service.spec;
        spec.http.iter().any(|rule| counts(&mut rule.matches.iter().map(|entry| &entry.gateways)))
            || spec.tls.iter().any(|rule| counts(&mut rule.matches.iter().map(|entry| &entry.gateways)))
            || spec.tcp.iter().any(|rule| counts(&mut rule.matches.iter().map(|entry| &entry.gateways)))
    })
}

/// The VirtualServices that a waypoint uses for a service (its namespace and full host), in the order in which their routes are tried:
/// those that only its namespace sees, those exported to it by name, then public ones; each oldest first. They stand in the service's or
/// in the waypoint's namespace.
pub fn used<'a>(index: &'a Index, waypoint: &Key, namespace: &str, host: &str) -> Vec<&'a Arc<Object>> {
    let viewer = waypoint.0.as_str();
    let mut found: Vec<(u8, &Arc<Object>)> = Vec::new();
    for object in index.virtual_services_for(host) {
        let Some(service) = object.virtual_service() else { continue };
        let own = object.metadata.namespace.as_str();
        let spec = &service.spec;
        if (own == namespace || own == viewer) && in_mesh(&spec.gateways) && is_visible(&spec.export_to, own, viewer) {
            let rank = match spec.export_to.as_slice() {
                [] => 2,
                list if list.iter().any(|entry| entry == "*") => 2,
                list if list.iter().any(|entry| entry == ".") && own == viewer => 0,
                _ => 1,
            };
            found.push((rank, object));
        }
    }
    found.sort_by_key(|(rank, _)| *rank);
    found.into_iter().map(|(_, object)| object).collect()
}

/// A rule for HTTP requests as it is rendered: delegation resolved, hosts in full.
pub(crate) struct Rule<'a> {
    /// Where it was written; for a delegate's rule, there.
    pub(crate) origin: Origin,
    /// The object that it was written in.
    pub(crate) object: &'a Arc<Object>,
    /// The rule.
    pub(crate) route: istio::HttpRoute,
    /// Together with the rule that delegates to it, it has more matches than a waypoint takes.
    pub(crate) too_many: bool,
}

/// The HTTP rules of a VirtualService in order, those of its delegates in the places of the rules that delegate.
pub(crate) fn http_rules<'a>(index: &'a Index, object: &'a Arc<Object>) -> Vec<Rule<'a>> {
    let Some(service) = object.virtual_service() else { return Vec::new() };
    let mut rules = Vec::new();
    for (position, route) in service.spec.http.iter().enumerate() {
        let root = in_full(index, object, route);
        let Some(key) = delegate_key(object, route) else {
            rules.push(Rule { origin: origin(object, "http", position), object, route: root, too_many: false });
            continue;
        };
        let Some((delegate, more)) = delegate_of(index, object, &key) else { continue };
        for (position, route) in more.http.iter().enumerate() {
            let route = in_full(index, delegate, route);
            let (route, too_many) = match delegate::merge(&root, &route) {
                Merged::Nothing => continue,
                Merged::Rule(merged) => (*merged, false),
                Merged::TooMany => (route, true),
            };
            rules.push(Rule { origin: origin(delegate, "http", position), object: delegate, route, too_many });
        }
    }
    rules
}

/// The key of the VirtualService that a rule delegates to.
pub(crate) fn delegate_key(object: &Object, route: &istio::HttpRoute) -> Option<Key> {
    let delegate = route.delegate.as_ref()?;
    let namespace = if delegate.namespace.is_empty() { &object.metadata.namespace } else { &delegate.namespace };
    Some((namespace.clone(), delegate.name.clone()))
}

/// The VirtualService of a key, if `root` may delegate to it: it has no hosts and is visible.
fn delegate_of<'a>(index: &'a Index, root: &Object, key: &Key) -> Option<(&'a Arc<Object>, &'a istio::Spec)> {
    let object = index.virtual_service(key)?;
    let spec = &object.virtual_service()?.spec;
    let visible = is_visible(&spec.export_to, &key.0, &root.metadata.namespace);
    (spec.hosts.is_empty() && visible).then_some((object, spec))
}

/// A rule with the hosts of its destinations in full.
fn in_full(index: &Index, object: &Object, route: &istio::HttpRoute) -> istio::HttpRoute {
    let mut route = route.clone();
    let destinations = route.route.iter_mut().map(|entry| &mut entry.destination);
    let mirrors = route.mirrors.iter_mut().map(|entry| &mut entry.destination).chain(&mut route.mirror);
    for destination in destinations.chain(mirrors) {
        destination.host = full_host(index.settings(), &object.metadata.namespace, &destination.host);
    }
    route
}

fn origin(object: &Object, list: &str, position: usize) -> Origin {
    let (namespace, name) = key_of(object);
    Origin { kind: "VirtualService".into(), object: format!("{namespace}/{name}").into(), field: format!("spec.{list}[{position}]").into() }
}

/// Why a rule cannot be obeyed. What would have matched it is refused.
enum Problem {
    /// It has a pattern that cannot be read.
    Pattern(texts::BadPattern),
    /// It and the rule that delegates to it have too many matches together.
    Matches,
    /// There are too many before it.
    Routes,
}

impl From<texts::BadPattern> for Problem {
    fn from(bad: texts::BadPattern) -> Self {
        Self::Pattern(bad)
    }
}

/// Gives the routes of VirtualServices, port by port.
pub(crate) struct Rendering<'a> {
    index: &'a Index,
    used: Vec<&'a Arc<Object>>,
    rules: Vec<Vec<Rule<'a>>>,
    findings: RefCell<BTreeMap<String, Finding>>,
}

impl<'a> Rendering<'a> {
    /// Prepares the rules of VirtualServices in the order of [`used`].
    pub(crate) fn new(index: &'a Index, used: &[&'a Arc<Object>]) -> Self {
        let rules = used.iter().map(|object| http_rules(index, object)).collect();
        Self { index, used: used.to_vec(), rules, findings: RefCell::default() }
    }

    /// Whether any of them routes HTTP requests; otherwise they go to the service.
    pub(crate) fn routes_http(&self) -> bool {
        self.used.iter().any(|object| object.virtual_service().is_some_and(|service| !service.spec.http.is_empty()))
    }

    /// Routes of HTTP requests that come to a port, up to the first that takes everything.
    pub(crate) fn http(&self, port: u16) -> Vec<Arc<HttpRoute>> {
        let mut routes = Vec::new();
        for rule in self.rules.iter().flatten() {
            let found = if routes.len() + 1 == bounds::ROUTES { Err(Problem::Routes) } else { http::route(self, rule, port) };
            match found {
                Ok(Some(route)) => {
                    let takes_all = http::takes_all(&route);
                    routes.push(Arc::new(route));
                    if takes_all {
                        break;
                    }
                }
                Ok(None) => {}
                Err(problem) => {
                    self.tell(rule, &problem);
                    // What would have matched must not fall to a later rule.
                    routes.push(Arc::new(http::refusal(rule)));
                    break;
                }
            }
        }
        routes
    }

    /// Routes of TLS connections that come to a port of a host.
    pub(crate) fn tls(&self, port: u16, host: &str) -> Vec<Arc<TlsRoute>> {
        self.l4(|object| l4::tls(self, object, port, host), l4::refuse_tls)
    }

    /// Routes of connections that come to a port.
    pub(crate) fn tcp(&self, port: u16) -> Vec<Arc<TcpRoute>> {
        self.l4(|object| l4::tcp(self, object, port), l4::refuse_tcp)
    }

    /// All routes of one kind; where there are too many, what no route before takes is refused and falls to none of another kind.
    fn l4<T>(&self, routes: impl Fn(&'a Arc<Object>) -> Vec<T>, refuse: impl Fn(T) -> (Origin, T)) -> Vec<Arc<T>> {
        // The last place is for what goes to the service itself.
        const PLACES: usize = bounds::ROUTES - 1;
        let all = self.used.iter().flat_map(|object| routes(object).into_iter().map(move |route| (*object, route)));
        let mut all: Vec<(&Arc<Object>, T)> = all.take(PLACES + 1).collect();
        if all.len() > PLACES {
            all.truncate(PLACES);
            if let Some((object, route)) = all.pop() {
                let (origin, refusal) = refuse(route);
                self.tell_l4(object, &origin);
                all.push((object, refusal));
            }
        }
        all.into_iter().map(|(_, route)| Arc::new(route)).collect()
    }

    fn tell_l4(&self, object: &Object, origin: &Origin) {
        let finding = Finding::new(Level::Error, codes::UNREADABLE_VALUE, object.reference())
            .field(origin.field.to_string())
            .problem("has one match too many for the host, all its VirtualServices together")
            .accepted(format!("fewer than {} matches of rules for tls, and of rules for tcp", bounds::ROUTES))
            .effect("connections that no match before it takes are closed");
        self.findings.borrow_mut().insert(origin.field.to_string(), finding);
    }

    /// What was found to be wrong on the way.
    pub(crate) fn into_findings(self) -> Vec<Finding> {
        self.findings.into_inner().into_values().collect()
    }

    /// What a destination with a full host means, for an object of `namespace`.
    fn target(&self, namespace: &str, destination: &IstioDestination) -> Target<'a> {
        Target::find(self.index, namespace, &full_host(self.index.settings(), namespace, &destination.host))
    }

    fn tell(&self, rule: &Rule<'_>, problem: &Problem) {
        let finding = Finding::new(Level::Error, codes::UNREADABLE_VALUE, rule.object.reference());
        let (field, finding) = match problem {
            Problem::Pattern(bad) => (
                format!("{}.{}", rule.origin.field, bad.field),
                finding
                    .found(format!("{:?}", bad.pattern))
                    .problem(format!("is not a regular expression: {}", bad.reason))
                    .accepted("RE2 syntax"),
            ),
            Problem::Matches => (
                format!("{}.match", rule.origin.field),
                finding
                    .found(format!("{} matches", rule.route.matches.len()))
                    .problem("are too many, each with each of the rule that delegates to it")
                    .accepted(format!("at most {} matches that both rules make together", bounds::MATCHES)),
            ),
            Problem::Routes => (
                rule.origin.field.to_string(),
                finding
                    .problem("is one rule too many for the host, all its VirtualServices together")
                    .accepted(format!("fewer than {} rules", bounds::ROUTES)),
            ),
        };
        let finding = finding.field(field.clone()).effect("requests that no rule before it takes are answered with 503");
        self.findings.borrow_mut().insert(field, finding);
    }
}

/// Whether a rule's match counts inside the mesh and for a port.
fn counts(gateways: &[String], wanted: Option<i64>, port: u16) -> bool {
    in_mesh(gateways) && wanted.is_none_or(|wanted| wanted == i64::from(port))
}

/// The entries of `list` that count; `None` when there were some and none does.
fn counting<'m, T: Clone>(list: &'m [T], counts: impl Fn(&T) -> bool) -> Option<Cow<'m, [T]>> {
    if list.is_empty() {
        return Some(Cow::Borrowed(list));
    }
    let kept: Vec<T> = list.iter().filter(|entry| counts(entry)).cloned().collect();
    (!kept.is_empty()).then_some(Cow::Owned(kept))
}
