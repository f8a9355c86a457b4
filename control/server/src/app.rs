//! What runs, wired in start order.
//!
//! Objects are watched from the first moment and proxies may connect at once, but nothing is served before everything was read: an
//! empty configuration would be taken for the truth. Stopping changes nothing for running traffic.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use time::OffsetDateTime;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use tropis_compile::Settings;
use tropis_model::identity::Identity;
use tropis_telemetry::{
    admin::{self, AdminAddress, AdminListener},
    logs::LogControl,
    metrics::Metrics as Registry,
    readiness::Readiness,
};
use tropis_xds::server::{Clients, Resources};

use crate::{
    ca::{
        authority::{Authority, write_file},
        server_certificate::ServerCertificate,
    },
    caller::{Authenticator, token::Tokens},
    certify::Certify,
    config::Config,
    connections::{Limits, Places},
    debug::{self, Debug, page},
    graph::look::{InventoryAsk, Look},
    metrics::Metrics,
    report::Reporter,
    scope::Scope,
    serve::{self, Services},
    watch::{Findings, Told, Watch},
};

/// The account that tropisd's own certificate names, as Istio's control plane is called.
const OWN_ACCOUNT: &str = "istiod";
/// How long answers under way may take when tropisd stops.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// Descriptors for all but proxies' connections: files, watches, the endpoints' own connections.
const OTHER_DESCRIPTORS: u64 = 256;

/// Runs until SIGTERM or SIGINT.
pub(crate) async fn run(config: Config, log_control: LogControl) -> anyhow::Result<()> {
    // Before anybody can see that it is there and tell it to go.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut app = App::new(config);
    // One question at a time: who looks waits for his answer.
    let (ask_inventory, inventory_asks) = mpsc::channel(1);
    app.watch_objects(inventory_asks)?;
    app.serve_proxies()?;
    // First: health is told once everything is there, the socket's mode among it.
    app.serve_debug(log_control, ask_inventory).await?;
    app.serve_monitoring().await?;
    app.tasks.spawn(count_clients(app.clients.clone(), app.metrics.clone(), app.stop.clone()));

    tokio::select! {
        _ = terminate.recv() => info!("SIGTERM: stopping"),
        _ = interrupt.recv() => info!("SIGINT: stopping"),
    }
    app.stop.cancel();
    // What has not finished by then is cut; proxies keep what they have and come back.
    let _ = tokio::time::timeout(STOP_DEADLINE, async { while app.tasks.join_next().await.is_some() {} }).await;
    Ok(())
}

