//! What routes and pools say about further tries, and what of a request stays the same through all of them: its trace, and that no policy
//! is stepped around.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::{Duration, Instant},
};

use http::{HeaderMap, Response};
use serde_json::{Value, json};
use tokio::{sync::Notify, task::spawn_local};

use crate::{
    api_mesh::{Mesh, REVIEWS, node, policy, request, to},
    log,
    world::{App, Body, full, run},
};

/// A pod of `reviews` that answers with a status and says how often it was asked.
async fn always(mesh: &Mesh, version: &str, node: &str, status: u16) -> Rc<Cell<usize>> {
    let asked = Rc::<Cell<usize>>::default();
    let counted = asked.clone();
    let text = version.to_owned();
    drop(
        mesh.runs("reviews", version, node, move |_| {
            counted.set(counted.get() + 1);
            std::future::ready(Response::builder().status(status).body(full(text.clone())).unwrap())
        })
        .await,
    );
    asked
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// What tracers of all kinds send, some of it twice.
const TRACE: [(&str, &str); 12] = [
    ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ("tracestate", "rojo=00f067aa0ba902b7"),
    ("tracestate", "congo=t61rcWkgMzE"),
    ("b3", "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1-05e3ac9a4f6e3b90"),
    ("x-b3-traceid", "80f198ee56343ba864fe8b2a57d3eff7"),
    ("x-b3-spanid", "e457b5a2e4d86bd1"),
    ("x-b3-parentspanid", "05e3ac9a4f6e3b90"),
    ("x-b3-sampled", "1"),
    ("x-b3-flags", "1"),
    ("x-ot-span-context", "a;b;c;d"),
    ("x-request-id", "of-the-caller"),
    ("baggage", "userId=alice,serverNode=DF%2028"),
];

/// The same headers as they arrived.
fn trace(headers: &HeaderMap) -> Vec<(&str, &str)> {
    let mut names: Vec<&str> = TRACE.iter().map(|(name, _)| *name).collect();
    names.dedup();
    let all = |name| headers.get_all(name).iter().map(move |value| (name, value.to_str().unwrap()));
    names.into_iter().flat_map(all).collect()
}

#[test]
fn the_trace_of_a_request_arrives_unchanged_at_each_try_and_at_its_mirror() {
    run(async {
        let mesh = Mesh::new();
        let heads = Rc::<RefCell<Vec<(&str, HeaderMap)>>>::default();
        let keeps = |who: &'static str, status: fn(&HeaderMap) -> u16| {
            let heads = heads.clone();
            move |request: http::Request<hyper::body::Incoming>| {
                let status = status(request.headers());
                heads.borrow_mut().push((who, request.into_parts().0.headers));
                std::future::ready(Response::builder().status(status).body(full("")).unwrap())
            }
        };
        let fails_first = |headers: &HeaderMap| if headers["x-envoy-attempt-count"] == "1" { 503 } else { 200 };
        let _apps = [
            mesh.runs("reviews", "v1", "near", keeps("endpoint", fails_first)).await,
            mesh.runs("ratings", "v1", "near", keeps("mirror", |_| 200)).await,
        ];
        let retries = json!({"attempts": 1, "retryOn": "5xx", "backoff": "1ms"});
        for upgrade in ["DO_NOT_UPGRADE", "UPGRADE"] {
            mesh.traffic_policy(&json!({"connectionPool": {"http": {"h2UpgradePolicy": upgrade}}}));
            mesh.route(&json!({"retries": retries, "mirror": {"host": "ratings"}, "headers": {"request": {"set": {"x-more": "1"}}}}));
            assert_eq!(mesh.send(request("GET", "/traced", &TRACE)).await.status, 200);
            until("the copy arrives", || heads.borrow().len() == 3).await;
            let arrived = heads.take();
            assert_eq!(arrived.iter().map(|(who, _)| *who).collect::<Vec<_>>(), ["endpoint", "endpoint", "mirror"], "{upgrade}");
            for (who, headers) in &arrived {
                assert_eq!(trace(headers), TRACE, "{upgrade}, {who}");
            }
        }
        assert_eq!(log::wait_for(&[("path", "/traced")]).await["request_id"], json!("of-the-caller"));
    });
}

