//! Service account tokens in the bound form of Kubernetes: a signed statement that a pod runs as an account on a node.
//!
//! The signature is checked against the issuer's public keys (a PEM file with one key, or a JWKS), the claims against what this mesh
//! asks for. Tokens that are not bound to a pod are refused: whether they are still good could not be told. The file is read again when
//! it is newer and a signature is of no known key, so that issuers can rotate their keys.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use arc_swap::ArcSwap;
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation, decode, decode_header, errors::ErrorKind, jwk::JwkSet};
use serde::Deserialize;
use thiserror::Error;
use tracing::{info, warn};
use tropis_telemetry::chain;

/// Difference between our clock and the issuer's that is forgiven.
const LEEWAY_SECONDS: u64 = 10;
/// Larger tokens are not looked at; one of Kubernetes has about 1.2 KiB.
const MAX_TOKEN_BYTES: usize = 16 << 10;

/// The keys cannot be read: tropisd does not start.
#[derive(Debug, Error)]
pub(crate) enum TokenKeysError {
    /// No file.
    #[error("cannot read the token key {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// No key in the file.
    #[error(
        "{path} holds no public key that can check tokens: an EC P-256 or RSA key as PEM, or a JWKS with at least one such key, is needed"
    )]
    NoKey {
        /// The file.
        path: PathBuf,
    },
}

/// A token that was not accepted, and why.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum RefusedToken {
    /// Not a JWT, or not a signed one.
    #[error("it is not a signed JWT")]
    Malformed,
    /// Signed in another way.
    #[error("its algorithm is {0}; ES256 and RS256 are accepted")]
    Algorithm(String),
    /// No key of the issuer signed it.
    #[error("its signature is not of the issuer's key")]
    Signature,
    /// Too late.
    #[error("it has expired; read the token file again")]
    Expired,
    /// Too early.
    #[error("it is not valid yet; compare the clocks")]
    NotYet,
    /// For somebody else.
    #[error("it is for another audience than {0:?}")]
    Audience(String),
    /// From somebody else.
    #[error("it is of another issuer than {0:?}")]
    Issuer(String),
    /// A claim is missing.
    #[error("its claim {0:?} is missing")]
    Missing(String),
    /// A claim is not what Kubernetes writes.
    #[error("its claims are not those of a Kubernetes service account token")]
    Claims,
    /// `sub` and `kubernetes.io` say different things.
    #[error("its subject {0:?} does not agree with its kubernetes.io claims")]
    Subject(String),
    /// Good for the account, but of no pod.
    #[error("it is not bound to a pod; project it into one (serviceAccountToken volume)")]
    NotBound,
}

/// What a token proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodToken {
    /// The pod's namespace.
    pub(crate) namespace: String,
    /// The account that it runs as.
    pub(crate) service_account: String,
    /// The pod's name.
    pub(crate) pod: String,
    /// The pod's `metadata.uid`.
    pub(crate) pod_uid: String,
    /// The node that it was bound to, if the issuer says so.
    pub(crate) node: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Claims {
    sub: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Option<KubernetesClaims>,
}

#[derive(Debug, Deserialize)]
struct KubernetesClaims {
    namespace: String,
    serviceaccount: NamedClaim,
    pod: Option<NamedClaim>,
    node: Option<NamedClaim>,
}

#[derive(Debug, Deserialize)]
struct NamedClaim {
    name: String,
    #[serde(default)]
    uid: String,
}

/// Checks tokens.
pub(crate) struct Tokens {
    path: PathBuf,
    keys: ArcSwap<Vec<Key>>,
    /// When the file was changed that the keys are of.
    changed: Mutex<Option<SystemTime>>,
    issuer: String,
    audience: String,
}

struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

impl Tokens {
    /// Accepts tokens of `issuer` for `audience` that one of the keys in the file signed.
    pub(crate) fn open(path: &Path, issuer: &str, audience: &str) -> Result<Self, TokenKeysError> {
        let changed = changed(path);
        let keys = ArcSwap::from_pointee(read_keys(path)?);
        Ok(Self { path: path.to_owned(), keys, changed: Mutex::new(changed), issuer: issuer.to_owned(), audience: audience.to_owned() })
    }

    /// The audience that tokens must be for.
    pub(crate) fn audience(&self) -> &str {
        &self.audience
    }

