//! Who is trusted: the checks of a peer's certificate in both directions.
//!
//! Chain, validity and key usage are webpki's work, through rustls. On top of it stands the SPIFFE identity: a server takes any client
//! of its own trust domain (policy decides later what it may do), a client takes only the server that it means to reach. Names other
//! than SPIFFE URIs never matter.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::verify_tls13_signature,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use tropis_model::identity::Identity;

use crate::{crypto::provider, peer};

/// The certificate is valid, but it is not the right peer's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerRefused {
    /// It names no identity.
    #[error("the peer's certificate has no SPIFFE identity")]
    NoIdentity,
    /// It belongs to another mesh.
    #[error("the peer is {found}, which is not of trust domain {trust_domain}")]
    OtherTrustDomain {
        /// Who it is.
        found: Identity,
        /// Our trust domain.
        trust_domain: Arc<str>,
    },
    /// It is not who was dialled.
    #[error("the peer is {}, expected {}", list(found), list(expected))]
    OtherIdentity {
        /// Who it says it is.
        found: Vec<Identity>,
        /// Who would have been right.
        expected: Vec<Identity>,
    },
}

fn list(identities: &[Identity]) -> String {
    if identities.is_empty() {
        return "nobody".to_owned();
    }
    identities.iter().map(Identity::to_string).collect::<Vec<_>>().join(" or ")
}

impl From<PeerRefused> for Error {
    fn from(refused: PeerRefused) -> Self {
        CertificateError::Other(OtherError(Arc::new(refused))).into()
    }
}

/// Whether a client with these identities (the first one counts) may shake hands with a server of `trust_domain`.
///
/// # Errors
/// It may not.
pub fn check_client(identity: Option<Identity>, trust_domain: &Arc<str>) -> Result<(), PeerRefused> {
    let found = identity.ok_or(PeerRefused::NoIdentity)?;
    if found.trust_domain == *trust_domain {
        return Ok(());
    }
    Err(PeerRefused::OtherTrustDomain { found, trust_domain: Arc::clone(trust_domain) })
}

/// Whether a server with these identities is one of those expected. Nobody expected means nobody is right.
///
/// # Errors
/// It is not.
pub fn check_server(found: Vec<Identity>, expected: &[Identity]) -> Result<(), PeerRefused> {
    if found.is_empty() {
        return Err(PeerRefused::NoIdentity);
    }
    if found.iter().any(|identity| expected.contains(identity)) {
        return Ok(());
    }
    Err(PeerRefused::OtherIdentity { found, expected: expected.to_vec() })
}

/// Accepts clients whose certificate chains to the roots and names an identity of the trust domain.
#[derive(Debug)]
pub(crate) struct TrustDomainClients {
    chain: Arc<dyn ClientCertVerifier>,
    trust_domain: Arc<str>,
}

impl TrustDomainClients {
    pub(crate) fn new(roots: Arc<RootCertStore>, trust_domain: Arc<str>) -> Result<Self, Error> {
        let chain = WebPkiClientVerifier::builder_with_provider(roots, provider())
            .clear_root_hint_subjects()
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        Ok(Self { chain, trust_domain })
    }
}

impl ClientCertVerifier for TrustDomainClients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A mesh has one authority: saying so in every handshake would only cost bytes.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        check_client(peer::identity_of(end_entity), &self.trust_domain)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Accepts only servers whose certificate chains to the roots and names one of the expected identities. The server's name and
/// address are not looked at: the identity is what was resolved.
#[derive(Debug)]
pub(crate) struct ExpectedServer {
    roots: Arc<RootCertStore>,
    expected: Vec<Identity>,
}

impl ExpectedServer {
    pub(crate) fn new(roots: Arc<RootCertStore>, expected: Vec<Identity>) -> Self {
        Self { roots, expected }
    }
}

impl ServerCertVerifier for ExpectedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let algorithms = provider().signature_verification_algorithms;
        let leaf = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&leaf, &self.roots, intermediates, now, algorithms.all)?;
        check_server(peer::identities_in(end_entity), &self.expected)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(text: &str) -> Identity {
        text.parse().unwrap()
    }

    #[test]
    fn a_client_must_be_of_our_trust_domain() {
        let ours: Arc<str> = "cluster.local".into();
        assert_eq!(check_client(Some(identity("spiffe://cluster.local/ns/a/sa/b")), &ours), Ok(()));
        assert_eq!(check_client(None, &ours), Err(PeerRefused::NoIdentity));
        for other in ["spiffe://cluster.local.evil/ns/a/sa/b", "spiffe://cluster/ns/a/sa/b", "spiffe://CLUSTER.LOCAL/ns/a/sa/b"] {
            assert!(matches!(check_client(Some(identity(other)), &ours), Err(PeerRefused::OtherTrustDomain { .. })), "{other}");
        }
    }

    #[test]
    fn a_server_must_be_exactly_who_was_expected() {
        let shop = identity("spiffe://td/ns/shop/sa/cart");
        let other = identity("spiffe://td/ns/shop/sa/cart2");
        assert_eq!(check_server(vec![shop.clone()], &[other.clone(), shop.clone()]), Ok(()));
        assert_eq!(check_server(vec![other.clone(), shop.clone()], std::slice::from_ref(&shop)), Ok(()));
        assert!(check_server(vec![other], std::slice::from_ref(&shop)).is_err());
        assert!(check_server(vec![shop.clone()], &[]).is_err(), "nobody expected, nobody right");
        assert!(check_server(vec![], &[shop]).is_err());
    }
}
