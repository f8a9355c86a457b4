//! Why a tunnel could not be opened.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use http::StatusCode;
use thiserror::Error;
use tropis_model::{
    identity::Identity,
    outcome::{Reason, Side},
};
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
    /// TLS failed: the peer is not who was expected, or does not trust us, or the connection broke meanwhile.
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
        /// Who it proved to be.
        peer: Identity,
        /// The answer.
        status: StatusCode,
    },
    /// The peer answered something else than 200.
    #[error("{address} refused the tunnel ({status})")]
    Refused {
        /// The HBONE listener.
        address: SocketAddr,
        /// Who it proved to be.
        peer: Identity,
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

/// Whether TLS itself failed, rather than the socket under it. The kind is what tells: HTTP/2 keeps no more of its cause.
fn is_about_trust(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData
}

/// The peer shook hands, but is not one to talk to.
#[derive(Debug, Error)]
pub(super) enum BadPeer {
    #[error("the peer has no identity")]
    NoIdentity,
    #[error("the peer does not speak HTTP/2 (ALPN)")]
    NotHttp2,
}

impl From<BadPeer> for io::Error {
    fn from(bad: BadPeer) -> Self {
        Self::new(io::ErrorKind::InvalidData, bad)
    }
}

impl TunnelError {
    /// An error of the HTTP/2 connection. In TLS 1.3 a client hears only there that the server refused its certificate.
    pub(super) fn of_connection(address: SocketAddr, error: h2::Error) -> Self {
        if !error.get_io().is_some_and(is_about_trust) {
            return Self::Connection { address, source: Arc::new(error) };
        }
        let source = error.into_io().unwrap_or_else(|| io::ErrorKind::InvalidData.into());
        Self::Tls { address, source: Arc::new(source) }
    }

    /// The reason in the closed set of outcomes.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Certificate(_) => Reason::CertificateUnavailable,
            Self::Dial { source, .. } => match source.reason() {
                Reason::ConnectTimeout => Reason::TunnelTimeout,
                other => other,
            },
            Self::Tls { source, .. } if is_about_trust(source) => Reason::PeerUntrusted,
            Self::Tls { .. } => Reason::TunnelFailed,
            Self::Connection { .. } => Reason::TunnelFailed,
            Self::Timeout { .. } => Reason::TunnelTimeout,
            Self::Denied { .. } => Reason::TunnelDenied,
            Self::Refused { .. } => Reason::TunnelRefused,
            Self::LimitReached { .. } => Reason::LimitReached,
            Self::Authority { .. } => Reason::BadRequest,
        }
    }

    /// Who answered, if somebody did that had proved who it is.
    pub fn peer(&self) -> Option<&Identity> {
        match self {
            Self::Denied { peer, .. } | Self::Refused { peer, .. } => Some(peer),
            _ => None,
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
