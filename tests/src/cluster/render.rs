//! Objects as they are written for everybody to read: pods with their status, endpoint slices, and what is assigned to a user's.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::ids::timestamp;
use super::object::Key;
use super::pods::{ContainerState, NodeRecord, Origin, Phase, PodRecord, PodStatus, service_account};
use super::services::{Backend, ServiceView, Target};
use crate::network::addresses::Family;

/// What the API server assigned to an object when it first saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.creationTimestamp`.
    pub created: SystemTime,
}

/// The fields that the cluster adds to a user's object.
pub fn assigned(key: &Key, object: &Value, assigned: &Assigned) -> Value {
    let mut metadata = json!({
        "name": key.name,
        "uid": assigned.uid,
        "creationTimestamp": timestamp(assigned.created),
    });
    if !key.namespace.is_empty() {
        metadata["namespace"] = json!(key.namespace);
    }
    if key.kind == "Namespace" {
        metadata["labels"] = json!({ "kubernetes.io/metadata.name": key.name });
    }
    json!({ "apiVersion": object["apiVersion"], "kind": key.kind, "metadata": metadata })
}

/// Adds a service's addresses to what is assigned to it.
pub fn service_fields(fields: &mut Value, service: &ServiceView) {
    let families: Vec<_> = service.families.iter().map(ToString::to_string).collect();
    let policy = if families.len() == 2 { "PreferDualStack" } else { "SingleStack" };
    fields["spec"] = json!({ "ipFamilies": families, "ipFamilyPolicy": policy });
    let addresses: Vec<String> = match service.headless {
        true => vec!["None".to_owned()],
        false => service.addresses.iter().map(ToString::to_string).collect(),
    };
    fields["spec"]["clusterIP"] = json!(addresses.first());
    fields["spec"]["clusterIPs"] = json!(addresses);
}

/// A node's object.
pub fn node(record: &NodeRecord, created: SystemTime, pod_ranges: &[String]) -> Value {
    let taints = match record.schedulable {
        true => Value::Null,
        false => json!([{ "key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule" }]),
    };
    let mut object = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": record.name, "uid": record.uid, "creationTimestamp": timestamp(created), "labels": record.labels },
        "spec": {},
        "status": {
            "addresses": addresses_of_node(record),
            "conditions": [{ "type": "Ready", "status": "True", "reason": "KubeletReady", "lastTransitionTime": timestamp(created) }],
        },
    });
    if !pod_ranges.is_empty() {
        object["spec"] = json!({ "podCIDR": pod_ranges[0], "podCIDRs": pod_ranges });
    }
    if !taints.is_null() {
        object["spec"]["taints"] = taints;
    }
    object
}

fn addresses_of_node(record: &NodeRecord) -> Vec<Value> {
    let mut all: Vec<Value> =
        record.addresses.both().iter().map(|address| json!({ "type": "InternalIP", "address": address.to_string() })).collect();
    all.push(json!({ "type": "Hostname", "address": record.name }));
    all
}

/// A pod's whole object.
pub fn pod(key: &Key, record: &PodRecord) -> Value {
    let mut metadata = record.template["metadata"].clone();
    if !metadata.is_object() {
        metadata = json!({});
    }
    metadata["name"] = json!(key.name);
    metadata["namespace"] = json!(key.namespace);
    metadata["uid"] = json!(record.uid);
    metadata["creationTimestamp"] = json!(timestamp(record.created));
    match &record.origin {
        Origin::Bare => {}
        Origin::Deployment { replica_set, replica_set_uid, .. } => {
            metadata["generateName"] = json!(format!("{replica_set}-"));
            metadata["ownerReferences"] = owner("ReplicaSet", replica_set, replica_set_uid);
        }
        Origin::Agent { owner_kind, owner: name } => {
            metadata["generateName"] = json!(format!("{name}-"));
            metadata["ownerReferences"] = owner(owner_kind, name, &record.uid);
        }
    }
    let mut spec = record.template["spec"].clone();
    if let Some(node) = &record.node {
        spec["nodeName"] = json!(node);
    }
    spec["serviceAccountName"] = json!(service_account(&record.template["spec"]));
    if let Some(since) = record.deleting {
        let grace = grace_seconds(&record.template);
        metadata["deletionTimestamp"] = json!(timestamp(since + std::time::Duration::from_secs(grace)));
        metadata["deletionGracePeriodSeconds"] = json!(grace);
    }
    let status = pod_status(record);
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status })
}

