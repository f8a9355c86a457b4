//! Every form of a message arrives as it was sent, whichever version of HTTP is spoken on either side; and nothing that is open is cut
//! for being quiet, but for connections to endpoints that a peak left behind.

use std::{
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::{Barrier, mpsc},
    task::{LocalSet, spawn_local},
};
use tropis_model::{
    route::{PortProtocol, RouteAction},
    service::AppProtocol,
};
use tropis_waypoint::{tunnel, worker::Worker};

use crate::{
    log,
    raw::{Answer, RawHttp2, frame, plain_world},
    world::{Body, Http1, Http2, World, forward, full, get, host, own_address, plain_host, pool, route, run, to},
};

/// A caller of either version.
enum Caller {
    Http1(Http1),
    Http2(Http2),
}

impl Caller {
    async fn new(world: &World, version: Version) -> Self {
        match version {
            Version::HTTP_2 => Self::Http2(world.http2("cart", "10.96.0.1:9080").await),
            _ => Self::Http1(world.http1("cart", "10.96.0.1:9080").await),
        }
    }

    fn request(&self, method: Method, path: &str, body: Body) -> Request<Body> {
        let builder = Request::builder().method(method);
        let builder = match self {
            Self::Http1(_) => builder.uri(path).header("host", "reviews"),
            Self::Http2(_) => builder.uri(format!("http://reviews{path}")).version(Version::HTTP_2),
        };
        // HTTP/1.1 sends the trailers that were announced, and answers with them whoever asks for them.
        builder.header("te", "trailers").header("trailer", "x-end").body(body).unwrap()
    }

    async fn send(&mut self, request: Request<Body>) -> Response<Incoming> {
        match self {
            Self::Http1(sender) => {
                sender.ready().await.unwrap();
                sender.send_request(request).await.unwrap()
            }
            Self::Http2(sender) => sender.send_request(request).await.unwrap(),
        }
    }
}

/// A body whose length nobody says, in two pieces, with trailers.
fn pieces() -> Body {
    let trailers = HeaderMap::from_iter([("x-end".parse().unwrap(), HeaderValue::from_static("yes"))]);
    let frames = ["hello ", "world"].map(|piece| Ok(Frame::data(Bytes::from_static(piece.as_bytes()))));
    StreamBody::new(stream::iter(frames.into_iter().chain([Ok(Frame::trailers(trailers))]))).boxed_unsync()
}

/// Answers by the path, and tells what came.
async fn answer(request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let length = parts.headers.get("content-length").cloned();
    let body = body.collect().await.unwrap();
    let end = body.trailers().and_then(|trailers| trailers.get("x-end")).cloned();
    let none = HeaderValue::from_static("none");
    let builder = Response::builder()
        .header("x-method", parts.method.as_str())
        .header("x-body", body.to_bytes().len())
        .header("x-length", length.unwrap_or_else(|| none.clone()))
        .header("x-end-seen", end.unwrap_or(none));
    match parts.uri.path() {
        "/pieces" => builder.header("trailer", "x-end").body(pieces()),
        "/204" => builder.status(204).body(full("")),
        "/304" => builder.status(304).header("etag", "x").body(full("")),
        "/head" => builder.header("content-length", 1234).body(full("")),
        _ => builder.body(full("hello world")),
    }
    .unwrap()
}

fn sends_on(protocol: PortProtocol) -> tropis_model::route::Host {
    let action = RouteAction::Forward(Box::new(forward(vec![to("reviews", None)])));
    host("reviews", protocol, vec![route("default", Vec::new(), action)], vec![pool("reviews", None)])
}

/// Plays `test` with every version on either side.
fn each_version<F: Future<Output = ()>>(test: impl Fn(Caller, String) -> F) {
    run(async {
        for version in [Version::HTTP_11, Version::HTTP_2] {
            for protocol in [AppProtocol::Http11, AppProtocol::Http2] {
                let world = World::new();
                world.service("reviews", "10.96.0.1", protocol, sends_on(PortProtocol::Http));
                let app = world.app(answer).await;
                world.endpoint("reviews", "v1", &app);
                test(Caller::new(&world, version).await, format!("{version:?} to {protocol:?}")).await;
            }
        }
    });
}

fn said<'r>(response: &'r Response<Incoming>, name: &str) -> &'r str {
    response.headers().get(name).map_or("none", |value| value.to_str().unwrap())
}

#[test]
fn bodies_of_unknown_length_and_their_trailers_go_both_ways() {
    each_version(|mut caller, case| async move {
        let request = caller.request(Method::POST, "/pieces", pieces());
        let response = caller.send(request).await;
        assert_eq!(
            (said(&response, "x-body"), said(&response, "x-length"), said(&response, "x-end-seen")),
            ("11", "none", "yes"),
            "{case}"
        );
        assert_eq!(said(&response, "content-length"), "none", "{case}");
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["x-end"], "yes", "{case}");
        assert_eq!(body.to_bytes(), "hello world", "{case}");
    });
}

