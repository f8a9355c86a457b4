//! Objects as users write them, compiled as the control plane compiles them and put in force in a waypoint: what a field does to real
//! requests. Namespace `shop` has the services `reviews`, `ratings` and `db` behind the waypoint; [`Mesh::with`] adds others elsewhere.

use std::{
    cell::RefCell,
    collections::HashMap,
    future::Future,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
};

use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::TcpListener, task::spawn_local};
use tropis_compile::{Compiler, Settings};
use tropis_crds::decode;
use tropis_model::{view::Change, workload::Workload};
use tropis_waypoint::app::Shared;

use crate::world::{App, Body, Seen, World, full, own_address, says};

/// Where every pod serves, whatever the service's port is.
const POD_PORT: u16 = 18_080;
/// The address of `reviews`.
pub(crate) const REVIEWS: &str = "10.96.0.1:9080";

/// A waypoint and the objects that it obeys.
pub(crate) struct Mesh {
    pub(crate) world: World,
    /// The heads of all requests that came to a pod.
    pub(crate) seen: Seen,
    compiler: Rc<RefCell<Compiler>>,
}

/// An answer, whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    /// A header's only value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// A request without body.
pub(crate) fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> Request<Body> {
    let mut builder = Request::builder().method(method).uri(path);
    if headers.iter().all(|(name, _)| *name != "host") {
        builder = builder.header("host", "reviews:9080");
    }
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(full("")).unwrap()
}

/// An object of Istio's.
fn object(group: &str, kind: &str, namespace: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": format!("{group}/v1"), "kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

/// A VirtualService.
pub(crate) fn virtual_service(namespace: &str, name: &str, spec: &Value) -> Value {
    object("networking.istio.io", "VirtualService", namespace, name, spec)
}

/// A DestinationRule.
pub(crate) fn destination_rule(namespace: &str, name: &str, spec: &Value) -> Value {
    object("networking.istio.io", "DestinationRule", namespace, name, spec)
}

/// An AuthorizationPolicy.
pub(crate) fn policy(name: &str, spec: &Value) -> Value {
    object("security.istio.io", "AuthorizationPolicy", "shop", name, spec)
}

/// A rule's answer by the waypoint itself, which tells the rules apart.
pub(crate) fn answer(text: &str) -> Value {
    json!({"status": 200, "body": {"string": text}})
}

/// A destination alone.
pub(crate) fn to(host: &str, subset: Option<&str>) -> Value {
    json!({"destination": {"host": host, "subset": subset}})
}

fn service(namespace: &str, name: &str, address: &str, ports: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
        "spec": {"clusterIP": address, "selector": {"app": name}, "ports": ports},
    })
}

fn pod(name: &str, labels: &Value, address: IpAddr, node: &str) -> Value {
    pod_in("shop", name, labels, address, node)
}

