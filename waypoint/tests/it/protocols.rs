//! HTTP/2, gRPC, upgrades, TCP and TLS that is passed on; what is spoken is found out where nobody says.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tropis_model::{
    policy::PolicyKey,
    request_policy::{Attachment, RequestAction, RequestPolicy, RequestRule},
    route::{Host, PortProtocol, RouteAction},
    service::AppProtocol,
    view::Change,
};

use crate::{
    log,
    world::{Seen, World, echo, fetch, forward, full, get, get2, host, own_address, plain_host, pool, route, run, says, text, to},
};

fn with_protocol(protocol: PortProtocol) -> Host {
    let action = RouteAction::Forward(Box::new(forward(vec![to("reviews", None)])));
    host("reviews", protocol, vec![route("default", Vec::new(), action)], vec![pool("reviews", None)])
}

#[test]
fn http2_goes_through_as_http2_on_one_connection() {
    run(async {
        let world = World::new();
        world.service("reviews", "10.96.0.1", AppProtocol::Http2, with_protocol(PortProtocol::Http2));
        let seen = Seen::default();
        let app = world.tunnelled(own_address(), "reviews", says("two", &seen)).await;
        world.endpoint("reviews", "v1", &app);
        let sender = world.http2("cart", "10.96.0.1:9080").await;
        let mut answers = Vec::new();
        for _ in 0..5 {
            let mut sender = sender.clone();
            answers.push(tokio::task::spawn_local(async move { text(sender.send_request(get2("/http2")).await.unwrap()).await }));
        }
        for answer in answers {
            assert_eq!(answer.await.unwrap(), (200, "two".into()));
        }
        assert_eq!(app.connections.get(), 1);
        let heads = seen.take();
        assert_eq!((heads[0].version, heads[0].uri.authority().unwrap().as_str()), (http::Version::HTTP_2, "reviews:9080"));
        assert_eq!(log::wait_for(&[("path", "/http2")]).await["protocol"], json!("HTTP/2"));
    });
}

#[test]
fn http2_callers_reach_http1_endpoints() {
    run(async {
        let world = World::new();
        world.reviews();
        let seen = Seen::default();
        let app = world.app(says("one", &seen)).await;
        world.endpoint("reviews", "v1", &app);
        let mut sender = world.http2("cart", "10.96.0.1:9080").await;
        assert_eq!(text(sender.send_request(get2("/")).await.unwrap()).await, (200, "one".into()));
        assert_eq!(
            (seen.borrow()[0].version, &seen.borrow()[0].headers["host"]),
            (http::Version::HTTP_11, &"reviews:9080".parse().unwrap())
        );
    });
}

#[test]
fn grpc_keeps_its_trailers_and_its_failures() {
    run(async {
        let world = World::new();
        world.service("reviews", "10.96.0.1", AppProtocol::Grpc, with_protocol(PortProtocol::Grpc));
        let call = |path: &str| {
            let mut request = get2(path);
            *request.method_mut() = http::Method::POST;
            request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
            request.headers_mut().insert("te", HeaderValue::from_static("trailers"));
            request
        };
        let mut sender = world.http2("cart", "10.96.0.1:9080").await;
        let response = sender.send_request(call("/none")).await.unwrap();
        assert_eq!((response.status().as_u16(), &response.headers()["grpc-status"]), (200, &"14".parse().unwrap()), "no endpoint");
        let app = world
            .app(|request| {
                assert_eq!(request.headers()["te"], "trailers");
                let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("5"))]);
                let frames = [Ok(Frame::data(Bytes::from_static(b"\0\0\0\0\0"))), Ok(Frame::trailers(trailers))];
                let body = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
                std::future::ready(Response::builder().header("content-type", "application/grpc").body(body).unwrap())
            })
            .await;
        world.endpoint("reviews", "v1", &app);
        let response = sender.send_request(call("/grpc-call")).await.unwrap();
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["grpc-status"], "5");
        log::wait_for(&[("path", "/grpc-call")]).await;
        let metrics = world.scrape();
        assert!(metrics.contains("request_protocol=\"grpc\",response_code=\"200\",grpc_response_status=\"5\""), "{metrics}");
    });
}

