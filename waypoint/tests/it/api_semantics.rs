//! What is most often done wrongly with Istio's API, point by point, as real requests see it. The numbers are those of
//! `docs/guide/semantics.md`, which also names the tests of points that need no requests.

use std::{
    cell::Cell,
    rc::Rc,
    time::{Duration, Instant},
};

use http::Response;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tropis_crds::decode;

use crate::{
    api_mesh::{Mesh, REVIEWS, answer, is_share, policy, request, to, virtual_service},
    log,
    world::{App, Http1, fetch, full, run},
};

/// A pod of `reviews` that answers with the status that is set; how often it was asked.
async fn answers(mesh: &Mesh, version: &str, status: &Rc<Cell<u16>>) -> (App, Rc<Cell<usize>>) {
    let (status, asked) = (status.clone(), Rc::new(Cell::new(0)));
    let count = asked.clone();
    let app = mesh
        .runs("reviews", version, "near", move |_| {
            count.set(count.get() + 1);
            std::future::ready(Response::builder().status(status.get()).body(full("app")).unwrap())
        })
        .await;
    (app, asked)
}

async fn status(sender: &mut Http1) -> u16 {
    fetch(sender, request("GET", "/", &[])).await.0
}

#[test]
fn c01_routes_are_by_the_address_called_and_not_by_the_host_header() {
    run(async {
        let mesh = Mesh::new();
        mesh.routes(&json!([{"directResponse": answer("reviews")}]));
        mesh.apply([virtual_service("shop", "ratings", &json!({"hosts": ["ratings"], "http": [{"directResponse": answer("ratings")}]}))]);
        for host in ["ratings", "ratings.shop.svc.cluster.local", "elsewhere.example"] {
            assert_eq!(mesh.send(request("GET", "/", &[("host", host)])).await.body, "reviews");
        }
        assert_eq!(mesh.send_to("cart", "10.96.0.2:9080", request("GET", "/", &[("host", "reviews")])).await.body, "ratings");
    });
}

#[test]
fn c02_a_prefix_is_of_bytes_and_not_of_segments() {
    run(async {
        let mesh = Mesh::new();
        mesh.routes(
            &json!([{"match": [{"uri": {"prefix": "/foo"}}], "directResponse": answer("foo")}, {"directResponse": answer("rest")}]),
        );
        for (path, expected) in [("/foo", "foo"), ("/foo/bar", "foo"), ("/foobar", "foo"), ("/fo", "rest"), ("/a/foo", "rest")] {
            assert_eq!(mesh.body(path).await, expected, "{path}");
        }
    });
}

#[test]
fn c03_without_retries_two_more_tries_are_made_and_none_after_a_plain_503() {
    run(async {
        let mesh = Mesh::new();
        let failing = Rc::new(Cell::new(503));
        let (_app, asked) = answers(&mesh, "v1", &failing).await;
        for (rule, tries) in
            [(json!({}), 1), (json!({"retries": {"attempts": 3}}), 1), (json!({"retries": {"attempts": 3, "retryOn": "503"}}), 4)]
        {
            mesh.route(&rule);
            asked.set(0);
            assert_eq!(mesh.send(request("GET", "/", &[])).await.status, 503);
            assert_eq!(asked.get(), tries, "{rule}: attempts are tries after the first");
        }
        // Two endpoints that refuse connections and one that answers: two more tries always find it.
        mesh.is_dead("reviews", "v1");
        mesh.is_dead("reviews", "v1");
        failing.set(200);
        mesh.route(&json!({}));
        for _ in 0..12 {
            assert_eq!(mesh.send(request("GET", "/", &[])).await.status, 200);
        }
    });
}

