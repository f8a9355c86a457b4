//! The types of resources that the mesh's configuration consists of.

use tropis_proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE, HOST_TYPE, WAYPOINT_TYPE};

/// A type of resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceType {
    /// L4 policies (`istio.security.Authorization`).
    Authorization,
    /// Workloads and services (`istio.workload.Address`).
    Address,
    /// Waypoints as they know themselves (`tropis.waypoint.v1.Waypoint`).
    Waypoint,
    /// What a waypoint does with a host's traffic (`tropis.waypoint.v1.Host`).
    Host,
}

impl ResourceType {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Authorization, Self::Address, Self::Waypoint, Self::Host];

    /// Its name on the wire.
    pub const fn url(self) -> &'static str {
        match self {
            Self::Authorization => AUTHORIZATION_TYPE,
            Self::Address => ADDRESS_TYPE,
            Self::Waypoint => WAYPOINT_TYPE,
            Self::Host => HOST_TYPE,
        }
    }

    /// The type of this name; `None` for one that the mesh does not use.
    pub fn from_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.url() == url)
    }

    /// A short word for it, in metrics and debug output.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Authorization => "authorization",
            Self::Address => "address",
            Self::Waypoint => "waypoint",
            Self::Host => "host",
        }
    }
}
