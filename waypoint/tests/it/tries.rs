//! What a request's tries share: its body, its time, its place among the pool's retries, its head.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use serde_json::json;
use tokio::{sync::Notify, task::spawn_local};
use tropis_model::{
    pool::{Limits, Pool, UpstreamVersion},
    route::{Forward, PortProtocol, Retries, RetryOn, RouteAction},
    service::AppProtocol,
};

use crate::{
    log,
    world::{Body, World, fetch, forward, full, host, pool, route, run, text, to},
};

/// A world whose one route and pool are changed by `change`.
pub(crate) fn world(change: impl FnOnce(&mut Forward, &mut Pool)) -> World {
    world_with(&[], change)
}

fn world_with(settings: &[(&str, &str)], change: impl FnOnce(&mut Forward, &mut Pool)) -> World {
    let world = World::at("127.0.0.1:0", settings);
    let (mut forward, mut pool) = (forward(vec![to("reviews", None)]), pool("reviews", None));
    change(&mut forward, &mut pool);
    let routes = vec![route("default", Vec::new(), RouteAction::Forward(Box::new(forward)))];
    let made = host("reviews", PortProtocol::Http, routes, vec![pool]);
    world.service("reviews", "10.96.0.1", AppProtocol::Http11, made);
    world
}

fn on_server_errors(attempts: u32) -> Retries {
    Retries { attempts, on: RetryOn { server_error: true, ..RetryOn::default() }, ..Retries::default() }
}

/// A body of pieces, whose length nobody says.
fn pieces(count: usize, piece: &'static str) -> Body {
    let frames = (0..count).map(move |_| Ok(Frame::data(Bytes::from_static(piece.as_bytes()))));
    BodyExt::boxed_unsync(StreamBody::new(futures_util::stream::iter(frames)))
}

fn post(path: &str, body: Body) -> Request<Body> {
    Request::post(path).header("host", "reviews").body(body).unwrap()
}

/// Fails so many times, having read the body; counts what it served.
fn fails(
    times: usize,
    served: &Rc<Cell<usize>>,
) -> impl Fn(Request<Incoming>) -> std::pin::Pin<Box<dyn Future<Output = Response<Body>>>> + use<> {
    let served = served.clone();
    move |request| {
        let served = served.clone();
        Box::pin(async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            served.set(served.get() + 1);
            let status = if served.get() <= times { 503 } else { 200 };
            Response::builder().status(status).body(full(body.len().to_string())).unwrap()
        })
    }
}

#[test]
fn a_request_with_a_body_that_waits_for_a_connection_has_the_routes_time() {
    run(async {
        let world = world(|forward, pool| {
            forward.timeout = Some(Duration::from_millis(150));
            pool.limits = Limits { max_connections: Some(1), ..Limits::default() };
        });
        let app = world.app(|_| std::future::pending()).await;
        world.endpoint("reviews", "v1", &app);
        let mut first = world.http1("cart", "10.96.0.1:9080").await;
        let taken = tokio::task::spawn_local(async move { fetch(&mut first, post("/takes-the-connection", full("x"))).await.0 });
        tokio::time::sleep(Duration::from_millis(50)).await;
        let started = Instant::now();
        let mut second = world.http1("cart", "10.96.0.1:9080").await;
        assert_eq!(fetch(&mut second, post("/waits", full("x"))).await.0, 504);
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        assert_eq!(taken.await.unwrap(), 504);
    });
}

#[test]
fn a_slow_caller_does_not_use_up_the_routes_time() {
    run(async {
        let world = world(|forward, _| forward.timeout = Some(Duration::from_millis(150)));
        let served = Rc::default();
        let app = world.app(fails(0, &served)).await;
        world.endpoint("reviews", "v1", &app);
        let mut sender = world.http1("cart", "10.96.0.1:9080").await;
        let slow = futures_util::stream::unfold(0, |sent| async move {
            tokio::time::sleep(Duration::from_millis(60)).await;
            (sent < 6).then(|| (Ok(Frame::data(Bytes::from_static(b"slow"))), sent + 1))
        });
        let body = BodyExt::boxed_unsync(StreamBody::new(slow));
        assert_eq!(fetch(&mut sender, post("/slow", body)).await, (200, "24".into()));
    });
}

