//! What a Service's status says about its waypoint: Istio's condition `istio.io/WaypointBound` (traffic-api.md 3.6).
//!
//! It is also how a control plane that starts anew knows where traffic goes now, so that a change of waypoints that was under way goes on
//! and does not jump.

use tropis_crds::Object;

use super::{Attached, refusal};
use crate::{Index, index::Key};

/// The condition's type.
pub const WAYPOINT_BOUND: &str = "istio.io/WaypointBound";
/// What comes before the waypoint's name in the message of a condition that holds.
const ATTACHED_TO: &str = "Successfully attached to waypoint ";
/// What comes after it, where another waypoint is waited for.
const UNTIL: &str = ", until the one that it wants is ready: ";

/// How a Service stands to its waypoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// Traffic goes through one.
    pub holds: bool,
    /// Why, in one word.
    pub reason: &'static str,
    /// The same for a person.
    pub message: String,
}

impl Binding {
    /// Says it; `None` for a Service that has no waypoint and wants none.
    pub(crate) fn of(index: &Index, object: &Object, wanted: Option<&Attached>, present: Option<&Key>) -> Option<Self> {
        let shown = |key: &Key| format!("{}/{}", key.0, key.1);
        if let Some(present) = present {
            let next = wanted.map(|wanted| &wanted.gateway).filter(|wanted| *wanted != present);
            let next = next.map(|next| format!("{UNTIL}{}", shown(next))).unwrap_or_default();
            return Some(Self { holds: true, reason: "WaypointAccepted", message: format!("{ATTACHED_TO}{}{next}", shown(present)) });
        }
        let (waypoint, reason, word) = refusal(index, object).or_else(|| {
            let waypoint = wanted?.gateway.clone();
            Some((waypoint, "WaypointIsNotReady", "it has not acknowledged what it needs for this Service"))
        })?;
        let message = format!("traffic does not go through waypoint {}: {word}", shown(&waypoint));
        Some(Self { holds: false, reason, message })
    }

    /// The waypoint that an object's status says its traffic goes through.
    pub(crate) fn found(object: &Object) -> Option<Key> {
        let conditions = object.value.get("status")?.get("conditions")?.as_array()?;
        let ours = conditions.iter().find(|condition| condition.get("type").and_then(|kind| kind.as_str()) == Some(WAYPOINT_BOUND))?;
        let text = |field: &str| ours.get(field).and_then(|value| value.as_str());
        if text("status")? != "True" {
            return None;
        }
        let message = text("message")?;
        let named = message.strip_prefix(ATTACHED_TO)?;
        let (namespace, name) = named.split_once(UNTIL).map_or(named, |(now, _)| now).split_once('/')?;
        Some((namespace.to_owned(), name.to_owned()))
    }
}