/// What the parts share.
struct App {
    config: Config,
    registry: Registry,
    metrics: Metrics,
    readiness: Readiness,
    scope: Arc<Scope>,
    resources: Resources,
    clients: Clients,
    findings: Findings,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl App {
    fn new(config: Config) -> Self {
        let registry = Registry::default();
        let metrics = registry.register(Metrics::new);
        let trusted = (config.trusted_namespace.as_str(), config.trusted_account.as_str());
        let scope = Arc::new(Scope::new(config.trust_domain.clone(), trusted, config.sidecar_labels));
        // Versions of this process differ from those of the one before it, however short its life was.
        let resources = Resources::new(format!("{:x}", OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000));
        Self {
            config,
            registry,
            metrics,
            readiness: Readiness::default(),
            scope,
            resources,
            clients: Clients::default(),
            findings: Findings::default(),
            tasks: JoinSet::new(),
            stop: CancellationToken::new(),
        }
    }

    /// What compiling goes by besides the objects.
    fn settings(&self) -> Settings {
        let config = &self.config;
        Settings {
            trust_domain: config.trust_domain.clone(),
            root_namespace: config.root_namespace.clone(),
            cluster_domain: config.cluster_domain.clone(),
            cluster_id: config.cluster_id.as_str().into(),
            network: config.network.as_str().into(),
            sidecar_labels: config.sidecar_labels,
            automatic_waypoints: config.automatic_waypoints,
            automatic_waypoint_scope: config.automatic_waypoint_scope,
            access_log: config.access_log.clone(),
        }
    }

    /// Source to configuration, and findings back to the source.
    fn watch_objects(&mut self, inventory_asks: mpsc::Receiver<InventoryAsk>) -> anyhow::Result<()> {
        let settings = self.settings();
        let config = &self.config;
        let source = tropis_source::open(&config.source).with_context(|| format!("cannot open the source {}", config.source))?;
        let (reports, desired) = tokio::sync::watch::channel(None);
        self.tasks.spawn(Reporter::new(source.clone(), self.metrics.clone()).run(desired, self.stop.clone()));
        let told = Told {
            scope: self.scope.clone(),
            resources: self.resources.clone(),
            clients: self.clients.clone(),
            findings: self.findings.clone(),
            reports,
            ready: self.readiness.task("objects"),
            metrics: self.metrics.clone(),
        };
        self.tasks.spawn(Watch::new(settings, config.waypoint_drain, told).run(source.watch(), inventory_asks, self.stop.clone()));
        Ok(())
    }

    /// The authority, and the port that proxies connect to.
    fn serve_proxies(&mut self) -> anyhow::Result<()> {
        let config = &self.config;
        let authority = Arc::new(Authority::open(&config.state.join("ca"), &config.trust_domain, OffsetDateTime::now_utc())?);
        if let Some(path) = &config.root_cert_out {
            write_file(path, authority.root_pem(), 0o644)?;
        }
        info!(not_after = %authority.not_after(), trust_domain = %config.trust_domain, "certificate authority open");
        let tokens = Arc::new(Tokens::open(&config.token_key, &config.token_issuer, &config.token_audience)?);

        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let own = Identity::new(config.trust_domain.clone(), config.root_namespace.as_str(), OWN_ACCOUNT);
        let lifetime = config.default_certificate_lifetime;
        let certificate = Arc::new(ServerCertificate::new(&authority, &provider, own, config.server_names(), lifetime)?);
        let tls = serve::tls(&authority, &provider, certificate.clone())?;
        let (issuer, stop) = (authority.clone(), self.stop.clone());
        self.tasks.spawn(async move { certificate.keep_fresh(&issuer, &provider, stop).await });

        let mut listeners = Vec::new();
        for address in &config.listen {
            let listener = serve::listen(*address)?;
            info!(address = %listener.local_addr()?, "serving proxies");
            listeners.push(listener);
        }
        let longest = config.longest_certificate_lifetime;
        let services = Services {
            authenticator: Authenticator::new(tokens, config.trust_domain.clone(), self.metrics.clone()),
            scope: self.scope.clone(),
            resources: self.resources.clone(),
            clients: self.clients.clone(),
            certify: Certify::new(authority, self.scope.clone(), lifetime, longest, self.metrics.clone()),
            longest_connection: config.longest_connection,
        };
        let places =
            Places::new(Limits::new(within_descriptors(config.max_connections), config.max_connections_per_address), self.metrics.clone());
        self.tasks.spawn(serve::run(listeners, tls, places, services, self.stop.clone()));
        Ok(())
    }

    async fn serve_monitoring(&mut self) -> anyhow::Result<()> {
        for address in &self.config.monitoring {
            let listener = AdminListener::bind(&AdminAddress::Tcp(*address)).await?;
            info!(address = %listener.local_address().unwrap_or(*address), "serving metrics and health");
            let routes = debug::monitoring(self.registry.clone(), self.readiness.clone());
            self.tasks.spawn(listener.serve(routes, self.stop.clone().cancelled_owned()));
        }
        Ok(())
    }

    async fn serve_debug(&mut self, log_control: LogControl, inventory: mpsc::Sender<InventoryAsk>) -> anyhow::Result<()> {
        let Some(path) = &self.config.debug_socket else { return Ok(()) };
        let listener = AdminListener::bind(&AdminAddress::Unix(path.clone())).await?;
        let debug = Debug::new(self.resources.clone(), self.clients.clone(), self.findings.clone(), self.settings());
        let routes = debug::routes(debug).merge(admin::logging_routes(log_control));
        let routes = routes.merge(admin::version_routes(env!("CARGO_PKG_VERSION")));
        let routes = routes.merge(page::routes(Look::new(inventory, self.config.proxy_sockets.clone())));
        let routes = routes.layer(axum::middleware::from_fn(page::refuse_foreign));
        self.tasks.spawn(listener.serve(routes, self.stop.clone().cancelled_owned()));
        Ok(())
    }
}

/// As many connections as there can be descriptors for, the limit of which is raised as far as it may be.
fn within_descriptors(connections: usize) -> usize {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        warn!(%error, "the limit of open files cannot be raised");
    }
    let Ok((descriptors, _)) = getrlimit(Resource::RLIMIT_NOFILE) else { return connections };
    // At least half is for connections, however few there are.
    let room = descriptors.saturating_sub(OTHER_DESCRIPTORS).max(descriptors / 2).max(1);
    let room = usize::try_from(room).unwrap_or(usize::MAX);
    if room < connections {
        warn!(descriptors, room, connections, "the limit of open files (RLIMIT_NOFILE) leaves room for fewer connections than are allowed");
    }
    connections.min(room)
}

async fn count_clients(clients: Clients, metrics: Metrics, stop: CancellationToken) {
    let mut changes = clients.watch();
    loop {
        metrics.clients(clients.count());
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
    }
}
