//! Who calls: proved by a service account token, or by a certificate of this mesh. Everybody else is turned away before anything is
//! read from them.
//!
//! This file decides which proof counts and what it proves; what a proved caller may have is [`crate::scope`]'s business.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use thiserror::Error;
use tonic::{
    Extensions, Request, Status,
    metadata::MetadataMap,
    service::Interceptor,
    transport::server::{TcpConnectInfo, TlsConnectInfo},
};
use tracing::warn;
use tropis_model::identity::Identity;
use tropis_telemetry::chain;
use tropis_tls::peer;

use self::token::{PodToken, RefusedToken, Tokens};
use crate::{connections::CallerConnection, metrics::Metrics, sparing::Sparing};

pub(crate) mod token;

/// What tonic knows about a connection of ours.
type Connection = CallerConnection<TlsConnectInfo<TcpConnectInfo>>;

const BEARER: &str = "Bearer ";

/// A proved caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Caller {
    /// A pod, by a token that is bound to it.
    Token(PodToken),
    /// The holder of a certificate that this mesh's root signed.
    Certificate(Identity),
}

/// Nobody that could be proved.
#[derive(Debug, Error)]
pub(crate) enum Unproved {
    /// Neither token nor certificate.
    #[error(
        "no credentials: send a service account token for the audience {audience:?} (authorization: Bearer …), or a client certificate of this mesh"
    )]
    Nothing {
        /// The audience that tokens need.
        audience: String,
    },
    /// The header is not `Bearer TOKEN`.
    #[error("the authorization header is not of the form \"Bearer TOKEN\"")]
    BadHeader,
    /// The token is not good.
    #[error("the token is refused")]
    Token(#[source] RefusedToken),
    /// The certificate is this root's, but proves no identity of this mesh.
    #[error("the client certificate is refused: {0}")]
    Certificate(String),
}

/// Proves callers; the interceptor of every service.
#[derive(Clone)]
pub(crate) struct Authenticator {
    tokens: Arc<Tokens>,
    trust_domain: Arc<str>,
    metrics: Metrics,
    log: Arc<Sparing>,
}

impl Authenticator {
    /// Accepts what `tokens` accepts, and certificates of `trust_domain` (their chain was checked in the handshake).
    pub(crate) fn new(tokens: Arc<Tokens>, trust_domain: Arc<str>, metrics: Metrics) -> Self {
        Self { tokens, trust_domain, metrics, log: Arc::default() }
    }

    fn caller(&self, metadata: &MetadataMap, extensions: &Extensions) -> Result<Caller, Unproved> {
        // A token that is there must be good: no falling back to what else the caller might have.
        if let Some(header) = metadata.get("authorization") {
            let header = header.to_str().map_err(|_| Unproved::BadHeader)?;
            let (scheme, token) = header.split_at_checked(BEARER.len()).ok_or(Unproved::BadHeader)?;
            if !scheme.eq_ignore_ascii_case(BEARER) {
                return Err(Unproved::BadHeader);
            }
            return self.tokens.check(token.trim()).map(Caller::Token).map_err(Unproved::Token);
        }
        let certificates = extensions.get::<Connection>().and_then(|connection| connection.stream.peer_certs());
        match certificates.as_deref().and_then(|chain| chain.first()) {
            Some(leaf) => identity_of(leaf, &self.trust_domain).map(Caller::Certificate).map_err(Unproved::Certificate),
            None => Err(Unproved::Nothing { audience: self.tokens.audience().to_owned() }),
        }
    }
}

impl Interceptor for Authenticator {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let place = request.extensions().get::<Connection>().map(|connection| connection.place.clone());
        match self.caller(request.metadata(), request.extensions()) {
            Ok(caller) => {
                if let Some(place) = &place {
                    place.prove();
                }
                request.extensions_mut().insert(caller);
                Ok(request)
            }
            Err(error) => {
                let reason = chain(&error);
                if let Some(unsaid) = self.log.say() {
                    let from = place.as_ref().map(|place| place.peer().to_string()).unwrap_or_default();
                    warn!(from, reason, unsaid, "caller refused");
                }
                if let Some(place) = &place {
                    place.refuse();
                }
                self.metrics.caller_refused();
                Err(Status::unauthenticated(reason))
            }
        }
    }
}

/// The only identity of a certificate, if it is of `trust_domain` (X.509-SVID §2: exactly one).
fn identity_of(leaf: &CertificateDer<'_>, trust_domain: &str) -> Result<Identity, String> {
    let identities = peer::identities_in(leaf);
    let [identity] = identities.as_slice() else { return Err(format!("it has {} identities, not one", identities.len())) };
    if &*identity.trust_domain != trust_domain {
        return Err(format!("{identity} is not of the trust domain {trust_domain}"));
    }
    Ok(identity.clone())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    #[test]
    fn a_certificate_proves_its_single_identity_of_this_trust_domain() {
        let certificate = |uris: &[&str]| {
            let mut params = CertificateParams::default();
            params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
            let key = KeyPair::generate().unwrap();
            params.self_signed(&key).unwrap().der().clone()
        };
        let good = "spiffe://cluster.local/ns/shop/sa/cart";
        assert_eq!(identity_of(&certificate(&[good]), "cluster.local"), Ok(good.parse().unwrap()));
        for (uris, reason) in [
            (&[good, "spiffe://cluster.local/ns/shop/sa/admin"][..], "2 identities"),
            (&[], "0 identities"),
            (&["spiffe://elsewhere/ns/shop/sa/cart"], "trust domain"),
            (&["https://cluster.local/ns/shop/sa/cart"], "0 identities"),
        ] {
            let found = identity_of(&certificate(uris), "cluster.local").unwrap_err();
            assert!(found.contains(reason), "{found}");
        }
    }
}
