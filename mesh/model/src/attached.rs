//! What a tunnel to a waypoint addresses, and the routes, policies and pools of it. Only what is attached to the waypoint is served.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crate::{
    address::NamespacedHostname,
    outcome::{Reason, Side},
    pool::{Balancer, Limits, LocalityPreference, Pool, PoolKey, UpstreamTls, UpstreamVersion},
    resolve::Authority,
    route::{Destination, Forward, HeaderChanges, Host, HostPort, HttpRoute, Origin, PortProtocol, Retries, RouteAction, TcpRoute},
    service::AppProtocol,
    view::View,
    waypoint::Waypoint,
    workload::{GatewayAddress, GatewayDestination, Workload, WorkloadUid},
};
use thiserror::Error;

/// What a connection addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addressed {
    /// A port of a service.
    Service {
        /// The service.
        name: NamespacedHostname,
        /// Its port.
        port: u16,
        /// The address of it that was called, if it was an address.
        address: Option<IpAddr>,
    },
    /// A workload itself.
    Workload {
        /// The workload.
        uid: WorkloadUid,
        /// Its address and port.
        address: SocketAddr,
    },
}

impl Addressed {
    /// The name that changes of it go by: `namespace/hostname`, or a workload's uid.
    pub fn name(&self) -> Cow<'_, str> {
        match self {
            Self::Service { name, .. } => Cow::Owned(name.to_string()),
            Self::Workload { uid, .. } => Cow::Borrowed(&*uid.0),
        }
    }

    /// The port that was called.
    pub fn port(&self) -> u16 {
        match self {
            Self::Service { port, .. } => *port,
            Self::Workload { address, .. } => address.port(),
        }
    }

    /// The address that was called.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Service { address, .. } => *address,
            Self::Workload { address, .. } => Some(address.ip()),
        }
    }
}

/// What was asked for is not served here: 404, or the connection is closed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AttachmentError {
    /// The control plane has not told us yet who we are.
    #[error("this waypoint ({gateway}) has no configuration")]
    NotConfigured {
        /// Our Gateway.
        gateway: Arc<str>,
    },
    /// Nothing of that name or address is attached here.
    #[error("{asked} is not attached to this waypoint")]
    NotAttached {
        /// What was asked for.
        asked: String,
    },
}

impl AttachmentError {
    /// The stable reason and whose fault it is.
    pub fn reason(&self) -> (Reason, Side) {
        match self {
            Self::NotConfigured { .. } => (Reason::NotAttached, Side::Mesh),
            Self::NotAttached { .. } => (Reason::NotAttached, Side::Downstream),
        }
    }
}

fn own<'v>(view: &'v View, gateway: &Arc<str>) -> Result<&'v Arc<Waypoint>, AttachmentError> {
    view.waypoint(gateway).ok_or_else(|| AttachmentError::NotConfigured { gateway: gateway.clone() })
}

/// What `authority` (a service's address or name, or a workload's address, each with a port) means on `network`, if it is served here.
pub fn addressed(view: &View, gateway: &Arc<str>, network: &str, authority: &Authority) -> Result<Addressed, AttachmentError> {
    let waypoint = own(view, gateway)?;
    let not_attached = || AttachmentError::NotAttached { asked: authority.to_string() };
    let found = match authority {
        Authority::Address(address) => {
            let by_service = view.service_at(network, address.ip(), namespace_of(gateway));
            match by_service {
                Some(service) => Addressed::Service { name: service.hostname.clone(), port: address.port(), address: Some(address.ip()) },
                None => {
                    let workload = view.workload_at(network, address.ip()).ok_or_else(not_attached)?;
                    Addressed::Workload { uid: workload.uid.clone(), address: *address }
                }
            }
        }
        Authority::Hostname { hostname, port } => {
            let attached = view.services_by_hostname(hostname).filter(|service| view.host(&service.hostname).is_some());
            // One hostname may be a service of several namespaces; our own's comes first.
            let service = attached.min_by_key(|service| &*service.hostname.namespace != namespace_of(gateway)).ok_or_else(not_attached)?;
            Addressed::Service { name: service.hostname.clone(), port: *port, address: None }
        }
    };
    let is_served = match &found {
        Addressed::Service { name, port, .. } => served_service(view, waypoint, name, *port).is_some(),
        Addressed::Workload { uid, .. } => served_workload(view, waypoint, network, uid).is_some(),
    };
    if is_served { Ok(found) } else { Err(not_attached()) }
}

fn served_service<'v>(view: &'v View, waypoint: &Waypoint, name: &NamespacedHostname, port: u16) -> Option<&'v Arc<Host>> {
    view.host(name).filter(|host| waypoint.serves.services() && host.ports.contains_key(&port))
}

