//! Pools over time: who waits for a connection gets one, and what is remembered about endpoints.

use std::{
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use http::Response;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Notify,
    task::spawn_local,
};
use tropis_model::{
    pool::{Limits, OutlierDetection, Pool, UpstreamVersion},
    route::{PortProtocol, RouteAction},
    service::AppProtocol,
    view::Change,
};

use crate::{
    log,
    raw::{RawHttp2, frame},
    world::{App, Http2, World, fetch, forward, full, get, get2, host, own_address, pool, route, run, text, to},
};

/// A world whose one pool is changed by `change`.
fn with_pool(change: impl FnOnce(&mut Pool)) -> World {
    let world = World::new();
    let mut changed = pool("reviews", None);
    change(&mut changed);
    let action = RouteAction::Forward(Box::new(forward(vec![to("reviews", None)])));
    let made = host("reviews", PortProtocol::Http, vec![route("default", Vec::new(), action)], vec![changed]);
    world.service("reviews", "10.96.0.1", AppProtocol::Http11, made);
    world
}

/// An endpoint that answers `name`, `/slow` when it is told to.
async fn endpoint(world: &World, name: &'static str, told: &Rc<Notify>) -> App {
    let told = told.clone();
    let app = world
        .app(move |request| {
            let told = told.clone();
            async move {
                if request.uri().path() == "/slow" {
                    told.notified().await;
                }
                Response::new(full(name))
            }
        })
        .await;
    world.endpoint("reviews", name, &app);
    app
}

#[test]
fn an_endpoint_of_http2_is_not_waited_for_because_of_connections_to_another() {
    run(async {
        let limits = Limits { max_connections: Some(1), ..Limits::default() };
        let world = with_pool(|pool| (pool.limits, pool.upstream_version) = (limits, UpstreamVersion::Http2));
        let told = Rc::new(Notify::new());
        let (one, two) = (endpoint(&world, "one", &told).await, endpoint(&world, "two", &told).await);
        let mut sender = world.http2("cart", "10.96.0.1:9080").await;
        let slow = spawn_local(sender.send_request(get2("/slow")));
        while one.connections.get() == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(text(sender.send_request(get2("/")).await.unwrap()).await, (200, "two".into()));
        assert_eq!((one.connections.get(), two.connections.get()), (1, 1));
        told.notify_waiters();
        assert_eq!(text(slow.await.unwrap().unwrap()).await, (200, "one".into()));
    });
}

#[test]
fn a_connection_of_http2_without_streams_closes_for_who_waits_elsewhere() {
    run(async {
        let limits = Limits { max_connections: Some(2), max_concurrent_streams: Some(1), ..Limits::default() };
        let world = with_pool(|pool| (pool.limits, pool.upstream_version) = (limits, UpstreamVersion::Http2));
        let told = Rc::new(Notify::new());
        let (_one, two) = (endpoint(&world, "one", &told).await, endpoint(&world, "two", &told).await);
        let mut sender = world.http2("cart", "10.96.0.1:9080").await;
        assert_eq!(text(sender.send_request(get2("/")).await.unwrap()).await, (200, "one".into()));
        let slow = spawn_local(sender.send_request(get2("/slow")));
        while two.connections.get() == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(text(sender.send_request(get2("/")).await.unwrap()).await, (200, "one".into()));
        // The only stream of the connection to `two` is taken, and the other connection is idle.
        assert_eq!(text(sender.send_request(get2("/")).await.unwrap()).await, (200, "two".into()));
        assert_eq!(two.connections.get(), 2);
        told.notify_waiters();
        assert_eq!(text(slow.await.unwrap().unwrap()).await, (200, "two".into()));
    });
}

/// Answers one connection at `address`; nobody listens before and after.
async fn answers_once(address: SocketAddr) -> tokio::task::JoinHandle<()> {
    let listener = TcpListener::bind(address).await.unwrap();
    spawn_local(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        drop(listener);
        let mut read = [0; 4096];
        let _ = stream.read(&mut read).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    })
}

