//! Pods, and addresses that an EndpointSlice gives without a pod, become workloads.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use k8s_openapi::api::core::v1::{ContainerPort, Pod, PodSpec};
use tropis_crds::{Object, OwnerReference};
use tropis_model::{
    identity::Identity,
    workload::{Health, Locality, NetworkMode, TunnelProtocol, Workload, WorkloadKind, WorkloadUid},
};

use crate::{
    Index, Settings, authorization,
    index::{Key, key_of},
    peer_authentication, service, waypoint,
};

/// Written by the redirector (or istio-cni) once the pod accepts HBONE.
const REDIRECTION: &str = "ambient.istio.io/redirection";
/// The workload terminates HBONE itself when it says `http`.
const TUNNEL: &str = "networking.istio.io/tunnel";
/// Locality labels of a node.
const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";
const SUBZONE: &str = "topology.istio.io/subzone";
/// Names for metrics, the first that is set.
const CANONICAL_NAMES: &[&str] = &["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"];
const CANONICAL_REVISIONS: &[&str] = &["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"];
/// Set by the ReplicaSet controller's owner; the end of the ReplicaSet's name.
const TEMPLATE_HASH: &str = "pod-template-hash";
const DEFAULT_ACCOUNT: &str = "default";

/// Compiles a pod; `None` for one that has ended or has no address yet.
pub fn from_pod(index: &Index, object: &Object) -> Option<Workload> {
    let settings = index.settings();
    let pod = object.pod()?;
    let spec = pod.spec.as_ref()?;
    let status = pod.status.as_ref()?;
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let mut addresses: Vec<IpAddr> = Vec::new();
    let ips = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).chain(status.pod_ip.as_deref());
    for address in ips.filter_map(|text| text.parse::<IpAddr>().ok()).map(|address| address.to_canonical()) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        return None;
    }
    let (namespace, name) = (object.metadata.namespace.as_str(), object.metadata.name.as_str());
    let identity = Identity::new(settings.trust_domain.clone(), namespace, object.pod_service_account()?);
    let mut workload = Workload::new(pod_uid(settings, &key_of(object)).0, name, identity);
    workload.addresses = addresses;
    workload.network = settings.network.clone();
    workload.cluster_id = settings.cluster_id.clone();
    workload.native_tunnel = object.label(TUNNEL) == Some("http");
    // Only what the redirector reported: peers never dial 15008 before it listens.
    let host_network = spec.host_network == Some(true);
    if workload.native_tunnel || (object.annotation(REDIRECTION) == Some("enabled") && !host_network) {
        workload.tunnel_protocol = TunnelProtocol::Hbone;
    }
    if host_network {
        workload.network_mode = NetworkMode::HostNetwork;
    }
    let node = spec.node_name.as_deref().unwrap_or_default();
    workload.node = node.into();
    workload.locality = index.node(node).map(|node| locality(node)).unwrap_or_default();
    let (owner, kind) = owner(object);
    workload.workload_kind = kind;
    workload.canonical_name = first_label(object, CANONICAL_NAMES).unwrap_or(&owner).into();
    workload.canonical_revision = first_label(object, CANONICAL_REVISIONS).unwrap_or("latest").into();
    workload.workload_name = owner.into();
    workload.health = if is_ready(pod) && object.metadata.deletion_timestamp.is_none() { Health::Healthy } else { Health::Unhealthy };
    workload.services = services(index, object, spec);
    workload.waypoint = waypoint::of_pod(index, object).and_then(|attached| attached.address);
    let mut policies = authorization::attached(index, object);
    policies.extend(peer_authentication::attached(index, object));
    policies.sort();
    policies.dedup();
    workload.authorization_policies = policies;
    Some(workload)
}

/// The unique name of a pod.
pub(crate) fn pod_uid(settings: &Settings, (namespace, name): &Key) -> WorkloadUid {
    WorkloadUid(format!("{}//Pod/{namespace}/{name}", settings.cluster_id).into())
}

/// The name of the node's place.
fn locality(node: &Object) -> Locality {
    let label = |key: &str| node.label(key).unwrap_or_default().into();
    Locality { region: label(REGION), zone: label(ZONE), subzone: label(SUBZONE) }
}

fn first_label<'a>(object: &'a Object, keys: &[&str]) -> Option<&'a str> {
    keys.iter().find_map(|key| object.label(key)).filter(|value| !value.is_empty())
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Whose pod it is, as people name it: the Deployment behind the ReplicaSet, the CronJob behind the Job.
///
/// The kind is always Pod, as istiod has it; names differ from istiod's nowhere.
fn owner(object: &Object) -> (String, WorkloadKind) {
    let owners = &object.metadata.owner_references;
    let controller = owners.iter().find(|owner| owner.controller == Some(true)).or(match owners.as_slice() {
        [only] => Some(only),
        _ => None,
    });
    let name = controller.map_or_else(|| object.metadata.name.clone(), |owner| owner_name(object, owner));
    (name, WorkloadKind::Pod)
}

