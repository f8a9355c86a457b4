//! Who may have what: configuration by role, identities by what runs where now.
//!
//! Being authenticated is not enough. The trusted node proxy account gets the mesh's configuration, and the identities of enrolled
//! pods that run on its node; everybody else gets its own identity and nothing more. The facts (pods and namespaces) are kept up by
//! [`crate::watch`]; a token is good only as long as the pod that it is bound to exists.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use thiserror::Error;
use tropis_model::{
    enrolment::{self, Candidate},
    identity::Identity,
};
use tropis_xds::server::{Admitted, Audience};

use tropis_compile::waypoint::MANAGED;

use crate::{
    caller::{Caller, token::PodToken},
    deploy::MANAGED_BY,
};

/// Label of a gateway's pods, which get their identity by their own token only.
pub(crate) const GATEWAY_LABEL: &str = "gateway.networking.k8s.io/gateway-name";
/// Annotation by which a redirector says that it captured a pod.
const REDIRECTION: &str = "ambient.istio.io/redirection";

/// `namespace`, `name`.
pub(crate) type Key = (String, String);

/// What decides over a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct PodFacts {
    /// `metadata.uid`.
    pub(crate) uid: String,
    /// The account that it runs as.
    pub(crate) service_account: String,
    /// The node that it runs on; empty before it is scheduled.
    pub(crate) node: String,
    /// It has the node's addresses.
    pub(crate) host_network: bool,
    /// Its phase is Succeeded or Failed.
    pub(crate) ended: bool,
    /// The ReplicaSet that controls it; empty if none does.
    pub(crate) replica_set: String,
    /// Its labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// Its annotations.
    pub(crate) annotations: BTreeMap<String, String>,
}

/// A caller does not get what it asks for.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Too early to say.
    #[error("the control plane has not read its objects yet; try again")]
    NotSynced,
    /// The token outlived its pod, or the pod is not known yet.
    #[error("pod {namespace}/{pod} of the token is not known (deleted, or too new)")]
    PodUnknown {
        /// Its namespace.
        namespace: String,
        /// Its name.
        pod: String,
    },
    /// The token contradicts the pod.
    #[error("the token's {claim} is not that of pod {namespace}/{pod}")]
    PodDiffers {
        /// What differs.
        claim: &'static str,
        /// Its namespace.
        namespace: String,
        /// Its name.
        pod: String,
    },
    /// Not the node proxy.
    #[error("{caller} may not have the mesh's configuration; {trusted} may, by its token")]
    NoConfiguration {
        /// Who asks.
        caller: String,
        /// Who may.
        trusted: String,
    },
    /// Somebody else's identity.
    #[error("{caller} may have its own identity only, not {requested:?}")]
    OnlyOwn {
        /// Who asks.
        caller: String,
        /// For what.
        requested: String,
    },
    /// A waypoint's identity, for something that is no pod of it.
    #[error("the identity of {identity} is that of a waypoint: only a pod of its Deployment gets it, by its own token")]
    WaypointsOwn {
        /// The account.
        identity: String,
    },
    /// Not an identity.
    #[error("the requested identity is refused: {0}")]
    BadIdentity(String),
    /// A certificate without anybody left whose it could be.
    #[error("no pod runs as {identity} any more: its certificate is not renewed")]
    Ended {
        /// The certificate's.
        identity: Identity,
    },
    /// Nobody is there who could use it.
    #[error("request impersonation authentication failure: {reason} on node {node}")]
    NotHere {
        /// What was looked for.
        reason: String,
        /// Where.
        node: String,
    },
}

/// Decides.
pub(crate) struct Scope {
    trust_domain: Arc<str>,
    trusted_namespace: String,
    trusted_account: String,
    sidecar_labels: bool,
    facts: RwLock<Facts>,
}

