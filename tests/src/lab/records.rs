//! What a lab tells its cluster before anything runs: the nodes, and the pod of the cluster DNS.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde_json::json;

use crate::cluster::object::Key;
use crate::cluster::pods::{ContainerState, ContainerStatus, NodeRecord, Origin, Phase, PodRecord, PodStatus};
use crate::cluster::{ids, seed};
use crate::network::Network;
use crate::network::addresses::AddressPlan;

/// The nodes, and the ranges of their pods.
pub(super) fn nodes(network: &Network, plan: AddressPlan) -> (Vec<NodeRecord>, BTreeMap<String, Vec<String>>) {
    let mut records: Vec<NodeRecord> = network
        .nodes
        .iter()
        .map(|(name, node)| NodeRecord {
            name: name.clone(),
            uid: ids::random_uid(),
            labels: seed::node_labels(name, node.number % 2 == 1),
            addresses: node.addresses,
            schedulable: true,
        })
        .collect();
    records.push(NodeRecord {
        name: seed::CONTROL_NODE.to_owned(),
        uid: ids::random_uid(),
        labels: seed::node_labels(seed::CONTROL_NODE, true),
        addresses: plan.control(),
        schedulable: false,
    });
    let ranges = network.nodes.iter().map(|(name, node)| (name.clone(), plan.pod_ranges(node.number).to_vec())).collect();
    (records, ranges)
}

/// The cluster DNS as a pod, so that its service has an endpoint like any other.
pub(super) fn dns_pod(plan: AddressPlan) -> (Key, PodRecord) {
    let container = ContainerStatus {
        name: "coredns".into(),
        image: "coredns".into(),
        ready: true,
        restarts: 0,
        state: ContainerState::Running(SystemTime::now()),
    };
    let record = PodRecord {
        origin: Origin::Agent { owner_kind: "ReplicaSet", owner: "coredns-7db6d8ff4d".into() },
        uid: ids::random_uid(),
        created: SystemTime::now(),
        template: json!({
            "metadata": { "labels": { "k8s-app": "kube-dns" } },
            "spec": { "hostNetwork": true, "serviceAccountName": "coredns", "containers": [{ "name": "coredns", "image": "coredns" }] },
        }),
        node: Some(seed::CONTROL_NODE.into()),
        status: PodStatus {
            phase: Phase::Running,
            addresses: Some(plan.control()),
            host: Some(plan.control()),
            started: Some(SystemTime::now()),
            containers: vec![container],
            message: None,
        },
        deleting: None,
    };
    (Key::pod("kube-system", &format!("coredns-7db6d8ff4d-{}", ids::suffix())), record)
}
