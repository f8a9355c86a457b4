//! Pods, and endpoint addresses without a pod, to workloads of the model (WDS §11.3 to §11.5).

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use k8s_openapi::api::core::v1::{Pod, Service as KubernetesService};
use tropis_crds::{Kind, Object};
use tropis_model::{
    address::NamespacedHostname,
    identity::Identity,
    workload::{Health, Locality, NetworkMode, TunnelProtocol, Workload, WorkloadKind},
};

use crate::{Index, authorization::Authorization, peers::Peers, service};

/// Written by the redirector once ztunnel listens in the pod.
const REDIRECTION: &str = "ambient.istio.io/redirection";
/// Set by workloads that terminate HBONE themselves.
const TUNNEL: &str = "networking.istio.io/tunnel";
const SERVICE_NAME: &str = "kubernetes.io/service-name";

pub(crate) fn compile(index: &Index, authorization: &Authorization, peers: &Peers) -> Vec<Workload> {
    let pods = index.of(Kind::Pod).filter_map(|object| from_pod(index, object, authorization, peers));
    pods.chain(from_slices(index)).collect()
}

fn from_pod(index: &Index, object: &Object, authorization: &Authorization, peers: &Peers) -> Option<Workload> {
    let settings = index.settings();
    let pod = object.pod()?;
    let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let addresses = addresses(pod);
    if addresses.is_empty() {
        return None;
    }
    let (namespace, labels) = (&object.metadata.namespace, &object.metadata.labels);
    let account = spec.service_account_name.as_deref().filter(|account| !account.is_empty()).unwrap_or("default");
    let identity = Identity::new(settings.trust_domain.clone(), namespace.as_str(), account);
    let uid = format!("{}//Pod/{namespace}/{}", settings.cluster_id, object.metadata.name);
    let mut workload = Workload::new(uid, object.metadata.name.as_str(), identity);
    workload.addresses = addresses;
    workload.network = settings.network.clone();
    workload.cluster_id = settings.cluster_id.clone();
    workload.native_tunnel = labels.get(TUNNEL).is_some_and(|value| value == "http");
    let captured = object.annotation(REDIRECTION) == Some("enabled");
    if captured || workload.native_tunnel {
        workload.tunnel_protocol = TunnelProtocol::Hbone;
    }
    if spec.host_network == Some(true) {
        workload.network_mode = NetworkMode::HostNetwork;
        workload.tunnel_protocol = TunnelProtocol::None;
    }
    workload.health = health(object, pod);
    workload.node = spec.node_name.as_deref().unwrap_or_default().into();
    workload.locality = locality(index, &workload.node);
    workload.workload_name = owner_name(index, object).into();
    workload.workload_kind = WorkloadKind::Pod;
    let label = |keys: &[&str]| keys.iter().find_map(|key| labels.get(*key)).filter(|value| !value.is_empty());
    let name = label(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
    workload.canonical_name = name.map_or_else(|| workload.workload_name.clone(), |name| name.as_str().into());
    let revision = label(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]);
    workload.canonical_revision = revision.map_or("latest", String::as_str).into();
    workload.services = services_of(index, object, pod);
    let mut policies = authorization.of(namespace, labels);
    policies.extend(peers.of(namespace, labels));
    policies.sort();
    policies.dedup();
    workload.authorization_policies = policies;
    Some(workload)
}

/// The pod's addresses, the primary one first.
fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else { return Vec::new() };
    let all = status.pod_ips.iter().flatten().map(|own| own.ip.as_str());
    let mut addresses: Vec<IpAddr> = status.pod_ip.as_deref().into_iter().chain(all).filter_map(|text| text.parse().ok()).collect();
    let mut seen = std::collections::BTreeSet::new();
    addresses.retain(|address| seen.insert(*address));
    addresses
}

fn health(object: &Object, pod: &Pod) -> Health {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    if ready && object.metadata.deletion_timestamp.is_none() { Health::Healthy } else { Health::Unhealthy }
}

fn locality(index: &Index, node: &str) -> Locality {
    let Some(node) = index.get(Kind::Node, "", node) else { return Locality::default() };
    let label = |key: &str| Arc::from(node.label(key).unwrap_or_default());
    Locality {
        region: label("topology.kubernetes.io/region"),
        zone: label("topology.kubernetes.io/zone"),
        subzone: label("topology.istio.io/subzone"),
    }
}

/// The name of what the user wrote: a ReplicaSet's Deployment, a Job's CronJob, another controller itself, else the pod.
fn owner_name(index: &Index, object: &Object) -> String {
    let controller = |object: &Object| object.metadata.owner_references.iter().find(|owner| owner.controller == Some(true)).cloned();
    let Some(owner) = controller(object) else { return object.metadata.name.clone() };
    let grandparent = |kind| index.get(kind, &object.metadata.namespace, &owner.name).and_then(|parent| controller(parent));
    match owner.kind.as_str() {
        "ReplicaSet" => grandparent(Kind::ReplicaSet).map_or_else(|| without_hash(object, &owner.name), |deployment| deployment.name),
        "Job" => grandparent(Kind::Job).map_or(owner.name, |cron_job| cron_job.name),
        _ => owner.name,
    }
}

