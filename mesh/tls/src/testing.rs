//! A certificate authority inside the process, for tests of whatever needs certificates. It signs at once, or fails, or waits, as the
//! test says, and counts.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use tropis_model::identity::Identity;

use crate::{
    authority::{CertificateAuthority, SignError, Signing},
    certificate::WorkloadCertificate,
};

/// An authority with a root of its own.
pub struct TestAuthority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    root_pem: String,
    behaviour: Mutex<Behaviour>,
    signed: AtomicUsize,
    under_way: AtomicUsize,
    most_under_way: AtomicUsize,
}

/// How the authority behaves from now on.
#[derive(Debug, Clone, Copy)]
pub struct Behaviour {
    /// Whether it refuses.
    pub refuses: bool,
    /// How long it thinks.
    pub takes: Duration,
    /// The time for which it signs, from [`Self::starts_ago`] before now.
    pub lifetime: Duration,
    /// How long ago what it signs began to be valid.
    pub starts_ago: Duration,
}

impl Default for Behaviour {
    fn default() -> Self {
        let day = Duration::from_secs(24 * 60 * 60);
        Self { refuses: false, takes: Duration::ZERO, lifetime: day, starts_ago: Duration::from_secs(60) }
    }
}

impl TestAuthority {
    /// A new authority, trusted by nobody else.
    ///
    /// # Panics
    /// The random generator failed.
    #[allow(clippy::new_without_default, reason = "a key is made: not what a default should do")]
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("a key can be made");
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::OrganizationName, "tropis test");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = parameters.self_signed(&key).expect("a root can be signed");
        Self {
            issuer: Issuer::new(parameters, key),
            root: root.der().clone(),
            root_pem: root.pem(),
            behaviour: Mutex::default(),
            signed: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            most_under_way: AtomicUsize::new(0),
        }
    }

    /// Changes its behaviour.
    pub fn behave(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap_or_else(PoisonError::into_inner) = behaviour;
    }

    /// How many requests it has answered.
    pub fn signed(&self) -> usize {
        self.signed.load(Ordering::SeqCst)
    }

    /// The most requests that were under way at once.
    pub fn most_under_way(&self) -> usize {
        self.most_under_way.load(Ordering::SeqCst)
    }

    /// Its root.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// Signs for these URIs (the first is who it is for), valid as the behaviour says.
    ///
    /// # Panics
    /// A URI is not ASCII.
    pub fn issue(&self, identity: &Identity) -> WorkloadCertificate {
        let (chain, key) = self.issue_for(&[&identity.to_string()]);
        WorkloadCertificate::new(identity, key, chain, vec![self.root.clone()]).expect("what we signed is usable")
    }

    /// Signs a certificate with exactly these URIs and gives it with its key.
    ///
    /// # Panics
    /// A URI is not ASCII.
    pub fn issue_for(&self, uris: &[&str]) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let behaviour = *self.behaviour.lock().unwrap_or_else(PoisonError::into_inner);
        let key = KeyPair::generate().expect("a key can be made");
        let parameters = self.leaf_parameters(uris, behaviour);
        let leaf = parameters.signed_by(&key, &self.issuer).expect("a leaf can be signed");
        (vec![leaf.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
    }

    /// Signs the key of a CSR for `identity`, and gives the chain as the RPC does: leaf, then the trust bundle.
    ///
    /// # Panics
    /// The CSR cannot be read.
    pub fn sign_csr(&self, csr_pem: &str, identity: &Identity) -> Vec<String> {
        let mut request = CertificateSigningRequestParams::from_pem(csr_pem).expect("a CSR");
        let behaviour = *self.behaviour.lock().unwrap_or_else(PoisonError::into_inner);
        request.params = self.leaf_parameters(&[&identity.to_string()], behaviour);
        let leaf = request.signed_by(&self.issuer).expect("a leaf can be signed");
        vec![leaf.pem(), self.root_pem()]
    }

    /// Its root in PEM.
    pub fn root_pem(&self) -> String {
        self.root_pem.clone()
    }

    /// A certificate for a server with a DNS name, as the control plane has: certificate and key in PEM.
    ///
    /// # Panics
    /// The name is not one.
    pub fn issue_server(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().expect("a key can be made");
        let parameters = CertificateParams::new([name.to_owned()]).expect("a name");
        let leaf = parameters.signed_by(&key, &self.issuer).expect("a leaf can be signed");
        (leaf.pem(), key.serialize_pem())
    }

    fn leaf_parameters(&self, uris: &[&str], behaviour: Behaviour) -> CertificateParams {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = DistinguishedName::new();
        parameters.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().expect("ASCII"))).collect();
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.not_before = OffsetDateTime::now_utc() - behaviour.starts_ago;
        parameters.not_after = parameters.not_before + behaviour.lifetime;
        parameters
    }

    async fn answer(&self, identity: &Identity) -> Result<WorkloadCertificate, SignError> {
        let behaviour = *self.behaviour.lock().unwrap_or_else(PoisonError::into_inner);
        let under_way = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_under_way.fetch_max(under_way, Ordering::SeqCst);
        if !behaviour.takes.is_zero() {
            tokio::time::sleep(behaviour.takes).await;
        }
        self.under_way.fetch_sub(1, Ordering::SeqCst);
        self.signed.fetch_add(1, Ordering::SeqCst);
        if behaviour.refuses {
            let status = tonic::Status::unauthenticated("the test says no");
            return Err(SignError::Refused { code: status.code(), source: Box::new(status) });
        }
        Ok(self.issue(identity))
    }
}

impl CertificateAuthority for TestAuthority {
    fn sign<'a>(&'a self, identity: &'a Identity) -> Signing<'a> {
        Box::pin(self.answer(identity))
    }
}
