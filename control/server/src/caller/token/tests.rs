//! A table of tokens, good and bad, signed with real keys.

use jsonwebtoken::{EncodingKey, Header, encode};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::*;

const ISSUER: &str = "https://kubernetes.default.svc";

struct Issuer {
    key: KeyPair,
    folder: tempfile::TempDir,
}

impl Issuer {
    fn new() -> Self {
        Self { key: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(), folder: tempfile::tempdir().unwrap() }
    }

    fn tokens(&self) -> Tokens {
        let path = self.folder.path().join("token.pub");
        fs::write(&path, self.key.public_key_pem()).unwrap();
        Tokens::open(&path, ISSUER, "istio-ca").unwrap()
    }

    fn sign(&self, header: &Header, claims: &Value) -> String {
        encode(header, claims, &EncodingKey::from_ec_pem(self.key.serialize_pem().as_bytes()).unwrap()).unwrap()
    }
}

fn claims() -> Value {
    let now = OffsetDateTime::now_utc().unix_timestamp();
    json!({
        "iss": ISSUER, "aud": ["istio-ca"], "sub": "system:serviceaccount:istio-system:ztunnel",
        "iat": now, "nbf": now, "exp": now + 3600,
        "kubernetes.io": {
            "namespace": "istio-system",
            "serviceaccount": {"name": "ztunnel", "uid": "u1"},
            "pod": {"name": "ztunnel-a", "uid": "u2"},
            "node": {"name": "a", "uid": "u3"},
        },
    })
}

fn with(path: &str, value: Value) -> Value {
    let mut claims = claims();
    *claims.pointer_mut(path).unwrap() = value;
    claims
}

fn without(parent: &str, name: &str) -> Value {
    let mut claims = claims();
    claims.pointer_mut(parent).unwrap().as_object_mut().unwrap().shift_remove(name);
    claims
}

#[test]
fn a_good_token_proves_pod_account_and_node() {
    let issuer = Issuer::new();
    let token = issuer.sign(&Header::new(Algorithm::ES256), &claims());
    let proved = PodToken {
        namespace: "istio-system".into(),
        service_account: "ztunnel".into(),
        pod: "ztunnel-a".into(),
        pod_uid: "u2".into(),
        node: Some("a".into()),
    };
    assert_eq!(issuer.tokens().check(&token), Ok(proved.clone()));
    let unbound_to_node = issuer.sign(&Header::new(Algorithm::ES256), &without("/kubernetes.io", "node"));
    assert_eq!(issuer.tokens().check(&unbound_to_node), Ok(PodToken { node: None, ..proved }));
}

#[test]
fn anything_else_is_refused_with_a_reason() {
    let issuer = Issuer::new();
    let tokens = issuer.tokens();
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let table = [
        (with("/exp", json!(now - 60)), RefusedToken::Expired),
        (with("/nbf", json!(now + 600)), RefusedToken::NotYet),
        (with("/aud", json!(["https://kubernetes.default.svc"])), RefusedToken::Audience("istio-ca".into())),
        (with("/iss", json!("https://elsewhere")), RefusedToken::Issuer(ISSUER.into())),
        (without("", "exp"), RefusedToken::Missing("exp".into())),
        (without("", "aud"), RefusedToken::Missing("aud".into())),
        (without("", "iss"), RefusedToken::Missing("iss".into())),
        (without("", "kubernetes.io"), RefusedToken::Missing("kubernetes.io".into())),
        (with("/kubernetes.io", json!("text")), RefusedToken::Claims),
        (with("/sub", json!("system:serviceaccount:shop:cart")), RefusedToken::Subject("system:serviceaccount:shop:cart".into())),
        (with("/kubernetes.io/namespace", json!("shop")), RefusedToken::Subject("system:serviceaccount:istio-system:ztunnel".into())),
        (without("/kubernetes.io", "pod"), RefusedToken::NotBound),
        (without("/kubernetes.io/pod", "uid"), RefusedToken::NotBound),
    ];
    for (claims, refusal) in table {
        assert_eq!(tokens.check(&issuer.sign(&Header::new(Algorithm::ES256), &claims)), Err(refusal), "{claims}");
    }
}