/// What the cluster adds to a pod that the user wrote.
pub fn pod_assigned(key: &Key, record: &PodRecord) -> Value {
    let mut object = pod(key, record);
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.retain(|field, _| matches!(field.as_str(), "name" | "namespace" | "uid" | "creationTimestamp"));
    }
    if let Some(spec) = object["spec"].as_object_mut() {
        spec.retain(|field, _| matches!(field.as_str(), "nodeName" | "serviceAccountName"));
    }
    object
}

/// `spec.terminationGracePeriodSeconds`, Kubernetes' default being 30.
pub fn grace_seconds(template: &Value) -> u64 {
    template["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap_or(30)
}

fn owner(kind: &str, name: &str, uid: &str) -> Value {
    json!([{ "apiVersion": "apps/v1", "kind": kind, "name": name, "uid": uid, "controller": true, "blockOwnerDeletion": true }])
}

fn pod_status(record: &PodRecord) -> Value {
    let PodStatus { phase, addresses, host, started, containers, message } = &record.status;
    let ready = record.status.ready();
    let phase = match phase {
        Phase::Pending => "Pending",
        Phase::Running => "Running",
        Phase::Succeeded => "Succeeded",
        Phase::Failed => "Failed",
    };
    let condition = |name: &str, holds: bool| json!({ "type": name, "status": if holds { "True" } else { "False" } });
    let mut status = json!({
        "phase": phase,
        "conditions": [
            condition("PodScheduled", record.node.is_some()),
            condition("Initialized", addresses.is_some()),
            condition("ContainersReady", ready),
            condition("Ready", ready),
        ],
        "containerStatuses": containers.iter().map(container_status).collect::<Vec<_>>(),
    });
    if let Some(addresses) = addresses {
        status["podIP"] = json!(addresses.v4.to_string());
        status["podIPs"] = json!(addresses.both().map(|ip| json!({ "ip": ip.to_string() })));
    }
    if let Some(host) = host {
        status["hostIP"] = json!(host.v4.to_string());
        status["hostIPs"] = json!(host.both().map(|ip| json!({ "ip": ip.to_string() })));
    }
    if let Some(started) = started {
        status["startTime"] = json!(timestamp(*started));
    }
    if let Some(message) = message {
        status["message"] = json!(message);
    }
    status
}

fn container_status(container: &super::pods::ContainerStatus) -> Value {
    let state = match &container.state {
        ContainerState::Waiting { reason, message } => json!({ "waiting": { "reason": reason, "message": message } }),
        ContainerState::Running(since) => json!({ "running": { "startedAt": timestamp(*since) } }),
        ContainerState::Terminated(code) => json!({ "terminated": { "exitCode": code } }),
    };
    json!({
        "name": container.name,
        "image": container.image,
        "imageID": "",
        "ready": container.ready,
        "restartCount": container.restarts,
        "started": matches!(container.state, ContainerState::Running(_)),
        "state": state,
    })
}

/// The endpoint slices of a service: one for each family and each set of port numbers that its pods mean.
pub fn endpoint_slices(service: &ServiceView, zones: &BTreeMap<String, String>) -> Vec<(Key, Value)> {
    if service.selector.is_empty() {
        return Vec::new();
    }
    let mut slices = Vec::new();
    for family in &service.families {
        let mut groups: BTreeMap<&[Option<u16>], Vec<&Backend>> = BTreeMap::new();
        for backend in &service.backends {
            groups.entry(&backend.targets).or_default().push(backend);
        }
        // A service without pods has its empty slice, as in Kubernetes.
        let numbers: Vec<Option<u16>> = service.ports.iter().map(|port| number(&port.target)).collect();
        if groups.is_empty() {
            groups.insert(&numbers, Vec::new());
        }
        for (index, (targets, backends)) in groups.into_iter().enumerate() {
            let name = format!(
                "{}-{}{}",
                service.key.name,
                family.to_string().to_lowercase(),
                match index {
                    0 => String::new(),
                    more => format!("-{more}"),
                }
            );
            let ports: Vec<Value> = service
                .ports
                .iter()
                .zip(targets)
                .filter_map(|(port, target)| {
                    let mut value = json!({ "name": port.name, "protocol": port.protocol, "port": (*target)? });
                    if let Some(protocol) = &port.app_protocol {
                        value["appProtocol"] = json!(protocol);
                    }
                    Some(value)
                })
                .collect();
            let endpoints: Vec<Value> = backends.iter().map(|backend| endpoint(backend, service, *family, zones)).collect();
            let object = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": name, "namespace": service.key.namespace,
                    "labels": {
                        "kubernetes.io/service-name": service.key.name,
                        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                    },
                },
                "addressType": family.to_string(),
                "endpoints": endpoints,
                "ports": ports,
            });
            slices.push((Key::new("EndpointSlice", &service.key.namespace, &name), object));
        }
    }
    slices
}

