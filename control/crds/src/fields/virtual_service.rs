//! The fields of `VirtualService`. A waypoint obeys them; node proxies obey none.

use super::Field;

const NOT_FOR_THE_MESH: &str = "In place of the object's gateways; a block without mesh means nothing inside the mesh.";
const BLOCKS: &str = "Any of these blocks of the address that was called.";
const PORT: &str = "The service's port that was addressed; a block for another port is left out there.";
const ORIGINAL_LABELS: &str = "Labels that the original caller's pod carries.";
const ORIGINAL_NAMESPACE: &str = "The namespace of the original caller's identity.";
const L4_DESTINATION: &str = "Where to: a host, perhaps a subset and a port of it.";
const L4_WEIGHT: &str = "The share of the sum of all weights, 0 for none; one destination alone gets everything.";

pub(super) const FIELDS: &[Field] = &[
    Field::needs_waypoint(
        "hosts",
        "The services whose traffic is routed: a name without a dot in the object's namespace, a full name, or *. before one; without any \
         hosts it only says more for a VirtualService that delegates to it.",
        &[
            "hosts_may_be_short_full_in_any_case_or_wild_but_not_half",
            "only_those_of_the_services_and_the_waypoints_namespace_count",
            "hosts_gateways_and_export_to_say_whose_traffic_is_routed",
            "c20_a_mesh_host_is_no_star_short_names_are_the_objects_own_and_other_gateways_are_not_the_mesh",
        ],
    ),
    Field::needs_waypoint(
        "gateways",
        "mesh (the default) is traffic inside the mesh; without mesh the object means nothing there, and no other gateway is served yet.",
        &["gateways_without_mesh_leave_the_mesh_alone", "hosts_gateways_and_export_to_say_whose_traffic_is_routed"],
    ),
    Field::needs_waypoint(
        "exportTo",
        "The namespaces whose waypoints use it: . its own, * (the default) all. Private ones are tried first, then those exported by \
         name, then public ones.",
        &["export_to_orders_private_before_named_before_public_and_hides", "hosts_gateways_and_export_to_say_whose_traffic_is_routed"],
    ),
    Field::needs_waypoint(
        "http.name",
        "What logs call the route; default without one.",
        &["http_name_is_the_routes_name", "http_name_and_match_name_are_the_routes_name_in_the_log"],
    ),
    Field::needs_waypoint(
        "http.match.name",
        "Comes after the route's name in logs.",
        &["http_match_name_is_kept", "http_name_and_match_name_are_the_routes_name_in_the_log"],
    ),
    Field::needs_waypoint(
        "http.match.uri",
        "The canonical path without the query: exact, prefix (of bytes: /a takes /ab too), or regex (RE2, all of it, at most 1024 bytes).",
        &[
            "http_match_uri_is_exact_prefix_or_regex",
            "uri_prefix_is_a_byte_prefix",
            "uri_regex_matches_the_whole_path",
            "http_match_uri_and_ignore_uri_case_look_at_the_path",
        ],
    ),
    Field::needs_waypoint(
        "http.match.scheme",
        "http or https.",
        &["http_match_scheme_is_matched", "scheme_is_matched", "http_match_scheme_method_and_authority_look_at_what_was_sent"],
    ),
    Field::needs_waypoint(
        "http.match.method",
        "The method, with its case.",
        &[
            "http_match_method_is_matched",
            "method_is_matched_with_its_case",
            "http_match_scheme_method_and_authority_look_at_what_was_sent",
        ],
    ),
    Field::needs_waypoint(
        "http.match.authority",
        "The authority as it was sent, with its port if it has one.",
        &[
            "http_match_authority_is_matched",
            "authority_is_matched_as_sent_with_its_port",
            "http_match_scheme_method_and_authority_look_at_what_was_sent",
        ],
    ),
    Field::needs_waypoint(
        "http.match.headers",
        "Headers by name in any case; {} asks for presence. Names of fields (:method, uri) are left out; claims of tokens (@request.auth.claims) are no headers here.",
        &[
            "http_match_headers_are_matched_by_lower_case_name_or_presence",
            "headers_are_matched_by_value_or_presence",
            "http_match_headers_without_headers_and_query_params_look_at_values_and_presence",
        ],
    ),
    Field::needs_waypoint(
        "http.match.withoutHeaders",
        "Headers, none of which may match; one that is absent does not.",
        &[
            "http_match_without_headers_are_matched",
            "without_headers_absent_header_passes",
            "http_match_headers_without_headers_and_query_params_look_at_values_and_presence",
        ],
    ),
    Field::needs_waypoint(
        "http.match.queryParams",
        "Parameters of the query by name, the first value of each, as sent; {} asks for presence.",
        &[
            "http_match_query_params_keep_their_case",
            "query_params_match_the_first_value",
            "http_match_headers_without_headers_and_query_params_look_at_values_and_presence",
        ],
    ),
    Field::needs_waypoint(
        "http.match.ignoreUriCase",
        "Ignores the case of uri where it is exact or a prefix.",
        &[
            "http_match_ignore_uri_case_is_kept",
            "ignore_uri_case_is_for_literals_only",
            "http_match_uri_and_ignore_uri_case_look_at_the_path",
        ],
    ),
    Field::needs_waypoint(
        "http.match.port",
        PORT,
        &["http_match_port_leaves_out_what_is_for_other_ports", "http_match_port_and_gateways_leave_out_what_is_not_for_this_traffic"],
    ),
    Field::needs_waypoint(
        "http.match.sourceLabels",
        ORIGINAL_LABELS,
        &[
            "http_match_source_labels_ask_for_the_original_caller",
            "source_labels_are_those_of_the_original_caller",
            "http_match_source_labels_and_source_namespace_are_the_original_callers",
        ],
    ),
    Field::needs_waypoint(
        "http.match.sourceNamespace",
        ORIGINAL_NAMESPACE,
        &[
            "http_match_source_namespace_asks_for_the_original_caller",
            "source_namespace_is_that_of_the_original_caller",
            "http_match_source_labels_and_source_namespace_are_the_original_callers",
        ],
    ),
    Field::needs_waypoint(
        "http.match.gateways",
        NOT_FOR_THE_MESH,
        &["http_match_gateways_leave_out_what_is_not_for_the_mesh", "http_match_port_and_gateways_leave_out_what_is_not_for_this_traffic"],
    ),
    Field::not_honoured("http.match.statPrefix", "No statistics are kept under it.", &["http_match_stat_prefix_is_told_of"]),
    Field::needs_waypoint(
        "http.route.destination",
        "Where to: a host, a subset of its DestinationRule, a port (else the only one of the service, else the one that was addressed). \
         A host or subset that does not exist is 503 NC, one without usable endpoints 503 UH.",
        &[
            "http_route_destination_names_host_subset_and_port",
            "http_route_destination_takes_the_only_port_of_the_service_else_the_one_that_was_addressed",
            "http_route_destination_goes_to_host_subset_and_port",
        ],
    ),
    Field::needs_waypoint(
        "http.route.weight",
        L4_WEIGHT,
        &[
            "http_route_weight_is_a_share_of_the_sum",
            "weight_is_a_share_of_the_sum",
            "http_route_weight_is_a_share_and_headers_belong_to_the_share",
        ],
    ),
    Field::needs_waypoint(
        "http.route.headers",
        "Changes of headers where this destination is drawn: after the route's on requests, before them on responses.",
        &["http_route_headers_belong_to_the_share", "http_route_weight_is_a_share_and_headers_belong_to_the_share"],
    ),
    Field::needs_waypoint(
        "http.redirect.uri",
        "The whole path; the query stays unless it has one of its own.",
        &[
            "http_redirect_has_path_authority_scheme_port_and_code",
            "redirect_uri_replaces_the_path_and_keeps_the_query_unless_it_has_one",
            "http_redirect_redirect_code_is_the_status",
        ],
    ),
    Field::needs_waypoint(
        "http.redirect.prefixRewrite",
        "In place of the prefix that matched; every match needs one. Not beside uri.",
        &[
            "http_redirect_has_path_authority_scheme_port_and_code",
            "redirect_prefix_rewrite_replaces_the_matched_prefix",
            "http_redirect_redirect_code_is_the_status",
        ],
    ),
    Field::needs_waypoint(
        "http.redirect.authority",
        "The host.",
        &[
            "http_redirect_has_path_authority_scheme_port_and_code",
            "redirect_authority_replaces_the_host",
            "http_redirect_redirect_code_is_the_status",
        ],
    ),
    Field::needs_waypoint(
        "http.redirect.scheme",
        "http or https; a default port of the old scheme goes.",
        &[
            "http_redirect_has_path_authority_scheme_port_and_code",
            "redirect_scheme_strips_the_old_default_port_only",
            "http_redirect_redirect_code_is_the_status",
        ],
    ),
    Field::needs_waypoint(
        "http.redirect.port",
        "The port; left out where it is the scheme's default.",
        &[
            "http_redirect_has_path_authority_scheme_port_and_code",
            "redirect_port_is_left_out_when_it_is_the_default",
            "http_redirect_redirect_code_is_the_status",
        ],
    ),
    Field::needs_waypoint(
        "http.redirect.derivePort",
        "FROM_PROTOCOL_DEFAULT or FROM_REQUEST_PORT. Not beside port.",
        &[
            "http_redirect_has_path_authority_scheme_port_and_code",
            "redirect_derive_port_is_from_the_scheme_or_from_the_request",
            "http_redirect_redirect_code_is_the_status",
        ],
    ),
    Field::needs_waypoint(
        "http.redirect.redirectCode",
        "301 (the default), 302, 303, 307 or 308.",
        &["http_redirect_has_path_authority_scheme_port_and_code", "http_redirect_redirect_code_is_the_status"],
    ),
    Field::needs_waypoint(
        "http.directResponse.status",
        "The status of the answer, 200 to 599.",
        &["http_direct_response_has_status_and_body", "http_direct_response_status_and_body_are_the_answer"],
    ),
    Field::needs_waypoint(
        "http.directResponse.body",
        "Its body, as a string or as bytes (base64), at most 1 MB; none without it.",
        &["http_direct_response_has_status_and_body", "http_direct_response_status_and_body_are_the_answer"],
    ),
    Field::needs_waypoint(
        "http.delegate",
        "The VirtualService without hosts (in this namespace or another that exports it) whose rules stand here; one level.",
        &[
            "http_delegate_takes_the_roots_matches_and_what_it_leaves_unsaid",
            "http_delegate_has_one_level_and_stands_alone",
            "http_delegate_routes_what_both_take",
        ],
    ),
    Field::needs_waypoint(
        "http.rewrite.uri",
        "In place of the prefix that matched, or of the whole path where the match was exact or a regex.",
        &[
            "http_rewrite_changes_path_and_authority",
            "rewrite_uri_replaces_the_matched_prefix",
            "http_rewrite_uri_authority_and_uri_regex_rewrite_are_what_the_endpoint_sees",
        ],
    ),
    Field::needs_waypoint(
        "http.rewrite.authority",
        "The authority that the destination sees.",
        &["http_rewrite_changes_path_and_authority", "http_rewrite_uri_authority_and_uri_regex_rewrite_are_what_the_endpoint_sees"],
    ),
    Field::needs_waypoint(
        "http.rewrite.uriRegexRewrite",
        "Replaces every match of a pattern (RE2) in the path; \\1 to \\9 are its groups. Not beside uri.",
        &[
            "http_rewrite_changes_path_and_authority",
            "uri_regex_rewrite_substitutes_every_match",
            "http_rewrite_uri_authority_and_uri_regex_rewrite_are_what_the_endpoint_sees",
        ],
    ),
    Field::needs_waypoint(
        "http.timeout",
        "For the whole request with its retries, at least 1 ms; then 504 UT. No limit without it.",
        &[
            "http_timeout_is_off_unless_it_is_said",
            "http_timeout_ends_the_request",
            "c04_no_timeout_without_one_and_a_routes_is_for_all_tries_and_not_retried",
        ],
    ),
    Field::needs_waypoint(
        "http.retries.attempts",
        "Tries after the first; 0 is off. Without retries: 2.",
        &[
            "http_retries_default_to_two_without_any_http_status",
            "attempts_counts_retries_and_not_tries",
            "http_retries_attempts_retry_on_and_per_try_timeout_are_obeyed_together",
        ],
    ),
    Field::needs_waypoint(
        "http.retries.perTryTimeout",
        "For one try, at least 1 ms; without it the route's timeout alone.",
        &[
            "http_retries_say_how_often_how_long_and_where",
            "per_try_timeout_is_retried_where_the_policy_says_so",
            "http_retries_attempts_retry_on_and_per_try_timeout_are_obeyed_together",
        ],
    ),
    Field::needs_waypoint(
        "http.retries.retryOn",
        "Conditions with commas between them. Without it connect-failure, refused-stream, unavailable and cancelled, hence no HTTP \
         status. retriable-headers, envoy-ratelimited and http3-post-connect-failure call for no retry.",
        &[
            "http_retries_retry_on_reads_every_condition",
            "the_default_policy_does_not_retry_a_plain_503",
            "http_retries_attempts_retry_on_and_per_try_timeout_are_obeyed_together",
        ],
    ),
    Field::needs_waypoint(
        "http.retries.retryRemoteLocalities",
        "A retry prefers endpoints of other localities; off without it.",
        &[
            "http_retries_say_how_often_how_long_and_where",
            "retry_remote_localities_leaves_tried_priorities_every_second_try",
            "retry_remote_localities_leaves_the_near_from_the_second_retry",
        ],
    ),
    Field::needs_waypoint(
        "http.retries.retryIgnorePreviousHosts",
        "A retry avoids endpoints that were tried (5 draws); on without it, and not with consistentHash.",
        &[
            "http_retries_say_how_often_how_long_and_where",
            "retry_ignore_previous_hosts_avoids_them",
            "a_connect_failure_is_retried_on_another_endpoint",
        ],
    ),
    Field::needs_waypoint(
        "http.retries.backoff",
        "Base of the random waits between tries, 25 ms without it; no wait is longer than ten times that.",
        &[
            "http_retries_say_how_often_how_long_and_where",
            "backoff_is_below_its_limit_and_ten_times_the_base",
            "http_retries_backoff_is_the_base_of_the_waits",
        ],
    ),
    Field::needs_waypoint(
        "http.fault.delay.fixedDelay",
        "How long, at least 1 ms.",
        &["http_fault_delay_waits_for_a_share", "http_fault_delay_and_abort_hit_their_share"],
    ),
    Field::needs_waypoint(
        "http.fault.delay.percentage",
        "How many requests wait, to 0.0001 percent; none without it.",
        &[
            "http_fault_delay_waits_for_a_share",
            "mirror_percentage_and_fault_percentage_are_shares_of_a_million",
            "http_fault_delay_and_abort_hit_their_share",
        ],
    ),
    Field::needs_waypoint(
        "http.fault.delay.percent",
        "Deprecated by Istio in favour of percentage.",
        &["http_fault_delay_waits_for_a_share", "http_fault_delay_and_abort_hit_their_share"],
    ),
    Field::not_honoured(
        "http.fault.delay.exponentialDelay",
        "Refused: Istio never implemented it either.",
        &["faults_that_nobody_implements_are_refused"],
    ),
    Field::needs_waypoint(
        "http.fault.abort.httpStatus",
        "The status of the answer, 200 to 599.",
        &["http_fault_abort_answers_a_share", "http_fault_delay_and_abort_hit_their_share"],
    ),
    Field::needs_waypoint(
        "http.fault.abort.grpcStatus",
        "The gRPC status of the answer, by name or number.",
        &["http_fault_abort_answers_a_share", "http_fault_delay_and_abort_hit_their_share"],
    ),
    Field::needs_waypoint(
        "http.fault.abort.percentage",
        "How many requests are answered so, to 0.0001 percent; none without it.",
        &[
            "http_fault_abort_answers_a_share",
            "mirror_percentage_and_fault_percentage_are_shares_of_a_million",
            "http_fault_delay_and_abort_hit_their_share",
        ],
    ),
    Field::not_honoured(
        "http.fault.abort.http2Error",
        "Refused: Istio never implemented it either.",
        &["faults_that_nobody_implements_are_refused"],
    ),
    Field::needs_waypoint(
        "http.mirror",
        "Who gets a copy, whose answer nobody sees. Not beside mirrors.",
        &["http_mirror_and_mirror_percentage_copy_a_share", "http_mirror_mirrors_and_their_percentages_copy_a_share"],
    ),
    Field::needs_waypoint(
        "http.mirrorPercentage",
        "How many requests mirror copies, to 0.0001 percent; all without it.",
        &[
            "http_mirror_and_mirror_percentage_copy_a_share",
            "mirror_percentage_and_fault_percentage_are_shares_of_a_million",
            "http_mirror_mirrors_and_their_percentages_copy_a_share",
        ],
    ),
    Field::needs_waypoint(
        "http.mirrorPercent",
        "Deprecated by Istio in favour of mirrorPercentage; mirror_percent is the same.",
        &["http_mirror_and_mirror_percentage_copy_a_share", "http_mirror_mirrors_and_their_percentages_copy_a_share"],
    ),
    Field::needs_waypoint(
        "http.mirrors",
        "Who get copies, each with a percentage of its own (all without it).",
        &["http_mirrors_copy_to_several", "http_mirror_mirrors_and_their_percentages_copy_a_share"],
    ),
    Field::needs_waypoint(
        "http.corsPolicy.allowOrigins",
        "Origins that are let in, as exact, prefix or regex; a preflight of one is answered by the waypoint.",
        &["http_cors_policy_is_read_whole", "http_cors_policy_answers_preflights_and_shows_responses"],
    ),
    Field::needs_waypoint(
        "http.corsPolicy.allowOrigin",
        "Deprecated by Istio in favour of allowOrigins: exact, or * for any.",
        &["http_cors_policy_is_read_whole", "http_cors_policy_allow_origin_is_the_older_spelling"],
    ),
    Field::needs_waypoint(
        "http.corsPolicy.allowMethods",
        "Methods that preflights are told.",
        &["http_cors_policy_is_read_whole", "http_cors_policy_answers_preflights_and_shows_responses"],
    ),
    Field::needs_waypoint(
        "http.corsPolicy.allowHeaders",
        "Headers of requests that preflights are told.",
        &["http_cors_policy_is_read_whole", "http_cors_policy_answers_preflights_and_shows_responses"],
    ),
    Field::needs_waypoint(
        "http.corsPolicy.exposeHeaders",
        "Headers of responses that pages may read.",
        &["http_cors_policy_is_read_whole", "http_cors_policy_answers_preflights_and_shows_responses"],
    ),
    Field::needs_waypoint(
        "http.corsPolicy.maxAge",
        "How long the answer to a preflight holds, in whole seconds.",
        &["http_cors_policy_is_read_whole", "http_cors_policy_answers_preflights_and_shows_responses"],
    ),
    Field::needs_waypoint(
        "http.corsPolicy.allowCredentials",
        "Whether credentials are let in; nothing is said of it without it.",
        &["http_cors_policy_is_read_whole", "http_cors_policy_answers_preflights_and_shows_responses"],
    ),
    Field::needs_waypoint(
        "http.corsPolicy.unmatchedPreflights",
        "FORWARD (the default) sends preflights of other origins on; IGNORE answers them without permission.",
        &["http_cors_policy_is_read_whole", "http_cors_policy_unmatched_preflights_are_forwarded_unless_ignored"],
    ),
    Field::needs_waypoint(
        "http.headers",
        "Headers of requests and responses: removed, then set, then added. A value with a command of Envoy's formatter leaves its header \
         as it is.",
        &[
            "http_headers_are_set_added_and_removed_on_both_ways",
            "headers_are_removed_then_set_then_added",
            "http_headers_change_on_the_way_there_and_back",
        ],
    ),
    Field::needs_waypoint(
        "tls.match.sniHosts",
        "The server name that TLS asks for; at a waypoint it must be the service's full name alone.",
        &[
            "tls_match_sni_hosts_count_when_they_name_the_service",
            "sni_hosts_are_exact_or_a_suffix",
            "tls_match_sni_hosts_port_gateways_and_route_weight_say_where_tls_goes",
        ],
    ),
    Field::needs_waypoint(
        "tls.match.destinationSubnets",
        BLOCKS,
        &[
            "tls_match_destination_subnets_source_labels_and_source_namespace_are_asked",
            "destination_subnets_are_of_the_address_that_was_called",
            "tls_match_destination_subnets_are_asked_of_the_connection",
        ],
    ),
    Field::needs_waypoint(
        "tls.match.port",
        PORT,
        &["tls_match_sni_hosts_count_when_they_name_the_service", "tls_match_sni_hosts_port_gateways_and_route_weight_say_where_tls_goes"],
    ),
    Field::needs_waypoint(
        "tls.match.sourceLabels",
        ORIGINAL_LABELS,
        &[
            "tls_match_destination_subnets_source_labels_and_source_namespace_are_asked",
            "tls_routes_ask_for_the_original_caller",
            "tls_match_source_labels_and_source_namespace_are_asked_of_the_connection",
        ],
    ),
    Field::needs_waypoint(
        "tls.match.sourceNamespace",
        ORIGINAL_NAMESPACE,
        &[
            "tls_match_destination_subnets_source_labels_and_source_namespace_are_asked",
            "tls_routes_ask_for_the_original_caller",
            "tls_match_source_labels_and_source_namespace_are_asked_of_the_connection",
        ],
    ),
    Field::needs_waypoint(
        "tls.match.gateways",
        NOT_FOR_THE_MESH,
        &["tls_match_gateways_leave_out_what_is_not_for_the_mesh", "tls_match_sni_hosts_port_gateways_and_route_weight_say_where_tls_goes"],
    ),
    Field::needs_waypoint(
        "tls.route.destination",
        L4_DESTINATION,
        &["tls_match_sni_hosts_count_when_they_name_the_service", "tls_match_sni_hosts_port_gateways_and_route_weight_say_where_tls_goes"],
    ),
    Field::needs_waypoint(
        "tls.route.weight",
        L4_WEIGHT,
        &["tls_route_shares_by_weight", "tls_match_sni_hosts_port_gateways_and_route_weight_say_where_tls_goes"],
    ),
    Field::needs_waypoint(
        "tcp.match.destinationSubnets",
        BLOCKS,
        &[
            "tcp_match_destination_subnets_source_labels_and_source_namespace_are_asked",
            "destination_subnets_are_of_the_address_that_was_called",
            "tcp_match_destination_subnets_source_labels_and_source_namespace_are_asked_of_the_connection",
        ],
    ),
    Field::needs_waypoint(
        "tcp.match.port",
        PORT,
        &["tcp_match_port_leaves_other_ports_to_the_service", "tcp_match_port_gateways_and_route_destination_say_where_connections_go"],
    ),
    Field::not_honoured("tcp.match.sourceSubnet", "The block takes callers of any address.", &["tcp_match_source_subnet_is_told_of"]),
    Field::needs_waypoint(
        "tcp.match.sourceLabels",
        ORIGINAL_LABELS,
        &[
            "tcp_match_destination_subnets_source_labels_and_source_namespace_are_asked",
            "tcp_routes_ask_for_the_original_caller",
            "tcp_match_destination_subnets_source_labels_and_source_namespace_are_asked_of_the_connection",
        ],
    ),
    Field::needs_waypoint(
        "tcp.match.sourceNamespace",
        ORIGINAL_NAMESPACE,
        &[
            "tcp_match_destination_subnets_source_labels_and_source_namespace_are_asked",
            "tcp_routes_ask_for_the_original_caller",
            "tcp_match_destination_subnets_source_labels_and_source_namespace_are_asked_of_the_connection",
        ],
    ),
    Field::needs_waypoint(
        "tcp.match.gateways",
        NOT_FOR_THE_MESH,
        &[
            "tcp_match_gateways_leave_out_what_is_not_for_the_mesh",
            "tcp_match_port_gateways_and_route_destination_say_where_connections_go",
        ],
    ),
    Field::needs_waypoint(
        "tcp.route.destination",
        L4_DESTINATION,
        &["tcp_route_shares_by_weight", "tcp_match_port_gateways_and_route_destination_say_where_connections_go"],
    ),
    Field::needs_waypoint("tcp.route.weight", L4_WEIGHT, &["tcp_route_shares_by_weight", "tcp_route_weight_is_a_share_of_connections"]),
];
