//! The endpoints that every program serves about itself: metrics, readiness, log level.
//!
//! An admin endpoint can change the program, so it is a unix socket of mode 0600 or a loopback address; metrics and readiness may be
//! served to the network. Paths and answers are Istio's. What callers may take is `serve.rs`'s.

use std::{collections::HashMap, fs, io, net::SocketAddr, os::unix::fs::PermissionsExt, path::PathBuf};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::json;
use thiserror::Error;
use tokio::net::{TcpListener, UnixListener};

use crate::{
    chain,
    logs::LogControl,
    metrics::Metrics,
    readiness::Readiness,
    serve::{Limits, serve},
};

/// Where endpoints are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminAddress {
    /// A unix socket, mode 0600. A stale file is replaced.
    Unix(PathBuf),
    /// An IP and port.
    Tcp(SocketAddr),
}

/// The endpoint cannot be served.
#[derive(Debug, Error)]
pub enum AdminError {
    /// Another process holds it, or its folder is missing.
    #[error("cannot listen on unix socket {path}")]
    Unix {
        /// The socket.
        path: PathBuf,
        /// What bind(2), chmod(2) or unlink(2) said.
        #[source]
        cause: io::Error,
    },
    /// Another process holds it, or the address is not this host's.
    #[error("cannot listen on {address}")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// What bind(2) said.
        #[source]
        cause: io::Error,
    },
}

/// A bound endpoint, not yet serving.
#[derive(Debug)]
pub enum AdminListener {
    /// On a unix socket.
    Unix(UnixListener),
    /// On TCP.
    Tcp(TcpListener),
}

impl AdminListener {
    /// Binds; from here on connections queue.
    pub async fn bind(address: &AdminAddress) -> Result<Self, AdminError> {
        match address {
            AdminAddress::Unix(path) => bind_unix(path).map(Self::Unix).map_err(|cause| AdminError::Unix { path: path.clone(), cause }),
            AdminAddress::Tcp(address) => {
                let listener = TcpListener::bind(address).await;
                listener.map(Self::Tcp).map_err(|cause| AdminError::Tcp { address: *address, cause })
            }
        }
    }

    /// The TCP address, for port 0.
    pub fn local_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Unix(_) => None,
            Self::Tcp(listener) => listener.local_addr().ok(),
        }
    }

    /// Serves until `stop` is done, then finishes what is being answered. Callers share the default [`Limits`].
    pub async fn serve(self, router: Router, stop: impl Future<Output = ()> + Send + 'static) {
        match self {
            Self::Unix(listener) => serve(listener, router, Limits::default(), stop).await,
            Self::Tcp(listener) => serve(listener, router, Limits::default(), stop).await,
        }
    }
}

fn bind_unix(path: &PathBuf) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// `/metrics` and `/stats/prometheus`.
pub fn metrics_routes(metrics: Metrics) -> Router {
    async fn scrape(State(metrics): State<Metrics>, headers: HeaderMap) -> Response {
        let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let (kind, text) = metrics.render(accept);
        ([(header::CONTENT_TYPE, kind)], text).into_response()
    }
    Router::new().route("/metrics", get(scrape)).route("/stats/prometheus", get(scrape)).with_state(metrics)
}

/// `/healthz/ready`: 200 `ready`, or 500 with what is pending.
pub fn readiness_routes(readiness: Readiness) -> Router {
    async fn ready(State(readiness): State<Readiness>) -> Response {
        let pending = readiness.pending();
        match pending.is_empty() {
            true => (StatusCode::OK, "ready\n").into_response(),
            false => (StatusCode::INTERNAL_SERVER_ERROR, format!("not ready, pending: {}\n", pending.join(", "))).into_response(),
        }
    }
    Router::new().route("/healthz/ready", get(ready)).with_state(readiness)
}

/// `POST /logging`: shows the filter; `?level=FILTER` changes it, `?reset` restores the first one.
pub fn logging_routes(control: LogControl) -> Router {
    async fn logging(State(control): State<LogControl>, Query(query): Query<HashMap<String, String>>) -> Response {
        let changed = match (query.get("level"), query.contains_key("reset")) {
            (Some(level), _) => control.set(level),
            (None, true) => control.reset(),
            (None, false) => Ok(()),
        };
        match changed {
            Ok(()) => (StatusCode::OK, format!("current log level is {}\n", control.current())).into_response(),
            Err(error) => (StatusCode::BAD_REQUEST, format!("{}\n", chain(&error))).into_response(),
        }
    }
    Router::new().route("/logging", post(logging)).with_state(control)
}

/// `/version`: `{"version": "0.1.0"}`.
pub fn version_routes(version: &'static str) -> Router {
    Router::new().route("/version", get(move || async move { Json(json!({ "version": version })) }))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn get_ready(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin) -> String {
        stream.write_all(b"GET /healthz/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn readiness_names_what_is_pending_over_tcp() {
        let readiness = Readiness::default();
        let task = readiness.task("state manager");
        let listener = AdminListener::bind(&AdminAddress::Tcp("127.0.0.1:0".parse().unwrap())).await.unwrap();
        let address = listener.local_address().unwrap();
        tokio::spawn(listener.serve(readiness_routes(readiness), std::future::pending()));
        let answer = get_ready(tokio::net::TcpStream::connect(address).await.unwrap()).await;
        assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
        assert!(answer.ends_with("not ready, pending: state manager\n"), "{answer}");
        task.ready();
        let answer = get_ready(tokio::net::TcpStream::connect(address).await.unwrap()).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ready\n"), "{answer}");
    }

    #[tokio::test]
    async fn a_unix_socket_is_private_and_replaces_a_stale_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        drop(AdminListener::bind(&AdminAddress::Unix(path.clone())).await.unwrap());
        let listener = AdminListener::bind(&AdminAddress::Unix(path.clone())).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        tokio::spawn(listener.serve(readiness_routes(Readiness::default()), std::future::pending()));
        let answer = get_ready(tokio::net::UnixStream::connect(&path).await.unwrap()).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}
