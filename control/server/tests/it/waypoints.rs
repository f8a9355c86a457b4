//! A waypoint of a real tropisd: what is made for it, what its pod is told and nobody else is, when it comes into use.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};
use tokio::sync::watch;
use tonic::service::interceptor::InterceptedService;
use tropis_crds::{Kind, ObjectRef};
use tropis_model::{
    view::{Change, View},
    waypoint::AccessLogFormat,
    workload::Workload,
};
use tropis_source::dir::snapshot;
use tropis_tls::control::{self, ControlEndpoint, Credentials, RootSource, TokenSource};
use tropis_xds::{
    ResourceType,
    client::{self, ClientConfig, ConnectError, NODE_PROXY_TYPES, Status, WAYPOINT_TYPES},
};

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

fn waypoint_pod(gateway: &str, name: &str, replica_set: &str) -> Value {
    let mut pod = pod("shop", name, "a", gateway, "10.244.1.9");
    pod["metadata"]["labels"] = json!({
        "gateway.networking.k8s.io/gateway-name": gateway, "gateway.istio.io/managed": "istio.io-mesh-controller",
    });
    pod["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": replica_set, "uid": "rs", "controller": true}]);
    pod
}

type Followed = (Arc<Mutex<View>>, watch::Receiver<Status>, tokio_util::sync::DropGuard);

/// A pod of a waypoint in namespace `shop`, which acknowledges what it is told.
fn follow(tropisd: &Tropisd, gateway: &str, pod: &str) -> Followed {
    follow_as(tropisd, ("waypoint", WAYPOINT_TYPES), ("shop", pod, gateway))
}

/// The node proxy of node `a`, which does as well.
fn follow_node(tropisd: &Tropisd) -> Followed {
    follow_as(tropisd, ("ztunnel", NODE_PROXY_TYPES), ("istio-system", "ztunnel-a", "ztunnel"))
}

/// Addresses that are asked for besides.
type Asked = watch::Receiver<BTreeSet<Arc<str>>>;

fn follow_as(tropisd: &Tropisd, kind: (&'static str, &'static [ResourceType]), pod: (&str, &str, &str)) -> Followed {
    follow_asking(tropisd, kind, pod, None)
}

