//! What an AuthorizationPolicy does to real requests at a waypoint, each field against the original caller.

use http::Request;
use serde_json::{Value, json};

use crate::{
    api_mesh::{Mesh, REVIEWS, policy, request},
    log,
    world::{Body, run},
};

/// A mesh with one pod of `reviews`.
async fn one() -> Mesh {
    let mesh = Mesh::new();
    drop(mesh.says("reviews", "v1", "near", "v1").await);
    mesh
}

fn get() -> Request<Body> {
    request("GET", "/", &[])
}

impl Mesh {
    /// Puts an ALLOW policy for `reviews` with one rule in force.
    fn allow(&self, rule: &Value) {
        let target = json!([{"group": "", "kind": "Service", "name": "reviews"}]);
        self.apply([policy("p", &json!({"targetRefs": target, "rules": [rule]}))]);
    }

    /// Whether the rule allows a request of `cart`.
    async fn allows(&self, rule: &Value, request: Request<Body>) -> bool {
        self.allow(rule);
        match self.send(request).await.status {
            200 => true,
            403 => false,
            other => panic!("{rule}: {other}"),
        }
    }

    /// Whether a source and its contrary are told apart: `matching` holds for `cart` at 127.0.0.1, `other` does not.
    async fn source_is_asked(&self, field: &str, matching: Value, other: Value) {
        let negated = format!("not{}{}", field[..1].to_uppercase(), &field[1..]);
        for (field, value, allowed) in
            [(field, &matching, true), (field, &other, false), (&*negated, &matching, false), (&*negated, &other, true)]
        {
            let rule = json!({"from": [{"source": {field: value}}]});
            assert_eq!(self.allows(&rule, get()).await, allowed, "{rule}");
        }
    }

    /// The same for an operation and a request.
    async fn operation_is_asked(&self, field: &str, matching: Value, other: Value, request: impl Fn() -> Request<Body>) {
        let negated = format!("not{}{}", field[..1].to_uppercase(), &field[1..]);
        for (field, value, allowed) in
            [(field, &matching, true), (field, &other, false), (&*negated, &matching, false), (&*negated, &other, true)]
        {
            let rule = json!({"to": [{"operation": {field: value}}]});
            assert_eq!(self.allows(&rule, request()).await, allowed, "{rule}");
        }
    }
}

#[test]
fn each_source_field_asks_for_the_original_caller() {
    run(async {
        let mesh = one().await;
        mesh.source_is_asked("principals", json!(["cluster.local/ns/shop/sa/cart"]), json!(["cluster.local/ns/shop/sa/waypoint"])).await;
        mesh.source_is_asked("namespaces", json!(["bank", "shop"]), json!(["bank"])).await;
        mesh.source_is_asked("serviceAccounts", json!(["shop/cart"]), json!(["waypoint"])).await;
        mesh.source_is_asked("trustDomains", json!(["cluster.local"]), json!(["other.example"])).await;
        mesh.source_is_asked("ipBlocks", json!(["127.0.0.0/8"]), json!(["10.0.0.0/8"])).await;
        mesh.source_is_asked("remoteIpBlocks", json!(["127.0.0.1"]), json!(["10.0.0.0/8"])).await;
    });
}

#[test]
fn request_principals_match_nobody_without_a_token() {
    run(async {
        let mesh = one().await;
        assert!(!mesh.allows(&json!({"from": [{"source": {"requestPrincipals": ["*"]}}]}), get()).await);
        assert!(mesh.allows(&json!({"from": [{"source": {"notRequestPrincipals": ["*"]}}]}), get()).await);
    });
}

#[test]
fn each_operation_field_asks_for_the_request() {
    run(async {
        let mesh = one().await;
        mesh.operation_is_asked("methods", json!(["GET"]), json!(["get"]), get).await;
        mesh.operation_is_asked("ports", json!(["9080"]), json!(["18080"]), get).await;
        mesh.operation_is_asked("hosts", json!(["REVIEWS:*"]), json!(["reviews"]), get).await;
        for (matching, other) in [("/a/b", "/a"), ("/a*", "/b*"), ("*/b", "*/a"), ("/{*}/b", "/{*}"), ("/{**}", "/a/b/{*}")] {
            mesh.operation_is_asked("paths", json!([matching]), json!([other]), || request("GET", "/a/./x/../b?c", &[])).await;
        }
    });
}

#[test]
fn each_when_key_asks_for_its_attribute() {
    run(async {
        let mesh = one().await;
        for (key, matching, other) in [
            ("request.headers[X-Team]", "sal*", "ops"),
            ("source.ip", "127.0.0.1", "10.0.0.0/8"),
            ("remote.ip", "127.0.0.1", "10.0.0.0/8"),
            ("source.namespace", "shop", "bank"),
            ("source.principal", "*/sa/cart", "*/sa/waypoint"),
            ("source.serviceAccount", "shop/cart", "shop/waypoint"),
            ("source.trustDomain", "cluster.local", "other.example"),
            ("destination.ip", "10.96.0.1", "10.96.0.2"),
            ("destination.port", "9080", "18080"),
        ] {
            for (field, value, allowed) in
                [("values", matching, true), ("values", other, false), ("notValues", matching, false), ("notValues", other, true)]
            {
                let rule = json!({"when": [{"key": key, field: [value]}]});
                assert_eq!(mesh.allows(&rule, request("GET", "/", &[("x-team", "sales")])).await, allowed, "{rule}");
            }
        }
    });
}

