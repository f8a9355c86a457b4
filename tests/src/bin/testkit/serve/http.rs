//! The HTTP role of `serve`: who calls, on which connection, with which header fields.

use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tropis_tests::testkit::Greeting;

use super::{Accepted, Server};

/// Longest wait for the head of a request; a kept-alive connection may rest this long.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);

pub(super) async fn serve(server: &Server, connection: Accepted) -> io::Result<()> {
    let Accepted { stream, number, peer, local } = connection;
    let requests = AtomicU64::new(0);
    let answer = service_fn(async |request: Request<Incoming>| {
        let request_number = requests.fetch_add(1, Ordering::Relaxed) + 1;
        Ok::<_, Infallible>(match request.uri().path() {
            "/ping" => respond(StatusCode::OK, "text/plain", "pong"),
            "/health" => respond(StatusCode::OK, "text/plain", "ok"),
            "/" => {
                let greeting = Greeting {
                    pod: server.pod.clone(),
                    namespace: server.namespace.clone(),
                    peer: peer.to_string(),
                    local: local.to_string(),
                    request: format!("{} {}", request.method(), request.uri().path()),
                    headers: header_fields(&request),
                    connection: number,
                    request_number,
                };
                let text = serde_json::to_string(&greeting).expect("a greeting is plain data with string keys");
                respond(StatusCode::OK, "application/json", text)
            }
            _ => respond(StatusCode::NOT_FOUND, "text/plain", "no such path; there are /, /ping and /health"),
        })
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), answer)
        .await
        .map_err(io::Error::other)
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
