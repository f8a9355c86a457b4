//! Where policies let waypoints in, at the destinations that are theirs, whoever routes there; and what is told as objects come and go.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tropis_crds::{ObjectRef, decode};
use tropis_model::{
    authorize::{ConnectionFacts, policy_matches},
    identity::Identity,
};

use super::*;

/// Namespaces `shop` and `bank` with a Service and two pods each (`10.1.0.x` and `10.2.0.x`); `shop` has a waypoint for Services.
struct Mesh {
    compiler: Compiler,
}

impl Mesh {
    fn new() -> Self {
        let mut mesh = Self { compiler: Compiler::new(Settings::default()) };
        mesh.compiler.opened();
        for (namespace, labels, part) in [("shop", json!({"istio.io/use-waypoint": "gw"}), 1), ("bank", json!({}), 2)] {
            mesh.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}}));
            mesh.apply(json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": namespace},
                "spec": {"selector": {"app": "web"}, "clusterIP": format!("10.96.0.{part}"), "ports": [{"name": "http", "port": 80}]},
            }));
            for last in [1, 2] {
                mesh.pod(namespace, &format!("web-{last}"), "web", &format!("10.{part}.0.{last}"));
            }
            mesh.pod(namespace, "alone", "none", &format!("10.{part}.0.9"));
        }
        mesh.apply(json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "gw", "namespace": "shop"},
            "spec": {"gatewayClassName": "istio-waypoint", "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]},
            "status": {"addresses": [{"type": "Hostname", "value": "gw.shop.svc.cluster.local"}]},
        }));
        mesh.settle();
        mesh
    }

    fn apply(&mut self, value: Value) {
        self.compiler.apply(&Arc::new(decode(value).unwrap().0));
    }

    fn pod(&mut self, namespace: &str, name: &str, app: &str, address: &str) {
        self.apply(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name, "namespace": namespace, "labels": {"app": app}, "annotations": {"ambient.istio.io/redirection": "enabled"},
            },
            "spec": {"nodeName": "n", "serviceAccountName": app, "containers": []},
            "status": {"phase": "Running", "podIP": address, "conditions": [{"type": "Ready", "status": "True"}]},
        }));
    }

    fn policy(&mut self, namespace: &str, action: &str, rules: Value) {
        self.apply(json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "p", "namespace": namespace},
            "spec": {"action": action, "rules": rules},
        }));
        self.settle();
    }

    /// The waypoint takes in what it is told.
    fn settle(&mut self) {
        self.compiler.changes();
        self.compiler.waypoints();
        self.compiler.acknowledged(&("shop".to_owned(), "gw".to_owned()));
        self.compiler.changes();
    }

    /// Whether policy `p` of a namespace matches a connection of the waypoint to `destination`.
    fn matches(&self, namespace: &str, destination: &str) -> bool {
        let policies = self.compiler.compiled().policies;
        let policy = policies.iter().find(|policy| *policy.key.0 == format!("{namespace}/p")).unwrap();
        let destination = SocketAddr::new(destination.parse().unwrap(), 80);
        let peer = Some(Identity::new("cluster.local", "shop", "gw"));
        policy_matches(policy, &ConnectionFacts { peer, source: "10.1.0.7".parse().unwrap(), destination })
    }
}

#[test]
fn a_policy_of_the_mesh_lets_a_waypoint_in_at_its_own_destinations_only() {
    let mut mesh = Mesh::new();
    mesh.policy("istio-system", "DENY", json!([{"from": [{"source": {"namespaces": ["shop"]}}]}]));
    for (destination, denied) in [("10.1.0.1", false), ("10.1.0.2", false), ("10.1.0.9", true), ("10.2.0.1", true), ("10.2.0.9", true)] {
        assert_eq!(mesh.matches("istio-system", destination), denied, "{destination}");
    }
    mesh.policy("istio-system", "ALLOW", json!([{"from": [{"source": {"namespaces": ["bank"]}}]}]));
    for (destination, allowed) in [("10.1.0.1", true), ("10.1.0.9", false), ("10.2.0.1", false)] {
        assert_eq!(mesh.matches("istio-system", destination), allowed, "{destination}");
    }
}

#[test]
fn a_route_that_leads_to_another_namespace_does_not_open_its_policies() {
    let mut mesh = Mesh::new();
    mesh.policy("bank", "ALLOW", json!([{"from": [{"source": {"namespaces": ["bank"]}}]}]));
    mesh.apply(json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "route", "namespace": "shop"},
        "spec": {"hosts": ["web"], "http": [{
            "route": [{"destination": {"host": "web"}}], "mirror": {"host": "web.bank.svc.cluster.local"},
        }]},
    }));
    mesh.settle();
    assert!(!mesh.matches("bank", "10.2.0.1"));
}

