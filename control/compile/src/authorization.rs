//! `AuthorizationPolicy` to L4 policies (WDS §7.5; HTTP parts by design: they never widen access).
//!
//! An ALLOW rule that looks at HTTP is left out, so it allows nothing here. A DENY rule keeps what L4 can check; an alternative of which
//! nothing is left may match anything, so its clause goes, and a rule without clauses denies everything.

use std::{collections::BTreeMap, sync::Arc};

use ipnet::IpNet;
use tropis_crds::{
    Finding, Kind, Object, codes,
    istio::{
        WorkloadSelector,
        authorization_policy::{Action as Written, Condition, Operation, Rule as WrittenRule, Source},
        block,
    },
};
use tropis_model::{
    identity::Identity,
    policy::{Action, Clause, Match, Policy, PolicyKey, PolicyScope, Rule, ServiceAccountMatch, StringMatch},
};

use crate::Index;

const DRY_RUN: &str = "istio.io/dry-run";

/// The policies, and which workloads the ones with a selector apply to.
#[derive(Debug, Default)]
pub(crate) struct Authorization {
    pub(crate) policies: Vec<Policy>,
    /// By the namespace in which they select, `None` for the whole mesh.
    selecting: BTreeMap<Option<String>, Vec<(WorkloadSelector, Arc<str>)>>,
}

impl Authorization {
    /// The keys of the policies that select a workload.
    pub(crate) fn of(&self, namespace: &str, labels: &BTreeMap<String, String>) -> Vec<Arc<str>> {
        let scopes = [None, Some(namespace.to_owned())];
        let selecting = scopes.iter().filter_map(|scope| self.selecting.get(scope)).flatten();
        selecting.filter(|(selector, _)| selector.matches(labels)).map(|(_, key)| key.clone()).collect()
    }
}

pub(crate) fn compile(index: &Index, findings: &mut Vec<Finding>) -> Authorization {
    let mut compiled = Authorization::default();
    for object in index.of(Kind::AuthorizationPolicy) {
        let Some(spec) = object.authorization_policy().map(|policy| &policy.spec) else { continue };
        let action = match spec.action {
            Written::Allow => Action::Allow,
            Written::Deny => Action::Deny,
            Written::Audit | Written::Custom => {
                findings.push(
                    Finding::warning(codes::ACTION_UNSUPPORTED, object.reference())
                        .field("spec.action")
                        .found(format!("{:?}", spec.action).to_uppercase())
                        .problem("is not enforced by the node proxy")
                        .accepted("ALLOW or DENY")
                        .effect("the policy has no effect"),
                );
                continue;
            }
        };
        if spec.target_ref.is_some() || !spec.target_refs.is_empty() {
            findings.push(
                Finding::warning(codes::NEEDS_WAYPOINT, object.reference())
                    .field("spec.targetRefs")
                    .problem("attaches the policy to a waypoint")
                    .accepted("spec.selector, for what the node proxy enforces")
                    .effect("the policy has no effect without a waypoint"),
            );
            continue;
        }
        let namespace = &object.metadata.namespace;
        let key: Arc<str> = format!("{namespace}/{}", object.metadata.name).into();
        let root = *namespace == index.settings().root_namespace;
        let selector = spec.selector.as_ref().filter(|selector| !selector.is_empty());
        let scope = match (selector, root) {
            (Some(selector), _) => {
                let within = (!root).then(|| namespace.clone());
                if !selects_something(index, within.as_deref(), selector) {
                    findings.push(no_matching_workloads(object));
                }
                compiled.selecting.entry(within).or_default().push((selector.clone(), key.clone()));
                PolicyScope::WorkloadSelector
            }
            (None, true) => PolicyScope::Global,
            (None, false) => PolicyScope::Namespace,
        };
        let written = spec.rules.as_deref().unwrap_or_default();
        unreadable_principals(object, written, findings);
        let rules = written.iter().enumerate();
        let rules = rules.filter_map(|(number, rule)| translate(object, action, rule, number, findings)).collect();
        let dry_run = object.annotation(DRY_RUN) == Some("true");
        compiled.policies.push(Policy { key: PolicyKey(key), namespace: namespace.as_str().into(), scope, action, rules, dry_run });
    }
    compiled
}

