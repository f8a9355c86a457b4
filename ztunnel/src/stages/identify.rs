//! Identify: who is calling, or being called. A local pod by its enrolment and the control plane's word; a peer by its certificate.

use std::sync::Arc;

use thiserror::Error;
use tokio::net::TcpStream;
use tropis_hbone::server::{self, AcceptError, ServerOptions, Session};
use tropis_model::{
    identity::Identity,
    outcome::{Reason, Side},
    view::View,
    workload::Workload,
};
use tropis_tls::store::CertificateUnavailable;

use crate::{
    app::Shared,
    node::Pod,
    view::{WORKLOAD_WAIT, local_workload},
};

/// An end of the connection is not who it should be, or cannot be known.
#[derive(Debug, Error)]
pub enum IdentifyError {
    /// The control plane has not told us about the pod.
    #[error("the control plane has not described pod {pod} within {WORKLOAD_WAIT:?}")]
    WorkloadUnknown {
        /// The pod.
        pod: String,
    },
    /// No certificate to answer with.
    #[error("cannot answer as {identity}")]
    CertificateUnavailable {
        /// Who is called.
        identity: Identity,
        /// Why there is none.
        #[source]
        cause: CertificateUnavailable,
    },
    /// The peer did not prove an identity of this mesh, or not in time.
    #[error("the peer did not prove who it is")]
    Peer(#[source] AcceptError),
}

impl IdentifyError {
    /// The stable reason and whose fault it is.
    pub fn reason(&self) -> (Reason, Side) {
        match self {
            Self::WorkloadUnknown { .. } => (Reason::WorkloadUnknown, Side::Mesh),
            Self::CertificateUnavailable { .. } => (Reason::CertificateUnavailable, Side::Mesh),
            Self::Peer(AcceptError::Tls { .. } | AcceptError::Timeout { .. }) => (Reason::PeerUntrusted, Side::Downstream),
            Self::Peer(AcceptError::Http { .. }) => (Reason::TunnelFailed, Side::Downstream),
            Self::Peer(AcceptError::Gone(_)) => (Reason::DownstreamReset, Side::Downstream),
        }
    }
}

/// The local pod, in the control plane's words.
pub fn local(shared: &Shared, view: &View, pod: &Pod) -> Result<Arc<Workload>, IdentifyError> {
    let found = local_workload(view, &shared.config.node, pod).ok_or_else(|| IdentifyError::WorkloadUnknown { pod: pod.to_string() })?;
    pod.is_known_as(found, &shared.certificates);
    Ok(found.clone())
}

/// Shakes hands with a peer that opens a tunnel connection to the local pod: we prove `callee`, it proves itself.
pub async fn peer(shared: &Shared, callee: &Workload, stream: TcpStream) -> Result<Session, IdentifyError> {
    let identity = &callee.identity;
    let unavailable = |cause| IdentifyError::CertificateUnavailable { identity: identity.clone(), cause };
    let certificate = shared.certificates.get(identity).await.map_err(unavailable)?;
    server::accept(stream, certificate.server_config(), &ServerOptions::default()).await.map_err(IdentifyError::Peer)
}
