//! What is most often done wrongly with Istio's API, as far as it needs no requests; the numbers are those of `docs/guide/semantics.md`.

use std::time::Duration;

use serde_json::{Value, json};
use tropis_model::{
    outlier::{Detector, Outcome as Result},
    pool::Balancer,
};

use super::{Mesh, PORT, key, outcome::Outcome, policy, pool, routes, rule, service};

#[test]
fn c07_the_waypoints_namespace_comes_first_subsets_override_by_block_and_ports_replace_all() {
    let balancing = |namespace: &str, simple: &str| {
        rule(namespace, "r", json!({"host": "reviews.shop.svc.cluster.local", "trafficPolicy": {"loadBalancer": {"simple": simple}}}))
    };
    let levels = [balancing("edge", "RANDOM"), balancing("shop", "ROUND_ROBIN"), balancing("istio-system", "PASSTHROUGH")];
    for (from, expected) in [(0, Balancer::Random), (1, Balancer::RoundRobin), (2, Balancer::Passthrough)] {
        let mut mesh = Mesh::new(levels[from..].iter().cloned().chain([service("shop", "reviews", &[("http", PORT)])]));
        mesh.waypoint = ("edge".to_owned(), "waypoint".to_owned());
        assert_eq!(mesh.host("reviews").pools[&key("reviews", PORT, None)].balancer, expected);
    }
    let of_port = json!({"port": {"number": 81}, "connectionPool": {"tcp": {"maxConnections": 7}}});
    let subset = json!({"name": "v1", "labels": {"v": "1"}, "trafficPolicy": {"connectionPool": {"http": {"http2MaxRequests": 3}}}});
    let spec = json!({
        "host": "reviews", "subsets": [subset],
        "trafficPolicy": {"loadBalancer": {"simple": "RANDOM"}, "connectionPool": {"tcp": {"maxConnections": 9}}, "portLevelSettings": [of_port]},
    });
    let to = json!([{"destination": {"host": "reviews", "subset": "v1"}}]);
    let mesh = Mesh::new([
        service("shop", "reviews", &[("http-a", 80), ("http-b", 81)]),
        rule("shop", "r", spec),
        routes("shop", "r", json!({"hosts": ["reviews"], "http": [{"route": to}]})),
    ]);
    let host = mesh.host("reviews");
    let found = |port: u16| {
        let pool = &host.pools[&key("reviews", port, Some("v1"))];
        (pool.balancer.clone(), pool.limits.max_connections, pool.limits.max_requests)
    };
    assert_eq!(found(80), (Balancer::Random, None, Some(3)), "the block of the subset, the rest of the rule");
    assert_eq!(found(81), (Balancer::LeastRequest, None, Some(3)), "nothing but the port's settings under it");
}

#[test]
fn c12_an_ejection_ends_at_a_tick_and_grows_with_each_in_a_row() {
    let written = json!({"consecutive5xxErrors": 1, "interval": "10s", "baseEjectionTime": "25s", "maxEjectionPercent": 100});
    let mut detector = Detector::new(pool(json!({"outlierDetection": written})).outlier.unwrap());
    detector.set_hosts(["a"]);
    let at = Duration::from_secs;
    // Ejected at 1, 25 s are over at 26, the next tick is at 30.
    assert_eq!(detector.record(&"a", Result::Response(500), at(1)).map(|ejected| ejected.duration), Some(at(25)));
    assert!([10, 20].into_iter().all(|tick| detector.sweep(at(tick)).is_empty()) && detector.is_ejected(&"a"));
    assert_eq!(detector.sweep(at(30)), ["a"]);
    assert_eq!(detector.record(&"a", Result::Response(500), at(31)).map(|ejected| ejected.duration), Some(at(50)), "twice as long");
    assert_eq!(detector.sweep(at(90)), ["a"]);
    // Left in peace for a tick after a full interval, it is forgiven one.
    detector.sweep(at(100));
    assert_eq!(detector.record(&"a", Result::Response(500), at(101)).map(|ejected| ejected.duration), Some(at(50)));
    let long = json!({"consecutive5xxErrors": 1, "baseEjectionTime": "400s", "maxEjectionPercent": 100});
    let mut detector = Detector::new(pool(json!({"outlierDetection": long})).outlier.unwrap());
    detector.set_hosts(["a"]);
    for round in 0..3 {
        let now = at(1000 * round);
        assert_eq!(
            detector.record(&"a", Result::Response(500), now).map(|ejected| ejected.duration),
            Some(at(400)),
            "never more than the base above 300 s"
        );
        detector.sweep(now + at(500));
    }
}