fn follow_asking(
    tropisd: &Tropisd,
    (role, types): (&'static str, &'static [ResourceType]),
    (namespace, pod, account): (&str, &str, &str),
    callers: Option<Asked>,
) -> Followed {
    let view: Arc<Mutex<View>> = Arc::default();
    let (sender, status) = watch::channel(Status::default());
    let config = ClientConfig {
        role,
        types,
        address: "10.244.1.9".parse().unwrap(),
        pod_name: pod.into(),
        pod_namespace: namespace.into(),
        node_name: "a".into(),
        cluster_id: "Kubernetes".into(),
        metadata: Default::default(),
        headers: Vec::new(),
        counters: Default::default(),
        callers,
    };
    let endpoint = ControlEndpoint {
        address: tropisd.addresses[0].to_string(),
        root: RootSource::File(tropisd.path("root-cert.pem")),
        server_name: Some("istiod.istio-system.svc".into()),
    };
    let token = TokenSource::Literal(tropisd.token(namespace, pod, account, "a"));
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
    tropisd.apply("cluster/shop-thief.yaml", &waypoint_pod("gw", "thief", "other-1").to_string());
    tropisd.apply("cluster/shop-gw-1.yaml", &waypoint_pod("gw", "gw-1", "gw-1").to_string());
    let own = tropisd.token("shop", "gw-1", "gw", "a");
    let issued = tropisd.until("a certificate", async || tropisd.certify(Some(&own), Ask::default()).await.ok()).await;
    assert_eq!(issued.name(), "spiffe://cluster.local/ns/shop/sa/gw");
    let thief = tropisd.token("shop", "thief", "gw", "a");
    let refused = tropisd.certify(Some(&thief), Ask::default()).await.unwrap_err();
    assert!(refused.message().contains("that of a waypoint"), "{refused}");

    let (view, mut status, _stop) = follow(&tropisd, "gw", "gw-1");
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

#[tokio::test]
async fn waypoints_are_told_to_log_as_tropisd_is_set() {
    let tropisd = Tropisd::start(&["--access-log", "TEXT", "--access-log-format", "%RESPONSE_CODE% %REQ(:PATH)%"]);
    tropisd.ready().await;
    tropisd.apply("objects/gateway.yaml", GATEWAY);
    tropisd.apply("cluster/shop-gw-1.yaml", &waypoint_pod("gw", "gw-1", "gw-1").to_string());
    let own = tropisd.token("shop", "gw-1", "gw", "a");
    tropisd.until("a certificate", async || tropisd.certify(Some(&own), Ask::default()).await.ok()).await;
    let (view, mut status, _stop) = follow(&tropisd, "gw", "gw-1");
    tokio::time::timeout(std::time::Duration::from_secs(20), status.wait_for(Status::synced)).await.unwrap().unwrap();
    let told = view.lock().unwrap().waypoint("shop/gw").unwrap().access_log.clone();
    assert_eq!(told, Some(AccessLogFormat::Text(Some("%RESPONSE_CODE% %REQ(:PATH)%".into()))));
    let settings = tropisd.debug("/debug/settings").await;
    assert_eq!(settings["accessLog"], serde_json::json!({"text": "%RESPONSE_CODE% %REQ(:PATH)%"}));
}

#[tokio::test]
async fn a_waypoint_is_told_who_calls_when_it_asks_with_the_labels_that_its_routes_ask_for() {
    let tropisd = Tropisd::start(&[]);
    tropisd.ready().await;
    tropisd.apply("objects/gateway.yaml", GATEWAY);
    tropisd.apply("cluster/shop-gw-1.yaml", &waypoint_pod("gw", "gw-1", "gw-1").to_string());
    let own = tropisd.token("shop", "gw-1", "gw", "a");
    tropisd.until("a certificate", async || tropisd.certify(Some(&own), Ask::default()).await.ok()).await;
    let (asks, asked) = watch::channel(BTreeSet::new());
    let kind = ("waypoint", WAYPOINT_TYPES);
    let (view, mut status, _stop) = follow_asking(&tropisd, kind, ("shop", "gw-1", "gw"), Some(asked));
    tokio::time::timeout(std::time::Duration::from_secs(20), status.wait_for(Status::synced)).await.unwrap().unwrap();
    let named = |name: &str| -> Option<Arc<Workload>> {
        let view = view.lock().unwrap();
        view.workloads().find(|workload| &*workload.name == name).cloned()
    };
    assert!(named("cart").is_some() && named("web").is_none() && named("old").is_none(), "its endpoints and nobody else");

    asks.send_modify(|asked| _ = asked.insert("/10.244.2.2".into()));
    let web = tropisd.until("the caller", async || named("web")).await;
    assert_eq!((web.identity.to_string().as_str(), web.labels.len()), ("spiffe://cluster.local/ns/shop/sa/web", 0));
    assert!(named("old").is_none());
    tropisd.apply("objects/route.yaml", &ROUTE.replace("http: [{", "http: [{match: [{sourceLabels: {app: web}}], "));
    let labelled = async || named("web").filter(|web| web.labels == [("app".into(), "web".into())].into());
    tropisd.until("the label that a route asks for", labelled).await;
    assert!(named("old").is_none(), "a route that asks for labels brings nobody else");
    tropisd.delete("cluster/shop-web.yaml");
    tropisd.until("that it is gone", async || named("web").is_none().then_some(())).await;
}

const ROUTED: &str = "
apiVersion: v1
kind: Service
metadata: {name: paid, namespace: shop}
spec: {clusterIP: 10.96.0.77, selector: {app: cart}, ports: [{name: http, port: 80, targetPort: 8080}]}
";
const ROUTE: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: paid, namespace: shop}
spec: {hosts: [paid], http: [{route: [{destination: {host: paid}}]}]}
";
const AUTOMATIC: &str = "automatic-waypoint";

/// Whether traffic to Service `paid` goes through a waypoint, as a node proxy has it.
fn attached(view: &Arc<Mutex<View>>) -> bool {
    let view = view.lock().unwrap();
    view.services().any(|service| &*service.name == "paid" && service.waypoint.is_some())
}

