//! Answers with one body: what came, as JSON, or bytes that the caller can compute as well.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{HeaderMap, Request, Response, StatusCode};
use serde::Serialize;
use tropis_tests::testkit::calls::{Behaviour, POD, Told, VERSION};

use super::{Body, Desk};
use crate::bytes::{Pattern, Tally};

/// Bytes of a frame of a computed body.
const FRAME_BYTES: u64 = 64 * 1024;
/// The seed of computed bodies.
pub(crate) const BODY_SEED: u64 = 1;

pub(super) fn text(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(text)).boxed_unsync());
    *response.status_mut() = status;
    response
}

pub(super) fn json(value: &impl Serialize) -> Response<Body> {
    let text = serde_json::to_string(value).expect("report types are plain data with string keys");
    let mut response = Response::new(Full::new(Bytes::from(text)).boxed_unsync());
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

/// Says who answered.
pub(super) fn sign(desk: &Desk, headers: &mut HeaderMap) {
    for (name, value) in [(VERSION, &desk.server.app.version), (POD, &desk.server.pod)] {
        if let Ok(value) = http::HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
}

/// Reads the request to its end and answers as `behaviour` says.
pub(super) async fn told(desk: &Desk, behaviour: &Behaviour, request: Request<Incoming>) -> Response<Body> {
    tokio::time::sleep(Duration::from_millis(behaviour.stall)).await;
    let (head, mut body) = request.into_parts();
    let (mut tally, mut trailers) = (Tally::default(), HeaderMap::new());
    while let Some(frame) = body.frame().await {
        match frame.map(Frame::into_data) {
            Ok(Ok(data)) => tally.add(&data),
            Ok(Err(frame)) => trailers = frame.into_trailers().unwrap_or_default(),
            Err(error) => return text(StatusCode::BAD_REQUEST, format!("the body did not end well: {error}")),
        }
    }
    tokio::time::sleep(Duration::from_millis(behaviour.delay)).await;
    let host = head.headers.get(http::header::HOST).map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned());
    let told = Told {
        pod: desk.server.pod.clone(),
        version: desk.server.app.version.clone(),
        peer: desk.peer.to_string(),
        protocol: format!("{:?}", head.version),
        method: head.method.to_string(),
        path: head.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
        authority: head.uri.authority().map(ToString::to_string).or(host).unwrap_or_default(),
        headers: fields(&head.headers),
        trailers: fields(&trailers),
        body_bytes: tally.bytes(),
        body_sha256: tally.digest(),
    };
    let status = behaviour.status.and_then(|status| StatusCode::from_u16(status).ok()).unwrap_or(StatusCode::OK);
    let mut response = match behaviour.body {
        _ if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) => Response::new(Empty::new().boxed_unsync()),
        Some(bytes) => Response::new(computed(bytes, behaviour.trailers)),
        None if behaviour.trailers => {
            let text = serde_json::to_string(&told).expect("report types are plain data with string keys");
            // A stream, as a body of known length could not have trailers in HTTP/1.1.
            let frames = [Frame::data(Bytes::from(text)), Frame::trailers(ending(None))].map(Ok::<_, Infallible>);
            Response::new(StreamBody::new(stream::iter(frames)).boxed_unsync())
        }
        None => json(&told),
    };
    if behaviour.trailers {
        response.headers_mut().insert(http::header::TRAILER, http::HeaderValue::from_static("x-trailer, x-digest"));
    }
    *response.status_mut() = status;
    response
}

/// Header fields or trailers as text.
pub(super) fn fields(headers: &HeaderMap) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::<String, String>::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        fields.entry(name.to_string()).and_modify(|all| *all = format!("{all},{value}")).or_insert(value);
    }
    fields
}

/// A body of so many bytes, without a length known beforehand.
fn computed(bytes: u64, trailers: bool) -> Body {
    let start = (Pattern::new(BODY_SEED), bytes, trailers.then(Tally::default), false);
    let frames = stream::unfold(start, |(mut pattern, left, mut tally, ended)| async move {
        if ended {
            return None;
        }
        if left == 0 {
            let digest = tally.take()?.digest();
            return Some((Ok::<_, Infallible>(Frame::trailers(ending(Some(digest)))), (pattern, 0, None, true)));
        }
        let length = left.min(FRAME_BYTES);
        let mut block = vec![0; length as usize];
        pattern.fill(&mut block);
        if let Some(tally) = &mut tally {
            tally.add(&block);
        }
        Some((Ok(Frame::data(Bytes::from(block))), (pattern, left - length, tally, false)))
    });
    StreamBody::new(frames).boxed_unsync()
}

fn ending(digest: Option<String>) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-trailer", http::HeaderValue::from_static("yes"));
    if let Some(digest) = digest.and_then(|digest| http::HeaderValue::from_str(&digest).ok()) {
        trailers.insert("x-digest", digest);
    }
    trailers
}