#[derive(Debug, Default)]
struct Facts {
    synced: bool,
    pods: BTreeMap<Key, PodFacts>,
    on_node: BTreeMap<String, BTreeSet<Key>>,
    /// How many pods that have not ended run as each account; namespace and account.
    of_account: BTreeMap<Key, usize>,
    namespace_labels: BTreeMap<String, BTreeMap<String, String>>,
    /// The waypoints that the control plane deploys, whose account is named as they are.
    waypoints: BTreeSet<Key>,
}

/// A change of the facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fact {
    /// A pod is new or different.
    Pod(Key, PodFacts),
    /// A pod is gone.
    PodGone(Key),
    /// A namespace is new or different: its labels.
    Namespace(String, BTreeMap<String, String>),
    /// A namespace is gone.
    NamespaceGone(String),
    /// A Gateway is a waypoint that the control plane deploys.
    Waypoint(Key),
    /// A Gateway is no such waypoint, or is gone.
    WaypointGone(Key),
}

impl Scope {
    /// `trusted` is the node proxy's account, `namespace/name`. `sidecar_labels`: they enrol too.
    pub(crate) fn new(trust_domain: Arc<str>, trusted: (&str, &str), sidecar_labels: bool) -> Self {
        Self {
            trust_domain,
            trusted_namespace: trusted.0.to_owned(),
            trusted_account: trusted.1.to_owned(),
            sidecar_labels,
            facts: RwLock::default(),
        }
    }

    /// Takes changes in.
    pub(crate) fn apply(&self, changes: impl IntoIterator<Item = Fact>) {
        let mut facts = self.facts.write().unwrap_or_else(PoisonError::into_inner);
        for change in changes {
            match change {
                Fact::Pod(key, pod) => {
                    facts.remove_pod(&key);
                    facts.on_node.entry(pod.node.clone()).or_default().insert(key.clone());
                    if !pod.ended {
                        *facts.of_account.entry((key.0.clone(), pod.service_account.clone())).or_default() += 1;
                    }
                    facts.pods.insert(key, pod);
                }
                Fact::PodGone(key) => facts.remove_pod(&key),
                Fact::Namespace(name, labels) => _ = facts.namespace_labels.insert(name, labels),
                Fact::NamespaceGone(name) => _ = facts.namespace_labels.remove(&name),
                Fact::Waypoint(key) => _ = facts.waypoints.insert(key),
                Fact::WaypointGone(key) => _ = facts.waypoints.remove(&key),
            }
        }
    }

    /// A pod that runs as an account and is not of the waypoint of that name.
    pub(crate) fn stranger(&self, account: &Key) -> Option<String> {
        let facts = self.facts();
        facts.of_account.get(account)?;
        let here = facts.pods.range((account.0.clone(), String::new())..).take_while(|(key, _)| key.0 == account.0);
        let own = |pod: &PodFacts| {
            pod.labels.get(GATEWAY_LABEL) == Some(&account.1) && pod.labels.get(MANAGED).is_some_and(|by| by == MANAGED_BY)
        };
        let mut strangers = here.filter(|(_, pod)| !pod.ended && pod.service_account == account.1 && !own(pod));
        strangers.next().map(|(key, _)| key.1.clone())
    }

    /// All that exists has been applied once, and which waypoints there are is decided.
    pub(crate) fn synced(&self) {
        self.facts.write().unwrap_or_else(PoisonError::into_inner).synced = true;
    }

