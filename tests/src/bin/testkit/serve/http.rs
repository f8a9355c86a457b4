//! The HTTP role of `serve`: who calls, on which connection, with which header fields; or as many bytes as are asked for, as cheaply as
//! can be, for loads. HTTP/1.1 and HTTP/2 with prior knowledge.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tropis_tests::testkit::Greeting;

use super::{Accepted, Server};

/// Longest wait for the head of a request; a kept-alive connection may rest this long.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);

/// Largest body that `?bytes=` gives; it is there once in the program.
static BODY: [u8; 1 << 20] = [0x5a; 1 << 20];
/// The first bytes of HTTP/2 with prior knowledge that no HTTP/1.1 request has (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0";

/// Who answers on which connection.
struct Desk {
    server: Arc<Server>,
    number: u64,
    peer: SocketAddr,
    local: SocketAddr,
    requests: AtomicU64,
}

pub(super) async fn serve(server: &Arc<Server>, connection: Accepted) -> io::Result<()> {
    let Accepted { stream, number, peer, local } = connection;
    let http2 = is_http2(&stream).await?;
    let desk = Arc::new(Desk { server: server.clone(), number, peer, local, requests: AtomicU64::new(0) });
    let service = service_fn(move |request: Request<Incoming>| std::future::ready(Ok::<_, Infallible>(desk.answer(&request))));
    let served = if http2 {
        let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await
    } else {
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).half_close(true);
        builder.serve_connection(TokioIo::new(stream), service).await
    };
    served.map_err(io::Error::other)
}

/// Looks, without taking, whether a connection begins as HTTP/2 does.
pub(super) async fn is_http2(stream: &TcpStream) -> io::Result<bool> {
    let mut seen = [0; PREFACE.len()];
    loop {
        let length = stream.peek(&mut seen).await?;
        if length == 0 || length == PREFACE.len() || seen[..length] != PREFACE[..length] {
            return Ok(length == PREFACE.len() && seen == PREFACE);
        }
        // Only part of it came; peeking again would not wait for the rest.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

impl Desk {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(wanted) = request.uri().query().and_then(|query| query.strip_prefix("bytes=")) {
            return match wanted.parse::<usize>().ok().and_then(|length| BODY.get(..length)) {
                Some(body) => respond(StatusCode::OK, "application/octet-stream", body),
                None => respond(StatusCode::BAD_REQUEST, "text/plain", "bytes= takes a number, 1048576 at most"),
            };
        }
        match request.uri().path() {
            "/ping" => respond(StatusCode::OK, "text/plain", "pong"),
            "/health" => respond(StatusCode::OK, "text/plain", "ok"),
            "/" => self.greet(request, number),
            _ => respond(StatusCode::NOT_FOUND, "text/plain", "no such path; there are /, /ping, /health and ?bytes=NUMBER on any"),
        }
    }

    fn greet(&self, request: &Request<Incoming>, request_number: u64) -> Response<Full<Bytes>> {
        let greeting = Greeting {
            pod: self.server.pod.clone(),
            namespace: self.server.namespace.clone(),
            peer: self.peer.to_string(),
            local: self.local.to_string(),
            request: format!("{} {}", request.method(), request.uri().path()),
            headers: header_fields(request),
            connection: self.number,
            request_number,
        };
        let text = serde_json::to_string(&greeting).expect("a greeting is plain data with string keys");
        respond(StatusCode::OK, "application/json", text)
    }
}

fn header_fields(request: &Request<Incoming>) -> std::collections::BTreeMap<String, String> {
    request.headers().iter().map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())).collect()
}

fn respond(status: StatusCode, content_type: &'static str, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}
