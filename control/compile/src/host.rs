//! What a waypoint does with traffic that is addressed to a service: the service's ports, routes, pools and policies in one.
//!
//! [`compile`] renders it for one waypoint, because whose VirtualServices and DestinationRules count depends on the waypoint's
//! namespace. A route may name a pool that does not exist; it is left out here (503, flag NC), and `virtual_service::findings` says so.

mod port_names;
mod target;

use std::{collections::BTreeSet, sync::Arc};

use tropis_crds::{Finding, Object, codes};
use tropis_model::{
    bounds,
    pool::{Pool, PoolKey},
    route::{Destination, Forward, HeaderChanges, Host, HostPort, HttpRoute, Origin, PortProtocol, RouteAction, TcpRoute},
    service::{AppProtocol, Service},
};

use crate::{Index, destination_rule, index::Key, request_policy, service, virtual_service};

pub(crate) use target::Target;

/// The name of the route of a host that no VirtualService routes.
pub const DEFAULT_ROUTE: &str = "default";

/// Renders a service for a waypoint (namespace and name of its Gateway). A Service that the mesh does not carry (ExternalName) has no
/// ports. The findings are about the service as a whole and about pools that cannot be made; what is wrong in a single object is told by
/// `findings` of its kind.
pub fn compile(index: &Index, waypoint: &Key, object: &Object) -> (Host, Vec<Finding>) {
    let settings = index.settings();
    let name = service::hostname(settings, &object.metadata.namespace, &object.metadata.name);
    let mut host = Host { name: name.clone(), ports: Default::default(), policies: Vec::new(), pools: Default::default() };
    let mut findings = port_names::findings(object);
    let (Some(service), _) = service::compile(settings, object) else { return (host, findings) };
    let used = virtual_service::used(index, waypoint, &object.metadata.namespace, &name.hostname);
    let rendering = virtual_service::Rendering::new(index, &used);
    findings.extend(too_many(object, "ports", service.ports.len(), bounds::PORTS, "what comes to the last of them is refused"));
    for (number, port) in service.ports.iter().take(bounds::PORTS) {
        let protocol = protocol(port.app_protocol);
        let own = HostPort {
            protocol,
            http: if speaks_http(protocol) { http(&rendering, &service, *number) } else { Vec::new() },
            tls: if is_opaque(protocol) { rendering.tls(*number, &name.hostname) } else { Vec::new() },
            tcp: if is_opaque(protocol) { tcp(&rendering, &service, *number) } else { Vec::new() },
        };
        host.ports.insert(*number, own);
    }
    findings.extend(rendering.into_findings());
    let named = named(&host);
    findings.extend(too_many(object, "destinations of its routes", named.len(), bounds::POOLS, "the last of them do not exist: 503"));
    for key in named.into_iter().take(bounds::POOLS) {
        let (pool, told) = destination_rule::pool(index, &waypoint.0, &key);
        findings.extend(told);
        if let Some(pool) = pool {
            host.pools.insert(key, Arc::new(pool));
        }
    }
    let policies = request_policy::of_service(index, waypoint, object, host.pools.keys().map(|key| &key.host));
    findings.extend(too_many(object, "policies that apply to it", policies.len(), bounds::POLICIES, "whatever comes is denied"));
    host.policies = request_policy::bounded(policies);
    (host, findings)
}

/// What there is to tell when the objects about a service make more than a waypoint takes.
fn too_many(object: &Object, what: &str, found: usize, limit: usize, effect: &str) -> Option<Finding> {
    (found > limit).then(|| {
        Finding::error(codes::UNREADABLE_VALUE, object.reference())
            .found(format!("{found} {what}"))
            .problem("are too many for one service at a waypoint")
            .accepted(format!("at most {limit}"))
            .effect(effect)
    })
}

/// The pool of one service port, as a waypoint of namespace `waypoint` reaches it; `None` when it does not exist.
pub fn pool(index: &Index, waypoint: &str, key: &PoolKey) -> Option<Pool> {
    destination_rule::pool(index, waypoint, key).0
}

fn http(rendering: &virtual_service::Rendering<'_>, service: &Service, port: u16) -> Vec<Arc<HttpRoute>> {
    if rendering.routes_http() {
        return rendering.http(port);
    }
    let forward = Forward {
        destinations: vec![default_destination(service, port)],
        rewrite: None,
        timeout: None,
        retries: virtual_service::default_retries(),
        mirrors: Vec::new(),
    };
    vec![Arc::new(HttpRoute {
        name: DEFAULT_ROUTE.into(),
        origin: service_origin(service),
        matches: Vec::new(),
        action: RouteAction::Forward(Box::new(forward)),
        headers: HeaderChanges::default(),
        fault: None,
        cors: None,
    })]
}

/// The routes of connections; when none of them takes all, what is left goes to the service itself.
fn tcp(rendering: &virtual_service::Rendering<'_>, service: &Service, port: u16) -> Vec<Arc<TcpRoute>> {
    let mut routes = rendering.tcp(port);
    let conditional =
        |route: &Arc<TcpRoute>| !route.destination_blocks.is_empty() || !route.source_labels.is_empty() || route.source_namespace.is_some();
    if routes.last().is_none_or(conditional) {
        routes.push(Arc::new(TcpRoute {
            origin: service_origin(service),
            destination_blocks: Vec::new(),
            source_labels: Default::default(),
            source_namespace: None,
            destinations: vec![default_destination(service, port)],
        }));
    }
    routes
}

fn default_destination(service: &Service, port: u16) -> Destination {
    let pool = PoolKey { host: service.hostname.clone(), port, subset: None };
    Destination { pool, weight: 1, headers: HeaderChanges::default() }
}

fn service_origin(service: &Service) -> Origin {
    let object = format!("{}/{}", service.hostname.namespace, service.name);
    Origin { kind: "Service".into(), object: object.into(), field: "".into() }
}

/// What a port speaks, as a waypoint sees it.
pub(crate) fn protocol(declared: AppProtocol) -> PortProtocol {
    match declared {
        AppProtocol::Http11 => PortProtocol::Http,
        AppProtocol::Http2 => PortProtocol::Http2,
        AppProtocol::Grpc => PortProtocol::Grpc,
        AppProtocol::Tcp => PortProtocol::Tcp,
        AppProtocol::Tls => PortProtocol::Tls,
        AppProtocol::Unknown => PortProtocol::Auto,
    }
}

/// Whether requests may come to it.
fn speaks_http(protocol: PortProtocol) -> bool {
    matches!(protocol, PortProtocol::Auto | PortProtocol::Http | PortProtocol::Http2 | PortProtocol::Grpc)
}

/// Whether connections may come to it whose bytes are passed on as they are.
fn is_opaque(protocol: PortProtocol) -> bool {
    matches!(protocol, PortProtocol::Auto | PortProtocol::Tcp | PortProtocol::Tls)
}

/// The pools that routes and mirrors name.
fn named(host: &Host) -> BTreeSet<PoolKey> {
    let mut keys = BTreeSet::new();
    for port in host.ports.values() {
        for route in &port.http {
            if let RouteAction::Forward(forward) = &route.action {
                keys.extend(forward.destinations.iter().map(|destination| destination.pool.clone()));
                keys.extend(forward.mirrors.iter().map(|mirror| mirror.pool.clone()));
            }
        }
        let destinations =
            port.tls.iter().flat_map(|route| &route.destinations).chain(port.tcp.iter().flat_map(|route| &route.destinations));
        keys.extend(destinations.map(|destination| destination.pool.clone()));
    }
    keys
}

#[cfg(test)]
mod tests;
