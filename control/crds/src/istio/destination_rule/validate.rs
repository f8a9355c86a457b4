//! What the API server and Istio's webhook refuse in a DestinationRule.

mod load_balancer;

use super::{
    ClientTls, ConnectionPool, DestinationRule, H2Upgrade, HttpSettings, OutlierDetection, RetryBudget, TcpSettings, TlsMode, TrafficPolicy,
};
use crate::{
    decode::About,
    istio::{bounds, check, validate_selector_at},
    names,
};

/// Subsets of a rule, and ports of a policy: each is compared with all others.
const ENTRIES_MAX: usize = 1024;

pub(crate) fn validate(about: &mut About<'_>, rule: &DestinationRule) {
    let spec = &rule.spec;
    if spec.subsets.len() > ENTRIES_MAX {
        return about.refuse("spec.subsets", format!("{} subsets", spec.subsets.len()), "are too many for one rule", "at most 1024");
    }
    if spec.host.is_empty() {
        about.refuse("spec.host", "", "is missing", "a service's name");
    } else if !check::is_host(&spec.host) {
        about.refuse("spec.host", format!("{:?}", spec.host), "is not a host", "a service's name, a DNS name, or \"*.\" before one");
    }
    check::export_to(about, &spec.export_to);
    bounds::destination_rule(about, spec);
    validate_selector_at(about, spec.workload_selector.as_ref(), "spec.workloadSelector");
    if let Some(policy) = &spec.traffic_policy {
        validate_policy(about, policy, "spec.trafficPolicy");
    }
    for (index, subset) in spec.subsets.iter().enumerate() {
        let path = format!("spec.subsets[{index}]");
        if !names::is_dns_label(&subset.name) {
            let found = format!("{:?}", subset.name);
            about.refuse(&format!("{path}.name"), found, "is not a subset's name", "at most 63 of a-z, 0-9 and -");
        } else if spec.subsets[..index].iter().any(|other| other.name == subset.name) {
            about.refuse(&format!("{path}.name"), format!("{:?}", subset.name), "is the name of another subset too", "");
        }
        check::labels(about, &subset.labels, &format!("{path}.labels"));
        if let Some(policy) = &subset.traffic_policy {
            validate_policy(about, policy, &format!("{path}.trafficPolicy"));
        }
    }
}

fn validate_policy(about: &mut About<'_>, policy: &TrafficPolicy, path: &str) {
    if *policy == TrafficPolicy::default() {
        about.refuse(path, "an empty mapping", "says nothing", "at least one of its fields, or leave it out");
    }
    let blocks = Blocks {
        load_balancer: policy.load_balancer.as_ref(),
        connection_pool: policy.connection_pool.as_ref(),
        outlier_detection: policy.outlier_detection.as_ref(),
        tls: policy.tls.as_ref(),
    };
    validate_blocks(about, blocks, path);
    let ports = policy.port_level_settings.len();
    if ports > ENTRIES_MAX {
        return about.refuse(&format!("{path}.portLevelSettings"), format!("{ports} ports"), "are too many for one policy", "at most 1024");
    }
    for (index, port) in policy.port_level_settings.iter().enumerate() {
        let path = format!("{path}.portLevelSettings[{index}]");
        check::port_selector(about, &format!("{path}.port"), Some(port.port));
        if policy.port_level_settings[..index].iter().any(|other| other.port == port.port) {
            about.refuse(&format!("{path}.port.number"), port.port.number.to_string(), "is the port of another entry too", "");
        }
        let blocks = Blocks {
            load_balancer: port.load_balancer.as_ref(),
            connection_pool: port.connection_pool.as_ref(),
            outlier_detection: port.outlier_detection.as_ref(),
            tls: port.tls.as_ref(),
        };
        validate_blocks(about, blocks, &path);
    }
    match (&policy.tunnel, &policy.proxy_protocol) {
        (Some(_), Some(_)) => about.refuse(path, "tunnel beside proxyProtocol", "is ambiguous", "one of them"),
        (Some(tunnel), None) => {
            let path = format!("{path}.tunnel");
            if !["", "CONNECT", "POST"].contains(&tunnel.protocol.as_str()) {
                about.refuse(&format!("{path}.protocol"), format!("{:?}", tunnel.protocol), "is not a protocol", "CONNECT or POST");
            }
            if !check::is_host(&tunnel.target_host) {
                about.refuse(
                    &format!("{path}.targetHost"),
                    format!("{:?}", tunnel.target_host),
                    "is not a host",
                    "a DNS name or an IP address",
                );
            }
            check::port(about, &format!("{path}.targetPort"), Some(tunnel.target_port));
            check::not_honoured(about, &path, "traffic goes to the endpoints without it");
        }
        (None, Some(_)) => check::not_honoured(about, &format!("{path}.proxyProtocol"), "no PROXY header is sent"),
        (None, None) => {}
    }
    if let Some(budget) = &policy.retry_budget {
        validate_budget(about, budget, &format!("{path}.retryBudget"));
    }
}

