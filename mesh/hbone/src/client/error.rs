//! Why a tunnel could not be opened.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use http::StatusCode;
use thiserror::Error;
use tropis_model::outcome::{Reason, Side};
use tropis_net::dial::DialError;
use tropis_tls::store::CertificateUnavailable;

/// A tunnel could not be opened. Cheap to clone, as all who waited for one connection hear of its failure.
#[derive(Debug, Clone, Error)]
pub enum TunnelError {
    /// There is no certificate to show.
    #[error("no certificate to open a tunnel with")]
    Certificate(#[source] CertificateUnavailable),
    /// The peer's port could not be reached.
    #[error("cannot reach the tunnel port {address}")]
    Dial {
        /// The HBONE listener.
        address: SocketAddr,
        /// Why.
        #[source]
        source: Arc<DialError>,
    },
    /// The TLS handshake failed: the peer is not who was expected, or does not trust us.
    #[error("TLS with {address} failed")]
    Tls {
        /// The HBONE listener.
        address: SocketAddr,
        /// Why.
        #[source]
        source: Arc<io::Error>,
    },
    /// The HTTP/2 connection could not be set up, or broke before the tunnel was open.
    #[error("the HTTP/2 connection to {address} failed")]
    Connection {
        /// The HBONE listener.
        address: SocketAddr,
        /// Why.
        #[source]
        source: Arc<h2::Error>,
    },
    /// The peer did not answer in time.
    #[error("{address} did not answer within {after:?} while {doing}")]
    Timeout {
        /// The HBONE listener.
        address: SocketAddr,
        /// What it should have answered to.
        doing: &'static str,
        /// The limit.
        after: Duration,
    },
    /// The peer's policy denied it (401, or 403 from a waypoint).
    #[error("{address} denied the tunnel ({status})")]
    Denied {
        /// The HBONE listener.
        address: SocketAddr,
        /// The answer.
        status: StatusCode,
    },
    /// The peer answered something else than 200.
    #[error("{address} refused the tunnel ({status})")]
    Refused {
        /// The HBONE listener.
        address: SocketAddr,
        /// The answer.
        status: StatusCode,
    },
    /// Too many connections to this peer.
    #[error("too many tunnel connections to {address}")]
    LimitReached {
        /// The HBONE listener.
        address: SocketAddr,
    },
    /// The authority cannot be put into a request.
    #[error("{authority} cannot be asked for")]
    Authority {
        /// The authority.
        authority: String,
    },
}

impl TunnelError {
    /// The reason in the closed set of outcomes.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Certificate(_) => Reason::CertificateUnavailable,
            Self::Dial { source, .. } => match source.reason() {
                Reason::ConnectTimeout => Reason::TunnelTimeout,
                other => other,
            },
            Self::Tls { .. } => Reason::PeerUntrusted,
            Self::Connection { .. } => Reason::TunnelFailed,
            Self::Timeout { .. } => Reason::TunnelTimeout,
            Self::Denied { .. } => Reason::TunnelDenied,
            Self::Refused { .. } => Reason::TunnelRefused,
            Self::LimitReached { .. } => Reason::LimitReached,
            Self::Authority { .. } => Reason::BadRequest,
        }
    }

    /// Whose fault it is.
    pub fn side(&self) -> Side {
        match self {
            Self::Certificate(_) | Self::LimitReached { .. } | Self::Authority { .. } => Side::Mesh,
            Self::Dial { .. }
            | Self::Tls { .. }
            | Self::Connection { .. }
            | Self::Timeout { .. }
            | Self::Denied { .. }
            | Self::Refused { .. } => Side::Upstream,
        }
    }

    /// Whether another endpoint may be tried: this one has not reached its application. A denial would be the same everywhere.
    pub fn may_try_elsewhere(&self) -> bool {
        match self {
            Self::Dial { .. } | Self::Tls { .. } | Self::Connection { .. } | Self::Timeout { .. } | Self::LimitReached { .. } => true,
            Self::Refused { status, .. } => status.is_server_error(),
            Self::Certificate(_) | Self::Denied { .. } | Self::Authority { .. } => false,
        }
    }
}
