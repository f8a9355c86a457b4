//! What happens to connections while they open, and while they are open.

use std::net::{IpAddr, Ipv6Addr};

use http::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::spawn_local,
};
use tropis_model::{
    policy::{PolicyKey, StringMatch},
    request_policy::{Attachment, RequestAction, RequestPolicy, RequestRule, SourceMatch},
    resolve::HBONE_PORT,
    route::{Host, PortProtocol, RouteAction},
    service::AppProtocol,
    view::Change,
    workload::{GatewayAddress, GatewayDestination, Workload},
};

use crate::{
    log,
    world::{App, Seen, World, fetch, forward, full, get, host, name, own_address, plain_host, pool, route, run, says, to},
};

/// The service `db` as plain TCP.
fn db() -> Host {
    host("db", PortProtocol::Tcp, Vec::new(), vec![pool("db", None)])
}

/// A policy that denies `account` of `shop` everything.
pub(crate) fn denies(account: &str) -> RequestPolicy {
    let principal = StringMatch::Exact(format!("cluster.local/ns/shop/sa/{account}").into());
    let source = SourceMatch { principals: vec![principal], ..SourceMatch::default() };
    RequestPolicy {
        key: PolicyKey("shop/denies".into()),
        attachment: Attachment::Target,
        action: RequestAction::Deny,
        rules: vec![RequestRule { from: vec![source], ..RequestRule::default() }],
        dry_run: false,
    }
}

/// The host with this policy.
pub(crate) fn under(policy: RequestPolicy, host: Host) -> Change {
    Change::Host(Host { policies: vec![policy.into()], ..host }.into())
}

#[test]
fn a_denial_that_comes_while_the_endpoint_is_connected_to_holds() {
    run(async {
        let world = World::new();
        world.service("db", "10.96.0.3", AppProtocol::Tcp, db());
        let mut app = world.tunnelled(own_address(), "db", |_| std::future::ready(Response::new(full("let in")))).await;
        // Where its tunnels seem to arrive, nobody answers before somebody carries them on.
        let listener = TcpListener::bind((own_address(), HBONE_PORT)).await.unwrap();
        let arrives = app.address.ip();
        app.address.set_ip(listener.local_addr().unwrap().ip());
        world.endpoint("db", "v1", &app);
        let mut caller = world.tunnel("cart", "10.96.0.3:9080").await.unwrap();
        let (mut waiting, _) = listener.accept().await.unwrap();
        world.apply([under(denies("cart"), db())]);
        let mut on = TcpStream::connect((arrives, HBONE_PORT)).await.unwrap();
        spawn_local(async move { tokio::io::copy_bidirectional(&mut waiting, &mut on).await });
        // It may be closed before or after this is taken.
        let _ = caller.write_all(b"GET / HTTP/1.1\r\nhost: db\r\n\r\n").await;
        let mut answer = Vec::new();
        let _ = caller.read_to_end(&mut answer).await;
        assert_eq!(String::from_utf8_lossy(&answer), "");
    });
}

/// An application that makes each connection an echo.
pub(crate) async fn echoes(world: &World) -> App {
    let answer = |mut request: Request<hyper::body::Incoming>| async move {
        spawn_local(async move {
            let upgraded = hyper::upgrade::on(&mut request).await.unwrap();
            let (mut reader, mut writer) = tokio::io::split(TokioIo::new(upgraded));
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
        });
        let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
        response.header("upgrade", "websocket").header("connection", "upgrade").body(full("")).unwrap()
    };
    world.app(answer).await
}

#[test]
fn a_denial_ends_an_open_websocket() {
    run(async {
        let world = World::new();
        world.reviews();
        let app = echoes(&world).await;
        world.endpoint("reviews", "v1", &app);
        let mut socket = world.tunnel("cart", "10.96.0.1:9080").await.unwrap();
        socket
            .write_all(b"GET /denied-later HTTP/1.1\r\nHost: reviews\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n1")
            .await
            .unwrap();
        let mut read = Vec::new();
        while !read.ends_with(b"\r\n\r\n1") {
            assert_ne!(socket.read_buf(&mut read).await.unwrap(), 0, "{}", String::from_utf8_lossy(&read));
        }
        world.apply([under(denies("bank"), plain_host("reviews"))]);
        socket.write_all(b"2").await.unwrap();
        assert_eq!(socket.read_u8().await.unwrap(), b'2', "others are denied");
        world.apply([under(denies("cart"), plain_host("reviews"))]);
        assert!(matches!(socket.read(&mut [0]).await, Ok(0) | Err(_)));
        let line = log::wait_for(&[("path", "/denied-later")]).await;
        assert_eq!((log::text(&line["reason"]), log::text(&line["stage"])), ("permit_revoked".into(), "relay".into()));
    });
}