#[test]
fn a_request_may_use_the_one_place_for_retries_again_and_again() {
    run(async {
        let world = world(|forward, pool| {
            forward.retries = on_server_errors(3);
            pool.limits.max_retries = Some(1);
        });
        let served = Rc::default();
        let app = world.app(fails(3, &served)).await;
        world.endpoint("reviews", "v1", &app);
        let mut sender = world.http1("cart", "10.96.0.1:9080").await;
        assert_eq!(fetch(&mut sender, post("/again", full("body"))).await, (200, "4".into()));
        assert_eq!(served.get(), 4);
    });
}

#[test]
fn a_get_keeps_its_body_of_unknown_length() {
    run(async {
        let world = world(|_, _| {});
        let served = Rc::default();
        let app = world.app(fails(0, &served)).await;
        world.endpoint("reviews", "v1", &app);
        let mut sender = world.http1("cart", "10.96.0.1:9080").await;
        let mut search = post("/_search", pieces(5, "query"));
        *search.method_mut() = Method::GET;
        search.headers_mut().insert("transfer-encoding", "chunked".parse().unwrap());
        assert_eq!(fetch(&mut sender, search).await, (200, "25".into()));
        let mut sender = world.http2("cart", "10.96.0.1:9080").await;
        let search = Request::get("http://reviews/_search").body(pieces(5, "query")).unwrap();
        assert_eq!(text(sender.send_request(search).await.unwrap()).await, (200, "25".into()));
    });
}

#[test]
fn many_small_pieces_are_kept_only_as_far_as_their_cost_allows() {
    run(async {
        let world = world(|forward, _| forward.retries = on_server_errors(1));
        let served = Rc::<Cell<usize>>::default();
        let app = world.app(fails(2, &served)).await;
        world.endpoint("reviews", "v1", &app);
        let mut sender = world.http2("cart", "10.96.0.1:9080").await;
        // 8 192 bytes, but in as many frames: what these would cost is over the limit, so they are sent once.
        let many = Request::post("http://reviews/many").body(pieces(8192, "x")).unwrap();
        assert_eq!(text(sender.send_request(many).await.unwrap()).await, (503, "8192".into()));
        assert_eq!(served.get(), 1);
        let few = Request::post("http://reviews/few").body(pieces(64, "x")).unwrap();
        assert_eq!(text(sender.send_request(few).await.unwrap()).await, (200, "64".into()));
        assert_eq!(served.get(), 3, "tried again");
    });
}

#[test]
fn bodies_are_kept_for_another_try_only_as_far_as_they_fit_on_their_worker_together() {
    run(async {
        let world = world_with(&[("TROPIS_MAX_BUFFERED_BYTES", "65536")], |forward, _| forward.retries = on_server_errors(1));
        let (arrived, served, over) = (Rc::<Cell<usize>>::default(), Rc::<Cell<usize>>::default(), Arc::new(Notify::new()));
        let app = world
            .app({
                let (arrived, served) = (arrived.clone(), served.clone());
                move |request: Request<Incoming>| {
                    let (arrived, served) = (arrived.clone(), served.clone());
                    async move {
                        let is_held = request.uri().path() == "/held";
                        let mut body = request.into_body();
                        while let Some(frame) = body.frame().await {
                            arrived.set(arrived.get() + frame.unwrap().data_ref().map_or(0, Bytes::len) * usize::from(is_held));
                        }
                        served.set(served.get() + 1);
                        let status = if is_held || served.get() % 2 == 0 { 200 } else { 503 };
                        Response::builder().status(status).body(full("")).unwrap()
                    }
                }
            })
            .await;
        world.endpoint("reviews", "v1", &app);
        // 48 KiB come, and the end of it only when it is told to.
        let held = futures_util::stream::unfold((0, over.clone()), |(sent, over)| async move {
            if sent == 3 {
                over.notified().await;
                return None;
            }
            Some((Ok(Frame::data(Bytes::from_static(&[0; 16 * 1024]))), (sent + 1, over)))
        });
        let mut holder = world.http1("cart", "10.96.0.1:9080").await;
        let holding = spawn_local(async move { fetch(&mut holder, post("/held", StreamBody::new(held).boxed_unsync())).await.0 });
        while arrived.get() < 48 * 1024 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let mut sender = world.http1("cart", "10.96.0.1:9080").await;
        let small = |path| post(path, full(vec![b'x'; 32 * 1024]));
        assert_eq!(fetch(&mut sender, small("/no-room")).await.0, 503, "it is sent once");
        assert_eq!(served.get(), 1);
        over.notify_one();
        assert_eq!(holding.await.unwrap(), 200);
        assert_eq!(fetch(&mut sender, small("/room-again")).await.0, 200, "it is tried again");
        assert_eq!(served.get(), 4);
    });
}

