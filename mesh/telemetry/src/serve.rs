//! Serving a router to callers who may be slow, idle or many: whoever reaches a port costs a bounded share, and keeps nobody else out.
//!
//! Over the limit of connections one makes room for the newest, since refusing the newest would let a few idle callers hide a program
//! from its scraper and its kubelet: the oldest of the caller that has most, so that who opens many ends his own.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    pin::pin,
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{Request, Response},
    serve::Listener,
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};
use tower_service::Service;

/// What the callers of one endpoint may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections open at once.
    pub connections: usize,
    /// How long a request's head may take to arrive, from the end of the request before: also how long a connection may idle.
    pub head: Duration,
    /// How long a connection is kept; after it, what is being answered may take [`Limits::last_answer`] longer.
    pub connection: Duration,
    /// How long an answer may take that is under way when its connection ends.
    pub last_answer: Duration,
}

impl Default for Limits {
    /// 64 connections: a scraper, a kubelet, people, and room for strangers. 30 s for a head: a scraper that asks every 15 s keeps its
    /// connection. Two minutes for all: somebody who reads an answer of megabytes slowly gets it, and somebody who does not read ends.
    fn default() -> Self {
        Self { connections: 64, head: Duration::from_secs(30), connection: Duration::from_secs(120), last_answer: Duration::from_secs(10) }
    }
}

/// Whose a connection is, for telling callers apart.
pub trait Caller {
    /// The caller's address; `None` for one of this machine, through a unix socket.
    fn address(&self) -> Option<IpAddr>;
}

impl Caller for SocketAddr {
    fn address(&self) -> Option<IpAddr> {
        Some(self.ip().to_canonical())
    }
}

impl Caller for tokio::net::unix::SocketAddr {
    fn address(&self) -> Option<IpAddr> {
        None
    }
}

/// Serves `router` on `listener` over HTTP/1.1 until `stop` is done, then finishes what is being answered.
pub async fn serve<L>(mut listener: L, router: Router, limits: Limits, stop: impl Future<Output = ()>)
where
    L: Listener<Addr: Caller>,
{
    let mut open = Open::new(limits.connections);
    let stopping = watch::Sender::new(false);
    let mut stop = pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            (stream, peer) = listener.accept() => {
                open.make_room();
                open.spawn(peer.address(), serve_connection(stream, router.clone(), limits, stopping.subscribe()));
            }
        }
    }
    drop(listener);
    stopping.send_replace(true);
    open.finish().await;
}

/// The connections that are open, oldest first. Dropping it ends them.
struct Open {
    limit: usize,
    tasks: JoinSet<()>,
    by_age: Vec<(Option<IpAddr>, AbortHandle)>,
}

impl Open {
    fn new(limit: usize) -> Self {
        Self { limit: limit.max(1), tasks: JoinSet::new(), by_age: Vec::new() }
    }

    fn make_room(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        if self.by_age.len() < self.limit {
            return;
        }
        self.by_age.retain(|(_, task)| !task.is_finished());
        while self.by_age.len() >= self.limit {
            let callers: Vec<_> = self.by_age.iter().map(|(caller, _)| *caller).collect();
            let (caller, task) = self.by_age.remove(to_end(&callers));
            tracing::debug!(
                limit = self.limit,
                ?caller,
                "too many connections to an endpoint: the oldest of the caller that has most ends"
            );
            task.abort();
        }
    }

    fn spawn(&mut self, caller: Option<IpAddr>, connection: impl Future<Output = ()> + Send + 'static) {
        self.by_age.push((caller, self.tasks.spawn(connection)));
    }

    async fn finish(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Which of the connections, oldest first and each by its caller, makes room: the oldest of the caller that has most; among equals, the
/// oldest of all.
fn to_end(callers: &[Option<IpAddr>]) -> usize {
    let mut counts: HashMap<Option<IpAddr>, usize> = HashMap::new();
    callers.iter().for_each(|caller| *counts.entry(*caller).or_default() += 1);
    let most = counts.values().copied().max().unwrap_or_default();
    callers.iter().position(|caller| counts[caller] == most).unwrap_or_default()
}

async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    limits: Limits,
    mut stopping: watch::Receiver<bool>,
) {
    let service = service_fn(move |request: Request<Incoming>| answer(router.clone(), request));
    let connection =
        http1::Builder::new().timer(TokioTimer::new()).header_read_timeout(limits.head).serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    tokio::select! {
        ended = &mut connection => return debug_end(ended),
        () = sleep(limits.connection) => {}
        // The sender lives as long as `serve`, which ends this task too.
        _ = stopping.wait_for(|stopping| *stopping) => {}
    }
    connection.as_mut().graceful_shutdown();
    if let Ok(ended) = timeout(limits.last_answer, connection).await {
        debug_end(ended);
    }
}

async fn answer(mut router: Router, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    // A router is ready at any time.
    router.call(request).await
}

fn debug_end(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(error = crate::chain(&error), "connection to an endpoint ended");
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        sync::oneshot,
    };

    use super::*;

    const QUICK: Limits = Limits {
        connections: 3,
        head: Duration::from_millis(200),
        connection: Duration::from_secs(60),
        last_answer: Duration::from_millis(200),
    };