#[test]
fn a_response_ends_a_row_of_failed_connections_that_count_by_themselves() {
    run(async {
        let detection = OutlierDetection {
            consecutive_5xx: 0,
            consecutive_gateway_errors: 0,
            consecutive_local_origin_failures: 2,
            split_local_origin: true,
            error_statuses: Vec::new(),
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(60),
            max_ejection_percent: 100,
        };
        let world = with_pool(|pool| pool.outlier = Some(detection));
        let address = SocketAddr::new(own_address(), 18_080);
        world.endpoint("reviews", "v1", &App::elsewhere(address));
        let mut sender = world.http1("cart", "10.96.0.1:9080").await;
        let ejections = || world.shared.pools.list()[0].ejections;
        for (turn, expected) in [(1, 0), (2, 0), (3, 1)] {
            assert_eq!(fetch(&mut sender, get("/")).await.0, 503, "nobody listens");
            assert_eq!(ejections(), expected, "{turn}");
            if turn == 1 {
                let answering = answers_once(address).await;
                assert_eq!(fetch(&mut sender, get("/")).await.0, 200);
                answering.await.unwrap();
            }
        }
    });
}

#[test]
fn a_lower_limit_of_streams_holds_for_an_open_connection() {
    run(async {
        let limited = |streams| {
            let mut changed = pool("reviews", None);
            (changed.limits.max_concurrent_streams, changed.upstream_version) = (streams, UpstreamVersion::Http2);
            let action = RouteAction::Forward(Box::new(forward(vec![to("reviews", None)])));
            host("reviews", PortProtocol::Http, vec![route("default", Vec::new(), action)], vec![changed])
        };
        let world = World::new();
        world.service("reviews", "10.96.0.1", AppProtocol::Http11, limited(None));
        let told = Rc::new(Notify::new());
        let app = endpoint(&world, "one", &told).await;
        let mut sender = world.http2("cart", "10.96.0.1:9080").await;
        let slow = spawn_local(sender.send_request(get2("/slow")));
        assert_eq!(text(sender.send_request(get2("/")).await.unwrap()).await.0, 200);
        assert_eq!(app.connections.get(), 1);
        world.apply([Change::Host(limited(Some(1)).into())]);
        assert_eq!(text(sender.send_request(get2("/")).await.unwrap()).await.0, 200);
        assert_eq!(app.connections.get(), 2);
        told.notify_waiters();
        assert_eq!(text(slow.await.unwrap().unwrap()).await.0, 200);
    });
}

/// An address that answers no SYN for as long as what comes with it lives: its queue of connections is full.
pub(crate) async fn answers_no_syn() -> (SocketAddr, (TcpListener, [TcpStream; 2])) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(own_address(), 0)).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let waiting = [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
    (address, (listener, waiting))
}

/// `GET` on its way; its status, and how long that took.
pub(crate) fn asks(mut sender: Http2, path: &'static str) -> tokio::task::JoinHandle<(u16, Duration)> {
    spawn_local(async move {
        let started = Instant::now();
        let response = sender.send_request(get2(path)).await.unwrap();
        (response.status().as_u16(), started.elapsed())
    })
}

#[test]
fn requests_of_http2_to_an_endpoint_that_does_not_answer_fail_together() {
    const LIMIT: Duration = Duration::from_secs(1);
    run(async {
        let limits = Limits { connect_timeout: LIMIT, ..Limits::default() };
        let world = with_pool(|pool| (pool.limits, pool.upstream_version) = (limits, UpstreamVersion::Http2));
        let (address, _full) = answers_no_syn().await;
        world.endpoint("reviews", "v1", &App::elsewhere(address));
        let sender = world.http2("cart", "10.96.0.1:9080").await;
        for answer in join_all((0..5).map(|_| asks(sender.clone(), "/together"))).await {
            let (status, took) = answer.unwrap();
            assert_eq!(status, 503);
            assert!((LIMIT..LIMIT * 2).contains(&took), "{took:?}");
        }
        for line in log::all(&[("path", "/together")]) {
            assert_eq!((&line["response_flags"], &line["reason"]), (&json!("UF"), &json!("connect_timeout")));
        }
    });
}

