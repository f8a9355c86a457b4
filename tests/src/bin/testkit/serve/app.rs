//! The application role of `serve`: HTTP/1.1, HTTP/2 with prior knowledge, gRPC and WebSocket on one port. It tells what came, and
//! behaves as it is told: a pod by `PUT /-/behaviour`, a request by its `x-ask`. Start at [`answer`]; the forms of an answer are in
//! `app/replies.rs`, the two-way ones in `app/streams.rs`, what is counted in `app/ledger.rs`.

mod ledger;
mod replies;
mod streams;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tropis_tests::testkit::calls::{ASK, Behaviour, NONCE};

use super::http::is_http2;
use super::{Accepted, Server};
use ledger::Ledger;
pub(crate) use replies::BODY_SEED;

/// Largest body of a control request.
const CONTROL_BYTES: usize = 64 * 1024;

pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What the application of a process remembers.
#[derive(Debug, Default)]
pub(super) struct App {
    version: String,
    behaviour: Mutex<Behaviour>,
    ledger: Mutex<Ledger>,
}

impl App {
    pub(super) fn new(version: String) -> Self {
        Self { version, ..Self::default() }
    }

    fn behaviour(&self) -> Behaviour {
        self.behaviour.lock().expect("nothing panics while it is held").clone()
    }

    fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("nothing panics while it is held")
    }
}

/// A request that is answered by a reset.
#[derive(Debug, thiserror::Error)]
#[error("asked to reset")]
struct Reset;

/// Who answers on which connection.
#[derive(Clone)]
struct Desk {
    server: Arc<Server>,
    peer: SocketAddr,
    /// The socket, to end it by a reset.
    socket: Arc<OwnedFd>,
}

pub(super) async fn serve(server: &Arc<Server>, connection: Accepted) -> io::Result<()> {
    let Accepted { stream, peer, .. } = connection;
    let http2 = is_http2(&stream).await?;
    let desk = Desk { server: server.clone(), peer, socket: Arc::new(stream.as_fd().try_clone_to_owned()?) };
    let service = service_fn(move |request| answer(desk.clone(), request, http2));
    let served = if http2 {
        let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await
    } else {
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder.timer(TokioTimer::new()).half_close(true);
        builder.serve_connection(TokioIo::new(stream), service).with_upgrades().await
    };
    served.map_err(io::Error::other)
}

async fn answer(desk: Desk, request: Request<Incoming>, http2: bool) -> Result<Response<Body>, Reset> {
    let app = &desk.server.app;
    if let Some(control) = request.uri().path().strip_prefix("/-/") {
        let control = control.to_owned();
        return Ok(self::control(app, &control, request).await);
    }
    let text = |name| request.headers().get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
    app.ledger().note(request.method().as_str(), text(NONCE));
    let behaviour = match text(ASK).map(asked).transpose() {
        Ok(asked) => asked.unwrap_or_else(|| app.behaviour()),
        Err(problem) => return Ok(replies::text(StatusCode::BAD_REQUEST, problem)),
    };
    let is_grpc = text("content-type").is_some_and(|kind| kind.starts_with("application/grpc"));
    let is_websocket = text("upgrade").is_some_and(|protocol| protocol.eq_ignore_ascii_case("websocket"));
    if behaviour.reset {
        tokio::time::sleep(Duration::from_millis(behaviour.delay)).await;
        if !http2 {
            // Without lingering, closing resets (socket(7)).
            let _ = socket2::SockRef::from(&*desk.socket).set_linger(Some(Duration::ZERO));
        }
        return Err(Reset);
    }
    let mut response = if is_websocket {
        streams::websocket(request)
    } else if is_grpc {
        streams::grpc(&behaviour, request).await
    } else {
        replies::told(&desk, &behaviour, request).await
    };
    replies::sign(&desk, response.headers_mut());
    Ok(response)
}

/// `PUT behaviour` sets how this pod behaves from now on, `GET seen` tells what it saw.
async fn control(app: &App, path: &str, request: Request<Incoming>) -> Response<Body> {
    match (request.method(), path) {
        (&Method::PUT, "behaviour") => {
            let body = match Limited::new(request.into_body(), CONTROL_BYTES).collect().await {
                Ok(body) => body.to_bytes(),
                Err(error) => return replies::text(StatusCode::BAD_REQUEST, error.to_string()),
            };
            match serde_json::from_slice(&body) {
                Ok(behaviour) => {
                    *app.behaviour.lock().expect("nothing panics while it is held") = behaviour;
                    replies::text(StatusCode::OK, "so be it".to_owned())
                }
                Err(error) => replies::text(StatusCode::BAD_REQUEST, error.to_string()),
            }
        }
        (&Method::GET, "seen") => {
            let wanted = request.uri().query().and_then(|query| query.strip_prefix("nonces=")).unwrap_or_default();
            replies::json(&app.ledger().seen(wanted.split(',').filter(|nonce| !nonce.is_empty())))
        }
        _ => replies::text(StatusCode::NOT_FOUND, "there are PUT /-/behaviour and GET /-/seen".to_owned()),
    }
}

/// Reads [`ASK`]: `status=503,delay=100,trailers`.
fn asked(text: &str) -> Result<Behaviour, String> {
    let mut behaviour = Behaviour::default();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').unwrap_or((part, "true"));
        let number = || value.parse::<u64>().map_err(|error| format!("{part}: {error}"));
        let status = || value.parse::<u16>().map_err(|error| format!("{part}: {error}"));
        match name {
            "status" => behaviour.status = Some(status()?),
            "grpc_status" => behaviour.grpc_status = Some(status()?),
            "delay" => behaviour.delay = number()?,
            "stall" => behaviour.stall = number()?,
            "body" => behaviour.body = Some(number()?),
            "trailers" => behaviour.trailers = true,
            "reset" => behaviour.reset = true,
            _ => return Err(format!("{name:?} is nothing that can be asked for")),
        }
    }
    Ok(behaviour)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_may_ask_for_several_things() {
        let wanted = Behaviour { status: Some(503), delay: 100, trailers: true, ..Behaviour::default() };
        assert_eq!(asked("status=503, delay=100,trailers"), Ok(wanted));
        assert_eq!(asked(""), Ok(Behaviour::default()));
        for bad in ["status=x", "colour=red", "delay=-1"] {
            assert!(asked(bad).is_err(), "{bad}");
        }
    }
}
