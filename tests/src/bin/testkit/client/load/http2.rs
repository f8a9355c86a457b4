//! Requests of HTTP/2 with prior knowledge: a connection that several callers share, a stream each.

use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tropis_tests::testkit::{FailureKind, Step};

use super::ask::Ask;
use crate::connection::{Connection, Failure};

/// One caller of a connection.
pub(super) type Caller = SendRequest<Empty<Bytes>>;

/// Speaks HTTP/2 on a connection, until all callers of it are gone.
pub(super) async fn open(connection: Connection) -> Result<Caller, Failure> {
    let (caller, driver) =
        handshake(TokioExecutor::new(), TokioIo::new(connection.stream)).await.map_err(|error| failed(Step::Connect, &error))?;
    // How it ends is told to each request on it.
    tokio::spawn(driver);
    Ok(caller)
}

/// A request.
pub(super) fn request(ask: &Ask, authority: &str) -> Result<Request<Empty<Bytes>>, Failure> {
    let invalid = |error: http::Error| Failure::new(FailureKind::Other, Step::Send, error.to_string());
    let uri = Uri::builder().scheme("http").authority(authority).path_and_query(ask.path.clone()).build().map_err(invalid)?;
    let mut request = Request::get(uri).body(Empty::new()).map_err(invalid)?;
    request.headers_mut().extend(ask.fields().map(|(name, value)| (name.clone(), value.clone())));
    Ok(request)
}

/// Sends the request and reads the answer to its end; gives the length of its body.
pub(super) async fn ask(caller: &mut Caller, request: Request<Empty<Bytes>>) -> Result<usize, Failure> {
    caller.ready().await.map_err(|error| failed(Step::Send, &error))?;
    let answer = caller.send_request(request).await.map_err(|error| failed(Step::Send, &error))?;
    if answer.status() != StatusCode::OK {
        return Err(Failure::mismatch(answer.status().to_string()));
    }
    let (mut body, mut bytes) = (answer.into_body(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| failed(Step::Receive, &error))?;
        bytes += frame.data_ref().map_or(0, Bytes::len);
    }
    Ok(bytes)
}

fn failed(at: Step, error: &hyper::Error) -> Failure {
    let kind = if error.is_closed() || error.is_incomplete_message() { FailureKind::Closed } else { FailureKind::Other };
    Failure::new(kind, at, format!("{error:?}"))
}