/// A ReplicaSet's name without the hash that its pods carry as a label: its Deployment's name.
fn without_hash(pod: &Object, replica_set: &str) -> String {
    let hash = pod.label("pod-template-hash").map(|hash| format!("-{hash}"));
    let deployment = hash.as_deref().and_then(|hash| replica_set.strip_suffix(hash));
    deployment.unwrap_or(replica_set).to_owned()
}

/// The services that the pod is an endpoint of: by selector, and by endpoint slices of services without one.
fn services_of(index: &Index, object: &Object, pod: &Pod) -> BTreeMap<NamespacedHostname, BTreeMap<u16, u16>> {
    let namespace = &object.metadata.namespace;
    let own = |service: &Object| {
        let ports = service::endpoint_ports(service.service()?, |name| container_port(pod, name));
        Some((service::hostname(namespace, &service.metadata.name, index.settings()), ports))
    };
    let selected = index.within(Kind::Service, namespace).filter(|service| {
        let selector = service.service().and_then(selector);
        selector.is_some_and(|selector| selector.iter().all(|(key, value)| object.metadata.labels.get(key) == Some(value)))
    });
    let sliced = index.within(Kind::EndpointSlice, namespace).filter_map(|slice| {
        let service = index.get(Kind::Service, namespace, slice.label(SERVICE_NAME)?)?;
        let without_selector = service.service().is_some_and(|service| selector(service).is_none());
        let endpoints = slice.endpoint_slice().into_iter().flat_map(|slice| slice.endpoints.iter().flatten());
        let mut targets = endpoints.filter_map(|endpoint| endpoint.target_ref.as_ref());
        let named = targets.any(|target| target.kind.as_deref() == Some("Pod") && target.name.as_ref() == Some(&object.metadata.name));
        (without_selector && named).then_some(service)
    });
    selected.chain(sliced).filter_map(|service| own(service)).collect()
}

/// A selector that selects something.
fn selector(service: &KubernetesService) -> Option<&BTreeMap<String, String>> {
    service.spec.as_ref()?.selector.as_ref().filter(|selector| !selector.is_empty())
}

fn container_port(pod: &Pod, name: &str) -> Option<u16> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    let port =
        ports.find(|port| port.name.as_deref() == Some(name) && port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"))?;
    u16::try_from(port.container_port).ok()
}

/// Addresses that endpoint slices name without a pod (the API server's own Service, say). They may be shared, so they are not found by
/// address.
fn from_slices(index: &Index) -> Vec<Workload> {
    let settings = index.settings();
    let mut workloads = BTreeMap::new();
    for object in index.of(Kind::EndpointSlice) {
        let (Some(slice), Some(service_name)) = (object.endpoint_slice(), object.label(SERVICE_NAME)) else { continue };
        let namespace = &object.metadata.namespace;
        let Some(service) = index.get(Kind::Service, namespace, service_name).and_then(|service| service.service()) else { continue };
        let slice_port = |name: Option<&str>| {
            let mut ports = slice.ports.iter().flatten();
            let port = ports.find(|port| port.name.as_deref().unwrap_or_default() == name.unwrap_or_default())?;
            u16::try_from(port.port?).ok()
        };
        let declared = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
        let ports: BTreeMap<u16, u16> =
            declared.filter_map(|port| Some((u16::try_from(port.port).ok()?, slice_port(port.name.as_deref())?))).collect();
        for endpoint in slice.endpoints.iter().flatten() {
            if endpoint.target_ref.as_ref().is_some_and(|target| target.kind.as_deref() == Some("Pod")) {
                continue;
            }
            let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
            for address in endpoint.addresses.iter().filter_map(|text| text.parse::<IpAddr>().ok()) {
                let name = &object.metadata.name;
                let uid = format!("{}/discovery.k8s.io/EndpointSlice/{namespace}/{name}/{address}", settings.cluster_id);
                let identity = Identity::new(settings.trust_domain.clone(), namespace.as_str(), "default");
                let mut workload = Workload::new(uid.clone(), name.as_str(), identity);
                workload.addresses = vec![address];
                workload.network = settings.network.clone();
                workload.cluster_id = settings.cluster_id.clone();
                workload.network_mode = NetworkMode::HostNetwork;
                workload.health = if ready { Health::Healthy } else { Health::Unhealthy };
                workload.services = [(service::hostname(namespace, service_name, settings), ports.clone())].into();
                workloads.insert(uid, workload);
            }
        }
    }
    workloads.into_values().collect()
}