#[test]
fn c04_no_timeout_without_one_and_a_routes_is_for_all_tries_and_not_retried() {
    run(async {
        let mesh = Mesh::new();
        let asked = Rc::new(Cell::new(0));
        let count = asked.clone();
        let _app = mesh
            .runs("reviews", "v1", "near", move |_| {
                count.set(count.get() + 1);
                std::future::pending::<Response<_>>()
            })
            .await;
        mesh.route(&json!({"timeout": "300ms", "retries": {"attempts": 50, "perTryTimeout": "80ms", "retryOn": "5xx", "backoff": "1ms"}}));
        let started = Instant::now();
        assert_eq!(mesh.send(request("GET", "/c04", &[])).await.status, 504);
        assert!((Duration::from_millis(300)..Duration::from_secs(3)).contains(&started.elapsed()), "{:?}", started.elapsed());
        assert!((2..=4).contains(&asked.get()), "{} tries of 80 ms in 300 ms", asked.get());
        assert_eq!(log::wait_for(&[("path", "/c04")]).await["response_flags"], json!("UT"));
        mesh.route(&json!({}));
        let view = mesh.world.shared.view.load();
        let routes = &view.host(&crate::world::name("reviews")).unwrap().ports[&9080].http;
        let tropis_model::route::RouteAction::Forward(forward) = &routes[0].action else { panic!("{routes:?}") };
        assert_eq!(forward.timeout, None);
    });
}

#[test]
fn c05_weights_are_shares_of_any_sum_and_a_single_ones_is_ignored() {
    run(async {
        let mesh = Mesh::new();
        mesh.traffic_policy(&Value::Null);
        let _apps = [mesh.says("reviews", "v1", "near", "v1").await, mesh.says("reviews", "v2", "near", "v2").await];
        let share = |subset: &str, weight: u32| json!({"destination": {"host": "reviews", "subset": subset}, "weight": weight});
        mesh.route(&json!({"route": [share("v2", 0)]}));
        assert_eq!(mesh.counts(5).await["v2"], 5);
        mesh.route(&json!({"route": [share("v1", 0), share("v2", 7)]}));
        assert_eq!(mesh.counts(50).await["v2"], 50);
        mesh.route(&json!({"route": [share("v1", 3), share("v2", 1)]}));
        let counts = mesh.counts(400).await;
        assert!(is_share(counts["v2"], 400, 25.0), "{counts:?}");
        let all_zero = json!({"hosts": ["reviews"], "http": [{"route": [share("v1", 0), share("v2", 0)]}]});
        assert!(decode(virtual_service("shop", "reviews", &all_zero)).is_err(), "nothing would get anything");
    });
}

#[test]
fn c06_no_rule_is_404_and_what_is_missing_empty_or_full_has_its_own_flag() {
    run(async {
        let mesh = Mesh::new();
        mesh.traffic_policy(&json!({"connectionPool": {"http": {"http2MaxRequests": 1}}}));
        let arrived = Rc::new(tokio::sync::Notify::new());
        let tell = arrived.clone();
        let _app = mesh
            .runs("reviews", "v1", "near", move |_| {
                tell.notify_one();
                std::future::pending::<Response<_>>()
            })
            .await;
        let rule = |path: &str, route: Value| json!({"match": [{"uri": {"exact": path}}], "route": [route]});
        mesh.routes(&json!([
            rule("/c06/subset", to("reviews", Some("v3"))),
            rule("/c06/host", to("absent", None)),
            rule("/c06/empty", to("reviews", Some("v2"))),
            rule("/c06/full", to("reviews", Some("v1"))),
        ]));
        let busy = mesh.world.http1("cart", REVIEWS).await;
        let first = tokio::task::spawn_local(async move {
            let mut busy = busy;
            let _ = busy.send_request(request("GET", "/c06/full", &[("x-first", "1")])).await;
        });
        arrived.notified().await;
        for (path, status, flag) in [
            ("/c06/none", 404, "NR"),
            ("/c06/subset", 503, "NC"),
            ("/c06/host", 503, "NC"),
            ("/c06/empty", 503, "UH"),
            ("/c06/full", 503, "UO"),
        ] {
            assert_eq!(mesh.send(request("GET", path, &[])).await.status, status, "{path}");
            log::wait_for(&[("path", path), ("response_flags", flag)]).await;
        }
        first.abort();
    });
}

