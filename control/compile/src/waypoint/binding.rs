//! What a Service's status says about its waypoint: Istio's condition `istio.io/WaypointBound` (traffic-api.md 3.6).
//!
//! It is also how a control plane that starts anew knows where traffic goes now, so that a change of waypoints that was under way goes on
//! and does not jump, and which waypoints still serve what was opened through them before.

use std::collections::BTreeSet;

use tropis_crds::Object;

use super::{Attached, refusal};
use crate::{Index, index::Key};

/// The condition's type.
pub const WAYPOINT_BOUND: &str = "istio.io/WaypointBound";
/// What comes before the waypoint's name in the message of a condition that holds.
const ATTACHED_TO: &str = "Successfully attached to waypoint ";
/// What comes after it, where another waypoint is waited for.
const UNTIL: &str = ", until the one that it wants is ready: ";
/// What comes last, where waypoints that were left still serve what is open, before their names.
const STILL: &str = "; what was open goes on through ";
/// Between their names.
const AND: &str = ", ";
/// So many of them are believed: who may write a Service's status does not fill memory.
const MOST_FORMER: usize = 8;

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
    /// Says it; `None` for a Service that has no waypoint, wants none, and left none a moment ago.
    pub(crate) fn of(
        index: &Index,
        object: &Object,
        wanted: Option<&Attached>,
        present: Option<&Key>,
        former: &BTreeSet<Key>,
    ) -> Option<Self> {
        let now = Self::now(index, object, wanted, present);
        if former.is_empty() {
            return now;
        }
        let nowhere = || Self { holds: false, reason: "NoWaypoint", message: "traffic goes through no waypoint".to_owned() };
        let now = now.unwrap_or_else(nowhere);
        let names: Vec<String> = former.iter().map(shown).collect();
        Some(Self { message: format!("{}{STILL}{}", now.message, names.join(AND)), ..now })
    }

    fn now(index: &Index, object: &Object, wanted: Option<&Attached>, present: Option<&Key>) -> Option<Self> {
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
}

/// What a Service's status says of its waypoints.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Traffic goes through this one.
    pub(crate) present: Option<Key>,
    /// What was open goes on through these.
    pub(crate) former: BTreeSet<Key>,
}

impl Found {
    /// Reads it.
    pub(crate) fn of(object: &Object) -> Self {
        Self::read(object).unwrap_or_default()
    }

    fn read(object: &Object) -> Option<Self> {
        let conditions = object.value.get("status")?.get("conditions")?.as_array()?;
        let ours = conditions.iter().find(|condition| condition.get("type").and_then(|kind| kind.as_str()) == Some(WAYPOINT_BOUND))?;
        let text = |field: &str| ours.get(field).and_then(|value| value.as_str());
        let message = text("message")?;
        let (now, former) = message.split_once(STILL).unwrap_or((message, ""));
        let attached = now.strip_prefix(ATTACHED_TO).filter(|_| text("status") == Some("True"));
        let present = attached.and_then(|named| key(named.split_once(UNTIL).map_or(named, |(now, _)| now)));
        Some(Self { present, former: former.split(AND).filter_map(key).take(MOST_FORMER).collect() })
    }
}

fn shown(key: &Key) -> String {
    format!("{}/{}", key.0, key.1)
}

fn key(shown: &str) -> Option<Key> {
    let (namespace, name) = shown.split_once('/')?;
    Some((namespace.to_owned(), name.to_owned()))
}
