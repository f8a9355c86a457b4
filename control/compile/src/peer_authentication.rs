//! PeerAuthentication: which workloads let in only mutual TLS, as policies that deny whoever has no identity.
//!
//! The mode of a workload is that of its own policy (the oldest with a selector that matches), else of its namespace's, else of the
//! mesh's, else PERMISSIVE; UNSET asks the next. One policy for all, [`STATIC_STRICT`], is attached to every workload that is STRICT; a
//! workload with exceptions by port gets one of its own instead.

use std::sync::Arc;

use tropis_crds::{
    Finding, Object, codes,
    istio::peer_authentication::{Mode, Spec},
};
use tropis_model::policy::{Action, Clause, Match, Policy, PolicyKey, PolicyScope, Rule, StringMatch};

use crate::{
    Index, Settings,
    index::{Key, key_of, selects},
    service::policy_key,
};

/// The policy that denies whoever has no identity; lives in the root namespace.
pub const STATIC_STRICT: &str = "istio_converted_static_strict";
/// What the name of a policy with exceptions by port begins with.
pub const CONVERTED_PREFIX: &str = "converted_peer_authentication_";

/// Whether a policy is for a whole namespace (or the mesh).
pub(crate) fn is_for_namespace(object: &Object) -> bool {
    object.peer_authentication().is_some_and(|policy| selects(policy.spec.selector.as_ref()).is_none())
}

/// The policy for every strict workload.
pub fn static_strict(settings: &Settings) -> Policy {
    let rules = vec![Rule { clauses: vec![clause(unauthenticated())] }];
    deny(&settings.root_namespace, STATIC_STRICT, rules)
}

/// The keys of the policies that follow from PeerAuthentication for a pod.
pub(crate) fn attached(index: &Index, pod: &Object) -> Vec<Arc<str>> {
    let (namespace, root) = (pod.metadata.namespace.as_str(), index.settings().root_namespace.as_str());
    let inherited = inherited(index, namespace);
    // Selectors in the root namespace count nowhere, not even there.
    let own = index.peers_selecting(namespace, &pod.metadata.labels).filter(|_| namespace != root).min_by_key(|policy| policy.age());
    let spec = own.and_then(|own| Some((own, &own.peer_authentication()?.spec)));
    match spec {
        Some((own, spec)) => match posture(spec, inherited) {
            Posture::Strict => vec![policy_key(root, STATIC_STRICT)],
            Posture::Permissive => Vec::new(),
            Posture::ByPort(_) => vec![policy_key(namespace, &converted_name(&own.metadata.name))],
        },
        None if inherited == Mode::Strict => vec![policy_key(root, STATIC_STRICT)],
        None => Vec::new(),
    }
}

/// The mode of a namespace: its own, else the mesh's.
fn inherited(index: &Index, namespace: &str) -> Mode {
    let mode = |namespace: &str| {
        let policy = index.peer_of_namespace(namespace)?.peer_authentication()?;
        Some(policy.spec.mode()).filter(|mode| *mode != Mode::Unset)
    };
    mode(namespace).or_else(|| mode(&index.settings().root_namespace)).unwrap_or(Mode::Permissive)
}

/// What a policy with a selector amounts to.
#[derive(Debug, PartialEq)]
enum Posture {
    Strict,
    Permissive,
    /// Exceptions by port; the rules of the policy that says so.
    ByPort(Vec<Rule>),
}

fn posture(spec: &Spec, inherited: Mode) -> Posture {
    let (own, ports) = (spec.mode(), spec.ports());
    let with = |mode: Mode| ports.iter().filter(move |(_, own)| **own == mode).map(|(port, _)| *port);
    let effective = if own == Mode::Unset { inherited } else { own };
    if effective == Mode::Strict {
        // Under a strict parent DISABLE alone opens no port (as istiod has it): doubt stays strict.
        let opened = with(Mode::Permissive).next().is_some() || (own == Mode::Strict && with(Mode::Disable).next().is_some());
        if !opened {
            return Posture::Strict;
        }
        let mut exempt: Vec<u16> = with(Mode::Permissive).chain(with(Mode::Disable)).collect();
        exempt.sort_unstable();
        let exceptions = exempt.into_iter().map(|port| clause(Match { not_destination_ports: vec![port], ..Match::default() }));
        return Posture::ByPort(vec![Rule { clauses: std::iter::once(clause(unauthenticated())).chain(exceptions).collect() }]);
    }
    let strict: Vec<u16> = with(Mode::Strict).collect();
    if strict.is_empty() {
        return Posture::Permissive;
    }
    let rule = |port| Rule { clauses: vec![clause(Match { destination_ports: vec![port], ..unauthenticated() })] };
    Posture::ByPort(strict.into_iter().map(rule).collect())
}