/// Whether a selector selects any pod.
pub(crate) fn selects_something(index: &Index, namespace: Option<&str>, selector: &WorkloadSelector) -> bool {
    match namespace {
        Some(namespace) => index.within(Kind::Pod, namespace).any(|pod| selector.matches(&pod.metadata.labels)),
        None => index.of(Kind::Pod).any(|pod| selector.matches(&pod.metadata.labels)),
    }
}

pub(crate) fn no_matching_workloads(object: &Object) -> Finding {
    Finding::warning(codes::NO_MATCHING_WORKLOADS, object.reference())
        .field("spec.selector.matchLabels")
        .problem("matches no pod")
        .accepted("labels that a pod carries")
        .effect("the policy applies to nothing until a pod matches")
}

/// One rule; `None` for an ALLOW rule that L4 cannot check.
fn translate(object: &Object, action: Action, written: &WrittenRule, number: usize, findings: &mut Vec<Finding>) -> Option<Rule> {
    let namespace = &object.metadata.namespace;
    let mut seen = Vec::new();
    let mut clauses = Vec::new();
    let to = written.to.iter().flatten().map(|to| operation(&to.operation)).collect();
    clauses.extend(clause(to, "to", &mut seen));
    let from = written.from.iter().flatten().map(|from| source(&from.source, namespace)).collect();
    clauses.extend(clause(from, "from", &mut seen));
    for (index, written) in written.when.iter().flatten().enumerate() {
        clauses.extend(clause(vec![condition(written, namespace)], &format!("when[{index}]"), &mut seen));
    }
    if seen.is_empty() {
        return Some(Rule { clauses });
    }
    let effect = match (action, clauses.is_empty()) {
        (Action::Allow, _) => "the rule allows nothing at L4",
        (Action::Deny, false) => "the rule denies by its remaining parts, more than it says",
        (Action::Deny, true) => "the rule denies everything at L4",
    };
    findings.push(
        Finding::warning(codes::NEEDS_WAYPOINT, object.reference())
            .field(format!("spec.rules[{number}].{}", seen[0]))
            .problem("looks at HTTP, which the node proxy does not see")
            .accepted("a waypoint for the service")
            .effect(effect),
    );
    (action == Action::Deny).then_some(Rule { clauses })
}

/// What L4 can check of one alternative, and whether there was more.
struct Part {
    one: Match,
    http: bool,
}

/// Joins alternatives. `None` where an alternative has nothing left: the clause would be true, so it is left out. `seen` learns where
/// HTTP was found.
fn clause(parts: Vec<Part>, name: &str, seen: &mut Vec<String>) -> Option<Clause> {
    if parts.is_empty() {
        return None;
    }
    for (index, _) in parts.iter().enumerate().filter(|(_, part)| part.http) {
        seen.push(if name.starts_with("when") { name.to_owned() } else { format!("{name}[{index}]") });
    }
    let unlimited = parts.iter().any(|part| part.http && part.one == Match::default());
    (!unlimited).then(|| Clause { matches: parts.into_iter().map(|part| part.one).collect() })
}

fn operation(operation: &Operation) -> Part {
    let http = [&operation.hosts, &operation.not_hosts, &operation.methods, &operation.not_methods, &operation.paths, &operation.not_paths];
    let one = Match { destination_ports: ports(&operation.ports), not_destination_ports: ports(&operation.not_ports), ..Match::default() };
    Part { one, http: http.iter().any(|list| !list.is_empty()) }
}

fn source(source: &Source, namespace: &str) -> Part {
    let http = [
        &source.request_principals,
        &source.not_request_principals,
        &source.remote_ip_blocks,
        &source.not_remote_ip_blocks,
        &source.trust_domains,
        &source.not_trust_domains,
    ];
    let one = Match {
        principals: strings(&source.principals),
        not_principals: strings(&source.not_principals),
        namespaces: strings(&source.namespaces),
        not_namespaces: strings(&source.not_namespaces),
        service_accounts: accounts(&source.service_accounts, namespace),
        not_service_accounts: accounts(&source.not_service_accounts, namespace),
        source_ips: blocks(&source.ip_blocks),
        not_source_ips: blocks(&source.not_ip_blocks),
        ..Match::default()
    };
    Part { one, http: http.iter().any(|list| !list.is_empty()) }
}

