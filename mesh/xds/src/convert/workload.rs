//! `istio.workload.Workload`.

use std::{collections::BTreeMap, sync::Arc};

use prost::Message;
use tropis_model::{
    address::NamespacedHostname,
    identity::Identity,
    workload::{
        ApplicationTunnel, ApplicationTunnelProtocol, Health, Locality, NetworkMode, TunnelProtocol, Workload, WorkloadKind, WorkloadUid,
    },
};
use tropis_proto::{
    LABELS_EXTENSION, LABELS_TYPE,
    waypoint::Labels,
    workload::{self as wire, application_tunnel},
};

use super::{Interner, InvalidResource, address, parts};

const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
const DEFAULT_SERVICE_ACCOUNT: &str = "default";
const DEFAULT_CLUSTER: &str = "Kubernetes";

pub(super) fn from_wire(wire: wire::Workload, strings: &mut Interner) -> Result<Workload, InvalidResource> {
    if wire.uid.is_empty() {
        return Err(InvalidResource::Empty("uid"));
    }
    let gateway = |gateway: Option<wire::GatewayAddress>, field, strings: &mut Interner| {
        gateway.map(|gateway| address::gateway(gateway, field, strings)).transpose()
    };
    let namespace = strings.get(&wire.namespace);
    let locality = wire.locality.unwrap_or_default();
    Ok(Workload {
        uid: WorkloadUid(strings.get(&wire.uid)),
        name: strings.get(&wire.name),
        identity: Identity {
            trust_domain: strings.get(or(&wire.trust_domain, DEFAULT_TRUST_DOMAIN)),
            namespace: namespace.clone(),
            service_account: strings.get(or(&wire.service_account, DEFAULT_SERVICE_ACCOUNT)),
        },
        namespace,
        addresses: wire.addresses.iter().map(|bytes| address::ip(bytes, "addresses")).collect::<Result<_, _>>()?,
        network: strings.get(&wire.network),
        tunnel_protocol: tunnel_protocol(wire.tunnel_protocol)?,
        native_tunnel: wire.native_tunnel,
        waypoint: gateway(wire.waypoint, "waypoint", strings)?,
        network_gateway: gateway(wire.network_gateway, "network_gateway", strings)?,
        node: strings.get(&wire.node),
        canonical_name: strings.get(&wire.canonical_name),
        canonical_revision: strings.get(&wire.canonical_revision),
        workload_kind: workload_kind(wire.workload_type),
        workload_name: strings.get(&wire.workload_name),
        authorization_policies: wire.authorization_policies.iter().map(|key| strings.get(key)).collect(),
        health: health(wire.status)?,
        cluster_id: strings.get(or(&wire.cluster_id, DEFAULT_CLUSTER)),
        hostname: strings.get(&wire.hostname),
        services: services(wire.services, strings)?,
        application_tunnel: wire.application_tunnel.map(application_tunnel).transpose()?,
        locality: Locality {
            region: strings.get(&locality.region),
            zone: strings.get(&locality.zone),
            subzone: strings.get(&locality.subzone),
        },
        network_mode: network_mode(wire.network_mode)?,
        capacity: wire.capacity.unwrap_or(1),
        labels: labels(&wire.extensions, strings)?,
    })
}

/// Labels come as an extension, to waypoints only; other extensions are for others.
fn labels(wire: &[wire::Extension], strings: &mut Interner) -> Result<BTreeMap<Arc<str>, Arc<str>>, InvalidResource> {
    let Some(extension) = wire.iter().find(|extension| extension.name == LABELS_EXTENSION) else {
        return Ok(BTreeMap::new());
    };
    let any = extension.config.as_ref().ok_or(InvalidResource::Empty("extensions.config"))?;
    if any.type_url != LABELS_TYPE {
        return Err(InvalidResource::OtherType(any.type_url.clone()));
    }
    let message = Labels::decode(any.value.as_slice()).map_err(|error| InvalidResource::Undecodable(error.to_string()))?;
    parts::labels("labels", message.labels, strings)
}