/// A trailer and nothing else.
fn trailer_alone() -> Body {
    let trailers = http::HeaderMap::from_iter([(http::HeaderName::from_static("x-sum"), http::HeaderValue::from_static("1"))]);
    BodyExt::boxed_unsync(StreamBody::new(futures_util::stream::iter([Ok(Frame::trailers(trailers))])))
}

#[test]
fn trailers_that_nobody_kept_are_in_every_try_that_is_made() {
    for (budget, expected) in [("0", vec![true]), ("65536", vec![true, true])] {
        run(async {
            let world = world_with(&[("TROPIS_MAX_BUFFERED_BYTES", budget)], |forward, pool| {
                forward.retries = on_server_errors(1);
                pool.upstream_version = UpstreamVersion::Http2;
            });
            let seen = Rc::new(RefCell::new(Vec::new()));
            let app = world
                .app({
                    let seen = seen.clone();
                    move |request: Request<Incoming>| {
                        let seen = seen.clone();
                        async move {
                            let body = request.into_body().collect().await.unwrap();
                            seen.borrow_mut().push(body.trailers().is_some_and(|trailers| trailers.contains_key("x-sum")));
                            Response::builder().status(503).body(full("")).unwrap()
                        }
                    }
                })
                .await;
            world.endpoint("reviews", "v1", &app);
            let mut sender = world.http2("cart", "10.96.0.1:9080").await;
            let request = Request::post("http://reviews/trailers").body(trailer_alone()).unwrap();
            assert_eq!(sender.send_request(request).await.unwrap().status(), 503);
            assert_eq!(*seen.borrow(), expected, "with a budget of {budget}");
        });
    }
}

#[test]
fn a_grpc_callers_own_timeout_ends_its_call() {
    run(async {
        let world = world(|_, _| {});
        let app = world.app(|_| std::future::pending()).await;
        world.endpoint("reviews", "v1", &app);
        let mut sender = world.http2("cart", "10.96.0.1:9080").await;
        let call = Request::post("http://reviews/shop.Reviews/Get")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("grpc-timeout", "80m")
            .body(full(""))
            .unwrap();
        let started = Instant::now();
        let answer = sender.send_request(call).await.unwrap();
        assert!((80..5000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
        assert_eq!((answer.status().as_u16(), answer.headers()["grpc-status"].to_str().unwrap()), (200, "14"));
        let line = log::wait_for(&[("path", "/shop.Reviews/Get")]).await;
        assert_eq!(line["reason"], json!("request_timeout"));
    });
}

#[test]
fn a_caller_cannot_say_who_it_is_by_a_header() {
    run(async {
        let world = world(|_, _| {});
        let seen = Rc::new(RefCell::new(Vec::new()));
        let app = world
            .app({
                let seen = seen.clone();
                move |request: Request<Incoming>| {
                    seen.borrow_mut().extend(request.headers().keys().map(|name| name.as_str().to_owned()));
                    std::future::ready(Response::new(full("")))
                }
            })
            .await;
        world.endpoint("reviews", "v1", &app);
        let mut sender = world.http1("cart", "10.96.0.1:9080").await;
        let mut request = post("/who", full(""));
        for name in ["x-forwarded-client-cert", "x-envoy-original-path", "x-own"] {
            request.headers_mut().insert(http::HeaderName::from_static(name), "forged".parse().unwrap());
        }
        assert_eq!(fetch(&mut sender, request).await.0, 200);
        let seen = seen.borrow();
        let has = |name: &str| seen.iter().any(|seen| seen == name);
        assert!(has("x-own") && has("x-forwarded-for") && has("x-request-id"), "{seen:?}");
        assert!(!has("x-forwarded-client-cert") && !has("x-envoy-original-path"), "{seen:?}");
    });
}
