//! Where a connection goes: the plan, decided on one view.
//!
//! Outbound, in this order: a service with a waypoint → its waypoint; a service → one of its endpoints; a workload with a waypoint →
//! that waypoint; a workload → itself; anything else → where it was addressed. A waypoint that is required and cannot be reached is an
//! error, never gone around. Inbound: the tunnel's authority must name this workload, or something this workload serves.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use thiserror::Error;

use crate::{
    address::{NamespacedHostname, NetworkAddress, OriginalDestination},
    identity::Identity,
    outcome::{Reason, Side},
    service::{BalancingMode, HealthPolicy, IpFamilies, Scope, Service},
    view::{Endpoint, View},
    workload::{ApplicationTunnelProtocol, GatewayAddress, GatewayDestination, Health, TunnelProtocol, Workload, WorkloadUid},
};

/// The port of the HBONE listener.
pub const HBONE_PORT: u16 = 15008;
/// The ports of the in-pod listeners: nothing may be forwarded to them, or it would come back.
pub const LISTENER_PORTS: [u16; 3] = [15001, 15006, HBONE_PORT];

/// An IP and port, or a name and port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Authority {
    /// `10.0.0.1:80`, `[fd00::1]:80`.
    Address(SocketAddr),
    /// `reviews.shop.svc.cluster.local:9080`.
    Hostname {
        /// The name.
        hostname: Arc<str>,
        /// The port.
        port: u16,
    },
}

impl Authority {
    /// The port.
    pub fn port(&self) -> u16 {
        match self {
            Self::Address(address) => address.port(),
            Self::Hostname { port, .. } => *port,
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Hostname { hostname, port } => write!(f, "{hostname}:{port}"),
        }
    }
}

impl std::str::FromStr for Authority {
    type Err = ResolveError;

    /// Reads the `:authority` of a CONNECT request: a host and a port, both required (RFC 9113 §8.5).
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || ResolveError::BadAuthority { authority: text.to_owned() };
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self::Address(crate::address::canonical(address)));
        }
        let (hostname, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let named = !hostname.is_empty()
            && hostname.len() <= 253
            && hostname.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'*'));
        if !named {
            return Err(invalid());
        }
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(invalid)?;
        Ok(Self::Hostname { hostname: hostname.to_ascii_lowercase().into(), port })
    }
}

/// The next process on the way, and who it must prove to be.
#[derive(Debug, Clone)]
pub struct Hop {
    /// The workload that the hop ends at.
    pub workload: Arc<Workload>,
    /// Its HBONE listener.
    pub address: SocketAddr,
    /// The identities, one of which it must prove.
    pub expected: Vec<Identity>,
}

/// What is at the end: for the tunnel's authority and for reporting.
#[derive(Debug, Clone)]
pub struct Target {
    /// The service that was addressed.
    pub service: Option<Arc<Service>>,
    /// The workload at the end, if it is decided here and not by a waypoint; `None` for an address that the mesh does not know.
    pub workload: Option<Arc<Workload>>,
    /// Where to connect, or the authority to ask for.
    pub authority: Authority,
}

/// Where a connection goes.
#[derive(Debug, Clone)]
pub enum Plan {
    /// Plain TCP: the destination is not in the mesh.
    Direct {
        /// Where to.
        to: Target,
    },
    /// An HBONE tunnel to the destination's node proxy or to a waypoint.
    Tunnel {
        /// The next process.
        via: Hop,
        /// The end.
        target: Target,
        /// `via` is a waypoint.
        waypoint: bool,
    },
    /// A tunnel in a tunnel, through the gateway of another network.
    Nested {
        /// The other network's gateway.
        gateway: Hop,
        /// The identities, one of which the inner end must prove.
        inner_expected: Vec<Identity>,
        /// The end.
        target: Target,
    },
}

impl Plan {
    /// What is at the end.
    pub fn target(&self) -> &Target {
        match self {
            Self::Direct { to } => to,
            Self::Tunnel { target, .. } | Self::Nested { target, .. } => target,
        }
    }

