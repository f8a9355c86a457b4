//! Who a workload is: a SPIFFE ID of the shape that Istio uses.

use std::{fmt, str::FromStr, sync::Arc};

use thiserror::Error;

/// `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`: the identity that a certificate proves (SPIFFE ID §2, Istio's path).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// The trust domain, `cluster.local` unless set.
    pub trust_domain: Arc<str>,
    /// The Kubernetes namespace.
    pub namespace: Arc<str>,
    /// The Kubernetes service account.
    pub service_account: Arc<str>,
}

/// The text is not an identity that this mesh can hold. Show it to the user; nothing was granted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{found:?} is not an identity of the form spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT")]
pub struct InvalidIdentity {
    /// What was found.
    pub found: String,
}

impl Identity {
    /// Joins the three parts. They are not checked here; text from outside goes through [`FromStr`].
    pub fn new(trust_domain: impl Into<Arc<str>>, namespace: impl Into<Arc<str>>, service_account: impl Into<Arc<str>>) -> Self {
        Self { trust_domain: trust_domain.into(), namespace: namespace.into(), service_account: service_account.into() }
    }

    /// The principal that AuthorizationPolicy names: the SPIFFE ID without its scheme.
    pub fn principal(&self) -> String {
        format!("{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl FromStr for Identity {
    type Err = InvalidIdentity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidIdentity { found: text.to_owned() };
        let rest = text.strip_prefix("spiffe://").ok_or_else(invalid)?;
        let mut parts = rest.split('/');
        let (Some(trust_domain), Some("ns"), Some(namespace), Some("sa"), Some(service_account), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(invalid());
        };
        if [trust_domain, namespace, service_account].iter().any(|part| part.is_empty()) {
            return Err(invalid());
        }
        Ok(Self::new(trust_domain, namespace, service_account))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        let identity: Identity = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
        assert_eq!(identity, Identity::new("cluster.local", "shop", "cart"));
        assert_eq!(identity.to_string(), "spiffe://cluster.local/ns/shop/sa/cart");
        assert_eq!(identity.principal(), "cluster.local/ns/shop/sa/cart");
    }

    #[test]
    fn other_shapes_are_refused() {
        for text in [
            "",
            "spiffe://",
            "spiffe://td/ns/a/sa/",
            "spiffe:///ns/a/sa/b",
            "spiffe://td/ns/a/sa/b/c",
            "spiffe://td/sa/a/ns/b",
            "https://td/ns/a/sa/b",
        ] {
            assert!(text.parse::<Identity>().is_err(), "{text}");
        }
    }
}
