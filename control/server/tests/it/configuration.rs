//! Objects become configuration at the proxies; bad objects become findings; a restart disturbs nobody.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tropis_model::{
    address::NamespacedHostname,
    policy::PolicyKey,
    view::{Change, View},
    workload::{TunnelProtocol, WorkloadUid},
};
use tropis_tls::control::{self, ControlEndpoint, Credentials, RootSource, TokenSource};
use tropis_xds::client::{self, ClientConfig, ConnectError, Counters, Status};

use crate::harness::{PATIENCE, Tropisd, pod};

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop, uid: s1}
spec:
  selector: {app: cart}
  clusterIP: 10.96.0.20
  clusterIPs: [10.96.0.20, 'fd00:10:96::20']
  ipFamilies: [IPv4, IPv6]
  ports: [{name: http, port: 80, targetPort: 8080, protocol: TCP}]
";

const POLICY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web-only, namespace: shop, uid: p1, generation: 3}
spec:
  selector: {matchLabels: {app: cart}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]
";

/// A node proxy's view, kept up over restarts of the control plane.
struct Proxy {
    view: Arc<Mutex<View>>,
    told: Arc<Mutex<Vec<Change>>>,
    status: watch::Receiver<Status>,
    counters: Arc<Counters>,
    _stop: tokio_util::sync::DropGuard,
}

impl Proxy {
    fn start(tropisd: &Tropisd, address: SocketAddr) -> Self {
        let (view, told): (Arc<Mutex<View>>, Arc<Mutex<Vec<Change>>>) = Default::default();
        let (sender, status) = watch::channel(Status::default());
        let counters = Arc::new(Counters::default());
        let config = ClientConfig {
            role: "ztunnel",
            types: client::NODE_PROXY_TYPES,
            address: "10.88.0.11".parse().unwrap(),
            pod_name: "ztunnel-a".into(),
            pod_namespace: "istio-system".into(),
            node_name: "a".into(),
            cluster_id: "Kubernetes".into(),
            metadata: Default::default(),
            headers: Vec::new(),
            counters: counters.clone(),
            callers: None,
        };
        let token = tropisd.token("istio-system", "ztunnel-a", "ztunnel", "a");
        let endpoint = ControlEndpoint {
            address: address.to_string(),
            root: RootSource::File(tropisd.path("root-cert.pem")),
            server_name: Some("istiod.istio-system.svc".into()),
        };
        let credentials = Credentials::new(TokenSource::Literal(token), []).unwrap();
        let connect = move || {
            let channel = control::channel(&endpoint).map_err(ConnectError::from);
            let credentials = credentials.clone();
            async move { Ok(InterceptedService::new(channel?, credentials)) }
        };
        let (fed, heard) = (view.clone(), told.clone());
        let apply = move |changes: Vec<Change>| {
            heard.lock().unwrap().extend(changes.iter().cloned());
            let mut view = fed.lock().unwrap();
            *view = view.apply(changes);
        };
        let stop = CancellationToken::new();
        tokio::spawn(client::run(config, connect, apply, sender, stop.clone()));
        Self { view, told, status, counters, _stop: stop.drop_guard() }
    }

    fn view(&self) -> View {
        self.view.lock().unwrap().clone()
    }

    async fn until(&mut self, what: impl Fn(&Status) -> bool) {
        tokio::time::timeout(PATIENCE, self.status.wait_for(|status| what(status))).await.unwrap().unwrap();
    }
}

fn uid(name: &str) -> WorkloadUid {
    WorkloadUid(format!("Kubernetes//Pod/shop/{name}").into())
}