    /// The workload that is dialled next, to leave it out of another try.
    pub fn next(&self) -> Option<&Arc<Workload>> {
        match self {
            Self::Direct { to } => to.workload.as_ref(),
            Self::Tunnel { via, .. } => Some(&via.workload),
            Self::Nested { gateway, .. } => Some(&gateway.workload),
        }
    }
}

/// Why there is no plan. The connection is closed; the text says what to look at.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ResolveError {
    /// The connection would come back to the proxy.
    #[error("{destination} is a listener of the proxy itself")]
    LoopDetected {
        /// Where it was going.
        destination: SocketAddr,
    },
    /// The service has no endpoint that may be used.
    #[error("service {service} has no healthy endpoint for port {port}")]
    NoEndpoint {
        /// The service.
        service: NamespacedHostname,
        /// The service port.
        port: u16,
    },
    /// The workload has no address that can be used.
    #[error("workload {workload} has no address that can be reached from here")]
    NoAddress {
        /// The workload.
        workload: WorkloadUid,
    },
    /// The waypoint is required and cannot be reached.
    #[error("waypoint {waypoint} is required and has no ready instance")]
    NoWaypoint {
        /// The waypoint, as the destination names it.
        waypoint: String,
    },
    /// The gateway of the destination's network is not known.
    #[error("no gateway to network {network:?} is known for workload {workload}")]
    NoGateway {
        /// The other network.
        network: Arc<str>,
        /// The workload there.
        workload: WorkloadUid,
    },
    /// The text is no authority.
    #[error("{authority:?} is not an authority of the form HOST:PORT")]
    BadAuthority {
        /// What was found.
        authority: String,
    },
    /// The tunnel asks for an address that is not this workload's.
    #[error("{authority} is not an address of workload {workload}, nor of a service whose waypoint it is")]
    NotHere {
        /// What was asked for.
        authority: Authority,
        /// This workload.
        workload: WorkloadUid,
    },
    /// The tunnel asks for a service or a port that this workload does not serve.
    #[error("workload {workload} does not serve {authority}")]
    NotServed {
        /// What was asked for.
        authority: Authority,
        /// This workload.
        workload: WorkloadUid,
    },
}

impl ResolveError {
    /// The stable reason and whose fault it is.
    pub fn reason(&self) -> (Reason, Side) {
        match self {
            Self::LoopDetected { .. } => (Reason::LoopDetected, Side::Downstream),
            Self::NoEndpoint { .. } | Self::NoAddress { .. } => (Reason::NoEndpoint, Side::Upstream),
            Self::NoWaypoint { .. } => (Reason::NoWaypoint, Side::Mesh),
            Self::NoGateway { .. } => (Reason::NoGateway, Side::Mesh),
            Self::BadAuthority { .. } | Self::NotHere { .. } => (Reason::BadRequest, Side::Downstream),
            Self::NotServed { .. } => (Reason::NoEndpoint, Side::Mesh),
        }
    }
}

/// Random numbers that the caller seeds, so that deciding stays a pure function (SplitMix64).
#[derive(Debug, Clone)]
pub struct Draw(u64);

impl Draw {
    /// Starts from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound`, which must not be 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    /// Whether something happens that does so in `share_ppm` of 1 000 000 cases (faults, mirrors).
    pub fn happens(&mut self, share_ppm: u32) -> bool {
        self.below(1_000_000) < u64::from(share_ppm)
    }

    /// One of `items`, each as likely as its weight; none if all weigh nothing.
    fn weighted<T>(&mut self, items: Vec<(T, u32)>) -> Option<T> {
        let total: u64 = items.iter().map(|(_, weight)| u64::from(*weight)).sum();
        if total == 0 {
            return None;
        }
        let mut at = self.below(total);
        for (item, weight) in items {
            match at.checked_sub(u64::from(weight)) {
                Some(rest) => at = rest,
                None => return Some(item),
            }
        }
        None
    }
}

/// What an outbound decision looks at besides the view.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The pod that connects.
    pub caller: &'a Workload,
    /// Where it connects to.
    pub destination: OriginalDestination,
    /// The proxy's own network.
    pub network: &'a str,
    /// Workloads that already failed for this connection.
    pub tried: &'a [WorkloadUid],
}

