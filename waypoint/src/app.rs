//! What runs, wired in start order; and how it ends.
//!
//! This thread is the control side: xDS, our certificate, admin, metrics. Workers move the bytes. The end: stop accepting, tell the peers
//! (GOAWAY), finish what is open, and after the limit close the rest.

use std::{fmt, io, net::SocketAddr, sync::Arc};

use thiserror::Error;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};
use tokio_util::sync::CancellationToken;
use tropis_model::{view::Change, workload::WorkloadUid};
use tropis_net::{
    drain::Drain,
    listen::{self, ListenError, ListenOptions},
};
use tropis_telemetry::{
    admin::{AdminAddress, AdminError, AdminListener, metrics_routes, readiness_routes},
    logs::LogControl,
    metrics::Metrics,
    readiness::{Readiness, ReadinessTask},
};
use tropis_tls::{
    authority::{Citadel, CitadelOptions},
    control::{self, Credentials, InvalidEndpoint, InvalidHeader},
    store::Certificates,
};
use tropis_xds::{
    client::{self, ClientConfig, Counters, WAYPOINT_TYPES},
    current::CurrentView,
};

use crate::{
    admin::{self, Admin},
    callers::Callers,
    config::Config,
    metrics::{ProxyMetrics, register_xds},
    upstream::pools::Pools,
    worker::{self, Listeners},
};

