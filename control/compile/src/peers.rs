//! `PeerAuthentication` to DENY policies for callers without an identity (WDS §7.6).
//!
//! Mesh, then namespace, then selector; the oldest of each level wins. STRICT is one policy shared by all; ports that differ from their
//! workload's mode need a policy of their own.

use std::{collections::BTreeMap, sync::Arc};

use tropis_crds::{
    Finding, Kind, Object, codes,
    istio::peer_authentication::{Mode, Spec},
};
use tropis_model::policy::{Action, Clause, Match, Policy, PolicyKey, PolicyScope, Rule, StringMatch};

use crate::{
    Index,
    authorization::{no_matching_workloads, selects_something},
};

/// The name of the policy that every STRICT workload shares, in the root namespace.
const STATIC_STRICT: &str = "istio_converted_static_strict";

/// The policies, and which of them each workload needs.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    pub(crate) policies: Vec<Policy>,
    strict: Option<Arc<str>>,
    mesh: Mode,
    namespaces: BTreeMap<String, Level>,
}

/// What is said in one namespace.
#[derive(Debug, Default)]
struct Level {
    mode: Mode,
    /// With a selector, oldest first.
    workloads: Vec<Selected>,
}

#[derive(Debug)]
struct Selected {
    spec: Spec,
    /// Its ports' own policy, which stands in for the shared one.
    key: Option<Arc<str>>,
}

impl Peers {
    /// The keys of the policies that a workload needs.
    pub(crate) fn of(&self, namespace: &str, labels: &BTreeMap<String, String>) -> Option<Arc<str>> {
        let level = self.namespaces.get(namespace);
        let selected = level.and_then(|level| level.workloads.iter().find(|selected| selects(&selected.spec, labels)));
        if let Some(key) = selected.and_then(|selected| selected.key.clone()) {
            return Some(key);
        }
        let mode = inherit(selected.map_or(Mode::Unset, |selected| selected.spec.mode()), self.above(namespace));
        self.strict.clone().filter(|_| mode == Mode::Strict)
    }

    /// The mode that holds in a namespace where no selector says otherwise.
    fn above(&self, namespace: &str) -> Mode {
        inherit(self.namespaces.get(namespace).map_or(Mode::Unset, |level| level.mode), self.mesh)
    }
}

fn selects(spec: &Spec, labels: &BTreeMap<String, String>) -> bool {
    spec.selector.as_ref().is_some_and(|selector| selector.matches(labels))
}

fn inherit(own: Mode, above: Mode) -> Mode {
    if own == Mode::Unset { above } else { own }
}

pub(crate) fn compile(index: &Index, findings: &mut Vec<Finding>) -> Peers {
    let root = &index.settings().root_namespace;
    let mut objects: Vec<&Arc<Object>> = index.of(Kind::PeerAuthentication).collect();
    objects.sort_by_key(|object| object.age());
    let mut peers = Peers::default();
    let Some(_) = objects.first() else { return peers };
    let key: Arc<str> = format!("{root}/{STATIC_STRICT}").into();
    peers.policies.push(policy(&key, root, vec![Rule { clauses: vec![clause(without_identity())] }]));
    peers.strict = Some(key);
    let mut broad: BTreeMap<&str, &Object> = BTreeMap::new();
    for object in &objects {
        let Some(spec) = object.peer_authentication().map(|peer| &peer.spec) else { continue };
        let namespace = object.metadata.namespace.as_str();
        let selecting = spec.selector.as_ref().filter(|selector| !selector.is_empty());
        match selecting {
            Some(_) if namespace == root => findings.push(ineffective(object, "spec.selector", "selects nothing in the root namespace")),
            Some(selector) => {
                if !selects_something(index, Some(namespace), selector) {
                    findings.push(no_matching_workloads(object));
                }
            }
            None => {
                if let Some(older) = broad.get(namespace) {
                    findings.push(shadowed(object, older));
                    continue;
                }
                broad.insert(namespace, object);
                if !spec.port_level_mtls.is_empty() {
                    findings.push(ineffective(object, "spec.portLevelMtls", "needs a selector"));
                }
                if namespace == root {
                    peers.mesh = spec.mode();
                } else {
                    peers.namespaces.entry(namespace.to_owned()).or_default().mode = spec.mode();
                }
            }
        }
    }
    for object in &objects {
        let Some(spec) = object.peer_authentication().map(|peer| &peer.spec) else { continue };
        let namespace = &object.metadata.namespace;
        if namespace == root || spec.selector.as_ref().is_none_or(|selector| selector.is_empty()) {
            continue;
        }
        let rules = port_rules(spec, peers.above(namespace));
        let key = (!rules.is_empty()).then(|| Arc::from(format!("{namespace}/converted_peer_authentication_{}", object.metadata.name)));
        peers.policies.extend(key.as_ref().map(|key| policy(key, namespace, rules)));
        peers.namespaces.entry(namespace.clone()).or_default().workloads.push(Selected { spec: spec.clone(), key });
    }
    peers
}

/// The rules for ports that differ from their workload's mode; none where the shared policy, or nothing, is enough.
fn port_rules(spec: &Spec, above: Mode) -> Vec<Rule> {
    let ports = spec.ports();
    if inherit(spec.mode(), above) == Mode::Strict {
        // Under an inherited STRICT, DISABLE is not an exception: so it is with Istio.
        let exempt = |mode: Mode| mode == Mode::Permissive || (mode == Mode::Disable && spec.mode() == Mode::Strict);
        let exempt: Vec<u16> = ports.iter().filter(|(_, mode)| exempt(**mode)).map(|(port, _)| *port).collect();
        if exempt.is_empty() {
            return Vec::new();
        }
        let others = exempt.into_iter().map(|port| clause(Match { not_destination_ports: vec![port], ..Match::default() }));
        return vec![Rule { clauses: std::iter::once(clause(without_identity())).chain(others).collect() }];
    }
    let strict = ports.into_iter().filter(|(_, mode)| *mode == Mode::Strict);
    strict.map(|(port, _)| Rule { clauses: vec![clause(Match { destination_ports: vec![port], ..without_identity() })] }).collect()
}

/// Matches callers that proved no identity.
fn without_identity() -> Match {
    Match { not_principals: vec![StringMatch::Presence], ..Match::default() }
}

fn clause(one: Match) -> Clause {
    Clause { matches: vec![one] }
}

fn policy(key: &Arc<str>, namespace: &str, rules: Vec<Rule>) -> Policy {
    let (scope, action) = (PolicyScope::WorkloadSelector, Action::Deny);
    Policy { key: PolicyKey(key.clone()), namespace: namespace.into(), scope, action, rules, dry_run: false }
}

fn ineffective(object: &Object, field: &str, problem: &str) -> Finding {
    Finding::warning(codes::INEFFECTIVE_POLICY, object.reference())
        .field(field)
        .problem(problem)
        .accepted("a selector, in the workload's own namespace")
        .effect("that part of the policy has no effect")
}

fn shadowed(object: &Object, older: &Object) -> Finding {
    Finding::warning(codes::POLICY_SHADOWED, object.reference())
        .problem(format!("has the same scope as {}, which is older", older.reference()))
        .accepted("one policy without a selector in a namespace")
        .effect("the older one holds, this one has no effect")
}