#[test]
fn response_headers_of_a_route_are_on_an_upgraded_answer_too() {
    run(async {
        let world = World::new();
        let mut marked = route("marked", Vec::new(), RouteAction::Forward(Box::new(forward(vec![to("reviews", None)]))));
        marked.headers.response.set = vec![("x-by".into(), "route".into())];
        let host = host("reviews", PortProtocol::Http, vec![marked], vec![pool("reviews", None)]);
        world.service("reviews", "10.96.0.1", AppProtocol::Http11, host);
        let app = echoes(&world).await;
        world.endpoint("reviews", "v1", &app);
        let mut socket = world.tunnel("cart", "10.96.0.1:9080").await.unwrap();
        socket.write_all(b"GET / HTTP/1.1\r\nHost: reviews\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n1").await.unwrap();
        let mut read = Vec::new();
        while !read.ends_with(b"\r\n\r\n1") {
            assert_ne!(socket.read_buf(&mut read).await.unwrap(), 0, "{}", String::from_utf8_lossy(&read));
        }
        let head = String::from_utf8(read).unwrap();
        assert!(head.starts_with("HTTP/1.1 101") && head.contains("\r\nx-by: route\r\n"), "{head}");
    });
}

/// The workload behind the waypoint of this name.
pub(crate) fn behind(waypoint: &str, workload: &Workload) -> Change {
    let reference = GatewayAddress { destination: GatewayDestination::Service(name(waypoint)), hbone_port: HBONE_PORT };
    Change::Workload(Workload { waypoint: Some(reference), ..workload.clone() }.into())
}

#[test]
fn a_workload_that_goes_to_another_waypoint_is_no_longer_served_on_open_connections() {
    run(async {
        let world = World::new();
        let seen = Seen::default();
        let app = world.app(says("served", &seen)).await;
        let workload = world.endpoint("reviews", "v1", &app);
        world.apply([behind("waypoint", &workload)]);
        let mut sender = world.http1("cart", &app.address.to_string()).await;
        assert_eq!(fetch(&mut sender, get("/attached")).await, (200, "served".into()));
        world.apply([behind("stricter", &workload)]);
        // It is refused, or the connection has ended before it came.
        if let Ok(answer) = sender.send_request(get("/attached-elsewhere")).await {
            assert_eq!((answer.status().as_u16(), answer.headers()["connection"].to_str().unwrap()), (404, "close"));
            assert_eq!(log::text(&log::wait_for(&[("path", "/attached-elsewhere")]).await["reason"]), "not_attached");
        }
        assert_eq!(seen.borrow().len(), 1);
    });
}

#[test]
fn a_workload_with_two_addresses_is_called_at_the_one_that_was_called() {
    run(async {
        let world = World::new();
        let app = world.app_at("[::1]:0".parse().unwrap(), says("six", &Seen::default())).await;
        let mut workload = world.endpoint("reviews", "v1", &app);
        workload.addresses = vec![own_address(), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        world.apply([behind("waypoint", &workload)]);
        let mut sender = world.http1("cart", &app.address.to_string()).await;
        assert_eq!(fetch(&mut sender, get("/six")).await, (200, "six".into()));
    });
}

#[test]
fn what_only_proxies_may_say_is_not_taken_from_callers() {
    run(async {
        let world = World::new();
        world.reviews();
        let seen = Seen::default();
        let app = world.app(says("hello", &seen)).await;
        world.endpoint("reviews", "v1", &app);
        let mut sender = world.http1("cart", "10.96.0.1:9080").await;
        let mut request = get("/claims");
        for name in ["x-forwarded-client-cert", "x-envoy-original-path", "x-other"] {
            request.headers_mut().insert(name, http::HeaderValue::from_static("URI=spiffe://cluster.local/ns/shop/sa/admin"));
        }
        assert_eq!(fetch(&mut sender, request).await.0, 200);
        let arrived = &seen.borrow()[0].headers;
        assert!(!arrived.contains_key("x-forwarded-client-cert") && !arrived.contains_key("x-envoy-original-path"), "{arrived:?}");
        assert!(arrived.contains_key("x-other"));
    });
}
