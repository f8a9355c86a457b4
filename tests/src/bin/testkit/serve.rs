//! `serve`: listens on a port a role, tells on standard output what came in. Start reading at [`run`]; the protocols are in
//! `serve/roles.rs`, `serve/http.rs` and `serve/app.rs`.

mod app;
mod http;
mod roles;

pub(crate) use app::BODY_SEED;
pub(crate) use roles::FarewellGreeting;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Args;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tropis_tests::testkit::{FailureKind, Served};

use crate::connection::plain;
use crate::print_line;
use roles::Transfer;

/// Pending connections a listener may hold; storms open hundreds at once.
const BACKLOG: i32 = 4096;
/// Receive buffer of the slow reader: small, so that the sender feels it at once.
const SLOW_BUFFER_BYTES: usize = 4096;

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Roles (each may be given several times; port 0 takes a free one and prints it)")]
pub(crate) struct Options {
    /// Sends back what it receives, to the end
    #[arg(long, value_name = "PORT")]
    tcp_echo: Vec<u16>,
    /// Speaks first: `hello PEER, here is POD` in a line, then echoes
    #[arg(long, value_name = "PORT")]
    server_first: Vec<u16>,
    /// Reads to the end of the client's bytes, then answers `COUNT SHA256` in a line and finishes
    #[arg(long, value_name = "PORT")]
    half_close: Vec<u16>,
    /// Greets, finishes its own direction at once, and reads on to the end; the next greeting tells what the last ones sent
    #[arg(long, value_name = "PORT")]
    farewell: Vec<u16>,
    /// Reads a line `COUNT`, then as many bytes, and answers `COUNT SHA256` in a line
    #[arg(long, value_name = "PORT")]
    sink: Vec<u16>,
    /// Reads a line `COUNT SEED` and answers with as many bytes computed from the seed
    #[arg(long, value_name = "PORT")]
    source: Vec<u16>,
    /// Reads to the end without looking at the bytes, then answers `COUNT` in a line: for measuring
    #[arg(long, value_name = "PORT")]
    discard: Vec<u16>,
    /// Like --half-close, but reads slowly from a small buffer
    #[arg(long, value_name = "PORT")]
    slow_reader: Vec<u16>,
    /// HTTP/1.1, or HTTP/2 without TLS: `/` tells pod, peer and header fields as JSON, `/ping` answers `pong`, `/health` 200, and
    /// `?bytes=NUMBER` on any path as many bytes
    #[arg(long, value_name = "PORT")]
    http: Vec<u16>,
    /// An application: HTTP/1.1, HTTP/2 without TLS, gRPC and WebSocket on one port; tells as JSON what came, or does what `x-ask` says
    #[arg(long, value_name = "PORT")]
    app: Vec<u16>,
    /// What the application calls its version
    #[arg(long, value_name = "TEXT", default_value = "", help_heading = "Options")]
    service_version: String,
    /// Address to listen on; by default all, IPv4 and IPv6
    #[arg(long, value_name = "ADDRESS", help_heading = "Options")]
    listen: Option<IpAddr>,
    /// Bytes that the slow reader takes at a time
    #[arg(long, value_name = "BYTES", default_value_t = 1024, help_heading = "Options")]
    slow_bytes: usize,
    /// How long it rests after that
    #[arg(long, value_name = "SECONDS", default_value = "0.1", value_parser = crate::connection::seconds, help_heading = "Options")]
    slow_pause: Duration,
    /// Print no line for connections (they cost time when there are thousands)
    #[arg(long, help_heading = "Options")]
    quiet: bool,
}

/// What a port does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    TcpEcho,
    ServerFirst,
    HalfClose,
    Farewell,
    Sink,
    Source,
    Discard,
    SlowReader,
    Http,
    App,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::TcpEcho => "tcp-echo",
            Self::ServerFirst => "server-first",
            Self::HalfClose => "half-close",
            Self::Farewell => "farewell",
            Self::Sink => "sink",
            Self::Source => "source",
            Self::Discard => "discard",
            Self::SlowReader => "slow-reader",
            Self::Http => "http",
            Self::App => "app",
        }
    }
}

impl Options {
    fn ports(&self) -> Vec<(Role, u16)> {
        let roles = [
            (Role::TcpEcho, &self.tcp_echo),
            (Role::ServerFirst, &self.server_first),
            (Role::HalfClose, &self.half_close),
            (Role::Farewell, &self.farewell),
            (Role::Sink, &self.sink),
            (Role::Source, &self.source),
            (Role::Discard, &self.discard),
            (Role::SlowReader, &self.slow_reader),
            (Role::Http, &self.http),
            (Role::App, &self.app),
        ];
        roles.into_iter().flat_map(|(role, ports)| ports.iter().map(move |port| (role, *port))).collect()
    }
}