/// The four blocks that a policy and a port of it share.
struct Blocks<'a> {
    load_balancer: Option<&'a super::LoadBalancer>,
    connection_pool: Option<&'a ConnectionPool>,
    outlier_detection: Option<&'a OutlierDetection>,
    tls: Option<&'a ClientTls>,
}

fn validate_blocks(about: &mut About<'_>, blocks: Blocks<'_>, path: &str) {
    if let Some(balancer) = blocks.load_balancer {
        load_balancer::validate(about, balancer, &format!("{path}.loadBalancer"));
    }
    if let Some(pool) = blocks.connection_pool {
        let path = format!("{path}.connectionPool");
        if pool.tcp.is_none() && pool.http.is_none() {
            about.refuse(&path, "an empty mapping", "says nothing", "at least one of tcp and http");
        }
        if let Some(tcp) = &pool.tcp {
            validate_tcp(about, tcp, &format!("{path}.tcp"));
        }
        if let Some(http) = &pool.http {
            validate_http(about, http, &format!("{path}.http"));
        }
    }
    if let Some(outlier) = blocks.outlier_detection {
        validate_outlier(about, outlier, &format!("{path}.outlierDetection"));
    }
    if let Some(tls) = blocks.tls {
        validate_tls(about, tls, &format!("{path}.tls"));
    }
}

fn validate_tcp(about: &mut About<'_>, tcp: &TcpSettings, path: &str) {
    check::count(about, &format!("{path}.maxConnections"), tcp.max_connections);
    check::duration(about, &format!("{path}.connectTimeout"), tcp.connect_timeout);
    check::duration(about, &format!("{path}.maxConnectionDuration"), tcp.max_connection_duration);
    if let Some(keepalive) = &tcp.tcp_keepalive {
        let path = format!("{path}.tcpKeepalive");
        check::count(about, &format!("{path}.probes"), keepalive.probes);
        check::duration(about, &format!("{path}.time"), keepalive.time);
        check::duration(about, &format!("{path}.interval"), keepalive.interval);
    }
}

fn validate_http(about: &mut About<'_>, http: &HttpSettings, path: &str) {
    let counts = [
        ("http1MaxPendingRequests", http.http1_max_pending_requests),
        ("http2MaxRequests", http.http2_max_requests),
        ("maxRequestsPerConnection", http.max_requests_per_connection),
        ("maxRetries", http.max_retries),
        ("maxConcurrentStreams", http.max_concurrent_streams),
    ];
    for (name, number) in counts {
        check::count(about, &format!("{path}.{name}"), number);
    }
    check::duration(about, &format!("{path}.idleTimeout"), http.idle_timeout);
    if http.use_client_protocol && http.h2_upgrade_policy == H2Upgrade::Upgrade {
        about.refuse(path, "useClientProtocol beside h2UpgradePolicy UPGRADE", "is ambiguous", "one of them");
    }
    if let Some(keepalive) = &http.http2_keep_alive {
        let path = format!("{path}.http2KeepAlive");
        for (name, duration) in [("interval", keepalive.interval), ("timeout", keepalive.timeout)] {
            if duration.is_none() {
                about.refuse(&format!("{path}.{name}"), "", "is missing", "for example \"10s\"");
            }
            check::duration(about, &format!("{path}.{name}"), duration);
        }
        if keepalive.interval_jitter.is_some() {
            check::not_honoured(about, &format!("{path}.intervalJitter"), "the interval has no jitter");
        }
        if keepalive.connection_idle_interval.is_some() {
            check::not_honoured(about, &format!("{path}.connectionIdleInterval"), "connections are asked at the interval, idle or not");
        }
    }
}

