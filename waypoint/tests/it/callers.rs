//! Who calls from outside of what the waypoint is told: asked for, waited for where a route wants to know, and in metrics.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use http::Response;
use tropis_model::{
    route::{DirectResponse, PortProtocol, RequestMatch, RouteAction},
    service::AppProtocol,
    view::Change,
    workload::Workload,
};

use crate::world::{App, World, echo, fetch, full, get, host, identity, plain_host, route, run};

const REVIEWS: &str = "10.96.0.1:9080";
const BAGGAGE: &str = "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=said,service.name=said,service.version=v0";

/// The worlds of both families, with the address that callers have there.
fn worlds() -> [(World, IpAddr); 2] {
    ["127.0.0.1", "::1"].map(|text| {
        let address: IpAddr = text.parse().unwrap();
        (World::at(&std::net::SocketAddr::new(address, 0).to_string(), &[]), address)
    })
}

/// The caller's workload as the control plane knows it.
fn caller(account: &str, address: IpAddr, version: &str) -> Change {
    let mut workload = Workload::new(format!("Kubernetes//Pod/bank/{account}-1"), format!("{account}-1"), identity(account));
    workload.addresses = vec![address];
    workload.workload_name = format!("{account}-deployment").into();
    workload.canonical_name = account.into();
    workload.canonical_revision = version.into();
    workload.labels = [("team".into(), "sales".into())].into();
    Change::Workload(Arc::new(workload))
}

/// Waits until the waypoint asks for nothing but this address; then its name.
async fn asked(world: &World, address: IpAddr) -> Arc<str> {
    let mut names = world.shared.callers.names();
    let names = tokio::time::timeout(Duration::from_secs(10), names.wait_for(|names| !names.is_empty())).await.unwrap().unwrap().clone();
    let name: Arc<str> = format!("/{address}").into();
    assert_eq!(names, [name.clone()].into());
    name
}

/// The route for callers of team sales answers 201, the one for all others 202.
fn with_routes(world: &World) {
    let answer = |status| RouteAction::Respond(DirectResponse { status, body: Arc::default() });
    let sales = RequestMatch { source_labels: [("team".into(), "sales".into())].into(), ..RequestMatch::default() };
    let rules = vec![route("sales", vec![sales], answer(201)), route("rest", Vec::new(), answer(202))];
    world.service("reviews", "10.96.0.1", AppProtocol::Http11, host("reviews", PortProtocol::Http, rules, Vec::new()));
}

/// How many requests are counted with all of these labels.
fn counted(world: &World, labels: &[&str]) -> usize {
    let scrape = world.scrape();
    let lines = scrape.lines().filter(|line| line.starts_with("istio_requests_total{"));
    let counted = lines.filter(|line| labels.iter().all(|label| line.contains(label)));
    counted.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum()
}

/// Waits until this many requests are counted so: they are when their answer has gone out.
async fn until_counted(world: &World, labels: &[&str], count: usize) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while counted(world, labels) < count {
        assert!(Instant::now() < deadline, "{labels:?}: {}", world.scrape());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(counted(world, labels), count);
}

#[test]
fn a_caller_from_elsewhere_is_asked_for_and_named_in_metrics() {
    run(async {
        for (world, address) in worlds() {
            world.reviews();
            let app = world.app(|_| std::future::ready(Response::new(full("served")))).await;
            world.endpoint("reviews", "v1", &app);
            // Nobody answers: what the tunnel says of itself is told, and nothing waits.
            let started = Instant::now();
            let mut sender = world.http1_of("cart", REVIEWS, Some(BAGGAGE)).await;
            assert_eq!(fetch(&mut sender, get("/")).await.0, 200);
            assert!(started.elapsed() < Duration::from_millis(900), "it waited for {:?}", started.elapsed());
            until_counted(&world, &["source_workload=\"said\"", "source_app=\"said\"", "source_version=\"v0\""], 1).await;

            asked(&world, address).await;
            world.apply([caller("cart", address, "v7")]);
            assert_eq!(fetch(&mut sender, get("/")).await.0, 200);
            let labels = [
                "source_workload=\"cart-deployment\"",
                "source_canonical_service=\"cart\"",
                "source_app=\"cart\"",
                "source_version=\"v7\"",
                "source_cluster=\"Kubernetes\"",
                "source_principal=\"spiffe://cluster.local/ns/shop/sa/cart\"",
            ];
            until_counted(&world, &labels, 1).await;
        }
    });
}