fn condition(condition: &Condition, namespace: &str) -> Part {
    let (values, not_values) = (&condition.values, &condition.not_values);
    let mut one = Match::default();
    match condition.key.as_str() {
        "source.ip" => (one.source_ips, one.not_source_ips) = (blocks(values), blocks(not_values)),
        "source.namespace" => (one.namespaces, one.not_namespaces) = (strings(values), strings(not_values)),
        "source.principal" => (one.principals, one.not_principals) = (strings(values), strings(not_values)),
        "source.serviceAccount" => {
            (one.service_accounts, one.not_service_accounts) = (accounts(values, namespace), accounts(not_values, namespace));
        }
        "destination.ip" => (one.destination_ips, one.not_destination_ips) = (blocks(values), blocks(not_values)),
        "destination.port" => (one.destination_ports, one.not_destination_ports) = (ports(values), ports(not_values)),
        _ => return Part { one, http: true },
    }
    Part { one, http: false }
}

/// `*` is anything that is not empty, `*x` a suffix, `x*` a prefix, all else exact.
fn strings(values: &[String]) -> Vec<StringMatch> {
    let one = |value: &String| match (value.as_str(), value.strip_prefix('*'), value.strip_suffix('*')) {
        ("*", ..) => StringMatch::Presence,
        (_, Some(suffix), _) => StringMatch::Suffix(suffix.into()),
        (_, _, Some(prefix)) => StringMatch::Prefix(prefix.into()),
        (exact, ..) => StringMatch::Exact(exact.into()),
    };
    values.iter().map(one).collect()
}

fn accounts(values: &[String], own_namespace: &str) -> Vec<ServiceAccountMatch> {
    let one = |value: &String| {
        let (namespace, account) = value.split_once('/').unwrap_or((own_namespace, value));
        ServiceAccountMatch { namespace: namespace.into(), service_account: account.into() }
    };
    values.iter().map(one).collect()
}

/// Decoding refused what is no address or block.
fn blocks(values: &[String]) -> Vec<IpNet> {
    values.iter().filter_map(|value| block(value)).collect()
}

/// Decoding refused what is no port.
fn ports(values: &[String]) -> Vec<u16> {
    values.iter().filter_map(|value| value.parse().ok()).collect()
}

/// A finding for each principal that no certificate can prove.
fn unreadable_principals(object: &Object, rules: &[WrittenRule], findings: &mut Vec<Finding>) {
    let readable = |text: &str| text.contains('*') || format!("spiffe://{text}").parse::<Identity>().is_ok();
    for (number, rule) in rules.iter().enumerate() {
        let sources = rule.from.iter().flatten().enumerate().flat_map(|(index, from)| {
            let path = format!("from[{index}].source");
            [(format!("{path}.principals"), &from.source.principals), (format!("{path}.notPrincipals"), &from.source.not_principals)]
        });
        let conditions = rule.when.iter().flatten().enumerate().filter(|(_, condition)| condition.key == "source.principal");
        let conditions = conditions.flat_map(|(index, condition)| {
            [(format!("when[{index}].values"), &condition.values), (format!("when[{index}].notValues"), &condition.not_values)]
        });
        for (path, values) in sources.chain(conditions) {
            for (index, value) in values.iter().enumerate().filter(|(_, value)| !readable(value)) {
                findings.push(
                    Finding::warning(codes::UNREADABLE_VALUE, object.reference())
                        .field(format!("spec.rules[{number}].{path}[{index}]"))
                        .found(format!("{value:?}"))
                        .problem("is not a principal")
                        .accepted("TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT, PREFIX*, *SUFFIX or *")
                        .effect("the value never matches a caller"),
                );
            }
        }
    }
}
