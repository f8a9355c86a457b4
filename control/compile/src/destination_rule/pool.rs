//! The blocks of a policy become a pool.

use std::time::Duration;

use tropis_crds::istio::{
    destination_rule::{
        ClientTls, ConnectionPool, H2Upgrade, OutlierDetection as IstioOutlier, RetryBudget as IstioBudget, Subset, TlsMode,
    },
    value::Duration as Written,
};
use tropis_model::{
    pool::{Http2Keepalive, Limits, OutlierDetection, Pool, PoolKey, RetryBudget, TcpKeepalive, UpstreamTls, UpstreamVersion},
    route::PortProtocol,
    service::{HealthPolicy, Service},
};

use super::{Policy, balancer};

/// Below this share of healthy endpoints all are used, where no rule says when an endpoint is left out.
const PANIC_PERCENT: u8 = 50;
/// Streams on a connection that mean "no limit".
const STREAMS_UNLIMITED: u32 = i32::MAX as u32;

/// What a rule asks for and a waypoint cannot keep. Going on without it would be less safe than not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unkept {
    /// TLS with a certificate of ours.
    ClientCertificate,
    /// TLS with authorities of the user's.
    OwnAuthorities,
}

pub(super) fn translate(
    key: &PoolKey,
    service: &Service,
    protocol: PortProtocol,
    subset: Option<&Subset>,
    policy: &Policy<'_>,
) -> Result<Pool, Unkept> {
    let labels = subset.into_iter().flat_map(|subset| &subset.labels);
    let always_ready = service.load_balancing.health_policy == HealthPolicy::AllowAll;
    Ok(Pool {
        key: key.clone(),
        labels: labels.map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect(),
        balancer: balancer::balancer(policy.load_balancer),
        locality: balancer::locality(policy.load_balancer, policy.outlier_detection.is_some(), &service.load_balancing),
        warmup: balancer::warmup(policy.load_balancer),
        limits: limits(policy.connection_pool, policy.retry_budget, protocol),
        outlier: policy.outlier_detection.map(outlier),
        panic_threshold_percent: match policy.outlier_detection {
            _ if always_ready => 0,
            Some(outlier) => percent(outlier.min_health_percent),
            None => PANIC_PERCENT,
        },
        upstream_version: version(policy.connection_pool),
        tls: policy.tls.map_or(Ok(UpstreamTls::None), tls)?,
    })
}

fn limits(pool: Option<&ConnectionPool>, budget: Option<&IstioBudget>, protocol: PortProtocol) -> Limits {
    let mut limits = Limits { retry_budget: budget.map(retry_budget), ..Limits::default() };
    let tcp = pool.and_then(|pool| pool.tcp.as_ref());
    let http = pool.and_then(|pool| pool.http.as_ref());
    if let Some(tcp) = tcp {
        limits.max_connections = limit(tcp.max_connections);
        limits.connect_timeout = tcp.connect_timeout.map_or(limits.connect_timeout, |timeout| timeout.0);
        limits.max_connection_duration = duration(tcp.max_connection_duration);
        limits.idle_timeout = match tcp.idle_timeout {
            Some(Written(Duration::ZERO)) => None,
            Some(timeout) => Some(timeout.0),
            None => limits.idle_timeout,
        };
        limits.tcp_keepalive = tcp.tcp_keepalive.as_ref().map(|keepalive| TcpKeepalive {
            probes: limit(keepalive.probes),
            time: duration(keepalive.time),
            interval: duration(keepalive.interval),
        });
    }
    if let Some(http) = http {
        limits.max_pending_requests = limit(http.http1_max_pending_requests);
        limits.max_requests = limit(http.http2_max_requests);
        limits.max_requests_per_connection = limit(http.max_requests_per_connection);
        limits.max_retries = limit(http.max_retries).filter(|_| budget.is_none());
        limits.max_concurrent_streams = limit(http.max_concurrent_streams).filter(|streams| *streams < STREAMS_UNLIMITED);
        limits.http2_keepalive = http
            .http2_keep_alive
            .as_ref()
            .and_then(|keepalive| Some(Http2Keepalive { interval: keepalive.interval?.0, timeout: keepalive.timeout?.0 }));
        if !matches!(protocol, PortProtocol::Tcp | PortProtocol::Tls) {
            limits.idle_timeout = duration(http.idle_timeout).or(limits.idle_timeout);
        }
    }
    limits
}

/// A count, of which 0 is none.
fn limit(written: Option<i64>) -> Option<u32> {
    written.and_then(|count| u32::try_from(count).ok()).filter(|count| *count > 0 && *count < u32::MAX)
}

fn duration(written: Option<Written>) -> Option<Duration> {
    written.map(|duration| duration.0)
}

fn retry_budget(written: &IstioBudget) -> RetryBudget {
    RetryBudget {
        percent: written.percent.map_or(20.0, |percent| percent.value),
        minimum_concurrency: written.min_retry_concurrency.and_then(|count| u32::try_from(count).ok()).unwrap_or(3),
    }
}

fn outlier(written: &IstioOutlier) -> OutlierDetection {
    let count = |written: Option<i64>, otherwise: u32| written.map_or(otherwise, |count| u32::try_from(count).unwrap_or(otherwise));
    let split = written.split_external_local_origin_errors;
    let statuses = written.outlier_detection_http_error_codes.iter().filter_map(|status| u16::try_from(*status).ok());
    OutlierDetection {
        consecutive_5xx: count(written.consecutive_5xx_errors, 5),
        consecutive_gateway_errors: count(written.consecutive_gateway_errors, 0),
        consecutive_local_origin_failures: if split { count(written.consecutive_local_origin_failures, 5) } else { 0 },
        split_local_origin: split,
        error_statuses: statuses.collect(),
        interval: duration(written.interval).unwrap_or(Duration::from_secs(10)),
        base_ejection_time: duration(written.base_ejection_time).unwrap_or(Duration::from_secs(30)),
        max_ejection_percent: if written.max_ejection_percent == 0 { 10 } else { percent(written.max_ejection_percent) },
    }
}

/// A share that decoding has checked.
fn percent(written: i64) -> u8 {
    u8::try_from(written.clamp(0, 100)).unwrap_or_default()
}

fn version(pool: Option<&ConnectionPool>) -> UpstreamVersion {
    match pool.and_then(|pool| pool.http.as_ref()) {
        Some(http) if http.use_client_protocol => UpstreamVersion::FromCaller,
        Some(http) if http.h2_upgrade_policy == H2Upgrade::Upgrade => UpstreamVersion::Http2,
        _ => UpstreamVersion::FromPort,
    }
}

fn tls(written: &ClientTls) -> Result<UpstreamTls, Unkept> {
    match written.mode {
        // The mesh's own tunnel stays either way.
        TlsMode::Disable | TlsMode::IstioMutual => Ok(UpstreamTls::None),
        TlsMode::Mutual => Err(Unkept::ClientCertificate),
        TlsMode::Simple if !written.ca_certificates.is_empty() || !written.credential_name.is_empty() || !written.ca_crl.is_empty() => {
            Err(Unkept::OwnAuthorities)
        }
        TlsMode::Simple => Ok(UpstreamTls::Simple {
            server_name: (!written.sni.is_empty()).then(|| written.sni.as_str().into()),
            subject_alt_names: written.subject_alt_names.iter().map(|name| name.as_str().into()).collect(),
            insecure_skip_verify: written.insecure_skip_verify,
        }),
    }
}
