//! Asking the proxies what they counted and whom they ejected, over their admin sockets, each bounded in time and size.
//!
//! The sockets are found by name in one folder: `ztunnel.NODE.sock`, `waypoint.NAMESPACE.POD.sock`.

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{
    body::Bytes,
    http::{Request, StatusCode, header},
};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use thiserror::Error;
use tokio::{net::UnixStream, sync::Semaphore, task::JoinSet};

use super::numbers::{self, Numbers};

/// So long a proxy may take for an answer: the page waits for the slowest.
const PATIENCE: Duration = Duration::from_secs(1);
/// A larger answer is refused: some thousand pairs of workloads take a few megabytes.
const ANSWER_MAX_BYTES: usize = 16 << 20;
/// Proxies that are asked; the page says when there are more. It is for looking at a small mesh; large ones have Prometheus.
pub(crate) const MAX_PROXIES: usize = 256;
/// Proxies that are asked at a time.
const AT_ONCE: usize = 16;
/// Ejections that are kept of one proxy.
const MAX_EJECTIONS: usize = 500;

/// A proxy, by its socket's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Proxy {
    /// The node proxy of a node.
    Ztunnel(String),
    /// A pod of a waypoint: its namespace and name.
    Waypoint(String, String),
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ztunnel(node) => write!(f, "ztunnel on {node}"),
            Self::Waypoint(namespace, pod) => write!(f, "waypoint {namespace}/{pod}"),
        }
    }
}

impl Proxy {
    /// Whose socket has this name, if it is a proxy's.
    fn of_socket(name: &str) -> Option<Self> {
        match name.strip_suffix(".sock")?.split_once('.')? {
            ("ztunnel", node) => Some(Self::Ztunnel(node.to_owned())),
            ("waypoint", pod) => pod.split_once('.').map(|(namespace, pod)| Self::Waypoint(namespace.to_owned(), pod.to_owned())),
            _ => None,
        }
    }
}

/// What a proxy said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Said {
    /// What it counted.
    pub(crate) numbers: Numbers,
    /// Whom it ejected.
    pub(crate) ejected: Vec<Ejection>,
}

/// An endpoint that gets no requests for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ejection {
    /// The pool: `NAMESPACE/HOST:PORT`, with `/SUBSET`.
    pub(crate) pool: String,
    /// The endpoint's uid in the mesh.
    pub(crate) workload: String,
    /// Where it serves.
    pub(crate) address: String,
    /// For so much longer, at least.
    pub(crate) remaining: Duration,
}