#[test]
fn an_address_whose_workload_runs_as_another_names_nobody() {
    run(async {
        let (world, address) = (World::new(), "127.0.0.1".parse().unwrap());
        with_routes(&world);
        let mut sender = world.http1_of("cart", REVIEWS, Some("k8s.namespace.name=bank,k8s.deployment.name=said")).await;
        asked(&world, address).await;
        // The pod that had the address before: with it, the caller would be of team sales.
        world.apply([caller("stock", address, "v1")]);
        assert_eq!(fetch(&mut sender, get("/")).await.0, 202);
        until_counted(&world, &["source_workload=\"unknown\"", "source_app=\"unknown\"", "ns/shop/sa/cart"], 1).await;
        world.apply([Change::RemoveAddress("Kubernetes//Pod/bank/stock-1".into()), caller("cart", address, "v1")]);
        assert_eq!(fetch(&mut sender, get("/")).await.0, 201);
    });
}

#[test]
fn a_route_that_asks_for_labels_waits_for_who_calls() {
    run(async {
        for (world, address) in worlds() {
            with_routes(&world);
            let mut sender = world.http1_of("cart", REVIEWS, Some(BAGGAGE)).await;
            let first = tokio::task::spawn_local(async move { (fetch(&mut sender, get("/")).await.0, sender) });
            asked(&world, address).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert!(!first.is_finished(), "who calls is not known yet");
            world.apply([caller("cart", address, "v1")]);
            let (status, mut sender) = first.await.unwrap();
            assert_eq!(status, 201);
            assert_eq!(fetch(&mut sender, get("/")).await.0, 201);
        }
    });
}

#[test]
fn a_caller_that_stays_unknown_is_waited_for_once_and_matches_no_labels() {
    run(async {
        let world = World::new();
        with_routes(&world);
        let started = Instant::now();
        let mut sender = world.http1("cart", REVIEWS).await;
        assert_eq!(fetch(&mut sender, get("/")).await.0, 202);
        let waited = started.elapsed();
        assert!(waited >= Duration::from_millis(800) && waited < Duration::from_secs(5), "{waited:?}");
        let again = Instant::now();
        assert_eq!(fetch(&mut sender, get("/")).await.0, 202);
        let mut other = world.http1("cart", REVIEWS).await;
        assert_eq!(fetch(&mut other, get("/")).await.0, 202);
        assert!(again.elapsed() < Duration::from_millis(700), "it waited again, for {:?}", again.elapsed());
    });
}

#[test]
fn nobody_is_waited_for_at_an_address_that_is_nobodys() {
    run(async {
        let (world, address) = (World::new(), "127.0.0.1".parse().unwrap());
        with_routes(&world);
        let started = Instant::now();
        let mut sender = world.http1("cart", REVIEWS).await;
        let first = tokio::task::spawn_local(async move { fetch(&mut sender, get("/")).await.0 });
        let name = asked(&world, address).await;
        world.apply([Change::RemoveAddress(name)]);
        assert_eq!(first.await.unwrap(), 202);
        assert!(started.elapsed() < Duration::from_millis(900), "it waited for {:?}", started.elapsed());
    });
}

#[test]
fn a_connection_has_the_same_labels_when_it_ends_as_when_it_opened() {
    run(async {
        let (world, address) = (World::new(), "127.0.0.1".parse().unwrap());
        let target = echo().await;
        world.service("reviews", "10.96.0.1", AppProtocol::Tcp, {
            let mut host = plain_host("reviews");
            host.ports.values_mut().for_each(|port| port.protocol = PortProtocol::Tcp);
            host
        });
        world.endpoint("reviews", "v1", &App::elsewhere(target));
        let mut stream = world.tunnel_of("cart", REVIEWS, Some(BAGGAGE)).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"hi").await.unwrap();
        let mut read = [0; 2];
        tokio::io::AsyncReadExt::read_exact(&mut stream, &mut read).await.unwrap();
        asked(&world, address).await;
        world.apply([caller("cart", address, "v7")]);
        drop(stream);
        let deadline = Instant::now() + Duration::from_secs(10);
        let has = |name: &str, label: &str| world.scrape().lines().any(|line| line.starts_with(name) && line.contains(label));
        while !has("istio_tcp_connections_closed_total", "source_workload") {
            assert!(Instant::now() < deadline, "{}", world.scrape());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for name in ["istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total"] {
            assert!(has(name, "source_workload=\"said\"") && !has(name, "source_workload=\"cart-deployment\""), "{}", world.scrape());
        }
    });
}
