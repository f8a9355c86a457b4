//! Client and server over real sockets: first sync, changes, refusals, reconnects.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{net::TcpListener, sync::watch, time::timeout};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Extensions,
    transport::{Channel, Endpoint, Server},
};
use tropis_model::{
    address::NamespacedHostname,
    identity::Identity,
    policy::{Action, Policy, PolicyKey, PolicyScope},
    pool::{Limits, Pool, PoolKey},
    route::{Host, HostPort, PortProtocol},
    view::{Change, View},
    waypoint::{Serves, Waypoint},
    workload::Workload,
};
use tropis_xds::{
    ResourceType,
    client::{self, ClientConfig, Counters, NODE_PROXY_TYPES, Status, WAYPOINT_TYPES},
    server::{Admitted, Audience, Clients, Discovery, Resources},
};

const PATIENCE: Duration = Duration::from_secs(20);

/// A server on a port of its own, stopped and started again at will.
struct Control {
    address: SocketAddr,
    resources: Resources,
    clients: Clients,
    banned: Arc<AtomicBool>,
    stop: CancellationToken,
    done: tokio::task::JoinHandle<()>,
}

impl Control {
    async fn start(address: SocketAddr, resources: Resources) -> Self {
        Self::start_for(Audience::NodeProxies, address, resources).await
    }

    /// One that takes every caller for one of `audience`.
    async fn start_for(audience: Audience, address: SocketAddr, resources: Resources) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (clients, stop) = (Clients::default(), CancellationToken::new());
        let banned = Arc::new(AtomicBool::new(false));
        let ban = banned.clone();
        let admit = move |_: &Extensions| {
            if ban.load(Ordering::Relaxed) {
                return Err(tonic::Status::unauthenticated("no longer"));
            }
            Ok(Admitted {
                client: "istio-system/z".into(),
                audience: audience.clone(),
                namespace: "istio-system".into(),
                service_account: "ztunnel".into(),
            })
        };
        let service = Discovery::new(resources.clone(), clients.clone(), admit, stop.clone()).into_service();
        let stopped = stop.clone().cancelled_owned();
        let done = tokio::spawn(async move {
            Server::builder().add_service(service).serve_with_incoming_shutdown(TcpListenerStream::new(listener), stopped).await.unwrap();
        });
        Self { address, resources, clients, banned, stop, done }
    }

    async fn stop(self) -> SocketAddr {
        self.stop.cancel();
        self.done.await.unwrap();
        self.address
    }

    /// Waits until every client acknowledged the present configuration.
    async fn live(&self) {
        let generation = self.resources.snapshot().unwrap().generation;
        let mut changes = self.clients.watch();
        let live = async {
            while self.clients.list().is_empty() || !self.clients.lagging(generation).is_empty() {
                changes.changed().await.unwrap();
            }
        };
        timeout(PATIENCE, live).await.unwrap();
    }
}

/// A client with the view that it feeds, each that it had in force, and all that it was told.
struct Proxy {
    view: Arc<Mutex<View>>,
    views: Arc<Mutex<Vec<View>>>,
    told: Arc<Mutex<Vec<Change>>>,
    status: watch::Receiver<Status>,
    counters: Arc<Counters>,
    stop: CancellationToken,
}

impl Proxy {
    fn start(address: SocketAddr, namespace: &str) -> Self {
        Self::start_as("ztunnel", NODE_PROXY_TYPES, address, namespace)
    }

    fn start_as(role: &'static str, types: &'static [ResourceType], address: SocketAddr, namespace: &str) -> Self {
        Self::start_asking(role, types, address, namespace, None)
    }

