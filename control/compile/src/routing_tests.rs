//! What waypoints are told, field by field, and as golden cases: `testdata/hosts/CASE/input.yaml` in, `expected.yaml` out
//! (`UPDATE_EXPECT=1` rewrites it).

mod connections;
mod delegates;
mod golden;
mod guides;
mod http_actions;
mod http_matches;
mod mistakes;
mod outcome;
mod pools;
mod request_policies;
mod selection;
mod semantics;
mod shown;

use std::sync::Arc;

use serde_json::{Value, json};
use tropis_crds::{Finding, Kind, Object, decode};
use tropis_model::{
    pool::{Pool, PoolKey},
    route::{Forward, Host, HttpRoute, RouteAction},
};

use crate::{Index, Settings, destination_rule, host, request_policy, service::findings as service_findings, virtual_service};

/// The port of every service here.
const PORT: u16 = 9080;

/// Objects in an index, seen from a waypoint.
struct Mesh {
    index: Index,
    objects: Vec<Arc<Object>>,
    waypoint: (String, String),
}

impl Mesh {
    /// The objects, and a waypoint `waypoint` in namespace `shop`.
    fn new(values: impl IntoIterator<Item = Value>) -> Self {
        Self::with_settings(values, Settings::default())
    }

    fn with_settings(values: impl IntoIterator<Item = Value>, settings: Settings) -> Self {
        let objects: Vec<Arc<Object>> = values.into_iter().map(object).collect();
        let mut index = Index::new(settings);
        for object in &objects {
            index.apply(object);
        }
        Self { index, objects, waypoint: ("shop".to_owned(), "waypoint".to_owned()) }
    }

    fn of(&self, kind: Kind, name: &str) -> &Arc<Object> {
        self.objects.iter().find(|object| object.kind == kind && object.metadata.name == name).unwrap()
    }

    fn host(&self, name: &str) -> Host {
        host::compile(&self.index, &self.waypoint, self.of(Kind::Service, name)).0
    }

    /// Findings about single objects and, for services, about hosts.
    fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for object in &self.objects {
            findings.extend(match object.kind {
                Kind::VirtualService => virtual_service::findings(&self.index, object),
                Kind::DestinationRule => destination_rule::findings(&self.index, object),
                Kind::AuthorizationPolicy => {
                    let gateway = |namespace: &str, name: &str| {
                        let named = |other: &&Arc<Object>| other.metadata.name == name && other.metadata.namespace == namespace;
                        self.objects.iter().filter(named).any(|other| other.kind == Kind::Gateway)
                    };
                    let values = request_policy::compile(self.index.settings(), object).1;
                    values.into_iter().chain(request_policy::findings(&self.index, object, gateway)).collect()
                }
                Kind::Service => {
                    let served = host::compile(&self.index, &self.waypoint, object).1;
                    served.into_iter().chain(service_findings(&self.index, object)).collect()
                }
                _ => Vec::new(),
            });
        }
        findings
    }

    fn texts(&self) -> Vec<String> {
        self.findings().iter().map(Finding::to_string).collect()
    }
}

fn object(value: Value) -> Arc<Object> {
    match decode(value.clone()) {
        Ok((object, _)) => Arc::new(object),
        Err(findings) => panic!("{value}: {findings:?}"),
    }
}

fn service(namespace: &str, name: &str, ports: &[(&str, u16)]) -> Value {
    let ports: Vec<Value> = ports.iter().map(|(name, port)| json!({"name": name, "port": port})).collect();
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
        "spec": {"clusterIP": "10.96.0.1", "selector": {"app": name}, "ports": ports},
    })
}

fn routes(namespace: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

fn rule(namespace: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

fn policy(namespace: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

/// `reviews` and `ratings` in `shop`, with subsets v1 and v2 of `reviews`.
fn shop() -> Vec<Value> {
    let subsets = json!([{"name": "v1", "labels": {"version": "v1"}}, {"name": "v2", "labels": {"version": "v2"}}]);
    vec![
        service("shop", "reviews", &[("http", PORT)]),
        service("shop", "ratings", &[("http", PORT)]),
        rule("shop", "reviews", json!({"host": "reviews", "subsets": subsets})),
    ]
}

/// The route of `reviews` that one rule gives.
fn http(rule: Value) -> Arc<HttpRoute> {
    let spec = json!({"hosts": ["reviews"], "http": [rule]});
    let host = Mesh::new(shop().into_iter().chain([routes("shop", "reviews", spec)])).host("reviews");
    let routes = &host.ports[&PORT].http;
    assert_eq!(routes.len(), 1);
    routes[0].clone()
}

/// The route of `reviews` that sends on to `reviews`, with more fields.
fn forwarded(more: Value) -> (Arc<HttpRoute>, Forward) {
    let mut rule = json!({"route": [{"destination": {"host": "reviews"}}]});
    rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let route = http(rule);
    let RouteAction::Forward(forward) = &route.action else { panic!("{route:?}") };
    let forward = (**forward).clone();
    (route, forward)
}

/// The findings that refuse an object, as text.
fn refused(value: Value) -> String {
    let findings = decode(value).map(|_| ()).unwrap_err();
    findings.iter().map(Finding::to_string).collect::<Vec<_>>().join("\n")
}

fn refused_rule(more: Value) -> String {
    let mut rule = json!({"route": [{"destination": {"host": "reviews"}}]});
    rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    refused(routes("shop", "reviews", json!({"hosts": ["reviews"], "http": [rule]})))
}

fn key(name: &str, port: u16, subset: Option<&str>) -> PoolKey {
    let host = crate::service::hostname(&Settings::default(), "shop", name);
    PoolKey { host, port, subset: subset.map(Into::into) }
}

/// The pool of all of `reviews` under a traffic policy.
fn pool(policy: Value) -> Pool {
    let mesh = Mesh::new([
        service("shop", "reviews", &[("http", PORT)]),
        rule("shop", "reviews", json!({"host": "reviews", "trafficPolicy": policy})),
    ]);
    (*mesh.host("reviews").pools[&key("reviews", PORT, None)]).clone()
}

fn refused_policy(policy: Value) -> String {
    refused(rule("shop", "reviews", json!({"host": "reviews", "trafficPolicy": policy})))
}