/// Plans a connection that a local pod opened.
pub fn outbound(view: &View, question: &Question<'_>, draw: &mut Draw) -> Result<Plan, ResolveError> {
    let destination = question.destination.0;
    if destination.ip().is_loopback() && LISTENER_PORTS.contains(&destination.port()) {
        return Err(ResolveError::LoopDetected { destination });
    }
    // What was addressed: a workload's own address wins over a service's here, but not when an endpoint is chosen below.
    let addressed_workload = view.workload_at(question.network, destination.ip());
    let service = view.service_at(question.network, destination.ip(), &question.caller.namespace);
    if addressed_workload.is_none()
        && let Some(service) = service
        && let Some(waypoint) = waypoint_of(service, draw)
    {
        let target = Target { service: Some(service.clone()), workload: None, authority: Authority::Address(destination) };
        return through_waypoint(view, question, waypoint, target, draw);
    }
    let passes_through = |service: &Arc<Service>| service.load_balancing.mode == BalancingMode::Passthrough;
    // A workload's own address inside a pass-through block is the workload's: it is reached as a member of the mesh.
    if let Some(service) = service.filter(|service| addressed_workload.is_none() || !passes_through(service)) {
        if passes_through(service) {
            let to = Target { service: Some(service.clone()), workload: None, authority: Authority::Address(destination) };
            return Ok(Plan::Direct { to });
        }
        let chosen = choose(view, service, destination.port(), question, draw)
            .ok_or_else(|| ResolveError::NoEndpoint { service: service.hostname.clone(), port: destination.port() })?;
        return to_workload(view, question, chosen.workload, chosen.port, Some(service), draw);
    }
    let Some(workload) = addressed_workload else {
        let to = Target { service: None, workload: None, authority: Authority::Address(destination) };
        return Ok(Plan::Direct { to });
    };
    if let Some(waypoint) = &workload.waypoint
        && !is_instance(view, waypoint, question.caller)
    {
        let target = Target { service: None, workload: Some(workload.clone()), authority: Authority::Address(destination) };
        return through_waypoint(view, question, waypoint, target, draw);
    }
    to_workload(view, question, workload, destination.port(), None, draw)
}

/// The waypoint that a service's traffic must pass: a weighted one when any has weight, else the one named.
fn waypoint_of<'a>(service: &'a Service, draw: &mut Draw) -> Option<&'a GatewayAddress> {
    let weighted = service.weighted_waypoints.iter().map(|(waypoint, weight)| (waypoint, *weight)).collect();
    draw.weighted(weighted).or(service.waypoint.as_ref())
}

fn through_waypoint(
    view: &View,
    question: &Question<'_>,
    waypoint: &GatewayAddress,
    target: Target,
    draw: &mut Draw,
) -> Result<Plan, ResolveError> {
    let absent = || ResolveError::NoWaypoint { waypoint: waypoint.destination.to_string() };
    let via = gateway_hop(view, question, waypoint, question.destination.0.ip(), draw).ok_or_else(absent)?;
    Ok(Plan::Tunnel { via, target, waypoint: true })
}

/// Finds an instance of a gateway and how to dial it.
fn gateway_hop(view: &View, question: &Question<'_>, gateway: &GatewayAddress, like: IpAddr, draw: &mut Draw) -> Option<Hop> {
    let by_service = |service: &Arc<Service>, draw: &mut Draw| {
        let chosen = choose(view, service, gateway.hbone_port, question, draw)?;
        let address = address_of(chosen.workload, service.ip_families, like)?;
        let mut expected = expected_of(service);
        expected.push(chosen.workload.identity.clone());
        Some(Hop { workload: chosen.workload.clone(), address: SocketAddr::new(address, chosen.port), expected })
    };
    let by_workload = |workload: &Arc<Workload>| {
        let address = address_of(workload, IpFamilies::Automatic, like)?;
        let address = SocketAddr::new(address, gateway.hbone_port);
        Some(Hop { workload: workload.clone(), address, expected: vec![workload.identity.clone()] })
    };
    match &gateway.destination {
        GatewayDestination::Service(name) => match view.service(name) {
            Some(service) => by_service(service, draw),
            None => by_workload(view.workload_by_hostname(name)?),
        },
        GatewayDestination::Address(NetworkAddress { network, address }) => {
            match view.service_at(network, *address, &question.caller.namespace) {
                Some(service) => by_service(service, draw),
                None => by_workload(view.workload_at(network, *address)?),
            }
        }
    }
}

