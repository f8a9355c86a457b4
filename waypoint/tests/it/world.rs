//! A waypoint of its own for each test, callers with tunnels, applications behind.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    future::Future,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{LocalSet, spawn_local},
};
use tropis_hbone::{
    client::{Pool as Tunnels, PoolOptions, TunnelError, TunnelKey, TunnelRequest},
    headers::{Forwarded, TunnelHeaders},
    server::{self, ServerOptions},
    stream::TunnelStream,
};
use tropis_model::{
    address::NamespacedHostname,
    identity::Identity,
    pool::{Balancer, Limits, LocalityPreference, Pool, PoolKey, UpstreamTls, UpstreamVersion},
    resolve::{Authority, HBONE_PORT},
    route::{
        Destination, Forward, HeaderChanges, Host, HostPort, HttpRoute, Origin, PortProtocol, RequestMatch, Retries, RouteAction, TcpRoute,
    },
    service::{AppProtocol, Service, ServiceAddress, ServicePort},
    view::Change,
    waypoint::{AccessLogFormat, Serves, Waypoint},
    workload::{GatewayAddress, GatewayDestination, TunnelProtocol, Workload, WorkloadUid},
};
use tropis_net::{
    dial::{self, DialFrom, DialOptions},
    drain::Drain,
};
use tropis_telemetry::metrics::Metrics;
use tropis_tls::{store::Certificates, testing::TestAuthority};
use tropis_waypoint::{
    app::{Bound, Shared, start_workers},
    config::Config,
    worker::LocalExecutor,
};

use crate::log;

/// The port of all services.
pub(crate) const PORT: u16 = 9080;
/// A body that an application answers with.
pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;
/// A request's way to call through HTTP/1.1.
pub(crate) type Http1 = http1::SendRequest<Body>;
/// A request's way to call through HTTP/2.
pub(crate) type Http2 = http2::SendRequest<Body>;

/// Runs a test.
pub(crate) fn run(test: impl Future<Output = ()>) {
    log::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let limited = async { tokio::time::timeout(Duration::from_secs(60), test).await.expect("the test took too long") };
    LocalSet::new().block_on(&runtime, limited);
}

/// A body of one piece.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// A waypoint that serves.
pub(crate) struct World {
    pub(crate) shared: Arc<Shared>,
    pub(crate) bound: Bound,
    pub(crate) metrics: Metrics,
    authority: Arc<TestAuthority>,
    tunnels: Tunnels,
    next_workload: Cell<u32>,
}

static NEXT_ADDRESS: AtomicU32 = AtomicU32::new(2);

/// An address of this machine that nobody else uses.
pub(crate) fn own_address() -> IpAddr {
    let number = NEXT_ADDRESS.fetch_add(1, Ordering::Relaxed);
    let process = std::process::id() % 200;
    IpAddr::from([127, process as u8 + 1, (number >> 8) as u8, number as u8])
}

/// An account of the namespace `shop`, or of the one before a `/`.
pub(crate) fn identity(account: &str) -> Identity {
    let (namespace, account) = account.split_once('/').unwrap_or(("shop", account));
    Identity::new("cluster.local", namespace, account)
}

/// A service's name.
pub(crate) fn name(service: &str) -> NamespacedHostname {
    NamespacedHostname { namespace: "shop".into(), hostname: format!("{service}.shop.svc.cluster.local").into() }
}

/// The pool of a service.
pub(crate) fn key(service: &str, subset: Option<&str>) -> PoolKey {
    PoolKey { host: name(service), port: PORT, subset: subset.map(Into::into) }
}

/// A pool that takes its endpoints in turn.
pub(crate) fn pool(service: &str, subset: Option<&str>) -> Pool {
    Pool {
        key: key(service, subset),
        labels: subset.map(|subset| (Arc::from("version"), Arc::from(subset))).into_iter().collect(),
        balancer: Balancer::RoundRobin,
        locality: LocalityPreference::None,
        warmup: None,
        limits: Limits::default(),
        outlier: None,
        panic_threshold_percent: 0,
        upstream_version: UpstreamVersion::FromPort,
        tls: UpstreamTls::None,
    }
}

/// A destination of weight 1.
pub(crate) fn to(service: &str, subset: Option<&str>) -> Destination {
    Destination { pool: key(service, subset), weight: 1, headers: HeaderChanges::default() }
}

/// How a request is sent on, with nothing else.
pub(crate) fn forward(destinations: Vec<Destination>) -> Forward {
    Forward { destinations, rewrite: None, timeout: None, retries: Retries::default(), mirrors: Vec::new() }
}

