//! AuthorizationPolicy as the node proxy enforces it: what L4 can see of it, never wider than what the user wrote.
//!
//! - ALLOW: a rule with a part that L4 cannot see (HTTP) allows nothing and is dropped.
//! - DENY: parts that L4 cannot see are taken away, so that the rule denies on what is left, and everything if nothing is. A part that
//!   became "always" is left out of its clause's conjunction instead of being written as an empty match, because Istio's ztunnel reads
//!   an empty match as "never": both read a policy of ours alike.
//! - A value that cannot be read as what its field means (a principal with blanks in it) is read in the way that allows less.

pub(crate) mod text;

use std::{collections::BTreeMap, sync::Arc};

use ipnet::IpNet;
use tropis_crds::{
    Finding, Level, Object, codes,
    istio::{
        authorization_policy::{self as istio, Condition, Operation, Source},
        block,
    },
    nearest,
};
use tropis_model::policy::{Action, Clause, Match, Policy, PolicyKey, PolicyScope, Rule, ServiceAccountMatch, StringMatch};

use crate::{Index, Settings, index::selects, service::policy_key};
use text::{Text, namespace, principal, string_match};

/// Only logs, when it says `true`.
const DRY_RUN: &str = "istio.io/dry-run";

/// The keys of the AuthorizationPolicies with a selector that a pod is subject to.
pub(crate) fn attached(index: &Index, pod: &Object) -> Vec<Arc<str>> {
    let keys = index.authorizations_selecting(&pod.metadata.namespace, &pod.metadata.labels);
    let enforced = keys.iter().filter(|key| index.authorization(key).is_some_and(|policy| is_enforced(policy)));
    enforced.map(|(namespace, name)| policy_key(namespace, name)).collect()
}

/// Whether the node proxy enforces a policy at all.
fn is_enforced(object: &Object) -> bool {
    object.authorization_policy().is_some_and(|policy| {
        let spec = &policy.spec;
        matches!(spec.action, istio::Action::Allow | istio::Action::Deny) && spec.target_ref.is_none() && spec.target_refs.is_empty()
    })
}

/// Compiles a policy; `None` for one that the node proxy does not enforce.
pub fn compile(settings: &Settings, object: &Object) -> (Option<Policy>, Vec<Finding>) {
    let Some(policy) = object.authorization_policy() else { return (None, Vec::new()) };
    let spec = &policy.spec;
    let mut findings = Vec::new();
    if spec.target_ref.is_some() || !spec.target_refs.is_empty() {
        // A waypoint's alone; `waypoint::policy_findings` tells whether there is one.
        return (None, findings);
    }
    let action = match spec.action {
        istio::Action::Allow => Action::Allow,
        istio::Action::Deny => Action::Deny,
        istio::Action::Audit | istio::Action::Custom => {
            let (found, effect) = match spec.action {
                istio::Action::Audit => ("\"AUDIT\"", "node proxies do nothing about it; a waypoint logs what it matches"),
                _ => ("\"CUSTOM\"", "node proxies do nothing about it; a waypoint denies what it matches"),
            };
            findings.push(
                Finding::warning(codes::ACTION_UNSUPPORTED, object.reference())
                    .field("spec.action")
                    .found(found)
                    .problem("is not an action of node proxies")
                    .accepted("ALLOW or DENY")
                    .effect(effect),
            );
            return (None, findings);
        }
    };
    let namespace = object.metadata.namespace.as_str();
    let scope = match selects(spec.selector.as_ref()) {
        Some(_) => PolicyScope::WorkloadSelector,
        None if namespace == settings.root_namespace => PolicyScope::Global,
        None => PolicyScope::Namespace,
    };
    let dry_run = object.annotation(DRY_RUN) == Some("true");
    if dry_run {
        findings.push(
            Finding::info(codes::DRY_RUN, object.reference())
                .field(format!("metadata.annotations[{DRY_RUN}]"))
                .found("\"true\"")
                .problem("makes the policy a dry run")
                .effect("what it would do is logged and nothing is enforced"),
        );
    }
    let mut reading = Reading { object, action, findings };
    let rules = spec.rules.iter().flatten().enumerate();
    let rules: Vec<Rule> = rules.filter_map(|(index, rule)| reading.rule(rule, &format!("spec.rules[{index}]"))).collect();
    let key = PolicyKey(policy_key(namespace, &object.metadata.name));
    (Some(Policy { key, namespace: namespace.into(), scope, action, rules, dry_run }), reading.findings)
}