    fn facts(&self) -> RwLockReadGuard<'_, Facts> {
        self.facts.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the caller may have the mesh's configuration, and as whom.
    pub(crate) fn configuration(&self, caller: &Caller) -> Result<Admitted, Refused> {
        let refused = |caller: String| {
            Err(Refused::NoConfiguration { caller, trusted: format!("{}/{}", self.trusted_namespace, self.trusted_account) })
        };
        match caller {
            Caller::Token(token) if self.is_trusted(token) => {
                let facts = self.facts();
                facts.attest(token)?;
                Ok(Admitted {
                    client: format!("{}/{}", token.namespace, token.pod),
                    audience: Audience::NodeProxies,
                    namespace: token.namespace.clone(),
                    service_account: token.service_account.clone(),
                })
            }
            Caller::Token(token) => {
                let facts = self.facts();
                if !facts.synced {
                    return Err(Refused::NotSynced);
                }
                let Some(gateway) = facts.waypoint_of(token, facts.attest(token)?) else {
                    return refused(format!("{}/{}", token.namespace, token.service_account));
                };
                Ok(Admitted {
                    client: format!("{}/{}", token.namespace, token.pod),
                    audience: Audience::Waypoint(format!("{}/{}", gateway.0, gateway.1).into()),
                    namespace: token.namespace.clone(),
                    service_account: token.service_account.clone(),
                })
            }
            Caller::Certificate(identity) => refused(format!("the holder of a certificate of {identity}")),
        }
    }

    /// The identity that the caller may have a certificate of: its own, or the one that it asks for.
    pub(crate) fn identity(&self, caller: &Caller, requested: Option<&str>) -> Result<Identity, Refused> {
        let facts = self.facts();
        if !facts.synced {
            // Whose an account is, a waypoint's or its pods', is not known before.
            return Err(Refused::NotSynced);
        }
        let (own, name) = match caller {
            // A certificate that was stolen must not renew itself for ever: its account's last pod takes it along.
            Caller::Certificate(identity) if !facts.runs(identity) => {
                return Err(Refused::Ended { identity: identity.clone() });
            }
            Caller::Certificate(identity) => (identity.clone(), identity.to_string()),
            Caller::Token(token) => {
                let pod = facts.attest(token)?;
                if facts.is_waypoints(&token.namespace, &token.service_account) && facts.waypoint_of(token, pod).is_none() {
                    return Err(Refused::WaypointsOwn { identity: format!("{}/{}", token.namespace, token.service_account) });
                }
                let own = Identity::new(self.trust_domain.clone(), token.namespace.as_str(), token.service_account.as_str());
                (own, format!("pod {}/{}", token.namespace, token.pod))
            }
        };
        let Some(requested) = requested.filter(|requested| *requested != own.to_string()) else { return Ok(own) };
        match caller {
            Caller::Token(token) if self.is_trusted(token) => self.impersonate(&facts, token, requested),
            _ => Err(Refused::OnlyOwn { caller: name, requested: requested.to_owned() }),
        }
    }

    fn is_trusted(&self, token: &PodToken) -> bool {
        token.namespace == self.trusted_namespace && token.service_account == self.trusted_account
    }

    /// The identity of an enrolled, ordinary pod that runs on the node proxy's own node.
    fn impersonate(&self, facts: &Facts, token: &PodToken, requested: &str) -> Result<Identity, Refused> {
        let identity: Identity =
            requested.parse().map_err(|error: tropis_model::identity::InvalidIdentity| Refused::BadIdentity(error.to_string()))?;
        if identity.trust_domain != self.trust_domain {
            return Err(Refused::BadIdentity(format!("{identity} is not of the trust domain {}", self.trust_domain)));
        }
        let node = &facts.attest(token)?.node;
        let account = format!("{}/{}", identity.namespace, identity.service_account);
        if facts.is_waypoints(&identity.namespace, &identity.service_account) {
            return Err(Refused::WaypointsOwn { identity: account });
        }
        let mut obstacle = None;
        for key in facts.on_node.get(node).into_iter().flatten() {
            let Some(pod) = facts.pods.get(key) else { continue };
            if key.0 != *identity.namespace || pod.service_account != *identity.service_account {
                continue;
            }
            match self.obstacle(facts, key, pod) {
                None => return Ok(identity),
                Some(found) => obstacle = Some(format!("pod {}/{} of account {account} {found}", key.0, key.1)),
            }
        }
        let reason = obstacle.unwrap_or_else(|| format!("no pod runs as account {account}"));
        Err(Refused::NotHere { reason, node: node.clone() })
    }