/// Whether `caller` is one of the instances that a gateway reference names: a waypoint does not go through itself.
fn is_instance(view: &View, gateway: &GatewayAddress, caller: &Workload) -> bool {
    match &gateway.destination {
        GatewayDestination::Service(name) => {
            caller.services.contains_key(name) || view.workload_by_hostname(name).is_some_and(|instance| instance.uid == caller.uid)
        }
        GatewayDestination::Address(NetworkAddress { network, address }) => {
            (*network == caller.network && caller.addresses.contains(address))
                || view
                    .service_at(network, *address, &caller.namespace)
                    .is_some_and(|service| caller.services.contains_key(&service.hostname))
        }
    }
}

/// Plans the last leg to a workload's `port`.
fn to_workload(
    view: &View,
    question: &Question<'_>,
    workload: &Arc<Workload>,
    port: u16,
    service: Option<&Arc<Service>>,
    draw: &mut Draw,
) -> Result<Plan, ResolveError> {
    let destination = question.destination.0;
    if workload.network != question.caller.network {
        return nested(view, question, workload, service, draw);
    }
    let families = service.map_or(IpFamilies::Automatic, |service| service.ip_families);
    let target = |authority| Target { service: service.cloned(), workload: Some(workload.clone()), authority };
    let Some(address) = address_of(workload, families, destination.ip()) else {
        if workload.hostname.is_empty() || workload.tunnel_protocol == TunnelProtocol::Hbone {
            return Err(ResolveError::NoAddress { workload: workload.uid.clone() });
        }
        return Ok(Plan::Direct { to: target(Authority::Hostname { hostname: workload.hostname.clone(), port }) });
    };
    let authority = Authority::Address(SocketAddr::new(address, port));
    match workload.tunnel_protocol {
        TunnelProtocol::None => Ok(Plan::Direct { to: target(authority) }),
        TunnelProtocol::Hbone => {
            let mut expected = service.map(|service| expected_of(service)).unwrap_or_default();
            expected.push(workload.identity.clone());
            let via = Hop { workload: workload.clone(), address: SocketAddr::new(address, HBONE_PORT), expected };
            Ok(Plan::Tunnel { via, target: target(authority), waypoint: false })
        }
    }
}

/// Plans the way to a workload of another network: through that network's gateway, and only for a service, whose identities the inner
/// end must prove.
fn nested(
    view: &View,
    question: &Question<'_>,
    workload: &Arc<Workload>,
    service: Option<&Arc<Service>>,
    draw: &mut Draw,
) -> Result<Plan, ResolveError> {
    let absent = || ResolveError::NoGateway { network: workload.network.clone(), workload: workload.uid.clone() };
    let (Some(reference), Some(service)) = (&workload.network_gateway, service) else { return Err(absent()) };
    let gateway = gateway_hop(view, question, reference, question.destination.0.ip(), draw).ok_or_else(absent)?;
    let authority = Authority::Hostname { hostname: service.hostname.hostname.clone(), port: question.destination.0.port() };
    let target = Target { service: Some(service.clone()), workload: Some(workload.clone()), authority };
    Ok(Plan::Nested { gateway, inner_expected: expected_of(service), target })
}

/// The identities that a service's endpoints may prove besides their own.
fn expected_of(service: &Service) -> Vec<Identity> {
    service.subject_alt_names.iter().filter_map(|name| name.parse().ok()).collect()
}

struct Chosen<'a> {
    workload: &'a Arc<Workload>,
    port: u16,
}