/// A route.
pub(crate) fn route(name: &str, matches: Vec<RequestMatch>, action: RouteAction) -> HttpRoute {
    let origin = Origin { kind: "VirtualService".into(), object: format!("shop/{name}").into(), field: "spec.http[0]".into() };
    HttpRoute { name: name.into(), origin, matches, action, headers: HeaderChanges::default(), fault: None, cors: None }
}

/// A host with one port.
pub(crate) fn host(service: &str, protocol: PortProtocol, http: Vec<HttpRoute>, pools: Vec<Pool>) -> Host {
    let origin = Origin { kind: "Service".into(), object: format!("shop/{service}").into(), field: "".into() };
    let tcp = TcpRoute {
        origin,
        destination_blocks: Vec::new(),
        source_labels: BTreeMap::new(),
        source_namespace: None,
        destinations: vec![to(service, None)],
    };
    let port = HostPort { protocol, http: http.into_iter().map(Arc::new).collect(), tls: Vec::new(), tcp: vec![Arc::new(tcp)] };
    Host {
        name: name(service),
        ports: BTreeMap::from([(PORT, port)]),
        policies: Vec::new(),
        pools: pools.into_iter().map(|pool| (pool.key.clone(), Arc::new(pool))).collect(),
    }
}

/// A host that sends everything to its service.
pub(crate) fn plain_host(service: &str) -> Host {
    host(
        service,
        PortProtocol::Http,
        vec![route("default", Vec::new(), RouteAction::Forward(Box::new(forward(vec![to(service, None)]))))],
        vec![pool(service, None)],
    )
}

impl World {
    /// A waypoint on `127.0.0.1`.
    pub(crate) fn new() -> Self {
        Self::at("127.0.0.1:0", &[])
    }

    /// A waypoint whose tunnels arrive at `hbone`, with more settings.
    pub(crate) fn at(hbone: &str, settings: &[(&str, &str)]) -> Self {
        let variables: BTreeMap<String, String> = [
            ("TROPIS_HBONE_ADDRESS", hbone),
            ("TROPIS_GATEWAY", "shop/waypoint"),
            ("POD_NAMESPACE", "shop"),
            ("POD_NAME", "waypoint-1"),
            ("SERVICE_ACCOUNT", "waypoint"),
            ("TROPIS_WORKERS", "1"),
            ("CONNECTION_TERMINATION_DEADLINE", "5s"),
        ]
        .into_iter()
        .chain(settings.iter().copied())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
        let authority = Arc::new(TestAuthority::new());
        let metrics = Metrics::default();
        let certificates = Certificates::new(authority.clone());
        let shared = Arc::new(Shared::new(Config::read(&variables).unwrap(), certificates, &metrics));
        let bound = start_workers(&shared).unwrap();
        let tunnels = Tunnels::new(Certificates::new(authority.clone()), PoolOptions::default());
        let world = Self { shared, bound, metrics, authority, tunnels, next_workload: Cell::new(1) };
        let waypoint = Waypoint {
            key: "shop/waypoint".into(),
            service: name("waypoint"),
            serves: Serves::All,
            policies: Vec::new(),
            access_log: Some(AccessLogFormat::Json),
            elsewhere: BTreeSet::new(),
        };
        world.apply([Change::Waypoint(Arc::new(waypoint))]);
        world
    }

    /// Puts changes in force.
    pub(crate) fn apply(&self, changes: impl IntoIterator<Item = Change>) {
        self.shared.apply(changes.into_iter().collect());
    }

    /// A service with this virtual address, and what is done with its traffic.
    pub(crate) fn service(&self, service: &str, address: &str, protocol: AppProtocol, host: Host) {
        let mut made = Service::new(service, name(service));
        let length = if address.contains(':') { 128 } else { 32 };
        made.addresses.push(ServiceAddress { network: "".into(), block: format!("{address}/{length}").parse().unwrap() });
        made.ports.insert(PORT, ServicePort { target_port: None, app_protocol: protocol });
        made.waypoint = Some(GatewayAddress { destination: GatewayDestination::Service(name("waypoint")), hbone_port: HBONE_PORT });
        self.apply([Change::Service(Arc::new(made)), Change::Host(Arc::new(host))]);
    }

    /// The plain HTTP service `reviews` at 10.96.0.1 with one route to itself.
    pub(crate) fn reviews(&self) {
        self.service("reviews", "10.96.0.1", AppProtocol::Http11, plain_host("reviews"));
    }