/// What all threads share.
pub struct Shared {
    /// Settings.
    pub config: Config,
    /// The mesh.
    pub view: CurrentView,
    /// Who calls from outside of that.
    pub callers: Arc<Callers>,
    /// Our own certificate.
    pub certificates: Certificates,
    /// The pools of all workers.
    pub pools: Pools,
    /// What we count.
    pub metrics: ProxyMetrics,
    /// What tunnels leave from: our own pod.
    pub source: WorkloadUid,
    /// Ends the listeners, later the connections.
    pub drain: Drain,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Shared {
    /// What threads share, before anything runs.
    pub fn new(config: Config, certificates: Certificates, metrics: &Metrics) -> Self {
        let source = format!("{}//Pod/{}/{}", config.cluster_id, config.pod_namespace, config.pod_name);
        Self {
            view: CurrentView::default(),
            callers: Arc::new(Callers::new(config.network.clone())),
            certificates,
            pools: Pools::new(config.gateway.clone(), config.network.clone()),
            metrics: ProxyMetrics::register(metrics),
            source: WorkloadUid(source.into()),
            drain: Drain::new(),
            config,
        }
    }

    /// Puts what the control plane told in force. Called by one thread only.
    pub fn apply(&self, changes: Vec<Change>) {
        self.callers.answered(&changes);
        self.view.apply(changes);
    }
}

/// The proxy cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// A control plane address cannot be used.
    #[error("the control plane cannot be reached as set")]
    Endpoint(#[source] InvalidEndpoint),
    /// A header for the control plane cannot be used.
    #[error("a header for the control plane cannot be sent")]
    Header(#[source] InvalidHeader),
    /// An endpoint of our own cannot be served.
    #[error("an endpoint cannot be served")]
    Admin(#[source] AdminError),
    /// A port cannot be had.
    #[error("a listener cannot be had")]
    Listen(#[source] ListenError),
    /// A worker cannot be started.
    #[error("a worker cannot be started")]
    Worker(#[source] io::Error),
    /// Signals cannot be received.
    #[error("signals cannot be received")]
    Signal(#[source] io::Error),
}

/// Runs the proxy until it is told to stop.
pub async fn run(config: Config, log: LogControl) -> Result<(), StartError> {
    // Before anybody can see that it is there and tell it to go.
    let mut terminated = signal(SignalKind::terminate()).map_err(StartError::Signal)?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(StartError::Signal)?;
    let metrics = Metrics::default();
    let readiness = Readiness::default();
    let (proxy_ready, state_ready) = (readiness.task("proxy"), readiness.task("state manager"));
    let certificate_ready = readiness.task("certificate");
    let certificates = certificates(&config)?;
    let shared = Arc::new(Shared::new(config, certificates, &metrics));
    let (stop, mut stop_asked) = mpsc::channel(1);

    start_workers(&shared)?;
    proxy_ready.ready();

    let admin = admin::routes(Admin { shared: shared.clone(), log, stop }).merge(metrics_routes(metrics.clone()));
    let mut endpoints = vec![(shared.config.admin.clone(), admin)];
    endpoints.extend(shared.config.metrics.iter().map(|address| (AdminAddress::Tcp(*address), metrics_routes(metrics.clone()))));
    endpoints.push((AdminAddress::Tcp(shared.config.readiness), readiness_routes(readiness.clone())));
    for (address, routes) in endpoints {
        let listener = AdminListener::bind(&address).await.map_err(StartError::Admin)?;
        tokio::spawn(listener.serve(routes, std::future::pending()));
    }

    tokio::spawn(await_certificate(shared.clone(), certificate_ready));
    let counters = Arc::new(Counters::default());
    register_xds(&metrics, counters.clone());
    let (status, synced) = watch::channel(client::Status::default());
    follow_control_plane(&shared, counters, status)?;
    tokio::spawn(follow_status(shared.clone(), synced, state_ready));
    let config = &shared.config;
    tracing::info!(workers = config.workers, gateway = %config.gateway, identity = %config.identity, "waypoint started");

    tokio::select! {
        _ = terminated.recv() => tracing::info!("SIGTERM: draining"),
        _ = interrupted.recv() => tracing::info!("SIGINT: draining"),
        _ = stop_asked.recv() => tracing::info!("asked to stop: draining"),
    }
    // Whoever asks is told to send nothing more here.
    readiness.task("drain").pending();
    let drained = shared.drain.finish(shared.config.drain_limit).await;
    tracing::info!(?drained, "waypoint stopped");
    Ok(())
}

/// Where the listeners are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// For tunnels.
    pub hbone: SocketAddr,
    /// For plain connections, in the order of the settings.
    pub plain: Vec<SocketAddr>,
}

/// Binds the listeners and starts the workers that the settings ask for, all on the same addresses.
pub fn start_workers(shared: &Arc<Shared>) -> Result<Bound, StartError> {
    let config = &shared.config;
    let mut bound = Bound { hbone: config.hbone, plain: config.plain.iter().map(|plain| plain.address).collect() };
    for index in 0..config.workers {
        // The first worker finds the number of a port 0; the others take the same.
        let listeners = bind(config, &bound).map_err(StartError::Listen)?;
        let address = |listener: &std::net::TcpListener| listener.local_addr().map_err(StartError::Worker);
        bound.hbone = address(&listeners.hbone)?;
        bound.plain = listeners.plain.iter().map(|(listener, _)| address(listener)).collect::<Result<_, _>>()?;
        worker::start(shared.clone(), index, listeners).map_err(StartError::Worker)?;
    }
    Ok(bound)
}

fn bind(config: &Config, at: &Bound) -> Result<Listeners, ListenError> {
    // HTTP/2 PING keeps tunnels alive.
    let options = ListenOptions { keepalive: None, ..ListenOptions::default() };
    let hbone = listen::tcp_listener(at.hbone, &options)?.listener;
    let plain = config.plain.iter().zip(&at.plain).map(|(plain, address)| {
        let listening = listen::tcp_listener(*address, &ListenOptions::default())?;
        Ok((listening.listener, plain.clone()))
    });
    Ok(Listeners { hbone, plain: plain.collect::<Result<_, _>>()? })
}

/// Our own certificate, by our own token: nobody is impersonated.
fn certificates(config: &Config) -> Result<Certificates, StartError> {
    let channel = control::channel(&config.ca).map_err(StartError::Endpoint)?;
    let credentials = Credentials::new(config.token.clone(), [("clusterid", config.cluster_id.as_str())]).map_err(StartError::Header)?;
    let options = CitadelOptions { time_to_live: config.certificate_ttl, impersonate: false };
    Ok(Certificates::new(Arc::new(Citadel::new(channel, credentials, options))))
}

/// Without a certificate no tunnel can be accepted, so we are not ready before there is one.
async fn await_certificate(shared: Arc<Shared>, ready: ReadinessTask) {
    let mut rotation = shared.certificates.subscribe(&shared.config.identity);
    if shared.certificates.current(&shared.config.identity).is_some() || rotation.next().await.is_some() {
        ready.ready();
    }
}

/// Ready once everything arrived; the name of the configuration in force.
async fn follow_status(shared: Arc<Shared>, mut synced: watch::Receiver<client::Status>, ready: ReadinessTask) {
    // The sender lives as long as the client, which lives as long as the process.
    while synced.changed().await.is_ok() {
        let status = synced.borrow_and_update();
        shared.view.name_versions(&status.versions);
        if status.synced() {
            ready.ready();
        }
    }
}

/// Feeds the view from the control plane, for as long as the process lives.
fn follow_control_plane(shared: &Arc<Shared>, counters: Arc<Counters>, status: watch::Sender<client::Status>) -> Result<(), StartError> {
    let config = &shared.config;
    let headers = config.xds_headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let headers = std::iter::once(("clusterid", config.cluster_id.as_str())).chain(headers);
    let credentials = Credentials::new(config.token.clone(), headers).map_err(StartError::Header)?;
    let control_plane = config.xds.clone();
    // Checked once here, so that a bad setting stops the start.
    control::channel(&control_plane).map_err(StartError::Endpoint)?;
    let client_config = ClientConfig {
        role: "waypoint",
        types: WAYPOINT_TYPES,
        address: config.instance_address,
        pod_name: config.pod_name.clone(),
        pod_namespace: config.pod_namespace.clone(),
        node_name: config.node.to_string(),
        cluster_id: config.cluster_id.clone(),
        metadata: config.metadata.clone(),
        headers: Vec::new(),
        counters,
        callers: Some(shared.callers.names()),
    };
    let connect = move || {
        let (control_plane, credentials) = (control_plane.clone(), credentials.clone());
        async move {
            let channel = control::channel(&control_plane)?;
            Ok(tonic::service::interceptor::InterceptedService::new(channel, credentials))
        }
    };
    let feed = shared.clone();
    let apply = move |changes| feed.apply(changes);
    tokio::spawn(client::run(client_config, connect, apply, status, CancellationToken::new()));
    Ok(())
}