/// No labels, no extension: what a node proxy gets is what Istio's would.
fn labels_to_wire(labels: &BTreeMap<Arc<str>, Arc<str>>) -> Vec<wire::Extension> {
    if labels.is_empty() {
        return Vec::new();
    }
    let value = Labels { labels: parts::labels_to_wire(labels) }.encode_to_vec();
    let config = Some(prost_types::Any { type_url: LABELS_TYPE.to_owned(), value });
    vec![wire::Extension { name: LABELS_EXTENSION.to_owned(), config }]
}

fn or<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() { default } else { text }
}

fn tunnel_protocol(found: i32) -> Result<TunnelProtocol, InvalidResource> {
    let field = "tunnel_protocol";
    match wire::TunnelProtocol::try_from(found) {
        Ok(wire::TunnelProtocol::None) => Ok(TunnelProtocol::None),
        Ok(wire::TunnelProtocol::Hbone) => Ok(TunnelProtocol::Hbone),
        Ok(wire::TunnelProtocol::LegacyIstioMtls) => Err(InvalidResource::Unsupported { field, found: "LEGACY_ISTIO_MTLS" }),
        Err(_) => Err(InvalidResource::UnknownValue { field, found }),
    }
}

/// An unknown kind is harmless: it is only a label.
fn workload_kind(found: i32) -> WorkloadKind {
    match wire::WorkloadType::try_from(found) {
        Ok(wire::WorkloadType::Cronjob) => WorkloadKind::CronJob,
        Ok(wire::WorkloadType::Pod) => WorkloadKind::Pod,
        Ok(wire::WorkloadType::Job) => WorkloadKind::Job,
        Ok(wire::WorkloadType::Deployment) | Err(_) => WorkloadKind::Deployment,
    }
}

fn health(found: i32) -> Result<Health, InvalidResource> {
    match wire::WorkloadStatus::try_from(found) {
        Ok(wire::WorkloadStatus::Healthy) => Ok(Health::Healthy),
        Ok(wire::WorkloadStatus::Unhealthy) => Ok(Health::Unhealthy),
        Err(_) => Err(InvalidResource::UnknownValue { field: "status", found }),
    }
}

fn network_mode(found: i32) -> Result<NetworkMode, InvalidResource> {
    match wire::NetworkMode::try_from(found) {
        Ok(wire::NetworkMode::Standard) => Ok(NetworkMode::Standard),
        Ok(wire::NetworkMode::HostNetwork) => Ok(NetworkMode::HostNetwork),
        Err(_) => Err(InvalidResource::UnknownValue { field: "network_mode", found }),
    }
}

fn application_tunnel(tunnel: wire::ApplicationTunnel) -> Result<ApplicationTunnel, InvalidResource> {
    let protocol = match application_tunnel::Protocol::try_from(tunnel.protocol) {
        Ok(application_tunnel::Protocol::None) => ApplicationTunnelProtocol::None,
        Ok(application_tunnel::Protocol::Proxy) => ApplicationTunnelProtocol::Proxy,
        Err(_) => return Err(InvalidResource::UnknownValue { field: "application_tunnel.protocol", found: tunnel.protocol }),
    };
    let port = match address::port(tunnel.port, "application_tunnel.port")? {
        0 => None,
        port => Some(port),
    };
    Ok(ApplicationTunnel { protocol, port })
}

/// A port that is mapped to 0 is a named port which this pod does not have: as if it were absent.
fn services(
    wire: BTreeMap<String, wire::PortList>,
    strings: &mut Interner,
) -> Result<BTreeMap<NamespacedHostname, BTreeMap<u16, u16>>, InvalidResource> {
    let mut services = BTreeMap::new();
    for (key, list) in wire {
        let Some((namespace, hostname)) = key.split_once('/') else {
            return Err(InvalidResource::ServiceKey(key));
        };
        let mut ports = BTreeMap::new();
        for port in list.ports {
            let target = address::port(port.target_port, "services.target_port")?;
            if target != 0 {
                ports.insert(address::port(port.service_port, "services.service_port")?, target);
            }
        }
        services.insert(NamespacedHostname { namespace: strings.get(namespace), hostname: strings.get(hostname) }, ports);
    }
    Ok(services)
}