    /// What a token proves.
    pub(crate) fn check(&self, token: &str) -> Result<PodToken, RefusedToken> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(RefusedToken::Malformed);
        }
        let header = decode_header(token).map_err(|_| RefusedToken::Malformed)?;
        if !matches!(header.alg, Algorithm::ES256 | Algorithm::RS256) {
            return Err(RefusedToken::Algorithm(format!("{:?}", header.alg)));
        }
        match self.check_signed(token, &header) {
            Err(RefusedToken::Signature) if self.read_newer_keys() => self.check_signed(token, &header),
            checked => checked,
        }
    }

    fn check_signed(&self, token: &str, header: &Header) -> Result<PodToken, RefusedToken> {
        let mut refusal = RefusedToken::Signature;
        // A key that names itself is tried only for tokens that name it, or name none.
        let keys = self.keys.load();
        let candidates =
            keys.iter().filter(|key| key.algorithm == header.alg && (key.id.is_none() || header.kid.is_none() || key.id == header.kid));
        for key in candidates {
            match decode::<Claims>(token, &key.key, &self.validation(key.algorithm)) {
                Ok(data) => return pod_token(data.claims),
                Err(error) => refusal = self.refusal(error.kind()),
            }
            if refusal != RefusedToken::Signature {
                break;
            }
        }
        Err(refusal)
    }

    /// Whether there are other keys now. A file that cannot be used leaves the present ones in force.
    fn read_newer_keys(&self) -> bool {
        let mut known = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        let now = changed(&self.path);
        if now == *known {
            return false;
        }
        *known = now;
        match read_keys(&self.path) {
            Ok(keys) => {
                info!(path = %self.path.display(), keys = keys.len(), "token keys read again");
                self.keys.store(Arc::new(keys));
                true
            }
            Err(error) => {
                warn!(error = chain(&error), "token keys not read again; the present ones stay in force");
                false
            }
        }
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        validation.set_audience(&[&self.audience]);
        validation.set_issuer(&[&self.issuer]);
        validation.validate_nbf = true;
        validation.leeway = LEEWAY_SECONDS;
        validation
    }

    fn refusal(&self, kind: &ErrorKind) -> RefusedToken {
        match kind {
            ErrorKind::InvalidSignature | ErrorKind::InvalidAlgorithm => RefusedToken::Signature,
            ErrorKind::ExpiredSignature => RefusedToken::Expired,
            ErrorKind::ImmatureSignature => RefusedToken::NotYet,
            ErrorKind::InvalidAudience => RefusedToken::Audience(self.audience.clone()),
            ErrorKind::InvalidIssuer => RefusedToken::Issuer(self.issuer.clone()),
            ErrorKind::MissingRequiredClaim(name) => RefusedToken::Missing(name.clone()),
            ErrorKind::InvalidClaimFormat(_) | ErrorKind::InvalidSubject => RefusedToken::Claims,
            ErrorKind::Json(error) if error.is_data() => RefusedToken::Claims,
            _ => RefusedToken::Malformed,
        }
    }
}

fn pod_token(claims: Claims) -> Result<PodToken, RefusedToken> {
    let kubernetes = claims.kubernetes.ok_or_else(|| RefusedToken::Missing("kubernetes.io".to_owned()))?;
    let (namespace, service_account) = (kubernetes.namespace, kubernetes.serviceaccount.name);
    if claims.sub != format!("system:serviceaccount:{namespace}:{service_account}") {
        return Err(RefusedToken::Subject(claims.sub));
    }
    let pod = kubernetes.pod.filter(|pod| !pod.name.is_empty() && !pod.uid.is_empty()).ok_or(RefusedToken::NotBound)?;
    let node = kubernetes.node.map(|node| node.name).filter(|name| !name.is_empty());
    Ok(PodToken { namespace, service_account, pod: pod.name, pod_uid: pod.uid, node })
}

fn changed(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

fn read_keys(path: &Path) -> Result<Vec<Key>, TokenKeysError> {
    let text = fs::read(path).map_err(|cause| TokenKeysError::Read { path: path.to_owned(), cause })?;
    let keys = parse_keys(&text);
    if keys.is_empty() { Err(TokenKeysError::NoKey { path: path.to_owned() }) } else { Ok(keys) }
}

fn parse_keys(text: &[u8]) -> Vec<Key> {
    if let Ok(key) = DecodingKey::from_ec_pem(text) {
        return vec![Key { id: None, algorithm: Algorithm::ES256, key }];
    }
    if let Ok(key) = DecodingKey::from_rsa_pem(text) {
        return vec![Key { id: None, algorithm: Algorithm::RS256, key }];
    }
    let Ok(set) = serde_json::from_slice::<JwkSet>(text) else { return Vec::new() };
    let usable = |jwk: &jsonwebtoken::jwk::Jwk| {
        use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve};
        let algorithm = match &jwk.algorithm {
            AlgorithmParameters::EllipticCurve(parameters) if parameters.curve == EllipticCurve::P256 => Algorithm::ES256,
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            _ => return None,
        };
        let key = DecodingKey::from_jwk(jwk).ok()?;
        Some(Key { id: jwk.common.key_id.clone(), algorithm, key })
    };
    set.keys.iter().filter_map(usable).collect()
}

#[cfg(test)]
mod tests;