#[test]
fn only_the_issuers_key_counts() {
    let (issuer, stranger) = (Issuer::new(), Issuer::new());
    let tokens = issuer.tokens();
    let forged = stranger.sign(&Header::new(Algorithm::ES256), &claims());
    assert_eq!(tokens.check(&forged), Err(RefusedToken::Signature));
    let good = issuer.sign(&Header::new(Algorithm::ES256), &claims());
    let (head, signature) = good.rsplit_once('.').unwrap();
    let other = stranger.sign(&Header::new(Algorithm::ES256), &with("/exp", json!(1)));
    let (other_head, _) = other.rsplit_once('.').unwrap();
    assert_eq!(tokens.check(&format!("{other_head}.{signature}")), Err(RefusedToken::Signature));
    assert_eq!(tokens.check(&format!("{head}.")), Err(RefusedToken::Signature));

    // A token that is "signed" with the public key as if it were a shared secret, and one that is not signed at all.
    let secret = EncodingKey::from_secret(issuer.key.public_key_pem().as_bytes());
    let confused = encode(&Header::new(Algorithm::HS256), &claims(), &secret).unwrap();
    assert_eq!(tokens.check(&confused), Err(RefusedToken::Algorithm("HS256".into())));
    let unsigned = head.split_once('.').unwrap().1;
    assert_eq!(tokens.check(&format!("eyJhbGciOiJub25lIn0.{unsigned}.")), Err(RefusedToken::Malformed));
    for text in ["", "a", "a.b", "a.b.c", "..", &"x".repeat(MAX_TOKEN_BYTES + 1)] {
        assert_eq!(tokens.check(text), Err(RefusedToken::Malformed), "{text:.20}");
    }
}

#[test]
fn a_key_set_is_searched_by_key_id() {
    let issuer = Issuer::new();
    let point = issuer.key.public_key_raw();
    let encode_part = |part: &[u8]| base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, part);
    let jwk = |id: &str| json!({"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": id, "x": encode_part(&point[1..33]), "y": encode_part(&point[33..])});
    let path = issuer.folder.path().join("keys.json");
    fs::write(&path, json!({"keys": [jwk("one")]}).to_string()).unwrap();
    let tokens = Tokens::open(&path, ISSUER, "istio-ca").unwrap();
    let header = |id: Option<&str>| Header { kid: id.map(str::to_owned), ..Header::new(Algorithm::ES256) };
    assert!(tokens.check(&issuer.sign(&header(Some("one")), &claims())).is_ok());
    assert!(tokens.check(&issuer.sign(&header(None), &claims())).is_ok());
    assert_eq!(tokens.check(&issuer.sign(&header(Some("two")), &claims())), Err(RefusedToken::Signature));
}

#[test]
fn an_issuer_may_rotate_its_key() {
    let (mut issuer, next) = (Issuer::new(), Issuer::new());
    let tokens = issuer.tokens();
    let path = issuer.folder.path().join("token.pub");
    let later = |seconds| SystemTime::now() + std::time::Duration::from_secs(seconds);
    let touch = |time| fs::File::options().append(true).open(&path).unwrap().set_modified(time).unwrap();
    issuer.key = next.key;
    let token = issuer.sign(&Header::new(Algorithm::ES256), &claims());
    fs::write(&path, "half of a ke").unwrap();
    touch(later(10));
    assert_eq!(tokens.check(&token), Err(RefusedToken::Signature));
    fs::write(&path, issuer.key.public_key_pem()).unwrap();
    touch(later(20));
    assert!(tokens.check(&token).is_ok());
}

#[test]
fn a_file_without_a_key_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    assert!(matches!(Tokens::open(&path, ISSUER, "istio-ca"), Err(TokenKeysError::Read { .. })));
    fs::write(&path, "{\"keys\": []}").unwrap();
    assert!(matches!(Tokens::open(&path, ISSUER, "istio-ca"), Err(TokenKeysError::NoKey { .. })));
}