    /// Serves `/` (short), `/long` (more than socket buffers hold) and `/never`.
    async fn serving(limits: Limits) -> (SocketAddr, oneshot::Sender<()>, tokio::task::JoinHandle<()>) {
        let router = Router::new()
            .route("/", get(|| async { "here\n" }))
            .route("/long", get(|| async { "x".repeat(64 << 20) }))
            .route("/never", get(std::future::pending::<&'static str>));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let stopped = async move { drop(stopped.await) };
        (address, stop, tokio::spawn(async move { serve(listener, router, limits, stopped).await }))
    }

    async fn ask(stream: &mut TcpStream, path: &str) -> String {
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = vec![0; 4096];
        let length = stream.read(&mut answer).await.unwrap();
        String::from_utf8(answer[..length].to_vec()).unwrap()
    }

    /// Everything up to the end, however it ends; fails when it does not end.
    async fn end_of(stream: &mut TcpStream) -> Vec<u8> {
        let mut rest = Vec::new();
        let read = timeout(Duration::from_secs(10), stream.read_to_end(&mut rest)).await;
        drop(read.expect("the connection ends"));
        rest
    }

    #[tokio::test]
    async fn connections_are_reused_and_the_idle_and_the_slow_are_ended() {
        let (address, _stop, _) = serving(QUICK).await;
        let mut idle = TcpStream::connect(address).await.unwrap();
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET / HTTP/1.1\r\nHost: loc").await.unwrap();
        let mut used = TcpStream::connect(address).await.unwrap();
        for _ in 0..4 {
            sleep(QUICK.head / 2).await;
            assert!(ask(&mut used, "/").await.ends_with("here\n"));
        }
        assert!(end_of(&mut idle).await.is_empty());
        end_of(&mut slow).await;
        assert!(end_of(&mut used).await.is_empty(), "idle between requests is idle too");
    }

    #[tokio::test]
    async fn too_many_cost_the_oldest_and_never_the_newest() {
        let limits = Limits { head: Duration::from_secs(60), ..QUICK };
        let (address, _stop, _) = serving(limits).await;
        let mut silent = Vec::new();
        for _ in 0..20 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut newest = TcpStream::connect(address).await.unwrap();
        assert!(ask(&mut newest, "/").await.ends_with("here\n"));
        // All but the limit have been ended, the newest being one of those that were not.
        for stream in &mut silent[..18] {
            assert!(end_of(stream).await.is_empty());
        }
        for stream in &mut silent[18..] {
            assert!(ask(stream, "/").await.ends_with("here\n"));
        }
    }

    #[test]
    fn who_has_most_makes_room() {
        let [scraper, greedy, other] = ["10.0.0.1", "fd00::2", "10.0.0.3"].map(|text| Some(text.parse().unwrap()));
        assert_eq!(to_end(&[scraper, greedy, greedy, other, greedy]), 1, "the oldest of his, not the oldest");
        assert_eq!(to_end(&[scraper, other, greedy]), 0, "among equals the oldest");
        assert_eq!(to_end(&[scraper, None, None]), 1, "callers of this machine count as one");
    }

    #[tokio::test]
    async fn a_caller_with_many_does_not_cost_another_his_connection() {
        let limits = Limits { head: Duration::from_secs(60), ..QUICK };
        let (address, _stop, _) = serving(limits).await;
        let mut scraper = TcpStream::connect(address).await.unwrap();
        assert!(ask(&mut scraper, "/").await.ends_with("here\n"));
        let mut greedy = Vec::new();
        for _ in 0..20 {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
            greedy.push(socket.connect(address).await.unwrap());
        }
        assert!(ask(greedy.last_mut().unwrap(), "/").await.ends_with("here\n"));
        assert!(ask(&mut scraper, "/").await.ends_with("here\n"), "it is the oldest of all, and one of one");
    }

    #[tokio::test]
    async fn who_does_not_read_is_ended() {
        let limits = Limits { connection: Duration::from_millis(300), ..QUICK };
        let (address, _stop, _) = serving(limits).await;
        let mut stalled = TcpStream::connect(address).await.unwrap();
        stalled.write_all(b"GET /long HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut unanswered = TcpStream::connect(address).await.unwrap();
        unanswered.write_all(b"GET /never HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        sleep(limits.connection + limits.last_answer * 3).await;
        assert!(end_of(&mut stalled).await.len() < 64 << 20);
        assert!(end_of(&mut unanswered).await.is_empty());
    }

    #[tokio::test]
    async fn stopping_finishes_what_is_being_answered_and_no_more() {
        let limits = Limits { head: Duration::from_secs(60), last_answer: Duration::from_secs(30), ..QUICK };
        let (address, stop, serving) = serving(limits).await;
        let mut idle = TcpStream::connect(address).await.unwrap();
        let mut reading = TcpStream::connect(address).await.unwrap();
        assert!(ask(&mut reading, "/long").await.starts_with("HTTP/1.1 200"));
        stop.send(()).unwrap();
        assert!(end_of(&mut idle).await.is_empty());
        assert!(end_of(&mut reading).await.len() > 60 << 20, "read to its end");
        timeout(Duration::from_secs(10), serving).await.unwrap().unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }
}
