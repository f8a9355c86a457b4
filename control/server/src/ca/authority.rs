//! The root key and what it signs.
//!
//! The key is made at the first start and reused for ever after: `ca-key.pem` (0600) and `ca-cert.pem` in a folder of mode 0700. The
//! key is written first, so a crash in between leaves a key whose certificate is made at the next start.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use thiserror::Error;
use time::OffsetDateTime;
use tropis_model::identity::Identity;

/// Ten years: replacing a root is a project, as it is with Istio's own root.
const ROOT_LIFETIME: Duration = Duration::from_secs(3650 * 24 * 3600);
/// Certificates start this much in the past, for peers whose clock is behind (Istio: two minutes).
const CLOCK_SKEW: Duration = Duration::from_secs(120);
/// A CSR of one key and one name is about 500 bytes.
const MAX_CSR_BYTES: usize = 16 << 10;
/// The least that is asked of an RSA key: 2048 bits.
const MIN_RSA_BYTES: usize = 256;

/// The authority cannot be opened: tropisd does not start.
#[derive(Debug, Error)]
pub(crate) enum AuthorityError {
    /// A file cannot be read or written.
    #[error("cannot {action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// A file of the authority does not hold what it should.
    #[error("{path} is not a usable {what}; restore it from a backup, or move the folder away for a new authority")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What it should be.
        what: &'static str,
        /// What is wrong with it.
        #[source]
        cause: rcgen::Error,
    },
    /// The certificate is there, and its key is not.
    #[error("{certificate} is there without {key}; restore the key, or move both away for a new authority")]
    KeyMissing {
        /// The certificate.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// The certificate is of another key.
    #[error("{certificate} is not the certificate of {key}")]
    Mismatch {
        /// The certificate.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// The root has ended.
    #[error("the root certificate {path} expired on {not_after}; move the folder away for a new authority")]
    Expired {
        /// The certificate.
        path: PathBuf,
        /// When.
        not_after: OffsetDateTime,
    },
    /// The crypto library failed.
    #[error("cannot make the root certificate")]
    Make(#[source] rcgen::Error),
}

/// A certificate was not signed; the caller may correct its request.
#[derive(Debug, Error)]
pub(crate) enum SignError {
    /// The CSR is longer than any good one.
    #[error("the certificate signing request has {0} bytes, at most {MAX_CSR_BYTES} are read")]
    TooLong(usize),
    /// Not a CSR, or not signed by its own key.
    #[error("the certificate signing request cannot be used")]
    BadRequest(#[source] rcgen::Error),
    /// The key is too short to be worth a certificate.
    #[error("the key is an RSA key of less than 2048 bits")]
    WeakKey,
    /// The crypto library failed.
    #[error("cannot sign")]
    Sign(#[source] rcgen::Error),
}

/// A signed leaf.
#[derive(Debug, Clone)]
pub(crate) struct Signed {
    /// The leaf, PEM.
    pub(crate) certificate: String,
    /// When it ends.
    pub(crate) not_after: OffsetDateTime,
    /// Its serial number, hexadecimal.
    pub(crate) serial: String,
}

/// The mesh's root.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root_pem: String,
    root: CertificateDer<'static>,
    not_after: OffsetDateTime,
}

impl Authority {
    /// Opens the authority in `folder`, or makes one there.
    pub(crate) fn open(folder: &Path, trust_domain: &str, now: OffsetDateTime) -> Result<Self, AuthorityError> {
        make_private_folder(folder)?;
        let (key_path, certificate_path) = (folder.join("ca-key.pem"), folder.join("ca-cert.pem"));
        let (key_pem, root_pem) = (read(&key_path)?, read(&certificate_path)?);
        let (key, root_pem) = match (key_pem, root_pem) {
            (Some(key_pem), Some(root_pem)) => {
                keep_private(&key_path)?;
                (parse_key(&key_path, &key_pem)?, root_pem)
            }
            (Some(key_pem), None) => {
                keep_private(&key_path)?;
                let key = parse_key(&key_path, &key_pem)?;
                let root_pem = make_root(&key, trust_domain, now)?;
                write_file(&certificate_path, &root_pem, 0o644)?;
                (key, root_pem)
            }
            (None, Some(_)) => return Err(AuthorityError::KeyMissing { certificate: certificate_path, key: key_path }),
            (None, None) => {
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(AuthorityError::Make)?;
                write_file(&key_path, &key.serialize_pem(), 0o600)?;
                let root_pem = make_root(&key, trust_domain, now)?;
                write_file(&certificate_path, &root_pem, 0o644)?;
                (key, root_pem)
            }
        };
        Self::from_parts(key, root_pem, &key_path, certificate_path, now)
    }

    fn from_parts(
        key: KeyPair,
        root_pem: String,
        key_path: &Path,
        certificate_path: PathBuf,
        now: OffsetDateTime,
    ) -> Result<Self, AuthorityError> {
        let unusable = |cause| AuthorityError::Unusable { path: certificate_path.clone(), what: "root certificate", cause };
        let root = CertificateDer::from_pem_slice(root_pem.as_bytes()).map_err(|_| unusable(rcgen::Error::CouldNotParseCertificate))?;
        let not_after = {
            let (_, parsed) = x509_parser::parse_x509_certificate(&root).map_err(|_| unusable(rcgen::Error::CouldNotParseCertificate))?;
            if parsed.public_key().raw != key.subject_public_key_info().as_slice() {
                return Err(AuthorityError::Mismatch { certificate: certificate_path, key: key_path.to_owned() });
            }
            parsed.validity().not_after.to_datetime()
        };
        if not_after <= now {
            return Err(AuthorityError::Expired { path: certificate_path, not_after });
        }
        let issuer = Issuer::from_ca_cert_der(&root, key).map_err(unusable)?;
        Ok(Self { issuer, root_pem, root: root.into_owned(), not_after })
    }

    /// The root certificate, PEM: what proxies trust.
    pub(crate) fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// The root certificate.
    pub(crate) fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// When the root ends.
    pub(crate) fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// Signs the key of a PEM CSR for `identity`. Nothing else of the CSR is used.
    pub(crate) fn sign(&self, csr: &str, identity: &Identity, lifetime: Duration, now: OffsetDateTime) -> Result<Signed, SignError> {
        if csr.len() > MAX_CSR_BYTES {
            return Err(SignError::TooLong(csr.len()));
        }
        let request = CertificateSigningRequestParams::from_pem(csr).map_err(SignError::BadRequest)?;
        let is_rsa = request.public_key.algorithm() == &rcgen::PKCS_RSA_SHA256
            || request.public_key.algorithm() == &rcgen::PKCS_RSA_SHA384
            || request.public_key.algorithm() == &rcgen::PKCS_RSA_SHA512;
        if is_rsa && request.public_key.der_bytes().len() < MIN_RSA_BYTES {
            return Err(SignError::WeakKey);
        }
        self.sign_key(&request.public_key, identity, &[], lifetime, now)
    }

    /// Signs `key` for `identity` and, for a server, DNS names. The subject is empty, hence the names are critical (RFC 5280
    /// §4.2.1.6; X.509-SVID §4.1). Never longer than the root itself.
    pub(crate) fn sign_key(
        &self,
        key: &impl PublicKeyData,
        identity: &Identity,
        dns_names: &[String],
        lifetime: Duration,
        now: OffsetDateTime,
    ) -> Result<Signed, SignError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names.push(SanType::URI(identity.to_string().try_into().map_err(SignError::Sign)?));
        for name in dns_names {
            params.subject_alt_names.push(SanType::DnsName(name.clone().try_into().map_err(SignError::Sign)?));
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = now - CLOCK_SKEW;
        params.not_after = (now + lifetime).min(self.not_after);
        let serial = random_serial();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let certificate = params.signed_by(key, &self.issuer).map_err(SignError::Sign)?;
        Ok(Signed {
            certificate: certificate.pem(),
            not_after: params.not_after,
            serial: serial.iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }
}

/// 126 random bits, positive and of full length (RFC 5280 §4.1.2.2 allows 20 octets).
fn random_serial() -> [u8; 16] {
    let mut serial: [u8; 16] = rand::random();
    serial[0] = (serial[0] & 0x3f) | 0x40;
    serial
}

fn make_root(key: &KeyPair, trust_domain: &str, now: OffsetDateTime) -> Result<String, AuthorityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain);
    params.distinguished_name.push(DnType::CommonName, "Tropis root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + ROOT_LIFETIME;
    params.serial_number = Some(SerialNumber::from_slice(&random_serial()));
    Ok(params.self_signed(key).map_err(AuthorityError::Make)?.pem())
}

fn parse_key(path: &Path, pem: &str) -> Result<KeyPair, AuthorityError> {
    KeyPair::from_pem(pem).map_err(|cause| AuthorityError::Unusable { path: path.to_owned(), what: "private key", cause })
}

fn make_private_folder(folder: &Path) -> Result<(), AuthorityError> {
    let failed = |action| move |cause| AuthorityError::File { action, path: folder.to_owned(), cause };
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed("create the folder"))?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).map_err(failed("set the mode of"))
}

/// Takes a key away from everybody but its owner, and says so.
fn keep_private(path: &Path) -> Result<(), AuthorityError> {
    let failed = |action| move |cause| AuthorityError::File { action, path: path.to_owned(), cause };
    let mode = fs::metadata(path).map_err(failed("read the mode of"))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        tracing::warn!(path = %path.display(), mode = format!("{mode:o}"), "the key could be read by others; its mode is 0600 now");
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed("set the mode of"))?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<Option<String>, AuthorityError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(AuthorityError::File { action: "read", path: path.to_owned(), cause }),
    }
}

