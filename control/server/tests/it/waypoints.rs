//! A waypoint of a real tropisd: what is made for it, what its pod is told and nobody else is, when it comes into use.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::sync::watch;
use tonic::service::interceptor::InterceptedService;
use tropis_model::view::{Change, View};
use tropis_tls::control::{self, ControlEndpoint, Credentials, RootSource, TokenSource};
use tropis_xds::client::{self, ClientConfig, ConnectError, Status, WAYPOINT_TYPES};

use crate::harness::{Ask, Tropisd, pod};

const GATEWAY: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw, namespace: shop}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: v1
kind: Service
metadata: {name: paid, namespace: shop, labels: {istio.io/use-waypoint: gw}}
spec: {clusterIP: 10.96.0.77, selector: {app: cart}, ports: [{name: http, port: 80, targetPort: 8080}]}
";

fn waypoint_pod(name: &str, replica_set: &str) -> Value {
    let mut pod = pod("shop", name, "a", "gw", "10.244.1.9");
    pod["metadata"]["labels"] = json!({
        "gateway.networking.k8s.io/gateway-name": "gw", "gateway.istio.io/managed": "istio.io-mesh-controller",
    });
    pod["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": replica_set, "uid": "rs", "controller": true}]);
    pod
}

fn follow(tropisd: &Tropisd, pod: &str) -> (Arc<Mutex<View>>, watch::Receiver<Status>, tokio_util::sync::DropGuard) {
    let view: Arc<Mutex<View>> = Arc::default();
    let (sender, status) = watch::channel(Status::default());
    let config = ClientConfig {
        role: "waypoint",
        types: WAYPOINT_TYPES,
        address: "10.244.1.9".parse().unwrap(),
        pod_name: pod.into(),
        pod_namespace: "shop".into(),
        node_name: "a".into(),
        cluster_id: "Kubernetes".into(),
        metadata: Default::default(),
        headers: Vec::new(),
        counters: Default::default(),
    };
    let endpoint = ControlEndpoint {
        address: tropisd.addresses[0].to_string(),
        root: RootSource::File(tropisd.path("root-cert.pem")),
        server_name: Some("istiod.istio-system.svc".into()),
    };
    let token = TokenSource::Literal(tropisd.token("shop", pod, "gw", "a"));
    let credentials = Credentials::new(token, []).unwrap();
    let connect = move || {
        let channel = control::channel(&endpoint).map_err(ConnectError::from);
        let credentials = credentials.clone();
        async move { Ok(InterceptedService::new(channel?, credentials)) }
    };
    let fed = view.clone();
    let apply = move |changes: Vec<Change>| {
        let mut view = fed.lock().unwrap();
        *view = view.apply(changes);
    };
    let stop = tokio_util::sync::CancellationToken::new();
    tokio::spawn(client::run(config, connect, apply, sender, stop.clone()));
    (view, status, stop.drop_guard())
}

/// Everything that tropisd reported, as one text.
fn reported(tropisd: &Tropisd) -> String {
    fn read(folder: &std::path::Path, into: &mut String) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.path() {
                path if path.is_dir() => read(&path, into),
                path => into.push_str(&std::fs::read_to_string(path).unwrap_or_default()),
            }
        }
    }
    let mut all = String::new();
    read(&tropisd.path("reported/tropisd"), &mut all);
    all
}

#[tokio::test]
async fn a_waypoint_is_deployed_configured_and_used_once_it_acknowledged() {
    let tropisd = Tropisd::start(&[]);
    tropisd.ready().await;
    tropisd.apply("objects/gateway.yaml", GATEWAY);
    for kind in ["ServiceAccount", "Deployment", "Service"] {
        let there = async || reported(&tropisd).lines().any(|line| line.contains("kind") && line.contains(kind)).then_some(());
        tropisd.until(kind, there).await;
    }
    assert!(!reported(&tropisd).contains("gw.shop.svc.cluster.local"), "no address yet");

    // A pod that runs as the waypoint's account and is none of its own gets neither configuration nor certificate.
    tropisd.apply("cluster/shop-thief.yaml", &waypoint_pod("thief", "other-1").to_string());
    tropisd.apply("cluster/shop-gw-1.yaml", &waypoint_pod("gw-1", "gw-1").to_string());
    let own = tropisd.token("shop", "gw-1", "gw", "a");
    let issued = tropisd.until("a certificate", async || tropisd.certify(Some(&own), Ask::default()).await.ok()).await;
    assert_eq!(issued.name(), "spiffe://cluster.local/ns/shop/sa/gw");
    let thief = tropisd.token("shop", "thief", "gw", "a");
    let refused = tropisd.certify(Some(&thief), Ask::default()).await.unwrap_err();
    assert!(refused.message().contains("that of a waypoint"), "{refused}");

    let (view, mut status, _stop) = follow(&tropisd, "gw-1");
    tokio::time::timeout(std::time::Duration::from_secs(20), status.wait_for(Status::synced)).await.unwrap().unwrap();
    tropisd.until("the address", async || reported(&tropisd).contains("gw.shop.svc.cluster.local").then_some(())).await;
    let served = async || {
        let view = view.lock().unwrap().clone();
        let found = view.hosts().any(|host| &*host.name.hostname == "paid.shop.svc.cluster.local");
        found.then_some(view)
    };
    let view = tropisd.until("the host", served).await;
    assert!(view.workloads().all(|workload| &*workload.namespace == "shop"), "nothing of the rest of the mesh");
    assert_eq!(view.policies().len(), 0, "no policy of layer 4");
    assert_eq!(view.waypoint("shop/gw").map(|own| own.service.to_string()).as_deref(), Some("shop/gw.shop.svc.cluster.local"));
}