#[test]
fn what_an_endpoint_slice_points_at_in_another_namespace_is_not_a_waypoints_own() {
    let mut mesh = Mesh::new();
    mesh.policy("bank", "ALLOW", json!([{"from": [{"source": {"namespaces": ["bank"]}}]}]));
    mesh.policy("istio-system", "DENY", json!([{"from": [{"source": {"namespaces": ["shop"]}}]}]));
    mesh.apply(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "sly", "namespace": "shop"},
        "spec": {"clusterIP": "10.96.0.9", "ports": [{"name": "http", "port": 80}]},
    }));
    mesh.apply(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "sly-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "sly"}},
        "endpoints": [
            {"addresses": ["10.2.0.1"]},
            {"addresses": ["10.2.0.2"], "targetRef": {"kind": "Pod", "namespace": "bank", "name": "web-2"}},
        ],
        "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
    }));
    mesh.settle();
    for destination in ["10.2.0.1", "10.2.0.2"] {
        assert!(!mesh.matches("bank", destination) && mesh.matches("istio-system", destination), "{destination}");
    }
}

#[test]
fn admission_follows_the_pods() {
    let mut mesh = Mesh::new();
    mesh.policy("shop", "DENY", json!([{}]));
    mesh.policy("istio-system", "DENY", json!([{}]));
    let denied = |mesh: &Mesh, destination| (mesh.matches("shop", destination), mesh.matches("istio-system", destination));
    assert_eq!(denied(&mesh, "10.1.0.1"), (false, false));
    assert_eq!(denied(&mesh, "10.1.0.3"), (true, true));
    mesh.pod("shop", "web-3", "web", "10.1.0.3");
    mesh.compiler.changes();
    assert_eq!(denied(&mesh, "10.1.0.3"), (false, false), "in the same step as the pod itself");
    mesh.compiler.remove(&ObjectRef::new(Kind::Pod, "shop", "web-3"));
    mesh.compiler.changes();
    assert_eq!(denied(&mesh, "10.1.0.3"), (true, true), "its address may be another's now");
    mesh.pod("shop", "web-2", "other", "10.1.0.2");
    mesh.compiler.changes();
    assert_eq!(denied(&mesh, "10.1.0.2"), (true, true), "no Service of the waypoint's selects it");
    assert_eq!(denied(&mesh, "10.1.0.1"), (false, false));
}

#[test]
fn a_host_that_a_waypoint_refuses_takes_nothing_from_the_others() {
    let mut mesh = Mesh::new();
    mesh.apply(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "alone", "namespace": "shop"},
        "spec": {"selector": {"app": "none"}, "clusterIP": "10.96.0.7", "ports": [{"name": "http", "port": 80}]},
    }));
    mesh.policy("istio-system", "DENY", json!([{"from": [{"source": {"namespaces": ["shop"]}}]}]));
    assert!(!mesh.matches("istio-system", "10.1.0.1") && !mesh.matches("istio-system", "10.1.0.9"));

    // A new version of the policy, which the waypoint takes in everywhere but at the host that it refuses.
    let refused = [service::hostname(mesh.compiler.index().settings(), "shop", "alone")].into();
    mesh.apply(json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "p", "namespace": "istio-system"},
        "spec": {"action": "DENY", "rules": [{"from": [{"source": {"notNamespaces": ["bank"]}}]}]},
    }));
    mesh.compiler.changes();
    mesh.compiler.waypoints();
    mesh.compiler.acknowledged_without(&("shop".to_owned(), "gw".to_owned()), &refused);
    mesh.compiler.changes();
    assert!(!mesh.compiler.has_grace(), "it has answered");
    assert!(!mesh.matches("istio-system", "10.1.0.1"), "there it enforces the new version");
    assert!(mesh.matches("istio-system", "10.1.0.9"), "there it enforces the version before");
    mesh.settle();
    assert!(!mesh.matches("istio-system", "10.1.0.9"));
}

/// What is told now, in order.
fn told(mesh: &mut Mesh) -> Vec<String> {
    mesh.settle();
    let mut told: Vec<String> = mesh.compiler.findings().map(ToString::to_string).collect();
    told.sort();
    told
}

#[test]
fn a_pod_that_names_a_waypoint_that_cannot_be_used_is_told_of_once_for_its_controller() {
    let mut mesh = Mesh::new();
    let mut pod = |name: &str, owner: &str| {
        mesh.apply(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name, "namespace": "shop", "labels": {"app": "odd", "istio.io/use-waypoint": "wayponit"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": owner, "controller": true}],
            },
            "spec": {"nodeName": "n", "serviceAccountName": "odd", "containers": []}, "status": {"phase": "Running", "podIP": "10.1.0.30"},
        }));
    };
    pod("odd-1", "odd");
    pod("odd-2", "odd");
    pod("other-1", "other");
    let told: Vec<String> = told(&mut mesh).into_iter().filter(|finding| finding.contains("wayponit")).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].contains("(Pod shop/odd-1)") && told[0].contains("does not exist"), "{told:?}");
}