#[test]
fn bodies_of_known_length_keep_it() {
    each_version(|mut caller, case| async move {
        let request = caller.request(Method::PUT, "/", full("12345"));
        let response = caller.send(request).await;
        assert_eq!((said(&response, "x-method"), said(&response, "x-body"), said(&response, "x-length")), ("PUT", "5", "5"), "{case}");
        assert_eq!(said(&response, "content-length"), "11", "{case}");
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello world", "{case}");
    });
}

#[test]
fn answers_without_a_body_have_none_and_the_next_request_is_answered() {
    each_version(|mut caller, case| async move {
        for (method, path, status, length) in
            [(Method::HEAD, "/head", 200, "1234"), (Method::GET, "/204", 204, "none"), (Method::GET, "/304", 304, "none")]
        {
            let request = caller.request(method, path, full(""));
            let response = caller.send(request).await;
            assert_eq!((response.status().as_u16(), said(&response, "content-length")), (status, length), "{case}: {path}");
            assert_eq!(said(&response, "transfer-encoding"), "none", "{case}: {path}");
            assert_eq!(said(&response, "etag") == "x", path == "/304", "{case}: {path}");
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "", "{case}: {path}");
        }
        let request = caller.request(Method::GET, "/", full(""));
        let response = caller.send(request).await;
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello world", "{case}");
    });
}

#[test]
fn a_caller_that_waits_for_100_is_told_to_go_on() {
    run(async {
        for protocol in [AppProtocol::Http11, AppProtocol::Http2] {
            let world = plain_world(plain_host("reviews"), &[]);
            world.service("reviews", "10.96.0.1", protocol, plain_host("reviews"));
            let app = world.app(answer).await;
            world.endpoint("reviews", "v1", &app);
            let mut stream = world.tunnel("cart", "10.96.0.1:9080").await.unwrap();
            stream
                .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n")
                .await
                .unwrap();
            let mut go_on = [0; 25];
            stream.read_exact(&mut go_on).await.unwrap();
            assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
            stream.write_all(b"12345").await.unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
            let rest = String::from_utf8(rest).unwrap();
            assert!(rest.starts_with("HTTP/1.1 200 OK\r\n") && rest.contains("x-body: 5\r\n"), "{protocol:?}: {rest}");

            // A caller of HTTP/2 may send before it is told, and is not told.
            let mut connection = RawHttp2::open(world.bound.plain[0]).await;
            let fields = [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/"), ("expect", "100-continue")];
            connection.send(&frame::new(frame::HEADERS, frame::END_HEADERS, 1, &frame::block(&fields))).await;
            connection.send(&frame::new(frame::DATA, frame::END_STREAM, 1, b"12345")).await;
            assert_eq!(connection.answer(1).await, Answer::Status(200), "{protocol:?}");
        }
    });
}

/// RFC 8441 is not offered, so that callers of HTTP/2 open their WebSockets through HTTP/1.1.
#[test]
fn websockets_over_http2_are_not_offered() {
    const ENABLE_CONNECT_PROTOCOL: u16 = 8;
    run(async {
        let world = plain_world(plain_host("reviews"), &[]);
        let mut connection = RawHttp2::open(world.bound.plain[0]).await;
        let (kind, flags, _, payload) = connection.next().await.unwrap();
        assert_eq!((kind, flags), (frame::SETTINGS, 0));
        let offered: Vec<u16> = payload.chunks(6).map(|setting| u16::from_be_bytes([setting[0], setting[1]])).collect();
        assert!(!offered.is_empty() && !offered.contains(&ENABLE_CONNECT_PROTOCOL), "{offered:?}");
    });
}

/// A waypoint that runs on this thread, so that its clock is the test's, which jumps to the next timer when all have to wait.
struct Simulated {
    world: World,
    worker: Rc<Worker>,
    began: (tokio::time::Instant, Instant),
}

impl Simulated {
    fn run<F: Future<Output = ()>>(test: impl FnOnce(Self) -> F) {
        log::start();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let mut world = World::new();
            let worker = Rc::new(Worker::new(world.shared.clone()));
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            world.bound.hbone = listener.local_addr().unwrap();
            let (serving, drain) = (worker.clone(), world.shared.drain.signal());
            spawn_local(async move {
                loop {
                    let (stream, from): (_, SocketAddr) = listener.accept().await.unwrap();
                    spawn_local(tunnel::serve(serving.clone(), drain.clone(), stream, from));
                }
            });
            test(Self { world, worker, began: (tokio::time::Instant::now(), Instant::now()) }).await;
        });
    }

    /// So much time passes, second by second as the worker's sweep sees it.
    async fn pass(&self, seconds: u64) {
        for _ in 0..seconds {
            tokio::time::sleep(Duration::from_secs(1)).await;
            self.worker.connections.sweep(self.began.1 + self.began.0.elapsed());
        }
    }
}