#[test]
fn a_websocket_is_relayed_after_its_upgrade() {
    run(async {
        let world = World::new();
        world.reviews();
        let app = world
            .app(|mut request| async move {
                assert_eq!(
                    (&request.headers()["upgrade"], &request.headers()["connection"]),
                    (&"websocket".parse().unwrap(), &"upgrade".parse().unwrap())
                );
                tokio::task::spawn_local(async move {
                    let mut upgraded = TokioIo::new(hyper::upgrade::on(&mut request).await.unwrap());
                    let mut buffer = [0; 5];
                    upgraded.read_exact(&mut buffer).await.unwrap();
                    upgraded.write_all(&buffer).await.unwrap();
                    upgraded.shutdown().await.unwrap();
                });
                Response::builder()
                    .status(StatusCode::SWITCHING_PROTOCOLS)
                    .header("upgrade", "websocket")
                    .header("connection", "upgrade")
                    .body(full(""))
                    .unwrap()
            })
            .await;
        world.endpoint("reviews", "v1", &app);
        let mut stream = world.tunnel("cart", "10.96.0.1:9080").await.unwrap();
        stream.write_all(b"GET /socket HTTP/1.1\r\nHost: reviews\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello").await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 101") && answer.ends_with("\r\n\r\nhello"), "{answer}");
        drop(stream);
        let line = log::wait_for(&[("path", "/socket")]).await;
        assert_eq!((&line["response_code"], &line["bytes_received"], &line["bytes_sent"]), (&json!(101), &json!(5), &json!(5)));
    });
}

#[test]
fn an_upgrade_that_is_refused_is_an_ordinary_answer() {
    run(async {
        let world = World::new();
        world.reviews();
        let app = world.app(says("no", &Seen::default())).await;
        world.endpoint("reviews", "v1", &app);
        let mut sender = world.http1("cart", "10.96.0.1:9080").await;
        let mut request = get("/");
        request.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
        request.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
        assert_eq!(fetch(&mut sender, request).await, (200, "no".into()));
    });
}

/// A world whose service is an application that gives back what it gets.
async fn echoing(protocol: PortProtocol, settings: &[(&str, &str)]) -> World {
    let world = World::at("127.0.0.1:0", settings);
    world.service("reviews", "10.96.0.1", AppProtocol::Unknown, with_protocol(protocol));
    let mut app = world.app(says("never", &Seen::default())).await;
    app.address = echo().await;
    world.endpoint("reviews", "v1", &app);
    world
}

#[test]
fn tcp_is_passed_on_and_counted() {
    run(async {
        for protocol in [PortProtocol::Tcp, PortProtocol::Auto] {
            let world = echoing(protocol, &[]).await;
            let mut stream = world.tunnel("cart", "10.96.0.1:9080").await.unwrap();
            stream.write_all(b"*1\r\n$4\r\nPING\r\n").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, b"*1\r\n$4\r\nPING\r\n");
            let deadline = std::time::Instant::now() + Duration::from_secs(10);
            let closed = |line: &str| line.starts_with("istio_tcp_connections_closed_total{") && line.ends_with(" 1");
            while !world.scrape().lines().any(closed) {
                assert!(std::time::Instant::now() < deadline, "{}", world.scrape());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let metrics = world.scrape();
            let line = metrics.lines().find(|line| line.starts_with("istio_tcp_received_bytes_total{")).unwrap();
            assert!(line.ends_with(" 14") && line.contains("request_protocol=\"tcp\""), "{line}");
        }
    });
}

#[test]
fn a_connection_ends_when_policy_no_longer_allows_it() {
    run(async {
        let world = echoing(PortProtocol::Tcp, &[]).await;
        let mut stream = world.tunnel("cart", "10.96.0.1:9080").await.unwrap();
        let mut answer = [0; 4];
        stream.write_all(b"ping").await.unwrap();
        stream.read_exact(&mut answer).await.unwrap();
        let mut guarded = with_protocol(PortProtocol::Tcp);
        let denied = RequestPolicy {
            key: PolicyKey("shop/nobody".into()),
            attachment: Attachment::Target,
            action: RequestAction::Deny,
            rules: vec![RequestRule::default()],
            dry_run: false,
        };
        guarded.policies = vec![Arc::new(denied)];
        world.apply([Change::Host(Arc::new(guarded))]);
        assert!(stream.read_exact(&mut answer).await.is_err());
        let mut next = world.tunnel("cart", "10.96.0.1:9080").await.unwrap();
        assert!(next.read_exact(&mut answer).await.is_err());
    });
}

