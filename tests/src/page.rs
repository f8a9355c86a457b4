//! The page of the live graph, on a port of the host's loopback: what leads to tropisd's debug socket, and to nothing on it but the page.
//!
//! The socket is root's alone, and a port is everybody's on this machine. So this is no plain forward: it passes on `GET /` and
//! `GET /graph.json`, and refuses all else. Whether the host that a browser asked for is this machine's is tropisd's to check.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1 as client;
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

use crate::cluster::seed::CONTROL_NODE;
use crate::lab::{Lab, LabError};
use crate::programs::Program;

/// What may be asked for.
const PATHS: [&str; 2] = ["/", "/graph.json"];
/// A longer answer is cut: the graph of the most that is drawn takes less than a megabyte.
const ANSWER_MAX_BYTES: usize = 8 << 20;
/// How long tropisd may take: it asks every proxy, twice the first time.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a browser may take to ask, or do nothing.
const IDLE: Duration = Duration::from_secs(30);
/// Connections at a time; a browser opens six.
const MAX_CONNECTIONS: usize = 32;

/// A port of the host's loopback where the page is. Ends when dropped.
#[derive(Debug)]
pub struct PageForward {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl PageForward {
    /// Listens on 127.0.0.1 (`port` 0: any), for the page that is on this debug socket.
    pub async fn start(port: u16, socket: PathBuf) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let address = listener.local_addr()?;
        Ok(Self { address, task: tokio::spawn(listen(listener, socket.into())) })
    }

