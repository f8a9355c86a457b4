//! Retries and timeouts: when there is another try, and when there is not.

use std::{
    cell::Cell,
    rc::Rc,
    time::{Duration, Instant},
};

use http::{Request, Response};
use http_body_util::BodyExt;
use serde_json::json;
use tokio::net::TcpListener;
use tropis_model::{
    route::{Forward, PortProtocol, Retries, RetryOn, RouteAction},
    service::AppProtocol,
};

use crate::{
    log,
    world::{App, Body, Seen, World, fetch, forward, full, get, host, pool, route, run, says, to},
};

/// A world whose one route sends on as `change` says.
fn with_forward(change: impl FnOnce(&mut Forward)) -> World {
    let world = World::new();
    let mut changed = forward(vec![to("reviews", None)]);
    change(&mut changed);
    let made = host(
        "reviews",
        PortProtocol::Http,
        vec![route("default", Vec::new(), RouteAction::Forward(Box::new(changed)))],
        vec![pool("reviews", None)],
    );
    world.service("reviews", "10.96.0.1", AppProtocol::Http11, made);
    world
}

fn retries(attempts: u32, on: RetryOn) -> Retries {
    Retries { attempts, on, ..Retries::default() }
}

/// An application that fails so many times first.
async fn fails_first(world: &World, times: usize, served: &Rc<Cell<usize>>) -> App {
    let served = served.clone();
    world
        .app(move |request| {
            let served = served.clone();
            async move {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                served.set(served.get() + 1);
                let status = if served.get() <= times { 503 } else { 200 };
                let answer: Response<Body> = Response::builder().status(status).body(full(body)).unwrap();
                answer
            }
        })
        .await
}

#[test]
fn a_failure_that_the_route_retries_is_retried_with_its_body() {
    run(async {
        let world = with_forward(|forward| forward.retries = retries(2, RetryOn { server_error: true, ..RetryOn::default() }));
        let served = Rc::default();
        let app = fails_first(&world, 2, &served).await;
        world.endpoint("reviews", "v1", &app);
        let mut sender = world.http1("cart", "10.96.0.1:9080").await;
        let post = Request::post("/retried").header("host", "reviews").body(full("again")).unwrap();
        assert_eq!(fetch(&mut sender, post).await, (200, "again".into()));
        assert_eq!(served.get(), 3);
        assert_eq!(log::wait_for(&[("path", "/retried")]).await["response_flags"], json!("-"));
    });
}

#[test]
fn the_last_answer_is_given_when_tries_are_used_up() {
    run(async {
        let world = with_forward(|forward| forward.retries = retries(1, RetryOn { gateway_error: true, ..RetryOn::default() }));
        let served = Rc::default();
        let app = fails_first(&world, 9, &served).await;
        world.endpoint("reviews", "v1", &app);
        assert_eq!(world.get("/exhausted").await.0, 503);
        assert_eq!(served.get(), 2);
        let line = log::wait_for(&[("path", "/exhausted")]).await;
        assert_eq!((&line["response_flags"], &line["response_code_details"]), (&json!("URX"), &json!("via_upstream")));
    });
}

#[test]
fn the_default_policy_does_not_retry_a_503() {
    run(async {
        let on = RetryOn { connect_failure: true, refused_stream: true, grpc_statuses: vec![14, 1], ..RetryOn::default() };
        let world = with_forward(|forward| forward.retries = Retries { ignore_previous: true, ..retries(2, on) });
        let served = Rc::default();
        let app = fails_first(&world, 1, &served).await;
        world.endpoint("reviews", "v1", &app);
        assert_eq!(world.get("/").await.0, 503);
        assert_eq!(served.get(), 1);
    });
}

#[test]
fn a_connect_failure_is_retried_on_another_endpoint() {
    run(async {
        let on = RetryOn { connect_failure: true, ..RetryOn::default() };
        let world = with_forward(|forward| forward.retries = Retries { ignore_previous: true, ..retries(2, on) });
        let app = world.app(says("alive", &Seen::default())).await;
        world.endpoint("reviews", "v1", &app);
        let mut gone = world.app(says("never", &Seen::default())).await;
        gone.address.set_port(9);
        world.endpoint("reviews", "v1", &gone);
        let mut sender = world.http1("cart", "10.96.0.1:9080").await;
        for _ in 0..6 {
            assert_eq!(fetch(&mut sender, get("/")).await, (200, "alive".into()));
        }
    });
}

