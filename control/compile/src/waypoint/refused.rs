//! What there is to tell about the objects of which a resource was made that a waypoint refused. Which of them is to blame the waypoint's
//! reason says, at best.

use tropis_crds::{Finding, Kind, ObjectRef, codes};

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
