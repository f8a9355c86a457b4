//! Connections to endpoints while they are made: who waits for one, who gives up, and what becomes of it.

use std::{
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use http::Response;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Notify,
    task::spawn_local,
    time::{sleep, timeout},
};
use tropis_model::{
    limits::UnderWay,
    pool::{Limits, UpstreamVersion},
};

use crate::{
    flow_pools::{answers_no_syn, asks},
    tries,
    world::{App, World, answers_on, fetch, full, get, own_address, run},
};

const REVIEWS: &str = "10.96.0.1:9080";
/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the one pool has under way.
fn under_way(world: &World) -> UnderWay {
    world.shared.pools.list().first().map(|pool| pool.current.state.counts.under_way()).unwrap_or_default()
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        sleep(Duration::from_millis(2)).await;
    }
}

/// Reads until `end` has come.
async fn reads(stream: &mut (impl AsyncRead + Unpin), end: &str) -> String {
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains(end) {
        let more = timeout(PATIENCE, stream.read_buf(&mut read)).await;
        assert!(matches!(more, Ok(Ok(1..))), "{more:?} after {}", String::from_utf8_lossy(&read));
    }
    String::from_utf8(read).unwrap()
}

/// A request that asks to become a WebSocket.
fn upgrade(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: reviews\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
}

#[test]
fn connections_that_are_made_one_after_the_other_time_out_for_nobody() {
    const LIMIT: Duration = Duration::from_millis(900);
    run(async {
        let world = tries::world(|_, pool| {
            pool.limits = Limits { connect_timeout: LIMIT, max_concurrent_streams: Some(1), ..Limits::default() };
            pool.upstream_version = UpstreamVersion::Http2;
        });
        let told = Rc::new(Notify::new());
        let answer = {
            let told = told.clone();
            move |_| {
                let told = told.clone();
                async move {
                    told.notified().await;
                    Response::new(full("told"))
                }
            }
        };
        let app = world.tunnelled_after(LIMIT / 3, own_address(), "reviews", answer).await;
        world.endpoint("reviews", "v1", &app);
        let sender = world.http2("cart", REVIEWS).await;
        let asking: Vec<_> = (0..5).map(|_| asks(sender.clone(), "/in-turn")).collect();
        // Each keeps its stream, so each needs a connection.
        until("each has a connection, or an answer", || {
            asking.iter().any(tokio::task::JoinHandle::is_finished) || under_way(&world).requests == 5
        })
        .await;
        told.notify_waiters();
        sleep(Duration::from_millis(50)).await;
        told.notify_waiters();
        let statuses: Vec<_> = join_all(asking).await.into_iter().map(|answer| answer.unwrap().0).collect();
        assert_eq!(statuses, [200; 5]);
    });
}

#[test]
fn a_connection_is_made_though_the_request_that_began_it_has_given_up() {
    let versions = [UpstreamVersion::FromPort, UpstreamVersion::Http2];
    for (version, requests) in versions.into_iter().flat_map(|version| [(version, None), (version, Some(1))]) {
        run(async {
            let world = tries::world(|forward, pool| {
                forward.timeout = Some(Duration::from_millis(300));
                pool.upstream_version = version;
                pool.limits.max_requests_per_connection = requests;
            });
            let (address, (listener, waiting)) = answers_no_syn().await;
            world.endpoint("reviews", "v1", &App::elsewhere(address));
            for _ in 0..3 {
                assert_eq!(world.get("/impatient").await.0, 504);
            }
            assert_eq!(under_way(&world).connections, 1, "nobody begins another one beside one that nobody waits for");
            // There is room: what the first request began is made, while nobody asks for anything.
            drop([listener.accept().await.unwrap(), listener.accept().await.unwrap()]);
            drop(waiting);
            let (made, _) = timeout(PATIENCE, listener.accept()).await.expect("the connection is made").unwrap();
            answers_on(made, "on the first one");
            assert_eq!(world.get("/late").await, (200, "on the first one".into()));
            let kept = UnderWay { connections: u32::from(requests.is_none()), ..UnderWay::default() };
            until("a connection that takes no more is closed", || under_way(&world) == kept).await;
        });
    }
}

#[test]
fn upgrades_that_wait_for_long_hear_together_that_no_connection_can_be_made() {
    const LIMIT: Duration = Duration::from_secs(1);
    run(async {
        let limits = Limits { connect_timeout: LIMIT, max_connections: Some(1), ..Limits::default() };
        let world = tries::world(|_, pool| pool.limits = limits);
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(own_address(), 0)).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        world.endpoint("reviews", "v1", &App::elsewhere(address));
        let mut open = world.tunnel("cart", REVIEWS).await.unwrap();
        open.write_all(upgrade("/open").as_bytes()).await.unwrap();
        let (mut endpoint, _) = listener.accept().await.unwrap();
        reads(&mut endpoint, "\r\n\r\n").await;
        endpoint.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n").await.unwrap();
        reads(&mut open, "\r\n\r\n").await;
        // The endpoint takes no other.
        let _full = [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
        let mut asking = Vec::new();
        for (number, pause) in [(1, Duration::from_millis(2500)), (2, Duration::ZERO)] {
            let mut waiting = world.tunnel("cart", REVIEWS).await.unwrap();
            waiting.write_all(upgrade("/waits").as_bytes()).await.unwrap();
            asking.push(spawn_local(async move { reads(&mut waiting, "\r\n\r\n").await }));
            until("it waits", || under_way(&world).pending_requests == number).await;
            // Long enough for what looks unused to be forgotten.
            sleep(pause).await;
        }
        let started = Instant::now();
        drop((open, endpoint));
        for answer in join_all(asking).await {
            assert!(answer.unwrap().starts_with("HTTP/1.1 503"));
        }
        assert!(started.elapsed() < LIMIT * 2, "{:?}", started.elapsed());
    });
}

#[test]
fn the_connection_of_a_refused_upgrade_is_taken_until_its_answer_has_ended() {
    run(async {
        let world = tries::world(|_, pool| pool.limits.max_connections = Some(1));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        world.endpoint("reviews", "v1", &App::elsewhere(listener.local_addr().unwrap()));
        let mut refused = world.tunnel("cart", REVIEWS).await.unwrap();
        refused.write_all(upgrade("/refused").as_bytes()).await.unwrap();
        let (mut endpoint, _) = listener.accept().await.unwrap();
        reads(&mut endpoint, "\r\n\r\n").await;
        endpoint.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 8\r\n\r\nhalf").await.unwrap();
        reads(&mut refused, "half").await;
        let mut second = world.http1("cart", REVIEWS).await;
        let second = spawn_local(async move { fetch(&mut second, get("/second")).await });
        assert!(timeout(Duration::from_millis(300), listener.accept()).await.is_err(), "the pool has one connection");
        assert_eq!(under_way(&world), UnderWay { connections: 1, pending_requests: 1, requests: 1, retries: 0 });
        endpoint.write_all(b"rest").await.unwrap();
        reads(&mut refused, "rest").await;
        let head = reads(&mut endpoint, "\r\n\r\n").await;
        assert!(head.starts_with("GET /second "), "{head}");
        endpoint.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
        assert_eq!(second.await.unwrap(), (200, "ok".into()));
    });
}