#[test]
fn a_selector_policy_denies_the_endpoint_of_a_retry_and_of_a_mirror() {
    run(async {
        let mesh = Mesh::new();
        let failing = always(&mesh, "v1", "near", 503).await;
        let closed = always(&mesh, "v2", "near", 200).await;
        mesh.apply([policy("closed", &json!({"selector": {"matchLabels": {"app": "reviews", "version": "v2"}}}))]);
        mesh.traffic_policy(&json!({"loadBalancer": {"simple": "ROUND_ROBIN"}}));
        mesh.route(&json!({"retries": {"attempts": 3, "retryOn": "5xx", "backoff": "1ms"}}));
        for _ in 0..4 {
            let found = mesh.send(request("GET", "/retried", &[])).await;
            assert_eq!((found.status, found.body.as_str()), (403, "RBAC: access denied"));
        }
        assert!(failing.get() > 0, "a first try failed, and its retry was denied");
        assert_eq!(closed.get(), 0);

        mesh.routes(&json!([{"route": [to("reviews", Some("v1"))], "mirror": {"host": "reviews", "subset": "v2"}}]));
        assert_eq!(mesh.send(request("GET", "/mirrored", &[])).await.status, 503);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(closed.get(), 0, "no copy goes where the request may not");
        mesh.delete(tropis_crds::Kind::AuthorizationPolicy, "closed");
        assert_eq!(mesh.send(request("GET", "/mirrored", &[])).await.status, 503);
        until("the copy arrives", || closed.get() == 1).await;
    });
}

/// A pod of `reviews` that fails each first try but that of `/held`; all else waits until it is told.
async fn fails_first(mesh: &Mesh, waiting: &Rc<Cell<usize>>, told: &Rc<Notify>) -> App {
    let (waiting, told) = (waiting.clone(), told.clone());
    mesh.runs("reviews", "v1", "near", move |request| {
        let (waiting, told) = (waiting.clone(), told.clone());
        async move {
            let answer = |status: u16| -> Response<Body> { Response::builder().status(status).body(full("")).unwrap() };
            if request.headers()["x-envoy-attempt-count"] == "1" && request.uri().path() != "/held" {
                return answer(503);
            }
            let told = told.notified();
            waiting.set(waiting.get() + 1);
            told.await;
            answer(200)
        }
    })
    .await
}

#[test]
fn retry_budget_percent_and_min_retry_concurrency_bound_the_retries_under_way() {
    run(async {
        // One request is under way all the time, so that the first that fails is one of two, the second one of three or two.
        for (budget, retried) in [
            (json!({"percent": {"value": 0}, "minRetryConcurrency": 0}), 0),
            (json!({"percent": {"value": 0}, "minRetryConcurrency": 1}), 1),
            (json!({"percent": {"value": 0}, "minRetryConcurrency": 2}), 2),
            (json!({"percent": {"value": 20}, "minRetryConcurrency": 0}), 0),
            (json!({"percent": {"value": 50}, "minRetryConcurrency": 0}), 1),
            (json!({"percent": {"value": 100}, "minRetryConcurrency": 0}), 2),
        ] {
            let mesh = Rc::new(Mesh::new());
            let (waiting, told) = (Rc::<Cell<usize>>::default(), Rc::new(Notify::new()));
            let _app = fails_first(&mesh, &waiting, &told).await;
            // The budget replaces the plain limit.
            mesh.traffic_policy(&json!({"connectionPool": {"http": {"maxRetries": 1}}, "retryBudget": budget}));
            mesh.route(&json!({"retries": {"attempts": 1, "retryOn": "5xx", "backoff": "1ms"}}));
            let ask = |path: &'static str| {
                let mesh = mesh.clone();
                spawn_local(async move { mesh.send(request("GET", path, &[])).await.status })
            };
            let mut held = vec![ask("/held")];
            until("it arrives", || waiting.get() == 1).await;
            for _ in 0..2 {
                let (asking, before) = (ask("/failing"), waiting.get());
                until("it is answered, or its retry waits", || asking.is_finished() || waiting.get() > before).await;
                match asking.is_finished() {
                    true => assert_eq!(asking.await.unwrap(), 503, "{budget}"),
                    false => held.push(asking),
                }
            }
            assert_eq!(held.len(), 1 + retried, "{budget}");
            told.notify_waiters();
            for asking in held {
                assert_eq!(asking.await.unwrap(), 200, "{budget}");
            }
        }
    });
}

