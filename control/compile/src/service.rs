//! `Service` objects to services of the model (WDS §11.6).

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::{
    api::core::v1::{Service as Kubernetes, ServicePort as KubernetesPort},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tropis_crds::{Kind, Object};
use tropis_model::{
    address::NamespacedHostname,
    service::{AppProtocol, BalancingMode, HealthPolicy, IpFamilies, LoadBalancing, Scope, Service, ServiceAddress, ServicePort},
};

use crate::{Index, Settings};

const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";

/// All services; those of type ExternalName are only DNS and have none.
pub(crate) fn compile(index: &Index) -> Vec<Service> {
    index.of(Kind::Service).filter_map(|object| service(object, index.settings())).collect()
}

/// The key of a Kubernetes Service.
pub(crate) fn hostname(namespace: &str, name: &str, settings: &Settings) -> NamespacedHostname {
    let hostname = format!("{name}.{namespace}.svc.{}", settings.cluster_domain);
    NamespacedHostname { namespace: namespace.into(), hostname: hostname.into() }
}

fn service(object: &Object, settings: &Settings) -> Option<Service> {
    let kubernetes = object.service()?;
    let spec = kubernetes.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    let mut service = Service::new(object.metadata.name.as_str(), hostname(&object.metadata.namespace, &object.metadata.name, settings));
    let addresses = cluster_ips(kubernetes).into_iter();
    service.addresses = addresses.map(|ip| ServiceAddress { network: settings.network.clone(), block: IpNet::from(ip) }).collect();
    service.ports =
        spec.ports.iter().flatten().filter(|port| is_tcp(port)).filter_map(|port| Some((number(port.port)?, declared(port)))).collect();
    service.load_balancing = load_balancing(object, kubernetes);
    service.ip_families = families(spec.ip_families.as_deref().unwrap_or_default());
    service.canonical = true;
    Some(service)
}

/// The service's virtual addresses; none for a headless one.
pub(crate) fn cluster_ips(service: &Kubernetes) -> Vec<IpAddr> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let all = spec.cluster_ips.as_ref().filter(|ips| !ips.is_empty());
    let texts: Vec<&String> = all.map_or_else(|| spec.cluster_ip.iter().collect(), |ips| ips.iter().collect());
    texts.into_iter().filter_map(|text| text.parse().ok()).collect()
}

/// The endpoint ports of a workload: service port → its own port. A named port that the workload does not have is left out.
pub(crate) fn endpoint_ports(service: &Kubernetes, named: impl Fn(&str) -> Option<u16>) -> BTreeMap<u16, u16> {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten()).filter(|port| is_tcp(port));
    ports
        .filter_map(|port| {
            let own = match &port.target_port {
                None => number(port.port),
                Some(IntOrString::Int(own)) => number(*own),
                Some(IntOrString::String(name)) => named(name),
            };
            Some((number(port.port)?, own?))
        })
        .collect()
}

fn is_tcp(port: &KubernetesPort) -> bool {
    port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP")
}

/// A port's number; 0 and what does not fit are none.
fn number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}

fn declared(port: &KubernetesPort) -> ServicePort {
    let target_port = match &port.target_port {
        None => number(port.port),
        Some(IntOrString::Int(own)) => number(*own),
        Some(IntOrString::String(_)) => None,
    };
    ServicePort { target_port, app_protocol: app_protocol(port) }
}

/// `appProtocol`, else the port name's first part (`http`, `http2`, `grpc`, `grpc-web`, `tcp`, `tls`, `https`, …).
fn app_protocol(port: &KubernetesPort) -> AppProtocol {
    let named = port.name.as_deref().map(|name| name.split('-').next().unwrap_or(name));
    match port.app_protocol.as_deref().or(named).unwrap_or_default().to_ascii_lowercase().as_str() {
        "http" | "kubernetes.io/ws" => AppProtocol::Http11,
        "http2" | "kubernetes.io/h2c" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        "tcp" | "mongo" | "mysql" | "redis" => AppProtocol::Tcp,
        "tls" | "https" => AppProtocol::Tls,
        _ => AppProtocol::Unknown,
    }
}

fn families(families: &[String]) -> IpFamilies {
    let has = |family: &str| families.iter().any(|own| own == family);
    match (has("IPv4"), has("IPv6")) {
        (true, true) => IpFamilies::Dual,
        (true, false) => IpFamilies::Ipv4Only,
        (false, true) => IpFamilies::Ipv6Only,
        (false, false) => IpFamilies::Automatic,
    }
}

fn load_balancing(object: &Object, service: &Kubernetes) -> LoadBalancing {
    let Some(spec) = &service.spec else { return LoadBalancing::default() };
    let health_policy = match spec.publish_not_ready_addresses {
        Some(true) => HealthPolicy::AllowAll,
        _ => HealthPolicy::OnlyHealthy,
    };
    let near = [Scope::Network, Scope::Region, Scope::Zone];
    let nearest = [Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node];
    let distribution = spec.traffic_distribution.as_deref().or_else(|| object.annotation(TRAFFIC_DISTRIBUTION));
    let (mode, routing_preference) = match (spec.internal_traffic_policy.as_deref(), distribution) {
        (Some("Local"), _) => (BalancingMode::Strict, vec![Scope::Node]),
        (_, Some("PreferClose" | "PreferSameZone")) => (BalancingMode::Failover, near.to_vec()),
        (_, Some("PreferSameNode")) => (BalancingMode::Failover, nearest.to_vec()),
        _ => (BalancingMode::Any, Vec::new()),
    };
    LoadBalancing { routing_preference, mode, health_policy }
}