#[test]
fn a_grpc_stream_of_ten_minutes_is_not_cut_for_being_quiet() {
    Simulated::run(|simulated| async move {
        let world = &simulated.world;
        world.service("reviews", "10.96.0.1", AppProtocol::Grpc, sends_on(PortProtocol::Grpc));
        let app = world
            .tunnelled(own_address(), "reviews", |request| {
                let echo = stream::unfold(request.into_body(), |mut body| async move {
                    Some((body.frame().await?.map_err(std::io::Error::other), body))
                });
                let response = Response::builder().header("content-type", "application/grpc");
                std::future::ready(response.body(StreamBody::new(echo).boxed_unsync()).unwrap())
            })
            .await;
        world.endpoint("reviews", "v1", &app);
        let (say, mut heard) = mpsc::unbounded_channel::<Frame<Bytes>>();
        let words = stream::poll_fn(move |cx| heard.poll_recv(cx).map(|frame| frame.map(Ok)));
        let request = Request::post("http://reviews/chat").header("content-type", "application/grpc").header("te", "trailers");
        let mut sender = world.http2("cart", "10.96.0.1:9080").await;
        let mut echoed = sender.send_request(request.body(StreamBody::new(words).boxed_unsync()).unwrap()).await.unwrap().into_body();
        for number in 0..20_u8 {
            say.send(Frame::data(Bytes::from(vec![number; 5]))).unwrap();
            assert_eq!(echoed.frame().await.unwrap().unwrap().into_data().unwrap(), vec![number; 5]);
            simulated.pass(30).await;
        }
        // And as long again without a word.
        simulated.pass(600).await;
        say.send(Frame::data(Bytes::from_static(b"still"))).unwrap();
        assert_eq!(echoed.frame().await.unwrap().unwrap().into_data().unwrap(), "still");
        let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
        say.send(Frame::trailers(trailers)).unwrap();
        drop(say);
        assert_eq!(echoed.frame().await.unwrap().unwrap().into_trailers().unwrap()["grpc-status"], "0");
        assert!(echoed.frame().await.is_none());
        assert!(simulated.began.0.elapsed() >= Duration::from_secs(20 * 60));
        let lines = log::all(&[("path", "/chat")]);
        assert_eq!((lines.len(), &lines[0]["response_code"], &lines[0]["response_flags"]), (1, &json!(200), &json!("-")));
    });
}

#[test]
fn a_websocket_and_an_idle_connection_of_http1_are_not_cut_for_being_quiet() {
    Simulated::run(|simulated| async move {
        let world = &simulated.world;
        world.reviews();
        let app = world
            .app(|mut request| async move {
                if !request.headers().contains_key("upgrade") {
                    return Response::new(full("hello"));
                }
                spawn_local(async move {
                    let upgraded = TokioIo::new(hyper::upgrade::on(&mut request).await.unwrap());
                    let (mut reader, mut writer) = tokio::io::split(upgraded);
                    tokio::io::copy(&mut reader, &mut writer).await.unwrap();
                });
                let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
                response.header("upgrade", "websocket").header("connection", "upgrade").body(full("")).unwrap()
            })
            .await;
        world.endpoint("reviews", "v1", &app);
        let mut idle = world.http1("cart", "10.96.0.1:9080").await;
        assert_eq!(crate::world::fetch(&mut idle, get("/")).await, (200, "hello".into()));
        let mut socket = world.tunnel("cart", "10.96.0.1:9080").await.unwrap();
        socket.write_all(b"GET /quiet HTTP/1.1\r\nHost: reviews\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await.unwrap());
        }
        simulated.pass(600).await;
        socket.write_all(b"ping").await.unwrap();
        let mut echoed = [0; 4];
        socket.read_exact(&mut echoed).await.unwrap();
        assert_eq!(&echoed, b"ping");
        assert_eq!(crate::world::fetch(&mut idle, get("/again")).await, (200, "hello".into()));
    });
}

#[test]
fn connections_to_an_endpoint_that_a_peak_left_behind_are_closed() {
    Simulated::run(|simulated| async move {
        let world = &simulated.world;
        world.reviews();
        let all_are_there = Rc::new(Barrier::new(6));
        let app = world
            .app(move |_| {
                let all_are_there = all_are_there.clone();
                async move {
                    all_are_there.wait().await;
                    Response::new(full("hello"))
                }
            })
            .await;
        world.endpoint("reviews", "v1", &app);
        let mut callers = Vec::new();
        for _ in 0..6 {
            let mut sender = world.http1("cart", "10.96.0.1:9080").await;
            callers.push(spawn_local(async move { crate::world::fetch(&mut sender, get("/")).await }));
        }
        for caller in callers {
            assert_eq!(caller.await.unwrap(), (200, "hello".into()));
        }
        let open_and_idle = || simulated.worker.connections.open();
        simulated.pass(5).await;
        assert_eq!(open_and_idle(), (6, 6));
        simulated.pass(7).await;
        assert_eq!(open_and_idle(), (4, 4));
        simulated.pass(600).await;
        assert_eq!(open_and_idle(), (4, 4));
        simulated.pass(3600).await;
        assert_eq!(open_and_idle(), (0, 0));
    });
}
