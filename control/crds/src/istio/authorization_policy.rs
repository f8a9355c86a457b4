//! `AuthorizationPolicy` (`security.istio.io` v1, v1beta1): who may call whom.

use serde::Deserialize;
use serde_json::Value;

use super::{TargetReference, WorkloadSelector, bounds, validate_selector, validate_targets};
use crate::{decode::About, names};

/// The whole object.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationPolicy {
    /// As written; read once more by [`crate::decode()`].
    pub api_version: String,
    /// As written.
    pub kind: String,
    /// As written; [`crate::Object::metadata`] is the typed form.
    pub metadata: Value,
    /// The policy.
    #[serde(default)]
    pub spec: Spec,
    /// Written by the control plane.
    #[serde(default)]
    pub status: Value,
}

/// The policy.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    /// The workloads; absent for the whole namespace, or the whole mesh in the root namespace. Honoured.
    pub selector: Option<WorkloadSelector>,
    /// The old singular of `targetRefs`. Needs a waypoint.
    pub target_ref: Option<TargetReference>,
    /// What it is attached to instead of workloads. Needs a waypoint.
    pub target_refs: Vec<TargetReference>,
    /// Any rule that matches makes the policy match; absent never matches (ALLOW: denies everything in scope). Honoured.
    pub rules: Option<Vec<Rule>>,
    /// What a match means. `ALLOW` and `DENY` are honoured.
    pub action: Action,
    /// The authorizer of action `CUSTOM`. Not honoured.
    pub provider: Option<ExtensionProvider>,
}

/// What a match means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// Let through, unless another policy denies. Honoured.
    #[default]
    Allow,
    /// Deny. Honoured.
    Deny,
    /// Only log. Not honoured.
    Audit,
    /// Ask an external authorizer. Not honoured.
    Custom,
}

/// `ExtensionProvider`. Not honoured.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct ExtensionProvider {
    /// The name in MeshConfig. Not honoured.
    pub name: String,
}

/// Matches when a `from` matches (or there is none), a `to` matches (or there is none), and every `when` matches.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Rule {
    /// Who calls; any of them. Honoured.
    pub from: Option<Vec<From>>,
    /// What is called; any of them. Honoured.
    pub to: Option<Vec<To>>,
    /// Further conditions; all of them. Honoured for L4 keys.
    pub when: Option<Vec<Condition>>,
}

/// `Rule.From`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct From {
    /// The source. Honoured.
    pub source: Source,
}

/// Who calls: all fields that are set must match; in a field any value. `not_` fields: none of the values.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Source {
    /// `TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT`, `PREFIX*`, `*SUFFIX` or `*`. Honoured.
    pub principals: Vec<String>,
    /// None of these. Honoured.
    pub not_principals: Vec<String>,
    /// `ISSUER/SUBJECT` of a JWT. Needs a waypoint.
    pub request_principals: Vec<String>,
    /// None of these. Needs a waypoint.
    pub not_request_principals: Vec<String>,
    /// Namespaces of the peer's identity. Honoured.
    pub namespaces: Vec<String>,
    /// None of these. Honoured.
    pub not_namespaces: Vec<String>,
    /// `ACCOUNT` (in the policy's namespace) or `NAMESPACE/ACCOUNT`, no wildcards. Honoured.
    pub service_accounts: Vec<String>,
    /// None of these. Honoured.
    pub not_service_accounts: Vec<String>,
    /// Addresses or CIDR blocks of the peer. Honoured.
    pub ip_blocks: Vec<String>,
    /// None of these. Honoured.
    pub not_ip_blocks: Vec<String>,
    /// Addresses of the original client (`x-forwarded-for`). Needs a waypoint.
    pub remote_ip_blocks: Vec<String>,
    /// None of these. Needs a waypoint.
    pub not_remote_ip_blocks: Vec<String>,
    /// Trust domains of the peer. Needs a waypoint.
    pub trust_domains: Vec<String>,
    /// None of these. Needs a waypoint.
    pub not_trust_domains: Vec<String>,
}

/// `Rule.To`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct To {
    /// The operation. Honoured.
    pub operation: Operation,
}

/// What is called: all fields that are set must match; in a field any value. `not_` fields: none of the values.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Operation {
    /// HTTP hosts. Needs a waypoint.
    pub hosts: Vec<String>,
    /// None of these. Needs a waypoint.
    pub not_hosts: Vec<String>,
    /// The workload's own ports, as strings. Honoured.
    pub ports: Vec<String>,
    /// None of these. Honoured.
    pub not_ports: Vec<String>,
    /// HTTP methods. Needs a waypoint.
    pub methods: Vec<String>,
    /// None of these. Needs a waypoint.
    pub not_methods: Vec<String>,
    /// HTTP paths. Needs a waypoint.
    pub paths: Vec<String>,
    /// None of these. Needs a waypoint.
    pub not_paths: Vec<String>,
}