fn owner_name(object: &Object, owner: &OwnerReference) -> String {
    let stem = match owner.kind.as_str() {
        "ReplicaSet" => object.label(TEMPLATE_HASH).and_then(|hash| owner.name.strip_suffix(hash)?.strip_suffix('-')),
        // A CronJob's Jobs end in the minute that they were due.
        "Job" => owner
            .name
            .rsplit_once('-')
            .filter(|(_, end)| end.len() >= 8 && end.bytes().all(|byte| byte.is_ascii_digit()))
            .map(|(stem, _)| stem),
        _ => None,
    };
    stem.filter(|stem| !stem.is_empty()).unwrap_or(&owner.name).to_owned()
}

/// The services that a pod serves: those that select it, and those without a selector whose slices point at it.
fn services(index: &Index, object: &Object, spec: &PodSpec) -> BTreeMap<tropis_model::address::NamespacedHostname, BTreeMap<u16, u16>> {
    let settings = index.settings();
    let named = |name: &str| named_port(spec, name);
    let mut services = BTreeMap::new();
    for selecting in index.services_selecting(&object.metadata.namespace, &object.metadata.labels) {
        if let Some(spec) = carried(selecting) {
            services.insert(service::key(settings, selecting), service::endpoint_ports(spec, named));
        }
    }
    let own: Key = key_of(object);
    for (slice, pointing) in index.slices_to(&own) {
        if let (Some(spec), Some(slice)) = (carried(pointing), slice.endpoint_slice()) {
            let ports = services.entry(service::key(settings, pointing)).or_insert_with(BTreeMap::new);
            ports.extend(service::slice_ports(spec, slice));
        }
    }
    services
}

fn carried(service: &Object) -> Option<&k8s_openapi::api::core::v1::ServiceSpec> {
    service.service()?.spec.as_ref().filter(|spec| spec.type_.as_deref() != Some("ExternalName"))
}

/// The number of a container's TCP port of this name; the first in order, as Kubernetes has it.
pub(crate) fn named_port(spec: &PodSpec, name: &str) -> Option<u16> {
    let mut named = tcp_ports(spec).filter(|port| port.name.as_deref() == Some(name));
    named.next().and_then(|port| u16::try_from(port.container_port).ok())
}

/// The names of the containers' TCP ports.
pub(crate) fn port_names(spec: &PodSpec) -> impl Iterator<Item = &str> {
    tcp_ports(spec).filter_map(|port| port.name.as_deref())
}

fn tcp_ports(spec: &PodSpec) -> impl Iterator<Item = &ContainerPort> {
    let sidecars = spec.init_containers.iter().flatten().filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    ports.filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP")
}

/// Compiles the addresses of a slice that belong to no pod (the API server, a machine outside): a workload each.
pub fn from_slice(index: &Index, object: &Object) -> Vec<Workload> {
    let settings = index.settings();
    let Some(slice) = object.endpoint_slice().filter(|slice| slice.address_type != "FQDN") else { return Vec::new() };
    let Some((of, spec)) = index.service_of(object).and_then(|of| Some((of, carried(of)?))) else { return Vec::new() };
    let services = BTreeMap::from([(service::key(settings, of), service::slice_ports(spec, slice))]);
    let (namespace, name) = (object.metadata.namespace.as_str(), object.metadata.name.as_str());
    let mut workloads: Vec<Workload> = Vec::new();
    for endpoint in slice.endpoints.iter().flatten() {
        if endpoint.target_ref.as_ref().is_some_and(|target| target.kind.as_deref() == Some("Pod")) {
            continue;
        }
        for address in endpoint.addresses.iter().filter_map(|text| text.parse::<IpAddr>().ok()).map(|address| address.to_canonical()) {
            let workload = address_workload(settings, namespace, name, of, address);
            if workloads.iter().any(|known| known.uid == workload.uid) {
                continue;
            }
            let node = endpoint.node_name.as_deref().unwrap_or_default();
            let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
            workloads.push(Workload {
                node: node.into(),
                locality: index.node(node).map(|node| locality(node)).unwrap_or_default(),
                health: if ready { Health::Healthy } else { Health::Unhealthy },
                services: services.clone(),
                ..workload
            });
        }
    }
    workloads
}

fn address_workload(settings: &Settings, namespace: &str, slice: &str, of: &Object, address: IpAddr) -> Workload {
    let uid = format!("{}/discovery.k8s.io/EndpointSlice/{namespace}/{slice}/{address}", settings.cluster_id);
    let identity = Identity::new(settings.trust_domain.clone(), namespace, DEFAULT_ACCOUNT);
    let service: Arc<str> = of.metadata.name.as_str().into();
    Workload {
        addresses: vec![address],
        network: settings.network.clone(),
        cluster_id: settings.cluster_id.clone(),
        // The address may be a node's, or a pod's that is a workload of its own.
        network_mode: NetworkMode::HostNetwork,
        canonical_name: service.clone(),
        workload_name: service,
        ..Workload::new(uid, slice, identity)
    }
}
