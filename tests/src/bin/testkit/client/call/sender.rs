//! One connection of HTTP/1.1 or HTTP/2, and one request on it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::error::Error;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tropis_tests::testkit::{FailureKind, Step};

use super::{Call, Protocol, nonce_field};
use crate::bytes::Pattern;
use crate::client::readable;
use crate::connection::{Dial, Failure, Target};

/// Largest body that is read.
const BODY_BYTES: usize = 16 << 20;
/// A gRPC message has a byte of flags and four of length before it.
const MESSAGE_HEAD: usize = 5;

pub(in crate::client) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A request that is made again and again.
pub(in crate::client) struct Order {
    target: Target,
    authority: http::uri::Authority,
    path: http::uri::PathAndQuery,
    protocol: Protocol,
    method: http::Method,
    headers: HeaderMap,
    body: Bytes,
}

impl Order {
    pub(super) fn new(call: &Call) -> Result<Self, Failure> {
        let body = match (&call.text, call.protocol) {
            (Some(text), _) => Bytes::from(text.clone().into_bytes()),
            (None, Protocol::Grpc) => Bytes::from(message(&Pattern::bytes(1, call.body))),
            (None, _) => Bytes::from(Pattern::bytes(1, call.body)),
        };
        let mut order = Self::to(&call.url, call.authority.as_ref(), call.protocol, &call.headers)?;
        order.method = if call.protocol == Protocol::Grpc { http::Method::POST } else { call.method.clone() };
        order.body = body;
        Ok(order)
    }

    /// A GET without a body.
    pub(in crate::client) fn to(
        url: &http::Uri,
        authority: Option<&http::uri::Authority>,
        protocol: Protocol,
        fields: &[String],
    ) -> Result<Self, Failure> {
        if url.scheme_str() != Some("http") {
            return Err(invalid(format!("{url} is not an http:// URL")));
        }
        let host = url.authority().ok_or_else(|| invalid(format!("{url} names no host")))?;
        let name = host.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let mut headers = HeaderMap::new();
        if protocol == Protocol::Grpc {
            headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
        }
        headers.insert(http::header::TE, http::HeaderValue::from_static("trailers"));
        for field in fields {
            let (name, value) = field.split_once(':').ok_or_else(|| invalid(format!("{field:?} is not NAME: VALUE")))?;
            let name = http::HeaderName::try_from(name.trim()).map_err(|error| invalid(error.to_string()))?;
            headers.append(name, http::HeaderValue::try_from(value.trim()).map_err(|error| invalid(error.to_string()))?);
        }
        Ok(Self {
            target: Target { host: name, port: host.port_u16().unwrap_or(80) },
            authority: authority.unwrap_or(host).clone(),
            path: url.path_and_query().cloned().unwrap_or_else(|| http::uri::PathAndQuery::from_static("/")),
            protocol,
            method: http::Method::GET,
            headers,
            body: Bytes::new(),
        })
    }

    pub(in crate::client) fn request(&self, nonce: Option<&str>) -> Request<Body> {
        self.request_with(nonce, Full::new(self.body.clone()).boxed_unsync())
    }

    /// The same with another body.
    pub(in crate::client) fn request_with(&self, nonce: Option<&str>, body: Body) -> Request<Body> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.headers_mut() = self.headers.clone();
        let parts = match self.protocol {
            Protocol::H1 => {
                let host = http::HeaderValue::try_from(self.authority.as_str()).expect("an authority is ASCII");
                request.headers_mut().insert(http::header::HOST, host);
                // What is listed in `te` must be listed in `connection` as well (RFC 9110 §10.1.4).
                request.headers_mut().insert(http::header::CONNECTION, http::HeaderValue::from_static("te"));
                http::Uri::builder().path_and_query(self.path.clone())
            }
            Protocol::H2 | Protocol::Grpc => {
                http::Uri::builder().scheme("http").authority(self.authority.clone()).path_and_query(self.path.clone())
            }
        };
        *request.uri_mut() = parts.build().expect("its parts are valid");
        if let Some(nonce) = nonce.and_then(|nonce| http::HeaderValue::from_str(nonce).ok()) {
            request.headers_mut().insert(nonce_field(), nonce);
        }
        request
    }

    pub(in crate::client) fn with_method(self, method: http::Method) -> Self {
        Self { method, ..self }
    }

    pub(in crate::client) async fn open(&self, dial: &Dial) -> Result<Sender, Failure> {
        let stream = TokioIo::new(dial.connect(&self.target).await?.stream);
        Ok(match self.protocol {
            Protocol::H1 => {
                let (sender, driver) = http1::handshake(stream).await.map_err(|error| failure(&error))?;
                tokio::spawn(driver.with_upgrades());
                Sender::One(sender)
            }
            Protocol::H2 | Protocol::Grpc => {
                let mut builder = http2::Builder::new(TokioExecutor::new());
                let (sender, driver) = builder.timer(TokioTimer::new()).handshake(stream).await.map_err(|error| failure(&error))?;
                tokio::spawn(driver);
                Sender::Two(sender)
            }
        })
    }
}