/// `Condition`: an attribute and values.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// The attribute. Honoured for the L4 keys.
    pub key: String,
    /// Any of these. Honoured for the L4 keys.
    pub values: Vec<String>,
    /// None of these. Honoured for the L4 keys.
    pub not_values: Vec<String>,
}

/// Attributes without a name in brackets.
const KEYS: &[&str] = &[
    "source.ip",
    "remote.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "source.trustDomain",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "destination.ip",
    "destination.port",
    "connection.sni",
];
/// Attributes that end in a name in brackets.
const BRACKETED: &[&str] = &["request.headers", "request.auth.claims"];
/// How many `serviceAccounts` a source may have.
const SERVICE_ACCOUNTS_MAX: usize = 16;

pub(crate) fn validate(about: &mut About<'_>, policy: &AuthorizationPolicy) {
    let spec = &policy.spec;
    validate_selector(about, spec.selector.as_ref());
    validate_targets(about, spec.target_ref.as_ref(), &spec.target_refs, spec.selector.is_some());
    bounds::authorization_policy(about, spec);
    let rules = spec.rules.as_deref().unwrap_or_default();
    match spec.action {
        Action::Custom if spec.provider.as_ref().is_none_or(|provider| provider.name.is_empty()) => {
            about.refuse("spec.provider.name", "", "is missing", "action CUSTOM names its provider");
        }
        Action::Allow | Action::Deny | Action::Audit if spec.provider.is_some() => {
            about.refuse("spec.provider", "", "is only allowed with action CUSTOM", "remove it");
        }
        _ => {}
    }
    if rules.is_empty() && matches!(spec.action, Action::Deny | Action::Custom) {
        about.refuse("spec.rules", "", "is missing or empty, so nothing would ever match", "`rules: [{}]` matches everything");
    }
    for (index, rule) in rules.iter().enumerate() {
        let path = format!("spec.rules[{index}]");
        validate_rule(about, rule, &path);
        if spec.action == Action::Custom {
            refuse_identities(about, rule, &path);
        }
    }
}

/// Action CUSTOM is decided before anybody knows who calls.
fn refuse_identities(about: &mut About<'_>, rule: &Rule, path: &str) {
    for (index, from) in rule.from.iter().flatten().enumerate() {
        let source = &from.source;
        let lists = [
            ("principals", &source.principals),
            ("notPrincipals", &source.not_principals),
            ("requestPrincipals", &source.request_principals),
            ("notRequestPrincipals", &source.not_request_principals),
            ("namespaces", &source.namespaces),
            ("notNamespaces", &source.not_namespaces),
            ("serviceAccounts", &source.service_accounts),
            ("notServiceAccounts", &source.not_service_accounts),
            ("trustDomains", &source.trust_domains),
            ("notTrustDomains", &source.not_trust_domains),
        ];
        for (name, _) in lists.iter().filter(|(_, list)| !list.is_empty()) {
            about.refuse(
                &format!("{path}.from[{index}].source.{name}"),
                "",
                "is not allowed with action CUSTOM",
                "ipBlocks and remoteIpBlocks",
            );
        }
    }
    let keys = ["source.namespace", "source.serviceAccount", "source.trustDomain", "source.principal"];
    for (index, condition) in rule.when.iter().flatten().enumerate() {
        if keys.contains(&condition.key.as_str()) || condition.key.starts_with("request.auth.") {
            let accepted = "request.headers, source.ip, remote.ip, destination.ip, destination.port and connection.sni";
            about.refuse(
                &format!("{path}.when[{index}].key"),
                format!("{:?}", condition.key),
                "is not allowed with action CUSTOM",
                accepted,
            );
        }
    }
}

fn validate_rule(about: &mut About<'_>, rule: &Rule, path: &str) {
    for (empty, name) in [(rule.from.as_ref().is_some_and(Vec::is_empty), "from"), (rule.to.as_ref().is_some_and(Vec::is_empty), "to")] {
        if empty {
            about.refuse(&format!("{path}.{name}"), "an empty list", "is ambiguous", "leave the field out to match everything");
        }
    }
    for (index, from) in rule.from.iter().flatten().enumerate() {
        let path = format!("{path}.from[{index}].source");
        validate_source(about, &from.source, &path);
    }
    for (index, to) in rule.to.iter().flatten().enumerate() {
        let path = format!("{path}.to[{index}].operation");
        if to.operation == Operation::default() {
            about.refuse(&path, "an empty mapping", "is ambiguous", "leave `to` out to match everything");
        }
        for (name, ports) in [("ports", &to.operation.ports), ("notPorts", &to.operation.not_ports)] {
            validate_ports(about, ports, &format!("{path}.{name}"));
        }
        for (name, paths) in [("paths", &to.operation.paths), ("notPaths", &to.operation.not_paths)] {
            validate_paths(about, paths, &format!("{path}.{name}"));
        }
        let operation = &to.operation;
        let (hosts, methods) = ([&operation.hosts, &operation.not_hosts], [&operation.methods, &operation.not_methods]);
        let lists = hosts.into_iter().chain(methods).chain([&operation.paths, &operation.not_paths]);
        if lists.flatten().any(String::is_empty) {
            about.refuse(&path, "\"\"", "can never match", "leave out empty values");
        }
    }
    for (index, condition) in rule.when.iter().flatten().enumerate() {
        validate_condition(about, condition, &format!("{path}.when[{index}]"));
    }
}

