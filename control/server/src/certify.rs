//! The certificate endpoint: `IstioCertificateService/CreateCertificate`.
//!
//! The identity comes from the caller's proof or, for a node proxy, from the pod that it asks for ([`crate::scope`]); of the CSR only
//! the key is used ([`crate::ca::authority`]).

use std::{sync::Arc, time::Duration};

use prost_types::value::Kind;
use time::OffsetDateTime;
use tonic::{Code, Request, Response, Status};
use tracing::{debug, warn};
use tropis_proto::{
    IMPERSONATED_IDENTITY,
    citadel::{
        IstioCertificateRequest, IstioCertificateResponse,
        istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer},
    },
};
use tropis_telemetry::chain;

use crate::{
    ca::authority::{Authority, SignError},
    caller::Caller,
    metrics::Metrics,
    scope::{Refused, Scope},
    sparing::Sparing,
};

/// A request is a CSR and a name.
const MAX_REQUEST_BYTES: usize = 64 << 10;
/// A longer name is no identity (SPIFFE ID §2.3), and would come back in the answer and the log.
const MAX_IDENTITY_BYTES: usize = 2048;
/// A node knows a new pod a moment before it is known here; its proxy's first request waits that long instead of being refused and
/// tried again a second later (seen: 40 ms).
const SETTLING: Duration = Duration::from_millis(400);
/// How often it looks meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Signs for those who may.
pub(crate) struct Certify {
    authority: Arc<Authority>,
    scope: Arc<Scope>,
    default_lifetime: Duration,
    longest_lifetime: Duration,
    metrics: Metrics,
    log: Sparing,
}

impl Certify {
    /// Lifetimes: without a wish, and at most.
    pub(crate) fn new(
        authority: Arc<Authority>,
        scope: Arc<Scope>,
        default_lifetime: Duration,
        longest_lifetime: Duration,
        metrics: Metrics,
    ) -> Self {
        Self { authority, scope, default_lifetime, longest_lifetime, metrics, log: Sparing::default() }
    }

    /// The service as tonic wants it, with its limit.
    pub(crate) fn into_service(self) -> IstioCertificateServiceServer<Self> {
        IstioCertificateServiceServer::new(self).max_decoding_message_size(MAX_REQUEST_BYTES)
    }

    /// Signs; for a pod that is not known to be where the caller is, it waits whether it will be.
    async fn sign_settled(&self, caller: &Caller, request: &IstioCertificateRequest) -> Result<IstioCertificateResponse, Status> {
        let deadline = tokio::time::Instant::now() + SETTLING;
        loop {
            match self.sign(caller, request) {
                Err(status) if status.code() == Code::Unauthenticated && tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                outcome => return outcome,
            }
        }
    }

    fn sign(&self, caller: &Caller, request: &IstioCertificateRequest) -> Result<IstioCertificateResponse, Status> {
        let lifetime = self.lifetime(request.validity_duration)?;
        let identity = self.scope.identity(caller, requested(request)?).map_err(|refused| refusal(&refused))?;
        let signed = self.authority.sign(&request.csr, &identity, lifetime, OffsetDateTime::now_utc()).map_err(|error| match error {
            SignError::Sign(_) => Status::internal(chain(&error)),
            SignError::TooLong(_) | SignError::BadRequest(_) | SignError::WeakKey => Status::invalid_argument(chain(&error)),
        })?;
        debug!(%identity, serial = signed.serial, not_after = %signed.not_after, "certificate signed");
        Ok(IstioCertificateResponse { cert_chain: vec![signed.certificate, self.authority.root_pem().to_owned()] })
    }

    /// Longer than allowed is an error, not a shorter certificate: the caller would renew too late.
    fn lifetime(&self, seconds: i64) -> Result<Duration, Status> {
        let longest = self.longest_lifetime.as_secs();
        match u64::try_from(seconds) {
            Ok(0) => Ok(self.default_lifetime),
            Ok(seconds) if seconds <= longest => Ok(Duration::from_secs(seconds)),
            Ok(seconds) => Err(Status::invalid_argument(format!(
                "requested certificate lifetime of {seconds} s is longer than the allowed {longest} s (set SECRET_TTL or --max-certificate-lifetime)"
            ))),
            Err(_) => Err(Status::invalid_argument(format!("{seconds} s is not a lifetime"))),
        }
    }
}

/// The identity that the caller asks for by name.
fn requested(request: &IstioCertificateRequest) -> Result<Option<&str>, Status> {
    let value = request.metadata.as_ref().and_then(|metadata| metadata.fields.get(IMPERSONATED_IDENTITY));
    match value.and_then(|value| value.kind.as_ref()) {
        None | Some(Kind::NullValue(_)) => Ok(None),
        Some(Kind::StringValue(text)) if text.is_empty() => Ok(None),
        Some(Kind::StringValue(text)) if text.len() > MAX_IDENTITY_BYTES => Err(Status::invalid_argument(format!(
            "the metadata {IMPERSONATED_IDENTITY} has {} bytes, more than {MAX_IDENTITY_BYTES}",
            text.len()
        ))),
        Some(Kind::StringValue(text)) => Ok(Some(text)),
        Some(_) => Err(Status::invalid_argument(format!("the metadata {IMPERSONATED_IDENTITY} is not a string"))),
    }
}

/// As Istio's authority answers: a node proxy tries again, because the pod may be too new to be known here.
pub(crate) fn refusal(refused: &Refused) -> Status {
    let reason = refused.to_string();
    match refused {
        Refused::NotSynced => Status::unavailable(reason),
        Refused::BadIdentity(_) => Status::invalid_argument(reason),
        Refused::PodUnknown { .. } | Refused::PodDiffers { .. } | Refused::Ended { .. } | Refused::NotHere { .. } => {
            Status::unauthenticated(reason)
        }
        Refused::NoConfiguration { .. } | Refused::OnlyOwn { .. } | Refused::WaypointsOwn { .. } => Status::permission_denied(reason),
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Certify {
    async fn create_certificate(&self, request: Request<IstioCertificateRequest>) -> Result<Response<IstioCertificateResponse>, Status> {
        let Some(caller) = request.extensions().get::<Caller>().cloned() else {
            return Err(Status::unauthenticated("the caller was not authenticated"));
        };
        match self.sign_settled(&caller, request.get_ref()).await {
            Ok(response) => {
                self.metrics.certificate_signed();
                Ok(Response::new(response))
            }
            Err(status) => {
                self.metrics.certificate_refused();
                if let Some(unsaid) = self.log.say() {
                    warn!(?caller, code = ?status.code(), reason = status.message(), unsaid, "certificate refused");
                }
                Err(status)
            }
        }
    }
}
