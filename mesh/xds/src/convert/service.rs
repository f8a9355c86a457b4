//! `istio.workload.Service`.

use std::collections::BTreeMap;

use tropis_model::{
    address::NamespacedHostname,
    service::{
        AppProtocol, BalancingMode, HealthPolicy, IpFamilies, LoadBalancing, Scope, Service, ServiceAddress, ServicePort, Visibility,
    },
};
use tropis_proto::workload::{self as wire, load_balancing};

use super::{Interner, InvalidResource, address};

pub(super) fn from_wire(wire: wire::Service, strings: &mut Interner) -> Result<Service, InvalidResource> {
    if wire.hostname.is_empty() {
        return Err(InvalidResource::Empty("hostname"));
    }
    let mut addresses = Vec::with_capacity(wire.addresses.len());
    for at in &wire.addresses {
        addresses.push(ServiceAddress { network: strings.get(&at.network), block: address::block(&at.address, at.length, "addresses")? });
    }
    let mut weighted_waypoints = Vec::with_capacity(wire.weighted_waypoints.len());
    for choice in wire.weighted_waypoints {
        let field = "weighted_waypoints.destination";
        let destination = choice.destination.ok_or(InvalidResource::Empty(field))?;
        weighted_waypoints.push((address::gateway(destination, field, strings)?, choice.weight));
    }
    Ok(Service {
        hostname: NamespacedHostname { namespace: strings.get(&wire.namespace), hostname: strings.get(&wire.hostname) },
        name: strings.get(&wire.name),
        addresses,
        ports: ports(&wire.ports)?,
        subject_alt_names: wire.subject_alt_names.iter().map(|name| strings.get(name)).collect(),
        waypoint: wire.waypoint.map(|gateway| address::gateway(gateway, "waypoint", strings)).transpose()?,
        weighted_waypoints,
        load_balancing: wire.load_balancing.map(load_balancing).transpose()?.unwrap_or_default(),
        ip_families: ip_families(wire.ip_families)?,
        canonical: wire.canonical,
        visibility: visibility(wire.visibility),
    })
}

fn ports(wire: &[wire::Port]) -> Result<BTreeMap<u16, ServicePort>, InvalidResource> {
    let mut ports = BTreeMap::new();
    for port in wire {
        let target_port = match address::port(port.target_port, "ports.target_port")? {
            0 => None,
            target => Some(target),
        };
        let app_protocol = app_protocol(port.app_protocol);
        ports.insert(address::port(port.service_port, "ports.service_port")?, ServicePort { target_port, app_protocol });
    }
    Ok(ports)
}

/// An unknown protocol is one that nobody told us: the port is plain TCP to the node proxy in any case.
fn app_protocol(found: i32) -> AppProtocol {
    match wire::AppProtocol::try_from(found) {
        Ok(wire::AppProtocol::Http11) => AppProtocol::Http11,
        Ok(wire::AppProtocol::Http2) => AppProtocol::Http2,
        Ok(wire::AppProtocol::Grpc) => AppProtocol::Grpc,
        Ok(wire::AppProtocol::Tcp) => AppProtocol::Tcp,
        Ok(wire::AppProtocol::Tls) => AppProtocol::Tls,
        Ok(wire::AppProtocol::Unknown) | Err(_) => AppProtocol::Unknown,
    }
}

fn load_balancing(wire: wire::LoadBalancing) -> Result<LoadBalancing, InvalidResource> {
    let mode = match load_balancing::Mode::try_from(wire.mode) {
        Ok(load_balancing::Mode::UnspecifiedMode) => BalancingMode::Any,
        Ok(load_balancing::Mode::Strict) => BalancingMode::Strict,
        Ok(load_balancing::Mode::Failover) => BalancingMode::Failover,
        Ok(load_balancing::Mode::Passthrough) => BalancingMode::Passthrough,
        Err(_) => return Err(InvalidResource::UnknownValue { field: "load_balancing.mode", found: wire.mode }),
    };
    let health_policy = match load_balancing::HealthPolicy::try_from(wire.health_policy) {
        Ok(load_balancing::HealthPolicy::OnlyHealthy) => HealthPolicy::OnlyHealthy,
        Ok(load_balancing::HealthPolicy::AllowAll) => HealthPolicy::AllowAll,
        Err(_) => return Err(InvalidResource::UnknownValue { field: "load_balancing.health_policy", found: wire.health_policy }),
    };
    let routing_preference = wire.routing_preference.into_iter().map(scope).collect::<Result<_, _>>()?;
    Ok(LoadBalancing { routing_preference, mode, health_policy })
}

fn scope(found: i32) -> Result<Scope, InvalidResource> {
    let field = "load_balancing.routing_preference";
    match load_balancing::Scope::try_from(found) {
        Ok(load_balancing::Scope::Region) => Ok(Scope::Region),
        Ok(load_balancing::Scope::Zone) => Ok(Scope::Zone),
        Ok(load_balancing::Scope::Subzone) => Ok(Scope::Subzone),
        Ok(load_balancing::Scope::Node) => Ok(Scope::Node),
        Ok(load_balancing::Scope::Cluster) => Ok(Scope::Cluster),
        Ok(load_balancing::Scope::Network) => Ok(Scope::Network),
        Ok(load_balancing::Scope::UnspecifiedScope) => Err(InvalidResource::Unsupported { field, found: "UNSPECIFIED_SCOPE" }),
        Err(_) => Err(InvalidResource::UnknownValue { field, found }),
    }
}