/// A connection that stands.
pub(in crate::client) enum Sender {
    One(http1::SendRequest<Body>),
    Two(http2::SendRequest<Body>),
}

/// An answer with its body.
#[derive(Debug)]
pub(in crate::client) struct Answered {
    pub(in crate::client) status: u16,
    pub(in crate::client) grpc_status: Option<u16>,
    pub(in crate::client) headers: BTreeMap<String, String>,
    pub(in crate::client) trailers: BTreeMap<String, String>,
    pub(in crate::client) body: String,
}

/// A request without an answer.
pub(in crate::client) struct Refused {
    pub(in crate::client) failure: Failure,
    /// Nobody did anything with it: it was not sent, or the other side said so.
    pub(in crate::client) untouched: bool,
}

impl Sender {
    /// Sends a request and gives the head of its answer.
    pub(in crate::client) async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>, Refused> {
        let sent = match self {
            Self::One(sender) => {
                // As long as the last answer's end is not noticed, nothing can be sent.
                if sender.ready().await.is_err() {
                    return Err(ended());
                }
                sender.try_send_request(request).await
            }
            Self::Two(sender) => {
                if sender.ready().await.is_err() {
                    return Err(ended());
                }
                sender.try_send_request(request).await
            }
        };
        sent.map_err(|error: TrySendError<Request<Body>>| {
            let untouched = error.message().is_some() || is_unprocessed(error.error());
            Refused { failure: failure(error.error()), untouched }
        })
    }

    /// Sends a request and reads its answer to the end.
    pub(in crate::client) async fn ask(&mut self, request: Request<Body>) -> Result<Answered, Refused> {
        let response = self.send(request).await?;
        let (head, body) = response.into_parts();
        let collected = match Limited::new(body, BODY_BYTES).collect().await {
            Ok(collected) => collected,
            Err(error) => {
                let failure = error.downcast_ref::<hyper::Error>().map_or_else(|| Failure::mismatch(error.to_string()), failure);
                return Err(Refused { failure, untouched: false });
            }
        };
        let trailers = collected.trailers().map(fields).unwrap_or_default();
        let headers = fields(&head.headers);
        let grpc_status = trailers.get("grpc-status").or(headers.get("grpc-status")).and_then(|status| status.parse().ok());
        let body = readable(&collected.to_bytes());
        Ok(Answered { status: head.status.as_u16(), grpc_status, headers, trailers, body })
    }
}

/// A message as gRPC frames it.
pub(in crate::client) fn message(payload: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(MESSAGE_HEAD + payload.len());
    message.push(0);
    message.extend((payload.len() as u32).to_be_bytes());
    message.extend_from_slice(payload);
    message
}

/// Header fields as text; of several with one name, all, joined with a comma.
pub(in crate::client) fn fields(headers: &HeaderMap) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::<String, String>::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        fields.entry(name.to_string()).and_modify(|all| *all = format!("{all},{value}")).or_insert(value);
    }
    fields
}

pub(in crate::client) fn timed_out() -> Failure {
    Failure::new(FailureKind::Timeout, Step::Receive, "no complete answer in time")
}

pub(in crate::client) fn invalid(detail: String) -> Failure {
    Failure::new(FailureKind::Other, Step::Resolve, detail)
}

fn ended() -> Refused {
    Refused { failure: Failure::new(FailureKind::Closed, Step::Send, "the connection had ended"), untouched: true }
}

/// RFC 9113 §6.8 and §8.7: streams above a GOAWAY's number and refused ones were not processed, and may be sent again.
fn is_unprocessed(error: &hyper::Error) -> bool {
    let Some(error) = cause::<h2::Error>(error) else { return false };
    error.reason() == Some(h2::Reason::REFUSED_STREAM)
        || (error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR))
}

/// The kind of a failure: the socket's error below hyper's, or what happened to the stream.
pub(in crate::client) fn failure(error: &hyper::Error) -> Failure {
    let kind = if let Some(io) = cause::<std::io::Error>(error) {
        FailureKind::of(io)
    } else if let Some(h2) = cause::<h2::Error>(error) {
        if h2.is_reset() { FailureKind::Reset } else { FailureKind::Closed }
    } else if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        FailureKind::Closed
    } else {
        FailureKind::Other
    };
    let mut detail = error.to_string();
    let mut below = error.source();
    while let Some(error) = below {
        detail.push_str(": ");
        detail.push_str(&error.to_string());
        below = error.source();
    }
    Failure::new(kind, Step::Receive, detail)
}

fn cause<T: Error + 'static>(error: &hyper::Error) -> Option<&T> {
    let mut below = error.source();
    while let Some(error) = below {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        below = error.source();
    }
    None
}