    /// Why the node proxy may not act for a pod, if it may not.
    fn obstacle(&self, facts: &Facts, key: &Key, pod: &PodFacts) -> Option<&'static str> {
        if pod.ended {
            return Some("has ended");
        }
        if pod.host_network {
            return Some("has the node's network");
        }
        if pod.labels.contains_key(GATEWAY_LABEL) {
            return Some("is a gateway, which asks by its own token");
        }
        // A pod whose label was just taken away is captured until its redirector has let go of it.
        if pod.annotations.get(REDIRECTION).is_some_and(|state| state == "enabled") {
            return None;
        }
        let none = BTreeMap::new();
        let candidate = Candidate {
            namespace_labels: facts.namespace_labels.get(&key.0).unwrap_or(&none),
            pod_labels: &pod.labels,
            pod_annotations: &pod.annotations,
            host_network: pod.host_network,
            sidecar_labels: self.sidecar_labels,
        };
        (!enrolment::decide(&candidate).is_enrolled()).then_some("is not enrolled")
    }
}

impl Facts {
    fn remove_pod(&mut self, key: &Key) {
        let Some(pod) = self.pods.remove(key) else { return };
        if let Some(keys) = self.on_node.get_mut(&pod.node) {
            keys.remove(key);
            if keys.is_empty() {
                self.on_node.remove(&pod.node);
            }
        }
        let account = (key.0.clone(), pod.service_account);
        if let Some(count) = self.of_account.get_mut(&account).filter(|_| !pod.ended) {
            *count -= 1;
            if *count == 0 {
                self.of_account.remove(&account);
            }
        }
    }

    /// Whether some pod of this identity has not ended.
    fn runs(&self, identity: &Identity) -> bool {
        self.of_account.contains_key(&(identity.namespace.to_string(), identity.service_account.to_string()))
    }

    /// Whether an account is that of a waypoint which the control plane deploys.
    fn is_waypoints(&self, namespace: &str, account: &str) -> bool {
        self.waypoints.contains(&(namespace.to_owned(), account.to_owned()))
    }

    /// The waypoint that a pod is of: it runs as its account and was made by its Deployment.
    fn waypoint_of(&self, token: &PodToken, pod: &PodFacts) -> Option<Key> {
        let key = (token.namespace.clone(), pod.labels.get(GATEWAY_LABEL)?.clone());
        let managed = pod.labels.get(MANAGED).is_some_and(|by| by == MANAGED_BY);
        // `NAME-HASH`, where the hash has no dash: the ReplicaSet of the Deployment.
        let made = pod.replica_set.rsplit_once('-').is_some_and(|(deployment, _)| deployment == key.1);
        (managed && made && key.1 == token.service_account && self.waypoints.contains(&key)).then_some(key)
    }

