//! What runs, wired in start order; and how it ends.
//!
//! This thread is the control side: xDS, certificates, ZDS, admin, metrics. Workers move the bytes. The end: stop accepting, tell the
//! peers, finish what is open, and after the limit close the rest.

use std::{
    collections::HashMap,
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
};

use thiserror::Error;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};
use tokio_util::sync::CancellationToken;
use tropis_telemetry::{
    admin::{AdminError, AdminListener, metrics_routes, readiness_routes},
    logs::LogControl,
    metrics::Metrics,
    readiness::Readiness,
};
use tropis_tls::{
    authority::{Citadel, CitadelOptions},
    control::{self, Credentials, InvalidEndpoint, InvalidHeader},
    store::Certificates,
};
use tropis_xds::{
    client::{self, ClientConfig, Counters},
    current::CurrentView,
};

use crate::{
    admin::{self, Admin},
    capture::CaptureMaps,
    config::{Capture, Config},
    dns,
    metrics::{ProxyMetrics, register_xds},
    node::{Pod, pods::Pods, zds},
    worker::{self, WorkerHandle},
};

/// What all threads share.
pub struct Shared {
    /// Settings.
    pub config: Config,
    /// The mesh.
    pub view: CurrentView,
    /// Certificates of the pods on this node.
    pub certificates: Certificates,
    /// Our side of the capture.
    pub capture: CaptureMaps,
    /// What we count.
    pub metrics: ProxyMetrics,
    /// Where DNS questions go when nobody can say which resolver was asked.
    pub resolvers: Vec<SocketAddr>,
    /// The pods that are served.
    pub pods: Mutex<HashMap<Arc<str>, Arc<Pod>>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Shared {
    /// What threads share, before anything runs.
    pub fn new(config: Config, certificates: Certificates, metrics: &Metrics) -> Self {
        let resolvers = match config.capture {
            Capture::Hooks { .. } => Vec::new(),
            // Unreadable is empty: questions that are not ours are then answered with SERVFAIL.
            Capture::Netfilter { .. } => dns::system_resolvers(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
        };
        Self {
            view: CurrentView::default(),
            certificates,
            capture: CaptureMaps::new(&config.capture),
            metrics: ProxyMetrics::register(metrics),
            resolvers,
            pods: Mutex::new(HashMap::new()),
            config,
        }
    }

    /// The pods that are served now.
    pub fn served_pods(&self) -> Vec<Arc<Pod>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
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
    /// An endpoint cannot be served.
    #[error("an endpoint cannot be served")]
    Admin(#[source] AdminError),
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
    let certificates = certificates(&config)?;
    let shared = Arc::new(Shared::new(config, certificates, &metrics));
    let (stop, mut stop_asked) = mpsc::channel(1);

    let (workers, threads) = start_workers(&shared)?;
    proxy_ready.ready();

    let admin = Admin { shared: shared.clone(), workers: workers.clone(), log, stop };
    let admin = admin::routes(admin).merge(metrics_routes(metrics.clone()));
    let endpoints = [
        (shared.config.admin.clone(), admin),
        (tropis_telemetry::admin::AdminAddress::Tcp(shared.config.metrics), metrics_routes(metrics.clone())),
        (tropis_telemetry::admin::AdminAddress::Tcp(shared.config.readiness), readiness_routes(readiness.clone())),
    ];
    for (address, routes) in endpoints {
        let listener = AdminListener::bind(&address).await.map_err(StartError::Admin)?;
        tokio::spawn(listener.serve(routes, std::future::pending()));
    }

    let counters = Arc::new(Counters::default());
    register_xds(&metrics, counters.clone());
    let (status, mut synced) = watch::channel(client::Status::default());
    follow_control_plane(&shared, counters, status)?;
    tokio::spawn({
        let shared = shared.clone();
        async move {
            // The sender lives as long as the client, which lives as long as the process.
            while synced.changed().await.is_ok() {
                let status = synced.borrow_and_update();
                shared.view.name_versions(&status.versions);
                if status.synced() {
                    state_ready.ready();
                }
            }
        }
    });

    let pods = Pods::new(shared.clone(), workers, readiness.task("workload proxy manager"));
    let agent = tokio::spawn({
        let shared = shared.clone();
        async move { zds::run(&shared.config.zds_socket, pods).await }
    });
    tracing::info!(workers = threads.len(), node = %shared.config.node, capture = ?shared.config.capture, "ztunnel started");

    tokio::select! {
        _ = terminated.recv() => tracing::info!("SIGTERM: draining"),
        _ = interrupted.recv() => tracing::info!("SIGINT: draining"),
        _ = stop_asked.recv() => tracing::info!("asked to stop: draining"),
    }
    // The agent first, so that it hands new pods to the next proxy.
    agent.abort();
    drain(&shared).await;
    tracing::info!("ztunnel stopped");
    Ok(())
}

/// Finishes what is open in every pod; closes the rest when the time runs out.
pub async fn drain(shared: &Shared) {
    let limit = shared.config.drain_limit;
    let pods = shared.served_pods();
    let open: usize = pods.iter().map(|pod| pod.open_connections()).sum();
    tracing::info!(pods = pods.len(), open, ?limit, "accepting nothing new");
    futures_util::future::join_all(pods.iter().map(|pod| pod.drain().finish(limit))).await;
}

/// Starts the workers that the settings ask for.
pub fn start_workers(shared: &Arc<Shared>) -> Result<(Vec<WorkerHandle>, Vec<JoinHandle<()>>), StartError> {
    let started = (0..shared.config.workers).map(|index| worker::start(shared.clone(), index));
    let started: Vec<_> = started.collect::<Result<_, _>>().map_err(StartError::Worker)?;
    Ok(started.into_iter().unzip())
}

fn certificates(config: &Config) -> Result<Certificates, StartError> {
    let channel = control::channel(&config.ca).map_err(StartError::Endpoint)?;
    let credentials = Credentials::new(config.token.clone(), [("clusterid", config.cluster_id.as_str())]).map_err(StartError::Header)?;
    let options = CitadelOptions { time_to_live: config.certificate_ttl, impersonate: true };
    Ok(Certificates::new(Arc::new(Citadel::new(channel, credentials, options))))
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
        role: "ztunnel",
        types: client::NODE_PROXY_TYPES,
        address: config.instance_address,
        pod_name: config.pod_name.clone(),
        pod_namespace: config.pod_namespace.clone(),
        node_name: config.node.to_string(),
        cluster_id: config.cluster_id.clone(),
        metadata: config.metadata.clone(),
        headers: Vec::new(),
        counters,
        callers: None,
    };
    let connect = move || {
        let (control_plane, credentials) = (control_plane.clone(), credentials.clone());
        async move {
            let channel = control::channel(&control_plane)?;
            Ok(tonic::service::interceptor::InterceptedService::new(channel, credentials))
        }
    };
    let feed = shared.clone();
    let apply = move |changes| feed.view.apply(changes);
    tokio::spawn(client::run(client_config, connect, apply, status, CancellationToken::new()));
    Ok(())
}
