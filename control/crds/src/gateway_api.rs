//! The Gateway API's kinds as users write them. Strict as Istio's are: an unknown field refuses the object.

pub mod gateway;

/// The protocol of a waypoint's listener (Istio's; the Gateway API leaves room for it).
pub const PROTOCOL_HBONE: &str = "HBONE";
/// The class of waypoints.
pub const CLASS_WAYPOINT: &str = "istio-waypoint";
