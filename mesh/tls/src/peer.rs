//! Identities in certificates.

use rustls::{CommonState, pki_types::CertificateDer};
use tropis_model::identity::Identity;
use x509_parser::{extensions::GeneralName, prelude::FromDer};

/// The identity that the peer of a finished handshake proved: the first SPIFFE URI of its leaf. `None` before the handshake ends, or
/// when the peer showed no certificate.
pub fn peer_identity(connection: &CommonState) -> Option<Identity> {
    identity_of(connection.peer_certificates()?.first()?)
}

/// The first SPIFFE URI of a certificate. This, and no other name in it, is who it stands for: policy, logs and metrics use it.
pub fn identity_of(certificate: &CertificateDer<'_>) -> Option<Identity> {
    identities_in(certificate).into_iter().next()
}

/// All SPIFFE URIs of a certificate that have the shape of our identities, in order. A certificate that cannot be read has none.
pub fn identities_in(certificate: &CertificateDer<'_>) -> Vec<Identity> {
    let Ok((_, certificate)) = x509_parser::certificate::X509Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let Ok(Some(names)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    uris.filter_map(|uri| match uri.parse() {
        Ok(identity) => Some(identity),
        Err(error) => {
            tracing::debug!(%error, "a URI in a certificate is not an identity: ignored");
            None
        }
    })
    .collect()
}
