//! `trafficPolicy`, a test a field.

use std::time::Duration;

use serde_json::{Value, json};
use tropis_model::pool::{
    Balancer, Distribution, HashAlgorithm, HashKey, Http2Keepalive, Limits, LocalityMatch, LocalityPreference, OutlierDetection, Pool,
    RetryBudget, TcpKeepalive, UpstreamTls, UpstreamVersion, Warmup,
};

use super::{Mesh, PORT, key, pool, refused_policy, rule, service};

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn balancer(written: Value) -> Pool {
    pool(json!({"loadBalancer": written}))
}

fn tcp(written: Value) -> Limits {
    pool(json!({"connectionPool": {"tcp": written}})).limits
}

fn http(written: Value) -> Limits {
    pool(json!({"connectionPool": {"http": written}})).limits
}

fn outlier(written: Value) -> OutlierDetection {
    pool(json!({"outlierDetection": written})).outlier.unwrap()
}

#[test]
fn without_a_rule_nothing_is_limited_and_nothing_ejected() {
    let mesh = Mesh::new([service("shop", "reviews", &[("http", PORT)])]);
    let host = mesh.host("reviews");
    let pool = &host.pools[&key("reviews", PORT, None)];
    assert_eq!((&pool.balancer, &pool.limits, &pool.outlier), (&Balancer::LeastRequest, &Limits::default(), &None));
    assert_eq!((pool.panic_threshold_percent, &pool.locality, &pool.tls), (50, &LocalityPreference::None, &UpstreamTls::None));
}

#[test]
fn load_balancer_simple_chooses() {
    for (name, expected) in [
        ("UNSPECIFIED", Balancer::LeastRequest),
        ("LEAST_CONN", Balancer::LeastRequest),
        ("LEAST_REQUEST", Balancer::LeastRequest),
        ("RANDOM", Balancer::Random),
        ("ROUND_ROBIN", Balancer::RoundRobin),
        ("PASSTHROUGH", Balancer::Passthrough),
    ] {
        assert_eq!(balancer(json!({"simple": name})).balancer, expected);
    }
    assert!(
        refused_policy(json!({"loadBalancer": {"simple": "ROUNDROBIN"}}))
            .contains("loadBalancer.simple: \"ROUNDROBIN\" is not one of its values")
    );
}

fn hashed(written: Value) -> Balancer {
    balancer(json!({"consistentHash": written})).balancer
}

const RING: HashAlgorithm = HashAlgorithm::Ring { minimum_size: 1024 };

#[test]
fn consistent_hash_http_header_name_is_a_key() {
    assert_eq!(
        hashed(json!({"httpHeaderName": "X-User"})),
        Balancer::ConsistentHash { key: HashKey::Header("x-user".into()), algorithm: RING }
    );
}

#[test]
fn consistent_hash_http_cookie_is_a_key() {
    let cookie = |path: Option<&str>, ttl: Option<u64>| HashKey::Cookie {
        name: "user".into(),
        path: path.map(Into::into),
        ttl: ttl.map(seconds),
        attributes: Vec::new(),
    };
    let key = |written: Value| match hashed(json!({"httpCookie": written})) {
        Balancer::ConsistentHash { key, .. } => key,
        other => panic!("{other:?}"),
    };
    assert_eq!(key(json!({"name": "user"})), cookie(None, None));
    assert_eq!(key(json!({"name": "user", "path": "/", "ttl": "0s"})), cookie(Some("/"), Some(0)));
    let HashKey::Cookie { attributes, .. } = key(json!({"name": "user", "attributes": [{"name": "SameSite", "value": "Lax"}]})) else {
        panic!()
    };
    assert_eq!(attributes, [("SameSite".into(), "Lax".into())]);
    assert!(
        refused_policy(json!({"loadBalancer": {"consistentHash": {"httpCookie": {"ttl": "1s"}}}})).contains("httpCookie.name: is missing")
    );
}

#[test]
fn consistent_hash_use_source_ip_is_a_key() {
    assert_eq!(hashed(json!({"useSourceIp": true})), Balancer::ConsistentHash { key: HashKey::SourceAddress, algorithm: RING });
    assert_eq!(hashed(json!({"useSourceIp": false})), Balancer::LeastRequest);
}