/// What all connections of the process share.
#[derive(Debug)]
struct Server {
    pod: String,
    namespace: String,
    slow_bytes: usize,
    slow_pause: Duration,
    quiet: bool,
    connections: AtomicU64,
    farewells: roles::Farewells,
    app: app::App,
}

/// An accepted connection and whom it is from.
#[derive(Debug)]
struct Accepted {
    stream: TcpStream,
    number: u64,
    peer: SocketAddr,
    local: SocketAddr,
}

pub(crate) async fn run(options: Options) -> ExitCode {
    let ports = options.ports();
    if ports.is_empty() {
        eprintln!("no role given; for example: tropis-testkit serve --tcp-echo 7000 --http 8080");
        return ExitCode::from(2);
    }
    let server = Arc::new(Server {
        pod: pod_name(),
        namespace: std::env::var("POD_NAMESPACE").unwrap_or_default(),
        slow_bytes: options.slow_bytes.max(1),
        slow_pause: options.slow_pause,
        quiet: options.quiet,
        connections: AtomicU64::new(0),
        farewells: roles::Farewells::default(),
        app: app::App::new(options.service_version),
    });
    for (role, port) in ports {
        let listener = match listen(options.listen, port, role) {
            Ok(listener) => listener,
            Err(error) => {
                eprintln!("cannot listen on port {port} for {}: {error}", role.name());
                return ExitCode::FAILURE;
            }
        };
        let local = listener.local_addr().map(|address| address.to_string()).unwrap_or_default();
        print_line(&Served::Listening { role: role.name().to_owned(), local });
        tokio::spawn(accept(server.clone(), listener, role));
    }
    wait_for_the_end().await;
    ExitCode::SUCCESS
}

fn pod_name() -> String {
    std::env::var("POD_NAME").ok().filter(|name| !name.is_empty()).unwrap_or_else(|| {
        nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_else(|_| "unknown".to_owned())
    })
}

/// SIGTERM and SIGINT end a pod's process in good order.
async fn wait_for_the_end() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminated) => tokio::select! {
            _ = terminated.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        },
        Err(_) => std::future::pending().await,
    }
}

/// Listens for both families unless an address is given; on a kernel without IPv6, for IPv4.
fn listen(address: Option<IpAddr>, port: u16, role: Role) -> io::Result<TcpListener> {
    match address {
        Some(address) => listen_on(SocketAddr::new(address, port), role),
        None => match listen_on(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port), role) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => {
                listen_on(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port), role)
            }
            other => other,
        },
    }
}

fn listen_on(address: SocketAddr, role: Role) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    if role == Role::SlowReader {
        socket.set_recv_buffer_size(SLOW_BUFFER_BYTES)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn accept(server: Arc<Server>, listener: TcpListener, role: Role) {
    loop {
        let (stream, accepted) = match listener.accept().await {
            Ok(pair) => pair,
            Err(error) => {
                // A connection that died in the queue, or no descriptors left: neither may end the server.
                eprintln!("accept for {}: {error}", role.name());
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let server = server.clone();
        tokio::spawn(async move { serve(&server, role, stream, accepted).await });
    }
}

async fn serve(server: &Arc<Server>, role: Role, stream: TcpStream, accepted: SocketAddr) {
    let number = server.connections.fetch_add(1, Ordering::Relaxed) + 1;
    // Both fail only when the peer reset already; then there is nobody to serve.
    let (Ok(peer), Ok(local)) = (stream.peer_addr().map(plain), stream.local_addr().map(plain)) else { return };
    let _ = stream.set_nodelay(true);
    if !server.quiet {
        let accepted = plain(accepted).to_string();
        let role = role.name().to_owned();
        print_line(&Served::Connection { role, number, accepted, peer: peer.to_string(), local: local.to_string() });
    }
    let mut transfer = Transfer::default();
    let mut connection = Accepted { stream, number, peer, local };
    let result = match role {
        Role::TcpEcho => roles::echo(&mut connection, &mut transfer).await,
        Role::ServerFirst => roles::server_first(server, &mut connection, &mut transfer).await,
        Role::HalfClose => roles::half_close(&mut connection, &mut transfer).await,
        Role::Farewell => roles::farewell(server, &mut connection, &mut transfer).await,
        Role::Sink => roles::sink(&mut connection, &mut transfer).await,
        Role::Source => roles::source(&mut connection, &mut transfer).await,
        Role::Discard => roles::discard(&mut connection, &mut transfer).await,
        Role::SlowReader => roles::slow_reader(server, &mut connection, &mut transfer).await,
        Role::Http => http::serve(server, connection).await,
        Role::App => app::serve(server, connection).await,
    };
    if !server.quiet {
        let error = result.err().map(|error| FailureKind::of(&error));
        let Transfer { received, sent, sha256 } = transfer;
        print_line(&Served::Ended { role: role.name().to_owned(), number, received, sent, sha256, error });
    }
}
