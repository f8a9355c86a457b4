//! The control plane's authority, by Istio's RPC (`istio.v1.auth.IstioCertificateService`).

use std::{collections::BTreeMap, time::Duration};

use prost_types::{Struct, Value, value::Kind};
use tonic::{service::interceptor::InterceptedService, transport::Channel};
use tropis_model::identity::Identity;
use tropis_proto::{
    IMPERSONATED_IDENTITY,
    citadel::{IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient},
};

use super::{CertificateAuthority, SignError, Signing};
use crate::{certificate::WorkloadCertificate, control::Credentials, request::CertificateRequest};

/// How to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CitadelOptions {
    /// The lifetime asked for. 24 h (`SECRET_TTL`): the authority may refuse more.
    pub time_to_live: Duration,
    /// Whether we ask on behalf of pods of our node, naming whom (a node's proxy); otherwise the token's own identity is meant.
    pub impersonate: bool,
}

impl Default for CitadelOptions {
    fn default() -> Self {
        Self { time_to_live: Duration::from_secs(24 * 60 * 60), impersonate: true }
    }
}

/// The client of `IstioCertificateService`.
#[derive(Debug, Clone)]
pub struct Citadel {
    client: IstioCertificateServiceClient<InterceptedService<Channel, Credentials>>,
    options: CitadelOptions,
}

impl Citadel {
    /// A client on a channel to the control plane.
    pub fn new(channel: Channel, credentials: Credentials, options: CitadelOptions) -> Self {
        Self { client: IstioCertificateServiceClient::with_interceptor(channel, credentials), options }
    }

    async fn ask(&self, identity: &Identity) -> Result<WorkloadCertificate, SignError> {
        let CertificateRequest { csr_pem, key } = CertificateRequest::new(identity).map_err(SignError::Request)?;
        let request = IstioCertificateRequest {
            csr: csr_pem,
            validity_duration: i64::try_from(self.options.time_to_live.as_secs()).unwrap_or(i64::MAX),
            metadata: self.options.impersonate.then(|| impersonation(identity)),
        };
        let answer = self.client.clone().create_certificate(request).await;
        let answer = answer.map_err(|status| SignError::Refused { code: status.code(), source: Box::new(status) })?;
        WorkloadCertificate::from_pem(identity, key, &answer.into_inner().cert_chain).map_err(SignError::Answer)
    }
}

impl CertificateAuthority for Citadel {
    fn sign<'a>(&'a self, identity: &'a Identity) -> Signing<'a> {
        Box::pin(self.ask(identity))
    }
}

fn impersonation(identity: &Identity) -> Struct {
    let value = Value { kind: Some(Kind::StringValue(identity.to_string())) };
    Struct { fields: BTreeMap::from([(IMPERSONATED_IDENTITY.to_owned(), value)]) }
}
