//! Accepts connections of both families, bounds what they may cost, and drains on SIGTERM. What is answered is `routes.rs`.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::Settings;
use crate::routes::{Caller, Shop};

/// Connections served at once; more wait in the listener's queue.
const CONNECTIONS: usize = 1024;
/// Connections that may wait there.
const BACKLOG: i32 = 1024;
/// Longest wait for the head of a request, also between two requests of a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest head of a request.
const HEAD_BYTES: usize = 32 * 1024;
/// What open requests get to finish after SIGTERM.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// Serves until SIGTERM or SIGINT, then finishes what is open.
pub(crate) async fn run(settings: Settings) -> anyhow::Result<()> {
    let listener = listen(settings.listen, settings.port).with_context(|| format!("cannot listen on port {}", settings.port))?;
    let local = listener.local_addr().context("the listener has no address")?;
    let mut terminated = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let mut interrupted = signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?;
    let shop = Arc::new(Shop::new(settings));
    println!("{}", json!({ "event": "listening", "role": shop.role(), "pod": shop.pod(), "address": local.to_string() }));

    let (drain, draining) = watch::channel(false);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut open = JoinSet::new();
    loop {
        let place = tokio::select! {
            place = places.clone().acquire_owned() => place.context("the semaphore is never closed")?,
            _ = terminated.recv() => break,
            _ = interrupted.recv() => break,
        };
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let serving = serve(shop.clone(), stream, peer, draining.clone());
                    open.spawn(async move { serving.await; drop(place); });
                }
                Err(error) => {
                    // Died in the queue, or no descriptors left: neither may end the shop.
                    eprintln!("bookinfo: accept: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            Some(_) = open.join_next(), if !open.is_empty() => {}
            _ = terminated.recv() => break,
            _ = interrupted.recv() => break,
        }
    }
    drop(listener);
    let _ = drain.send(true);
    let _ = tokio::time::timeout(DRAIN_TIME, async { while open.join_next().await.is_some() {} }).await;
    Ok(())
}

/// Listens for both families unless an address is given; on a kernel without IPv6, for IPv4.
fn listen(address: Option<IpAddr>, port: u16) -> io::Result<TcpListener> {
    match address {
        Some(address) => listen_on(SocketAddr::new(address, port)),
        None => match listen_on(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)) {
            Err(error) if error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => {
                listen_on(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))
            }
            other => other,
        },
    }
}

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn serve(shop: Arc<Shop>, stream: TcpStream, peer: SocketAddr, mut draining: watch::Receiver<bool>) {
    let _ = stream.set_nodelay(true);
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    let service = service_fn(|request: Request<Incoming>| {
        let shop = shop.clone();
        async move {
            let started = Instant::now();
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            let caller = Caller { address: peer };
            let response = shop.answer(request, caller).await;
            log(&shop, peer, &method, &path, response.status(), started.elapsed());
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    tokio::select! {
        // How a caller's connection ends is the caller's matter; its requests are logged one by one.
        _ = connection.as_mut() => return,
        _ = draining.wait_for(|draining| *draining) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

fn log(shop: &Shop, peer: SocketAddr, method: &http::Method, path: &str, status: http::StatusCode, took: Duration) {
    let line = json!({
        "event": "request", "role": shop.role(), "peer": peer.to_string(), "method": method.as_str(), "path": path,
        "status": status.as_u16(), "milliseconds": took.as_micros() as f64 / 1000.0,
    });
    use std::io::Write;
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}
