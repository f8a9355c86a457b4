//! The token issuer: service account tokens in the bound shape of Kubernetes, signed with a key of the run.
//!
//! The private key stays in `state/token.key` (0600); tropisd checks tokens against `state/token.pub`, as it would against an
//! issuer's published keys.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::{Value, json};

/// Who issues.
pub const ISSUER: &str = "https://kubernetes.default.svc";
/// The audience of tokens for the API server, which pods get unless they ask otherwise.
pub const DEFAULT_AUDIENCE: &str = "https://kubernetes.default.svc";
/// The audience that tropisd wants.
pub const MESH_AUDIENCE: &str = "istio-ca";
/// How long a token is good unless its volume says otherwise (Kubernetes' default).
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(3600);

/// The issuer of a run.
pub struct TokenIssuer {
    key: EncodingKey,
}

impl std::fmt::Debug for TokenIssuer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("TokenIssuer([redacted])")
    }
}

/// Who a token is for: a pod on a node, as a service account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bearer {
    /// The namespace of pod and account.
    pub namespace: String,
    /// The account's name.
    pub service_account: String,
    /// The account's uid.
    pub service_account_uid: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid.
    pub pod_uid: String,
    /// The node's name.
    pub node: String,
    /// The node's uid.
    pub node_uid: String,
}

/// The issuer cannot work.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The key could not be made or read by the signing library.
    #[error("the token key is unusable")]
    Key(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A key file could not be written.
    #[error("cannot write {0}")]
    Write(String, #[source] io::Error),
    /// Signing failed.
    #[error("cannot sign a token")]
    Sign(#[from] jsonwebtoken::errors::Error),
}

impl TokenIssuer {
    /// Makes a key pair and writes both halves below `folder`.
    pub fn create(folder: &Path) -> Result<Self, TokenError> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| TokenError::Key(error.into()))?;
        let private = pair.serialize_pem();
        write(&folder.join("token.key"), private.as_bytes(), 0o600)?;
        write(&folder.join("token.pub"), pair.public_key_pem().as_bytes(), 0o600)?;
        let key = EncodingKey::from_ec_pem(private.as_bytes()).map_err(|error| TokenError::Key(error.into()))?;
        Ok(Self { key })
    }

    /// A token for `bearer`, good for `lifetime` from `now`.
    pub fn issue(&self, bearer: &Bearer, audiences: &[String], now: SystemTime, lifetime: Duration) -> Result<String, TokenError> {
        let claims = claims(bearer, audiences, now, lifetime, &crate::cluster::ids::random_uid());
        Ok(jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.key)?)
    }
}

/// The claims of a bound token (Kubernetes, "Managing Service Accounts", TokenRequest API).
fn claims(bearer: &Bearer, audiences: &[String], now: SystemTime, lifetime: Duration, id: &str) -> Value {
    let issued = now.duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    json!({
        "iss": ISSUER,
        "aud": audiences,
        "sub": format!("system:serviceaccount:{}:{}", bearer.namespace, bearer.service_account),
        "iat": issued,
        "nbf": issued,
        "exp": issued + lifetime.as_secs(),
        "jti": id,
        "kubernetes.io": {
            "namespace": bearer.namespace,
            "node": { "name": bearer.node, "uid": bearer.node_uid },
            "pod": { "name": bearer.pod, "uid": bearer.pod_uid },
            "serviceaccount": { "name": bearer.service_account, "uid": bearer.service_account_uid },
        },
    })
}

fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), TokenError> {
    let written = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path);
    written.and_then(|mut file| file.write_all(content)).map_err(|cause| TokenError::Write(path.display().to_string(), cause))
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{DecodingKey, Validation};
    use std::os::unix::fs::PermissionsExt;

    fn bearer() -> Bearer {
        Bearer {
            namespace: "shop".into(),
            service_account: "cart".into(),
            service_account_uid: "sa-1".into(),
            pod: "cart-1".into(),
            pod_uid: "pod-1".into(),
            node: "a".into(),
            node_uid: "node-1".into(),
        }
    }

    #[test]
    fn a_token_verifies_with_the_published_key_and_names_pod_and_node() {
        let folder = tempfile::tempdir().expect("a folder");
        let issuer = TokenIssuer::create(folder.path()).expect("keys");
        let token = issuer.issue(&bearer(), &[MESH_AUDIENCE.into()], SystemTime::now(), DEFAULT_LIFETIME).expect("signed");
        let public = std::fs::read(folder.path().join("token.pub")).expect("published");
        let mut checks = Validation::new(Algorithm::ES256);
        checks.set_audience(&[MESH_AUDIENCE]);
        checks.set_issuer(&[ISSUER]);
        let read = jsonwebtoken::decode::<Value>(&token, &DecodingKey::from_ec_pem(&public).expect("a key"), &checks).expect("verifies");
        assert_eq!(read.claims["sub"], "system:serviceaccount:shop:cart");
        assert_eq!(read.claims["kubernetes.io"]["pod"]["uid"], "pod-1");
        assert_eq!(read.claims["kubernetes.io"]["node"]["name"], "a");
    }

    #[test]
    fn the_private_key_is_for_root_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        TokenIssuer::create(folder.path()).expect("keys");
        let mode = std::fs::metadata(folder.path().join("token.key")).expect("written").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