#[test]
fn retry_remote_localities_leaves_the_near_from_the_second_retry() {
    run(async {
        let mesh = Mesh::new();
        mesh.apply([node("far", "r2", "z1")]);
        let near = always(&mesh, "v1", "near", 503).await;
        let _far = always(&mesh, "v2", "far", 200).await;
        mesh.traffic_policy(&json!({"outlierDetection": {"consecutive5xxErrors": 0}}));
        let retries = |remote: Value, attempts: u32| json!({"attempts": attempts, "retryOn": "5xx", "backoff": "1ms", "retryRemoteLocalities": remote});
        for (remote, attempts, status, tries) in
            [(json!(true), 2, 200, 2), (json!(true), 1, 503, 2), (json!(false), 2, 503, 3), (Value::Null, 2, 503, 3)]
        {
            near.set(0);
            mesh.route(&json!({"retries": retries(remote.clone(), attempts)}));
            assert_eq!(mesh.send(request("GET", "/", &[])).await.status, status, "{remote}, {attempts} attempts");
            assert_eq!(near.get(), tries, "{remote}, {attempts} attempts");
        }
    });
}

#[test]
fn http_retries_backoff_is_the_base_of_the_waits() {
    run(async {
        for (base, least, most) in [(Duration::from_millis(1), 0, 100), (Duration::from_millis(400), 100, 400)] {
            let mesh = Rc::new(Mesh::new());
            let firsts = Rc::<RefCell<std::collections::HashMap<String, Instant>>>::default();
            let waits = Rc::<RefCell<Vec<Duration>>>::default();
            let (seen, waited) = (firsts.clone(), waits.clone());
            let _app = mesh
                .runs("reviews", "v1", "near", move |request| {
                    let path = request.uri().path().to_owned();
                    let before = seen.borrow_mut().remove(&path);
                    let status = match before {
                        Some(since) => {
                            waited.borrow_mut().push(since.elapsed());
                            200
                        }
                        None => {
                            seen.borrow_mut().insert(path, Instant::now());
                            503
                        }
                    };
                    std::future::ready(Response::builder().status(status).body(full("")).unwrap())
                })
                .await;
            mesh.route(&json!({"retries": {"attempts": 1, "retryOn": "5xx", "backoff": format!("{}ms", base.as_millis())}}));
            let asking: Vec<_> = (0..20)
                .map(|number| {
                    let mesh = mesh.clone();
                    spawn_local(async move { mesh.send(request("GET", &format!("/{number}"), &[])).await.status })
                })
                .collect();
            for asked in asking {
                assert_eq!(asked.await.unwrap(), 200);
            }
            let (longest, shortest) = (waits.borrow().iter().max().copied().unwrap(), waits.borrow().iter().min().copied().unwrap());
            // Each is drawn below the base: all of 20 below a quarter of it, or none below it, happens once in 10^12.
            assert!(longest >= Duration::from_millis(least), "{base:?}: {longest:?}");
            assert!(shortest <= Duration::from_millis(most), "{base:?}: {shortest:?}");
        }
    });
}

#[test]
fn outlier_detection_consecutive_gateway_errors_ejects_for_those_alone() {
    run(async {
        let mesh = Mesh::new();
        let status = Rc::new(Cell::new(500));
        let shown = status.clone();
        let _app = mesh
            .runs("reviews", "v1", "near", move |_| std::future::ready(Response::builder().status(shown.get()).body(full("")).unwrap()))
            .await;
        let detection = json!({"consecutiveGatewayErrors": 3, "consecutive5xxErrors": 0, "maxEjectionPercent": 100});
        mesh.traffic_policy(&json!({"outlierDetection": detection}));
        mesh.route(&json!({"retries": {"attempts": 0}}));
        let mut sender = mesh.world.http1("cart", REVIEWS).await;
        let mut ask = async || crate::world::fetch(&mut sender, request("GET", "/", &[])).await;
        for said in [500, 500, 500, 500, 502, 504, 500, 502, 503, 504] {
            status.set(said);
            assert_eq!(ask().await, (said, String::new()));
        }
        assert_eq!(ask().await, (503, "no healthy upstream".to_owned()));
    });
}