#[tokio::test]
async fn a_namespace_that_needs_a_waypoint_gets_one_and_loses_it_when_it_needs_it_no_more() {
    let tropisd = Tropisd::start(&["--waypoint-drain", "1"]);
    tropisd.ready().await;
    let (nodes, _nodes_status, _nodes_stop) = follow_node(&tropisd);
    tropisd.apply("objects/paid.yaml", ROUTED);
    tropisd.until("the service", async || nodes.lock().unwrap().services().any(|own| &*own.name == "paid").then_some(())).await;
    assert!(!reported(&tropisd).contains(AUTOMATIC), "nothing needs it");

    tropisd.apply("objects/route.yaml", ROUTE);
    for kind in ["Gateway", "ServiceAccount", "Deployment", "Service"] {
        let there = async || reported(&tropisd).lines().any(|line| line.contains("kind") && line.contains(kind)).then_some(());
        tropisd.until(kind, there).await;
    }
    let told = async || tropisd.debug("/debug/findings").await.to_string().contains("TRP0019").then_some(());
    tropisd.until("a finding that says so", told).await;
    assert!(!attached(&nodes), "nothing goes through what does not run");

    tropisd.apply("cluster/shop-auto-1.yaml", &waypoint_pod(AUTOMATIC, "auto-1", "automatic-waypoint-1").to_string());
    let own = tropisd.token("shop", "auto-1", AUTOMATIC, "a");
    tropisd.until("a certificate", async || tropisd.certify(Some(&own), Ask::default()).await.ok()).await;
    let (view, _status, _stop) = follow(&tropisd, AUTOMATIC, "auto-1");
    tropisd.until("traffic through it", async || attached(&nodes).then_some(())).await;
    let hosts = || view.lock().unwrap().hosts().len();
    assert_eq!(hosts(), 1);

    // It is detached first, and knows what it carries until it is gone.
    tropisd.delete("objects/route.yaml");
    tropisd.until("traffic past it", async || (!attached(&nodes)).then_some(())).await;
    assert!(reported(&tropisd).contains("leaving") && reported(&tropisd).contains("Deployment"));
    assert_eq!(hosts(), 1, "for connections that are under way");
    // Its pods end first, and the rest stands until they have.
    let stops = async || (reported(&tropisd).contains("stopping") && !reported(&tropisd).contains("Deployment")).then_some(());
    tropisd.until("its Deployment to be taken away", stops).await;
    assert!(reported(&tropisd).contains("ServiceAccount"));
    tropisd.delete("cluster/shop-auto-1.yaml");
    tropisd.until("its end", async || (!reported(&tropisd).contains(AUTOMATIC)).then_some(())).await;
}

/// The waypoint that traffic to a Service goes through, as a node proxy has it.
fn through(view: &Arc<Mutex<View>>, service: &str) -> Option<String> {
    let view = view.lock().unwrap();
    let own = view.services().find(|own| &*own.name == service)?;
    Some(own.waypoint.as_ref()?.destination.to_string())
}

/// A pod of an automatic waypoint, which acknowledges what it is told.
async fn serve(tropisd: &Tropisd, gateway: &str, address: &str) -> Followed {
    let mut pod = waypoint_pod(gateway, gateway, &format!("{gateway}-1"));
    pod["status"]["podIP"] = address.into();
    pod["status"]["podIPs"] = json!([{ "ip": address }]);
    tropisd.apply(&format!("cluster/shop-{gateway}.yaml"), &pod.to_string());
    let own = tropisd.token("shop", gateway, gateway, "a");
    tropisd.until("a certificate", async || tropisd.certify(Some(&own), Ask::default()).await.ok()).await;
    follow(tropisd, gateway, gateway)
}

/// How far an automatic waypoint is.
fn mark(tropisd: &Tropisd, gateway: &str) -> Option<String> {
    let objects = snapshot::of_state(tropisd.folder.path()).objects;
    let own = objects.iter().find(|object| object.reference() == ObjectRef::new(Kind::Gateway, "shop", gateway))?;
    own.label("tropis.io/automatic-waypoint").map(str::to_owned)
}

/// Whether all of an automatic waypoint is there, or nothing of it: it should be gone or come as a whole.
fn stands(tropisd: &Tropisd, gateway: &str) -> Option<bool> {
    let objects = snapshot::of_state(tropisd.folder.path()).objects;
    let is_there = |kind: &Kind| objects.iter().any(|object| object.reference() == ObjectRef::new(*kind, "shop", gateway));
    match [Kind::Gateway, Kind::ServiceAccount, Kind::Deployment, Kind::Service].iter().filter(|kind| is_there(kind)).count() {
        0 => Some(false),
        4 => Some(true),
        _ => None,
    }
}

