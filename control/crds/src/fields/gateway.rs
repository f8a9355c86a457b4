//! The fields of `Gateway` (of the Gateway API). Only the class of waypoints is served.

use super::Field;

const READ: &str = "a_waypoint_is_read_with_its_labels_listener_infrastructure_and_addresses";
const MADE: &[&str] = &["a_waypoint_gets_an_account_a_service_and_a_deployment_that_decode_and_fit_together", READ];
const UNOBEYED: &[&str] = &["what_a_waypoint_does_not_obey_is_told"];

pub(super) const FIELDS: &[Field] = &[
    Field::needs_waypoint(
        "gatewayClassName",
        "istio-waypoint makes it a waypoint; a Gateway of another class is not served.",
        &["a_waypoint_for_an_account_takes_its_pods_and_the_services_that_are_all_its", READ],
    ),
    Field::needs_waypoint(
        "listeners.name",
        "Any name, once in a Gateway; mesh by habit.",
        &["gateways_that_the_api_server_refuses_are_refused"],
    ),
    Field::needs_waypoint("listeners.port", "15008; nothing listens on another.", &["a_listener_that_no_waypoint_has_is_told_of", READ]),
    Field::needs_waypoint(
        "listeners.protocol",
        "HBONE; a listener of another protocol gives a finding and nothing listens there.",
        &["a_listener_that_no_waypoint_has_is_told_of", READ],
    ),
    Field::needs_waypoint(
        "listeners.allowedRoutes.namespaces",
        "Whose services and pods may use the waypoint: Same (the default), All, None, or Selector with labels of namespaces.",
        &["allowed_routes_say_who_may_use_a_waypoint", "another_namespaces_waypoint_must_let_this_one_in"],
    ),
    Field::not_honoured("listeners.allowedRoutes.kinds", "Routes attach to services, not to a waypoint.", UNOBEYED),
    Field::not_honoured("listeners.hostname", "A waypoint has no host names.", UNOBEYED),
    Field::not_honoured("listeners.tls", "A waypoint's certificate is the mesh's.", UNOBEYED),
    Field::not_honoured(
        "addresses",
        "A waypoint has the address of its Service; one that somebody else deploys (a Hostname) is not served.",
        &["a_waypoint_that_somebody_else_deploys_is_not_said_to_work", "an_address_that_is_asked_for_is_not_taken_for_a_name"],
    ),
    Field::needs_waypoint("infrastructure.labels", "Labels of what is made for the waypoint; at most 8.", MADE),
    Field::needs_waypoint("infrastructure.annotations", "Annotations of what is made for the waypoint; at most 8.", MADE),
    Field::not_honoured("infrastructure.parametersRef", "No more settings are read.", UNOBEYED),
    Field::not_honoured("allowedListeners", "No listeners are added from elsewhere.", UNOBEYED),
    Field::not_honoured("tls", "A waypoint's certificate is the mesh's.", UNOBEYED),
    Field::not_honoured("defaultScope", "Routes without a parent do not attach to a waypoint.", UNOBEYED),
];