#[test]
fn what_is_wrong_in_a_policy_that_only_waypoints_enforce_is_told() {
    let mut mesh = Mesh::new();
    let policy = |name: &str, spec: Value| {
        let version = "security.istio.io/v1";
        json!({"apiVersion": version, "kind": "AuthorizationPolicy", "metadata": {"name": name, "namespace": "shop"}, "spec": spec})
    };
    let target = json!([{"kind": "Service", "group": "", "name": "web"}]);
    let rules = json!([{"from": [{"source": {"principals": ["cart and more"]}}]}]);
    mesh.apply(policy("one", json!({"targetRefs": target, "action": "DENY", "rules": rules})));
    let selector = json!({"matchLabels": {"app": "web"}});
    mesh.apply(policy("two", json!({"selector": selector, "action": "DENY", "rules": rules})));
    mesh.apply(policy("three", json!({"selector": selector, "action": "CUSTOM", "provider": {"name": "opa"}, "rules": [{}]})));
    let told = told(&mut mesh);
    let of = |name: &str| told.iter().filter(|finding| finding.contains(&format!("shop/{name})"))).collect::<Vec<_>>();
    assert!(of("one").len() == 1 && of("one")[0].contains("principals[0]"), "{told:?}");
    assert_eq!(of("two").len(), 1, "once, in the node proxy's words: {told:?}");
    assert!(of("three").iter().any(|finding| finding.contains("a waypoint denies what it matches")), "{told:?}");
    assert!(of("three").iter().any(|finding| finding.contains("provider")), "{told:?}");
}

#[test]
fn a_policy_for_a_service_whose_waypoint_is_not_ready_says_that_it_is_not_enforced() {
    let mut mesh = Mesh::new();
    mesh.apply(json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "late", "namespace": "shop"},
        "spec": {"gatewayClassName": "istio-waypoint", "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]},
    }));
    mesh.apply(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "new", "namespace": "shop", "labels": {"istio.io/use-waypoint": "late"}},
        "spec": {"selector": {"app": "new"}, "clusterIP": "10.96.0.8", "ports": [{"name": "http", "port": 80}]},
    }));
    mesh.apply(json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "late", "namespace": "shop"},
        "spec": {"targetRefs": [{"kind": "Service", "group": "", "name": "new"}], "action": "DENY", "rules": [{}]},
    }));
    let told = told(&mut mesh);
    let own = told.iter().filter(|finding| finding.contains("AuthorizationPolicy shop/late")).collect::<Vec<_>>();
    assert!(own.len() == 1 && own[0].contains("not in use: shop/late"), "{told:?}");
}

#[test]
fn an_account_behind_a_service_is_seen_through_its_slices_and_not_in_ended_pods() {
    let mut mesh = Mesh::new();
    mesh.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}));
    mesh.apply(json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": "of-web", "namespace": "shop", "annotations": {"istio.io/for-service-account": "web"}},
        "spec": {"gatewayClassName": "istio-waypoint", "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]},
        "status": {"addresses": [{"type": "Hostname", "value": "of-web.shop.svc.cluster.local"}]},
    }));
    mesh.apply(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "plain", "namespace": "shop"},
        "spec": {"clusterIP": "10.96.0.9", "ports": [{"name": "http", "port": 80}]},
    }));
    mesh.settle();
    let wanted = |mesh: &Mesh, name: &str| {
        let service = mesh.compiler.index().service(&("shop".to_owned(), name.to_owned())).unwrap();
        waypoint::of_service(mesh.compiler.index(), service).0.map(|attached| attached.gateway.1)
    };
    assert_eq!(wanted(&mesh, "plain"), None);
    let before = mesh.compiler.index().service(&("shop".to_owned(), "plain".to_owned())).unwrap().clone();
    let slice = Arc::new(
        decode(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "plain-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "plain"}},
            "endpoints": [{"addresses": ["10.1.0.1"], "targetRef": {"kind": "Pod", "namespace": "shop", "name": "web-1"}}],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        }))
        .unwrap()
        .0,
    );
    let mut index = Index::new(Settings::default());
    for object in mesh.compiler.index().waypoints().chain([&before]) {
        index.apply(object);
    }
    assert!(index.apply(&slice).services.contains(&("shop".to_owned(), "plain".to_owned())), "the service is looked at again");
    mesh.compiler.apply(&slice);
    mesh.settle();
    assert_eq!(wanted(&mesh, "plain").as_deref(), Some("of-web"));

    assert_eq!(wanted(&mesh, "web").as_deref(), Some("of-web"));
    mesh.apply(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-job", "namespace": "shop", "labels": {"app": "web"}},
        "spec": {"nodeName": "n", "serviceAccountName": "job", "containers": []}, "status": {"phase": "Failed", "podIP": "10.1.0.40"},
    }));
    mesh.settle();
    assert_eq!(wanted(&mesh, "web").as_deref(), Some("of-web"), "an ended pod mixes no accounts");
}