#[tokio::test]
async fn by_account_waypoints_come_and_go_each_by_itself_and_give_way_to_the_namespaces() {
    let tropisd = Tropisd::start(&["--automatic-waypoint-scope", "service-account", "--waypoint-drain", "1"]);
    tropisd.ready().await;
    let (nodes, _nodes_status, _nodes_stop) = follow_node(&tropisd);
    for (service, address, app) in [("paid", "10.96.0.77", "cart"), ("front", "10.96.0.78", "web")] {
        let routed = ROUTED.replace("paid", service).replace("10.96.0.77", address).replace("cart", app);
        tropisd.apply(&format!("objects/{service}.yaml"), &routed);
        tropisd.apply(&format!("objects/{service}-route.yaml"), &ROUTE.replace("paid", service));
    }
    let [cart, web] = ["automatic-waypoint-cart", "automatic-waypoint-web"];
    let at = |gateway: &str| Some(format!("shop/{gateway}.shop.svc.cluster.local"));
    for gateway in [cart, web] {
        tropisd.until(gateway, async || stands(&tropisd, gateway).filter(|stands| *stands)).await;
        let told =
            async || tropisd.debug("/debug/findings").await.to_string().contains(&format!("Gateway shop/{gateway} was made")).then_some(());
        tropisd.until("a finding that says so", told).await;
    }
    assert_eq!((stands(&tropisd, AUTOMATIC), through(&nodes, "paid"), through(&nodes, "front")), (Some(false), None, None));

    let (of_cart, _cart_status, _cart_stop) = serve(&tropisd, cart, "10.244.1.9").await;
    tropisd.until("traffic through the first", async || (through(&nodes, "paid") == at(cart)).then_some(())).await;
    assert_eq!(through(&nodes, "front"), None, "the other does not run");
    let (_of_web, _web_status, _web_stop) = serve(&tropisd, web, "10.244.1.10").await;
    tropisd.until("traffic through the other", async || (through(&nodes, "front") == at(web)).then_some(())).await;
    assert_eq!(
        of_cart.lock().unwrap().hosts().map(|host| host.name.hostname.to_string()).collect::<Vec<_>>(),
        ["paid.shop.svc.cluster.local"]
    );
    for gateway in [cart, web] {
        let bound = format!("Successfully attached to waypoint shop/{gateway}");
        tropisd.until(&bound, async || reported(&tropisd).contains(&bound).then_some(())).await;
    }

    // What needed one goes, and with it that one alone.
    tropisd.delete("objects/front-route.yaml");
    tropisd.until("traffic past it", async || through(&nodes, "front").is_none().then_some(())).await;
    tropisd.until("its Deployment to be taken away", async || stands(&tropisd, web).is_none().then_some(())).await;
    tropisd.delete(&format!("cluster/shop-{web}.yaml"));
    tropisd.until("its end", async || (stands(&tropisd, web) == Some(false)).then_some(())).await;
    assert_eq!((stands(&tropisd, cart), through(&nodes, "paid")), (Some(true), at(cart)));

    // The namespace's takes its place once it is ready; there is no moment without one.
    let labels = json!({"istio.io/dataplane-mode": "ambient", "tropis.io/automatic-waypoint-scope": "namespace"});
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "uid": "ns-2", "labels": labels}});
    tropisd.apply("objects/shop.yaml", &namespace.to_string());
    let moves = async |what: &str, to: &dyn Fn() -> bool| {
        let done = async || {
            assert!(through(&nodes, "paid").is_some(), "a moment without a waypoint: {what}");
            to().then_some(())
        };
        tropisd.until(what, done).await;
    };
    moves("the namespace's", &|| stands(&tropisd, AUTOMATIC) == Some(true)).await;
    assert_eq!((stands(&tropisd, cart), through(&nodes, "paid")), (Some(true), at(cart)), "it does not run yet");
    let (_of_all, _all_status, _all_stop) = serve(&tropisd, AUTOMATIC, "10.244.1.11").await;
    moves("traffic through the namespace's", &|| through(&nodes, "paid") == at(AUTOMATIC)).await;
    moves("the Deployment of the account's to be taken away", &|| stands(&tropisd, cart).is_none()).await;
    tropisd.delete(&format!("cluster/shop-{cart}.yaml"));
    moves("its end", &|| stands(&tropisd, cart) == Some(false)).await;
    assert_eq!(stands(&tropisd, AUTOMATIC), Some(true));
}