    /// One that asks for addresses besides.
    fn start_asking(
        role: &'static str,
        types: &'static [ResourceType],
        address: SocketAddr,
        namespace: &str,
        callers: Option<watch::Receiver<BTreeSet<Arc<str>>>>,
    ) -> Self {
        let (view, told): (Arc<Mutex<View>>, Arc<Mutex<Vec<Change>>>) = Default::default();
        let (sender, status) = watch::channel(Status::default());
        let (counters, stop) = (Arc::new(Counters::default()), CancellationToken::new());
        let config = ClientConfig {
            role,
            types,
            address: "127.0.0.1".parse().unwrap(),
            pod_name: "z".into(),
            pod_namespace: namespace.into(),
            node_name: "a".into(),
            cluster_id: "Kubernetes".into(),
            metadata: BTreeMap::new(),
            headers: vec![("x-test".into(), "1".into())],
            counters: counters.clone(),
            callers,
        };
        let connect = move || async move {
            let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
            Ok::<Channel, client::ConnectError>(endpoint.connect().await?)
        };
        let views: Arc<Mutex<Vec<View>>> = Default::default();
        let (fed, heard, all) = (view.clone(), told.clone(), views.clone());
        let apply = move |changes: Vec<Change>| {
            heard.lock().unwrap().extend(changes.iter().cloned());
            let mut view = fed.lock().unwrap();
            *view = view.apply(changes);
            all.lock().unwrap().push(view.clone());
        };
        tokio::spawn(client::run(config, connect, apply, sender, stop.clone()));
        Self { view, views, told, status, counters, stop }
    }

    async fn until(&mut self, what: impl Fn(&Status) -> bool) -> Status {
        timeout(PATIENCE, self.status.wait_for(|status| what(status))).await.unwrap().unwrap().clone()
    }

    fn workloads(&self) -> Vec<String> {
        let mut names: Vec<String> = self.view.lock().unwrap().workloads().map(|workload| workload.name.to_string()).collect();
        names.sort();
        names
    }

