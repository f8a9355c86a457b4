//! A Kubernetes Service becomes a service of the mesh.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use k8s_openapi::{
    api::core::v1::{self as core, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tropis_crds::{Finding, Object, codes, nearest};
use tropis_model::{
    address::NamespacedHostname,
    service::{
        AppProtocol, BalancingMode, HealthPolicy, IpFamilies, LoadBalancing, Scope, Service, ServiceAddress, ServicePort, Visibility,
    },
};

use crate::{Index, Settings, index::service_selector, workload};

/// What Istio's users wrote before `spec.trafficDistribution` existed.
const DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";
/// Ports that are TCP unless they say otherwise (traffic-api.md 0.5): protocols in which the server speaks first, and DNS.
const TCP_PORTS: &[u16] = &[25, 53, 3306, 27017];

/// The name under which the mesh knows a Service.
pub fn hostname(settings: &Settings, namespace: &str, name: &str) -> NamespacedHostname {
    NamespacedHostname { namespace: namespace.into(), hostname: format!("{name}.{namespace}.svc.{}", settings.cluster_domain).into() }
}

/// Compiles a Service; `None` for one that the mesh does not carry (ExternalName).
pub fn compile(settings: &Settings, object: &Object) -> (Option<Service>, Vec<Finding>) {
    let Some(spec) = object.service().and_then(|service| service.spec.as_ref()) else { return (None, Vec::new()) };
    let mut findings = Vec::new();
    if spec.type_.as_deref() == Some("ExternalName") {
        findings.push(
            Finding::info(codes::OBJECT_SKIPPED, object.reference())
                .field("spec.type")
                .found("\"ExternalName\"")
                .problem("is a name for DNS alone")
                .effect("the mesh does not carry it; its name resolves as before"),
        );
        return (None, findings);
    }
    let mut service = Service::new(object.metadata.name.as_str(), hostname(settings, &object.metadata.namespace, &object.metadata.name));
    service.addresses = addresses(settings, spec);
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        let field = format!("spec.ports[{index}]");
        if !is_tcp(port) {
            findings.push(
                Finding::info(codes::FIELD_NOT_HONOURED, object.reference())
                    .field(format!("{field}.protocol"))
                    .found(format!("{:?}", port.protocol.as_deref().unwrap_or_default()))
                    .problem("is not carried by the mesh")
                    .accepted("TCP")
                    .effect("traffic to this port goes as without the mesh"),
            );
        } else if let Ok(number) = u16::try_from(port.port) {
            let target_port = match &port.target_port {
                None => Some(number),
                Some(IntOrString::Int(target)) => u16::try_from(*target).ok(),
                Some(IntOrString::String(_)) => None,
            };
            service.ports.insert(number, ServicePort { target_port, app_protocol: app_protocol(port, number) });
        }
    }
    service.load_balancing = load_balancing(object, spec);
    service.ip_families = ip_families(spec);
    service.canonical = true;
    service.visibility = Visibility::Public;
    (Some(service), findings)
}

/// What there is to tell about the ports of a Service with a selector that name ports of containers.
pub fn findings(index: &Index, object: &Object) -> Vec<Finding> {
    if service_selector(object).is_none() {
        return Vec::new();
    }
    let ports = object.service().and_then(|service| service.spec.as_ref()?.ports.as_ref());
    let named = ports.into_iter().flatten().enumerate().filter_map(|(place, port)| match &port.target_port {
        Some(IntOrString::String(name)) if is_tcp(port) => Some((place, port, name)),
        _ => None,
    });
    let mut named = named.peekable();
    if named.peek().is_none() {
        return Vec::new();
    }
    let pods: Vec<_> = index.pods_of(object).into_iter().filter_map(|pod| pod.pod()?.spec.as_ref()).collect();
    let missing = named.filter(|(_, _, name)| !pods.is_empty() && pods.iter().all(|pod| workload::named_port(pod, name).is_none()));
    let finding = |(place, port, name): (usize, &core::ServicePort, &String)| {
        let there = pods.iter().flat_map(|pod| workload::port_names(pod));
        Finding::warning(codes::REFERENCED_RESOURCE_NOT_FOUND, object.reference())
            .field(format!("spec.ports[{place}].targetPort"))
            .found(format!("{name:?}"))
            .problem("is not the name of a TCP port of a container of the service's pods")
            .accepted(nearest::accepted(name, there, "the number of a port, or a name that containers give to one"))
            .effect(format!("port {} of the service has no endpoint", port.port))
    };
    missing.map(finding).collect()
}

/// Whether a port is one that the mesh carries.
pub(crate) fn is_tcp(port: &core::ServicePort) -> bool {
    port.protocol.as_deref().unwrap_or("TCP") == "TCP"
}

