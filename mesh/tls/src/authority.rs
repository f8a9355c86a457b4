//! Certificate authorities: who signs. [`Citadel`] is the one of the control plane, ours or Istio's.

mod citadel;

use std::{future::Future, pin::Pin, time::Duration};

use thiserror::Error;
use tropis_model::identity::Identity;

pub use self::citadel::{Citadel, CitadelOptions};
use crate::{
    certificate::{InvalidCertificate, WorkloadCertificate},
    request::RequestError,
};

/// Signs certificates. Implemented by [`Citadel`] and by the authority of tests.
pub trait CertificateAuthority: Send + Sync + 'static {
    /// A new certificate, with a new key, for `identity`.
    fn sign<'a>(&'a self, identity: &'a Identity) -> Signing<'a>;
}

/// A certificate on its way.
pub type Signing<'a> = Pin<Box<dyn Future<Output = Result<WorkloadCertificate, SignError>> + Send + 'a>>;

/// The authority gave no certificate. It is asked again after a while; until then an older certificate is used as long as it is valid.
#[derive(Debug, Error)]
pub enum SignError {
    /// The request cannot be made.
    #[error("no request could be made")]
    Request(#[source] RequestError),
    /// The authority cannot be reached, or refused: for instance because it does not know yet that the pod runs on this node.
    #[error("the certificate authority gave no certificate ({code})")]
    Refused {
        /// The gRPC status code.
        code: tonic::Code,
        /// The whole status.
        #[source]
        source: Box<tonic::Status>,
    },
    /// Its answer cannot be used.
    #[error("the certificate authority's answer cannot be used")]
    Answer(#[source] InvalidCertificate),
    /// It did not answer in time.
    #[error("the certificate authority did not answer within {after:?}")]
    Timeout {
        /// The limit.
        after: Duration,
    },
}