    /// An endpoint of `service`: where an application listens.
    pub(crate) fn endpoint(&self, service: &str, version: &str, app: &App) -> Workload {
        let number = self.next_workload.replace(self.next_workload.get() + 1);
        let pod = format!("{service}-{version}-{number}");
        let mut workload = Workload::new(format!("Kubernetes//Pod/shop/{pod}"), pod.as_str(), identity(service));
        workload.addresses = vec![app.address.ip()];
        workload.services.insert(name(service), BTreeMap::from([(PORT, app.address.port())]));
        workload.labels.insert("version".into(), version.into());
        workload.workload_name = format!("{service}-{version}").into();
        workload.canonical_name = service.into();
        workload.canonical_revision = version.into();
        workload.tunnel_protocol = if app.is_tunnelled { TunnelProtocol::Hbone } else { TunnelProtocol::None };
        self.apply([Change::Workload(Arc::new(workload.clone()))]);
        workload
    }

    /// An application that answers plain HTTP.
    pub(crate) async fn app<F>(&self, answer: impl Fn(Request<Incoming>) -> F + 'static) -> App
    where
        F: Future<Output = Response<Body>> + 'static,
    {
        self.app_at("127.0.0.1:0".parse().unwrap(), answer).await
    }

    /// The same at an address.
    pub(crate) async fn app_at<F>(&self, at: SocketAddr, answer: impl Fn(Request<Incoming>) -> F + 'static) -> App
    where
        F: Future<Output = Response<Body>> + 'static,
    {
        let answer: Answer = Rc::new(move |request| Box::pin(answer(request)));
        let listener = TcpListener::bind(at).await.unwrap();
        let app =
            App { address: listener.local_addr().unwrap(), is_tunnelled: false, connections: Rc::default(), drain: Rc::new(Drain::new()) };
        let connections = app.connections.clone();
        spawn_local(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                connections.set(connections.get() + 1);
                spawn_local(serve_socket(TokioIo::new(stream), answer.clone()));
            }
        });
        app
    }

    /// An application that is reached through tunnels, at an address of its own; it runs as `account`.
    pub(crate) async fn tunnelled<F>(&self, at: IpAddr, account: &str, answer: impl Fn(Request<Incoming>) -> F + 'static) -> App
    where
        F: Future<Output = Response<Body>> + 'static,
    {
        self.tunnelled_after(Duration::ZERO, at, account, answer).await
    }

    /// The same, where each tunnel is accepted after so long.
    pub(crate) async fn tunnelled_after<F>(
        &self,
        after: Duration,
        at: IpAddr,
        account: &str,
        answer: impl Fn(Request<Incoming>) -> F + 'static,
    ) -> App
    where
        F: Future<Output = Response<Body>> + 'static,
    {
        let answer: Answer = Rc::new(move |request| Box::pin(answer(request)));
        let listener = TcpListener::bind(SocketAddr::new(at, HBONE_PORT)).await.unwrap();
        let certificates = Certificates::new(self.authority.clone());
        let own = identity(account);
        let app = App { address: SocketAddr::new(at, 8080), is_tunnelled: true, connections: Rc::default(), drain: Rc::new(Drain::new()) };
        let (drain, connections) = (app.drain.clone(), app.connections.clone());
        spawn_local(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let config = certificates.get(&own).await.unwrap().server_config();
                let Ok(session) = server::accept(stream, config, &ServerOptions::default()).await else { continue };
                let (answer, connections) = (answer.clone(), connections.clone());
                spawn_local(session.serve(drain.signal(), move |tunnel| {
                    connections.set(connections.get() + 1);
                    assert_eq!(tunnel.peer(), &identity("waypoint"), "the tunnel speaks for the waypoint");
                    let answer = answer.clone();
                    spawn_local(async move {
                        tokio::time::sleep(after).await;
                        serve(TokioIo::new(tunnel.accept(None).unwrap()), answer).await;
                    });
                }));
            }
        });
        app
    }

    /// A tunnel of `account` to the waypoint, for `authority`.
    pub(crate) async fn tunnel(&self, account: &str, authority: &str) -> Result<TunnelStream, TunnelError> {
        self.tunnel_of(account, authority, None).await
    }

    /// The same, which describes its source.
    pub(crate) async fn tunnel_of(&self, account: &str, authority: &str, baggage: Option<&str>) -> Result<TunnelStream, TunnelError> {
        let address = self.bound.hbone;
        let key = TunnelKey {
            source: WorkloadUid(format!("Kubernetes//Pod/shop/{account}-1").into()),
            source_identity: identity(account),
            destination: WorkloadUid("Kubernetes//Pod/shop/waypoint-1".into()),
            address,
            network: "".into(),
            expected: Arc::from([identity("waypoint")]),
        };
        let source = SocketAddr::new(address.ip(), 4711);
        let forwarded = Forwarded { source: Some(source), host: None };
        let headers = TunnelHeaders { forwarded: Some(forwarded), baggage: baggage.map(str::to_owned), ..TunnelHeaders::default() };
        let authority: Authority = authority.parse().unwrap();
        let request = TunnelRequest { authority, headers };
        let opened = self
            .tunnels
            .open(&key, &request, async move || dial::connect(None, DialFrom::Any, address, &DialOptions::default(), |_| Ok(())).await);
        Ok(opened.await?.stream)
    }

    /// A connection of HTTP/1.1 in a tunnel.
    pub(crate) async fn http1(&self, account: &str, authority: &str) -> Http1 {
        self.http1_of(account, authority, None).await
    }

    /// The same, in one that describes its source.
    pub(crate) async fn http1_of(&self, account: &str, authority: &str, baggage: Option<&str>) -> Http1 {
        let stream = self.tunnel_of(account, authority, baggage).await.unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        spawn_local(connection);
        sender
    }

    /// A connection of HTTP/2 in a tunnel.
    pub(crate) async fn http2(&self, account: &str, authority: &str) -> Http2 {
        let stream = self.tunnel(account, authority).await.unwrap();
        let (sender, connection) = http2::handshake(LocalExecutor, TokioIo::new(stream)).await.unwrap();
        spawn_local(connection);
        sender
    }

    /// `GET` on a connection of its own; status and body.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let mut sender = self.http1("cart", "10.96.0.1:9080").await;
        fetch(&mut sender, get(path)).await
    }

    /// What a scrape says.
    pub(crate) fn scrape(&self) -> String {
        self.metrics.render("").1
    }
}