fn number(target: &Target) -> Option<u16> {
    match target {
        Target::Number(number) => Some(*number),
        Target::Name(_) => None,
    }
}

fn endpoint(backend: &Backend, service: &ServiceView, family: Family, zones: &BTreeMap<String, String>) -> Value {
    let mut value = json!({
        "addresses": [backend.addresses.of(family).to_string()],
        "conditions": { "ready": backend.serves(service), "serving": backend.ready, "terminating": backend.terminating },
        "nodeName": backend.node,
        "targetRef": { "kind": "Pod", "namespace": backend.pod.namespace, "name": backend.pod.name, "uid": backend.uid },
    });
    if let Some(zone) = zones.get(&backend.node) {
        value["zone"] = json!(zone);
    }
    if let Some(hostname) = &backend.hostname {
        value["hostname"] = json!(hostname);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::pods::{ContainerStatus, Pods};
    use crate::cluster::services::{ServiceAddresses, view};
    use crate::network::addresses::AddressPlan;

    fn record(ready: bool) -> PodRecord {
        PodRecord {
            origin: Origin::Bare,
            uid: "u1".into(),
            created: SystemTime::UNIX_EPOCH,
            template: json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]}}),
            node: Some("a".into()),
            status: PodStatus {
                phase: Phase::Running,
                addresses: Some(AddressPlan::new(0).pod(1, 2)),
                host: Some(AddressPlan::new(0).node(1)),
                started: None,
                containers: vec![ContainerStatus {
                    name: "c".into(),
                    image: "i".into(),
                    ready,
                    restarts: 0,
                    state: ContainerState::Running(SystemTime::UNIX_EPOCH),
                }],
                message: None,
            },
            deleting: None,
        }
    }

    #[test]
    fn a_pod_shows_its_addresses_and_readiness() {
        let object = pod(&Key::pod("shop", "web"), &record(true));
        assert_eq!(object["status"]["podIPs"][1]["ip"], "fd00:10:244:1::2");
        assert_eq!(object["status"]["conditions"][3], json!({"type": "Ready", "status": "True"}));
        assert_eq!(object["spec"]["nodeName"], "a");
        assert_eq!(object["spec"]["serviceAccountName"], "default");
    }

    #[test]
    fn slices_follow_readiness_and_named_ports() {
        let key = Key::new("Service", "shop", "web");
        let spec = json!({"spec": {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}});
        let slices = |ready| {
            let pods = Pods::from([(Key::pod("shop", "web"), record(ready))]);
            let service = view(&key, &spec, &mut ServiceAddresses::default(), AddressPlan::new(0), &pods).expect("a service");
            endpoint_slices(&service, &BTreeMap::from([("a".to_owned(), "zone-a".to_owned())]))
        };
        let ready = slices(true);
        assert_eq!(ready.len(), 2, "a slice a family");
        let (_, v6) = &ready[1];
        assert_eq!(v6["addressType"], "IPv6");
        assert_eq!(v6["ports"][0]["port"], 8080);
        assert_eq!(v6["endpoints"][0]["addresses"][0], "fd00:10:244:1::2");
        assert_eq!(v6["endpoints"][0]["zone"], "zone-a");
        assert_eq!(slices(false)[0].1["endpoints"][0]["conditions"]["ready"], false);
    }
}