fn addresses(settings: &Settings, spec: &ServiceSpec) -> Vec<ServiceAddress> {
    let all = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let mut addresses: Vec<ServiceAddress> = Vec::new();
    // `None` (headless) and "" (not assigned yet) are no addresses.
    for address in all.filter_map(|text| text.parse::<IpAddr>().ok()) {
        let address = ServiceAddress { network: settings.network.clone(), block: address.to_canonical().into() };
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}

fn load_balancing(object: &Object, spec: &ServiceSpec) -> LoadBalancing {
    let health_policy = match spec.publish_not_ready_addresses {
        Some(true) => HealthPolicy::AllowAll,
        _ => HealthPolicy::OnlyHealthy,
    };
    let distribution = spec.traffic_distribution.as_deref().or_else(|| object.annotation(DISTRIBUTION));
    let (mode, routing_preference) = match (spec.internal_traffic_policy.as_deref(), distribution) {
        (Some("Local"), _) => (BalancingMode::Strict, vec![Scope::Node]),
        (_, Some("PreferClose" | "PreferSameZone")) => (BalancingMode::Failover, vec![Scope::Network, Scope::Region, Scope::Zone]),
        (_, Some("PreferSameNode")) => {
            (BalancingMode::Failover, vec![Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node])
        }
        _ => (BalancingMode::Any, Vec::new()),
    };
    LoadBalancing { routing_preference, mode, health_policy }
}

fn ip_families(spec: &ServiceSpec) -> IpFamilies {
    let has = |family: &str| spec.ip_families.iter().flatten().any(|own| own == family);
    match (has("IPv4"), has("IPv6")) {
        (true, true) => IpFamilies::Dual,
        (true, false) => IpFamilies::Ipv4Only,
        (false, true) => IpFamilies::Ipv6Only,
        (false, false) => IpFamilies::Automatic,
    }
}

/// What a port speaks: `appProtocol`, then what its name begins with, then its number (traffic-api.md 0.5).
pub(crate) fn app_protocol(port: &core::ServicePort, number: u16) -> AppProtocol {
    let said = port.app_protocol.as_deref().map(|said| match said {
        "kubernetes.io/h2c" => "http2",
        "kubernetes.io/ws" => "http",
        "kubernetes.io/wss" => "https",
        said => said,
    });
    let named =
        port.name.as_deref().map(|name| if name.starts_with("grpc-web") { "grpc-web" } else { name.split('-').next().unwrap_or(name) });
    let known = |text: Option<&str>| match text?.to_ascii_lowercase().as_str() {
        "http" | "http_proxy" => Some(AppProtocol::Http11),
        "http2" => Some(AppProtocol::Http2),
        "grpc" | "grpc-web" => Some(AppProtocol::Grpc),
        "https" | "tls" => Some(AppProtocol::Tls),
        "tcp" | "mongo" | "redis" | "mysql" => Some(AppProtocol::Tcp),
        _ => None,
    };
    let by_number = || TCP_PORTS.contains(&number).then_some(AppProtocol::Tcp);
    known(said).or_else(|| known(named)).or_else(by_number).unwrap_or_default()
}

/// The ports of a service as an endpoint has them: service port → its own port. `named` resolves a named target port.
pub(crate) fn endpoint_ports(spec: &ServiceSpec, named: impl Fn(&str) -> Option<u16>) -> BTreeMap<u16, u16> {
    let ports = spec.ports.iter().flatten().filter(|port| is_tcp(port));
    ports
        .filter_map(|port| {
            let number = u16::try_from(port.port).ok()?;
            let own = match &port.target_port {
                None => number,
                Some(IntOrString::Int(target)) => u16::try_from(*target).ok()?,
                Some(IntOrString::String(name)) => named(name)?,
            };
            Some((number, own))
        })
        .collect()
}

/// The ports of a service as an EndpointSlice gives them: matched by the port's name.
pub(crate) fn slice_ports(spec: &ServiceSpec, slice: &k8s_openapi::api::discovery::v1::EndpointSlice) -> BTreeMap<u16, u16> {
    let ports = spec.ports.iter().flatten().filter(|port| is_tcp(port));
    ports
        .filter_map(|port| {
            let same = slice.ports.iter().flatten().find(|own| {
                own.protocol.as_deref().unwrap_or("TCP") == "TCP" && own.name.as_deref().unwrap_or("") == port.name.as_deref().unwrap_or("")
            })?;
            Some((u16::try_from(port.port).ok()?, u16::try_from(same.port?).ok()?))
        })
        .collect()
}

/// The key under which an endpoint lists a service.
pub(crate) fn key(settings: &Settings, service: &Object) -> NamespacedHostname {
    hostname(settings, &service.metadata.namespace, &service.metadata.name)
}

/// `namespace/name`.
pub(crate) fn policy_key(namespace: &str, name: &str) -> Arc<str> {
    format!("{namespace}/{name}").into()
}