pub(super) fn to_wire(workload: &Workload) -> wire::Workload {
    let unless = |text: &Arc<str>, default: &str| if &**text == default { String::new() } else { text.to_string() };
    let locality = &workload.locality;
    wire::Workload {
        uid: workload.uid.0.to_string(),
        name: workload.name.to_string(),
        namespace: workload.namespace.to_string(),
        addresses: workload.addresses.iter().copied().map(address::bytes).collect(),
        hostname: workload.hostname.to_string(),
        network: workload.network.to_string(),
        tunnel_protocol: match workload.tunnel_protocol {
            TunnelProtocol::None => wire::TunnelProtocol::None,
            TunnelProtocol::Hbone => wire::TunnelProtocol::Hbone,
        }
        .into(),
        trust_domain: unless(&workload.identity.trust_domain, DEFAULT_TRUST_DOMAIN),
        service_account: unless(&workload.identity.service_account, DEFAULT_SERVICE_ACCOUNT),
        waypoint: workload.waypoint.as_ref().map(address::gateway_to_wire),
        network_gateway: workload.network_gateway.as_ref().map(address::gateway_to_wire),
        node: workload.node.to_string(),
        canonical_name: workload.canonical_name.to_string(),
        canonical_revision: workload.canonical_revision.to_string(),
        workload_type: match workload.workload_kind {
            WorkloadKind::Deployment => wire::WorkloadType::Deployment,
            WorkloadKind::CronJob => wire::WorkloadType::Cronjob,
            WorkloadKind::Pod => wire::WorkloadType::Pod,
            WorkloadKind::Job => wire::WorkloadType::Job,
        }
        .into(),
        workload_name: workload.workload_name.to_string(),
        native_tunnel: workload.native_tunnel,
        authorization_policies: workload.authorization_policies.iter().map(|key| key.to_string()).collect(),
        status: match workload.health {
            Health::Healthy => wire::WorkloadStatus::Healthy,
            Health::Unhealthy => wire::WorkloadStatus::Unhealthy,
        }
        .into(),
        cluster_id: workload.cluster_id.to_string(),
        services: workload.services.iter().map(|(name, ports)| (name.to_string(), port_list(ports))).collect(),
        application_tunnel: workload.application_tunnel.map(|tunnel| wire::ApplicationTunnel {
            protocol: match tunnel.protocol {
                ApplicationTunnelProtocol::None => application_tunnel::Protocol::None,
                ApplicationTunnelProtocol::Proxy => application_tunnel::Protocol::Proxy,
            }
            .into(),
            port: tunnel.port.unwrap_or(0).into(),
        }),
        locality: (*locality != Locality::default()).then(|| wire::Locality {
            region: locality.region.to_string(),
            zone: locality.zone.to_string(),
            subzone: locality.subzone.to_string(),
        }),
        network_mode: match workload.network_mode {
            NetworkMode::Standard => wire::NetworkMode::Standard,
            NetworkMode::HostNetwork => wire::NetworkMode::HostNetwork,
        }
        .into(),
        extensions: labels_to_wire(&workload.labels),
        capacity: (workload.capacity != 1).then_some(workload.capacity),
    }
}

fn port_list(ports: &BTreeMap<u16, u16>) -> wire::PortList {
    let port = |(service, target): (&u16, &u16)| wire::Port {
        service_port: (*service).into(),
        target_port: (*target).into(),
        app_protocol: wire::AppProtocol::Unknown.into(),
    };
    wire::PortList { ports: ports.iter().map(port).collect() }
}