/// Chooses an endpoint of `service` for `port`: by its balancing preference, then at random by capacity. Endpoints that were tried are
/// taken again only when there is no other.
fn choose<'a>(view: &'a View, service: &'a Arc<Service>, port: u16, question: &Question<'_>, draw: &mut Draw) -> Option<Chosen<'a>> {
    let usable = |endpoint: Endpoint<'a>| {
        let workload = endpoint.workload;
        let healthy = workload.health == Health::Healthy || service.load_balancing.health_policy == HealthPolicy::AllowAll;
        let reachable = !workload.addresses.is_empty()
            || !workload.hostname.is_empty()
            || (workload.network != question.caller.network && workload.network_gateway.is_some());
        if !healthy || !reachable {
            return None;
        }
        Some(Chosen { workload, port: target_port(service, &endpoint, port)? })
    };
    let mut candidates: Vec<_> = view.endpoints(&service.hostname).filter_map(usable).collect();
    if candidates.iter().any(|candidate| !question.tried.contains(&candidate.workload.uid)) {
        candidates.retain(|candidate| !question.tried.contains(&candidate.workload.uid));
    }
    let preferred = by_preference(candidates, service, question.caller);
    let weighted = preferred.into_iter().map(|candidate| {
        let weight = candidate.workload.capacity;
        (candidate, weight)
    });
    draw.weighted(weighted.collect())
}

/// The endpoint's port for a service port: its own mapping, else the service's target, else an explicit application tunnel port.
fn target_port(service: &Service, endpoint: &Endpoint<'_>, port: u16) -> Option<u16> {
    let declared = service.ports.get(&port)?;
    let tunnel_port = endpoint.workload.application_tunnel.and_then(|tunnel| tunnel.port);
    endpoint.ports.get(&port).copied().or(declared.target_port).or(tunnel_port.map(|_| port))
}

fn by_preference<'a>(candidates: Vec<Chosen<'a>>, service: &Service, caller: &Workload) -> Vec<Chosen<'a>> {
    let scopes = &service.load_balancing.routing_preference;
    let rank = |candidate: &Chosen<'_>| rank(scopes, caller, candidate.workload);
    match service.load_balancing.mode {
        BalancingMode::Any | BalancingMode::Passthrough => candidates,
        BalancingMode::Strict => candidates.into_iter().filter(|candidate| rank(candidate).0 == scopes.len()).collect(),
        BalancingMode::Failover => {
            let Some(best) = candidates.iter().map(rank).map(|(matched, bonus)| matched + bonus).max() else { return Vec::new() };
            candidates.into_iter().filter(|candidate| rank(candidate).0 + rank(candidate).1 == best).collect()
        }
    }
}

/// How many scopes match in a row, and the bonus of a leading network match, which puts any endpoint of the own network before all
/// others; a leading network mismatch does not end the row.
fn rank(scopes: &[Scope], caller: &Workload, endpoint: &Workload) -> (usize, usize) {
    let mut matched = 0;
    let mut bonus = 0;
    for (index, scope) in scopes.iter().enumerate() {
        let leading_network = index == 0 && *scope == Scope::Network;
        match (scope_matches(*scope, caller, endpoint), leading_network) {
            (true, true) => (matched, bonus) = (1, scopes.len() - 1),
            (true, false) => matched += 1,
            (false, true) => {}
            (false, false) => break,
        }
    }
    (matched, bonus)
}

fn scope_matches(scope: Scope, caller: &Workload, endpoint: &Workload) -> bool {
    match scope {
        Scope::Region => caller.locality.region == endpoint.locality.region,
        Scope::Zone => caller.locality.zone == endpoint.locality.zone,
        Scope::Subzone => caller.locality.subzone == endpoint.locality.subzone,
        Scope::Node => caller.node == endpoint.node,
        Scope::Cluster => caller.cluster_id == endpoint.cluster_id,
        Scope::Network => caller.network == endpoint.network,
    }
}