#[test]
fn whoever_waits_for_the_server_to_speak_is_tcp() {
    run(async {
        let world = World::at("127.0.0.1:0", &[("TROPIS_SNIFF_WAIT", "30ms")]);
        world.service("reviews", "10.96.0.1", AppProtocol::Unknown, with_protocol(PortProtocol::Auto));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut app = world.app(says("never", &Seen::default())).await;
        app.address = listener.local_addr().unwrap();
        world.endpoint("reviews", "v1", &app);
        tokio::task::spawn_local(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"220 mail\r\n").await.unwrap();
        });
        let mut stream = world.tunnel("cart", "10.96.0.1:9080").await.unwrap();
        let mut answer = [0; 10];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"220 mail\r\n");
    });
}

#[test]
fn http_is_found_on_a_port_that_nobody_declared() {
    run(async {
        let world = World::new();
        world.service("reviews", "10.96.0.1", AppProtocol::Unknown, with_protocol(PortProtocol::Auto));
        let seen = Seen::default();
        let app = world.app(says("found", &seen)).await;
        world.endpoint("reviews", "v1", &app);
        assert_eq!(world.get("/").await, (200, "found".into()));
        let mut sender = world.http2("cart", "10.96.0.1:9080").await;
        assert_eq!(text(sender.send_request(get2("/")).await.unwrap()).await, (200, "found".into()));
        let versions: Vec<_> = seen.borrow().iter().map(|head| head.version).collect();
        assert_eq!(versions, [http::Version::HTTP_11, http::Version::HTTP_2], "as the caller speaks");
    });
}

#[test]
fn plain_listeners_serve_their_host() {
    run(async {
        let listeners = "127.0.0.1:0=reviews.shop.svc.cluster.local:9080";
        let world = World::at("127.0.0.1:0", &[("TROPIS_PLAIN_LISTENERS", listeners)]);
        world.service("reviews", "10.96.0.1", AppProtocol::Http11, plain_host("reviews"));
        let app = world.app(says("plain", &Seen::default())).await;
        world.endpoint("reviews", "v1", &app);
        let stream = tokio::net::TcpStream::connect(world.bound.plain[0]).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::task::spawn_local(connection);
        assert_eq!(fetch(&mut sender, get("/plain-listener")).await, (200, "plain".into()));
        log::wait_for(&[("path", "/plain-listener")]).await;
        assert!(world.scrape().contains("connection_security_policy=\"none\""));
    });
}

#[test]
fn a_reader_that_stalls_makes_the_endpoint_wait() {
    run(async {
        let world = World::new();
        world.reviews();
        let made = Arc::new(AtomicUsize::new(0));
        let app = world
            .app({
                let made = made.clone();
                move |_| {
                    let made = made.clone();
                    let chunk = Bytes::from(vec![7; 64 * 1024]);
                    let frames = futures_util::stream::iter((0..4096).map(move |_| {
                        made.fetch_add(chunk.len(), Ordering::Relaxed);
                        Ok(Frame::data(chunk.clone()))
                    }));
                    std::future::ready(Response::new(StreamBody::new(frames).boxed_unsync()))
                }
            })
            .await;
        world.endpoint("reviews", "v1", &app);
        let mut sender = world.http1("cart", "10.96.0.1:9080").await;
        let mut body =
            sender.send_request(Request::get("/stalls").header("host", "reviews").body(full("")).unwrap()).await.unwrap().into_body();
        body.frame().await.unwrap().unwrap();
        let mut before = 0;
        while made.load(Ordering::Relaxed) != before {
            before = made.load(Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        assert!(before < 32 * 1024 * 1024, "{before} bytes were taken from the endpoint");
        let mut received = 0;
        while let Some(frame) = body.frame().await {
            received += frame.unwrap().data_ref().map_or(0, Bytes::len);
        }
        assert!(received > 255 * 1024 * 1024, "{received}");
    });
}