    fn forget_told(&self) -> usize {
        std::mem::take(&mut *self.told.lock().unwrap()).len()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn pod(name: &str) -> Change {
    Change::Workload(Arc::new(Workload::new(format!("k//Pod/ns/{name}"), name, Identity::new("cluster.local", "ns", "sa"))))
}

fn policy(name: &str) -> Change {
    Change::Policy(Arc::new(Policy {
        key: PolicyKey(format!("ns/{name}").into()),
        namespace: "ns".into(),
        scope: PolicyScope::Namespace,
        action: Action::Allow,
        rules: Vec::new(),
        dry_run: false,
    }))
}

#[tokio::test]
async fn a_client_syncs_follows_and_acknowledges() {
    for loopback in ["127.0.0.1:0", "[::1]:0"] {
        let control = Control::start(loopback.parse().unwrap(), Resources::new("i")).await;
        let mut proxy = Proxy::start(control.address, "istio-system");
        proxy.until(|status| status.connected).await;
        assert!(!proxy.status.borrow().synced(), "a table that is not open tells nothing");
        control.resources.publish(&[pod("a"), pod("b"), policy("p")]);
        let status = proxy.until(Status::synced).await;
        assert_eq!(&*status.versions[&ResourceType::Address], "i.1");
        assert_eq!(proxy.workloads(), ["a", "b"]);
        assert!(proxy.view.lock().unwrap().policy(&PolicyKey("ns/p".into())).is_some());
        control.live().await;

        control.resources.publish(&[pod("c"), Change::RemoveAddress("k//Pod/ns/a".into()), Change::RemovePolicy(PolicyKey("ns/p".into()))]);
        control.live().await;
        assert_eq!(proxy.workloads(), ["b", "c"]);
        assert!(proxy.view.lock().unwrap().policy(&PolicyKey("ns/p".into())).is_none());
        let client = &control.clients.list()[0];
        assert_eq!(client.node, "ztunnel~127.0.0.1~z.istio-system~istio-system.svc.cluster.local");
        control.stop().await;
    }
}

#[tokio::test]
async fn an_empty_mesh_makes_a_client_ready_too() {
    let control = Control::start(loopback(), Resources::new("i")).await;
    control.resources.publish([]);
    let mut proxy = Proxy::start(control.address, "istio-system");
    proxy.until(Status::synced).await;
    assert_eq!(proxy.forget_told(), 0);
}

#[tokio::test]
async fn what_is_held_survives_the_server_and_only_differences_come_after() {
    let control = Control::start(loopback(), Resources::new("first")).await;
    control.resources.publish(&[pod("a"), pod("b"), policy("p")]);
    let mut proxy = Proxy::start(control.address, "istio-system");
    proxy.until(Status::synced).await;
    control.live().await;
    assert_eq!(proxy.forget_told(), 3);
    let address = control.stop().await;
    let status = proxy.until(|status| !status.connected).await;
    assert!(status.synced() && status.failure.is_some());
    assert_eq!(proxy.workloads(), ["a", "b"]);

    // Another process, which has not read its objects yet: it must not take anything away.
    let control = Control::start(address, Resources::new("second")).await;
    proxy.until(|status| status.connected).await;
    assert_eq!(proxy.workloads(), ["a", "b"]);
    control.resources.publish(&[pod("a"), pod("c"), policy("p")]);
    control.live().await;
    proxy.until(|status| &*status.versions[&ResourceType::Address] == "second.1").await;
    assert_eq!(proxy.workloads(), ["a", "c"]);
    let told = proxy.told.lock().unwrap().clone();
    assert_eq!(told, [pod("c"), Change::RemoveAddress("k//Pod/ns/b".into())], "a and p were not sent again");
    let counted = proxy.counters.ended_by_connection_error.load(Ordering::Relaxed)
        + proxy.counters.ended_by_error.load(Ordering::Relaxed)
        + proxy.counters.ended_by_reconnect.load(Ordering::Relaxed)
        + proxy.counters.ended_completely.load(Ordering::Relaxed);
    assert!(counted >= 1);
}

#[tokio::test]
async fn a_refused_resource_is_named_to_the_server() {
    let control = Control::start(loopback(), Resources::new("i")).await;
    // A key that says another namespace than the policy itself: the client cannot file it.
    let Change::Policy(good) = policy("p") else { unreachable!() };
    let bad = Policy { namespace: "elsewhere".into(), ..Policy::clone(&good) };
    control.resources.publish(&[Change::Policy(Arc::new(bad)), policy("q"), pod("a")]);
    let mut proxy = Proxy::start(control.address, "istio-system");
    proxy.until(Status::synced).await;
    let mut changes = control.clients.watch();
    let rejected = timeout(PATIENCE, async {
        loop {
            let rejected =
                control.clients.list().into_iter().find_map(|mut client| client.subscriptions.remove(&ResourceType::Authorization));
            if let Some(state) = rejected.filter(|state| !state.rejected.is_empty()) {
                return state.rejected;
            }
            changes.changed().await.unwrap();
        }
    });
    let rejected = rejected.await.unwrap();
    assert_eq!(rejected.keys().collect::<Vec<_>>(), ["ns/p"]);
    assert!(rejected["ns/p"].contains("elsewhere/p"), "{rejected:?}");
    let refused = control.clients.refused(ResourceType::Authorization);
    assert_eq!(refused["ns/p"], ("istio-system/z".to_owned(), rejected["ns/p"].clone()));
    let generation = control.resources.snapshot().unwrap().generation;
    assert_eq!(control.clients.lagging(generation).len(), 1, "a refused change is not live");
    let view = proxy.view.lock().unwrap().clone();
    let stand_in = view.policy(&PolicyKey("ns/p".into())).unwrap();
    assert_eq!(stand_in.action, Action::Deny, "until it is good, it denies");
    assert!(view.policy(&PolicyKey("ns/q".into())).is_some());

    control.resources.publish(&[policy("p")]);
    control.live().await;
    assert_eq!(proxy.view.lock().unwrap().policy(&PolicyKey("ns/p".into())).unwrap().action, Action::Allow);
}

#[tokio::test]
async fn a_node_that_poses_as_another_is_turned_away() {
    let control = Control::start(loopback(), Resources::new("i")).await;
    control.resources.publish(&[pod("a")]);
    let mut proxy = Proxy::start(control.address, "shop");
    let status = proxy.until(|status| status.failure.as_ref().is_some_and(|failure| failure.contains("credentials prove"))).await;
    assert!(!status.synced());
    assert_eq!(proxy.forget_told(), 0);
}

#[tokio::test]
async fn many_changes_reach_a_client_in_few_messages() {
    let control = Control::start(loopback(), Resources::new("i")).await;
    control.resources.publish([]);
    let mut proxy = Proxy::start(control.address, "istio-system");
    proxy.until(Status::synced).await;
    control.live().await;
    for number in 0..500 {
        control.resources.publish(&[pod(&format!("p{number}"))]);
    }
    control.live().await;
    assert_eq!(proxy.workloads().len(), 500);
    let messages = proxy.counters.received[&ResourceType::Address].messages.load(Ordering::Relaxed);
    assert!(messages < 500, "{messages} messages");
}

#[tokio::test]
async fn who_lost_its_right_is_told_nothing_more() {
    let control = Control::start(loopback(), Resources::new("i")).await;
    control.resources.publish(&[pod("a")]);
    let mut proxy = Proxy::start(control.address, "istio-system");
    proxy.until(Status::synced).await;
    control.live().await;
    control.banned.store(true, Ordering::Relaxed);
    control.resources.publish(&[pod("b")]);
    proxy.until(|status| status.failure.as_ref().is_some_and(|failure| failure.contains("no longer"))).await;
    assert_eq!(proxy.workloads(), ["a"], "what it has stays");
    control.banned.store(false, Ordering::Relaxed);
    control.live().await;
    assert_eq!(proxy.workloads(), ["a", "b"]);
}

fn hostname(name: &str) -> NamespacedHostname {
    NamespacedHostname { namespace: "shop".into(), hostname: name.into() }
}

/// A host with a pool of itself; `percent` is the pool's panic threshold, of which 101 is refused.
fn host(name: &str, percent: u8) -> Change {
    let key = PoolKey { host: hostname(name), port: 80, subset: None };
    let pool = Pool {
        key: key.clone(),
        labels: [("app".into(), name.into())].into(),
        balancer: Default::default(),
        locality: Default::default(),
        warmup: None,
        limits: Limits::default(),
        outlier: None,
        panic_threshold_percent: percent,
        upstream_version: Default::default(),
        tls: Default::default(),
    };
    let port = HostPort { protocol: PortProtocol::Http, http: Vec::new(), tls: Vec::new(), tcp: Vec::new() };
    let pools = [(key, Arc::new(pool))].into();
    Change::Host(Arc::new(Host { name: hostname(name), ports: [(80, port)].into(), policies: Vec::new(), pools }))
}

fn waypoint() -> Change {
    Change::Waypoint(Arc::new(Waypoint {
        key: "shop/waypoint".into(),
        service: hostname("waypoint"),
        serves: Serves::All,
        policies: Vec::new(),
        access_log: None,
        elsewhere: Default::default(),
    }))
}

#[tokio::test]
async fn a_waypoint_gets_its_own_table_and_names_the_one_host_that_it_refuses() {
    let audience = Audience::Waypoint("shop/waypoint".into());
    let control = Control::start_for(audience.clone(), loopback(), Resources::new("i")).await;
    let publish = |changes: &[Change]| {
        let mut step = control.resources.step();
        step.apply(&audience, changes);
        step.publish().generation
    };
    control.resources.publish(&[pod("for node proxies only"), policy("p")]);
    let mut proxy = Proxy::start_as("waypoint", WAYPOINT_TYPES, control.address, "istio-system");
    proxy.until(|status| status.connected).await;
    assert!(!proxy.status.borrow().synced(), "it waits for its own");
    let Change::Workload(labelled) = pod("a") else { unreachable!() };
    let labelled = Workload { labels: [("version".into(), "v1".into())].into(), ..Workload::clone(&labelled) };
    let generation = publish(&[Change::Workload(Arc::new(labelled)), waypoint(), host("web", 0), host("api", 0)]);
    proxy.until(Status::synced).await;
    control.live().await;
    assert_eq!(control.clients.everywhere(&audience, generation), Some(true));
    assert_eq!(control.clients.everywhere(&Audience::NodeProxies, generation), None, "no such client");
    assert_eq!(control.clients.list()[0].node, "waypoint~127.0.0.1~z.istio-system~istio-system.svc.cluster.local");
    let view = proxy.view.lock().unwrap().clone();
    assert_eq!(view.waypoint("shop/waypoint").map(|own| own.serves), Some(Serves::All));
    assert_eq!((view.hosts().len(), view.policies().len()), (2, 0));
    assert_eq!(proxy.workloads(), ["a"]);
    assert_eq!(view.workloads().next().unwrap().labels["version"], "v1".into());

    // One bad host: it is named, stays as it was, and holds up neither the others nor the workloads.
    proxy.forget_told();
    let generation = publish(&[host("web", 101), host("api", 50), pod("b")]);
    let mut changes = control.clients.watch();
    let refused = timeout(PATIENCE, async {
        loop {
            let refused = control.clients.refused(ResourceType::Host);
            if !refused.is_empty() {
                return refused;
            }
            changes.changed().await.unwrap();
        }
    });
    let refused = refused.await.unwrap();
    assert_eq!(refused.keys().collect::<Vec<_>>(), ["shop/web"]);
    assert_eq!(refused["shop/web"].1, "pool shop/web:80: panic_threshold_percent: 101 is not accepted (0 to 100)");
    assert_eq!(control.clients.everywhere(&audience, generation), Some(false));
    let view = proxy.view.lock().unwrap().clone();
    let threshold = |name: &str| view.host(&hostname(name)).unwrap().pools.values().next().unwrap().panic_threshold_percent;
    assert_eq!((threshold("web"), threshold("api")), (0, 50));
    assert_eq!(proxy.workloads(), ["a", "b"]);

    let generation = publish(&[Change::RemoveHost(hostname("web"))]);
    control.live().await;
    assert_eq!(control.clients.everywhere(&audience, generation), Some(true));
    assert!(proxy.view.lock().unwrap().host(&hostname("web")).is_none());
}

#[tokio::test]
async fn a_waypoint_that_comes_back_is_told_only_what_differs() {
    let audience = Audience::Waypoint("shop/waypoint".into());
    let table = |instance: &str, changes: &[Change]| {
        let resources = Resources::new(instance.to_owned());
        let mut step = resources.step();
        step.apply(&audience, changes);
        step.publish();
        resources
    };
    let first = table("first", &[pod("a"), waypoint(), host("web", 0), host("old", 0)]);
    let control = Control::start_for(audience.clone(), loopback(), first).await;
    let mut proxy = Proxy::start_as("waypoint", WAYPOINT_TYPES, control.address, "istio-system");
    proxy.until(Status::synced).await;
    control.live().await;
    assert_eq!(proxy.forget_told(), 4);
    let address = control.stop().await;
    proxy.until(|status| !status.connected).await;

    let second = table("second", &[pod("a"), pod("b"), waypoint(), host("web", 0), host("new", 0)]);
    let control = Control::start_for(audience.clone(), address, second).await;
    control.live().await;
    let told = proxy.told.lock().unwrap().clone();
    assert_eq!(told, [pod("b"), host("new", 0), Change::RemoveHost(hostname("old"))]);
}

/// Pod `a`, and a host that selects it, by a label that changes.
fn labelled(version: usize) -> [Change; 2] {
    let version: Arc<str> = format!("v{version}").into();
    let (Change::Workload(pod), Change::Host(mut web)) = (pod("a"), host("web", 0)) else { unreachable!() };
    let own = Arc::make_mut(&mut web);
    for pool in own.pools.values_mut() {
        Arc::make_mut(pool).labels = [("version".into(), version.clone())].into();
    }
    let pod = Workload { labels: [("version".into(), version)].into(), ..Workload::clone(&pod) };
    [Change::Workload(Arc::new(pod)), Change::Host(web)]
}

#[tokio::test]
async fn a_waypoint_never_has_labels_of_one_configuration_and_routes_of_another() {
    let audience = Audience::Waypoint("shop/waypoint".into());
    let table = |resources: &Resources, version: usize| {
        let mut step = resources.step();
        step.apply(&audience, &labelled(version));
        step.publish();
    };
    let first = Resources::new("first");
    let mut step = first.step();
    step.apply(&audience, &[waypoint()]);
    step.publish();
    table(&first, 0);
    let control = Control::start_for(audience.clone(), loopback(), first.clone()).await;
    let proxy = Proxy::start_as("waypoint", WAYPOINT_TYPES, control.address, "istio-system");
    control.live().await;
    for version in 1..100 {
        table(&first, version);
        if version % 7 == 0 {
            control.live().await;
        }
    }
    control.live().await;
    // The next process knows nothing of what this one told.
    let address = control.stop().await;
    let second = Resources::new("second");
    let mut step = second.step();
    step.apply(&audience, &[waypoint()]);
    step.apply(&audience, &labelled(100));
    step.publish();
    let control = Control::start_for(audience.clone(), address, second).await;
    control.live().await;
    let views = proxy.views.lock().unwrap().clone();
    let selects = |view: &View| {
        let web = view.host(&hostname("web")).unwrap();
        let pod = view.workloads().next().unwrap();
        assert!(web.pools.values().all(|pool| pool.labels == pod.labels), "{:?} are not {:?}", pod.labels, web.pools);
        pod.labels["version"].to_string()
    };
    let versions: Vec<String> = views.iter().map(selects).collect();
    assert_eq!((versions.first().unwrap().as_str(), versions.last().unwrap().as_str()), ("v0", "v100"));
    assert!(versions.len() > 10, "{versions:?}");
}

/// Waits until `what` holds for what the proxy was told.
async fn told(proxy: &Proxy, what: impl Fn(&[Change]) -> bool) {
    let waits = async {
        while !what(&proxy.told.lock().unwrap()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, waits).await.unwrap_or_else(|_| panic!("{:?}", proxy.told.lock().unwrap()));
}

#[tokio::test]
async fn a_waypoint_asks_for_callers_by_address_and_asks_again_on_the_next_stream() {
    for loopback in ["127.0.0.1:0", "[::1]:0"] {
        let audience = Audience::Waypoint("shop/waypoint".into());
        let Change::Workload(plain) = pod("caller") else { unreachable!() };
        let addresses = ["10.0.0.1", "fd00::1"].map(|address| address.parse().unwrap()).into();
        let caller = Change::Workload(Arc::new(Workload { addresses, ..Workload::clone(&plain) }));
        let table = |instance: &'static str, nodes: &[Change]| {
            let resources = Resources::new(instance);
            let mut step = resources.step();
            step.apply(&Audience::NodeProxies, nodes);
            step.apply(&audience, &[pod("own"), waypoint()]);
            step.publish();
            resources
        };
        let first = table("first", &[caller.clone(), pod("own"), pod("stranger")]);
        let control = Control::start_for(audience.clone(), loopback.parse().unwrap(), first).await;
        let (asks, asked) = watch::channel(BTreeSet::new());
        let mut proxy = Proxy::start_asking("waypoint", WAYPOINT_TYPES, control.address, "istio-system", Some(asked));
        proxy.until(Status::synced).await;
        assert_eq!(proxy.workloads(), ["own"]);
        proxy.forget_told();

        let name = |address: &str| -> Arc<str> { format!("/{address}").into() };
        asks.send_modify(|asked| asked.extend(["10.0.0.1", "fd00::1", "fd00::9"].map(name)));
        let nobody = Change::RemoveAddress(name("fd00::9"));
        told(&proxy, |told| told.contains(&caller) && told.contains(&nobody)).await;
        assert_eq!(proxy.forget_told(), 2, "one of them is told, though it was asked for by two addresses, and nobody else");
        let (view, ipv6) = (proxy.view.lock().unwrap().clone(), "fd00::1".parse().unwrap());
        assert_eq!(view.workload_at("", ipv6).map(|found| found.name.to_string()).as_deref(), Some("caller"));
        control.live().await;

        // Another control plane: what is held is not told again, what has changed is, and nobody asked anew.
        let address = control.stop().await;
        let control = Control::start_for(audience.clone(), address, table("second", &[caller.clone(), pod("own")])).await;
        told(&proxy, |told| told.contains(&nobody)).await;
        control.live().await;
        assert_eq!((proxy.forget_told(), proxy.workloads()), (1, vec!["caller".to_owned(), "own".to_owned()]));

        asks.send_modify(BTreeSet::clear);
        told(&proxy, |told| told == [Change::RemoveAddress("k//Pod/ns/caller".into())]).await;
        assert_eq!(proxy.workloads(), ["own"]);
        control.stop().await;
    }
}

#[tokio::test]
async fn a_node_proxy_that_asks_by_address_is_sent_away() {
    let control = Control::start(loopback(), Resources::new("i")).await;
    control.resources.publish(&[pod("a")]);
    let (_asks, asked) = watch::channel(BTreeSet::from([Arc::from("/10.0.0.1")]));
    let mut proxy = Proxy::start_asking("ztunnel", NODE_PROXY_TYPES, control.address, "istio-system", Some(asked));
    let status = proxy.until(|status| status.failure.is_some()).await;
    assert!(!status.synced() && proxy.workloads().is_empty(), "{status:?}");
}
