//! Whether certificates chain to a root: what a stranger would check with the published root in hand.

use anyhow::{Context, bail};
use base64::Engine;
use rustls::{
    RootCertStore,
    client::verify_server_cert_signed_by_trust_anchor,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};

/// The PEM text inside a dump's base64.
///
/// # Errors
/// It is not base64.
pub fn decoded(base64: &str) -> anyhow::Result<Vec<u8>> {
    base64::engine::general_purpose::STANDARD.decode(base64).context("a dump's certificate is not base64")
}

/// How many certificates a PEM text holds.
pub fn count(pem: &[u8]) -> usize {
    CertificateDer::pem_slice_iter(pem).filter(Result::is_ok).count()
}

/// Verifies signatures and validity from the first certificate of `chain` (PEM) up to one of `roots` (PEM), now.
///
/// # Errors
/// What is wrong with the chain.
pub fn chains_to(chain: &[u8], roots: &[u8]) -> anyhow::Result<()> {
    let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>().context("reading the chain")?;
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots) {
        store.add(root.context("reading the roots")?).context("a root cannot be trusted")?;
    }
    let Some((leaf, intermediates)) = chain.split_first() else { bail!("the chain is empty") };
    let leaf = ParsedCertificate::try_from(leaf).context("reading the leaf")?;
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
    verify_server_cert_signed_by_trust_anchor(&leaf, &store, intermediates, UnixTime::now(), algorithms.all)?;
    Ok(())
}