/// What there is to tell about what a policy selects.
pub(crate) fn selection_findings(index: &Index, object: &Object) -> Vec<Finding> {
    let Some(policy) = object.authorization_policy().filter(|_| is_enforced(object)) else { return Vec::new() };
    let Some(selector) = selects(policy.spec.selector.as_ref()) else { return Vec::new() };
    let namespace = object.metadata.namespace.as_str();
    if index.selected_by_authorization(namespace, selector).next().is_some() {
        return Vec::new();
    }
    if namespace != index.settings().root_namespace && !index.namespaces_with(&selector.match_labels).is_empty() {
        // `request_policy::findings` says in which namespace the policy belongs.
        return Vec::new();
    }
    let place = if namespace == index.settings().root_namespace { "the mesh".to_owned() } else { format!("namespace {namespace}") };
    let accepted = labels_there(index, namespace, &selector.match_labels);
    vec![selects_nothing(object, &selector.match_labels, &place).accepted(accepted)]
}

/// What pods of a namespace have in the place of labels that none of them has.
fn labels_there(index: &Index, namespace: &str, labels: &BTreeMap<String, String>) -> String {
    let there = labels.iter().filter_map(|(key, value)| {
        let values: Vec<&str> = index.pod_label_values(namespace, key).collect();
        (!values.contains(&value.as_str())).then(|| label_there(key, value, &values))
    });
    let there: Vec<String> = there.collect();
    if there.is_empty() { "labels that one pod carries together".to_owned() } else { there.join("; ") }
}

/// The finding for a selector that no workload matches.
pub(crate) fn selects_nothing(object: &Object, labels: &BTreeMap<String, String>, place: &str) -> Finding {
    let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    Finding::warning(codes::NO_MATCHING_WORKLOADS, object.reference())
        .field("spec.selector.matchLabels")
        .found(labels.join(","))
        .problem(format!("matches no pod in {place}"))
        .accepted("labels that pods carry")
        .effect("the policy applies to nothing until a pod has these labels")
}

/// The values that pods have for a label, for one who looked for another value.
pub(crate) fn label_there(key: &str, value: &str, there: &[&str]) -> String {
    match there {
        [] => format!("no pod there has a label {key}"),
        some => format!("{key}: {}", nearest::accepted(value, some.iter().copied(), "a value that a pod has")),
    }
}

/// A part of a policy as L4 reads it.
enum Part<T> {
    /// It is decided by this.
    Decided(T),
    /// It holds whatever happens, as far as L4 is concerned.
    Always,
    /// It never holds.
    Never,
}

/// Reads the rules of one policy.
struct Reading<'a> {
    object: &'a Object,
    action: Action,
    findings: Vec<Finding>,
}

/// A rule has a part that L4 cannot see.
struct Unseen;