fn validate_outlier(about: &mut About<'_>, outlier: &OutlierDetection, path: &str) {
    let counts = [
        ("consecutive5xxErrors", outlier.consecutive_5xx_errors),
        ("consecutiveGatewayErrors", outlier.consecutive_gateway_errors),
        ("consecutiveLocalOriginFailures", outlier.consecutive_local_origin_failures),
        ("consecutiveErrors", outlier.consecutive_errors),
    ];
    for (name, number) in counts {
        check::count(about, &format!("{path}.{name}"), number);
    }
    if outlier.consecutive_errors.is_some() {
        let effect =
            "Istio ignores it, and so do we; an endpoint is ejected after 5 errors 5xx in a row unless consecutive5xxErrors says otherwise";
        check::deprecated(about, &format!("{path}.consecutiveErrors"), "consecutive5xxErrors or consecutiveGatewayErrors", effect);
    }
    if !outlier.split_external_local_origin_errors && outlier.consecutive_local_origin_failures.is_some_and(|number| number > 0) {
        let field = format!("{path}.consecutiveLocalOriginFailures");
        about.refuse(&field, "", "is only allowed with splitExternalLocalOriginErrors", "splitExternalLocalOriginErrors: true");
    }
    check::duration(about, &format!("{path}.interval"), outlier.interval);
    check::duration(about, &format!("{path}.baseEjectionTime"), outlier.base_ejection_time);
    check::within(about, &format!("{path}.maxEjectionPercent"), Some(outlier.max_ejection_percent), 0, 100);
    check::within(about, &format!("{path}.minHealthPercent"), Some(outlier.min_health_percent), 0, 100);
    for (index, code) in outlier.outlier_detection_http_error_codes.iter().enumerate() {
        check::within(about, &format!("{path}.outlierDetectionHttpErrorCodes[{index}]"), Some(*code), 100, 599);
    }
}

fn validate_tls(about: &mut About<'_>, tls: &ClientTls, path: &str) {
    let files = [&tls.client_certificate, &tls.private_key, &tls.ca_certificates, &tls.ca_crl];
    let any_file = files.iter().any(|file| !file.is_empty());
    match tls.mode {
        TlsMode::IstioMutual if any_file || !tls.credential_name.is_empty() => {
            about.refuse(path, "certificates beside ISTIO_MUTUAL", "are ambiguous", "the mesh's own certificates are used");
        }
        TlsMode::Mutual if tls.credential_name.is_empty() && (tls.client_certificate.is_empty() || tls.private_key.is_empty()) => {
            about.refuse(path, "", "is without a certificate of ours", "credentialName, or clientCertificate and privateKey");
        }
        _ => {}
    }
    if any_file && !tls.credential_name.is_empty() {
        about.refuse(&format!("{path}.credentialName"), "credentialName beside files", "is ambiguous", "one of them");
    }
    if tls.insecure_skip_verify && (!tls.ca_certificates.is_empty() || !tls.subject_alt_names.is_empty()) {
        let field = format!("{path}.insecureSkipVerify");
        about.refuse(&field, "true", "stands beside what would be verified", "without caCertificates and subjectAltNames");
    }
}

fn validate_budget(about: &mut About<'_>, budget: &RetryBudget, path: &str) {
    check::percent(about, &format!("{path}.percent"), budget.percent);
    check::count(about, &format!("{path}.minRetryConcurrency"), budget.min_retry_concurrency);
    if budget.budget_interval.is_some_and(|interval| !interval.0.is_zero()) {
        check::not_honoured(about, &format!("{path}.budgetInterval"), "the budget looks at the requests that are under way");
    }
}