fn pod_in(namespace: &str, name: &str, labels: &Value, address: IpAddr, node: &str) -> Value {
    let account = &labels["app"];
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"nodeName": node, "serviceAccountName": account, "containers": []},
        "status": {"phase": "Running", "podIP": address.to_string(), "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

impl Mesh {
    /// The services without pods. The waypoint's own pod is on node `near`; `cart` calls from the address that tunnels come from.
    pub(crate) fn new() -> Self {
        let compiler = Rc::new(RefCell::new(Compiler::new(Settings::default())));
        let mesh = Self { world: World::new(), seen: Seen::default(), compiler };
        spawn_local(tell_of_callers(mesh.world.shared.clone(), mesh.compiler.clone()));
        let port = |name: &str, number: u16| json!({"name": name, "port": number, "targetPort": POD_PORT});
        let http = json!([port("http", 9080), port("http-admin", 9081)]);
        mesh.apply([
            json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": "shop", "labels": {"istio.io/dataplane-mode": "ambient", "istio.io/use-waypoint": "waypoint"}},
            }),
            json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "waypoint", "namespace": "shop"},
                "spec": {"gatewayClassName": "istio-waypoint", "listeners": [
                    {"name": "mesh", "port": 15008, "protocol": "HBONE", "allowedRoutes": {"namespaces": {"from": "All"}}},
                ]},
                "status": {"addresses": [{"type": "Hostname", "value": "waypoint.shop.svc.cluster.local"}]},
            }),
            service("shop", "reviews", "10.96.0.1", &http),
            service("shop", "ratings", "10.96.0.2", &http),
            service("shop", "db", "10.96.0.3", &json!([port("tcp", 5432), port("tls", 5433)])),
            service("shop", "waypoint", "10.96.0.4", &json!([{"name": "mesh", "port": 15008}])),
            node("near", "r1", "z1"),
            pod("waypoint-1", &json!({"app": "waypoint"}), own_address(), "near"),
            pod("cart-1", &json!({"app": "cart", "team": "sales"}), "127.0.0.1".parse().unwrap(), "near"),
        ]);
        mesh
    }

    /// Another namespace, whose service `app` at `address` goes through the waypoint.
    pub(crate) fn with(self, namespace: &str, app: &str, address: &str, port: u16) -> Self {
        let labels = json!({
            "istio.io/dataplane-mode": "ambient", "istio.io/use-waypoint": "waypoint", "istio.io/use-waypoint-namespace": "shop",
        });
        let ports = json!([{"name": "http", "port": port, "targetPort": POD_PORT}]);
        self.apply([
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}}),
            service(namespace, app, address, &ports),
        ]);
        self
    }

    /// A pod of such a service.
    pub(crate) async fn runs_in<F>(
        &self,
        namespace: &str,
        app: &str,
        version: &str,
        answer: impl Fn(Request<Incoming>) -> F + 'static,
    ) -> App
    where
        F: Future<Output = Response<Body>> + 'static,
    {
        let address = own_address();
        let running = self.world.app_at(SocketAddr::new(address, POD_PORT), answer).await;
        self.apply([pod_in(namespace, &pod_name(app, address), &json!({"app": app, "version": version}), address, "near")]);
        running
    }

    /// Applies objects, as `kubectl apply` does, and puts in force what becomes different.
    pub(crate) fn apply(&self, objects: impl IntoIterator<Item = Value>) {
        let mut compiler = self.compiler.borrow_mut();
        for value in objects {
            let (object, _) = decode(value.clone()).unwrap_or_else(|findings| panic!("{value}: {findings:?}"));
            compiler.apply(&Arc::new(object));
        }
        self.tell(&mut compiler);
    }

    /// Deletes an object of the namespace `shop`.
    pub(crate) fn delete(&self, kind: tropis_crds::Kind, name: &str) {
        let mut compiler = self.compiler.borrow_mut();
        compiler.remove(&tropis_crds::ObjectRef::new(kind, "shop", name));
        self.tell(&mut compiler);
    }

    fn tell(&self, compiler: &mut Compiler) {
        compiler.changes();
        for told in compiler.waypoints() {
            assert_eq!(told.gateway, ("shop".to_owned(), "waypoint".to_owned()));
            self.world.apply(told.changes.unwrap());
        }
    }

    /// The `http` rules of VirtualService `reviews`.
    pub(crate) fn routes(&self, http: &Value) {
        self.apply([virtual_service("shop", "reviews", &json!({"hosts": ["reviews"], "http": http}))]);
    }

    /// One `http` rule of VirtualService `reviews`, which sends on to `reviews` unless it says otherwise.
    pub(crate) fn route(&self, more: &Value) {
        let mut rule = json!({"route": [to("reviews", None)]});
        rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.routes(&json!([rule]));
    }

    /// DestinationRule `reviews` with subsets v1 and v2 and this policy.
    pub(crate) fn traffic_policy(&self, policy: &Value) {
        let subset = |name: &str| json!({"name": name, "labels": {"version": name}});
        let spec = json!({"host": "reviews", "subsets": [subset("v1"), subset("v2")], "trafficPolicy": policy});
        self.apply([destination_rule("shop", "reviews", &spec)]);
    }

    /// A pod of a service that answers with `text`, on a node.
    pub(crate) async fn says(&self, app: &str, version: &str, node: &str, text: &'static str) -> App {
        let answer = says(text, &self.seen);
        self.runs(app, version, node, answer).await
    }

    /// A pod of a service that answers so.
    pub(crate) async fn runs<F>(&self, app: &str, version: &str, node: &str, answer: impl Fn(Request<Incoming>) -> F + 'static) -> App
    where
        F: Future<Output = Response<Body>> + 'static,
    {
        let address = own_address();
        let running = self.world.app_at(SocketAddr::new(address, POD_PORT), answer).await;
        self.apply([pod(&pod_name(app, address), &json!({"app": app, "version": version}), address, node)]);
        running
    }

    /// A pod whose port is served by the test itself.
    pub(crate) async fn listens(&self, app: &str, version: &str) -> TcpListener {
        let address = own_address();
        let listener = TcpListener::bind((address, POD_PORT)).await.unwrap();
        self.apply([pod(&pod_name(app, address), &json!({"app": app, "version": version}), address, "near")]);
        listener
    }

    /// A pod whose port nothing listens on.
    pub(crate) fn is_dead(&self, app: &str, version: &str) -> IpAddr {
        let address = own_address();
        self.apply([pod(&pod_name(app, address), &json!({"app": app, "version": version}), address, "near")]);
        address
    }

    /// A pod that greets each TCP connection with `text` and then reads it to its end.
    pub(crate) async fn greets(&self, app: &str, version: &str, text: &'static str) {
        let listener = self.listens(app, version).await;
        spawn_local(async move {
            loop {
                let Ok((mut stream, _)) = listener.accept().await else { return };
                spawn_local(async move {
                    let _ = stream.write_all(text.as_bytes()).await;
                    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
                });
            }
        });
    }

    /// Sends a request of `cart` to `reviews`, on a connection of its own.
    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        self.send_to("cart", REVIEWS, request).await
    }

    /// Sends a request of an account of `shop` to an address.
    pub(crate) async fn send_to(&self, account: &str, address: &str, request: Request<Body>) -> Answer {
        let mut sender = self.world.http1(account, address).await;
        let (parts, body) = sender.send_request(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: parts.status.as_u16(), headers: parts.headers, body: String::from_utf8(body.to_vec()).unwrap() }
    }

    /// The body that `GET path` to `reviews` is answered with.
    pub(crate) async fn body(&self, path: &str) -> String {
        self.send(request("GET", path, &[])).await.body
    }

    /// How often each body is the answer to `GET /` of `reviews`, on one connection.
    pub(crate) async fn counts(&self, requests: usize) -> HashMap<String, usize> {
        let mut sender = self.world.http1("cart", REVIEWS).await;
        let mut counts = HashMap::new();
        for _ in 0..requests {
            let (_, body) = crate::world::fetch(&mut sender, request("GET", "/", &[])).await;
            *counts.entry(body).or_default() += 1;
        }
        counts
    }
}

