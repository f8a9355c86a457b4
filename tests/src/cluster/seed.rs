//! What every cluster has before a user writes anything: namespaces, the well-known services, accounts of the agents.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::object::{Key, key_of};

/// The place of the API server's own service among the service addresses.
pub const KUBERNETES_SERVICE: u16 = 1;
/// Where the control plane and the agents live.
pub const SYSTEM_NAMESPACE: &str = "istio-system";
/// The node object that the control plane's pods are bound to; no user pod is put there.
pub const CONTROL_NODE: &str = "control";

/// The objects.
pub fn objects() -> BTreeMap<Key, Value> {
    let mut all = vec![namespace("default"), namespace("kube-system"), namespace(SYSTEM_NAMESPACE)];
    all.extend(["ztunnel", "istio-cni", "istiod"].map(|name| service_account(SYSTEM_NAMESPACE, name)));
    all.push(service_account("kube-system", "coredns"));
    all.push(service("default", "kubernetes", &json!({}), &[("https", "TCP", 443, 6443)]));
    all.push(service("kube-system", "kube-dns", &json!({"k8s-app": "kube-dns"}), &[("dns", "UDP", 53, 53), ("dns-tcp", "TCP", 53, 53)]));
    let control_plane = [
        ("grpc-xds", "TCP", 15010, 15010),
        ("https-dns", "TCP", 15012, 15012),
        ("https-webhook", "TCP", 443, 15017),
        ("http-monitoring", "TCP", 15014, 15014),
    ];
    all.push(service(SYSTEM_NAMESPACE, "istiod", &json!({"app": "istiod"}), &control_plane));
    all.into_iter().map(|object| (key_of(&object).expect("each has a name"), object)).collect()
}

/// Services at well-known places of the service range.
pub fn places() -> [(Key, u16); 3] {
    [
        (Key::new("Service", "default", "kubernetes"), KUBERNETES_SERVICE),
        (Key::new("Service", "kube-system", "kube-dns"), 10),
        (Key::new("Service", SYSTEM_NAMESPACE, "istiod"), 11),
    ]
}

/// A namespace without labels.
pub fn namespace(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } })
}

/// A service account.
pub fn service_account(namespace: &str, name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": name, "namespace": namespace } })
}

/// Labels of a node; every second one is in another zone, so that locality has something to tell apart.
pub fn node_labels(name: &str, first_zone: bool) -> BTreeMap<String, String> {
    let zone = if first_zone { "zone-1" } else { "zone-2" };
    [
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
        ("topology.kubernetes.io/region", "box"),
        ("topology.kubernetes.io/zone", zone),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect()
}

fn service(namespace: &str, name: &str, selector: &Value, ports: &[(&str, &str, u16, u16)]) -> Value {
    let ports: Vec<Value> = ports
        .iter()
        .map(|(name, protocol, port, target)| json!({ "name": name, "protocol": protocol, "port": port, "targetPort": target }))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "namespace": namespace },
        "spec": { "selector": selector, "ports": ports, "type": "ClusterIP" },
    })
}
