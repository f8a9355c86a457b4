//! Who is in a pool, and how each is reached: the service's endpoints that carry its labels; the instances of the service's own waypoint,
//! where its policies are not ours to ask; or the one workload that is addressed itself.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crate::{
    attached::is_ours,
    identity::Identity,
    pool::Pool,
    resolve::HBONE_PORT,
    service::{HealthPolicy, IpFamilies, Service},
    view::View,
    workload::{GatewayAddress, GatewayDestination, Health, TunnelProtocol, Workload, WorkloadUid},
};

/// Where and how an endpoint is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// The workload that is called.
    pub uid: WorkloadUid,
    /// Where it serves: what is asked for, in a tunnel or without.
    pub address: SocketAddr,
    /// The tunnel to it; `None` is plain TCP.
    pub tunnel: Option<Tunnel>,
}

/// The tunnel to an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// Its HBONE listener.
    pub address: SocketAddr,
    /// The identities, one of which it must prove, in a fixed order.
    pub expected: Arc<[Identity]>,
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.address, self.uid)
    }
}

/// A workload that belongs into a pool.
#[derive(Debug, Clone)]
pub struct Found {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Where and how it is reached.
    pub reach: Reach,
}

impl Found {
    /// The address by which it is told from others.
    pub fn own_address(&self) -> SocketAddr {
        let is_instance = |tunnel: &&Tunnel| tunnel.address.ip() != self.reach.address.ip();
        self.reach.tunnel.as_ref().filter(is_instance).map_or(self.reach.address, |tunnel| tunnel.address)
    }
}

impl PartialEq for Found {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.workload, &other.workload) && self.reach == other.reach
    }
}

/// The workloads of a pool that may be called: on our own network, healthy unless the service wants all, in a fixed order.
///
/// Who goes straight to the endpoints of a service answers for its policies. They stand with its host: where `view` has that, a caller asks
/// them of this very view, wherever the service goes or is about to go. Without it they are the service's own waypoint's; if that is us,
/// we do not know them, and nobody is called.
pub fn find(view: &View, gateway: &str, network: &str, pool: &Pool) -> Vec<Found> {
    let Some(service) = view.service(&pool.key.host) else {
        return alone(view, pool);
    };
    let is_own = |reference: &GatewayAddress| view.waypoint(gateway).is_some_and(|own| is_ours(view, own, network, reference));
    let mut found = match service.waypoint.as_ref().filter(|_| view.host(&pool.key.host).is_none()) {
        Some(reference) if is_own(reference) => Vec::new(),
        Some(reference) => behind(view, network, service, pool, reference),
        None => {
            let is_member = |workload: &Workload| pool.labels.iter().all(|(name, value)| workload.labels.get(name) == Some(value));
            let usable = endpoints(view, network, service, pool.key.port).filter(|(workload, _)| is_member(workload));
            usable.map(|(workload, address)| Found { reach: reach(workload, address, service), workload: workload.clone() }).collect()
        }
    };
    found.sort_by(|one, other| one.workload.uid.cmp(&other.workload.uid));
    found
}

/// The endpoints of `service` that may be called, with where they serve `port`.
fn endpoints<'v>(
    view: &'v View,
    network: &'v str,
    service: &'v Service,
    port: u16,
) -> impl Iterator<Item = (&'v Arc<Workload>, SocketAddr)> {
    view.endpoints(&service.hostname).filter_map(move |endpoint| {
        let workload = endpoint.workload;
        let healthy = workload.health == Health::Healthy || service.load_balancing.health_policy == HealthPolicy::AllowAll;
        if !healthy || &*workload.network != network {
            return None;
        }
        let own_port = endpoint.ports.get(&port).copied().or_else(|| service.ports.get(&port)?.target_port)?;
        Some((workload, SocketAddr::new(address_of(workload, service)?, own_port)))
    })
}

/// The instances of another waypoint, which are asked for the service itself.
fn behind(view: &View, network: &str, service: &Service, pool: &Pool, reference: &GatewayAddress) -> Vec<Found> {
    let vip = service.addresses.iter().find(|own| &*own.network == network).map(|own| own.block.addr());
    let Some(asked) = vip.map(|vip| SocketAddr::new(vip, pool.key.port)) else { return Vec::new() };
    let waypoint = match &reference.destination {
        GatewayDestination::Service(name) => view.service(name),
        GatewayDestination::Address(address) => view.service_at(&address.network, address.address, ""),
    };
    let Some(waypoint) = waypoint else { return Vec::new() };
    endpoints(view, network, waypoint, reference.hbone_port)
        .map(|(workload, address)| {
            let tunnel = Tunnel { address, expected: expected(workload, waypoint) };
            let reach = Reach { uid: workload.uid.clone(), address: asked, tunnel: Some(tunnel) };
            Found { workload: workload.clone(), reach }
        })
        .collect()
}

/// The workload of a pool that was made up for one that is addressed itself ([`crate::attached::workload`]), once for each of its addresses: the
/// balancer of such a pool takes the one that was called.
fn alone(view: &View, pool: &Pool) -> Vec<Found> {
    let Some(workload) = view.workload(&WorkloadUid(pool.key.host.hostname.clone())) else { return Vec::new() };
    let is_tunnelled = workload.tunnel_protocol == TunnelProtocol::Hbone;
    let at = |address: &IpAddr| {
        let tunnel = is_tunnelled
            .then(|| Tunnel { address: SocketAddr::new(*address, HBONE_PORT), expected: Arc::from([workload.identity.clone()]) });
        let reach = Reach { uid: workload.uid.clone(), address: SocketAddr::new(*address, pool.key.port), tunnel };
        Found { workload: workload.clone(), reach }
    };
    workload.addresses.iter().map(at).collect()
}

fn reach(workload: &Workload, address: SocketAddr, service: &Service) -> Reach {
    let tunnel = match workload.tunnel_protocol {
        TunnelProtocol::None => None,
        TunnelProtocol::Hbone => Some(Tunnel { address: SocketAddr::new(address.ip(), HBONE_PORT), expected: expected(workload, service) }),
    };
    Reach { uid: workload.uid.clone(), address, tunnel }
}

/// The workload's own identity, and those that the service lets its endpoints prove.
fn expected(workload: &Workload, service: &Service) -> Arc<[Identity]> {
    let mut expected: Vec<Identity> = service.subject_alt_names.iter().filter_map(|name| name.parse().ok()).collect();
    expected.push(workload.identity.clone());
    expected.sort();
    expected.dedup();
    expected.into()
}

fn address_of(workload: &Workload, service: &Service) -> Option<IpAddr> {
    let allowed = |address: &&IpAddr| match service.ip_families {
        IpFamilies::Automatic | IpFamilies::Dual => true,
        IpFamilies::Ipv4Only => address.is_ipv4(),
        IpFamilies::Ipv6Only => address.is_ipv6(),
    };
    workload.addresses.iter().find(allowed).copied()
}

#[cfg(test)]
mod tests;
