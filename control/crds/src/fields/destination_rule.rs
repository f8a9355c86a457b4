//! The fields of `DestinationRule`. A waypoint obeys them; node proxies obey none.

use super::Field;

const NO_CERTIFICATES: &str = "Waypoints have no certificates of the user's: the pool is left out (503 NC), with a finding.";
const OWN_CERTIFICATES: &[&str] = &["tls_that_needs_certificates_of_ours_leaves_the_pool_out"];
const NO_TLS: &str = "Of SIMPLE, which waypoints do not speak yet: no connection is made (503 UF).";
const SIMPLE_TLS: &[&str] = &["tls_sni_subject_alt_names_and_insecure_skip_verify_belong_to_simple"];
const TUNNELS: &[&str] = &["tunnel_and_proxy_protocol_are_told_of"];

pub(super) const FIELDS: &[Field] = &[
    Field::needs_waypoint(
        "host",
        "The service: a name without a dot in the object's namespace, a full name, or *. before one. Rules of the waypoint's namespace \
         come first, then those of the service's, then those of the root namespace; of these the most specific host.",
        &[
            "the_most_specific_host_wins",
            "rules_of_the_waypoints_namespace_win_then_the_services_then_the_roots",
            "host_export_to_and_subsets_say_whose_pool_it_is",
        ],
    ),
    Field::needs_waypoint(
        "exportTo",
        "The namespaces whose waypoints use it: . its own, * (the default) all.",
        &["rules_export_to_hides_them", "host_export_to_and_subsets_say_whose_pool_it_is"],
    ),
    Field::not_honoured(
        "workloadSelector",
        "Selects sidecars, of which there are none: no waypoint uses a rule that has one, as at Istio's.",
        &["rules_with_a_workload_selector_do_not_count_at_waypoints"],
    ),
    Field::needs_waypoint(
        "subsets.name",
        "What routes call the part of the endpoints; of one name in several rules the oldest counts.",
        &["rules_for_one_host_merge_oldest_first", "subsets_and_port_level_settings_have_policies_of_their_own"],
    ),
    Field::needs_waypoint(
        "subsets.labels",
        "Labels that its endpoints carry; none is all of them. A subset without endpoints is 503 UH.",
        &[
            "rules_for_one_host_merge_oldest_first",
            "mistake_1_a_subset_that_selects_no_pod",
            "subsets_and_port_level_settings_have_policies_of_their_own",
        ],
    ),
    Field::needs_waypoint(
        "subsets.trafficPolicy",
        "Its own blocks of trafficPolicy, each in place of the rule's whole block. Its counters and ejections are its own anyway.",
        &["subsets_traffic_policy_overrides_block_by_block", "subsets_and_port_level_settings_have_policies_of_their_own"],
    ),
    Field::needs_waypoint(
        "trafficPolicy.portLevelSettings",
        "For one port of the service loadBalancer, connectionPool, outlierDetection and tls, in place of all the rest.",
        &["port_level_settings_replace_the_whole_policy", "subsets_and_port_level_settings_have_policies_of_their_own"],
    ),
    Field::needs_waypoint(
        "trafficPolicy.loadBalancer.simple",
        "LEAST_REQUEST (the default; also UNSPECIFIED, LEAST_CONN): the less busy of two that are drawn; ROUND_ROBIN: in turn, by weight; \
         RANDOM: drawn, whatever the weights; PASSTHROUGH: the address that was called, or any endpoint where that was the service's.",
        &[
            "load_balancer_simple_chooses",
            "least_request_takes_the_less_busy_of_two",
            "round_robin_takes_turns",
            "random_is_even_whatever_the_weights",
            "passthrough_takes_the_endpoint_that_was_called",
            "load_balancer_simple_decides_who_is_next",
        ],
    ),
    Field::needs_waypoint(
        "trafficPolicy.loadBalancer.consistentHash.httpHeaderName",
        "The key is a header; without it any endpoint.",
        &["consistent_hash_http_header_name_is_a_key", "http_header_name_is_hashed", "consistent_hash_leads_one_key_to_one_endpoint"],
    ),
    Field::needs_waypoint(
        "trafficPolicy.loadBalancer.consistentHash.httpCookie",
        "The key is a cookie; with a ttl one is made where there is none (0s: for the session).",
        &[
            "consistent_hash_http_cookie_is_a_key",
            "http_cookie_is_hashed_and_made_only_with_a_ttl",
            "consistent_hash_leads_one_key_to_one_endpoint",
            "consistent_hash_http_cookie_is_made_with_its_path_ttl_and_attributes",
        ],
    ),
    Field::needs_waypoint(
        "trafficPolicy.loadBalancer.consistentHash.useSourceIp",
        "The key is the original caller's address; false hashes nothing.",
        &[
            "consistent_hash_use_source_ip_is_a_key",
            "use_source_ip_hashes_the_original_caller",
            "consistent_hash_leads_one_key_to_one_endpoint",
        ],
    ),
    Field::needs_waypoint(
        "trafficPolicy.loadBalancer.consistentHash.httpQueryParameterName",
        "The key is a parameter of the query; without it any endpoint.",
        &[
            "consistent_hash_http_query_parameter_name_is_a_key",
            "http_query_parameter_name_is_hashed",
            "consistent_hash_leads_one_key_to_one_endpoint",
        ],
    ),
    Field::needs_waypoint(
        "trafficPolicy.loadBalancer.consistentHash.ringHash",
        "A ring (the default) of at least minimumRingSize points, 1024 without it, at most 1048576.",
        &[
            "consistent_hash_ring_hash_maglev_and_minimum_ring_size_are_algorithms",
            "ring_size_is_bounded",
            "consistent_hash_leads_one_key_to_one_endpoint",
        ],
    ),
    Field::needs_waypoint(
        "trafficPolicy.loadBalancer.consistentHash.maglev",
        "Maglev's table of tableSize entries, a prime below 5000011, 65537 without it.",
        &[
            "consistent_hash_ring_hash_maglev_and_minimum_ring_size_are_algorithms",
            "maglev_is_even",
            "consistent_hash_leads_one_key_to_one_endpoint",
        ],
    ),
    Field::needs_waypoint(
        "trafficPolicy.loadBalancer.consistentHash.minimumRingSize",
        "Deprecated by Istio in favour of ringHash.minimumRingSize.",
        &[
            "consistent_hash_ring_hash_maglev_and_minimum_ring_size_are_algorithms",
            "ring_size_is_bounded",
            "consistent_hash_leads_one_key_to_one_endpoint",
        ],
    ),
    Field::needs_waypoint(
        "trafficPolicy.loadBalancer.localityLbSetting.enabled",
        "false: near and far are the same.",
        &["locality_lb_setting_enabled_turns_it_off", "locality_lb_setting_prefers_the_near_once_there_is_outlier_detection"],
    ),
    Field::needs_waypoint(
        "trafficPolicy.loadBalancer.localityLbSetting.distribute",
        "Shares in percent by the waypoint's locality; a locality that is not listed gets nothing.",
        &[
            "locality_lb_setting_distribute_shares_by_the_callers_locality",
            "distribute_gives_each_locality_its_share_and_others_nothing",
            "locality_lb_setting_distribute_gives_each_place_its_share",
        ],
    ),
    Field::needs_waypoint(
        "trafficPolicy.loadBalancer.localityLbSetting.failover",
        "The region that takes over from another first; only with outlierDetection.",
        &[
            "locality_lb_setting_failover_names_regions",
            "locality_failover_from_and_to_name_the_next_region",
            "locality_lb_setting_failover_and_failover_priority_say_who_is_next",
        ],
    ),
    Field::needs_waypoint(
        "trafficPolicy.loadBalancer.localityLbSetting.failoverPriority",
        "Labels compared in order, with the waypoint's own or with a value (KEY=VALUE): the more agree, the nearer; only with \
         outlierDetection.",
        &[
            "locality_lb_setting_failover_priority_names_labels",
            "failover_priority_counts_labels_to_the_first_mismatch",
            "locality_lb_setting_failover_and_failover_priority_say_who_is_next",
        ],
    ),
    Field::not_honoured(
        "trafficPolicy.loadBalancer.zoneAwareLbSetting",
        "Zones do not count, at Istio's waypoints neither.",
        &["load_balancer_zone_aware_lb_setting_is_told_of"],
    ),
    Field::needs_waypoint(
        "trafficPolicy.loadBalancer.warmup",
        "A new endpoint's share grows from minimumPercent (10) to all of it within duration, with LEAST_REQUEST and ROUND_ROBIN; \
         aggression above 1.0 starts faster.",
        &[
            "warmup_and_warmup_duration_secs_start_slowly",
            "warmup_share_grows_from_minimum_percent_by_aggression",
            "warmup_and_warmup_duration_secs_spare_who_is_new",
        ],
    ),
    Field::needs_waypoint(
        "trafficPolicy.loadBalancer.warmupDurationSecs",
        "Deprecated by Istio in favour of warmup.duration.",
        &["warmup_and_warmup_duration_secs_start_slowly", "warmup_and_warmup_duration_secs_spare_who_is_new"],
    ),
    Field::needs_waypoint(
        "trafficPolicy.connectionPool.tcp.maxConnections",
        "Connections of the pool, of each waypoint by itself; no limit with 0 or without it.",
        &[
            "tcp_max_connections_limits_and_zero_does_not",
            "max_connections_counts_connections",
            "tcp_max_connections_refuses_the_next_connection",
        ],
    ),
    Field::needs_waypoint(
        "trafficPolicy.connectionPool.tcp.connectTimeout",
        "Time to connect, at least 1 ms; 10 s without it. Then the try failed (503 UF).",
        &["tcp_connect_timeout_is_ten_seconds_unless_it_is_said", "tcp_connect_timeout_gives_up_on_who_does_not_answer"],
    ),
    Field::needs_waypoint(
        "trafficPolicy.connectionPool.tcp.tcpKeepalive",
        "TCP keep-alive: time, interval and probes; the system's where they are absent or 0.",
        &["tcp_tcp_keepalive_has_probes_time_and_interval", "tcp_tcp_keepalive_sets_the_kernels_timer"],
    ),
    Field::needs_waypoint(
        "trafficPolicy.connectionPool.tcp.maxConnectionDuration",
        "An HTTP connection takes nothing new after this, any other ends; no limit without it.",
        &[
            "tcp_max_connection_duration_ends_connections",
            "tcp_max_connection_duration_takes_a_new_connection_for_what_comes_later",
            "tcp_idle_timeout_ends_silent_connections_only",
        ],
    ),
    Field::needs_waypoint(
        "trafficPolicy.connectionPool.tcp.idleTimeout",
        "A connection without traffic ends after this; 1 h without it, 0s never.",
        &["tcp_idle_timeout_is_an_hour_and_zero_turns_it_off", "tcp_idle_timeout_ends_silent_connections_only"],
    ),
    Field::needs_waypoint(
        "trafficPolicy.connectionPool.http.http1MaxPendingRequests",
        "Requests of every version that wait for a connection; more get 503 UO. No limit with 0 or without it.",
        &[
            "http_http1_max_pending_requests_limits",
            "http1_max_pending_requests_counts_those_that_wait",
            "requests_wait_for_a_connection_up_to_the_limit",
        ],
    ),
    Field::needs_waypoint(
        "trafficPolicy.connectionPool.http.http2MaxRequests",
        "Requests of every version under way; more get 503 UO. No limit with 0 or without it.",
        &[
            "http_http2_max_requests_limits",
            "http2_max_requests_counts_those_under_way",
            "c08_limits_are_of_a_pool_for_every_protocol_and_zero_is_none",
        ],
    ),
    Field::needs_waypoint(
        "trafficPolicy.connectionPool.http.maxRequestsPerConnection",
        "Requests on one connection; 1 turns keep-alive off, no limit with 0 or without it.",
        &[
            "http_max_requests_per_connection_limits",
            "max_requests_per_connection_ends_keep_alive",
            "http_max_requests_per_connection_ends_the_connection",
        ],
    ),
    Field::needs_waypoint(
        "trafficPolicy.connectionPool.http.maxRetries",
        "Retries under way; there are no more. No limit with 0 or without it; retryBudget replaces it.",
        &["http_max_retries_limits_unless_there_is_a_budget", "max_retries_counts_retries", "retries_have_a_limit_in_their_pool"],
    ),
    Field::needs_waypoint(
        "trafficPolicy.connectionPool.http.idleTimeout",
        "A connection without requests ends after this; tcp.idleTimeout without it.",
        &["http_idle_timeout_wins_over_tcps_where_http_is_spoken", "http_idle_timeout_closes_what_nobody_uses"],
    ),
    Field::needs_waypoint(
        "trafficPolicy.connectionPool.http.h2UpgradePolicy",
        "UPGRADE: HTTP/1.1 goes on as HTTP/2; DEFAULT and DO_NOT_UPGRADE: as the port says.",
        &["http_h2_upgrade_policy_upgrades", "http_h2_upgrade_policy_and_use_client_protocol_choose_the_version"],
    ),
    Field::needs_waypoint(
        "trafficPolicy.connectionPool.http.useClientProtocol",
        "The caller's version is kept. Not beside UPGRADE.",
        &["http_use_client_protocol_keeps_the_callers_version", "http_h2_upgrade_policy_and_use_client_protocol_choose_the_version"],
    ),
    Field::needs_waypoint(
        "trafficPolicy.connectionPool.http.maxConcurrentStreams",
        "Requests at a time on one HTTP/2 connection; no limit of ours with 0 or without it.",
        &["http_max_concurrent_streams_limits", "http_max_concurrent_streams_opens_another_connection"],
    ),
    Field::needs_waypoint(
        "trafficPolicy.connectionPool.http.http2KeepAlive.interval",
        "Time between two PINGs of HTTP/2, at least 1 ms.",
        &["http_http2_keep_alive_has_interval_and_timeout", "http_http2_keep_alive_asks_at_its_interval_and_gives_up_after_its_timeout"],
    ),
    Field::needs_waypoint(
        "trafficPolicy.connectionPool.http.http2KeepAlive.timeout",
        "Time to answer one, at least 1 ms.",
        &["http_http2_keep_alive_has_interval_and_timeout", "http_http2_keep_alive_asks_at_its_interval_and_gives_up_after_its_timeout"],
    ),
    Field::not_honoured(
        "trafficPolicy.connectionPool.http.http2KeepAlive.intervalJitter",
        "The interval has no jitter.",
        &["http_http2_keep_alive_refinements_are_told_of"],
    ),
    Field::not_honoured(
        "trafficPolicy.connectionPool.http.http2KeepAlive.connectionIdleInterval",
        "Connections are asked at the interval, idle or not.",
        &["http_http2_keep_alive_refinements_are_told_of"],
    ),
    Field::needs_waypoint(
        "trafficPolicy.outlierDetection.consecutive5xxErrors",
        "Answers 5xx in a row that eject an endpoint, failures of our side among them unless they are split; 5 as soon as the block is \
         there, 0 never.",
        &[
            "outlier_detection_consecutive5xx_errors_counts_and_zero_turns_it_off",
            "consecutive_5xx_errors_ejects_at_the_threshold_at_once",
            "c09_five_5xx_in_a_row_eject_as_soon_as_there_is_a_block_and_consecutive_errors_says_nothing",
        ],
    ),
    Field::needs_waypoint(
        "trafficPolicy.outlierDetection.consecutiveGatewayErrors",
        "Answers 502, 503 or 504 in a row that eject an endpoint; never without it or with 0.",
        &[
            "outlier_detection_consecutive_gateway_errors_counts",
            "consecutive_gateway_errors_counts_502_503_504_only",
            "outlier_detection_consecutive_gateway_errors_ejects_for_those_alone",
        ],
    ),
    Field::not_honoured(
        "trafficPolicy.outlierDetection.consecutiveErrors",
        "Istio ignores it too; the default of consecutive5xxErrors holds.",
        &[
            "outlier_detection_consecutive_errors_is_told_of_and_has_no_effect",
            "c09_five_5xx_in_a_row_eject_as_soon_as_there_is_a_block_and_consecutive_errors_says_nothing",
        ],
    ),
    Field::needs_waypoint(
        "trafficPolicy.outlierDetection.splitExternalLocalOriginErrors",
        "Failures of our side (connecting, time-outs, resets) count by themselves.",
        &[
            "outlier_detection_split_external_local_origin_errors_and_consecutive_local_origin_failures_go_together",
            "split_external_local_origin_errors_keeps_them_apart",
            "a_response_ends_a_row_of_failed_connections_that_count_by_themselves",
        ],
    ),
    Field::needs_waypoint(
        "trafficPolicy.outlierDetection.consecutiveLocalOriginFailures",
        "Those in a row that eject an endpoint; 5 where they are split, 0 never.",
        &[
            "outlier_detection_split_external_local_origin_errors_and_consecutive_local_origin_failures_go_together",
            "consecutive_local_origin_failures_end_with_a_connection",
            "a_response_ends_a_row_of_failed_connections_that_count_by_themselves",
        ],
    ),
    Field::needs_waypoint(
        "trafficPolicy.outlierDetection.interval",
        "Time between two sweeps, at which endpoints return; 10 s without it.",
        &[
            "outlier_detection_interval_and_base_ejection_time_are_durations",
            "interval_is_when_endpoints_return",
            "c12_an_ejection_ends_at_a_tick_and_grows_with_each_in_a_row",
        ],
    ),
    Field::needs_waypoint(
        "trafficPolicy.outlierDetection.baseEjectionTime",
        "Length of the first ejection, 30 s without it; each further one in a row is longer by it, up to 300 s or itself.",
        &[
            "outlier_detection_interval_and_base_ejection_time_are_durations",
            "base_ejection_time_grows_with_each_ejection_in_a_row",
            "c12_an_ejection_ends_at_a_tick_and_grows_with_each_in_a_row",
        ],
    ),
    Field::needs_waypoint(
        "trafficPolicy.outlierDetection.maxEjectionPercent",
        "Share of endpoints that may be ejected, the next one among them; 10 without it or with 0, so that fewer than 10 endpoints \
         lose none.",
        &[
            "outlier_detection_max_ejection_percent_is_kept",
            "max_ejection_percent_counts_the_next_one",
            "c10_ten_percent_of_few_endpoints_is_none",
        ],
    ),
    Field::needs_waypoint(
        "trafficPolicy.outlierDetection.minHealthPercent",
        "Below this share of healthy endpoints all are used; never without it or with 0.",
        &[
            "outlier_detection_min_health_percent_is_the_panic_threshold",
            "min_health_percent_below_it_ejected_endpoints_are_used",
            "c11_all_ejected_is_503_unless_a_least_health_says_to_use_all",
        ],
    ),
    Field::needs_waypoint(
        "trafficPolicy.outlierDetection.outlierDetectionHttpErrorCodes",
        "Statuses that count in place of all 5xx.",
        &["outlier_detection_http_error_codes_replace_5xx", "outlier_detection_http_error_codes_are_what_ejects"],
    ),
    Field::needs_waypoint(
        "trafficPolicy.tls.mode",
        "DISABLE and ISTIO_MUTUAL add nothing to the mesh's own tunnel. Waypoints speak no TLS inside it yet: with SIMPLE no connection is \
         made (503 UF), and MUTUAL leaves the pool out (503 NC), with a finding.",
        &[
            "tls_mode_disable_and_istio_mutual_add_nothing",
            "tls_that_needs_certificates_of_ours_leaves_the_pool_out",
            "tls_mode_that_is_not_the_meshs_own_never_goes_on_without",
        ],
    ),
    Field::not_honoured("trafficPolicy.tls.sni", NO_TLS, SIMPLE_TLS),
    Field::not_honoured("trafficPolicy.tls.subjectAltNames", NO_TLS, SIMPLE_TLS),
    Field::not_honoured("trafficPolicy.tls.insecureSkipVerify", NO_TLS, SIMPLE_TLS),
    Field::not_honoured("trafficPolicy.tls.clientCertificate", NO_CERTIFICATES, OWN_CERTIFICATES),
    Field::not_honoured("trafficPolicy.tls.privateKey", NO_CERTIFICATES, OWN_CERTIFICATES),
    Field::not_honoured("trafficPolicy.tls.caCertificates", NO_CERTIFICATES, OWN_CERTIFICATES),
    Field::not_honoured("trafficPolicy.tls.credentialName", NO_CERTIFICATES, OWN_CERTIFICATES),
    Field::not_honoured("trafficPolicy.tls.caCrl", NO_CERTIFICATES, OWN_CERTIFICATES),
    Field::needs_waypoint(
        "trafficPolicy.retryBudget.percent",
        "Retries as a share of the requests that are under way or wait; 20 without it.",
        &[
            "retry_budget_is_a_share_with_a_minimum",
            "retry_budget_is_a_share_of_active_and_pending",
            "retry_budget_percent_and_min_retry_concurrency_bound_the_retries_under_way",
        ],
    ),
    Field::needs_waypoint(
        "trafficPolicy.retryBudget.minRetryConcurrency",
        "So many retries are always allowed; 3 without it.",
        &[
            "retry_budget_is_a_share_with_a_minimum",
            "retry_budget_min_retry_concurrency_is_always_allowed",
            "retry_budget_percent_and_min_retry_concurrency_bound_the_retries_under_way",
        ],
    ),
    Field::not_honoured(
        "trafficPolicy.retryBudget.budgetInterval",
        "The budget looks at the requests that are under way.",
        &["retry_budget_budget_interval_is_told_of"],
    ),
    Field::not_honoured("trafficPolicy.tunnel", "Traffic goes to the endpoints without a tunnel of its own.", TUNNELS),
    Field::not_honoured("trafficPolicy.proxyProtocol", "No PROXY header is sent.", TUNNELS),
];
