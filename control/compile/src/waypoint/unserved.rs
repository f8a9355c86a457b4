//! Objects that only waypoints obey, about Services that go through none: a canary that never happens should not be silent.

use std::sync::Arc;

use tropis_crds::{Finding, Object, codes};

use super::{MANAGED, needed, of_service};
use crate::Index;

const ACCEPTED: &str = "an enrolled namespace, which gets a waypoint by itself unless it opted out, or label istio.io/use-waypoint on the Service or its namespace";

/// What there is to tell about a field that names these Services, when none of them goes through a waypoint. Nothing is told about
/// namespaces that are not known (of a file that is looked at alone), nor where a waypoint is about to be made.
pub(crate) fn finding<'a>(
    index: &Index,
    services: impl Iterator<Item = &'a Arc<Object>>,
    about: (&Object, String, String),
    effect: &str,
) -> Option<Finding> {
    let (object, field, found) = about;
    let mut coming = None;
    let mut any = false;
    for service in services.filter(|service| service.label(MANAGED).is_none()) {
        any = true;
        index.namespace(&service.metadata.namespace)?;
        if needed::is_promised(index, service) {
            return None;
        }
        match of_service(index, service).0 {
            Some(attached) if attached.address.is_some() => return None,
            Some(attached) => coming = Some(attached.gateway),
            None => {}
        }
    }
    let (finding, problem) = match coming {
        _ if !any => return None,
        Some((namespace, name)) => {
            let problem = format!("goes through waypoint {namespace}/{name} once that is ready");
            (Finding::info(codes::NEEDS_WAYPOINT, object.reference()), problem)
        }
        None => (Finding::warning(codes::NEEDS_WAYPOINT, object.reference()), "goes through no waypoint".to_owned()),
    };
    Some(finding.field(field).found(found).problem(problem).accepted(ACCEPTED).effect(effect))
}
