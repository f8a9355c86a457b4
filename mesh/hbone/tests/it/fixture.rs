//! Two proxies in one thread: a caller's side with a pool, and a callee's side that serves tunnels and dials the application.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use http::StatusCode;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{LocalSet, spawn_local},
};
use tropis_hbone::{
    client::{Opened, Pool, PoolOptions, TunnelError, TunnelKey, TunnelRequest},
    headers::TunnelHeaders,
    server::{self, IncomingTunnel, ServerOptions, SessionEnd},
};
use tropis_model::{identity::Identity, resolve::Authority, workload::WorkloadUid};
use tropis_net::{
    dial::{DialError, DialFrom, DialOptions},
    drain::Drain,
    relay::{RelayOptions, RelayOutcome, relay},
};
use tropis_tls::{store::Certificates, testing::TestAuthority};

pub(crate) const FAMILIES: [&str; 2] = ["127.0.0.1", "::1"];

/// Runs a test on one thread, with a limit far above what is normal.
pub(crate) fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let limited = async { tokio::time::timeout(Duration::from_secs(60), test).await.expect("the test hangs") };
    LocalSet::new().block_on(&runtime, limited);
}

pub(crate) fn identity(name: &str) -> Identity {
    Identity::new("cluster.local", "shop", name)
}

/// What both sides share.
pub(crate) struct Mesh {
    pub(crate) authority: Arc<TestAuthority>,
    pub(crate) certificates: Certificates,
}

impl Mesh {
    pub(crate) fn new() -> Self {
        let authority = Arc::new(TestAuthority::new());
        let certificates = Certificates::new(Arc::clone(&authority) as Arc<_>);
        Self { authority, certificates }
    }

    pub(crate) fn pool(&self, options: PoolOptions) -> Pool {
        Pool::new(self.certificates.clone(), options)
    }
}

/// The callee's proxy: serves tunnels as `reviews` and gives them to `handler`.
pub(crate) struct Callee {
    pub(crate) address: SocketAddr,
    pub(crate) drain: Rc<RefCell<Drain>>,
    pub(crate) sessions: Rc<Cell<usize>>,
    pub(crate) ends: Rc<RefCell<Vec<Result<SessionEnd, server::AcceptError>>>>,
}

impl Callee {
    pub(crate) async fn start(mesh: &Mesh, ip: &str, options: ServerOptions, handler: impl Fn(IncomingTunnel) + 'static) -> Self {
        let listener = TcpListener::bind((ip.parse::<IpAddr>().unwrap(), 0)).await.unwrap();
        let callee = Self {
            address: listener.local_addr().unwrap(),
            drain: Rc::new(RefCell::new(Drain::new())),
            sessions: Rc::default(),
            ends: Rc::default(),
        };
        let (drain, sessions, ends) = (Rc::clone(&callee.drain), Rc::clone(&callee.sessions), Rc::clone(&callee.ends));
        let (certificates, handler) = (mesh.certificates.clone(), Rc::new(handler));
        spawn_local(async move {
            loop {
                let (stream, _) = tropis_net::accept::next(&listener).await.unwrap();
                let (sessions, ends) = (Rc::clone(&sessions), Rc::clone(&ends));
                let (certificates, handler, options) = (certificates.clone(), Rc::clone(&handler), options.clone());
                let signal = drain.borrow().signal();
                spawn_local(async move {
                    let config = certificates.get(&identity("reviews")).await.unwrap().server_config();
                    let end = match server::accept(stream, config, &options).await {
                        Ok(session) => {
                            sessions.set(sessions.get() + 1);
                            Ok(session.serve(signal, |tunnel| handler(tunnel)).await)
                        }
                        Err(error) => Err(error),
                    };
                    ends.borrow_mut().push(end);
                });
            }
        });
        callee
    }

    /// A callee that connects each tunnel to the application at its authority.
    pub(crate) async fn relaying(mesh: &Mesh, ip: &str, options: ServerOptions) -> Self {
        Self::start(mesh, ip, options, |tunnel| {
            spawn_local(serve_application(tunnel));
        })
        .await
    }
}

