//! A workload's certificate, with the TLS configurations made from it once and used for every handshake until it is replaced.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::NoServerSessionStorage,
    sign::{CertifiedKey, SingleCertAndKey},
};
use thiserror::Error;
use tropis_model::identity::Identity;
use x509_parser::prelude::FromDer;

use crate::{
    crypto::{ALPN_H2, VERSIONS, provider},
    peer,
    verify::{ExpectedServer, TrustDomainClients},
};

/// A certificate, its key, and the roots that its peers are checked against.
pub struct WorkloadCertificate {
    identity: Identity,
    chain: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    trusted: Arc<RootCertStore>,
    not_before: SystemTime,
    not_after: SystemTime,
    serial: String,
    server: Arc<ServerConfig>,
    key: Arc<CertifiedKey>,
}

/// What the authority answered is not a certificate that can be used. Nothing is installed.
#[derive(Debug, Error)]
pub enum InvalidCertificate {
    /// Leaf and trust bundle are required.
    #[error("the chain has {found} parts; a leaf and a trust bundle are needed")]
    ShortChain {
        /// How many there were.
        found: usize,
    },
    /// A part is not PEM, or not a certificate.
    #[error("part {part} of the chain cannot be read: {detail}")]
    Unreadable {
        /// Which part, from 0, the leaf.
        part: usize,
        /// What is wrong with it.
        detail: String,
    },
    /// There is no root that can be used.
    #[error("the trust bundle has no usable root")]
    NoRoots,
    /// It is somebody else's certificate.
    #[error("the certificate is for {found}, not for {expected}")]
    OtherIdentity {
        /// Who was asked for.
        expected: Identity,
        /// Who it names.
        found: String,
    },
    /// rustls refuses the pair.
    #[error("the certificate and its key cannot be used")]
    Key(#[source] rustls::Error),
}

impl WorkloadCertificate {
    /// Reads an answer of the authority (`IstioCertificateResponse.cert_chain`): leaf, intermediates, and last the trust bundle, which
    /// may hold several roots. Roots that cannot be read are skipped with a warning, as long as one remains.
    ///
    /// # Errors
    /// See [`InvalidCertificate`].
    pub fn from_pem(identity: &Identity, key: PrivateKeyDer<'static>, chain: &[String]) -> Result<Self, InvalidCertificate> {
        let [parts @ .., bundle] = chain else {
            return Err(InvalidCertificate::ShortChain { found: chain.len() });
        };
        if parts.is_empty() {
            return Err(InvalidCertificate::ShortChain { found: chain.len() });
        }
        let mut certificates = Vec::with_capacity(parts.len());
        for (part, pem) in parts.iter().enumerate() {
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                certificates.push(certificate.map_err(|error| InvalidCertificate::Unreadable { part, detail: error.to_string() })?);
            }
        }
        let mut roots = Vec::new();
        for root in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
            match root {
                Ok(root) => roots.push(root),
                Err(error) => tracing::warn!(%error, %identity, "a root in the trust bundle cannot be read: skipped"),
            }
        }
        Self::new(identity, key, certificates, roots)
    }

    /// Puts a certificate together: leaf first, then intermediates; roots apart, as they are never sent.
    ///
    /// # Errors
    /// See [`InvalidCertificate`].
    pub fn new(
        identity: &Identity,
        key: PrivateKeyDer<'static>,
        chain: Vec<CertificateDer<'static>>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, InvalidCertificate> {
        let leaf = chain.first().ok_or(InvalidCertificate::ShortChain { found: 0 })?;
        let found = peer::identity_of(leaf);
        if found.as_ref() != Some(identity) {
            let found = found.map_or_else(|| "nobody".to_owned(), |found| found.to_string());
            return Err(InvalidCertificate::OtherIdentity { expected: identity.clone(), found });
        }
        let facts = LeafFacts::read(leaf)?;
        let mut trusted = RootCertStore::empty();
        let (_, ignored) = trusted.add_parsable_certificates(roots.iter().cloned());
        if ignored > 0 {
            tracing::warn!(%identity, ignored, "roots in the trust bundle cannot be used: skipped");
        }
        if trusted.is_empty() {
            return Err(InvalidCertificate::NoRoots);
        }
        let trusted = Arc::new(trusted);
        let key = Arc::new(CertifiedKey::from_der(chain.clone(), key, &provider()).map_err(InvalidCertificate::Key)?);
        let server = server_config(identity, &trusted, &key).map_err(InvalidCertificate::Key)?;
        let LeafFacts { not_before, not_after, serial } = facts;
        Ok(Self { identity: identity.clone(), chain, roots, trusted, not_before, not_after, serial, server, key })
    }

    /// Whom it proves.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// From when it is valid.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// Until when it is valid.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Its serial number, decimal.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Leaf and intermediates.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The trust bundle.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// For accepting tunnels as this workload: TLS 1.3, ALPN `h2`, a client certificate of our trust domain required. Made once.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// For opening a tunnel as this workload to a peer that must prove one of `expected`; with none expected every handshake fails.
    /// No SNI is sent, and no session is resumed, since a resumed one would not check the peer again.
    ///
    /// # Errors
    /// rustls refuses the pair; it did not when the certificate was made.
    pub fn client_config(&self, expected: &[Identity]) -> Result<Arc<ClientConfig>, rustls::Error> {
        let verifier = Arc::new(ExpectedServer::new(Arc::clone(&self.trusted), expected.to_vec()));
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&self.key))));
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        config.enable_sni = false;
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}

impl fmt::Debug for WorkloadCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadCertificate")
            .field("identity", &self.identity)
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .field("key", &"[redacted]")
            .finish_non_exhaustive()
    }
}

fn server_config(identity: &Identity, trusted: &Arc<RootCertStore>, key: &Arc<CertifiedKey>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let clients = TrustDomainClients::new(Arc::clone(trusted), Arc::clone(&identity.trust_domain))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)?
        .with_client_cert_verifier(Arc::new(clients))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(key))));
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

struct LeafFacts {
    not_before: SystemTime,
    not_after: SystemTime,
    serial: String,
}

impl LeafFacts {
    fn read(leaf: &CertificateDer<'_>) -> Result<Self, InvalidCertificate> {
        let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(leaf)
            .map_err(|error| InvalidCertificate::Unreadable { part: 0, detail: error.to_string() })?;
        let validity = certificate.validity();
        Ok(Self {
            not_before: from_unix(validity.not_before.timestamp()),
            not_after: from_unix(validity.not_after.timestamp()),
            serial: certificate.tbs_certificate.serial.to_string(),
        })
    }
}

/// Seconds since 1970, which may be before it in a certificate from elsewhere.
fn from_unix(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let point = if seconds < 0 { SystemTime::UNIX_EPOCH.checked_sub(distance) } else { SystemTime::UNIX_EPOCH.checked_add(distance) };
    point.unwrap_or(SystemTime::UNIX_EPOCH)
}