    /// The pod that a token is bound to, if it still is what the token says.
    fn attest(&self, token: &PodToken) -> Result<&PodFacts, Refused> {
        let (namespace, pod) = (token.namespace.clone(), token.pod.clone());
        let key = (namespace.clone(), pod.clone());
        let Some(found) = self.pods.get(&key) else {
            return Err(if self.synced { Refused::PodUnknown { namespace, pod } } else { Refused::NotSynced });
        };
        let differs = |claim| Err(Refused::PodDiffers { claim, namespace, pod });
        if found.uid != token.pod_uid {
            return differs("pod uid");
        }
        if found.service_account != token.service_account {
            return differs("service account");
        }
        if token.node.as_ref().is_some_and(|node| *node != found.node) {
            return differs("node");
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn key(namespace: &str, name: &str) -> Key {
        (namespace.to_owned(), name.to_owned())
    }

    fn pod(node: &str, account: &str) -> PodFacts {
        PodFacts { uid: format!("uid-{node}-{account}"), service_account: account.into(), node: node.into(), ..PodFacts::default() }
    }

    fn token(namespace: &str, name: &str, pod: &PodFacts) -> PodToken {
        PodToken {
            namespace: namespace.into(),
            service_account: pod.service_account.clone(),
            pod: name.into(),
            pod_uid: pod.uid.clone(),
            node: Some(pod.node.clone()),
        }
    }

    /// Two nodes with a node proxy each; `shop` is enrolled, `plain` is not.
    fn scope() -> Scope {
        let scope = Scope::new("cluster.local".into(), ("istio-system", "ztunnel"), true);
        scope.apply([
            Fact::Namespace("shop".into(), labels(&[("istio.io/dataplane-mode", "ambient")])),
            Fact::Namespace("plain".into(), BTreeMap::new()),
            Fact::Pod(key("istio-system", "z-a"), PodFacts { host_network: true, ..pod("a", "ztunnel") }),
            Fact::Pod(key("istio-system", "z-b"), PodFacts { host_network: true, ..pod("b", "ztunnel") }),
            Fact::Pod(key("shop", "cart"), pod("a", "cart")),
            Fact::Pod(key("shop", "host"), PodFacts { host_network: true, ..pod("a", "host") }),
            Fact::Pod(key("shop", "done"), PodFacts { ended: true, ..pod("a", "job") }),
            Fact::Pod(key("shop", "waypoint"), PodFacts { labels: labels(&[(GATEWAY_LABEL, "waypoint")]), ..pod("a", "waypoint") }),
            Fact::Pod(key("shop", "out"), PodFacts { labels: labels(&[("istio.io/dataplane-mode", "none")]), ..pod("a", "out") }),
            Fact::Pod(
                key("shop", "leaving"),
                PodFacts {
                    labels: labels(&[("istio.io/dataplane-mode", "none")]),
                    annotations: labels(&[(REDIRECTION, "enabled")]),
                    ..pod("a", "leaving")
                },
            ),
            Fact::Pod(key("plain", "old"), pod("a", "old")),
        ]);
        scope.synced();
        scope
    }

    fn ztunnel(node: &str) -> Caller {
        Caller::Token(token("istio-system", &format!("z-{node}"), &pod(node, "ztunnel")))
    }

    fn spiffe(namespace: &str, account: &str) -> String {
        format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")
    }

    #[test]
    fn a_node_proxy_may_act_for_enrolled_ordinary_pods_of_its_node_only() {
        let scope = scope();
        let table = [
            ("a", spiffe("shop", "cart"), None),
            ("a", spiffe("shop", "leaving"), None),
            ("a", spiffe("istio-system", "ztunnel"), None),
            ("b", spiffe("shop", "cart"), Some("no pod runs as account shop/cart on node b")),
            ("a", spiffe("shop", "nobody"), Some("no pod runs as account shop/nobody on node a")),
            ("a", spiffe("shop", "host"), Some("has the node's network")),
            ("a", spiffe("shop", "job"), Some("has ended")),
            ("a", spiffe("shop", "waypoint"), Some("is a gateway")),
            ("a", spiffe("shop", "out"), Some("is not enrolled")),
            ("a", spiffe("plain", "old"), Some("is not enrolled")),
            ("a", "spiffe://elsewhere/ns/shop/sa/cart".into(), Some("is not of the trust domain")),
            ("a", "cart".into(), Some("is not an identity")),
        ];
        for (node, requested, refusal) in table {
            let found = scope.identity(&ztunnel(node), Some(&requested)).map(|identity| identity.to_string());
            match refusal {
                None => assert_eq!(found, Ok(requested)),
                Some(text) => {
                    let reason = found.unwrap_err().to_string();
                    assert!(reason.contains(text), "{node} {requested}: {reason}");
                }
            }
        }
    }

    #[test]
    fn what_runs_where_is_what_is_true_now() {
        let scope = scope();
        let cart = spiffe("shop", "cart");
        scope.apply([Fact::Pod(key("shop", "cart"), pod("b", "cart"))]);
        assert!(scope.identity(&ztunnel("a"), Some(&cart)).is_err());
        assert!(scope.identity(&ztunnel("b"), Some(&cart)).is_ok());
        scope.apply([Fact::Namespace("shop".into(), BTreeMap::new())]);
        assert!(scope.identity(&ztunnel("b"), Some(&cart)).is_err());
        scope.apply([Fact::Namespace("shop".into(), labels(&[("istio-injection", "enabled")]))]);
        assert!(scope.identity(&ztunnel("b"), Some(&cart)).is_ok());
        scope.apply([Fact::PodGone(key("shop", "cart"))]);
        assert!(scope.identity(&ztunnel("b"), Some(&cart)).is_err());
        scope.apply([Fact::PodGone(key("istio-system", "z-b"))]);
        assert!(matches!(scope.identity(&ztunnel("b"), None), Err(Refused::PodUnknown { .. })));
    }

    #[test]
    fn everybody_else_gets_its_own_identity_only() {
        let scope = scope();
        let cart = Caller::Token(token("shop", "cart", &pod("a", "cart")));
        assert_eq!(scope.identity(&cart, None).unwrap().to_string(), spiffe("shop", "cart"));
        assert!(scope.identity(&cart, Some(&spiffe("shop", "cart"))).is_ok());
        assert!(matches!(scope.identity(&cart, Some(&spiffe("shop", "leaving"))), Err(Refused::OnlyOwn { .. })));
        assert!(matches!(scope.configuration(&cart), Err(Refused::NoConfiguration { .. })));

        let holder = Caller::Certificate(Identity::new("cluster.local", "istio-system", "ztunnel"));
        assert!(scope.identity(&holder, None).is_ok());
        assert!(matches!(scope.identity(&holder, Some(&spiffe("shop", "cart"))), Err(Refused::OnlyOwn { .. })));
        assert!(matches!(scope.configuration(&holder), Err(Refused::NoConfiguration { .. })));
    }

    #[test]
    fn a_certificate_is_renewed_while_a_pod_runs_as_its_account() {
        let scope = scope();
        let holder = |account: &str| Caller::Certificate(Identity::new("cluster.local", "shop", account));
        let renewed = |account: &str| scope.identity(&holder(account), None);
        assert!(renewed("cart").is_ok());
        assert!(matches!(renewed("job"), Err(Refused::Ended { .. })), "its pod has ended");
        assert!(matches!(renewed("nobody"), Err(Refused::Ended { .. })));
        // Two pods, one of which is told again, moves and ends.
        scope.apply([Fact::Pod(key("shop", "cart-2"), pod("b", "cart")), Fact::Pod(key("shop", "cart-2"), pod("a", "cart"))]);
        scope.apply([Fact::PodGone(key("shop", "cart"))]);
        assert!(renewed("cart").is_ok());
        scope.apply([Fact::Pod(key("shop", "cart-2"), PodFacts { ended: true, ..pod("a", "cart") })]);
        assert!(matches!(renewed("cart"), Err(Refused::Ended { .. })));
        scope.apply([Fact::PodGone(key("shop", "cart-2"))]);
        assert!(!scope.facts().of_account.contains_key(&key("shop", "cart")));
    }

    #[test]
    fn a_token_must_agree_with_its_pod() {
        let scope = scope();
        let good = token("istio-system", "z-a", &pod("a", "ztunnel"));
        assert_eq!(scope.configuration(&Caller::Token(good.clone())).unwrap().client, "istio-system/z-a");
        assert!(scope.configuration(&Caller::Token(PodToken { node: None, ..good.clone() })).is_ok());
        for (claim, bad) in [
            ("pod uid", PodToken { pod_uid: "of an earlier pod".into(), ..good.clone() }),
            ("node", PodToken { node: Some("b".into()), ..good.clone() }),
        ] {
            let refused = scope.configuration(&Caller::Token(bad)).unwrap_err();
            assert!(matches!(refused, Refused::PodDiffers { claim: found, .. } if found == claim), "{refused}");
        }
        let stolen = PodToken { pod: "cart".into(), namespace: "shop".into(), pod_uid: "uid-a-cart".into(), ..good };
        assert!(matches!(scope.identity(&Caller::Token(stolen), None), Err(Refused::PodDiffers { claim: "service account", .. })));
    }

    #[test]
    fn pods_of_an_account_that_are_not_its_waypoints_are_strangers_to_it() {
        let scope = scope();
        let mine = labels(&[(GATEWAY_LABEL, "gw"), (MANAGED, MANAGED_BY)]);
        scope.apply([Fact::Pod(key("shop", "gw-1"), PodFacts { labels: mine, ..pod("a", "gw") })]);
        assert_eq!(scope.stranger(&key("shop", "gw")), None);
        scope.apply([Fact::Pod(key("shop", "gw-2"), PodFacts { ended: true, ..pod("a", "gw") })]);
        assert_eq!(scope.stranger(&key("shop", "gw")), None, "it has ended");
        scope.apply([Fact::Pod(key("shop", "gw-3"), pod("a", "gw"))]);
        assert_eq!(scope.stranger(&key("shop", "gw")).as_deref(), Some("gw-3"));
        assert_eq!(scope.stranger(&key("plain", "gw")), None);
    }

    #[test]
    fn before_everything_is_read_it_says_so() {
        let scope = Scope::new("cluster.local".into(), ("istio-system", "ztunnel"), true);
        let cart = pod("a", "cart");
        scope.apply([Fact::Pod(key("shop", "cart"), cart.clone())]);
        let known = Caller::Token(token("shop", "cart", &cart));
        assert_eq!(scope.identity(&known, None), Err(Refused::NotSynced), "the account may be a waypoint's");
        assert_eq!(scope.configuration(&ztunnel("a")), Err(Refused::NotSynced));
        assert_eq!(scope.identity(&ztunnel("a"), None), Err(Refused::NotSynced));
        let holder = Caller::Certificate(Identity::new("cluster.local", "shop", "cart"));
        assert_eq!(scope.identity(&holder, None), Err(Refused::NotSynced));
    }

    #[test]
    fn a_waypoints_pod_gets_its_own_scope_and_nobody_else_its_identity() {
        let scope = scope();
        let of = |labels: &[(&str, &str)], replica_set: &str| PodFacts {
            labels: self::labels(labels),
            replica_set: replica_set.into(),
            ..pod("a", "gw")
        };
        let mine = [(GATEWAY_LABEL, "gw"), (MANAGED, MANAGED_BY)];
        scope.apply([
            Fact::Pod(key("shop", "gw-1"), of(&mine, "gw-7d9")),
            Fact::Pod(key("shop", "bare"), of(&mine, "")),
            Fact::Pod(key("shop", "other"), of(&mine, "web-7d9")),
            Fact::Pod(key("shop", "plain"), of(&[("istio.io/dataplane-mode", "ambient")], "gw-7d9")),
        ]);
        let caller = |name: &str| Caller::Token(token("shop", name, &pod("a", "gw")));
        assert!(scope.configuration(&caller("gw-1")).is_err(), "there is no such waypoint yet");
        scope.apply([Fact::Waypoint(key("shop", "gw"))]);
        let admitted = scope.configuration(&caller("gw-1")).unwrap();
        assert_eq!(admitted.audience, Audience::Waypoint("shop/gw".into()));
        assert_eq!(scope.identity(&caller("gw-1"), None).unwrap().to_string(), spiffe("shop", "gw"));
        for name in ["bare", "other", "plain"] {
            assert!(scope.configuration(&caller(name)).is_err(), "{name}");
            assert!(matches!(scope.identity(&caller(name), None), Err(Refused::WaypointsOwn { .. })), "{name}");
        }
        let through = scope.identity(&ztunnel("a"), Some(&spiffe("shop", "gw")));
        assert!(matches!(through, Err(Refused::WaypointsOwn { .. })), "never through a node proxy: {through:?}");
        scope.apply([Fact::WaypointGone(key("shop", "gw"))]);
        assert!(scope.configuration(&caller("gw-1")).is_err());
    }
}
