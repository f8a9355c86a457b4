//! How a connection ended: the stage it had reached, the reason, and whose fault it was.
//!
//! `Stage` and `Reason` are closed sets of stable words: file names, log fields and documentation headings use them. Metrics have Istio's
//! words instead ([`Reason::response_flags`]).

use std::fmt;

/// A step of a connection's journey, in running order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// A pod's `connect` reaches our listener, with its original destination kept.
    Capture,
    /// A listener gives a connection.
    Accept,
    /// Who is calling, or being called.
    Identify,
    /// Where it goes: the plan.
    Resolve,
    /// Whether it may: the permit.
    Authorize,
    /// Which rule a request or connection takes (waypoints).
    Route,
    /// Which endpoint gets it, and whether its pool has room (waypoints).
    Balance,
    /// The upstream is opened.
    Connect,
    /// A request is sent on and its answer comes back (waypoints).
    Forward,
    /// Bytes move.
    Relay,
    /// The access log and the metrics are written.
    Report,
}

impl Stage {
    /// All stages in running order.
    pub const ALL: [Stage; 11] = [
        Self::Capture,
        Self::Accept,
        Self::Identify,
        Self::Resolve,
        Self::Authorize,
        Self::Route,
        Self::Balance,
        Self::Connect,
        Self::Forward,
        Self::Relay,
        Self::Report,
    ];

    /// The stable word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Capture => "capture",
            Self::Accept => "accept",
            Self::Identify => "identify",
            Self::Resolve => "resolve",
            Self::Authorize => "authorize",
            Self::Route => "route",
            Self::Balance => "balance",
            Self::Connect => "connect",
            Self::Forward => "forward",
            Self::Relay => "relay",
            Self::Report => "report",
        }
    }
}

/// Whose fault it was: whom to page, and whether a retry may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The side that called us.
    Downstream,
    /// The side that we called.
    Upstream,
    /// The mesh itself: its configuration or its state.
    Mesh,
}

impl Side {
    /// The stable word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Downstream => "downstream",
            Self::Upstream => "upstream",
            Self::Mesh => "mesh",
        }
    }
}

macro_rules! reasons {
    ($($variant:ident $word:literal $flags:literal $at_waypoint:tt $meaning:literal)*) => {
        /// Why a connection ended, or was refused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason { $(#[doc = $meaning] $variant,)* }

        impl Reason {
            /// All reasons, in the order of the documentation.
            pub const ALL: &'static [Reason] = &[$(Self::$variant,)*];

            /// The stable word.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            /// What it means, for the generated reference page.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)* }
            }

            /// The `response_flags` of Istio's node proxy for it; `-` for none, and where only waypoints have it.
            pub const fn response_flags(self) -> &'static str {
                match self { $(Self::$variant => $flags,)* }
            }

            /// The flags of Envoy that a waypoint may report with it, one of them or several, `-` for none; empty where only node proxies
            /// have it.
            pub const fn waypoint_flags(self) -> &'static [&'static str] {
                match self { $(Self::$variant => &$at_waypoint,)* }
            }
        }
    };
}

reasons! {
    Completed "completed" "-" ["-"] "Both directions ended as the applications wished."
    LimitReached "limit_reached" "CONNECT" ["UO"] "A limit on connections, streams or requests was reached."
    NoOriginalDestination "no_original_destination" "CONNECT" [] "The connection was not captured: somebody dialled the listener itself."
    LoopDetected "loop_detected" "CONNECT" [] "The connection would come back to the proxy's own port."
    WorkloadUnknown "workload_unknown" "CONNECT" [] "The control plane has not told this proxy about the pod."
    PeerUntrusted "peer_untrusted" "TLS_FAILURE" ["UF"] "The peer's certificate does not prove an identity of this trust domain, or not the expected one."
    CertificateUnavailable "certificate_unavailable" "IDENTITY_ERROR" ["UF"] "No certificate could be had for the workload."
    BadRequest "bad_request" "CONNECT" ["DPE", "-"] "The tunnel request is malformed or names a destination that is not here."
    NoEndpoint "no_endpoint" "CONNECT" ["UH"] "The service has no endpoint that may be used."
    NoWaypoint "no_waypoint" "CONNECT" [] "A waypoint is required and cannot be reached; traffic never goes around it."
    NoGateway "no_gateway" "CONNECT" [] "The destination is on another network, and no gateway to it is known or it takes a tunnel in a tunnel, which the node proxy does not open."
    PolicyDenied "policy_denied" "DENY" ["-"] "An authorization policy denied it, or none of the ALLOW policies allowed it."
    PolicyMissing "policy_missing" "DENY" [] "A policy that applies has not arrived yet; doubt denies."
    ConnectRefused "connect_refused" "CONNECT" ["UF"] "The upstream refused the connection."
    ConnectTimeout "connect_timeout" "CONNECT" ["UF"] "The upstream did not answer in time."
    ConnectFailed "connect_failed" "CONNECT" ["UF"] "The upstream could not be reached."
    TunnelFailed "tunnel_failed" "H2_HANDSHAKE_FAILURE" ["UF"] "The tunnel to the peer could not be set up, or broke."
    TunnelTimeout "tunnel_timeout" "NETWORK_POLICY" ["UF"] "Port 15008 of the peer did not answer in time; a NetworkPolicy may block it."
    TunnelRefused "tunnel_refused" "CONNECT" ["UF"] "The peer answered the tunnel request with something else than 200."
    TunnelDenied "tunnel_denied" "DENY" ["UF"] "The peer's policy denied the tunnel request (401)."
    DownstreamReset "downstream_reset" "-" ["DC", "-"] "The downstream reset the connection."
    UpstreamReset "upstream_reset" "-" ["UR", "UC", "UPE", "-"] "The upstream reset the connection."
    PermitRevoked "permit_revoked" "DENY" ["-"] "Policy changed while the connection was open and no longer allows it."
    NotAttached "not_attached" "-" ["NR"] "What was asked for is not attached to this waypoint."
    RouteNotFound "route_not_found" "-" ["NR"] "No route of the host matches."
    PoolUnknown "pool_unknown" "-" ["NC"] "The route names a service or subset that does not exist."
    RequestTimeout "request_timeout" "-" ["UT"] "The route's time for a request ran out."
    FaultInjected "fault_injected" "-" ["FI"] "The route's fault injection answered."
    TimeLimit "time_limit" "-" ["-"] "Nothing was sent for as long as the pool allows, or the connection has lasted as long as it may."
    Drained "drained" "-" ["DC", "-"] "The proxy or the pod was drained and the time to finish ran out."
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// The stage that it had reached.
    pub stage: Stage,
    /// Why it ended.
    pub reason: Reason,
    /// Whose fault it was; `Mesh` for [`Reason::Completed`] means nobody's.
    pub side: Side,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}
