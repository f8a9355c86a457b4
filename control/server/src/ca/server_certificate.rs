//! The certificate that tropisd serves with: signed by its own authority, replaced at half life while connections go on.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use thiserror::Error;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use tropis_model::identity::Identity;
use tropis_telemetry::chain;

use super::authority::{Authority, SignError};

/// Wait before trying again when a renewal failed; half a lifetime is left by then.
const RETRY: Duration = Duration::from_secs(10);

/// The certificate could not be made.
#[derive(Debug, Error)]
pub(crate) enum ServerCertificateError {
    /// No key.
    #[error("cannot make a key")]
    Key(#[source] rcgen::Error),
    /// No signature.
    #[error("cannot sign the server certificate")]
    Sign(#[source] SignError),
    /// The TLS library does not take it.
    #[error("the server certificate cannot be used")]
    Use(#[source] rustls::Error),
}

/// Answers every handshake with the certificate of the day.
#[derive(Debug)]
pub(crate) struct ServerCertificate {
    current: ArcSwap<CertifiedKey>,
    identity: Identity,
    dns_names: Vec<String>,
    lifetime: Duration,
}

impl ServerCertificate {
    /// The first certificate.
    pub(crate) fn new(
        authority: &Authority,
        provider: &CryptoProvider,
        identity: Identity,
        dns_names: Vec<String>,
        lifetime: Duration,
    ) -> Result<Self, ServerCertificateError> {
        let first = issue(authority, provider, &identity, &dns_names, lifetime)?;
        Ok(Self { current: ArcSwap::from_pointee(first), identity, dns_names, lifetime })
    }

    /// Renews at half life until `stop`.
    pub(crate) async fn keep_fresh(&self, authority: &Authority, provider: &CryptoProvider, stop: CancellationToken) {
        let mut wait = self.lifetime / 2;
        loop {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => return,
            }
            wait = match issue(authority, provider, &self.identity, &self.dns_names, self.lifetime) {
                Ok(fresh) => {
                    self.current.store(Arc::new(fresh));
                    info!(identity = %self.identity, "server certificate renewed");
                    self.lifetime / 2
                }
                Err(error) => {
                    error!(error = chain(&error), "server certificate not renewed; the old one is served until its end");
                    RETRY.min(self.lifetime / 10)
                }
            };
        }
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

fn issue(
    authority: &Authority,
    provider: &CryptoProvider,
    identity: &Identity,
    dns_names: &[String],
    lifetime: Duration,
) -> Result<CertifiedKey, ServerCertificateError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(ServerCertificateError::Key)?;
    let signed =
        authority.sign_key(&key, identity, dns_names, lifetime, OffsetDateTime::now_utc()).map_err(ServerCertificateError::Sign)?;
    let leaf = CertificateDer::from_pem_slice(signed.certificate.as_bytes())
        .map_err(|_| ServerCertificateError::Use(rustls::Error::General("the leaf is not PEM".into())))?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = provider.key_provider.load_private_key(key).map_err(ServerCertificateError::Use)?;
    Ok(CertifiedKey::new(vec![leaf.into_owned()], key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_renewed_at_half_life() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open(folder.path(), "cluster.local", OffsetDateTime::now_utc()).unwrap();
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let identity = Identity::new("cluster.local", "istio-system", "istiod");
        let names = vec!["istiod.istio-system.svc".to_owned()];
        let lifetime = Duration::from_secs(1);
        let served = ServerCertificate::new(&authority, &provider, identity, names, lifetime).unwrap();
        let leaf = || served.current.load().cert[0].clone();
        let (first, started) = (leaf(), std::time::Instant::now());
        let renewed = async {
            while leaf() == first {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            () = served.keep_fresh(&authority, &provider, CancellationToken::new()) => {}
            () = renewed => {}
            () = tokio::time::sleep(lifetime * 20) => panic!("not renewed"),
        }
        assert!(started.elapsed() >= lifetime / 2);
    }
}
