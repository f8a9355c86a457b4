//! The fields of `AuthorizationPolicy`. What node proxies decide is decided by waypoints too, about the original caller.

use super::Field;

/// Shows the parts that node proxies decide.
const L4: &str = "each_field_matches_what_it_says";

pub(super) const FIELDS: &[Field] = &[
    Field::honoured(
        "selector.matchLabels",
        "Picks the workloads by their labels; without it the policy is the namespace's, or the mesh's in the root namespace. A waypoint \
         in front of them enforces it too.",
        &[
            "selector_and_namespace_say_which_workloads",
            "selectors_are_decided_at_the_endpoint_and_targets_before",
            "selector_decides_for_the_endpoint_that_carries_the_labels",
            "c14_a_policy_with_a_selector_holds_at_the_waypoint_too",
        ],
    ),
    Field::needs_waypoint(
        "targetRef",
        "Deprecated by Istio: one entry of targetRefs.",
        &["target_refs_attach_to_service_gateway_and_class", "target_refs_and_target_ref_say_whose_requests_are_decided"],
    ),
    Field::needs_waypoint(
        "targetRefs",
        "Attaches the policy to a Service, to a waypoint (Gateway) or to all of them (GatewayClass istio-waypoint, in the root namespace); \
         at most 16.",
        &["target_refs_attach_to_service_gateway_and_class", "target_refs_and_target_ref_say_whose_requests_are_decided"],
    ),
    Field::honoured(
        "action",
        "ALLOW and DENY are enforced everywhere. At a waypoint AUDIT is only told, and CUSTOM denies what it matches, as there are no \
         external authorizers; node proxies enforce neither.",
        &[
            "action_is_allow_deny_or_audit_and_custom_denies_without_an_authorizer",
            "audit_is_reported_only",
            "action_decides_what_a_match_means",
        ],
    ),
    Field::not_honoured(
        "provider.name",
        "Names the external authorizer of the action CUSTOM.",
        &["action_is_allow_deny_or_audit_and_custom_denies_without_an_authorizer"],
    ),
    Field::honoured(
        "rules.from.source.principals",
        "Callers by identity (TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT), as certificates prove it.",
        &[
            L4,
            "source_principals_and_not_principals_are_matched",
            "principals_are_those_of_the_original_caller",
            "each_source_field_asks_for_the_original_caller",
        ],
    ),
    Field::honoured(
        "rules.from.source.notPrincipals",
        "Identities that do not match.",
        &[
            L4,
            "source_principals_and_not_principals_are_matched",
            "not_principals_presence_catches_callers_without_an_identity",
            "each_source_field_asks_for_the_original_caller",
        ],
    ),
    Field::honoured(
        "rules.from.source.namespaces",
        "Callers by the namespace of their identity.",
        &[L4, "source_namespaces_are_matched", "namespaces_are_those_of_the_identity", "each_source_field_asks_for_the_original_caller"],
    ),
    Field::honoured(
        "rules.from.source.notNamespaces",
        "Namespaces that do not match.",
        &[L4, "source_namespaces_are_matched", "each_source_field_asks_for_the_original_caller"],
    ),
    Field::honoured(
        "rules.from.source.serviceAccounts",
        "Callers by NAMESPACE/ACCOUNT, or ACCOUNT of the policy's own namespace.",
        &[
            L4,
            "source_service_accounts_are_of_the_policys_namespace_unless_they_say_so",
            "service_accounts_are_namespace_and_name",
            "each_source_field_asks_for_the_original_caller",
        ],
    ),
    Field::honoured(
        "rules.from.source.notServiceAccounts",
        "Accounts that do not match.",
        &[L4, "source_service_accounts_are_of_the_policys_namespace_unless_they_say_so", "each_source_field_asks_for_the_original_caller"],
    ),
    Field::honoured(
        "rules.from.source.ipBlocks",
        "Callers by the address that the connection comes from.",
        &[
            L4,
            "source_ip_blocks_and_remote_ip_blocks_are_blocks",
            "ip_blocks_are_of_the_callers_address",
            "each_source_field_asks_for_the_original_caller",
        ],
    ),
    Field::honoured(
        "rules.from.source.notIpBlocks",
        "Addresses that do not match.",
        &[
            L4,
            "source_ip_blocks_and_remote_ip_blocks_are_blocks",
            "ip_blocks_of_an_unknown_address_are_a_doubt",
            "each_source_field_asks_for_the_original_caller",
        ],
    ),
    Field::needs_waypoint(
        "rules.from.source.requestPrincipals",
        "Callers by the issuer and subject of a request's JWT. No token is verified yet, so none matches.",
        &["source_request_principals_are_matched", "request_principals_need_a_token", "request_principals_match_nobody_without_a_token"],
    ),
    Field::needs_waypoint(
        "rules.from.source.notRequestPrincipals",
        "Issuers and subjects that do not match.",
        &["source_request_principals_are_matched", "request_principals_need_a_token", "request_principals_match_nobody_without_a_token"],
    ),
    Field::needs_waypoint(
        "rules.from.source.remoteIpBlocks",
        "Callers by the address that trusted headers give; without such headers, by their own.",
        &[
            "source_ip_blocks_and_remote_ip_blocks_are_blocks",
            "remote_ip_blocks_are_of_the_first_callers_address",
            "each_source_field_asks_for_the_original_caller",
        ],
    ),
    Field::needs_waypoint(
        "rules.from.source.notRemoteIpBlocks",
        "Addresses that do not match.",
        &["source_ip_blocks_and_remote_ip_blocks_are_blocks", "each_source_field_asks_for_the_original_caller"],
    ),
    Field::needs_waypoint(
        "rules.from.source.trustDomains",
        "Callers by the trust domain of their identity.",
        &["source_trust_domains_are_the_beginnings_of_principals", "each_source_field_asks_for_the_original_caller"],
    ),
    Field::needs_waypoint(
        "rules.from.source.notTrustDomains",
        "Trust domains that do not match.",
        &["source_trust_domains_are_the_beginnings_of_principals", "each_source_field_asks_for_the_original_caller"],
    ),
    Field::honoured(
        "rules.to.operation.ports",
        "The workload's own ports; the service's, for a policy with targetRefs.",
        &[
            L4,
            "operation_ports_are_numbers",
            "ports_are_the_services_for_a_target_and_the_endpoints_for_workloads",
            "each_operation_field_asks_for_the_request",
        ],
    ),
    Field::honoured(
        "rules.to.operation.notPorts",
        "Ports that do not match.",
        &[L4, "operation_ports_are_numbers", "each_operation_field_asks_for_the_request"],
    ),
    Field::needs_waypoint(
        "rules.to.operation.hosts",
        "Requests by their host, whatever its case, with its port if one was sent.",
        &[
            "operation_hosts_are_matched",
            "hosts_are_compared_without_case_and_with_their_port",
            "each_operation_field_asks_for_the_request",
        ],
    ),
    Field::needs_waypoint(
        "rules.to.operation.notHosts",
        "Hosts that do not match.",
        &[
            "operation_hosts_are_matched",
            "hosts_with_a_dot_at_their_end_do_not_slip_past_a_denial",
            "each_operation_field_asks_for_the_request",
        ],
    ),
    Field::needs_waypoint(
        "rules.to.operation.methods",
        "Requests by their method.",
        &["operation_methods_are_matched", "methods_are_compared_with_their_case", "each_operation_field_asks_for_the_request"],
    ),
    Field::needs_waypoint(
        "rules.to.operation.notMethods",
        "Methods that do not match.",
        &["operation_methods_are_matched", "each_operation_field_asks_for_the_request"],
    ),
    Field::needs_waypoint(
        "rules.to.operation.paths",
        "Requests by their canonical path without the query: exact, PREFIX*, *SUFFIX, *, or a template with {*} and {**}.",
        &[
            "operation_paths_are_texts_or_templates",
            "paths_are_exact_prefix_suffix_or_present",
            "paths_may_be_templates",
            "each_operation_field_asks_for_the_request",
        ],
    ),
    Field::needs_waypoint(
        "rules.to.operation.notPaths",
        "Paths that do not match.",
        &["operation_paths_are_texts_or_templates", "each_operation_field_asks_for_the_request"],
    ),
    Field::honoured(
        "rules.when",
        "Conditions: source.ip, source.namespace, source.principal, source.serviceAccount, destination.ip and destination.port; other \
         keys need a waypoint.",
        &[L4, "when_reads_every_key", "when_not_values_are_kept", "each_when_key_asks_for_its_attribute"],
    ),
];