fn ip_families(found: i32) -> Result<IpFamilies, InvalidResource> {
    match wire::IpFamilies::try_from(found) {
        Ok(wire::IpFamilies::Automatic) => Ok(IpFamilies::Automatic),
        Ok(wire::IpFamilies::Ipv4Only) => Ok(IpFamilies::Ipv4Only),
        Ok(wire::IpFamilies::Ipv6Only) => Ok(IpFamilies::Ipv6Only),
        Ok(wire::IpFamilies::Dual) => Ok(IpFamilies::Dual),
        Err(_) => Err(InvalidResource::UnknownValue { field: "ip_families", found }),
    }
}

/// An unknown visibility is public, as Istio's proxy has it: who may see a name grants nothing.
fn visibility(found: i32) -> Visibility {
    match wire::Visibility::try_from(found) {
        Ok(wire::Visibility::Namespace) => Visibility::Namespace,
        Ok(wire::Visibility::Public) | Err(_) => Visibility::Public,
    }
}

/// How a service's address may be asked for: `network/ip`, or `network/ip/length` for a block.
pub(super) fn alias(at: &ServiceAddress) -> String {
    if address::single(&at.block) { format!("{}/{}", at.network, at.block.addr()) } else { format!("{}/{}", at.network, at.block) }
}

pub(super) fn to_wire(service: &Service) -> wire::Service {
    wire::Service {
        name: service.name.to_string(),
        namespace: service.hostname.namespace.to_string(),
        hostname: service.hostname.hostname.to_string(),
        addresses: service.addresses.iter().map(network_address).collect(),
        ports: service.ports.iter().map(|(port, target)| port_to_wire(*port, *target)).collect(),
        subject_alt_names: service.subject_alt_names.iter().map(|name| name.to_string()).collect(),
        waypoint: service.waypoint.as_ref().map(address::gateway_to_wire),
        weighted_waypoints: (service.weighted_waypoints.iter())
            .map(|(gateway, weight)| wire::WeightedWaypoint { destination: Some(address::gateway_to_wire(gateway)), weight: *weight })
            .collect(),
        load_balancing: (service.load_balancing != LoadBalancing::default()).then(|| load_balancing_to_wire(&service.load_balancing)),
        ip_families: match service.ip_families {
            IpFamilies::Automatic => wire::IpFamilies::Automatic,
            IpFamilies::Ipv4Only => wire::IpFamilies::Ipv4Only,
            IpFamilies::Ipv6Only => wire::IpFamilies::Ipv6Only,
            IpFamilies::Dual => wire::IpFamilies::Dual,
        }
        .into(),
        extensions: Vec::new(),
        canonical: service.canonical,
        ingress_use_waypoint: false,
        visibility: match service.visibility {
            Visibility::Public => wire::Visibility::Public,
            Visibility::Namespace => wire::Visibility::Namespace,
        }
        .into(),
    }
}

fn network_address(at: &ServiceAddress) -> wire::NetworkAddress {
    wire::NetworkAddress {
        network: at.network.to_string(),
        address: address::bytes(at.block.addr()),
        length: (!address::single(&at.block)).then(|| at.block.prefix_len().into()),
    }
}

fn port_to_wire(port: u16, target: ServicePort) -> wire::Port {
    wire::Port {
        service_port: port.into(),
        target_port: target.target_port.unwrap_or(0).into(),
        app_protocol: match target.app_protocol {
            AppProtocol::Unknown => wire::AppProtocol::Unknown,
            AppProtocol::Http11 => wire::AppProtocol::Http11,
            AppProtocol::Http2 => wire::AppProtocol::Http2,
            AppProtocol::Grpc => wire::AppProtocol::Grpc,
            AppProtocol::Tcp => wire::AppProtocol::Tcp,
            AppProtocol::Tls => wire::AppProtocol::Tls,
        }
        .into(),
    }
}

fn load_balancing_to_wire(balancing: &LoadBalancing) -> wire::LoadBalancing {
    let scope = |scope: &Scope| {
        i32::from(match scope {
            Scope::Region => load_balancing::Scope::Region,
            Scope::Zone => load_balancing::Scope::Zone,
            Scope::Subzone => load_balancing::Scope::Subzone,
            Scope::Node => load_balancing::Scope::Node,
            Scope::Cluster => load_balancing::Scope::Cluster,
            Scope::Network => load_balancing::Scope::Network,
        })
    };
    wire::LoadBalancing {
        routing_preference: balancing.routing_preference.iter().map(scope).collect(),
        mode: match balancing.mode {
            BalancingMode::Any => load_balancing::Mode::UnspecifiedMode,
            BalancingMode::Strict => load_balancing::Mode::Strict,
            BalancingMode::Failover => load_balancing::Mode::Failover,
            BalancingMode::Passthrough => load_balancing::Mode::Passthrough,
        }
        .into(),
        health_policy: match balancing.health_policy {
            HealthPolicy::OnlyHealthy => load_balancing::HealthPolicy::OnlyHealthy,
            HealthPolicy::AllowAll => load_balancing::HealthPolicy::AllowAll,
        }
        .into(),
    }
}