/// Writes a file as a whole or not at all, with this mode from its first moment.
pub(crate) fn write_file(path: &Path, content: &str, mode: u32) -> Result<(), AuthorityError> {
    let failed = |action| move |cause| AuthorityError::File { action, path: path.to_owned(), cause };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let fresh = path.with_file_name(name);
    // What a crash left behind could have another mode.
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("replace")(error)),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh).map_err(failed("create"))?;
    file.write_all(content.as_bytes()).and_then(|()| file.sync_all()).map_err(failed("write"))?;
    fs::rename(&fresh, path).map_err(failed("rename to"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn identity() -> Identity {
        Identity::new("cluster.local", "shop", "cart")
    }

    fn csr() -> String {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap()
    }

    fn open(folder: &Path) -> Authority {
        Authority::open(folder, "cluster.local", OffsetDateTime::now_utc()).unwrap()
    }

    #[test]
    fn the_authority_survives_a_restart_and_keeps_its_key_to_itself() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("ca");
        let first = open(&folder).root_pem().to_owned();
        assert_eq!(open(&folder).root_pem(), first);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&folder.join("ca-key.pem"))), (0o700, 0o600));
        fs::set_permissions(folder.join("ca-key.pem"), fs::Permissions::from_mode(0o644)).unwrap();
        open(&folder);
        assert_eq!(mode(&folder.join("ca-key.pem")), 0o600);
    }

    #[test]
    fn broken_files_are_named_and_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (key, certificate) = (folder.path().join("ca-key.pem"), folder.path().join("ca-cert.pem"));
        open(folder.path());
        let try_open = |now| Authority::open(folder.path(), "cluster.local", now).map(|_| ());
        let now = OffsetDateTime::now_utc();
        assert!(matches!(try_open(now + ROOT_LIFETIME), Err(AuthorityError::Expired { .. })));

        let good_key = fs::read_to_string(&key).unwrap();
        fs::write(&key, "nonsense").unwrap();
        assert!(matches!(try_open(now), Err(AuthorityError::Unusable { what: "private key", .. })));
        fs::write(&key, KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap().serialize_pem()).unwrap();
        assert!(matches!(try_open(now), Err(AuthorityError::Mismatch { .. })));
        fs::remove_file(&key).unwrap();
        assert!(matches!(try_open(now), Err(AuthorityError::KeyMissing { .. })));
        fs::write(&key, good_key).unwrap();
        fs::remove_file(&certificate).unwrap();
        assert!(try_open(now).is_ok(), "a crash between the two files is made good");
    }

    #[test]
    fn a_leaf_has_one_critical_name_and_chains_to_the_root() {
        let folder = tempfile::tempdir().unwrap();
        let authority = open(folder.path());
        let now = OffsetDateTime::now_utc();
        let signed = authority.sign(&csr(), &identity(), DAY, now).unwrap();
        let der = CertificateDer::from_pem_slice(signed.certificate.as_bytes()).unwrap();
        let (_, leaf) = x509_parser::parse_x509_certificate(&der).unwrap();
        let (_, root) = x509_parser::parse_x509_certificate(authority.root()).unwrap();
        leaf.verify_signature(Some(root.public_key())).unwrap();
        let names = leaf.subject_alternative_name().unwrap().unwrap();
        assert!(names.critical);
        let [x509_parser::extensions::GeneralName::URI(uri)] = names.value.general_names.as_slice() else { panic!("one name") };
        assert_eq!(*uri, "spiffe://cluster.local/ns/shop/sa/cart");
        assert!(!leaf.is_ca() && leaf.subject().iter().next().is_none());
        assert_eq!(leaf.validity().not_after.timestamp(), (now + DAY).unix_timestamp());
        assert_eq!(leaf.validity().not_before.timestamp(), (now - CLOCK_SKEW).unix_timestamp());
        let again = authority.sign(&csr(), &identity(), DAY, now).unwrap();
        assert_ne!(again.serial, signed.serial);
        let beyond = authority.sign(&csr(), &identity(), ROOT_LIFETIME * 2, now).unwrap();
        assert_eq!(beyond.not_after, authority.not_after(), "no leaf outlives its root");
    }

    #[test]
    fn a_request_that_its_key_did_not_sign_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let authority = open(folder.path());
        let sign = |csr: &str| authority.sign(csr, &identity(), DAY, OffsetDateTime::now_utc()).map(|_| ());
        assert!(matches!(sign("nonsense"), Err(SignError::BadRequest(_))));
        assert!(matches!(sign(&"x".repeat(MAX_CSR_BYTES + 1)), Err(SignError::TooLong(_))));
        let good = csr();
        let body: String = good.lines().filter(|line| !line.starts_with("-----")).collect();
        let mut der = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, body).unwrap();
        *der.last_mut().unwrap() ^= 1;
        let tampered = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
        let tampered = format!("-----BEGIN CERTIFICATE REQUEST-----\n{tampered}\n-----END CERTIFICATE REQUEST-----\n");
        assert!(matches!(sign(&tampered), Err(SignError::BadRequest(_))));
    }
}