/// What a node proxy does with a tunnel: dial the application, answer, relay.
pub(crate) async fn serve_application(tunnel: IncomingTunnel) -> Option<RelayOutcome> {
    let Authority::Address(to) = *tunnel.authority() else {
        tunnel.refuse(StatusCode::SERVICE_UNAVAILABLE);
        return None;
    };
    match TcpStream::connect(to).await {
        Ok(application) => {
            application.set_nodelay(true).unwrap();
            let stream = tunnel.accept(Some("k8s.namespace.name=shop")).ok()?;
            Some(relay(stream, application, &RelayOptions::default()).await)
        }
        Err(_) => {
            tunnel.refuse(StatusCode::SERVICE_UNAVAILABLE);
            None
        }
    }
}

pub(crate) fn key(address: SocketAddr) -> TunnelKey {
    TunnelKey {
        source: WorkloadUid("Kubernetes//Pod/shop/productpage".into()),
        source_identity: identity("productpage"),
        destination: WorkloadUid("Kubernetes//Pod/shop/reviews".into()),
        address,
        network: "".into(),
        expected: [identity("reviews")].into(),
    }
}

pub(crate) fn request(application: SocketAddr) -> TunnelRequest {
    TunnelRequest { authority: Authority::Address(application), headers: TunnelHeaders::default() }
}

/// Dials, counting how often.
pub(crate) fn dialler(to: SocketAddr, count: &Rc<Cell<usize>>) -> impl AsyncFn() -> Result<TcpStream, DialError> + 'static {
    let count = Rc::clone(count);
    async move || {
        count.set(count.get() + 1);
        tropis_net::dial::connect(None, DialFrom::Any, to, &DialOptions::default(), |_| Ok(())).await
    }
}

pub(crate) async fn open(pool: &Pool, callee: SocketAddr, application: SocketAddr) -> Result<Opened, TunnelError> {
    pool.open(&key(callee), &request(application), dialler(callee, &Rc::default())).await
}

/// A whole path: an application connects to `entry`, and its bytes go through a tunnel to the application at `application`.
pub(crate) struct Path {
    pub(crate) entry: SocketAddr,
    pub(crate) outcomes: Rc<RefCell<Vec<RelayOutcome>>>,
    pub(crate) pool: Pool,
}

impl Path {
    pub(crate) async fn start(mesh: &Mesh, ip: &str, application: SocketAddr) -> Self {
        let callee = Callee::relaying(mesh, ip, ServerOptions::default()).await.address;
        let listener = TcpListener::bind((ip.parse::<IpAddr>().unwrap(), 0)).await.unwrap();
        let path = Self { entry: listener.local_addr().unwrap(), outcomes: Rc::default(), pool: mesh.pool(PoolOptions::default()) };
        let (outcomes, pool) = (Rc::clone(&path.outcomes), path.pool.clone());
        spawn_local(async move {
            loop {
                let (stream, _) = tropis_net::accept::next(&listener).await.unwrap();
                let (outcomes, pool) = (Rc::clone(&outcomes), pool.clone());
                spawn_local(async move {
                    stream.set_nodelay(true).unwrap();
                    let opened = open(&pool, callee, application).await.unwrap();
                    let outcome = relay(stream, opened.stream, &RelayOptions::default()).await;
                    outcomes.borrow_mut().push(outcome);
                });
            }
        });
        path
    }

    /// Both ends of one connection: the caller's socket and the callee's.
    pub(crate) async fn connect(&self, application: &TcpListener) -> (TcpStream, TcpStream) {
        let caller = TcpStream::connect(self.entry).await.unwrap();
        let (callee, _) = application.accept().await.unwrap();
        for stream in [&caller, &callee] {
            stream.set_nodelay(true).unwrap();
        }
        (caller, callee)
    }
}

pub(crate) async fn application(ip: &str) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((ip.parse::<IpAddr>().unwrap(), 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// An application that sends back what it gets.
pub(crate) async fn echo(ip: &str) -> SocketAddr {
    let (listener, address) = application(ip).await;
    spawn_local(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            spawn_local(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

/// Waits until something is so.
pub(crate) async fn until(mut is_so: impl FnMut() -> bool) {
    while !is_so() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
