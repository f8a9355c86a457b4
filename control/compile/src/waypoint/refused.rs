//! Which objects of the user's a resource was made of that a waypoint refused, and what to tell about each.

use tropis_crds::{Finding, Kind, ObjectRef, codes};

use super::of_service;
use crate::{Index, virtual_service};

/// The objects that a host (named `namespace/hostname`) was made of: its Service, and the VirtualServices and DestinationRules that its
/// waypoint uses for it. Which of them is to blame the waypoint's reason says, at best.
pub fn host_origins(index: &Index, name: &str) -> Vec<ObjectRef> {
    let Some((namespace, hostname)) = name.split_once('/') else { return Vec::new() };
    let Some(object) = index.service_named(hostname) else { return Vec::new() };
    let mut origins = vec![object.reference()];
    if let Some(attached) = of_service(index, object).0 {
        let routes = virtual_service::used(index, &attached.gateway, namespace, hostname);
        origins.extend(routes.into_iter().map(|route| route.reference()));
    }
    origins.extend(index.destination_rules_for(hostname).into_iter().map(|rule| rule.reference()));
    origins
}

/// The Gateway of a waypoint (named `namespace/gateway`).
pub fn waypoint_origin(name: &str) -> Option<ObjectRef> {
    name.split_once('/').map(|(namespace, name)| ObjectRef::new(Kind::Gateway, namespace, name))
}

/// What there is to tell about an object of which `resource` was made, which `client` refused for `reason`.
pub fn finding(object: ObjectRef, resource: &str, client: &str, reason: &str) -> Finding {
    Finding::error(codes::REFUSED_BY_PROXY, object)
        .found(resource.to_owned())
        .problem(format!("is part of what {client} refuses: {reason}"))
        .accepted("what the waypoint's version understands; the waypoint and the control plane should be of one version")
        .effect("there the version before stays in force, or none: then what goes there is refused")
}