/// The workload's address to use: the addressed one if it is its own, else one of the same family, else any that the families allow.
fn address_of(workload: &Workload, families: IpFamilies, like: IpAddr) -> Option<IpAddr> {
    let allowed = |address: &&IpAddr| match families {
        IpFamilies::Automatic | IpFamilies::Dual => true,
        IpFamilies::Ipv4Only => address.is_ipv4(),
        IpFamilies::Ipv6Only => address.is_ipv6(),
    };
    if workload.addresses.contains(&like) {
        return Some(like);
    }
    let same_family = workload.addresses.iter().filter(allowed).find(|address| address.is_ipv4() == like.is_ipv4());
    same_family.or_else(|| workload.addresses.iter().find(allowed)).copied()
}

/// Where a tunnel that arrived ends.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// The application's address: always the local workload's own.
    pub to: SocketAddr,
    /// The service that the caller meant, for reporting.
    pub service: Option<Arc<Service>>,
    /// A PROXY protocol header goes before the bytes.
    pub proxy_header: bool,
}

/// Decides where a tunnel ends that arrived for `local` at its address `local_ip` and asks for `authority`. `forwarded_host` is the
/// service's hostname as the sender names it, for reporting only.
pub fn inbound(
    view: &View,
    local: &Workload,
    local_ip: IpAddr,
    authority: &Authority,
    forwarded_host: Option<&str>,
) -> Result<Arrival, ResolveError> {
    let port = match authority {
        Authority::Address(address) => {
            if address.ip() != local_ip && local.application_tunnel.is_none() && !fronts(view, local, address.ip()) {
                return Err(ResolveError::NotHere { authority: authority.clone(), workload: local.uid.clone() });
            }
            address.port()
        }
        Authority::Hostname { hostname, port } => served_port(view, local, hostname, *port)
            .ok_or_else(|| ResolveError::NotServed { authority: authority.clone(), workload: local.uid.clone() })?,
    };
    if LISTENER_PORTS.contains(&port) {
        return Err(ResolveError::LoopDetected { destination: SocketAddr::new(local_ip, port) });
    }
    let service = service_served(view, local, port, forwarded_host);
    let port = local.application_tunnel.and_then(|tunnel| tunnel.port).unwrap_or(port);
    let proxy_header = local.application_tunnel.is_some_and(|tunnel| tunnel.protocol == ApplicationTunnelProtocol::Proxy);
    Ok(Arrival { to: SocketAddr::new(local_ip, port), service, proxy_header })
}

/// Decides where plain traffic ends that was captured on its way into `local`: where it was addressed.
pub fn passthrough(view: &View, local: &Workload, destination: OriginalDestination) -> Result<Arrival, ResolveError> {
    let to = destination.0;
    if LISTENER_PORTS.contains(&to.port()) {
        return Err(ResolveError::LoopDetected { destination: to });
    }
    Ok(Arrival { to, service: service_served(view, local, to.port(), None), proxy_header: false })
}

/// Whether `local` is a waypoint of whatever `address` belongs to.
fn fronts(view: &View, local: &Workload, address: IpAddr) -> bool {
    let by_workload = view.workload_at(&local.network, address).and_then(|workload| workload.waypoint.as_ref());
    let by_service = view.service_at(&local.network, address, &local.namespace).and_then(|service| service.waypoint.as_ref());
    by_workload.or(by_service).is_some_and(|waypoint| is_instance(view, waypoint, local))
}

fn served_port(view: &View, local: &Workload, hostname: &str, port: u16) -> Option<u16> {
    let service = view.service_for_client(hostname, &local.namespace)?;
    let endpoint = view.endpoints(&service.hostname).find(|endpoint| endpoint.workload.uid == local.uid)?;
    let declared = service.ports.get(&port)?;
    endpoint.ports.get(&port).copied().or(declared.target_port)
}

/// The service to report: the one the sender named, if this workload is in it, else the first with that target port.
fn service_served(view: &View, local: &Workload, port: u16, forwarded_host: Option<&str>) -> Option<Arc<Service>> {
    let own = || local.services.iter().filter_map(|(name, ports)| Some((view.service(name)?, ports)));
    let named = forwarded_host.and_then(|host| own().find(|(service, _)| &*service.hostname.hostname == host));
    named.or_else(|| own().find(|(_, ports)| ports.values().any(|target| *target == port))).map(|(service, _)| service.clone())
}

#[cfg(test)]
mod tests;
