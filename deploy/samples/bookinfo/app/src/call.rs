//! Calls to another role: one connection a call, so that each call may meet another pod; bounded in time and size.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

use crate::answer::SERVED_BY;
use crate::forward::Context;

/// Largest answer of a role.
const BODY_BYTES: usize = 256 * 1024;
/// Longest list of pods that is believed.
const SERVED_BY_BYTES: usize = 1024;

/// Why a role gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("could not connect to {address}")]
    Unreachable {
        address: String,
        #[source]
        cause: io::Error,
    },
    #[error("{address} did not answer in {} s", limit.as_secs_f64())]
    TooSlow { address: String, limit: Duration },
    #[error("the connection to {address} broke")]
    Broken {
        address: String,
        #[source]
        cause: hyper::Error,
    },
    #[error("the answer of {address} is too long or was cut")]
    Body {
        address: String,
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{address} answered {status}")]
    Status { address: String, status: StatusCode },
    #[error("the answer of {address} makes no sense")]
    Meaning {
        address: String,
        #[source]
        cause: serde_json::Error,
    },
}

impl CallError {
    /// For a reader of the page: what happened, in a few words without addresses.
    pub(crate) fn kindly(&self) -> String {
        match self {
            Self::Unreachable { cause, .. } if cause.kind() == io::ErrorKind::ConnectionRefused => "the connection was refused".to_owned(),
            Self::Unreachable { .. } => "it could not be reached".to_owned(),
            Self::TooSlow { .. } => "it took too long to answer".to_owned(),
            Self::Broken { .. } => "the connection broke".to_owned(),
            Self::Status { status, .. } if *status == StatusCode::FORBIDDEN => "it refused the request (403)".to_owned(),
            Self::Status { status, .. } => format!("it answered with status {}", status.as_u16()),
            Self::Body { .. } | Self::Meaning { .. } => "its answer could not be read".to_owned(),
        }
    }

    /// The error with its causes, for the log.
    pub(crate) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(current) = cause {
            text.push_str(": ");
            text.push_str(&current.to_string());
            cause = current.source();
        }
        text
    }
}

/// What a role answered, and how it came.
#[derive(Debug)]
pub(crate) struct Called<T> {
    pub(crate) value: T,
    /// The address at the other end of the connection, as the socket tells it.
    pub(crate) peer: SocketAddr,
    /// Pods behind the answer, see [`SERVED_BY`].
    pub(crate) served_by: String,
    pub(crate) took: Duration,
}

impl<T> Called<T> {
    /// The same call with another value made of its own.
    pub(crate) fn map<U>(self, change: impl FnOnce(T) -> U) -> Called<U> {
        Called { value: change(self.value), peer: self.peer, served_by: self.served_by, took: self.took }
    }
}

/// Asks `address` (HOST:PORT) for `path`.
pub(crate) async fn get<T: DeserializeOwned>(
    address: &str,
    path: &str,
    context: &Context,
    limit: Duration,
) -> Result<Called<T>, CallError> {
    match tokio::time::timeout(limit, exchange(address, path, context)).await {
        Ok(result) => result,
        Err(_) => Err(CallError::TooSlow { address: address.to_owned(), limit }),
    }
}

async fn exchange<T: DeserializeOwned>(address: &str, path: &str, context: &Context) -> Result<Called<T>, CallError> {
    let started = Instant::now();
    let to = || address.to_owned();
    let unreachable = |cause| CallError::Unreachable { address: to(), cause };
    let broken = |cause| CallError::Broken { address: to(), cause };
    let stream = TcpStream::connect(address).await.map_err(unreachable)?;
    stream.set_nodelay(true).map_err(unreachable)?;
    let peer = stream.peer_addr().map_err(unreachable)?;

    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = path.parse().expect("routes build paths from fixed words and digits");
    *request.headers_mut() = context.fields().clone();
    let host = address.parse().unwrap_or_else(|_| http::HeaderValue::from_static("bookinfo"));
    request.headers_mut().insert(http::header::HOST, host);
    request.headers_mut().insert(http::header::CONNECTION, http::HeaderValue::from_static("close"));

    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // Ends with the answer, because the request asks the other side to close; and when this future is dropped, the sender goes too.
    tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(broken)?;
    let status = response.status();
    let served_by = response.headers().get(SERVED_BY).and_then(|value| value.to_str().ok()).filter(|value| value.len() <= SERVED_BY_BYTES);
    let served_by = served_by.unwrap_or_default().to_owned();
    let body = Limited::new(response.into_body(), BODY_BYTES).collect().await.map_err(|cause| CallError::Body { address: to(), cause })?;
    if !status.is_success() {
        return Err(CallError::Status { address: to(), status });
    }
    let value = serde_json::from_slice(&body.to_bytes()).map_err(|cause| CallError::Meaning { address: to(), cause })?;
    Ok(Called { value, peer: SocketAddr::new(peer.ip().to_canonical(), peer.port()), served_by, took: started.elapsed() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_words_hide_addresses() {
        let address = || "reviews:9080".to_owned();
        let refused = CallError::Unreachable { address: address(), cause: io::ErrorKind::ConnectionRefused.into() };
        assert_eq!(refused.kindly(), "the connection was refused");
        assert!(refused.chain().starts_with("could not connect to reviews:9080: "));
        let unavailable = CallError::Status { address: address(), status: StatusCode::SERVICE_UNAVAILABLE };
        assert_eq!(unavailable.kindly(), "it answered with status 503");
        let slow = CallError::TooSlow { address: address(), limit: Duration::from_millis(2500) };
        assert_eq!(slow.chain(), "reviews:9080 did not answer in 2.5 s");
    }
}