#[test]
fn consistent_hash_http_query_parameter_name_is_a_key() {
    let key = HashKey::QueryParameter("User".into());
    assert_eq!(hashed(json!({"httpQueryParameterName": "User"})), Balancer::ConsistentHash { key, algorithm: RING });
    let none = refused_policy(json!({"loadBalancer": {"consistentHash": {"ringHash": {}}}}));
    assert!(none.contains("consistentHash: has not one key"), "{none}");
}

#[test]
fn consistent_hash_ring_hash_maglev_and_minimum_ring_size_are_algorithms() {
    let algorithm = |more: Value| {
        let mut written = json!({"useSourceIp": true});
        written.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        match hashed(written) {
            Balancer::ConsistentHash { algorithm, .. } => algorithm,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(algorithm(json!({"ringHash": {}})), RING);
    assert_eq!(algorithm(json!({"ringHash": {"minimumRingSize": 2048}})), HashAlgorithm::Ring { minimum_size: 2048 });
    assert_eq!(algorithm(json!({"minimumRingSize": 4096})), HashAlgorithm::Ring { minimum_size: 4096 });
    assert_eq!(algorithm(json!({"maglev": {}})), HashAlgorithm::Maglev { table_size: 65_537 });
    assert_eq!(algorithm(json!({"maglev": {"tableSize": 251}})), HashAlgorithm::Maglev { table_size: 251 });
    let even = refused_policy(json!({"loadBalancer": {"consistentHash": {"useSourceIp": true, "maglev": {"tableSize": 256}}}}));
    assert!(even.contains("maglev.tableSize: 256 is not a prime in range"), "{even}");
}

#[test]
fn warmup_and_warmup_duration_secs_start_slowly() {
    let warmup = |minimum_percent: f64, aggression: f64| Some(Warmup { duration: seconds(60), minimum_percent, aggression });
    assert_eq!(balancer(json!({"warmup": {"duration": "60s"}})).warmup, warmup(10.0, 1.0));
    assert_eq!(balancer(json!({"warmup": {"duration": "60s", "minimumPercent": 20, "aggression": 1.5}})).warmup, warmup(20.0, 1.5));
    assert_eq!(balancer(json!({"warmupDurationSecs": "60s"})).warmup, warmup(10.0, 1.0));
    assert_eq!(balancer(json!({"simple": "RANDOM", "warmup": {"duration": "60s"}})).warmup, None, "there are no weights to grow");
    assert!(refused_policy(json!({"loadBalancer": {"warmup": {}}})).contains("warmup.duration: is missing"));
}

fn place(region: &str, zone: Option<&str>) -> LocalityMatch {
    LocalityMatch { region: Some(region.into()), zone: zone.map(Into::into), subzone: None }
}

#[test]
fn locality_lb_setting_distribute_shares_by_the_callers_locality() {
    let setting = json!({"distribute": [{"from": "r1/z1/*", "to": {"r1/z1/*": 80, "r2/*": 20}}]});
    let expected = Distribution { from: place("r1", Some("z1")), to: vec![(place("r1", Some("z1")), 80), (place("r2", None), 20)] };
    assert_eq!(balancer(json!({"localityLbSetting": setting})).locality, LocalityPreference::Distribute(vec![expected]));
    let refuse = |to: Value| refused_policy(json!({"loadBalancer": {"localityLbSetting": {"distribute": [{"from": "r1/*", "to": to}]}}}));
    assert!(refuse(json!({"r1": 80})).contains("a sum of 80 is not all of the traffic"));
    assert!(refuse(json!({"r1/*": 50, "r1/z1": 50})).contains("overlaps with another one"));
    assert!(refuse(json!({"*/z1": 100})).contains("\"*/z1\" is not a locality"));
}

fn failing_over(setting: Value) -> LocalityPreference {
    pool(json!({"loadBalancer": {"localityLbSetting": setting}, "outlierDetection": {}})).locality
}

#[test]
fn locality_lb_setting_failover_names_regions() {
    let regions = vec![("r1".into(), "r2".into())];
    assert_eq!(failing_over(json!({"failover": [{"from": "r1", "to": "r2"}]})), LocalityPreference::Failover { regions, labels: vec![] });
    let without = balancer(json!({"localityLbSetting": {"failover": [{"from": "r1", "to": "r2"}]}}));
    assert_eq!(without.locality, LocalityPreference::None, "only with outlierDetection");
    let same = refused_policy(json!({"loadBalancer": {"localityLbSetting": {"failover": [{"from": "r1", "to": "r1"}]}}}));
    assert!(same.contains("failover[0]: \"r1\" takes over from itself"), "{same}");
}

#[test]
fn locality_lb_setting_failover_priority_names_labels() {
    let labels = vec![("topology.kubernetes.io/region".into(), None), ("version".into(), Some("v1".into()))];
    let written = json!({"failoverPriority": ["topology.kubernetes.io/region", "version=v1"]});
    assert_eq!(failing_over(written), LocalityPreference::Failover { regions: vec![], labels });
}

#[test]
fn locality_lb_setting_enabled_turns_it_off() {
    assert_eq!(failing_over(json!({"enabled": false})), LocalityPreference::None);
    assert_eq!(failing_over(json!({"enabled": true})), LocalityPreference::Failover { regions: vec![], labels: vec![] });
    assert_eq!(pool(json!({"outlierDetection": {}})).locality, LocalityPreference::Failover { regions: vec![], labels: vec![] });
}

#[test]
fn a_services_traffic_distribution_prefers_the_near_unless_the_rule_says_otherwise() {
    let mut near = service("shop", "reviews", &[("http", PORT)]);
    near["spec"]["trafficDistribution"] = json!("PreferClose");
    let locality = |objects: Vec<Value>| Mesh::new(objects).host("reviews").pools[&key("reviews", PORT, None)].locality.clone();
    let labels = ["topology.istio.io/network", "topology.kubernetes.io/region", "topology.kubernetes.io/zone"];
    let expected = LocalityPreference::Failover { regions: vec![], labels: labels.map(|label| (label.into(), None)).to_vec() };
    assert_eq!(locality(vec![near.clone()]), expected);
    let off = rule("shop", "r", json!({"host": "reviews", "trafficPolicy": {"loadBalancer": {"localityLbSetting": {"enabled": false}}}}));
    assert_eq!(locality(vec![near, off]), LocalityPreference::None);
}

#[test]
fn tcp_max_connections_limits_and_zero_does_not() {
    assert_eq!(tcp(json!({"maxConnections": 100})), Limits { max_connections: Some(100), ..Limits::default() });
    assert_eq!(tcp(json!({"maxConnections": 0})), Limits::default());
    assert!(refused_policy(json!({"connectionPool": {"tcp": {"maxConnections": -1}}})).contains("maxConnections: -1 is out of range"));
    assert!(refused_policy(json!({"connectionPool": {}})).contains("connectionPool: an empty mapping says nothing"));
}

#[test]
fn tcp_connect_timeout_is_ten_seconds_unless_it_is_said() {
    assert_eq!(tcp(json!({})).connect_timeout, seconds(10));
    assert_eq!(tcp(json!({"connectTimeout": "1s"})).connect_timeout, seconds(1));
}

#[test]
fn tcp_tcp_keepalive_has_probes_time_and_interval() {
    let keepalive = tcp(json!({"tcpKeepalive": {"probes": 3, "time": "7200s", "interval": "75s"}})).tcp_keepalive;
    assert_eq!(keepalive, Some(TcpKeepalive { probes: Some(3), time: Some(seconds(7200)), interval: Some(seconds(75)) }));
    assert_eq!(tcp(json!({"tcpKeepalive": {}})).tcp_keepalive, Some(TcpKeepalive { probes: None, time: None, interval: None }));
}

#[test]
fn tcp_max_connection_duration_ends_connections() {
    assert_eq!(tcp(json!({"maxConnectionDuration": "1m"})).max_connection_duration, Some(seconds(60)));
}

#[test]
fn tcp_idle_timeout_is_an_hour_and_zero_turns_it_off() {
    assert_eq!(tcp(json!({})).idle_timeout, Some(seconds(3600)));
    assert_eq!(tcp(json!({"idleTimeout": "5m"})).idle_timeout, Some(seconds(300)));
    assert_eq!(tcp(json!({"idleTimeout": "0s"})).idle_timeout, None);
}

#[test]
fn http_http1_max_pending_requests_limits() {
    assert_eq!(http(json!({"http1MaxPendingRequests": 1})), Limits { max_pending_requests: Some(1), ..Limits::default() });
}

#[test]
fn http_http2_max_requests_limits() {
    assert_eq!(http(json!({"http2MaxRequests": 100})), Limits { max_requests: Some(100), ..Limits::default() });
}

#[test]
fn http_max_requests_per_connection_limits() {
    assert_eq!(http(json!({"maxRequestsPerConnection": 2})), Limits { max_requests_per_connection: Some(2), ..Limits::default() });
}

#[test]
fn http_max_retries_limits_unless_there_is_a_budget() {
    assert_eq!(http(json!({"maxRetries": 3})), Limits { max_retries: Some(3), ..Limits::default() });
    let both = pool(json!({"connectionPool": {"http": {"maxRetries": 3}}, "retryBudget": {}})).limits;
    assert_eq!((both.max_retries, both.retry_budget), (None, Some(RetryBudget { percent: 20.0, minimum_concurrency: 3 })));
}

#[test]
fn http_idle_timeout_wins_over_tcps_where_http_is_spoken() {
    let policy = json!({"connectionPool": {"tcp": {"idleTimeout": "1m"}, "http": {"idleTimeout": "5s"}}});
    assert_eq!(pool(policy.clone()).limits.idle_timeout, Some(seconds(5)));
    let mesh =
        Mesh::new([service("shop", "reviews", &[("tcp", PORT)]), rule("shop", "r", json!({"host": "reviews", "trafficPolicy": policy}))]);
    assert_eq!(mesh.host("reviews").pools[&key("reviews", PORT, None)].limits.idle_timeout, Some(seconds(60)));
}

#[test]
fn http_h2_upgrade_policy_upgrades() {
    let version = |written: &str| pool(json!({"connectionPool": {"http": {"h2UpgradePolicy": written}}})).upstream_version;
    assert_eq!(["DEFAULT", "DO_NOT_UPGRADE"].map(version), [UpstreamVersion::FromPort; 2]);
    assert_eq!(version("UPGRADE"), UpstreamVersion::Http2);
}

#[test]
fn http_use_client_protocol_keeps_the_callers_version() {
    assert_eq!(pool(json!({"connectionPool": {"http": {"useClientProtocol": true}}})).upstream_version, UpstreamVersion::FromCaller);
    let both = refused_policy(json!({"connectionPool": {"http": {"useClientProtocol": true, "h2UpgradePolicy": "UPGRADE"}}}));
    assert!(both.contains("useClientProtocol beside h2UpgradePolicy UPGRADE is ambiguous"), "{both}");
}

#[test]
fn http_max_concurrent_streams_limits() {
    assert_eq!(http(json!({"maxConcurrentStreams": 10})).max_concurrent_streams, Some(10));
    assert_eq!(http(json!({"maxConcurrentStreams": 2_147_483_647})).max_concurrent_streams, None);
}

#[test]
fn http_http2_keep_alive_has_interval_and_timeout() {
    let keepalive = http(json!({"http2KeepAlive": {"interval": "10s", "timeout": "20s"}})).http2_keepalive;
    assert_eq!(keepalive, Some(Http2Keepalive { interval: seconds(10), timeout: seconds(20) }));
    assert!(refused_policy(json!({"connectionPool": {"http": {"http2KeepAlive": {"interval": "1s"}}}})).contains("timeout: is missing"));
}

#[test]
fn retry_budget_is_a_share_with_a_minimum() {
    let budget = pool(json!({"retryBudget": {"percent": {"value": 5.5}, "minRetryConcurrency": 1}})).limits.retry_budget;
    assert_eq!(budget, Some(RetryBudget { percent: 5.5, minimum_concurrency: 1 }));
}

#[test]
fn outlier_detection_has_defaults_as_soon_as_it_is_there() {
    let expected = OutlierDetection {
        consecutive_5xx: 5,
        consecutive_gateway_errors: 0,
        consecutive_local_origin_failures: 0,
        split_local_origin: false,
        error_statuses: vec![],
        interval: seconds(10),
        base_ejection_time: seconds(30),
        max_ejection_percent: 10,
    };
    assert_eq!(outlier(json!({})), expected);
    assert_eq!(outlier(json!({"maxEjectionPercent": 0})), expected);
    assert_eq!(pool(json!({"outlierDetection": {}})).panic_threshold_percent, 0);
}

#[test]
fn outlier_detection_consecutive5xx_errors_counts_and_zero_turns_it_off() {
    assert_eq!(outlier(json!({"consecutive5xxErrors": 3})).consecutive_5xx, 3);
    assert_eq!(outlier(json!({"consecutive5xxErrors": 0})).consecutive_5xx, 0);
}

#[test]
fn outlier_detection_consecutive_gateway_errors_counts() {
    assert_eq!(outlier(json!({"consecutiveGatewayErrors": 7})).consecutive_gateway_errors, 7);
}

#[test]
fn outlier_detection_consecutive_errors_is_told_of_and_has_no_effect() {
    assert_eq!(outlier(json!({"consecutiveErrors": 1})), outlier(json!({})));
    let policy = json!({"host": "reviews", "trafficPolicy": {"outlierDetection": {"consecutiveErrors": 1}}});
    let (_, findings) = tropis_crds::decode(rule("shop", "r", policy)).unwrap();
    assert_eq!(findings[0].code, "IST0002");
    assert!(
        findings[0].to_string().contains("consecutiveErrors: is deprecated (consecutive5xxErrors or consecutiveGatewayErrors)"),
        "{}",
        findings[0]
    );
}

#[test]
fn outlier_detection_split_external_local_origin_errors_and_consecutive_local_origin_failures_go_together() {
    let split = outlier(json!({"splitExternalLocalOriginErrors": true}));
    assert!(split.split_local_origin);
    assert_eq!(split.consecutive_local_origin_failures, 5);
    let three = outlier(json!({"splitExternalLocalOriginErrors": true, "consecutiveLocalOriginFailures": 3}));
    assert_eq!(three.consecutive_local_origin_failures, 3);
    let alone = refused_policy(json!({"outlierDetection": {"consecutiveLocalOriginFailures": 3}}));
    assert!(alone.contains("is only allowed with splitExternalLocalOriginErrors"), "{alone}");
}

#[test]
fn outlier_detection_interval_and_base_ejection_time_are_durations() {
    let read = outlier(json!({"interval": "1s", "baseEjectionTime": "3m"}));
    assert_eq!((read.interval, read.base_ejection_time), (seconds(1), seconds(180)));
    assert!(refused_policy(json!({"outlierDetection": {"interval": "100us"}})).contains("interval: \"100µs\" is too short"));
}

#[test]
fn outlier_detection_max_ejection_percent_is_kept() {
    assert_eq!(outlier(json!({"maxEjectionPercent": 100})).max_ejection_percent, 100);
    assert!(refused_policy(json!({"outlierDetection": {"maxEjectionPercent": 101}})).contains("maxEjectionPercent: 101 is out of range"));
}

#[test]
fn outlier_detection_min_health_percent_is_the_panic_threshold() {
    assert_eq!(pool(json!({"outlierDetection": {"minHealthPercent": 50}})).panic_threshold_percent, 50);
    let mut early = service("shop", "reviews", &[("http", PORT)]);
    early["spec"]["publishNotReadyAddresses"] = json!(true);
    let policy = json!({"host": "reviews", "trafficPolicy": {"outlierDetection": {"minHealthPercent": 50}}});
    let mesh = Mesh::new([early, rule("shop", "r", policy)]);
    assert_eq!(
        mesh.host("reviews").pools[&key("reviews", PORT, None)].panic_threshold_percent,
        0,
        "never where endpoints need not be ready"
    );
}

#[test]
fn outlier_detection_http_error_codes_replace_5xx() {
    assert_eq!(outlier(json!({"outlierDetectionHttpErrorCodes": [500, 429]})).error_statuses, [500, 429]);
}

#[test]
fn tls_mode_disable_and_istio_mutual_add_nothing() {
    for mode in ["DISABLE", "ISTIO_MUTUAL"] {
        assert_eq!(pool(json!({"tls": {"mode": mode}})).tls, UpstreamTls::None);
    }
    assert!(refused_policy(json!({"tls": {"mode": "ISTIO_MUTUAL", "caCertificates": "/a"}})).contains("certificates beside ISTIO_MUTUAL"));
}

#[test]
fn tls_sni_subject_alt_names_and_insecure_skip_verify_belong_to_simple() {
    let simple = pool(json!({"tls": {"mode": "SIMPLE", "sni": "a.b", "subjectAltNames": ["c.d"]}})).tls;
    let server_name = Some("a.b".into());
    assert_eq!(simple, UpstreamTls::Simple { server_name, subject_alt_names: vec!["c.d".into()], insecure_skip_verify: false });
    let blind = pool(json!({"tls": {"mode": "SIMPLE", "insecureSkipVerify": true}})).tls;
    assert_eq!(blind, UpstreamTls::Simple { server_name: None, subject_alt_names: vec![], insecure_skip_verify: true });
}

#[test]
fn tls_that_needs_certificates_of_ours_leaves_the_pool_out() {
    for tls in [
        json!({"mode": "MUTUAL", "clientCertificate": "/a", "privateKey": "/b"}),
        json!({"mode": "SIMPLE", "caCertificates": "/a"}),
        json!({"mode": "SIMPLE", "credentialName": "a"}),
    ] {
        let mesh = Mesh::new([
            service("shop", "reviews", &[("http", PORT)]),
            rule("shop", "r", json!({"host": "reviews", "trafficPolicy": {"tls": tls}})),
        ]);
        assert!(mesh.host("reviews").pools.is_empty());
        assert!(mesh.texts()[0].contains("spec.trafficPolicy.tls:") && mesh.texts()[0].contains("503 (flag NC)"), "{:?}", mesh.texts());
    }
}

/// Decodes a policy, and asserts that exactly these fields of it are told to have no effect.
fn assert_unobeyed(policy: Value, fields: &[&str]) {
    let (_, findings) = tropis_crds::decode(rule("shop", "r", json!({"host": "reviews", "trafficPolicy": policy}))).unwrap();
    let texts: Vec<String> = findings.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), fields.len(), "{texts:?}");
    for (text, field) in texts.iter().zip(fields) {
        assert!(text.contains(&format!(" spec.trafficPolicy.{field}: is not obeyed here")), "{texts:?}");
    }
}