#[test]
fn c08_limits_are_of_a_pool_for_every_protocol_and_zero_is_none() {
    run(async {
        let mesh = Mesh::new();
        let arrived = Rc::new(Cell::new(0));
        let mut apps = Vec::new();
        for version in ["v1", "v2"] {
            let count = arrived.clone();
            let app = mesh.runs("reviews", version, "near", move |_| {
                count.set(count.get() + 1);
                std::future::pending::<Response<_>>()
            });
            apps.push(app.await);
        }
        let of = |subset: &str| json!({"match": [{"headers": {"v": {"exact": subset}}}], "route": [to("reviews", Some(subset))]});
        mesh.routes(&json!([of("v1"), of("v2")]));
        let hold = async |version: &'static str, expected: usize| {
            let mut sender = mesh.world.http1("cart", REVIEWS).await;
            let held = tokio::task::spawn_local(async move { drop(sender.send_request(request("GET", "/", &[("v", version)])).await) });
            let deadline = Instant::now() + Duration::from_secs(10);
            while arrived.get() < expected {
                assert!(Instant::now() < deadline, "{version} never arrived");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            held.abort_handle()
        };
        // HTTP/1.1 requests are held to `http2MaxRequests`, each subset for itself.
        mesh.traffic_policy(&json!({"connectionPool": {"http": {"http2MaxRequests": 1}}}));
        let held = [hold("v1", 1).await, hold("v2", 2).await];
        for version in ["v1", "v2"] {
            assert_eq!(mesh.send(request("GET", "/", &[("v", version)])).await.header("x-envoy-overloaded"), Some("true"), "{version}");
        }
        mesh.traffic_policy(&json!({"connectionPool": {"http": {"http2MaxRequests": 0, "http1MaxPendingRequests": 0}}}));
        let more = [hold("v1", 3).await, hold("v1", 4).await];
        held.iter().chain(&more).for_each(tokio::task::AbortHandle::abort);
    });
}

/// A mesh with so many failing pods, whose outlier detection is this; their counts.
async fn failing(pods: usize, detection: Value) -> (Mesh, Vec<(App, Rc<Cell<usize>>)>) {
    let mesh = Mesh::new();
    let status = Rc::new(Cell::new(500));
    let mut apps = Vec::new();
    for _ in 0..pods {
        apps.push(answers(&mesh, "v1", &status).await);
    }
    mesh.traffic_policy(&json!({"loadBalancer": {"simple": "ROUND_ROBIN"}, "outlierDetection": detection}));
    (mesh, apps)
}

#[test]
fn c09_five_5xx_in_a_row_eject_as_soon_as_there_is_a_block_and_consecutive_errors_says_nothing() {
    run(async {
        for detection in [json!({"maxEjectionPercent": 100}), json!({"consecutiveErrors": 1, "maxEjectionPercent": 100})] {
            let (mesh, apps) = failing(1, detection).await;
            let mut sender = mesh.world.http1("cart", REVIEWS).await;
            for number in 1..=5 {
                assert_eq!(status(&mut sender).await, 500, "{number}");
            }
            assert_eq!((status(&mut sender).await, apps[0].1.get()), (503, 5));
        }
    });
}

#[test]
fn c10_ten_percent_of_few_endpoints_is_none() {
    run(async {
        for (percent, ejected) in [(Value::Null, 0), (json!(49), 0), (json!(50), 1), (json!(100), 2)] {
            let (mesh, _apps) = failing(2, json!({"consecutive5xxErrors": 1, "maxEjectionPercent": percent})).await;
            mesh.counts(20).await;
            let found = mesh.world.shared.pools.list()[0].ejections;
            assert_eq!(found, ejected, "{percent}");
        }
    });
}

#[test]
fn c11_all_ejected_is_503_unless_a_least_health_says_to_use_all() {
    run(async {
        let detection = |least: Value| json!({"consecutive5xxErrors": 1, "maxEjectionPercent": 100, "minHealthPercent": least});
        for (least, expected) in [(Value::Null, (503, "no healthy upstream")), (json!(50), (500, "app"))] {
            let (mesh, _apps) = failing(2, detection(least.clone())).await;
            mesh.counts(4).await;
            let found = mesh.send(request("GET", "/", &[])).await;
            assert_eq!((found.status, found.body.as_str()), expected, "{least}");
        }
    });
}

#[test]
fn c14_a_policy_with_a_selector_holds_at_the_waypoint_too() {
    run(async {
        let mesh = Mesh::new();
        let _app = mesh.says("reviews", "v1", "near", "v1").await;
        let rule = json!({
            "from": [{"source": {"principals": ["cluster.local/ns/shop/sa/cart"]}}], "to": [{"operation": {"methods": ["GET"]}}],
        });
        mesh.apply([policy("readers", &json!({"selector": {"matchLabels": {"app": "reviews"}}, "action": "ALLOW", "rules": [rule]}))]);
        assert_eq!(mesh.body("/").await, "v1");
        assert_eq!(mesh.send(request("POST", "/", &[])).await.status, 403, "another method");
        assert_eq!(
            mesh.send_to("stranger", REVIEWS, request("GET", "/", &[])).await.status,
            403,
            "another caller: not the waypoint's own identity"
        );
    });
}

