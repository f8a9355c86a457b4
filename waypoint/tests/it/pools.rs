//! Pools: limits that say UO, endpoints that are ejected and come back, connections that are reused or not.

use std::{
    cell::Cell,
    collections::BTreeMap,
    rc::Rc,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use http::Response;
use serde_json::json;
use tokio::sync::Notify;
use tropis_model::{
    pool::{Balancer, HashAlgorithm, HashKey, Limits, OutlierDetection, Pool},
    route::{PortProtocol, RouteAction},
    service::AppProtocol,
};

use crate::{
    log,
    world::{App, Body, Http1, Seen, World, fetch, forward, full, get, host, pool, route, run, says, to},
};

/// A world whose one pool is changed by `change`.
fn with_pool(change: impl FnOnce(&mut Pool)) -> World {
    with_workers(1, change)
}

fn with_workers(workers: usize, change: impl FnOnce(&mut Pool)) -> World {
    let world = World::at("127.0.0.1:0", &[("TROPIS_WORKERS", &workers.to_string())]);
    let mut changed = pool("reviews", None);
    change(&mut changed);
    let action = RouteAction::Forward(Box::new(forward(vec![to("reviews", None)])));
    let made = host("reviews", PortProtocol::Http, vec![route("default", Vec::new(), action)], vec![changed]);
    world.service("reviews", "10.96.0.1", AppProtocol::Http11, made);
    world
}

/// An application that answers when it is told to.
async fn waits(world: &World, told: &Rc<Notify>, waiting: &Rc<Cell<usize>>) -> App {
    let (told, waiting) = (told.clone(), waiting.clone());
    world
        .app(move |_| {
            let (told, waiting) = (told.clone(), waiting.clone());
            async move {
                let told = told.notified();
                waiting.set(waiting.get() + 1);
                told.await;
                Response::new(full("told"))
            }
        })
        .await
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[test]
fn max_requests_overflow_says_so() {
    run(async {
        let world = with_pool(|pool| pool.limits = Limits { max_requests: Some(1), ..Limits::default() });
        let (told, waiting) = (Rc::new(Notify::new()), Rc::default());
        let app = waits(&world, &told, &waiting).await;
        world.endpoint("reviews", "v1", &app);
        let mut first = world.http1("cart", "10.96.0.1:9080").await;
        let slow = tokio::task::spawn_local(async move { fetch(&mut first, get("/slow")).await });
        until("the first arrives", || waiting.get() == 1).await;
        let mut second = world.http1("cart", "10.96.0.1:9080").await;
        let response = second.send_request(get("/overflow/requests")).await.unwrap();
        assert_eq!((response.status().as_u16(), &response.headers()["x-envoy-overloaded"]), (503, &"true".parse().unwrap()));
        let line = log::wait_for(&[("path", "/overflow/requests")]).await;
        assert_eq!((&line["response_flags"], &line["reason"]), (&json!("UO"), &json!("limit_reached")));
        told.notify_waiters();
        assert_eq!(slow.await.unwrap().0, 200);
        assert!(world.scrape().contains("response_flags=\"UO\""));
    });
}

#[test]
fn requests_wait_for_a_connection_up_to_the_limit() {
    run(async {
        let limits = Limits { max_connections: Some(1), max_pending_requests: Some(1), ..Limits::default() };
        let world = with_pool(|pool| pool.limits = limits);
        let (told, waiting) = (Rc::new(Notify::new()), Rc::default());
        let app = waits(&world, &told, &waiting).await;
        world.endpoint("reviews", "v1", &app);
        let mut tasks = Vec::new();
        for _ in 0..2 {
            let mut sender = world.http1("cart", "10.96.0.1:9080").await;
            tasks.push(tokio::task::spawn_local(async move { fetch(&mut sender, get("/waits")).await }));
            until("the first arrives", || waiting.get() == 1).await;
        }
        let pending = || world.shared.pools.list()[0].current.state.counts.under_way().pending_requests;
        until("the second waits", || pending() == 1).await;
        let mut third = world.http1("cart", "10.96.0.1:9080").await;
        assert_eq!(fetch(&mut third, get("/overflow/pending")).await.0, 503);
        assert_eq!(log::wait_for(&[("path", "/overflow/pending")]).await["response_flags"], json!("UO"));
        told.notify_waiters();
        until("the second arrives", || waiting.get() == 2).await;
        told.notify_waiters();
        for task in tasks {
            assert_eq!(task.await.unwrap().0, 200);
        }
        assert_eq!(app.connections.get(), 1);
    });
}

#[test]
fn max_requests_per_connection_ends_keep_alive() {
    run(async {
        let world = with_pool(|pool| pool.limits.max_requests_per_connection = Some(2));
        let app = world.app(says("hello", &Seen::default())).await;
        world.endpoint("reviews", "v1", &app);
        let mut sender = world.http1("cart", "10.96.0.1:9080").await;
        for _ in 0..6 {
            assert_eq!(fetch(&mut sender, get("/")).await.0, 200);
        }
        assert_eq!(app.connections.get(), 3);
    });
}

#[test]
fn idle_connections_are_closed() {
    run(async {
        let world = with_pool(|pool| pool.limits.idle_timeout = Some(Duration::from_millis(50)));
        let app = world.app(says("hello", &Seen::default())).await;
        world.endpoint("reviews", "v1", &app);
        assert_eq!(world.get("/").await.0, 200);
        let connections = || world.shared.pools.list()[0].current.state.counts.under_way().connections;
        assert_eq!(connections(), 1);
        until("it closes", || connections() == 0).await;
    });
}

fn detection() -> OutlierDetection {
    OutlierDetection {
        consecutive_5xx: 3,
        consecutive_gateway_errors: 0,
        consecutive_local_origin_failures: 0,
        split_local_origin: false,
        error_statuses: Vec::new(),
        interval: Duration::from_millis(100),
        base_ejection_time: Duration::from_millis(300),
        max_ejection_percent: 100,
    }
}

/// An application that answers with the status that is set.
async fn answers(world: &World, status: &Rc<Cell<u16>>, served: &Rc<Cell<usize>>) -> App {
    let (status, served) = (status.clone(), served.clone());
    world
        .app(move |_| {
            served.set(served.get() + 1);
            let answer: Response<Body> = Response::builder().status(status.get()).body(full("")).unwrap();
            std::future::ready(answer)
        })
        .await
}

#[test]
fn a_replica_that_fails_is_ejected_and_returns_healed() {
    run(async {
        let world = with_pool(|pool| pool.outlier = Some(detection()));
        let (good, bad) = (Rc::new(Cell::new(200)), Rc::new(Cell::new(503)));
        let (good_served, bad_served) = (Rc::default(), Rc::default());
        let apps = [answers(&world, &good, &good_served).await, answers(&world, &bad, &bad_served).await];
        for app in &apps {
            world.endpoint("reviews", "v1", app);
        }
        let mut sender = world.http1("cart", "10.96.0.1:9080").await;
        let mut failed = 0;
        while failed < 3 {
            failed += usize::from(fetch(&mut sender, get("/")).await.0 == 503);
        }
        let ejected_at = Instant::now();
        for _ in 0..20 {
            assert_eq!(fetch(&mut sender, get("/")).await.0, 200);
        }
        if ejected_at.elapsed() < Duration::from_millis(300) {
            assert_eq!(bad_served.get(), 3, "it gets nothing while it is ejected");
        }
        bad.set(200);
        let deadline = Instant::now() + Duration::from_secs(10);
        while bad_served.get() == 3 {
            assert!(Instant::now() < deadline, "it never came back");
            assert_eq!(fetch(&mut sender, get("/")).await.0, 200);
        }
        assert!(ejected_at.elapsed() >= Duration::from_millis(300));
    });
}

#[test]
fn all_ejected_is_no_healthy_upstream() {
    run(async {
        let world = with_pool(|pool| pool.outlier = Some(OutlierDetection { base_ejection_time: Duration::from_secs(60), ..detection() }));
        let bad = Rc::new(Cell::new(500));
        let app = answers(&world, &bad, &Rc::default()).await;
        world.endpoint("reviews", "v1", &app);
        for _ in 0..3 {
            assert_eq!(world.get("/").await.0, 500);
        }
        assert_eq!(world.get("/ejected").await, (503, "no healthy upstream".into()));
        assert_eq!(log::wait_for(&[("path", "/ejected")]).await["response_flags"], json!("UH"));
    });
}

/// A connection to each of two workers, found by asking again and again from elsewhere.
async fn on_each_worker(world: &World) -> [Http1; 2] {
    static TURN: AtomicUsize = AtomicUsize::new(0);
    let mut found: BTreeMap<String, Http1> = BTreeMap::new();
    while found.len() < 2 {
        let turn = TURN.fetch_add(1, Ordering::Relaxed);
        assert!(turn < 1000, "all connections are served by {:?}", found.keys());
        let (account, path) = (format!("cart-{turn}"), format!("/which-worker/{turn}"));
        let mut sender = world.http1(&account, "10.96.0.1:9080").await;
        assert_eq!(fetch(&mut sender, get(&path)).await.0, 200);
        let line = log::wait_for(&[("path", &path)]).await;
        found.insert(log::text(&line[log::THREAD]), sender);
    }
    assert!(found.keys().eq(["worker-0", "worker-1"]), "{:?}", found.keys());
    found.into_values().collect::<Vec<_>>().try_into().unwrap()
}

#[test]
fn a_replica_that_one_worker_ejects_gets_nothing_from_the_other() {
    run(async {
        let detection =
            OutlierDetection { base_ejection_time: Duration::from_secs(600), interval: Duration::from_secs(600), ..detection() };
        let world = with_workers(2, |pool| pool.outlier = Some(detection));
        let (good, bad) = (Rc::new(Cell::new(200)), Rc::new(Cell::new(200)));
        let (good_served, bad_served) = (Rc::default(), Rc::default());
        for app in [answers(&world, &good, &good_served).await, answers(&world, &bad, &bad_served).await] {
            world.endpoint("reviews", "v1", &app);
        }
        let [mut one, mut two] = on_each_worker(&world).await;
        bad.set(503);
        let mut failed = 0;
        while failed < 3 {
            failed += usize::from(fetch(&mut one, get("/")).await.0 == 503);
        }
        let before = bad_served.get();
        for turn in 0..20 {
            assert_eq!(fetch(&mut two, get("/")).await.0, 200, "in turn {turn}");
        }
        assert_eq!(bad_served.get(), before);
    });
}

#[test]
fn a_request_on_one_worker_counts_for_the_other() {
    run(async {
        let world = with_workers(2, |pool| pool.limits.max_requests = Some(1));
        let (told, waiting) = (Rc::new(Notify::new()), Rc::<Cell<usize>>::default());
        let app = world
            .app({
                let (told, waiting) = (told.clone(), waiting.clone());
                move |request| {
                    let (told, waiting) = (told.clone(), waiting.clone());
                    async move {
                        if request.uri().path() == "/slow" {
                            waiting.set(waiting.get() + 1);
                            told.notified().await;
                        }
                        Response::new(full(""))
                    }
                }
            })
            .await;
        world.endpoint("reviews", "v1", &app);
        let [mut one, mut two] = on_each_worker(&world).await;
        let slow = tokio::task::spawn_local(async move { fetch(&mut one, get("/slow")).await.0 });
        until("it is under way", || waiting.get() == 1).await;
        assert_eq!(fetch(&mut two, get("/overflow/of-both")).await.0, 503);
        assert_eq!(log::wait_for(&[("path", "/overflow/of-both")]).await["response_flags"], json!("UO"));
        told.notify_one();
        assert_eq!(slow.await.unwrap(), 200);
        assert_eq!(fetch(&mut two, get("/")).await.0, 200);
    });
}

#[test]
fn a_cookie_leads_to_the_same_endpoint() {
    run(async {
        let key = HashKey::Cookie { name: "user".into(), path: Some("/".into()), ttl: Some(Duration::ZERO), attributes: Vec::new() };
        let world =
            with_pool(|pool| pool.balancer = Balancer::ConsistentHash { key, algorithm: HashAlgorithm::Ring { minimum_size: 1024 } });
        for text in ["one", "two", "three"] {
            let app = world.app(says(text, &Seen::default())).await;
            world.endpoint("reviews", "v1", &app);
        }
        let mut sender = world.http1("cart", "10.96.0.1:9080").await;
        let response = sender.send_request(get("/")).await.unwrap();
        let cookie = response.headers()["set-cookie"].to_str().unwrap().to_owned();
        assert!(cookie.starts_with("user=\"") && cookie.ends_with("\"; Path=/; HttpOnly"), "{cookie}");
        let (_, first) = crate::world::text(response).await;
        for _ in 0..5 {
            let mut request = get("/");
            request.headers_mut().insert("cookie", cookie.split(';').next().unwrap().parse().unwrap());
            assert_eq!(fetch(&mut sender, request).await.1, first);
        }
    });
}