#[test]
fn a_body_that_is_too_large_to_keep_is_sent_once() {
    run(async {
        let world = with_forward(|forward| forward.retries = retries(2, RetryOn { server_error: true, ..RetryOn::default() }));
        let served = Rc::default();
        let app = fails_first(&world, 1, &served).await;
        world.endpoint("reviews", "v1", &app);
        let mut sender = world.http1("cart", "10.96.0.1:9080").await;
        let post = Request::post("/large").header("host", "reviews").body(full(vec![b'x'; 2 * 1024 * 1024])).unwrap();
        assert_eq!(fetch(&mut sender, post).await.0, 503);
        assert_eq!(served.get(), 1);
    });
}

#[test]
fn retries_have_a_limit_in_their_pool() {
    run(async {
        let world = World::new();
        let mut changed = forward(vec![to("reviews", None)]);
        changed.retries = retries(2, RetryOn { server_error: true, ..RetryOn::default() });
        let mut limited = pool("reviews", None);
        limited.limits.max_retries = Some(0);
        let made =
            host("reviews", PortProtocol::Http, vec![route("default", Vec::new(), RouteAction::Forward(Box::new(changed)))], vec![limited]);
        world.service("reviews", "10.96.0.1", AppProtocol::Http11, made);
        let served = Rc::default();
        let app = fails_first(&world, 1, &served).await;
        world.endpoint("reviews", "v1", &app);
        assert_eq!(world.get("/no-retries-left").await.0, 503);
        assert_eq!(served.get(), 1);
        assert_eq!(log::wait_for(&[("path", "/no-retries-left")]).await["response_flags"], json!("-"));
    });
}

/// An application that never answers the first so many requests.
async fn hangs_first(world: &World, times: usize, served: &Rc<Cell<usize>>) -> App {
    let served = served.clone();
    world
        .app(move |_| {
            served.set(served.get() + 1);
            let hangs = served.get() <= times;
            async move {
                if hangs {
                    std::future::pending::<()>().await;
                }
                Response::new(full("late"))
            }
        })
        .await
}

#[test]
fn the_routes_timeout_ends_a_request_and_is_not_retried() {
    run(async {
        let world = with_forward(|forward| {
            forward.timeout = Some(Duration::from_millis(60));
            forward.retries = retries(2, RetryOn { server_error: true, ..RetryOn::default() });
        });
        let served = Rc::default();
        let app = hangs_first(&world, 9, &served).await;
        world.endpoint("reviews", "v1", &app);
        let started = Instant::now();
        assert_eq!(world.get("/timeout").await, (504, "upstream request timeout".into()));
        assert!(started.elapsed() >= Duration::from_millis(60));
        assert_eq!(served.get(), 1);
        let line = log::wait_for(&[("path", "/timeout")]).await;
        assert_eq!((&line["response_flags"], &line["reason"]), (&json!("UT"), &json!("request_timeout")));
    });
}

#[test]
fn a_trys_timeout_is_retried() {
    run(async {
        let world = with_forward(|forward| {
            let on = RetryOn { server_error: true, ..RetryOn::default() };
            forward.retries = Retries { per_try_timeout: Some(Duration::from_millis(50)), ..retries(2, on) };
        });
        let served = Rc::default();
        let app = hangs_first(&world, 1, &served).await;
        world.endpoint("reviews", "v1", &app);
        assert_eq!(world.get("/per-try").await, (200, "late".into()));
        assert_eq!(served.get(), 2);
    });
}

#[test]
fn an_endpoint_that_closes_is_a_reset_and_a_response_that_is_none_a_protocol_error() {
    run(async {
        let world = with_forward(|_| {});
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut app = world.app(says("never", &Seen::default())).await;
        app.address = listener.local_addr().unwrap();
        world.endpoint("reviews", "v1", &app);
        tokio::task::spawn_local(async move {
            for answer in ["", "no HTTP at all\r\n\r\n"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = [0; 4096];
                tokio::io::AsyncReadExt::read(&mut stream, &mut buffer).await.unwrap();
                tokio::io::AsyncWriteExt::write_all(&mut stream, answer.as_bytes()).await.unwrap();
            }
        });
        assert_eq!(world.get("/closes").await.0, 503);
        let line = log::wait_for(&[("path", "/closes")]).await;
        assert_eq!((&line["response_flags"], &line["reason"]), (&json!("UC"), &json!("upstream_reset")));
        assert_eq!(world.get("/malformed").await.0, 502);
        assert_eq!(log::wait_for(&[("path", "/malformed")]).await["response_flags"], json!("UPE"));
    });
}