#[tokio::test]
async fn a_proxy_sees_the_mesh_and_follows_it() {
    let tropisd = Tropisd::start(&[]);
    for address in tropisd.addresses {
        let mut proxy = Proxy::start(&tropisd, address);
        proxy.until(Status::synced).await;
        let view = proxy.view();
        let cart = view.workload(&uid("cart")).unwrap();
        assert_eq!((cart.tunnel_protocol, &*cart.node), (TunnelProtocol::Hbone, "a"));
        let old = view.workload(&WorkloadUid("Kubernetes//Pod/plain/old".into())).unwrap();
        assert_eq!(old.tunnel_protocol, TunnelProtocol::None, "no redirector has captured it");
    }

    let mut proxy = Proxy::start(&tropisd, tropisd.addresses[0]);
    proxy.until(Status::synced).await;
    tropisd.apply("objects/service.yaml", SERVICE);
    let name = NamespacedHostname { namespace: "shop".into(), hostname: "cart.shop.svc.cluster.local".into() };
    tropisd.until("the service", async || proxy.view().service(&name).cloned()).await;
    tropisd.until("its endpoint", async || proxy.view().endpoints(&name).next().map(|_| ())).await;
    assert!(proxy.view().service_at("", "fd00:10:96::20".parse().unwrap(), "shop").is_some());

    tropisd.apply("objects/policy.yaml", POLICY);
    let key = PolicyKey("shop/web-only".into());
    let selected = async || {
        let view = proxy.view();
        let selected = view.workload(&uid("cart"))?.authorization_policies.contains(&key.0);
        // The policy is there before a workload names it, at every moment.
        assert!(!selected || view.policy(&key).is_some());
        selected.then_some(())
    };
    tropisd.until("the policy", selected).await;

    tropisd.delete("objects/policy.yaml");
    tropisd.until("its removal", async || proxy.view().policy(&key).is_none().then_some(())).await;
    assert!(!proxy.view().workload(&uid("cart")).unwrap().authorization_policies.contains(&key.0));
    tropisd.apply("cluster/shop-new.yaml", &pod("shop", "new", "b", "web", "10.244.2.9").to_string());
    tropisd.until("the new pod", async || proxy.view().workload(&uid("new")).cloned()).await;
    tropisd.delete("cluster/shop-new.yaml");
    tropisd.until("its end", async || proxy.view().workload(&uid("new")).is_none().then_some(())).await;
    tropisd.until("every proxy's word", async || tropisd.debug("/debug/live").await["live"].as_bool().filter(|live| *live)).await;
}

#[tokio::test]
async fn a_killed_control_plane_comes_back_with_its_root_and_disturbs_nobody() {
    let tropisd = Tropisd::start(&[]);
    tropisd.apply("objects/service.yaml", SERVICE);
    let mut proxy = Proxy::start(&tropisd, tropisd.addresses[0]);
    proxy.until(Status::synced).await;
    let name = NamespacedHostname { namespace: "shop".into(), hostname: "cart.shop.svc.cluster.local".into() };
    tropisd.until("the service", async || proxy.view().service(&name).cloned()).await;
    tropisd.until("every proxy's word", async || tropisd.debug("/debug/live").await["live"].as_bool().filter(|live| *live)).await;
    let (root, versions) = (tropisd.root_pem(), proxy.status.borrow().versions.clone());
    proxy.told.lock().unwrap().clear();

    let stopped = tropisd.kill();
    proxy.until(|status| !status.connected).await;
    assert!(proxy.view().workload(&uid("cart")).is_some(), "what was told stays in force");
    // While it was away, a pod appeared.
    stopped.apply("cluster/shop-new.yaml", &pod("shop", "new", "b", "web", "10.244.2.9").to_string());
    let tropisd = stopped.start();
    proxy.until(|status| status.connected && status.versions != versions).await;
    tropisd.until("the new pod", async || proxy.view().workload(&uid("new")).cloned()).await;
    assert_eq!(tropisd.root_pem(), root);
    let told = proxy.told.lock().unwrap().clone();
    let [Change::Workload(new)] = told.as_slice() else { panic!("only what changed is told: {told:?}") };
    assert_eq!(new.uid, uid("new"));
}