fn served_workload<'v>(view: &'v View, waypoint: &Waypoint, network: &str, uid: &WorkloadUid) -> Option<&'v Arc<Workload>> {
    view.workload(uid).filter(|workload| waypoint.serves.workloads() && is_attached(view, waypoint, network, workload))
}

fn namespace_of(gateway: &str) -> &str {
    gateway.split_once('/').map_or("", |(namespace, _)| namespace)
}

fn is_attached(view: &View, waypoint: &Waypoint, network: &str, workload: &Workload) -> bool {
    workload.waypoint.as_ref().is_some_and(|reference| is_ours(view, waypoint, network, reference))
}

/// Whether a reference to a waypoint is one to us.
pub fn is_ours(view: &View, waypoint: &Waypoint, network: &str, reference: &GatewayAddress) -> bool {
    match &reference.destination {
        GatewayDestination::Service(name) => *name == waypoint.service,
        GatewayDestination::Address(named) => {
            &*named.network == network && view.service(&waypoint.service).is_some_and(|service| service.has_address(network, named.address))
        }
    }
}

/// The routes of a service's port, while it is attached here.
pub fn service(view: &View, gateway: &Arc<str>, name: &NamespacedHostname, port: u16) -> Result<Arc<Host>, AttachmentError> {
    let found = served_service(view, own(view, gateway)?, name, port);
    found.cloned().ok_or_else(|| AttachmentError::NotAttached { asked: format!("{name}:{port}") })
}

/// The host that stands for a workload that is addressed itself, while it is attached here: one port, one route to it alone, the
/// waypoint's policies. Its pool's host has the workload's uid for a hostname, which no service has ([`stands_for_a_workload`]).
pub fn workload(view: &View, gateway: &Arc<str>, network: &str, uid: &WorkloadUid, address: SocketAddr) -> Result<Host, AttachmentError> {
    let waypoint = own(view, gateway)?;
    let workload = served_workload(view, waypoint, network, uid).ok_or_else(|| AttachmentError::NotAttached { asked: uid.to_string() })?;
    let name = NamespacedHostname { namespace: workload.namespace.clone(), hostname: uid.0.clone() };
    let key = PoolKey { host: name.clone(), port: address.port(), subset: None };
    let destination = Destination { pool: key.clone(), weight: 1, headers: HeaderChanges::default() };
    let origin = Origin { kind: "Workload".into(), object: uid.0.clone(), field: "".into() };
    let forward =
        Forward { destinations: vec![destination.clone()], rewrite: None, timeout: None, retries: Retries::default(), mirrors: Vec::new() };
    let http = HttpRoute {
        name: "default".into(),
        origin: origin.clone(),
        matches: Vec::new(),
        action: RouteAction::Forward(Box::new(forward)),
        headers: HeaderChanges::default(),
        fault: None,
        cors: None,
    };
    let tcp = TcpRoute {
        origin,
        destination_blocks: Vec::new(),
        source_labels: BTreeMap::new(),
        source_namespace: None,
        destinations: vec![destination],
    };
    let protocol = protocol_of(view, workload, address.port());
    let pool = Pool {
        key: key.clone(),
        labels: BTreeMap::new(),
        balancer: Balancer::Passthrough,
        locality: LocalityPreference::None,
        warmup: None,
        limits: Limits::default(),
        outlier: None,
        panic_threshold_percent: 0,
        upstream_version: UpstreamVersion::FromCaller,
        tls: UpstreamTls::None,
    };
    let port = HostPort { protocol, http: vec![Arc::new(http)], tls: Vec::new(), tcp: vec![Arc::new(tcp)] };
    Ok(Host {
        name,
        ports: BTreeMap::from([(address.port(), port)]),
        policies: waypoint.policies.clone(),
        pools: BTreeMap::from([(key, Arc::new(pool))]),
    })
}

/// Whether a pool was made up for a workload that is addressed itself: no hostname has a slash, each uid of a pod has.
pub fn stands_for_a_workload(key: &PoolKey) -> bool {
    key.host.hostname.contains('/')
}

/// What a workload's port speaks, by the first of its services that says so.
fn protocol_of(view: &View, workload: &Workload, port: u16) -> PortProtocol {
    let declared = workload.services.iter().find_map(|(name, ports)| {
        let (service_port, _) = ports.iter().find(|(_, own)| **own == port)?;
        view.service(name)?.ports.get(service_port).map(|port| port.app_protocol)
    });
    match declared.unwrap_or_default() {
        AppProtocol::Unknown => PortProtocol::Auto,
        AppProtocol::Http11 => PortProtocol::Http,
        AppProtocol::Http2 => PortProtocol::Http2,
        AppProtocol::Grpc => PortProtocol::Grpc,
        AppProtocol::Tcp => PortProtocol::Tcp,
        AppProtocol::Tls => PortProtocol::Tls,
    }
}