#[test]
fn action_decides_what_a_match_means() {
    run(async {
        let mesh = one().await;
        let target = json!([{"group": "", "kind": "Service", "name": "reviews"}]);
        let with = |action: &str, rules: Value, more: Value| {
            let mut spec = json!({"targetRefs": target, "action": action, "rules": rules});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            policy("p", &spec)
        };
        let posts = || json!([{"to": [{"operation": {"methods": ["POST"]}}]}]);
        for (action, more, of_get, of_post) in [
            ("ALLOW", json!({}), 403, 200),
            ("DENY", json!({}), 200, 403),
            ("AUDIT", json!({}), 200, 200),
            ("CUSTOM", json!({"provider": {"name": "opa"}}), 200, 403),
        ] {
            mesh.apply([with(action, posts(), more)]);
            let found = (mesh.send(get()).await.status, mesh.send(request("POST", "/", &[])).await.status);
            assert_eq!(found, (of_get, of_post), "{action}");
        }
        let refused = mesh.send(request("POST", "/refused", &[])).await;
        assert_eq!(refused.body, "RBAC: access denied");
        let grpc = mesh.send(request("POST", "/", &[("content-type", "application/grpc")])).await;
        assert_eq!((grpc.status, grpc.header("grpc-status")), (200, Some("7")));
        assert_eq!(log::wait_for(&[("path", "/refused")]).await["policy"], json!("shop/p"));
    });
}

#[test]
fn target_refs_and_target_ref_say_whose_requests_are_decided() {
    run(async {
        let service = |name: &str| json!({"group": "", "kind": "Service", "name": name});
        let gateway = |name: &str| json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": name});
        for (spec, status) in [
            (json!({"targetRefs": [service("reviews")]}), 403),
            (json!({"targetRefs": [service("ratings")]}), 200),
            (json!({"targetRefs": [service("ratings"), service("reviews")]}), 403),
            (json!({"targetRef": service("reviews")}), 403),
            (json!({"targetRefs": [gateway("waypoint")]}), 403),
            (json!({"targetRefs": [gateway("another")]}), 200),
        ] {
            let mesh = one().await;
            mesh.apply([policy("p", &spec)]);
            assert_eq!(mesh.send(get()).await.status, status, "{spec}");
        }
    });
}

#[test]
fn a_route_to_another_service_does_not_step_around_its_target_refs() {
    run(async {
        let mesh = one().await;
        let _apps = mesh.says("ratings", "v1", "near", "ratings").await;
        let target = json!([{"group": "", "kind": "Service", "name": "ratings"}]);
        let only = |namespace: &str| {
            let operation = json!([{"operation": {"ports": ["9081"]}}]);
            policy("p", &json!({"targetRefs": target, "rules": [{"from": [{"source": {"namespaces": [namespace]}}], "to": operation}]}))
        };
        let ask = async || mesh.send(get()).await;
        mesh.apply([only("bank")]);
        assert_eq!(ask().await.status, 200, "nothing goes to ratings");
        mesh.route(&json!({"route": [{"destination": {"host": "ratings", "port": {"number": 9081}}}]}));
        let refused = ask().await;
        assert_eq!((refused.status, &*refused.body), (403, "RBAC: access denied"));
        mesh.apply([only("shop")]);
        assert_eq!(ask().await.body, "ratings", "the port is that of the service to which the route leads");
        mesh.apply([policy("p", &json!({"targetRefs": target, "action": "DENY", "rules": [{}]}))]);
        assert_eq!(ask().await.status, 403);
        mesh.route(&json!({"mirror": {"host": "ratings", "port": {"number": 9080}}}));
        mesh.seen.borrow_mut().clear();
        assert_eq!(ask().await.body, "v1");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        assert_eq!(mesh.seen.borrow().len(), 1, "no copy goes where the request may not");
    });
}

#[test]
fn selector_decides_for_the_endpoint_that_carries_the_labels() {
    run(async {
        let mesh = Mesh::new();
        let _apps = [mesh.says("reviews", "v1", "near", "v1").await, mesh.says("reviews", "v2", "near", "v2").await];
        mesh.traffic_policy(&json!({"loadBalancer": {"simple": "ROUND_ROBIN"}}));
        let nobody = json!({"selector": {"matchLabels": {"app": "reviews", "version": "v2"}}});
        mesh.apply([policy("p", &nobody)]);
        let mut sender = mesh.world.http1("cart", REVIEWS).await;
        let mut found = Vec::new();
        for _ in 0..4 {
            found.push(crate::world::fetch(&mut sender, get()).await.1);
        }
        found.sort();
        assert_eq!(found, ["RBAC: access denied", "RBAC: access denied", "v1", "v1"]);
    });
}