    /// Where a browser finds the page.
    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for PageForward {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(listener: TcpListener, socket: Arc<Path>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut open = JoinSet::new();
    loop {
        while open.try_join_next().is_some() {}
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else { continue };
        let socket = socket.clone();
        open.spawn(async move {
            let _place = place;
            let service = service_fn(|request| answer(request, &socket));
            let mut http = server::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(IDLE);
            // A browser that goes away in the middle is no matter.
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(request: Request<Incoming>, socket: &Path) -> Result<Response<Full<Bytes>>, Infallible> {
    let told = |status: StatusCode, text: String| {
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        response
    };
    if request.method() != Method::GET || !PATHS.contains(&request.uri().path()) {
        return Ok(told(StatusCode::NOT_FOUND, "only the page is here\n".to_owned()));
    }
    let asked = tokio::time::timeout(PATIENCE, pass_on(request.uri().path(), request.headers(), socket)).await;
    Ok(match asked {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => told(StatusCode::BAD_GATEWAY, format!("tropisd does not answer: {error}\n")),
        Err(_) => told(StatusCode::GATEWAY_TIMEOUT, "tropisd does not answer in time\n".to_owned()),
    })
}

/// Asks tropisd the same, by the name that the browser asked for.
async fn pass_on(path: &str, headers: &HeaderMap, socket: &Path) -> io::Result<Response<Full<Bytes>>> {
    let stream = UnixStream::connect(socket).await?;
    let (mut sender, connection) = client::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let mut connecting = JoinSet::new();
    connecting.spawn(connection);
    let mut request = Request::builder().uri(path);
    for host in headers.get_all(header::HOST) {
        request = request.header(header::HOST, host);
    }
    let request = request.body(Full::<Bytes>::default()).map_err(io::Error::other)?;
    let (head, body) = sender.send_request(request).await.map_err(io::Error::other)?.into_parts();
    let body = Limited::new(body, ANSWER_MAX_BYTES).collect().await.map_err(io::Error::other)?;
    Ok(Response::from_parts(head, Full::from(body.to_bytes())))
}

impl Lab {
    /// The page of this lab's control plane, on a port of the host's loopback.
    pub async fn page(&self, port: u16) -> Result<PageForward, LabError> {
        let socket = self.layout().socket(Program::Tropisd.name(), CONTROL_NODE);
        let forward = PageForward::start(port, socket).await;
        forward.map_err(|error| LabError::File(format!("forwarding the page to port {port}"), error))
    }
}

impl PageForward {
    /// GETs `path`, by the name `host`: the status and the body.
    pub async fn get(&self, path: &str, host: &str) -> io::Result<(u16, String)> {
        let mut stream = TcpStream::connect(self.address).await?;
        let exchange = async {
            // HTTP/1.0: the answer ends with the connection and has no chunks.
            stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n").as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
            let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
            status.zip(body).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
        };
        tokio::time::timeout(PATIENCE, exchange).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// The graph as it is now.
    pub async fn graph(&self) -> io::Result<Graph> {
        let (status, body) = self.get("/graph.json", "localhost").await?;
        if status != 200 {
            return Err(io::Error::other(format!("status {status}: {}", body.trim())));
        }
        Ok(Graph(serde_json::from_str(&body)?))
    }
}

/// The graph that the page draws.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph(pub Value);

impl Graph {
    /// The edge between two workloads, each `NAMESPACE/NAME`; `null` if there is none.
    pub fn edge(&self, from: &str, to: &str) -> &Value {
        let edges = self.0["edges"].as_array();
        edges.into_iter().flatten().find(|edge| edge["from"] == from && edge["to"] == to).unwrap_or(&Value::Null)
    }

    /// For how many seconds more a workload's endpoint is ejected, if it is.
    pub fn ejected(&self, workload: &str) -> Option<f64> {
        self.0["ejected"].as_array()?.iter().find(|one| one["node"] == workload)?["secondsLeft"].as_f64()
    }

    /// Whether an edge is by mutual TLS and has requests, and how many a second.
    pub fn locked_requests(&self, from: &str, to: &str) -> Option<f64> {
        let edge = self.edge(from, to);
        let rate = edge["requestsPerSecond"].as_f64().filter(|rate| *rate > 0.0)?;
        (edge["security"] == "mutualTls").then_some(rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_but_the_page_is_passed_on_and_the_host_goes_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("debug.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = service_fn(|request: Request<Incoming>| async move {
                    let host = request.headers()[header::HOST].to_str().unwrap_or_default().to_owned();
                    Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(format!("{} for {host}", request.uri()))))
                });
                tokio::spawn(server::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        let forward = PageForward::start(0, path).await.unwrap();
        assert!(forward.address().ip().is_loopback());
        assert_eq!(forward.get("/graph.json", "localhost:1").await.unwrap(), (200, "/graph.json for localhost:1".to_owned()));
        assert_eq!(forward.get("/", "evil.example").await.unwrap(), (200, "/ for evil.example".to_owned()), "tropisd decides over hosts");
        for path in ["/debug/clients", "/logging?level=trace", "/graph.json/", "//"] {
            assert_eq!(forward.get(path, "localhost").await.unwrap().0, 404, "{path}");
        }
        let nobody = PageForward::start(0, folder.path().join("absent.sock")).await.unwrap();
        assert_eq!(nobody.get("/", "localhost").await.unwrap().0, 502);
    }

    #[test]
    fn an_edge_counts_as_locked_only_with_requests_and_mutual_tls() {
        let edge =
            |security: &str, rate: f64| serde_json::json!({"from": "a/b", "to": "c/d", "security": security, "requestsPerSecond": rate});
        let of = |edge: Value| Graph(serde_json::json!({"edges": [edge], "ejected": [{"node": "c/d", "secondsLeft": 2.5}]}));
        assert_eq!(of(edge("mutualTls", 3.0)).locked_requests("a/b", "c/d"), Some(3.0));
        assert_eq!(of(edge("mutualTls", 0.0)).locked_requests("a/b", "c/d"), None);
        assert_eq!(of(edge("mixed", 3.0)).locked_requests("a/b", "c/d"), None);
        assert_eq!(of(edge("mutualTls", 3.0)).locked_requests("a/b", "x/y"), None);
        assert_eq!((of(edge("plain", 0.0)).ejected("c/d"), of(edge("plain", 0.0)).ejected("a/b")), (Some(2.5), None));
    }
}