/// A namespace with a service, its waypoint, and these policies.
fn guarded(objects: impl IntoIterator<Item = Value>) -> Outcome {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "reviews-1", "namespace": "shop", "labels": {"app": "reviews"}, "annotations": {"ambient.istio.io/redirection": "enabled"}},
        "spec": {"serviceAccountName": "reviews", "containers": []},
        "status": {"phase": "Running", "podIP": "10.1.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
    });
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"istio-injection": "enabled"}}});
    Outcome::of(&[namespace, service("shop", "reviews", &[("http", PORT)]), pod].into_iter().chain(objects).collect::<Vec<_>>())
}

fn let_in(objects: impl IntoIterator<Item = Value>, port: u16) -> Vec<&'static str> {
    guarded(objects).admission(port).remove("shop/reviews-1").unwrap()
}

#[test]
fn c13_no_rules_deny_all_an_empty_rule_allows_all_and_http_is_never_wider_at_layer_4() {
    let alone = |spec: Value| let_in([policy("shop", "p", spec)], 8080);
    let everybody = ["plain", "sleep", "stranger", "waypoint"];
    // The waypoint is let in as it enforces the policy itself: it tells callers 403.
    assert_eq!(alone(json!({})), ["waypoint"]);
    assert_eq!(alone(json!({"rules": [{}]})), everybody);
    let get = json!([{"to": [{"operation": {"methods": ["GET"]}}]}]);
    assert_eq!(alone(json!({"rules": get})), ["waypoint"], "ALLOW that looks at HTTP allows nobody past the waypoint");
    assert_eq!(alone(json!({"action": "DENY", "rules": get})), ["waypoint"], "Istio's never matches; ours denies what it cannot see");
    let of_port = json!([{"to": [{"operation": {"methods": ["GET"], "ports": ["8080"]}}]}]);
    assert_eq!(alone(json!({"action": "DENY", "rules": of_port})), ["waypoint"]);
    assert_eq!(
        let_in([policy("shop", "p", json!({"action": "DENY", "rules": of_port}))], 9090),
        everybody,
        "what layer 4 sees of it decides"
    );
}

#[test]
fn c16_strict_refuses_who_proves_nothing_by_the_pods_own_port_and_disable_is_permissive() {
    let peers = |spec: Value| json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": {"name": "default", "namespace": "shop"}, "spec": spec});
    let proved = ["sleep", "stranger", "waypoint"];
    let everybody = ["plain", "sleep", "stranger", "waypoint"];
    assert_eq!(let_in([peers(json!({"mtls": {"mode": "STRICT"}}))], 8080), proved);
    for mode in ["PERMISSIVE", "DISABLE"] {
        assert_eq!(let_in([peers(json!({"mtls": {"mode": mode}}))], 8080), everybody, "{mode}");
    }
    let of_port = json!({"selector": {"matchLabels": {"app": "reviews"}}, "mtls": {"mode": "STRICT"}, "portLevelMtls": {"8080": {"mode": "PERMISSIVE"}}});
    assert_eq!(let_in([peers(of_port.clone())], 8080), everybody, "the pod's port");
    assert_eq!(let_in([peers(of_port)], PORT), proved, "not the service's");
}