#[tokio::test]
async fn a_service_that_scales_to_nothing_and_back_keeps_its_accounts_waypoint_whoever_restarts() {
    let tropisd = Tropisd::start(&["--automatic-waypoint-scope", "service-account", "--waypoint-drain", "1"]);
    tropisd.ready().await;
    let (nodes, _nodes_status, _nodes_stop) = follow_node(&tropisd);
    tropisd.apply("objects/paid.yaml", ROUTED);
    tropisd.apply("objects/route.yaml", ROUTE);
    let cart = "automatic-waypoint-cart";
    let (_view, _status, _stop) = serve(&tropisd, cart, "10.244.1.9").await;
    tropisd.until("traffic through it", async || through(&nodes, "paid")).await;
    tropisd.until("its binding", async || reported(&tropisd).contains("Successfully attached").then_some(())).await;

    let pod = std::fs::read_to_string(tropisd.path("cluster/shop-cart.yaml")).unwrap();
    let has_pod = || nodes.lock().unwrap().workloads().any(|workload| &*workload.name == "cart");
    let stays = |tropisd: &Tropisd| {
        assert!(through(&nodes, "paid").is_some_and(|waypoint| waypoint.contains(cart)));
        assert_eq!((stands(tropisd, cart), mark(tropisd, cart).as_deref()), (Some(true), Some("true")));
    };
    tropisd.delete("cluster/shop-cart.yaml");
    tropisd.until("its pods to be gone", async || (!has_pod()).then_some(())).await;
    // What comes to be written later says that all from before was written.
    let front = |text: &str| text.replace("paid", "front").replace("10.96.0.77", "10.96.0.78").replace("cart", "web");
    tropisd.apply("objects/front.yaml", &front(ROUTED));
    tropisd.apply("objects/front-route.yaml", &front(ROUTE));
    let web = "automatic-waypoint-web";
    tropisd.until("another's waypoint", async || mark(&tropisd, web)).await;
    stays(&tropisd);
    let tropisd = tropisd.kill().start();
    tropisd.ready().await;
    tropisd.delete("objects/front-route.yaml");
    tropisd.until("the other's to leave", async || (mark(&tropisd, web).as_deref() != Some("true")).then_some(())).await;
    stays(&tropisd);
    tropisd.apply("cluster/shop-cart.yaml", &pod);
    tropisd.until("a pod", async || has_pod().then_some(())).await;
    stays(&tropisd);
    assert_eq!(stands(&tropisd, AUTOMATIC), Some(false), "and no other was made");
}

#[tokio::test]
async fn a_tropisd_that_starts_anew_leaves_a_waypoint_in_use_alone() {
    let tropisd = Tropisd::start(&[]);
    tropisd.ready().await;
    let (nodes, _nodes_status, _nodes_stop) = follow_node(&tropisd);
    tropisd.apply("objects/paid.yaml", ROUTED);
    tropisd.apply("objects/route.yaml", ROUTE);
    tropisd.until("a Deployment", async || reported(&tropisd).contains("Deployment").then_some(())).await;
    tropisd.apply("cluster/shop-auto-1.yaml", &waypoint_pod(AUTOMATIC, "auto-1", "automatic-waypoint-1").to_string());
    let (_view, _status, _stop) = follow(&tropisd, AUTOMATIC, "auto-1");
    tropisd.until("traffic through it", async || attached(&nodes).then_some(())).await;
    tropisd.until("its binding", async || reported(&tropisd).contains("Successfully attached").then_some(())).await;

    let tropisd = tropisd.kill().start();
    let connected = async || {
        for part in ["Deployment", "automatic-waypoint.shop.svc.cluster.local", "Successfully attached to waypoint shop/automatic-waypoint"]
        {
            assert!(reported(&tropisd).contains(part), "{part} was taken away");
        }
        assert!(attached(&nodes));
        let clients = tropisd.debug("/debug/clients").await;
        let has = |audience: &str| {
            clients.as_array().unwrap().iter().any(|client| {
                let acknowledged = |state: &Value| state["acknowledged"].as_u64() > Some(0);
                client["audience"] == audience && client["subscriptions"].as_object().unwrap().values().all(acknowledged)
            })
        };
        (has("node proxies") && has("waypoint shop/automatic-waypoint")).then_some(())
    };
    tropisd.ready().await;
    tropisd.until("everybody to be back", connected).await;
}

#[tokio::test]
async fn no_waypoint_is_made_where_a_setting_or_a_label_says_so() {
    let tropisd = Tropisd::start(&["--automatic-waypoints", "Off"]);
    tropisd.ready().await;
    tropisd.apply("objects/paid.yaml", ROUTED);
    tropisd.apply("objects/route.yaml", ROUTE);
    let (nodes, _status, _stop) = follow_node(&tropisd);
    tropisd.until("the service", async || nodes.lock().unwrap().services().any(|own| &*own.name == "paid").then_some(())).await;
    assert!(!reported(&tropisd).contains(AUTOMATIC));
    let labels = |automatic: &str| {
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {
            "name": "shop", "uid": "ns-2", "labels": {"istio.io/dataplane-mode": "ambient", "tropis.io/automatic-waypoint": automatic},
        }})
    };
    tropisd.apply("objects/shop.yaml", &labels("true").to_string());
    tropisd.until("one for this namespace", async || reported(&tropisd).contains(AUTOMATIC).then_some(())).await;
}