fn validate_source(about: &mut About<'_>, source: &Source, path: &str) {
    if *source == Source::default() {
        about.refuse(path, "an empty mapping", "is ambiguous", "leave `from` out to match everything");
    }
    for (name, accounts) in [("serviceAccounts", &source.service_accounts), ("notServiceAccounts", &source.not_service_accounts)] {
        if accounts.len() > SERVICE_ACCOUNTS_MAX {
            about.refuse(&format!("{path}.{name}"), accounts.len().to_string(), "entries are too many", "at most 16");
        }
        for (index, account) in accounts.iter().enumerate() {
            validate_service_account(about, account, &format!("{path}.{name}[{index}]"));
        }
    }
    let accounts = !source.service_accounts.is_empty() || !source.not_service_accounts.is_empty();
    let others = [&source.principals, &source.not_principals, &source.namespaces, &source.not_namespaces];
    if accounts && others.iter().any(|list| !list.is_empty()) {
        about.refuse(path, "serviceAccounts beside principals or namespaces", "is ambiguous", "one of them");
    }
    for (name, blocks) in [
        ("ipBlocks", &source.ip_blocks),
        ("notIpBlocks", &source.not_ip_blocks),
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
    ] {
        validate_blocks(about, blocks, &format!("{path}.{name}"));
    }
}

fn validate_condition(about: &mut About<'_>, condition: &Condition, path: &str) {
    let key = condition.key.as_str();
    let bracketed = BRACKETED
        .iter()
        .any(|prefix| key.strip_prefix(prefix).is_some_and(|rest| rest.len() > 2 && rest.starts_with('[') && rest.ends_with(']')));
    if !KEYS.contains(&key) && !bracketed && !key.starts_with("experimental.envoy.filters.") {
        let accepted = format!("{}, request.headers[NAME] or request.auth.claims[NAME]", KEYS.join(", "));
        about.refuse(&format!("{path}.key"), format!("{key:?}"), "is not an attribute", &accepted);
        return;
    }
    if condition.values.is_empty() && condition.not_values.is_empty() {
        about.refuse(path, "", "has neither values nor notValues", "at least one of them");
    }
    for (name, values) in [("values", &condition.values), ("notValues", &condition.not_values)] {
        let path = format!("{path}.{name}");
        match key {
            "source.ip" | "remote.ip" | "destination.ip" => validate_blocks(about, values, &path),
            "destination.port" => validate_ports(about, values, &path),
            "source.serviceAccount" => {
                for (index, value) in values.iter().enumerate() {
                    validate_service_account(about, value, &format!("{path}[{index}]"));
                }
            }
            _ => {}
        }
    }
}

fn validate_ports(about: &mut About<'_>, ports: &[String], path: &str) {
    for (index, port) in ports.iter().enumerate() {
        if !port.parse().is_ok_and(names::is_port) {
            about.refuse(&format!("{path}[{index}]"), format!("{port:?}"), "is not a port", "\"1\" to \"65535\"");
        }
    }
}

/// A path may be a template: `{*}` is a segment, `{**}` at the end the rest.
fn validate_paths(about: &mut About<'_>, paths: &[String], path: &str) {
    for (index, text) in paths.iter().enumerate().filter(|(_, text)| text.contains("{*") || text.contains("*}")) {
        let mut segments = text.split('/').peekable();
        let rooted = segments.next() == Some("");
        let mut good = rooted;
        while let Some(segment) = segments.next() {
            good &= match segment {
                "{*}" => true,
                "{**}" => segments.peek().is_none(),
                plain => !plain.contains(['{', '}', '*']),
            };
        }
        if !good {
            let accepted = "/ and segments, of which {*} is any one, and {**} at the end any number";
            about.refuse(&format!("{path}[{index}]"), format!("{text:?}"), "is not a template of paths", accepted);
        }
    }
}

fn validate_blocks(about: &mut About<'_>, blocks: &[String], path: &str) {
    for (index, block) in blocks.iter().enumerate() {
        if super::block(block).is_none() {
            let accepted = "for example \"10.0.0.0/8\" or \"fd00::1\"";
            about.refuse(&format!("{path}[{index}]"), format!("{block:?}"), "is neither an IP address nor a CIDR block", accepted);
        }
    }
}

fn validate_service_account(about: &mut About<'_>, account: &str, path: &str) {
    let (namespace, name) = account.split_once('/').unwrap_or(("x", account));
    if !names::is_dns_label(namespace) || !names::is_dns_subdomain(name) {
        let accepted = "ACCOUNT or NAMESPACE/ACCOUNT, without wildcards";
        about.refuse(path, format!("{account:?}"), "is not a service account", accepted);
    }
}