/// Answers who calls, as the control plane does.
async fn tell_of_callers(shared: Arc<Shared>, compiler: Rc<RefCell<Compiler>>) {
    let mut names = shared.callers.names();
    while names.changed().await.is_ok() {
        let asked = names.borrow_and_update().clone();
        let compiler = compiler.borrow();
        let named = |workload: &Workload| workload.addresses.iter().any(|address| asked.contains(format!("/{address}").as_str()));
        let found = compiler.workloads().filter(|workload| named(workload));
        shared.apply(found.map(|workload| Change::Workload(compiler.as_caller(workload).clone())).collect());
    }
}

fn pod_name(app: &str, address: IpAddr) -> String {
    format!("{app}-{}", address.to_string().replace('.', "-"))
}

/// A node in a zone of a region.
pub(crate) fn node(name: &str, region: &str, zone: &str) -> Value {
    let labels = json!({"topology.kubernetes.io/region": region, "topology.kubernetes.io/zone": zone});
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}})
}

/// Whether a count is within 5 standard deviations of a share (in percent) of independent draws.
pub(crate) fn is_share(count: usize, of: usize, percent: f64) -> bool {
    let share = percent / 100.0;
    (count as f64 - of as f64 * share).abs() <= 5.0 * (of as f64 * share * (1.0 - share)).sqrt()
}