#[test]
fn load_balancer_zone_aware_lb_setting_is_told_of() {
    assert_unobeyed(json!({"loadBalancer": {"zoneAwareLbSetting": {"enabled": true}}}), &["loadBalancer.zoneAwareLbSetting"]);
}

#[test]
fn http_http2_keep_alive_refinements_are_told_of() {
    let keepalive = json!({"interval": "1s", "timeout": "1s", "intervalJitter": {"value": 10}, "connectionIdleInterval": "1s"});
    let fields = ["intervalJitter", "connectionIdleInterval"].map(|field| format!("connectionPool.http.http2KeepAlive.{field}"));
    assert_unobeyed(json!({"connectionPool": {"http": {"http2KeepAlive": keepalive}}}), &[&fields[0], &fields[1]]);
}

#[test]
fn retry_budget_budget_interval_is_told_of() {
    assert_unobeyed(json!({"retryBudget": {"budgetInterval": "10s"}}), &["retryBudget.budgetInterval"]);
}

#[test]
fn tunnel_and_proxy_protocol_are_told_of() {
    assert_unobeyed(json!({"tunnel": {"targetHost": "a.b", "targetPort": 80}}), &["tunnel"]);
    assert_unobeyed(json!({"proxyProtocol": {"version": "V2"}}), &["proxyProtocol"]);
    assert!(refused_policy(json!({})).contains("trafficPolicy: an empty mapping says nothing"));
}