impl Reading<'_> {
    fn rule(&mut self, rule: &istio::Rule, path: &str) -> Option<Rule> {
        let unseen = self.unseen_parts(rule, path);
        if unseen.is_some() && self.action == Action::Allow {
            return None;
        }
        let mut clauses = Vec::new();
        let to: Option<Vec<_>> = rule.to.as_ref().map(|to| to.iter().map(|to| self.operation(&to.operation)).collect());
        let from: Option<Vec<_>> = rule.from.as_ref().map(|from| {
            let entries = from.iter().enumerate();
            entries.map(|(index, from)| self.source(&from.source, &format!("{path}.from[{index}].source"))).collect()
        });
        let conditions = rule.when.iter().flatten().enumerate();
        let when: Vec<Vec<_>> = conditions.map(|(index, when)| vec![self.condition(when, &format!("{path}.when[{index}]"))]).collect();
        for alternatives in to.into_iter().chain(from).chain(when) {
            match any(alternatives) {
                Part::Decided(clause) => clauses.push(clause),
                Part::Always => {}
                Part::Never => return None,
            }
        }
        Some(Rule { clauses })
    }

    /// Tells of every part that L4 cannot see.
    fn unseen_parts(&mut self, rule: &istio::Rule, path: &str) -> Option<Unseen> {
        let mut unseen: Vec<(String, String)> = Vec::new();
        for (index, from) in rule.from.iter().flatten().enumerate() {
            let source = &from.source;
            let lists = [
                ("requestPrincipals", &source.request_principals),
                ("notRequestPrincipals", &source.not_request_principals),
                ("remoteIpBlocks", &source.remote_ip_blocks),
                ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
                ("trustDomains", &source.trust_domains),
                ("notTrustDomains", &source.not_trust_domains),
            ];
            unseen.extend(present(&lists, &format!("{path}.from[{index}].source")));
        }
        for (index, to) in rule.to.iter().flatten().enumerate() {
            let operation = &to.operation;
            let lists = [
                ("hosts", &operation.hosts),
                ("notHosts", &operation.not_hosts),
                ("methods", &operation.methods),
                ("notMethods", &operation.not_methods),
                ("paths", &operation.paths),
                ("notPaths", &operation.not_paths),
            ];
            unseen.extend(present(&lists, &format!("{path}.to[{index}].operation")));
        }
        for (index, condition) in rule.when.iter().flatten().enumerate() {
            if !is_seen(&condition.key) {
                unseen.push((format!("{path}.when[{index}].key"), format!("{:?}", condition.key)));
            }
        }
        let effect = match self.action {
            Action::Allow => "the whole rule allows nothing at L4",
            Action::Deny if rule_is_unseen(rule) => "without it nothing is left of the rule, so it denies everything at L4",
            Action::Deny => "the rule denies on its other parts alone at L4, which is more",
        };
        let any = unseen.first().map(|_| Unseen);
        for (field, found) in unseen {
            self.findings.push(
                Finding::warning(codes::NEEDS_WAYPOINT, self.object.reference())
                    .field(field)
                    .found(found)
                    .problem("is not visible to a node proxy (L4)")
                    .accepted("principals, namespaces, service accounts, IP blocks and ports; the rest by targetRefs at a waypoint")
                    .effect(effect),
            );
        }
        any
    }

    fn operation(&mut self, operation: &Operation) -> Part<Match> {
        decided(Match {
            destination_ports: ports(&operation.ports),
            not_destination_ports: ports(&operation.not_ports),
            ..Match::default()
        })
    }

    fn source(&mut self, source: &Source, path: &str) -> Part<Match> {
        let lists = [
            self.strings(&source.principals, true, principal, &format!("{path}.principals")),
            self.strings(&source.not_principals, false, principal, &format!("{path}.notPrincipals")),
            self.strings(&source.namespaces, true, namespace, &format!("{path}.namespaces")),
            self.strings(&source.not_namespaces, false, namespace, &format!("{path}.notNamespaces")),
        ];
        let Some([principals, not_principals, namespaces, not_namespaces]) = values(lists) else { return Part::Never };
        decided(Match {
            principals,
            not_principals,
            namespaces,
            not_namespaces,
            service_accounts: self.accounts(&source.service_accounts),
            not_service_accounts: self.accounts(&source.not_service_accounts),
            source_ips: blocks(&source.ip_blocks),
            not_source_ips: blocks(&source.not_ip_blocks),
            ..Match::default()
        })
    }

    fn condition(&mut self, condition: &Condition, path: &str) -> Part<Match> {
        let (with, without) = (&condition.values, &condition.not_values);
        decided(match condition.key.as_str() {
            "source.ip" => Match { source_ips: blocks(with), not_source_ips: blocks(without), ..Match::default() },
            "destination.ip" => Match { destination_ips: blocks(with), not_destination_ips: blocks(without), ..Match::default() },
            "destination.port" => Match { destination_ports: ports(with), not_destination_ports: ports(without), ..Match::default() },
            "source.serviceAccount" => {
                Match { service_accounts: self.accounts(with), not_service_accounts: self.accounts(without), ..Match::default() }
            }
            key @ ("source.principal" | "source.namespace") => {
                let read = if key == "source.principal" { principal } else { namespace };
                let lists = [
                    self.strings(with, true, read, &format!("{path}.values")),
                    self.strings(without, false, read, &format!("{path}.notValues")),
                ];
                let Some([with, without]) = values(lists) else { return Part::Never };
                match key {
                    "source.principal" => Match { principals: with, not_principals: without, ..Match::default() },
                    _ => Match { namespaces: with, not_namespaces: without, ..Match::default() },
                }
            }
            // Told by `unseen_parts`; only DENY comes this far.
            _ => Match::default(),
        })
    }

    /// Reads a list of strings; what cannot be read is read in the way that allows less, and told.
    fn strings(&mut self, list: &[String], positive: bool, read: fn(&str) -> Text<'_>, path: &str) -> Part<Vec<StringMatch>> {
        let mut values = Vec::new();
        let mut lifted = list.is_empty();
        let mut impossible = false;
        for (index, text) in list.iter().enumerate() {
            // Matching more denies more; not matching allows less.
            let matching_is_safe = (self.action == Action::Deny) == positive;
            let (accepted, effect) = match read(text) {
                Text::Good => {
                    values.push(string_match(text));
                    continue;
                }
                Text::Scheme(rest, accepted) if matching_is_safe => {
                    values.push(string_match(rest));
                    (accepted, "it is read without its scheme, which denies it")
                }
                Text::Scheme(_, accepted) | Text::Unreadable(accepted) => {
                    let effect = match (self.action, positive) {
                        (Action::Allow, true) => "it allows nobody",
                        (Action::Allow, false) => {
                            impossible = true;
                            "as nobody can tell whom it excepts, its part of the rule allows nobody"
                        }
                        (Action::Deny, true) => {
                            lifted = true;
                            "as nobody can tell whom it denies, its part of the rule denies whoever matches the rest"
                        }
                        (Action::Deny, false) => "it excepts nobody from being denied",
                    };
                    (accepted, effect)
                }
            };
            self.findings.push(
                Finding::new(Level::Error, codes::UNREADABLE_VALUE, self.object.reference())
                    .field(format!("{path}[{index}]"))
                    .found(format!("{text:?}"))
                    .problem("matches no identity")
                    .accepted(accepted)
                    .effect(effect),
            );
        }
        if impossible || (values.is_empty() && !lifted && self.action == Action::Allow) {
            return Part::Never;
        }
        if lifted || values.is_empty() { Part::Always } else { Part::Decided(values) }
    }

    fn accounts(&self, list: &[String]) -> Vec<ServiceAccountMatch> {
        let own = self.object.metadata.namespace.as_str();
        let parts = list.iter().map(|text| text.split_once('/').unwrap_or((own, text)));
        parts.map(|(namespace, account)| ServiceAccountMatch { namespace: namespace.into(), service_account: account.into() }).collect()
    }
}

