//! A request for a certificate: a new key and a CSR for it.

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType, string::Ia5String};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use thiserror::Error;
use tropis_model::identity::Identity;

/// A new key (ECDSA P-256) and the CSR that goes to the authority. Every request has a key of its own.
pub struct CertificateRequest {
    /// The CSR in PEM: empty subject, one critical subject alternative name, the identity's URI.
    pub csr_pem: String,
    /// The private key, which never leaves the process.
    pub key: PrivateKeyDer<'static>,
}

/// The request cannot be made.
#[derive(Debug, Error)]
#[error("cannot make a certificate request for {identity}")]
pub struct RequestError {
    /// For whom.
    pub identity: Identity,
    /// Why.
    #[source]
    pub source: rcgen::Error,
}

impl CertificateRequest {
    /// Makes a key and a CSR.
    ///
    /// # Errors
    /// The identity cannot be written as a URI (characters outside ASCII), or the random generator failed.
    pub fn new(identity: &Identity) -> Result<Self, RequestError> {
        let make = || {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
            let mut parameters = CertificateParams::default();
            parameters.distinguished_name = DistinguishedName::new();
            parameters.subject_alt_names = vec![SanType::URI(Ia5String::try_from(identity.to_string())?)];
            let csr_pem = parameters.serialize_request(&key)?.pem()?;
            Ok(Self { csr_pem, key: PrivatePkcs8KeyDer::from(key.serialize_der()).into() })
        };
        make().map_err(|source| RequestError { identity: identity.clone(), source })
    }
}

impl std::fmt::Debug for CertificateRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateRequest").field("csr_pem", &self.csr_pem).field("key", &"[redacted]").finish()
    }
}

#[cfg(test)]
mod tests {
    use x509_parser::{
        certification_request::X509CertificationRequest, extensions::ParsedExtension, pem::parse_x509_pem, prelude::FromDer,
    };

    use super::*;

    #[test]
    fn the_csr_has_an_empty_subject_and_one_critical_uri() {
        let identity = Identity::new("cluster.local", "shop", "cart");
        let request = CertificateRequest::new(&identity).unwrap();
        let (_, pem) = parse_x509_pem(request.csr_pem.as_bytes()).unwrap();
        assert_eq!(pem.label, "CERTIFICATE REQUEST");
        let (_, csr) = X509CertificationRequest::from_der(&pem.contents).unwrap();
        assert_eq!(csr.certification_request_info.subject.iter().count(), 0);
        assert!(csr.verify_signature().is_ok());
        let extensions: Vec<_> = csr.requested_extensions().unwrap().collect();
        let [ParsedExtension::SubjectAlternativeName(names)] = extensions[..] else { panic!("{extensions:?}") };
        assert_eq!(names.general_names, vec![x509_parser::extensions::GeneralName::URI("spiffe://cluster.local/ns/shop/sa/cart")]);
        let der = pem.contents;
        // id-ce-subjectAltName, then BOOLEAN TRUE: critical, as the subject is empty (RFC 5280 §4.2.1.6).
        let critical = [0x06, 0x03, 0x55, 0x1d, 0x11, 0x01, 0x01, 0xff];
        assert!(der.windows(critical.len()).any(|window| window == critical));
    }

    #[test]
    fn the_key_is_never_shown() {
        let request = CertificateRequest::new(&Identity::new("td", "a", "b")).unwrap();
        assert!(format!("{request:?}").contains("[redacted]"));
    }
}