#[tokio::test]
async fn bad_objects_become_findings_and_the_rest_goes_on() {
    let tropisd = Tropisd::start(&[]);
    let mut proxy = Proxy::start(&tropisd, tropisd.addresses[0]);
    proxy.until(Status::synced).await;
    tropisd.apply("objects/policy.yaml", POLICY);
    let key = PolicyKey("shop/web-only".into());
    let good = tropisd.until("the policy", async || proxy.view().policy(&key).cloned()).await;

    tropisd.apply("objects/policy.yaml", &POLICY.replace("principals:", "principles:"));
    tropisd.apply("objects/half.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: ");
    let route =
        "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: r, namespace: shop}, spec: {hosts: [cart.example.com]}}";
    tropisd.apply("objects/route.yaml", route);
    let texts = async || {
        let findings = tropisd.debug("/debug/findings").await;
        let texts: Vec<String> = findings.as_array().unwrap().iter().map(|finding| finding["text"].as_str().unwrap().to_owned()).collect();
        let all = ["principles", "half.yaml", "ServiceEntry shop/r"].iter().all(|part| texts.iter().any(|text| text.contains(part)));
        all.then_some(texts)
    };
    tropisd.until("the findings", texts).await;
    assert_eq!(proxy.view().policy(&key), Some(&good), "the last good version stays in force");

    tropisd.apply("objects/policy.yaml", POLICY);
    tropisd.delete("objects/half.yaml");
    tropisd.delete("objects/route.yaml");
    tropisd.until("no findings", async || tropisd.debug("/debug/findings").await.as_array().unwrap().is_empty().then_some(())).await;
}

#[tokio::test]
async fn a_policy_carries_its_condition() {
    let tropisd = Tropisd::start(&[]);
    tropisd.ready().await;
    let with_method = POLICY.replace("rules: [{", "rules: [{to: [{operation: {methods: [GET]}}], ");
    tropisd.apply("objects/policy.yaml", &with_method);
    let reported = || {
        let mut found = String::new();
        let mut folders = vec![tropisd.path("reported/tropisd")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                match entry.file_type().unwrap().is_dir() {
                    true => folders.push(entry.path()),
                    false => found.push_str(&std::fs::read_to_string(entry.path()).unwrap_or_default()),
                }
            }
        }
        found
    };
    let contains = async |parts: &[&str]| {
        let text = reported();
        parts.iter().all(|part| text.contains(part)).then_some(())
    };
    tropisd.until("the refusal", async || contains(&["web-only", "ZtunnelAccepted", "False", "operation.methods"]).await).await;
    tropisd.apply("objects/policy.yaml", POLICY);
    tropisd.until("the acceptance", async || contains(&["ZtunnelAccepted", "True", "observedGeneration"]).await).await;
    tropisd.delete("objects/policy.yaml");
    tropisd.until("the withdrawal", async || (!reported().contains("web-only")).then_some(())).await;
}

#[tokio::test]
async fn a_connection_closed_for_its_age_is_a_routine_matter() {
    let tropisd = Tropisd::start(&["--max-connection-age", "1"]);
    let mut proxy = Proxy::start(&tropisd, tropisd.addresses[0]);
    proxy.until(Status::synced).await;
    proxy.told.lock().unwrap().clear();
    for _ in 0..2 {
        proxy.until(|status| !status.connected).await;
        let failure = proxy.status.borrow().failure.clone().unwrap();
        assert!(failure.contains("old enough"), "{failure}");
        proxy.until(|status| status.connected).await;
    }
    tropisd.apply("cluster/shop-new.yaml", &pod("shop", "new", "b", "web", "10.244.2.9").to_string());
    tropisd.until("the new pod", async || proxy.view().workload(&uid("new")).cloned()).await;
    let told = proxy.told.lock().unwrap().clone();
    assert_eq!(told.len(), 1, "only what changed is told: {told:?}");
    let routine = proxy.counters.ended_by_reconnect.load(std::sync::atomic::Ordering::Relaxed);
    assert!(routine >= 2, "{:?}", proxy.counters);
}