/// A proxy did not answer, or not as it should.
#[derive(Debug, Error)]
pub(crate) enum AskError {
    /// It does not listen.
    #[error("does not listen")]
    Connect(#[source] io::Error),
    /// It is slow, or hangs.
    #[error("did not answer within {} s", PATIENCE.as_secs())]
    Slow,
    /// It does not speak HTTP.
    #[error("speaks no HTTP")]
    Http(#[source] hyper::Error),
    /// It answered with another status than 200.
    #[error("answered {status} to {path}")]
    Status {
        /// What was asked.
        path: &'static str,
        /// What it answered.
        status: StatusCode,
    },
    /// The answer broke off, or was too long.
    #[error("gave no whole answer to {path}")]
    Body {
        /// What was asked.
        path: &'static str,
        /// Why.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The answer is not what the question was for.
    #[error("gave a strange answer to {path}")]
    Strange {
        /// What was asked.
        path: &'static str,
        /// Why.
        #[source]
        cause: serde_json::Error,
    },
}

/// Asks every proxy that has a socket in `folder`. `Err` says why one is silent. The number is that of proxies beyond [`MAX_PROXIES`].
pub(crate) async fn ask_all(folder: &Path) -> io::Result<(BTreeMap<Proxy, Result<Said, String>>, usize)> {
    let mut proxies = sockets(folder).await?;
    let beyond = proxies.split_off(MAX_PROXIES.min(proxies.len())).len();
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut asking = JoinSet::new();
    for (proxy, socket) in proxies {
        let places = places.clone();
        asking.spawn(async move {
            let _place = places.acquire_owned().await;
            let said = tokio::time::timeout(PATIENCE, ask(&proxy, &socket)).await.unwrap_or(Err(AskError::Slow));
            (proxy, said.map_err(|error| tropis_telemetry::chain(&error)))
        });
    }
    let mut said = BTreeMap::new();
    while let Some(one) = asking.join_next().await {
        said.extend(one.ok());
    }
    Ok((said, beyond))
}

async fn sockets(folder: &Path) -> io::Result<Vec<(Proxy, PathBuf)>> {
    let mut found = Vec::new();
    let mut entries = tokio::fs::read_dir(folder).await?;
    while let Some(entry) = entries.next_entry().await? {
        found.extend(entry.file_name().to_str().and_then(Proxy::of_socket).map(|proxy| (proxy, entry.path())));
    }
    found.sort();
    Ok(found)
}

async fn ask(proxy: &Proxy, socket: &Path) -> Result<Said, AskError> {
    let metrics = get(socket, "/stats/prometheus").await?;
    let mut said = Said { numbers: numbers::read(&String::from_utf8_lossy(&metrics)), ejected: Vec::new() };
    if matches!(proxy, Proxy::Waypoint(..)) {
        let path = "/clusters";
        let pools: Vec<Pool> = serde_json::from_slice(&get(socket, path).await?).map_err(|cause| AskError::Strange { path, cause })?;
        said.ejected = ejections(pools);
    }
    Ok(said)
}

/// A pool of a waypoint's `/clusters`.
#[derive(Debug, Deserialize)]
struct Pool {
    pool: String,
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    address: String,
    workload: String,
    ejected: bool,
    returns_after_milliseconds: Option<u64>,
}

fn ejections(pools: Vec<Pool>) -> Vec<Ejection> {
    let each = pools.into_iter().flat_map(|pool| pool.endpoints.into_iter().map(move |endpoint| (pool.pool.clone(), endpoint)));
    let ejected = each.filter(|(_, endpoint)| endpoint.ejected).map(|(pool, endpoint)| Ejection {
        pool,
        workload: endpoint.workload,
        address: endpoint.address,
        remaining: Duration::from_millis(endpoint.returns_after_milliseconds.unwrap_or_default()),
    });
    ejected.take(MAX_EJECTIONS).collect()
}

async fn get(socket: &Path, path: &'static str) -> Result<Bytes, AskError> {
    let stream = UnixStream::connect(socket).await.map_err(AskError::Connect)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(AskError::Http)?;
    let exchange = async {
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = axum::http::Uri::from_static(path);
        request.headers_mut().insert(header::HOST, header::HeaderValue::from_static("localhost"));
        let response = sender.send_request(request).await.map_err(AskError::Http)?;
        if response.status() != StatusCode::OK {
            return Err(AskError::Status { path, status: response.status() });
        }
        let body = Limited::new(response.into_body(), ANSWER_MAX_BYTES).collect().await;
        Ok(body.map_err(|cause| AskError::Body { path, cause })?.to_bytes())
    };
    let mut connection = std::pin::pin!(connection);
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        ended = &mut connection => match ended {
            // The answer came with the end.
            Ok(()) => exchange.await,
            Err(error) => Err(AskError::Http(error)),
        },
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, routing};

    use super::*;

    #[test]
    fn proxies_are_known_by_their_sockets() {
        let ztunnel = |node: &str| Some(Proxy::Ztunnel(node.to_owned()));
        for (name, proxy) in [
            ("ztunnel.a.sock", ztunnel("a")),
            ("ztunnel.node.b.sock", ztunnel("node.b")),
            ("waypoint.shop.gate-1.x.sock", Some(Proxy::Waypoint("shop".to_owned(), "gate-1.x".to_owned()))),
            ("waypoint.shop.sock", None),
            ("tropisd.control.sock", None),
            ("zds.a.sock", None),
            ("ztunnel.a", None),
        ] {
            assert_eq!(Proxy::of_socket(name), proxy, "{name}");
        }
    }

    #[tokio::test]
    async fn who_does_not_answer_is_told_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let clusters = r#"[{"pool": "shop/web:80", "endpoints": [
            {"address": "10.0.0.1:80", "workload": "c//Pod/shop/web-1", "ejected": true, "returnsAfterMilliseconds": 1500},
            {"address": "10.0.0.2:80", "workload": "c//Pod/shop/web-2", "ejected": false, "returnsAfterMilliseconds": null}]}]"#;
        let metrics = super::super::numbers::tests::line("istio_tcp_connections_opened_total", "source", ["a/b", "c/d"], "", 3);
        let good = Router::new()
            .route("/stats/prometheus", routing::get(move || async move { metrics }))
            .route("/clusters", routing::get(move || async move { clusters }));
        let old =
            Router::new().route("/stats/prometheus", routing::get(|| async { "" })).route("/clusters", routing::get(|| async { "{}" }));
        for (name, routes) in [("waypoint.shop.good.sock", good), ("waypoint.shop.old.sock", old), ("ztunnel.none.sock", Router::new())] {
            let listener = tokio::net::UnixListener::bind(path(name)).unwrap();
            tokio::spawn(async move { axum::serve(listener, routes).await });
        }
        let _hangs = std::os::unix::net::UnixListener::bind(path("ztunnel.hangs.sock")).unwrap();
        drop(std::os::unix::net::UnixListener::bind(path("ztunnel.gone.sock")).unwrap());
        let (said, beyond) = ask_all(folder.path()).await.unwrap();
        let of = |proxy: &str| said.iter().find(|(known, _)| known.to_string() == proxy).unwrap().1;
        let good = of("waypoint shop/good").as_ref().unwrap();
        assert_eq!((good.numbers.len(), beyond), (1, 0));
        assert_eq!(
            good.ejected,
            [Ejection {
                pool: "shop/web:80".into(),
                workload: "c//Pod/shop/web-1".into(),
                address: "10.0.0.1:80".into(),
                remaining: Duration::from_millis(1500)
            }]
        );
        let why = |proxy: &str| of(proxy).as_ref().unwrap_err().clone();
        assert!(why("waypoint shop/old").contains("strange answer to /clusters"), "{}", why("waypoint shop/old"));
        assert!(why("ztunnel on none").contains("404"), "{}", why("ztunnel on none"));
        assert!(why("ztunnel on hangs").contains("within 1 s"), "{}", why("ztunnel on hangs"));
        assert!(why("ztunnel on gone").contains("does not listen"), "{}", why("ztunnel on gone"));
    }
}
