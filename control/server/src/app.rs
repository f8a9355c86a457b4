//! What runs, wired in start order.
//!
//! Objects are watched from the first moment and proxies may connect at once, but nothing is served before everything was read: an
//! empty configuration would be taken for the truth. Stopping changes nothing for running traffic.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use time::OffsetDateTime;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::info;
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
    debug::{self, Debug},
    metrics::Metrics,
    report::Reporter,
    scope::Scope,
    serve,
    watch::{Findings, Watch},
};

/// The account that tropisd's own certificate names, as Istio's control plane is called.
const OWN_ACCOUNT: &str = "istiod";
/// How long answers under way may take when tropisd stops.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// Runs until SIGTERM or SIGINT.
pub(crate) async fn run(config: Config, log_control: LogControl) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let registry = Registry::default();
    let metrics = registry.register(Metrics::new);
    let readiness = Readiness::default();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());

    let authority = Arc::new(Authority::open(&config.state.join("ca"), &config.trust_domain, OffsetDateTime::now_utc())?);
    if let Some(path) = &config.root_cert_out {
        write_file(path, authority.root_pem(), 0o644)?;
    }
    info!(not_after = %authority.not_after(), trust_domain = %config.trust_domain, "certificate authority open");
    let tokens = Arc::new(Tokens::open(&config.token_key, &config.token_issuer, &config.token_audience)?);
    let source = tropis_source::open(&config.source).with_context(|| format!("cannot open the source {}", config.source))?;

    let scope =
        Arc::new(Scope::new(config.trust_domain.clone(), (&config.trusted_namespace, &config.trusted_account), config.sidecar_labels));
    // Versions of this process differ from those of the one before it, however short its life was.
    let resources = Resources::new(format!("{:x}", OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000));
    let clients = Clients::default();
    let findings = Findings::default();

    let reporter = Reporter::new(source.clone(), metrics.clone());
    let (reports, desired) = tokio::sync::watch::channel(None);
    tasks.spawn(reporter.run(desired, stop.clone()));
    let settings = Settings {
        trust_domain: config.trust_domain.clone(),
        root_namespace: config.root_namespace.clone(),
        cluster_domain: config.cluster_domain.clone(),
        cluster_id: config.cluster_id.as_str().into(),
        network: config.network.as_str().into(),
        sidecar_labels: config.sidecar_labels,
    };
    let watch =
        Watch::new(settings, scope.clone(), resources.clone(), findings.clone(), reports, readiness.task("objects"), metrics.clone());
    tasks.spawn(watch.run(source.watch(), stop.clone()));

    let own = Identity::new(config.trust_domain.clone(), config.root_namespace.as_str(), OWN_ACCOUNT);
    let lifetime = config.default_certificate_lifetime;
    let certificate = Arc::new(ServerCertificate::new(&authority, &provider, own, config.server_names(), lifetime)?);
    let tls = serve::tls(&authority, &provider, certificate.clone())?;
    let renewal = (authority.clone(), provider.clone(), stop.clone());
    tasks.spawn(async move { certificate.keep_fresh(&renewal.0, &renewal.1, renewal.2).await });

    let mut listeners = Vec::new();
    for address in &config.listen {
        let listener = serve::listen(*address)?;
        info!(address = %listener.local_addr()?, "serving proxies");
        listeners.push(listener);
    }
    let authenticator = Authenticator::new(tokens, config.trust_domain.clone(), metrics.clone());
    let certify = Certify::new(authority, scope.clone(), lifetime, config.longest_certificate_lifetime, metrics.clone());
    let services =
        serve::services(authenticator, scope, resources.clone(), clients.clone(), certify, config.longest_connection, stop.clone());
    tasks.spawn(serve::run(listeners, tls, services, stop.clone()));

    for address in &config.monitoring {
        let listener = AdminListener::bind(&AdminAddress::Tcp(*address)).await?;
        info!(address = %listener.local_address().unwrap_or(*address), "serving metrics and health");
        tasks.spawn(listener.serve(debug::monitoring(registry.clone(), readiness.clone()), stop.clone().cancelled_owned()));
    }
    if let Some(path) = &config.debug_socket {
        let listener = AdminListener::bind(&AdminAddress::Unix(path.clone())).await?;
        let routes = debug::routes(Debug::new(resources, clients.clone(), findings)).merge(admin::logging_routes(log_control));
        tasks.spawn(listener.serve(routes, stop.clone().cancelled_owned()));
    }
    tasks.spawn(count_clients(clients, metrics, stop.clone()));

    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => info!("SIGTERM: stopping"),
        _ = interrupt.recv() => info!("SIGINT: stopping"),
    }
    stop.cancel();
    // What has not finished by then is cut; proxies keep what they have and come back.
    let _ = tokio::time::timeout(STOP_DEADLINE, async { while tasks.join_next().await.is_some() {} }).await;
    Ok(())
}

async fn count_clients(clients: Clients, metrics: Metrics, stop: CancellationToken) {
    let mut changes = clients.watch();
    loop {
        metrics.clients(clients.list().len());
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
    }
}