/// Waits for a line of the scrape that has all of these parts.
async fn metric(mesh: &Mesh, name: &str, parts: &[&str]) -> String {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let text = mesh.world.scrape();
        let holds = |line: &&str| line.starts_with(&format!("{name}{{")) && parts.iter().all(|part| line.contains(part));
        if let Some(line) = text.lines().find(holds) {
            return line.to_owned();
        }
        assert!(Instant::now() < deadline, "no {name} with {parts:?} in {text}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn c18_metrics_say_unknown_latest_and_0_where_there_is_nothing_to_say() {
    run(async {
        let mesh = Mesh::new();
        assert_eq!(mesh.send(request("GET", "/", &[])).await.status, 503);
        let no_endpoint = ["response_flags=\"UH\"", "destination_workload=\"unknown\"", "destination_workload_namespace=\"unknown\""];
        let line = metric(&mesh, "istio_requests_total", &no_endpoint).await;
        for part in [
            "reporter=\"waypoint\"",
            "destination_service_namespace=\"shop\"",
            "destination_service=\"reviews.shop.svc.cluster.local\"",
            "source_canonical_revision=\"latest\"",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
        let _app = mesh.runs("reviews", "v1", "near", |_| std::future::pending::<Response<_>>()).await;
        let mut sender = mesh.world.http1("cart", REVIEWS).await;
        let unanswered = tokio::time::timeout(Duration::from_millis(100), sender.send_request(request("GET", "/", &[]))).await;
        assert!(unanswered.is_err());
        drop(sender);
        metric(&mesh, "istio_requests_total", &["response_code=\"0\"", "destination_version=\"v1\""]).await;
    });
}

#[test]
fn c18_received_bytes_are_those_of_who_opened_the_connection() {
    run(async {
        let mesh = Mesh::new();
        mesh.greets("db", "v1", "hello").await;
        let mut stream = mesh.world.tunnel("cart", "10.96.0.3:5432").await.unwrap();
        stream.write_all(b"no").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut read = Vec::new();
        stream.read_to_end(&mut read).await.unwrap();
        let received = metric(&mesh, "istio_tcp_received_bytes_total", &[]).await;
        let sent = metric(&mesh, "istio_tcp_sent_bytes_total", &[]).await;
        assert!(received.ends_with(" 2") && sent.ends_with(" 5"), "{received}\n{sent}");
    });
}

#[test]
fn c20_a_mesh_host_is_no_star_short_names_are_the_objects_own_and_other_gateways_are_not_the_mesh() {
    run(async {
        let mesh = Mesh::new();
        let _app = mesh.says("reviews", "v1", "near", "the service").await;
        let spec = |hosts: &str, more: Value| {
            let mut spec = json!({"hosts": [hosts], "http": [{"directResponse": answer("routed")}]});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            spec
        };
        let refused = decode(virtual_service("shop", "star", &spec("*", json!({})))).unwrap_err();
        assert!(refused[0].to_string().contains("spec.hosts[0]: \"*\""), "{}", refused[0]);
        mesh.apply([
            virtual_service("shop", "edge", &spec("*", json!({"gateways": ["edge"]}))),
            virtual_service("bank", "reviews", &spec("reviews", json!({}))),
        ]);
        assert_eq!(mesh.body("/").await, "the service");
        mesh.apply([virtual_service("shop", "own", &spec("reviews", json!({})))]);
        assert_eq!(mesh.body("/").await, "routed");
    });
}

#[test]
fn c20_source_labels_and_source_namespace_are_the_original_callers_here() {
    run(async {
        let mesh = Mesh::new();
        let by = |entry: Value, text: &str| json!({"match": [entry], "directResponse": answer(text)});
        mesh.routes(&json!([
            by(json!({"sourceLabels": {"app": "waypoint"}}), "the waypoint's"),
            by(json!({"sourceLabels": {"app": "cart"}, "sourceNamespace": "shop"}), "the caller's"),
            {"directResponse": answer("nobody's")},
        ]));
        assert_eq!(mesh.body("/").await, "the caller's");
    });
}