/// The policy with exceptions by port that a PeerAuthentication becomes, if it does.
pub fn compile(index: &Index, object: &Object) -> Option<Policy> {
    let (namespace, spec) = (object.metadata.namespace.as_str(), &object.peer_authentication()?.spec);
    selects(spec.selector.as_ref())?;
    if namespace == index.settings().root_namespace {
        return None;
    }
    match posture(spec, inherited(index, namespace)) {
        Posture::ByPort(rules) => Some(deny(namespace, &converted_name(&object.metadata.name), rules)),
        Posture::Strict | Posture::Permissive => None,
    }
}

/// What there is to tell about a PeerAuthentication.
pub fn findings(index: &Index, object: &Object) -> Vec<Finding> {
    let Some(policy) = object.peer_authentication() else { return Vec::new() };
    let (namespace, root) = (object.metadata.namespace.as_str(), index.settings().root_namespace.as_str());
    let mut findings = Vec::new();
    let Some(selector) = selects(policy.spec.selector.as_ref()) else {
        if let Some(oldest) = index.peer_of_namespace(namespace).filter(|oldest| key_of(oldest) != key_of(object)) {
            findings.push(shadowed(object, oldest, "the same namespace"));
        }
        if policy.spec.mode() == Mode::Disable {
            findings.push(disable(object, "spec.mtls.mode"));
        }
        return findings;
    };
    if namespace == root {
        findings.push(
            Finding::warning(codes::INEFFECTIVE_POLICY, object.reference())
                .field("spec.selector")
                .problem(format!("has no meaning in the root namespace {root}"))
                .accepted("no selector here (for the whole mesh), or the policy in the workloads' namespace")
                .effect("the policy is ignored"),
        );
        return findings;
    }
    let mut selected = index.selected_by_peer(namespace, selector).peekable();
    if selected.peek().is_none() {
        findings.push(crate::authorization::selects_nothing(object, &selector.match_labels, &format!("namespace {namespace}")));
    }
    // One winner a workload: told when every workload that this one selects belongs to an older one.
    let winner = |key: Key| index.peers_selecting(namespace, &index.pod(&key)?.metadata.labels).min_by_key(|policy| policy.age());
    let others = selected.map_while(|key| winner(key).filter(|winner| key_of(winner) != key_of(object)));
    let (mut first, mut count) = (None, 0usize);
    for other in others {
        first.get_or_insert(other);
        count += 1;
    }
    if let Some(other) = first.filter(|_| count == index.selected_by_peer(namespace, selector).count()) {
        findings.push(shadowed(object, other, "the workloads that it selects"));
    }
    if policy.spec.mode() == Mode::Disable {
        findings.push(disable(object, "spec.mtls.mode"));
    }
    let strict = posture(&policy.spec, inherited(index, namespace)) == Posture::Strict;
    for (port, _) in policy.spec.ports().into_iter().filter(|(_, mode)| *mode == Mode::Disable) {
        let finding = disable(object, &format!("spec.portLevelMtls[{port}].mode"));
        findings.push(if strict { finding.effect("the port stays STRICT, as what it inherits") } else { finding });
    }
    findings
}

fn shadowed(object: &Object, older: &Object, of: &str) -> Finding {
    Finding::warning(codes::POLICY_SHADOWED, object.reference())
        .problem(format!("is younger than {}, which is for {of} too", older.reference()))
        .accepted("one PeerAuthentication a scope")
        .effect("the older one is in force, this one is not")
}

fn disable(object: &Object, field: &str) -> Finding {
    Finding::info(codes::FIELD_NOT_HONOURED, object.reference())
        .field(field)
        .found("\"DISABLE\"")
        .problem("does not turn mutual TLS off in an ambient mesh")
        .accepted("PERMISSIVE says what it does")
        .effect("plaintext is let in as with PERMISSIVE; enrolled callers still use mutual TLS")
}

fn converted_name(name: &str) -> String {
    format!("{CONVERTED_PREFIX}{name}")
}

/// Holds for whoever has no identity: none of "any principal" is theirs.
fn unauthenticated() -> Match {
    Match { not_principals: vec![StringMatch::Presence], ..Match::default() }
}

fn clause(one: Match) -> Clause {
    Clause { matches: vec![one] }
}

fn deny(namespace: &str, name: &str, rules: Vec<Rule>) -> Policy {
    Policy {
        key: PolicyKey(policy_key(namespace, name)),
        namespace: namespace.into(),
        scope: PolicyScope::WorkloadSelector,
        action: Action::Deny,
        rules,
        dry_run: false,
    }
}