/// One of them must hold.
fn any(alternatives: Vec<Part<Match>>) -> Part<Clause> {
    let mut matches = Vec::new();
    for alternative in alternatives {
        match alternative {
            Part::Decided(one) => matches.push(one),
            Part::Always => return Part::Always,
            Part::Never => {}
        }
    }
    if matches.is_empty() { Part::Never } else { Part::Decided(Clause { matches }) }
}

/// A match without any field restricts nothing; written out it would mean "never".
fn decided(one: Match) -> Part<Match> {
    if one == Match::default() { Part::Always } else { Part::Decided(one) }
}

/// The values of lists that all must hold; an absent list is empty. `None` if one never holds.
fn values<const N: usize>(lists: [Part<Vec<StringMatch>>; N]) -> Option<[Vec<StringMatch>; N]> {
    let mut possible = true;
    let lists = lists.map(|list| match list {
        Part::Decided(values) => values,
        Part::Always => Vec::new(),
        Part::Never => {
            possible = false;
            Vec::new()
        }
    });
    possible.then_some(lists)
}

fn present<'a>(lists: &'a [(&str, &'a Vec<String>)], path: &'a str) -> impl Iterator<Item = (String, String)> + 'a {
    let present = lists.iter().filter(|(_, list)| !list.is_empty());
    present.map(move |(name, list)| {
        let found: Vec<String> = list.iter().map(|text| format!("{text:?}")).collect();
        (format!("{path}.{name}"), found.join(", "))
    })
}

/// Whether L4 sees an attribute.
fn is_seen(key: &str) -> bool {
    ["source.ip", "source.namespace", "source.principal", "source.serviceAccount", "destination.ip", "destination.port"].contains(&key)
}

/// Whether a rule of DENY denies everything at L4: each of its conjuncts has an alternative of which L4 sees nothing.
fn rule_is_unseen(rule: &istio::Rule) -> bool {
    let source = |source: &Source| {
        let seen = [&source.principals, &source.not_principals, &source.namespaces, &source.not_namespaces];
        let more = [&source.service_accounts, &source.not_service_accounts, &source.ip_blocks, &source.not_ip_blocks];
        seen.iter().chain(&more).all(|list| list.is_empty())
    };
    let operation = |operation: &Operation| operation.ports.is_empty() && operation.not_ports.is_empty();
    rule.from.as_ref().is_none_or(|from| from.iter().any(|from| source(&from.source)))
        && rule.to.as_ref().is_none_or(|to| to.iter().any(|to| operation(&to.operation)))
        && rule.when.iter().flatten().all(|condition| !is_seen(&condition.key))
}

fn ports(list: &[String]) -> Vec<u16> {
    list.iter().filter_map(|port| port.parse().ok()).collect()
}

fn blocks(list: &[String]) -> Vec<IpNet> {
    list.iter().filter_map(|text| block(text)).collect()
}