impl App {
    /// Something that listens at `address` without our doing.
    pub(crate) fn elsewhere(address: SocketAddr) -> Self {
        Self { address, is_tunnelled: false, connections: Rc::default(), drain: Rc::new(Drain::new()) }
    }
}

type Answer = Rc<dyn Fn(Request<Incoming>) -> Pin<Box<dyn Future<Output = Response<Body>>>>>;

/// An application.
pub(crate) struct App {
    pub(crate) address: SocketAddr,
    pub(crate) is_tunnelled: bool,
    /// Connections, or tunnels, that were opened to it.
    pub(crate) connections: Rc<Cell<usize>>,
    drain: Rc<Drain>,
}

/// Serves both versions.
async fn serve(io: impl hyper::rt::Read + hyper::rt::Write + Unpin + 'static, answer: Answer) {
    let service = service_fn(move |request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let builder = hyper_util::server::conn::auto::Builder::new(LocalExecutor);
    // A caller that goes away is what many tests do.
    let _ = builder.serve_connection(io, service).await;
}

/// The same, with upgrades.
async fn serve_socket(io: TokioIo<TcpStream>, answer: Answer) {
    let service = service_fn(move |request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let builder = hyper_util::server::conn::auto::Builder::new(LocalExecutor);
    let _ = builder.serve_connection_with_upgrades(io, service).await;
}

/// Answers the requests of a connection that was accepted by hand.
pub(crate) fn answers_on(stream: TcpStream, text: &'static str) {
    let answer: Answer = Rc::new(move |_| Box::pin(std::future::ready(Response::new(full(text)))));
    spawn_local(serve(TokioIo::new(stream), answer));
}

/// A request without body.
pub(crate) fn get(path: &str) -> Request<Body> {
    Request::get(path).header("host", "reviews:9080").body(full("")).unwrap()
}

/// A request of HTTP/2 without body.
pub(crate) fn get2(path: &str) -> Request<Body> {
    Request::get(format!("http://reviews:9080{path}")).version(Version::HTTP_2).body(full("")).unwrap()
}

/// Sends a request; status and body.
pub(crate) async fn fetch(sender: &mut Http1, request: Request<Body>) -> (u16, String) {
    sender.ready().await.unwrap();
    text(sender.send_request(request).await.unwrap()).await
}

/// Status and body of a response.
pub(crate) async fn text(response: Response<Incoming>) -> (u16, String) {
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// What an application saw.
pub(crate) type Seen = Rc<RefCell<Vec<http::request::Parts>>>;

/// An answer with a text, which keeps the request's head in `seen`.
pub(crate) fn says(text: &'static str, seen: &Seen) -> impl Fn(Request<Incoming>) -> std::future::Ready<Response<Body>> + 'static {
    let seen = seen.clone();
    move |request| {
        seen.borrow_mut().push(request.into_parts().0);
        std::future::ready(Response::new(full(text)))
    }
}

/// A plain TCP connection, for applications that do not speak HTTP.
pub(crate) async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        loop {
            let Ok((mut stream, _)): std::io::Result<(TcpStream, _)> = listener.accept().await else { return };
            spawn_local(async move {
                let (mut reader, mut writer) = stream.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    address
}