#[test]
fn requests_that_wait_for_a_connection_that_cannot_be_made_fail_with_it() {
    const LIMIT: Duration = Duration::from_secs(1);
    run(async {
        let limits = Limits { connect_timeout: LIMIT, max_connections: Some(1), ..Limits::default() };
        let world = with_pool(|pool| pool.limits = limits);
        let (address, _full) = answers_no_syn().await;
        world.endpoint("reviews", "v1", &App::elsewhere(address));
        let mut asking = Vec::new();
        for upgrade in [None, None, None, Some("websocket")] {
            let mut sender = world.http1("cart", "10.96.0.1:9080").await;
            let mut request = get("/in-a-row");
            if let Some(upgrade) = upgrade {
                request.headers_mut().extend([(http::header::UPGRADE, upgrade.parse().unwrap())]);
                request.headers_mut().extend([(http::header::CONNECTION, "upgrade".parse().unwrap())]);
            }
            asking.push(spawn_local(async move { fetch(&mut sender, request).await.0 }));
        }
        let started = Instant::now();
        for answer in join_all(asking).await {
            assert_eq!(answer.unwrap(), 503);
        }
        assert!(started.elapsed() < LIMIT * 2, "{:?}", started.elapsed());
        let counts = &world.shared.pools.list()[0].current.state.counts;
        assert_eq!(counts.under_way(), Default::default());
    });
}

/// Who began to connect gives up; its connect goes on for the others, and fails in its own time.
#[test]
fn who_waits_for_others_to_connect_waits_no_longer_than_the_connect_timeout() {
    const LIMIT: Duration = Duration::from_secs(2);
    run(async {
        let limits = Limits { connect_timeout: LIMIT, ..Limits::default() };
        let world = with_pool(|pool| (pool.limits, pool.upstream_version) = (limits, UpstreamVersion::Http2));
        let (address, _full) = answers_no_syn().await;
        world.endpoint("reviews", "v1", &App::elsewhere(address));
        let sender = world.http2("cart", "10.96.0.1:9080").await;
        let pending = || world.shared.pools.list().first().map_or(0, |pool| pool.current.state.counts.under_way().pending_requests);
        let mut asking = Vec::new();
        for number in 1..=4 {
            asking.push(asks(sender.clone(), "/patient"));
            while pending() < number {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        let patient = asking.pop().unwrap();
        for impatient in &asking[..2] {
            tokio::time::sleep(LIMIT * 2 / 5).await;
            impatient.abort();
        }
        let (status, took) = patient.await.unwrap();
        assert_eq!(status, 503);
        // The first one's connect failed, and was the answer of all.
        assert!(took < LIMIT * 3 / 2, "{took:?}");
    });
}

#[test]
fn who_waits_for_a_stream_hears_that_the_endpoint_takes_more() {
    run(async {
        let limits = Limits { max_connections: Some(1), ..Limits::default() };
        let world = with_pool(|pool| (pool.limits, pool.upstream_version) = (limits, UpstreamVersion::Http2));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        world.endpoint("reviews", "v1", &App::elsewhere(listener.local_addr().unwrap()));
        let sender = world.http2("cart", "10.96.0.1:9080").await;
        let first = asks(sender.clone(), "/first");
        let mut endpoint = RawHttp2::accept(&listener, 1).await;
        let answer = |stream| frame::new(frame::HEADERS, frame::END_HEADERS | frame::END_STREAM, stream, &[0x88]);
        let stream = endpoint.request().await;
        endpoint.send(&answer(stream)).await;
        assert_eq!(first.await.unwrap().0, 200);
        let mut asking = vec![asks(sender.clone(), "/takes-the-stream")];
        let mut streams = vec![endpoint.request().await];
        asking.extend((0..2).map(|_| asks(sender.clone(), "/waits")));
        let pending = || world.shared.pools.list()[0].current.state.counts.under_way().pending_requests;
        while pending() < 2 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        endpoint.takes(10).await;
        while streams.len() < 3 {
            streams.push(endpoint.request().await);
        }
        for stream in streams {
            endpoint.send(&answer(stream)).await;
        }
        for answer in join_all(asking).await {
            assert_eq!(answer.unwrap().0, 200);
        }
    });
}
