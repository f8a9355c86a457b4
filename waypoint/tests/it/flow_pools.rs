//! Pools over time: who waits for a connection gets one, and what is remembered about endpoints.

use std::{net::SocketAddr, rc::Rc, time::Duration};

use http::Response;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::Notify,
    task::spawn_local,
};
use tropis_model::{
    pool::{Limits, OutlierDetection, Pool, UpstreamVersion},
    route::{PortProtocol, RouteAction},
    service::AppProtocol,
    view::Change,
};

use crate::world::{App, World, fetch, forward, full, get, get2, host, own_address, pool, route, run, text, to};

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
