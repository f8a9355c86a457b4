//! Answers that go on while the request does: gRPC (unary is a stream of one message) and WebSocket. Both echo.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tropis_tests::testkit::calls::Behaviour;

use super::{Body, replies};
use crate::websocket;

/// Sends back what comes, as it comes, and a status when the caller is done.
pub(super) async fn grpc(behaviour: &Behaviour, request: Request<Incoming>) -> Response<Body> {
    tokio::time::sleep(Duration::from_millis(behaviour.delay)).await;
    let status = behaviour.grpc_status.unwrap_or(0);
    let mut response = match status {
        0 => Response::new(echo(request.into_body())),
        _ => Response::new(Empty::new().boxed_unsync()),
    };
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
    if status != 0 {
        headers.insert("grpc-status", http::HeaderValue::from(status));
    }
    *response.status_mut() = behaviour.status.and_then(|status| StatusCode::from_u16(status).ok()).unwrap_or(StatusCode::OK);
    response
}

fn echo(body: Incoming) -> Body {
    let frames = stream::unfold(Some(body), |body| async move {
        let mut body = body?;
        loop {
            match body.frame().await.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => return Some((Ok::<_, Infallible>(Frame::data(data)), Some(body))),
                // A caller's trailers mean nothing in gRPC.
                Some(Ok(Err(_))) => {}
                // Whoever reset its half does not hear a status.
                Some(Err(_)) => return None,
                None => {
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                    return Some((Ok(Frame::trailers(trailers)), None));
                }
            }
        }
    });
    StreamBody::new(frames).boxed_unsync()
}

/// Accepts the upgrade, and echoes frames on what the connection becomes.
pub(super) fn websocket(request: Request<Incoming>) -> Response<Body> {
    let key = request.headers().get("sec-websocket-key").and_then(|key| key.to_str().ok()).map(websocket::accept);
    let Some(Ok(accepted)) = key.map(http::HeaderValue::try_from) else {
        return replies::text(StatusCode::BAD_REQUEST, "no sec-websocket-key".to_owned());
    };
    tokio::spawn(async move {
        match hyper::upgrade::on(request).await {
            Ok(upgraded) => {
                if let Err(error) = echo_frames(TokioIo::new(upgraded)).await {
                    eprintln!("websocket: {error}");
                }
            }
            Err(error) => eprintln!("websocket: {error}"),
        }
    });
    let mut response = Response::new(Empty::<Bytes>::new().boxed_unsync());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(http::header::CONNECTION, http::HeaderValue::from_static("upgrade"));
    headers.insert(http::header::UPGRADE, http::HeaderValue::from_static("websocket"));
    headers.insert("sec-websocket-accept", accepted);
    response
}

async fn echo_frames(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) -> io::Result<()> {
    loop {
        let mut frame = websocket::read(&mut stream).await?;
        let last = frame.opcode == websocket::CLOSE;
        if frame.opcode == websocket::PING {
            frame.opcode = websocket::PONG;
        }
        websocket::write(&mut stream, &frame, None).await?;
        if last {
            return Ok(());
        }
    }
}
